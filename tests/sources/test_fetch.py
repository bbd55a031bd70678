"""End to end: a synthetic place is served by real servers, fetched, run and scored."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window, from_bounds

from landprior.errors import GridMismatchError, OfflineError, SourceError, SourceWarning
from landprior.landcover.workspace.acquisition import fetch
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.landcover.workspace.layout import plan_fetch
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.run import Run
from landprior.sources.areas import area_from_bounds
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.naip.search import list_images

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)
LAYERS = ("naip", "nlcd", "roads", "waterways", "waterbodies", "buildings")


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


@pytest.fixture
def inside(scene_files):
    """The scene's box in degrees, without 100 m at the edges, so that the margin stays within the image."""
    left, bottom, right, top = scene_files.scene.grid.bounds
    box = (left + 100, bottom + 100, right - 100, top - 100)
    return tuple(transform_bounds(scene_files.scene.grid.crs, "EPSG:4326", *box))


@pytest.fixture
def served(scene_files, file_server, stac_server, wcs_server):
    """Settings whose sources are servers on loopback, except for OpenStreetMap."""
    url = file_server(scene_files.folder)
    (scene_files.folder / "dataset-links.csv").write_text(scene_files.links_csv(url), encoding="utf-8")
    return FetchSettings(
        year=2010,
        stac_url=stac_server(scene_files.naip_items(url)),
        nlcd_wcs=wcs_server(scene_files.nlcd, coverage="nlcd"),
        nlcd_coverage="nlcd",
        osm=str(scene_files.pbf),
        buildings_index=f"{url}/dataset-links.csv",
        labels=(scene_files.labels,),
    )


def test_layers_have_one_grid_and_the_served_values(scene_files, served, inside, network, tmp_path, enviroatlas):
    settings = served.model_copy(update={"scheme": enviroatlas})
    workspace = Workspace(tmp_path / "w")
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    (tile,) = fetch(plan, workspace, settings, network)
    scene = scene_files.scene
    grids, values = {}, {}
    for name in (*LAYERS, "labels"):
        with rasterio.open(tile.file(name)) as src:
            grids[name] = (src.crs, src.transform, src.shape)
            values[name] = src.read()
    assert len(set(grids.values())) == 1
    (grid,) = (plan.tiles[0].grid,)
    assert (grid.transform.a, grid.transform.c % 1, grid.transform.f % 1) == (1, 0, 0)
    col = round(grid.transform.c - scene.grid.transform.c)
    row = round(scene.grid.transform.f - grid.transform.f)
    here = (slice(row, row + grid.height), slice(col, col + grid.width))
    assert np.array_equal(values["naip"], scene.image[:, *here])
    assert np.array_equal(values["labels"][0], scene.truth[here])
    for name in ("buildings", "waterbodies"):
        agreement = (values[name][0] > 0) == (scene.layers[name][here] > 0)
        assert agreement.mean() > 0.999, name
    item = json.loads((tile.path / "item.json").read_text())
    assert set(item["assets"]) == {*LAYERS, "labels"}


def test_priors_of_neighbouring_tiles_have_no_seam(scene_files, served, network, tmp_path, enviroatlas):
    left, bottom, right, top = scene_files.scene.grid.bounds
    place = tuple(
        transform_bounds(scene_files.scene.grid.crs, "EPSG:4326", left + 90, bottom + 90, right - 90, top - 90)
    )
    whole = prior_of(place, served, network, tmp_path / "whole", enviroatlas)
    settings = served.model_copy(update={"naip": scene_files.neighbours[0].parent})
    parts = prior_of(place, settings, network, tmp_path / "parts", enviroatlas)
    assert (len(whole), len(parts)) == (1, 2)
    (complete,) = whole.values()
    overlap = None
    for core, prior in parts.items():
        # exact up to the edge of the core, because the layers extend further
        assert np.abs(prior - window_of(complete, whole, core)).max() < 1e-3
        overlap = core if overlap is None else intersect(overlap, core)
    assert overlap[2] - overlap[0] > 100
    first, second = (crop(prior, core, overlap) for core, prior in parts.items())
    assert np.abs(first - second).max() < 1e-3


