"""Areas: presets, boxes in the right and in wrong orders, outlines from files, places by name."""

from __future__ import annotations

import json
import re
import socket
from types import SimpleNamespace

import geopandas
import osmnx
import pytest
import shapely
from shapely.geometry import LineString, Point, Polygon, box, mapping

from landprior.errors import ConfigError, InputError, MissingInputError, OfflineError, SourceBusyError, SourceError
from landprior.raster.scheme import load_scheme
from landprior.sources.areas import area_from_bounds, area_from_city, parse_bounds
from landprior.sources.cities import list_cities, load_city
from landprior.sources.folder_names import check_name, slug
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import USER_AGENT, Network, RetryPolicy
from landprior.sources.outlines import area_from_file, area_from_place

PAPER = {"austin": (2012, 26914), "durham": (2012, 26917), "phoenix": (2010, 26912), "pittsburgh": (2010, 26917)}


def test_the_four_cities_of_the_paper_are_shipped():
    assert list_cities() == sorted(PAPER)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_preset_has_the_years_zone_and_rates_of_the_paper(name):
    city = load_city(name)
    assert (city.naip_year, city.epsg) == PAPER[name]
    assert load_scheme(city.scheme).name == "enviroatlas-5"
    assert city.paper is not None
    assert city.paper.learning_rates == {"qr": 1e-4, "rq": 1e-3, "fine-tuning": 1e-5}
    assert (city.paper.filters, city.paper.batch_size, city.paper.patch_size) == (128, 128, 128)
    left, bottom, right, top = city.bounds
    zone = int((left + 180) // 6) + 1
    assert city.epsg == 26900 + zone
    assert right - left < 1.2
    assert top - bottom < 1.2


def test_the_error_for_an_unknown_city_lists_the_presets():
    with pytest.raises(ConfigError, match="austin, durham, phoenix, pittsburgh"):
        load_city("atlantis")


def test_a_custom_preset_file(tmp_path):
    path = tmp_path / "ithaca.yaml"
    path.write_text(
        "name: ithaca\ntitle: Ithaca NY\nbounds: [-76.6, 42.4, -76.4, 42.5]\nnaip_year: 2021\nnlcd_year: 2021\n"
        "epsg: 26918\nscheme: chesapeake-4\n"
    )
    assert load_city(path).paper is None
    with pytest.raises(MissingInputError, match="no such file"):
        load_city(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bounds: [-76.4, 42.4, -76.6, 42.5]", "left, bottom, right, top in degrees"),
        ("naip_year: soon", "naip_year"),
        ("zone: 18", "zone"),
    ],
)
def test_a_mistake_gives_one_line_with_the_file(tmp_path, line, message):
    lines = {
        "name": "name: x",
        "title": "title: x",
        "bounds": "bounds: [-76.6, 42.4, -76.4, 42.5]",
        "naip_year": "naip_year: 2021",
        "nlcd_year": "nlcd_year: 2021",
        "epsg": "epsg: 26918",
        "scheme": "scheme: chesapeake-4",
    }
    lines[line.split(":")[0]] = line
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines.values()))
    with pytest.raises(ConfigError, match=message) as caught:
        load_city(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_city_is_the_box_of_its_preset():
    area = area_from_city("pittsburgh")
    assert (area.name, area.bounds) == ("pittsburgh", load_city("pittsburgh").bounds)
    assert area.preset == load_city("pittsburgh")


# -- boxes ---------------------------------------------------------------------------------------

ITHACA = (-76.52, 42.42, -76.46, 42.46)


VILLAGE = (-80.21, 37.22, -80.2, 37.23)


@pytest.mark.parametrize(
    "text",
    [
        "-80.21,37.22,-80.20,37.23",
        " -80.21, 37.22, -80.20, 37.23 ",
        "-80.21 37.22 -80.20 37.23",
        "-80.21;37.22;-80.20;37.23",
        "[-80.21,37.22,-80.20,37.23]",
        "[[-80.21, 37.22], [-80.20, 37.23]]",
        "(-80.21,37.22,-80.20,37.23),",
        "\u221280.21,37.22,\u221280.20,37.23",
        "\u201380.21,37.22,\u201380.20,37.23",
        "-80.21\u00a037.22\u00a0-80.20\u00a037.23",
        "-80,21;37,22;-80,20;37,23",
        "-80,21 37,22 -80,20 37,23",
        "80.21W,37.22N,80.20W,37.23N",
        "W80.21 N37.22 W80.20 N37.23",
        "80.21° W, 37.22° N, 80.20° W, 37.23° N",
        "-80.21,37.22,-80.20,37.23 [EPSG:4326]",
        "-8.021e1,37.22,-80.20,37.23",
    ],
)
def test_a_box_is_read_from_pasted_text(text):
    assert parse_bounds(text) == VILLAGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-80,21,37,22,-80,20,37,23", r"with points in place of decimal commas it is -80\.21,37\.22,-80\.20,37\.23$"),
        ("570000,4120000,570256,4120256", "are not degrees; give west,south,east,north"),
        ("37.22,-80.21,37.23,-80.20", r"looks like latitude before longitude.*: -80\.21,37\.22,-80\.2,37\.23$"),
        ("-80.21,-80.20,37.22,37.23", r"in another order.*: -80\.21,37\.22,-80\.2,37\.23$"),
        ("-80.21,37.22,-80.20,37.22", "is not a box"),
        ("1,2,3,4 [EPSG:3857]", "is in EPSG:3857; give four numbers"),
        ("", "is not four numbers"),
        ("1,2,3", "is not four numbers"),
        ("1,2,3,4,5", "is not four numbers"),
        ("west,south,east,north", "'west' in .* is not a number of degrees"),
        ("nan,1,2,3", "'nan' in .* is not a number"),
        ("-80W,37N,-79W,38N", "'-80W' in .* is not a number"),
        ("1_0,2,3,4", "'1_0' in .* is not a number"),
        ("1e400,1,2,3", "are not degrees"),
        ("179.9,51.8,-179.9,52", "antimeridian .*: 179.9,51.8,180,52 and -180,51.8,-179.9,52$"),
        ("-180.1,51.8,-179.9,52", "antimeridian .*: 179.9,51.8,180,52 and -180,51.8,-179.9,52$"),
        ("179.9,51.8,180.1,52", "antimeridian .*: 179.9,51.8,180,52 and -180,51.8,-179.9,52$"),
        ("279.8,37.1,279.9,37.2", "not a box within 180 degrees of longitude; give -80.2,37.1,-80.1,37.2$"),
        ("-190,51,-189,52", "not a box within 180 degrees of longitude; give 170,51,171,52$"),
        ("10,50,-10,51", "another order.*: -10,50,10,51$"),
    ],
)
def test_an_invalid_box_gives_one_line_with_advice(text, message):
    with pytest.raises(InputError, match=message) as caught:
        area_from_bounds(parse_bounds(text))
    assert "\n" not in str(caught.value)


