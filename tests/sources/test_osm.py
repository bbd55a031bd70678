"""OpenStreetMap: all sources give the same roads and water, limited to what is visible from the air."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import zipfile
from itertools import count

import geopandas
import numpy as np
import osmnx
import pandas as pd
import pyogrio
import pytest
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from scipy.ndimage import binary_dilation
from shapely.affinity import translate
from shapely.geometry import LineString, Point, Polygon, box

from landprior.errors import InputError, MissingInputError, OfflineError, SourceBusyError, SourceError
from landprior.raster.grid import Grid
from landprior.sources import osm
from landprior.sources.http.client import USER_AGENT, Network, RetryPolicy
from landprior.sources.osm import LAYERS, burn_layer, convert_extract, download_features, is_extract, read_layers

from .place import in_degrees, write_pbf

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)
WORLD = (-180.0, -90.0, 180.0, 90.0)


@pytest.fixture
def network(cache):
    return Network(cache, policy=QUICK)


@pytest.fixture
def grid(make_grid):
    return make_grid(400, 500)


def burn_all(path, grid, **options):
    frames = read_layers(path, grid)
    assert set(frames) == set(LAYERS)
    return {name: burn_layer(name, frames[name], grid, **options) for name in LAYERS}


def assert_same(first, second):
    for name in LAYERS:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def make_elements(features, crs="EPSG:26917"):
    """Return nodes, ways and relations for pairs of shape and tags."""
    ids = count(1)
    nodes, ways, relations = [], [], []

    def add_way(line, tags):
        places = line.coords[:-1] if line.is_ring else line.coords
        new = [{"type": "node", "id": next(ids), "lat": round(y, 7), "lon": round(x, 7)} for x, y in places]
        nodes.extend(new)
        refs = [node["id"] for node in new]
        ways.append({"type": "way", "id": next(ids), "nodes": refs + refs[: line.is_ring], "tags": tags})
        return {"type": "way", "ref": ways[-1]["id"]}

    for drawn, tags in features:
        (shape,) = in_degrees([drawn], crs)
        if shape.geom_type == "Point":
            place = {"lat": round(shape.y, 7), "lon": round(shape.x, 7)}
            nodes.append({"type": "node", "id": next(ids), **place, "tags": tags})
        elif shape.geom_type == "LineString":
            add_way(shape, tags)
        elif not shape.interiors:
            add_way(shape.exterior, tags)
        else:
            members = [add_way(shape.exterior, {}) | {"role": "outer"}]
            members += [add_way(hole, {}) | {"role": "inner"} for hole in shape.interiors]
            relations.append(
                {"type": "relation", "id": next(ids), "members": members, "tags": {"type": "multipolygon", **tags}}
            )
    return [*nodes, *ways, *relations]


@pytest.fixture
def overpass(faulty_server):
    """An Overpass server that responds to every query with its ``elements``."""

    def interpreter(_request):
        head = {"version": 0.6, "generator": "Overpass API", "osm3s": {"copyright": "ODbL"}}
        return 200, {"Content-Type": "application/json"}, json.dumps(head | server.answer).encode()

    def moved(_request):
        return 307, {"Location": "/api/interpreter"}, b""

    def status(_request):
        lines = ["Connected as: 1", "Current time: 2026-11-01T00:00:00Z", "Announced endpoint: none", "Rate limit: 2"]
        return 200, {"Content-Type": "text/plain"}, "\n".join([*lines, "2 slots available now.", ""]).encode()

    routes = {"/api/interpreter": interpreter, "/old/interpreter": moved, "/api/status": status}
    server = faulty_server(routes=routes)
    server.answer = {"elements": []}
    server.api = f"{server.url}/api"
    return server


# -- the sources agree -------------------------------------------------------------------------


def test_overpass_and_an_extract_give_the_same_rasters(overpass, scene_files, network, cache):
    overpass.answer = {"elements": scene_files.elements}
    grid = scene_files.scene.grid
    asked = burn_all(download_features(grid, network, url=overpass.api), grid)
    bounds = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    assert_same(asked, burn_all(convert_extract(scene_files.pbf, cache, bounds), grid))
    for name in LAYERS:
        assert asked[name].any(), name
    lake = scene_files.scene.layers["waterbodies"] > 0
    assert (lake == (asked["waterbodies"] > 0)).mean() > 0.999


def extract_as(kind, elements, tmp_path, cache):
    """Return the features of an extract in a form in which users may have them."""
    pbf = write_pbf(tmp_path / "place.osm.pbf", elements)
    if kind == "ours":
        return convert_extract(pbf, cache, WORLD)
    path = tmp_path / "ogr2ogr.gpkg"  # with GDAL's default configuration, in which most tags are in other_tags
    for layer in ("points", "lines", "multipolygons"):
        frame = pyogrio.read_dataframe(pbf, layer=layer)
        assert "other_tags" in frame.columns
        pyogrio.write_dataframe(frame, path, layer=layer, append=path.exists())
    return path


def line(grid, row, length=100.0):
    """Return a line from west to east through the middle of a row of pixels."""
    left, _, _, top = grid.bounds
    return LineString([(left + 50.5, top - row - 0.5), (left + 50.5 + length, top - row - 0.5)])


def square(grid, row, *, hole=0.0):
    left, _, _, top = grid.bounds
    outer = Point(left + 250, top - row).buffer(4, cap_style="square")
    return outer.difference(Point(left + 250, top - row).buffer(hole, cap_style="square")) if hole else outer


ROADS = [
    ({"highway": "residential"}, True),
    ({"highway": "service", "tunnel": "no"}, True),
    ({"highway": "footway", "covered": "no"}, True),
    ({"highway": "primary", "bridge": "yes", "layer": "1"}, True),
    ({"highway": "track", "note": 'a "road"'}, True),
    ({"highway": "primary", "tunnel": "yes"}, False),
    ({"highway": "service", "tunnel": "building_passage"}, False),
    ({"highway": "footway", "covered": "yes"}, False),
    ({"highway": "footway", "location": "underground"}, False),
    ({"highway": "construction", "construction": "primary"}, False),
    ({"highway": "proposed"}, False),
    ({"highway": "abandoned"}, False),
    ({"highway": "platform"}, False),
    ({"highway": "raceway"}, False),
    ({"railway": "rail"}, False),
    ({"barrier": "hedge", "maxwidth": "3"}, False),
]
WATERWAYS = [
    ({"waterway": "river"}, True),
    ({"waterway": "stream", "intermittent": "yes"}, True),
    ({"waterway": "ditch"}, True),
    ({"waterway": "canal", "tunnel": "culvert"}, False),
    ({"waterway": "stream", "tunnel": "yes"}, False),
    ({"waterway": "drain", "location": "underground"}, False),
    ({"waterway": "dam"}, False),
    ({"waterway": "weir"}, False),
]
BODIES = [
    ({"natural": "water"}, True),
    ({"natural": "water", "water": "river"}, True),
    ({"landuse": "reservoir"}, True),
    ({"landuse": "basin"}, True),
    ({"waterway": "riverbank"}, True),
    ({"waterway": "dock"}, True),
    ({"landuse": "reservoir", "location": "underground"}, False),
    ({"natural": "water", "covered": "yes"}, False),
    ({"natural": "wetland"}, False),
    ({"landuse": "meadow"}, False),
    ({"highway": "pedestrian", "area": "yes"}, False),
    ({"building": "yes"}, False),
]


@pytest.mark.parametrize("kind", ["overpass", "ours", "ogr2ogr"])
def test_only_visible_features_are_burnt(kind, overpass, grid, network, cache, tmp_path):
    lines = [(line(grid, 10 * i + 10), tags, there) for i, (tags, there) in enumerate(ROADS)]
    lines += [(line(grid, 10 * i + 210), tags, there) for i, (tags, there) in enumerate(WATERWAYS)]
    # ogr2ogr treats a closed waterway as a line
    squares = [
        (square(grid, 12 * i + 20), tags, there and not (kind == "ogr2ogr" and "waterway" in tags))
        for i, (tags, there) in enumerate(BODIES)
    ]
    features = [(shape, tags) for shape, tags, _ in lines + squares]
    left, _, _, top = grid.bounds
    roundabout = Point(left + 350, top - 50).buffer(12)
    features += [(LineString(roundabout.exterior), {"highway": "residential", "junction": "roundabout"})]
    features += [(square(grid, 300, hole=2), {"natural": "water"})]
    features += [(Point(left + 400.5, top - 200.5), {"highway": "crossing", "natural": "water"})]
    elements = make_elements(features)
    if kind == "overpass":
        overpass.answer = {"elements": elements}
        path = download_features(grid, network, url=overpass.api)
    else:
        path = extract_as(kind, elements, tmp_path, cache)
    found = burn_all(path, grid)
    roads = [shape for (shape, _, there) in lines[: len(ROADS)] if there] + [roundabout.exterior]
    ways = [shape for (shape, _, there) in lines[len(ROADS) :] if there]
    bodies = [shape for (shape, _, there) in squares if there] + [square(grid, 300, hole=2)]
    burnt = rasterize(roads, grid.shape, transform=grid.transform, dtype="uint8")
    agree = found["roads"] == binary_dilation(burnt, np.ones((3, 3)))
    assert (~agree).sum() <= 20  # coordinates of the roundabout are rounded to a centimetre
    assert agree[:, :300].all()
    assert found["roads"][50, 350] == 0
    expected = rasterize(ways, grid.shape, transform=grid.transform, all_touched=True, dtype="uint8")
    np.testing.assert_array_equal(found["waterways"], expected)
    expected = rasterize(bodies, grid.shape, transform=grid.transform, dtype="uint8")
    np.testing.assert_array_equal(found["waterbodies"], expected)
    assert expected[300, 250] == 0
    assert expected[297, 247] == 1


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("city", "corner", "roads", "waterways", "bodies"),
    [("baltimore", (-76.62, 39.35), 3841, 18, 7), ("harrisburg", (-76.88, 40.31), 2513, 12, 11)],
)
def test_real_extracts_and_ready_made_layers_agree(real_data, cache, city, corner, roads, waterways, bodies):
    folder = real_data / "osm-samples"
    pbf, layers = folder / f"{city}.osm.pbf", folder / f"{city}_layers.gpkg"
    path = convert_extract(pbf, cache, WORLD)
    lines, areas = pyogrio.read_dataframe(path, layer="lines"), pyogrio.read_dataframe(path, layer="multipolygons")
    banks = int(areas["waterway"].eq("riverbank").sum())  # lines in the ready-made layers
    assert lines["highway"].notna().sum() == roads
    assert lines["waterway"].notna().sum() == waterways - banks
    assert len(areas) - banks == bodies
    x, y = np.floor(Transformer.from_crs(4326, 26918, always_xy=True).transform(*corner))
    grid = Grid(width=2000, height=2400, transform=Affine(5, 0, x, 0, -5, y), crs=CRS.from_epsg(26918))
    own, ready = read_layers(path, grid), read_layers(layers, grid)
    tags = pyogrio.read_dataframe(pbf, layer="lines", columns=["osm_id", "other_tags"], read_geometry=False)
    hidden = set(
        tags["osm_id"][tags["other_tags"].astype("string").str.contains('"tunnel"=>"(?:yes|culvert)"').fillna(False)]
    )
    for name in ("roads", "waterways"):
        left = ready[name][~ready[name]["osm_id"].isin(hidden)]
        np.testing.assert_array_equal(burn_layer(name, own[name], grid), burn_layer(name, left, grid))
        assert len(own[name]) == len(left)
    rest = own["waterbodies"][~own["waterbodies"]["waterway"].eq("riverbank")]
    np.testing.assert_array_equal(
        burn_layer("waterbodies", rest, grid), burn_layer("waterbodies", ready["waterbodies"], grid)
    )
    assert len(own["roads"]) > 1000
    assert len(own["waterways"]) > 4
    assert len(rest) >= 5


# -- ready-made files ----------------------------------------------------------------------------


def geofabrik(tmp_path, grid, ending):
    """Write layers like those in Geofabrik's free shapefiles."""
    left, _, _, top = grid.bounds
    layers = {
        "gis_osm_roads_free_1": (
            [line(grid, row) for row in (10, 20, 30)],
            {"fclass": ["residential", "motorway", "footway"], "tunnel": ["F", "T", "F"], "bridge": "F"},
        ),
        "gis_osm_waterways_free_1": ([line(grid, row) for row in (50, 60)], {"fclass": ["river", "canal"]}),
        "gis_osm_water_a_free_1": (
            [square(grid, row) for row in (10, 30, 50, 70)],
            {"fclass": ["water", "reservoir", "wetland", "glacier"]},
        ),
        "gis_osm_places_free_1": ([Point(left + 300, top - 300)], {"fclass": ["city"]}),
        "gis_osm_landuse_a_free_1": ([square(grid, 200)], {"fclass": ["forest"]}),
    }
    folder = tmp_path / "shapes"
    folder.mkdir()
    path = tmp_path / f"region-free.{ending}"
    for name, (shapes, columns) in layers.items():
        frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=grid.crs.to_wkt()).to_crs(4326)
        if ending == "gpkg":
            pyogrio.write_dataframe(frame, path, layer=name, append=path.exists())
        else:
            pyogrio.write_dataframe(frame, folder / f"{name}.shp")
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for part in sorted(folder.iterdir()):
                archive.write(part, part.name)
    return path