def prior_of(place, settings, network, folder, scheme):
    """Fetch a place, and return the priors in the cores of its tiles by their bounds."""
    from landprior.landcover.workspace.settings import PipelineSettings
    from landprior.landcover.workspace.steps import ensure_prior

    workspace = Workspace(folder)
    settings = settings.model_copy(update={"labels": ()})
    plan = plan_fetch(area_from_bounds(place, name="village"), workspace, settings, network)
    chain = PipelineSettings.for_city("village", scheme=scheme)
    found = {}
    for tile, folder_ in zip(plan.tiles, fetch(plan, workspace, settings, network), strict=True):
        with rasterio.open(ensure_prior(folder_, chain)) as src:
            values = src.read()
        found[tile.core] = crop(values, tile.grid.bounds, tile.core)
    return found


def window_of(values, tiles, core):
    (own,) = tiles
    shared = intersect(own, core)
    assert shared == tuple(core), "the whole place holds its parts"
    return crop(values, own, core)


def intersect(a, b):
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def crop(values, bounds, inner):
    """Crop an array with pixels of 1 m from its bounds to inner ones."""
    top, left = round(bounds[3] - inner[3]), round(inner[0] - bounds[0])
    height, width = round(inner[3] - inner[1]), round(inner[2] - inner[0])
    return values[:, top : top + height, left : left + width]


def test_existing_layers_are_not_fetched_again(served, inside, file_server, network, tmp_path, enviroatlas):
    settings = served.model_copy(update={"scheme": enviroatlas})
    workspace = Workspace(tmp_path / "w")
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    (tile,) = fetch(plan, workspace, settings, network)
    url = plan.tiles[0].choice.image.origin.rpartition("/")[0]
    before = {path.name: path.stat().st_mtime_ns for path in tile.path.glob("*.tif")}
    asked = len(file_server.requests(url))
    offline = Network(network.cache, offline=True, policy=QUICK)
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, offline)
    assert fetch(plan, workspace, settings, offline) == [tile]
    assert {path.name: path.stat().st_mtime_ns for path in tile.path.glob("*.tif")} == before
    tile.file("roads").unlink()  # a lost file, or another workspace, is filled from the cache without a request
    fetch(plan, workspace, settings, offline)
    assert tile.file("roads").is_file()
    assert len(file_server.requests(url)) == asked


def test_a_changed_option_is_noticed(served, inside, network, tmp_path):
    settings = served.model_copy(update={"labels": ()})
    workspace = Workspace(tmp_path / "w")
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    (tile,) = fetch(plan, workspace, settings, network)
    with rasterio.open(tile.file("roads")) as src:
        narrow = src.read(1).sum()
    fetch(plan, workspace, settings.model_copy(update={"road_width": "tags"}), network)
    with rasterio.open(tile.file("roads")) as src:
        assert src.read(1).sum() > 1.5 * narrow  # residential roads are 7 m wide


def test_offline_the_error_lists_all_that_is_missing(served, inside, network, tmp_path, enviroatlas):
    workspace = Workspace(tmp_path / "w")
    settings = served.model_copy(update={"scheme": enviroatlas})
    place = area_from_bounds(inside, name="village")
    plan = plan_fetch(place, workspace, settings, network)  # caches the catalogue's response
    offline = Network(network.cache, offline=True)
    with pytest.raises(OfflineError) as caught:
        fetch(plan_fetch(place, workspace, settings, offline), workspace, settings, offline)
    text = str(caught.value)
    assert [name for name in ("NAIP", "NLCD", "Buildings", "OpenStreetMap") if name in text] == [
        "NAIP",
        "NLCD",
        "Buildings",
    ]
    assert "--offline" in text
    assert plan.tiles[0].folder.present(("roads", "labels"))  # local sources need no network
    with pytest.raises(OfflineError, match=r"NAIP: .* is not in the cache"):
        plan_fetch(place, workspace, settings, Network(Cache(tmp_path / "empty"), offline=True))