def test_halves_on_each_side_of_the_antimeridian_are_boxes():
    for half in ((179.9, 51.8, 180.0, 52.0), (-180.0, 51.8, -179.9, 52.0)):
        assert area_from_bounds(half).bounds == half


def test_an_outline_across_the_antimeridian_is_refused_with_advice(tmp_path):
    halves = [box(179.9, 51.8, 180, 52), box(-180, 51.8, -179.9, 52)]
    geopandas.GeoDataFrame(geometry=halves, crs=4326).to_file(tmp_path / "halves.geojson")
    utm = geopandas.GeoDataFrame(geometry=[box(290_000, 5_740_000, 310_000, 5_750_000)], crs=32601)
    utm.to_file(tmp_path / "utm.gpkg")  # straddles 180 degrees
    for name in ("halves.geojson", "utm.gpkg"):
        with pytest.raises(InputError, match=r"crosses the antimeridian.*cut it at 180 degrees"):
            area_from_file(tmp_path / name)


def test_a_box_is_west_south_east_north():
    area = area_from_bounds(ITHACA)
    assert area.bounds == ITHACA
    assert area.outline.equals(box(*ITHACA))
    assert area.preset is None
    assert area.name == check_name(area.name) == "76_5200w-42_4200n"
    assert area_from_bounds(ITHACA, name="ithaca").name == "ithaca"


@pytest.mark.parametrize(
    "bounds", [(5.0, 50.0, 6.0, 51.0), (144.6, 13.2, 145.0, 13.7), (-171.0, -14.5, -170.0, -14.0), (20, -34, 21, -33)]
)
def test_boxes_in_other_parts_of_the_world_are_unchanged(bounds):
    assert area_from_bounds(bounds).bounds == bounds


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((42.42, -76.52, 42.46, -76.46), "looks like latitude before longitude"),
        ((42.46, -76.46, 42.42, -76.52), "looks like latitude before longitude"),
        ((42.42, 42.46, -76.52, -76.46), "looks like latitude before longitude"),
        ((-76.46, 42.46, -76.52, 42.42), "has its numbers in another order"),
        ((-76.52, 42.46, -76.46, 42.42), "has its numbers in another order"),
        ((-76.52, -76.46, 42.42, 42.46), "has its numbers in another order"),
    ],
)
def test_the_error_for_numbers_in_another_order_gives_the_right_order(bounds, message):
    with pytest.raises(InputError) as caught:
        area_from_bounds(bounds)
    given = ",".join(map(str, bounds))
    assert str(caught.value) == f"{given} {message}; a box is west,south,east,north: -76.52,42.42,-76.46,42.46"