@pytest.mark.parametrize("ending", ["gpkg", "zip"])
def test_layers_of_geofabrik_are_recognised_by_name(tmp_path, grid, ending):
    path = geofabrik(tmp_path, grid, ending)
    frames = read_layers(path, grid)
    assert {name: len(frame) for name, frame in frames.items()} == {"roads": 2, "waterways": 2, "waterbodies": 2}
    assert frames["roads"].crs == grid.crs.to_wkt()
    assert sorted(osm.road_widths(frames["roads"])) == [2.0, 7.0]
    found = burn_all(path, grid)
    assert found["roads"][9:12, 60:140].all()
    assert not found["roads"][15:25].any()
    assert found["waterbodies"][[10, 30, 50, 70], 250].tolist() == [1, 1, 0, 0]


def test_layers_with_names_of_landprior_need_no_tags(tmp_path, grid):
    path = tmp_path / "mine.gpkg"
    for name, shapes in {
        "roads": [line(grid, 10), square(grid, 100)],  # an area is not a road
        "waterways": [line(grid, 20)],
        "waterbodies": [square(grid, 30), line(grid, 300)],
        "other": [line(grid, 40)],
    }.items():
        frame = geopandas.GeoDataFrame(geometry=shapes, crs=grid.crs.to_wkt())
        pyogrio.write_dataframe(frame, path, layer=name, append=path.exists(), geometry_type="Unknown")
    assert {name: len(frame) for name, frame in read_layers(path, grid).items()} == dict.fromkeys(LAYERS, 1)