def test_files_added_by_hand_are_kept(served, inside, network, tmp_path):
    workspace = Workspace(tmp_path / "w")
    settings = served.model_copy(update={"labels": ()})
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    tile, grid = plan.tiles[0].folder, plan.tiles[0].grid
    tile.path.mkdir(parents=True)
    own = np.full(grid.shape, 41, dtype=np.uint8)
    write_raster(tile.file("nlcd"), own, grid)
    fetch(plan, workspace, settings, network)
    with rasterio.open(tile.file("nlcd")) as src:
        assert np.array_equal(src.read(1), own)
    fetch(plan, workspace, settings, network, run=Run(overwrite=True))
    with rasterio.open(tile.file("nlcd")) as src:
        assert len(np.unique(src.read(1))) > 3
    write_raster(tile.file("buildings"), own[:50, :50], grid.window(Window(0, 0, 50, 50)), overwrite=True)
    steps = json.loads((tile.path / "item.json").read_text())
    del steps["properties"]["landprior:steps"]["buildings"]
    (tile.path / "item.json").write_text(json.dumps(steps))
    with pytest.raises(GridMismatchError, match=r"buildings.tif was not fetched and is on another grid"):
        fetch(plan, workspace, settings, network)


def test_a_failing_tile_does_not_stop_the_others(served, scene_files, network, tmp_path, faulty_server):
    left, bottom, right, top = scene_files.scene.grid.bounds
    place = tuple(
        transform_bounds(scene_files.scene.grid.crs, "EPSG:4326", left + 90, bottom + 90, right - 90, top - 90)
    )
    server = faulty_server(scene_files.folder)
    west, east = scene_files.neighbours
    server.fail("503", path=east.name, times=None)
    catalogue = {"/": root_of(server), "/search": search_of(scene_files.naip_items(server.url, west, east), server)}
    server.routes.update(
        {path: (lambda _, body=body: (200, {}, json.dumps(body).encode())) for path, body in catalogue.items()}
    )
    settings = served.model_copy(update={"stac_url": f"{server.url}/", "labels": (), "buildings": "none", "jobs": 2})
    workspace = Workspace(tmp_path / "w")
    plan = plan_fetch(area_from_bounds(place, name="village"), workspace, settings, network)
    with pytest.raises(
        SourceError, match=r"1 of 2 tiles are incomplete \(va_m.*_se_.*\); the first cause: NAIP: .* 503"
    ) as caught:
        fetch(plan, workspace, settings, network)
    assert "run the same command again" in str(caught.value)
    assert [tile.name for tile in workspace.tiles("village")] == [plan.tiles[1].folder.name]
    server.faults.clear()
    done = fetch(plan, workspace, settings, network)
    assert [tile.name for tile in done] == sorted(tile.folder.name for tile in plan.tiles)
    collection = pystac.Collection.from_file(str(workspace.root / "collection.json"))
    assert len(list(collection.get_items())) == 2


def root_of(server):
    """Return a minimal landing page of a STAC API."""
    conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
    links = [
        {"rel": "search", "href": f"{server.url}/search", "type": "application/geo+json", "method": m}
        for m in ("GET", "POST")
    ]
    links += [{"rel": rel, "href": f"{server.url}/", "type": "application/json"} for rel in ("root", "self")]
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "x",
        "description": "x",
        "conformsTo": conforms,
        "links": links,
    }


def search_of(items, server):
    links = [{"rel": "root", "href": f"{server.url}/", "type": "application/json"}]
    return {"type": "FeatureCollection", "features": items, "links": links}


def test_item_and_collection_are_valid_stac(served, inside, network, tmp_path, enviroatlas):
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    workspace = Workspace(tmp_path / "w")
    settings = served.model_copy(update={"scheme": enviroatlas})
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    (tile,) = fetch(plan, workspace, settings, network)
    paths = {
        pystac.STACObjectType.ITEM: tile.path / "item.json",
        pystac.STACObjectType.COLLECTION: workspace.root / "collection.json",
    }
    for kind, path in paths.items():
        described = json.loads(path.read_text())
        JsonSchemaSTACValidator().validate_core(described, kind, described["stac_version"], str(path))
    item = pystac.Item.from_file(str(paths[pystac.STACObjectType.ITEM]))
    grid = plan.tiles[0].grid
    assert item.ext.proj.epsg == 26917
    assert (item.ext.proj.shape, item.ext.proj.transform) == (list(grid.shape), list(grid.transform)[:6])
    assert item.datetime.date().isoformat() == "2010-06-20"
    assert item.properties["landprior:core_bounds"] == list(plan.tiles[0].core)
    assert {c["value"]: c["name"] for c in item.assets["labels"].to_dict()["classification:classes"]}[40] == "trees"
    bands = item.assets["naip"].to_dict()["bands"]
    assert [b["name"] for b in bands] == ["red", "green", "blue", "near infrared"]
    assert {b["data_type"] for b in bands} == {"uint8"}
    for asset in item.assets.values():  # the checksum is that of the file
        content = (tile.path / asset.href).read_bytes()
        assert asset.extra_fields["file:checksum"] == f"1220{hashlib.sha256(content).hexdigest()}"
        assert asset.extra_fields["file:size"] == len(content)
    collection = pystac.Collection.from_file(str(paths[pystac.STACObjectType.COLLECTION]))
    assert [found.id for found in collection.get_items()] == [item.id]
    assert collection.extent.spatial.bboxes[0] == pytest.approx(item.bbox)