def test_corners_in_the_wrong_order_are_corrected_in_the_error():
    with pytest.raises(InputError, match=re.escape("a box is west,south,east,north: 5,50,6,51")):
        area_from_bounds((6, 51, 5, 50))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((-76.5, 42.4, -76.5, 42.5), "is not a box; give west,south,east,north in degrees, for example"),
        ((-200, 42.4, -190, 42.5), "is not a box"),
        ((600_000, 4_500_000, 601_000, 4_501_000), "are not degrees; give west,south,east,north in degrees"),
        ((float("nan"), 42.4, -76.4, 42.5), "are not degrees"),
    ],
)
def test_numbers_that_are_not_a_box_are_a_one_line_error(bounds, message):
    with pytest.raises(InputError, match=message) as caught:
        area_from_bounds(bounds)
    assert "\n" not in str(caught.value)


def test_names_can_be_used_as_folders():
    assert slug("Ithaca, NY") == "ithaca-ny"
    assert slug("Cañon City") == "canon-city"
    assert slug("北京") == "area"
    assert check_name("My-place_2.0") == "My-place_2.0"
    for name in ("..", "a/b", "", ".hidden", "a b"):
        with pytest.raises(InputError, match="cannot be the name of a folder"):
            check_name(name)


# -- files ---------------------------------------------------------------------------------------

FIELD = Polygon([(-76.5, 42.4), (-76.4, 42.4), (-76.45, 42.5)])


@pytest.mark.parametrize(
    ("name", "epsg"),
    [("f.geojson", 4326), ("f.geojson", 26918), ("f.gpkg", 26918), ("f.fgb", 5070), ("f.shp", 3857)],
)
def test_an_outline_is_read_from_any_format_in_any_crs(tmp_path, name, epsg):
    geopandas.GeoSeries([FIELD], crs=4326).to_crs(epsg).to_file(tmp_path / name)
    area = area_from_file(tmp_path / name)
    assert area.name == "f"
    assert area.outline.symmetric_difference(FIELD).area < 1e-6 * FIELD.area
    assert area_from_file(tmp_path / name, name="field").name == "field"


def test_several_polygons_form_one_outline_and_broken_ones_are_repaired(tmp_path):
    bow = Polygon([(-76.3, 42.0), (-76.2, 42.1), (-76.2, 42.0), (-76.3, 42.1)])
    geopandas.GeoSeries([FIELD, bow, Point(-80, 40)], crs=4326).to_file(tmp_path / "two.geojson")
    outline = area_from_file(tmp_path / "two.geojson").outline
    assert outline.is_valid
    assert outline.area == pytest.approx(FIELD.area + 0.005)


def write_json(path, shape):
    feature = {"type": "Feature", "properties": {}, "geometry": mapping(shape)}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_errors_for_unusable_outlines_name_the_file(tmp_path):
    lines = write_json(tmp_path / "line.geojson", LineString(FIELD.exterior))
    with pytest.raises(InputError, match=r"line\.geojson has no polygon"):
        area_from_file(lines)
    swapped = write_json(tmp_path / "swapped.geojson", shapely.transform(FIELD, lambda xy: xy[:, ::-1]))
    message = r"swapped\.geojson: 42\.4,.* looks like latitude before longitude; .*: -76\.5,42\.4,-76\.4,42\.5$"
    with pytest.raises(InputError, match=message):
        area_from_file(swapped)
    metres = write_json(tmp_path / "metres.geojson", box(600_000, 4_500_000, 601_000, 4_501_000))
    with pytest.raises(InputError, match=r"metres\.geojson: .* are not degrees"):
        area_from_file(metres)
    geopandas.GeoSeries([box(0, 0, 9, 9)], crs=26918).to_file(tmp_path / "none.shp")
    (tmp_path / "none.prj").unlink()
    with pytest.raises(InputError, match=r"none\.shp has no CRS; set it"):
        area_from_file(tmp_path / "none.shp")
    with pytest.raises(MissingInputError, match="no such file"):
        area_from_file(tmp_path / "absent.gpkg")
    (tmp_path / "text.geojson").write_text("a place")
    with pytest.raises(InputError, match=r"text\.geojson cannot be read as vector data"):
        area_from_file(tmp_path / "text.geojson")