def test_a_file_without_roads_and_water_is_refused(tmp_path, grid):
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[line(grid, 10)], crs=grid.crs.to_wkt())
    pyogrio.write_dataframe(frame, tmp_path / "paths.gpkg", layer="paths")
    with pytest.raises(InputError, match=r"has no layer of roads or water \(its layers: paths\); give an \.osm\.pbf"):
        read_layers(tmp_path / "paths.gpkg", grid)
    with pytest.raises(MissingInputError, match="no such file"):
        read_layers(tmp_path / "none.gpkg", grid)
    (tmp_path / "text.gpkg").write_text("roads")
    with pytest.raises(InputError, match=r"text\.gpkg cannot be read as vector data"):
        read_layers(tmp_path / "text.gpkg", grid)


# -- extracts ------------------------------------------------------------------------------------


def test_extracts_are_recognised_by_extension(tmp_path):
    known = {name: is_extract(tmp_path / name) for name in ("a.osm.pbf", "a.pbf", "a.osm", "a.gpkg", "a.zip", "pbf")}
    assert known == {"a.osm.pbf": True, "a.pbf": True, "a.osm": True, "a.gpkg": False, "a.zip": False, "pbf": False}


def test_an_extract_is_converted_once_and_only_within_the_bounds(grid, cache, tmp_path):
    left, _, _, top = grid.bounds
    far = LineString([(left + 50_000, top), (left + 50_100, top)])
    pbf = write_pbf(
        tmp_path / "a.osm.pbf", make_elements([(line(grid, 10), {"highway": "path"}), (far, {"highway": "path"})])
    )
    bounds = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    path = convert_extract(pbf, cache, bounds)
    assert pyogrio.read_info(path, layer="lines")["features"] == 1
    written = path.stat().st_mtime_ns
    assert convert_extract(pbf, cache, bounds) == path
    assert path.stat().st_mtime_ns == written
    everything = convert_extract(pbf, cache, WORLD)
    assert pyogrio.read_info(everything, layer="lines")["features"] == 2
    write_pbf(pbf, make_elements([(line(grid, row), {"highway": "path"}) for row in (10, 20, 30)]))
    changed = convert_extract(pbf, cache, bounds)
    assert pyogrio.read_info(changed, layer="lines")["features"] == 3