@pytest.mark.realdata
def test_real_images_across_a_zone_border(real_data, file_server, stac_server, network, tmp_path):
    """Real NAIP from real servers: neighbours in two UTM zones, each a tile in its own zone, with NLCD over both."""
    folder = real_data / "naip-samples"
    url = file_server(folder)
    local = {image.id: image for image in list_images(folder) if image.year is not None}
    items = [item_of(image, f"{url}/{image.source.name}") for image in local.values()]
    pair = [local["m_3607717_sw_18_1_20160620_subset"], local["m_3607824_se_17_1_20160620_subset"]]
    both = shapely.union_all([image.footprint for image in pair])
    settings = FetchSettings(
        stac_url=stac_server(items), nlcd=str(write_cells(tmp_path / "nlcd.tif", both)), osm="none", buildings="none"
    )
    workspace = Workspace(tmp_path / "w")
    with pytest.warns(
        SourceWarning, match=r"NAIP images cover 9\d\.\d% of the place"
    ):  # the tiles are rotated against the box
        plan = plan_fetch(area_from_bounds(both.bounds, name="border"), workspace, settings, network)
    tiles = fetch(plan, workspace, settings, network)
    assert [tile.name for tile in tiles] == sorted(image.id for image in pair)
    assert {tile.grid.crs.to_epsg() for tile in plan.tiles} == {26917, 26918}
    for tile in tiles:
        with rasterio.open(tile.file("naip")) as dst, rasterio.open(local[tile.name].source) as src:
            assert dst.crs == src.crs
            window = from_bounds(*src.bounds, transform=dst.transform).round_offsets().round_lengths()
            assert np.array_equal(dst.read(window=window), src.read())
        with rasterio.open(tile.file("nlcd")) as dst:
            codes = dst.read(1)
            # every pixel has the code of the cell that contains its centre
            rows, cols = np.mgrid[: dst.height : 7, : dst.width : 7]
            x, y = transform(dst.crs, "EPSG:5070", *(dst.transform @ (cols.ravel() + 0.5, rows.ravel() + 0.5)))
        with rasterio.open(settings.nlcd) as src:
            expected = src.read(1)[tuple(np.floor(~src.transform @ (np.array(x), np.array(y))).astype(int)[::-1])]
        assert (codes[rows, cols].ravel() == expected).mean() > 0.995
    ranges = [request for request in file_server.requests(url) if request.path.endswith(".tif")]
    assert {request.path.rpartition("/")[2] for request in ranges} == {image.source.name for image in pair}