# -- places --------------------------------------------------------------------------------------

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setattr("osmnx._nominatim.time", SimpleNamespace(sleep=lambda _: None))  # it waits a second per request
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


def found(shape, *, kind="relation", number=217092):
    """A search result of Nominatim with format=json and polygon_geojson=1."""
    left, bottom, right, top = shape.bounds
    return {
        "place_id": 336951837,
        "licence": "Data © OpenStreetMap contributors, ODbL 1.0. http://osm.org/copyright",
        "osm_type": kind,
        "osm_id": number,
        "lat": f"{shape.centroid.y:.7f}",
        "lon": f"{shape.centroid.x:.7f}",
        "class": "boundary",
        "type": "administrative",
        "place_rank": 16,
        "importance": 0.5723,
        "addresstype": "city",
        "name": "Ithaca",
        "display_name": "Ithaca, Ithaca Town, Tompkins County, New York, United States",
        "boundingbox": [f"{value:.7f}" for value in (bottom, top, left, right)],
        "geojson": mapping(shape),
    }


@pytest.fixture
def nominatim(faulty_server):
    """A server that responds with its ``results``."""

    def search(_request):
        return 200, {"Content-Type": "application/json"}, json.dumps(server.results).encode()

    server = faulty_server(routes={"/search": search})
    server.results = [found(FIELD)]
    return server


def test_a_place_has_its_outline_and_is_requested_once(nominatim, network):
    resolver, agent = socket.getaddrinfo, osmnx.settings.http_user_agent
    nominatim.results = [found(Point(-76.45, 42.45), kind="node", number=158857828), found(FIELD)]
    first = area_from_place("Ithaca, NY", network, url=nominatim.url)
    assert (first.name, first.bounds) == ("ithaca-ny", FIELD.bounds)
    assert first.outline.equals(FIELD)
    (request,) = nominatim.requests
    assert request.query["q"] == "Ithaca, NY"
    assert request.query["polygon_geojson"] == "1"
    assert request.headers["User-Agent"] == USER_AGENT
    assert (socket.getaddrinfo, osmnx.settings.http_user_agent) == (resolver, agent)
    again = area_from_place("Ithaca, NY", network, url=f"{nominatim.url}/", name="town")
    assert (again.name, again.outline) == ("town", first.outline)
    assert len(nominatim.requests) == 1


def test_a_broken_outline_is_repaired(nominatim, network):
    nominatim.results = [found(Polygon([(-76.3, 42.0), (-76.2, 42.1), (-76.2, 42.0), (-76.3, 42.1)]))]
    outline = area_from_place("Ithaca", network, url=nominatim.url).outline
    assert outline.is_valid
    assert outline.area == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "'Ithaca' was not found at .*; check the spelling, or give --bbox or --aoi"),
        ([found(Point(-76.45, 42.45), kind="node")], "'Ithaca' has no outline at .*, only a point; give --bbox"),
    ],
)
def test_an_unknown_place_or_one_without_an_outline_is_an_input_error(nominatim, network, results, message):
    nominatim.results = results
    for _ in range(2):  # such a response is not cached
        with pytest.raises(InputError, match=message):
            area_from_place("Ithaca", network, url=nominatim.url)
    assert len(nominatim.requests) == 2


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"error": {"code": 400, "message": "Bad query"}}, "not a Nominatim response .*Bad query.*; give the place by"),
        ([{"lat": "42"}], "unreadable places .*; give the place by --bbox or --aoi"),
    ],
)
def test_an_unexpected_response_is_a_source_error(nominatim, network, results, message):
    nominatim.results = results
    with pytest.raises(SourceError, match=message):
        area_from_place("Ithaca", network, url=nominatim.url)


def test_a_busy_geocoder_is_tried_again_and_a_failing_one_is_an_error(nominatim, network, tmp_path):
    nominatim.fail("503")
    assert area_from_place("Ithaca", network, url=nominatim.url).bounds == FIELD.bounds
    assert [request.fault for request in nominatim.requests] == ["503", ""]
    nominatim.fail("429", times=None)
    with pytest.raises(SourceBusyError, match=r"Nominatim .*answered 429.*tried 2 times.*--bbox or --aoi"):
        area_from_place("Elmira", network, url=nominatim.url)
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    assert area_from_place("Ithaca", offline, url=nominatim.url).bounds == FIELD.bounds
    with pytest.raises(OfflineError, match="'Elmira' is not in the cache"):
        area_from_place("Elmira", offline, url=nominatim.url)