def test_an_extract_without_features_at_the_place_gives_empty_layers(grid, cache, tmp_path):
    pbf = write_pbf(tmp_path / "a.osm.pbf", make_elements([(line(grid, 10), {"highway": "path"})]))
    path = convert_extract(pbf, cache, (10.0, 50.0, 11.0, 51.0))
    for name, values in burn_all(path, grid).items():
        assert (values.shape, values.dtype, values.any()) == (grid.shape, np.uint8, False), name


def test_an_unreadable_extract_is_an_error(cache, tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        convert_extract(tmp_path / "none.osm.pbf", cache, WORLD)
    (tmp_path / "text.osm.pbf").write_text("roads and rivers")
    with pytest.raises(
        InputError, match=r"text\.osm\.pbf cannot be read as an OpenStreetMap extract .*download it again"
    ):
        convert_extract(tmp_path / "text.osm.pbf", cache, WORLD)


@pytest.mark.realdata
def test_a_truncated_extract_is_an_error(real_data, cache, tmp_path):
    content = (real_data / "osm-samples" / "harrisburg.osm.pbf").read_bytes()
    (tmp_path / "half.osm.pbf").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"half\.osm\.pbf cannot be read as an OpenStreetMap extract"):
        convert_extract(tmp_path / "half.osm.pbf", cache, WORLD)
    assert not list((cache.root / "osm").glob("*.gpkg"))