def item_of(image, href):
    """Describe an image like a STAC API."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": image.id,
        "collection": "naip",
        "geometry": shapely.geometry.mapping(image.footprint),
        "bbox": list(image.footprint.bounds),
        "properties": {"datetime": f"{image.date}T16:00:00Z", "gsd": image.resolution, "naip:year": str(image.year)},
        "links": [],
        "assets": {"image": {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }


def write_cells(path, outline):
    """Write random NLCD codes on NLCD's own grid around a place."""
    left, bottom, right, top = transform_bounds("EPSG:4326", "EPSG:5070", *outline.bounds)
    left, top = (left // 30 - 10) * 30 + 15, (top // 30 + 10) * 30 + 15
    width, height = int((right - left) // 30) + 12, int((top - bottom) // 30) + 12
    codes = np.random.default_rng(3).choice([11, 21, 22, 41, 81, 90], (height, width)).astype(np.uint8)
    grid = Grid(width=width, height=height, transform=Affine(30, 0, left, 0, -30, top), crs=CRS.from_epsg(5070))
    return write_raster(path, codes, grid, nodata=0)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDPRIOR_CACHE", str(tmp_path / "cache"))

    def run(*args):
        from click.testing import CliRunner

        from landprior.cli import main

        return CliRunner().invoke(main, ["-q", *map(str, args)], catch_exceptions=False)

    return run


def test_dry_run_shows_the_plan(invoke, served, inside, tmp_path):
    box = ",".join(map(str, inside))
    args = ["fetch", "--bbox", box, "--name", "village", "--data", tmp_path / "w", *options_of(served), "--dry-run"]
    done = invoke(*args, "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    (tile,) = plan["tiles"]
    assert (tile["naip_year"], tile["nlcd_year"], tile["date"], tile["crs"]) == (2010, 2010, "2010-06-20", "EPSG:26917")
    assert plan["covered"] == pytest.approx(1.0)
    assert set(plan["sources"]) == {"naip", "nlcd", "osm", "buildings", "labels"}
    assert not (tmp_path / "w").exists()
    text = invoke(*args).stdout
    assert "1 tile(s)" in text
    assert "2010-06-20" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give the place by one of --city, --bbox, --place, --aoi"),
        (["--city", "durham", "--bbox", "-79,35,-78,36"], "give the place by one of"),
        (["--city", "durham", "--name", "x"], "--name is for"),
        (["--bbox", "1,2,3"], "is not four numbers west,south,east,north"),
        (["--bbox", "40.43,-80.02,40.46,-79.98"], "-80.02,40.43,-79.98,40.46"),
        (["--bbox", "-80.02,40.43,-79.98,40.46", "--name", "../x"], "cannot be the name of a folder"),
        (["--city", "durhem"], "did you mean durham?"),
        (["--aoi", "nowhere.geojson"], "no such file: nowhere.geojson"),
    ],
)
def test_an_invalid_place_gives_one_line(invoke, args, message, tmp_path):
    done = invoke("fetch", *args, "--data", tmp_path / "w")
    assert done.exit_code in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_custom_city_file(invoke, served, inside, tmp_path):
    preset = tmp_path / "village.yaml"
    preset.write_text(
        f"name: village\ntitle: A village\nbounds: {list(inside)}\nnaip_year: 2010\nnlcd_year: 2011\nepsg: 26917\n"
        "scheme: enviroatlas-5\n"
    )
    done = invoke("fetch", "--city", preset, "--data", tmp_path / "w", *options_of(served), "--dry-run", "--json")
    assert [tile["nlcd_year"] for tile in json.loads(done.stdout)["tiles"]] == [2011]


def options_of(settings):
    """Return the same sources as options of the command line."""
    given = settings.model_dump(exclude_defaults=True, exclude={"labels", "year", "scheme"})
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [*options, "--year", "2010", "--reference", str(settings.labels[0])]


@pytest.mark.slow
def test_run_scores_like_the_demo(scene_files, served, invoke, tmp_path):
    """With three starts each, because single trainings vary by a few points, whatever the layers."""
    from landprior.landcover.synthetic.demo import FILTERS, write_scene

    write_scene(tmp_path / "demo")
    left, bottom, right, top = scene_files.scene.grid.bounds
    place = transform_bounds(scene_files.scene.grid.crs, "EPSG:4326", left + 1, bottom + 1, right - 1, top - 1)
    where = {
        "demo": ["--city", "temperate", "--data", tmp_path / "demo"],
        "fetched": ["--bbox", ",".join(map(str, place)), "--data", tmp_path / "w", *options_of(served)],
    }
    accuracy = {}
    for name, options in where.items():
        recipe = ["--scheme", "enviroatlas-5", "--filters", FILTERS, "--starts", 3]
        done = invoke("run", *options, *recipe, "--json")
        assert done.exit_code == 0, done.output
        accuracy[name] = json.loads(done.stdout)["scores"]["accuracy"]
    print(accuracy)
    assert accuracy["fetched"] > accuracy["demo"] - 0.01