# -- requests to Overpass ------------------------------------------------------------------------


def test_the_query_covers_the_whole_tile_and_has_our_user_agent(overpass, network):
    # wide and flat, at a place where longitude and latitude cannot be confused
    grid = Grid(width=900, height=200, transform=Affine(1, 0, 712_345, 0, -1, 4_512_345), crs=CRS.from_epsg(26917))
    before = {name: getattr(osmnx.settings, name) for name in dir(osmnx.settings) if not name.startswith("_")}
    resolver = socket.getaddrinfo
    download_features(grid, network, url=f"{overpass.api}/")
    assert {name: getattr(osmnx.settings, name) for name in before} == before
    assert socket.getaddrinfo is resolver
    (request,) = overpass.requests
    assert (request.method, request.path, request.headers["User-Agent"]) == ("POST", "/api/interpreter", USER_AGENT)
    question = request.form["data"]
    assert question.startswith("[out:json][timeout:15];")
    (outline,) = set(re.findall(r"\(poly:'([^']+)'\)", question))
    numbers = [float(number) for number in outline.split()]
    asked = Polygon(list(zip(numbers[1::2], numbers[::2], strict=True)))  # Overpass has latitude first
    edges = box(*grid.bounds).segmentize(1.0)
    to_degrees = Transformer.from_crs(26917, 4326, always_xy=True).transform
    for place in edges.exterior.coords:
        assert asked.covers(Point(to_degrees(*place)))
    assert asked.area < 1.3 * Polygon([to_degrees(*place) for place in edges.exterior.coords]).area
    for wanted in ("way['highway']", "way['waterway']", "way['natural'='water']", "relation['landuse'='basin']"):
        assert f"({wanted}(poly:" in question


def test_an_empty_response_is_valid_and_cached(overpass, network, cache, grid):
    path = download_features(grid, network, url=overpass.api)
    for values in burn_all(path, grid).values():
        assert not values.any()
    assert download_features(grid, network, url=overpass.api) == path
    assert download_features(grid, Network(cache, offline=True), url=overpass.api) == path
    assert len(overpass.requests) == 1
    overpass.answer = {"elements": make_elements([(Point(600_010, 4_499_990), {"highway": "crossing"})])}
    refreshed = download_features(grid, Network(cache, policy=QUICK, refresh=True), url=overpass.api)
    assert refreshed == path
    assert len(overpass.requests) == 2
    assert not burn_all(path, grid)["roads"].any()


def test_offline_an_uncached_tile_is_an_error(overpass, cache, grid):
    with pytest.raises(OfflineError, match=r"OpenStreetMap .*not in the cache"):
        download_features(grid, Network(cache, offline=True), url=overpass.api)
    assert overpass.requests == []


def test_failures_of_the_network_are_retried(overpass, grid, cache):
    overpass.answer = {"elements": make_elements([(line(grid, 10), {"highway": "path"})])}
    faults = ["429", "504", "truncate", "garbage", "reset", "empty"]
    overpass.faults.extend(faults)
    patient = Network(cache, policy=dataclasses.replace(QUICK, attempts=7))
    assert burn_all(download_features(grid, patient, url=overpass.api), grid)["roads"].any()
    assert [request.fault for request in overpass.requests] == [*faults, ""]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            {"elements": [], "remark": "runtime error: Query timed out in 'query' at line 1"},
            SourceBusyError,
            "in full .runtime",
        ),
        ({"version": 0.6}, SourceError, "not an Overpass response"),
    ],
)
def test_incomplete_responses_are_refused_and_settings_restored(overpass, network, grid, cache, answer, kind, words):
    overpass.answer = answer
    agent, resolver = osmnx.settings.http_user_agent, socket.getaddrinfo
    with pytest.raises(kind, match=rf"OpenStreetMap \(Overpass\): .*/api/interpreter .*{words}.*--osm FILE\.osm\.pbf"):
        download_features(grid, network, url=overpass.api)
    assert (osmnx.settings.http_user_agent, socket.getaddrinfo) == (agent, resolver)
    assert len(overpass.requests) == (2 if kind is SourceBusyError else 1)
    assert not list((cache.root / "osm").iterdir())


def test_a_list_is_not_a_valid_response(overpass, network, grid):
    overpass.routes["/api/interpreter"] = lambda _: (200, {"Content-Type": "application/json"}, b"[]")
    with pytest.raises(SourceError, match="not an Overpass response"):
        download_features(grid, network, url=overpass.api)


def test_redirects_of_the_server_are_followed(overpass, network, grid):
    overpass.answer = {"elements": make_elements([(line(grid, 10), {"highway": "path"})])}
    assert burn_all(download_features(grid, network, url=f"{overpass.url}/old"), grid)["roads"].any()
    assert [request.path for request in overpass.requests] == ["/old/interpreter", "/api/interpreter"]


def test_the_status_of_the_public_server_is_checked_first(overpass, network, grid, monkeypatch):
    monkeypatch.setattr(osm, "OVERPASS_URL", overpass.api)
    download_features(grid, network)
    assert [request.path for request in overpass.requests] == ["/api/status", "/api/interpreter"]
    assert overpass.requests[0].headers["User-Agent"] == USER_AGENT


# -- burning -------------------------------------------------------------------------------------


def frame_of(shapes, grid, **tags):
    return geopandas.GeoDataFrame(
        {name: pd.Series(values, dtype=object) for name, values in tags.items()}, geometry=shapes, crs=grid.crs.to_wkt()
    )


def test_fixed_roads_are_three_pixels_wide(grid, rng):
    left, bottom, right, top = grid.bounds
    ends = rng.uniform((left - 50, bottom - 50), (right + 50, top + 50), size=(30, 2, 2))
    shapes = [LineString(pair) for pair in ends]
    burnt = rasterize(shapes, grid.shape, transform=grid.transform, dtype="uint8")
    found = burn_layer("roads", frame_of(shapes, grid, highway=["path"] * 30), grid)
    np.testing.assert_array_equal(found, binary_dilation(burnt, np.ones((3, 3))))
    assert burn_layer("roads", frame_of([line(grid, 10)], grid, highway=["motorway"]), grid).sum() == 3 * 103
    thin = burn_layer("waterways", frame_of([line(grid, 10)], grid), grid)
    assert thin.sum() == 101


@pytest.mark.parametrize(
    ("tags", "metres"),
    [
        ({"width": "5"}, 5.0),
        ({"width": "5.5 m"}, 5.5),
        ({"width": "5m"}, 5.0),
        ({"width": "16'"}, 4.8768),
        ({"width": "20 ft"}, 6.096),
        ({"width": " 7 "}, 7.0),
        ({"width": "12", "lanes": "6"}, 12.0),
        ({"width": "wide", "lanes": "2"}, 6.6),
        ({"width": "0", "lanes": "2"}, 6.6),
        ({"width": "3-4", "highway": "track"}, 3.0),
        ({"lanes": "4"}, 13.2),
        ({"lanes": "2;3", "highway": "primary"}, 11.0),
        ({"highway": "motorway"}, 14.0),
        ({"highway": "path"}, 1.5),
        ({"highway": "busway"}, 5.0),
        ({}, 5.0),
        ({"width": "0.3"}, 1.0),
        ({"width": "500"}, 60.0),
    ],
)
def test_widths_are_read_from_tags(grid, tags, metres):
    frame = frame_of([line(grid, 10)], grid, **{name: [value] for name, value in tags.items()})
    assert osm.road_widths(frame).tolist() == pytest.approx([metres])
    other = "".join(f'"{name}"=>"{value}",' for name, value in tags.items()).rstrip(",")
    frame = frame_of([line(grid, 10)], grid, other_tags=[other or None])
    assert osm.road_widths(frame).tolist() == pytest.approx([metres])


def test_roads_have_the_width_in_their_tags(grid):
    shapes = [translate(line(grid, row), 0.5, 0.5) for row in (20, 60, 100)]
    frame = frame_of(shapes, grid, highway=["motorway", "service", "path"], width=[None, "8 m", None])
    found = burn_layer("roads", frame, grid, road_width="tags")
    for row, width in ((20, 14), (60, 8), (100, 2)):
        np.testing.assert_array_equal(found[row - width // 2 : row + width // 2, 51:151], 1)
    assert found.sum() == 100 * (14 + 8 + 2)
    assert not burn_layer("roads", frame[:0], grid, road_width="tags").any()
