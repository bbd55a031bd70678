"""Fetching from local files: layers made stale by changed options or files, and files of another place."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
import zipfile

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from pydantic import ValidationError
from shapely.geometry import LineString, Polygon, box

from landprior.cli import main
from landprior.errors import GridMismatchError, InputError, RasterReadError, SourceWarning
from landprior.landcover.workspace.acquisition import fetch
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.landcover.workspace.item import TileFolder
from landprior.landcover.workspace.layout import plan_fetch
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import ensure_prior
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme
from landprior.run import Run
from landprior.sources import extents
from landprior.sources.burning import burn
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network
from landprior.sources.local_files import identify
from landprior.sources.outlines import area_from_file

LEFT, TOP, CRS = 570_000, 4_120_256, "EPSG:26917"
CORE = box(LEFT + 80, TOP - 176, LEFT + 180, TOP - 76)
NAME = "m_3708035_ne_17_1_20140915"


def frame(shapes, columns=None, crs=CRS):
    return gpd.GeoDataFrame(columns or {"n": list(range(len(shapes)))}, geometry=shapes, crs=crs)


def road(moved=0.0):
    line = LineString([(LEFT + 80 + moved, TOP - 136), (LEFT + 180 + moved, TOP - 131)])
    return frame([line], {"osm_id": ["1"], "highway": ["residential"], "other_tags": [None]})


def houses(moved=0.0):
    x = LEFT + moved
    return frame([box(x + 100, TOP - 156, x + 112, TOP - 146), box(x + 140, TOP - 126, x + 150, TOP - 106)])


class Place:
    """Files of a small place, and a workspace fetched from them."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "ws"

    def write(self):
        folder = self.folder
        grid = Grid(
            width=256, height=256, transform=rasterio.Affine(1, 0, LEFT, 0, -1, TOP), crs=rasterio.CRS.from_epsg(26917)
        )
        values = np.random.default_rng(0).integers(1, 255, (4, 256, 256), dtype=np.uint8)
        (folder / "naip").mkdir()
        write_raster(folder / "naip" / f"{NAME}.tif", values, grid)
        self.codes("nlcd.tif", np.full((40, 40), 41, np.uint8))
        frame([CORE]).to_crs(4326).to_file(folder / "aoi.geojson")
        self.save(road(), "osm.gpkg", layer="lines")
        self.save(houses().to_crs(4326), "houses.geojson")
        return self

    def codes(self, name, values, crs=CRS, left=LEFT - 400, top=TOP + 400, **options):
        profile = {"crs": crs, "transform": rasterio.Affine(30, 0, left, 0, -30, top), "dtype": "uint8"} | options
        with rasterio.open(self.folder / name, "w", driver="GTiff", width=40, height=40, count=1, **profile) as dst:
            dst.write(values, 1)

    def save(self, features, name, **options):
        path = self.folder / name
        features.to_file(path, **options)
        return path

    def settings(self, **changes):
        f = self.folder
        base = {"naip": f / "naip", "nlcd": str(f / "nlcd.tif"), "osm": str(f / "osm.gpkg")}
        base["buildings"] = str(f / "houses.geojson")
        return FetchSettings(**(base | {k: str(v) if isinstance(v, os.PathLike) else v for k, v in changes.items()}))

    def fetch(self, *, overwrite=False, **changes):
        settings, workspace = self.settings(**changes), Workspace(self.root)
        network = Network(Cache(self.folder / "cache"), offline=True)
        plan = plan_fetch(area_from_file(self.folder / "aoi.geojson", name="town"), workspace, settings, network)
        (self.tile,) = fetch(plan, workspace, settings, network, run=Run(overwrite=overwrite))
        return self.pixels(self.tile.path.name)

    def pixels(self, tile=NAME):
        found = {}
        for path in sorted((self.root / "town" / tile).glob("*.tif")):
            with rasterio.open(path) as src:
                found[path.stem] = int((src.read(1) != 0).sum())
        return found


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Files of the place, written once, and a workspace with all its layers."""
    place = Place(tmp_path_factory.mktemp("place")).write()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SourceWarning)
        assert place.fetch() == ALL
    return place


@pytest.fixture
def bare(files, tmp_path):
    """A place with an empty workspace."""
    shutil.copytree(files.folder, tmp_path / "place", ignore=shutil.ignore_patterns("ws", "cache"))
    return Place(tmp_path / "place")


@pytest.fixture
def place(files, bare):
    """A place whose image and NLCD were added by hand, so that fetch has less to do."""
    return by_hand(files, bare, "naip", "nlcd")


def by_hand(files, place, *layers):
    folder = place.root / "town" / NAME
    folder.mkdir(parents=True)
    for layer in layers:
        shutil.copy(files.root / "town" / NAME / f"{layer}.tif", folder)
    return place


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "landprior")
    return caplog


ALL = {"buildings": 320, "naip": 51984, "nlcd": 51984, "roads": 319, "waterbodies": 0, "waterways": 0}


# -- stale layers --------------------------------------------------------------------------------


def test_another_layer_of_the_same_file_is_noticed_and_logged(place, log):
    path = place.save(houses(), "project.gpkg", layer="old")
    place.save(houses().iloc[:1], path.name, layer="new")
    labels = frame([CORE], {"class": ["water"]})
    place.save(labels, path.name, layer="labels")
    place.save(labels.assign(**{"class": "impervious"}), path.name, layer="corrected")
    options = {"scheme": load_scheme("chesapeake-4"), "label_field": "class"}
    first = place.fetch(buildings=f"{path}|layername=old", labels=(f"{path}|layername=labels",), **options)
    with rasterio.open(place.tile.file("labels")) as src:
        assert np.unique(src.read(1)).tolist() in ([1], [1, 255])
    log.clear()
    second = place.fetch(buildings=f"{path}|layername=new", labels=(f"{path}|layername=corrected",), **options)
    assert (first["buildings"], second["buildings"]) == (320, 120)
    assert log.text.count("is stale; fetching it again (changed: the source") == 2
    with rasterio.open(place.tile.file("labels")) as src:
        assert np.unique(src.read(1)).tolist() in ([4], [4, 255])
    with pytest.raises(InputError, match="no layer 'gone'; it has 'old', 'new'"):
        place.fetch(buildings=f"{path}|layername=gone")


def test_none_after_a_fetch_with_roads_removes_them_and_logs_it(place, log):
    assert place.fetch() == ALL
    for name in ("roads", "buildings"):
        place.tile.file(name).with_name(f"{name}.tif.aux.xml").write_text("<PAMDataset/>")
    log.clear()
    assert place.fetch(osm="none") == {"buildings": 320, "naip": 51984, "nlcd": 51984}
    for name in ("roads", "waterways", "waterbodies"):
        assert f"--osm none: {place.tile.file(name)}, from an earlier fetch, is removed" in log.text
    assert place.fetch(osm="none", buildings="none") == {"naip": 51984, "nlcd": 51984}
    assert {p.name for p in place.tile.path.iterdir()} <= {"naip.tif", "nlcd.tif", "nlcd.tif.aux.xml", "item.json"}
    item = json.loads((place.tile.path / "item.json").read_text())
    assert set(item["assets"]) == {"naip", "nlcd"}
    assert place.fetch() == ALL


def test_a_prior_is_remade_without_removed_layers(place, enviroatlas):
    chain = PipelineSettings.for_city("town", scheme=enviroatlas)

    def prior():
        with rasterio.open(ensure_prior(place.tile, chain)) as src:
            return src.read()

    place.fetch()
    with_roads = prior()
    place.fetch(osm="none", buildings="none")
    without = prior()
    assert np.abs(with_roads - without).max() > 0.2
    assert without.std(axis=(1, 2)).max() < 1e-6  # only one code in the whole tile


@pytest.mark.parametrize("layer", ["osm", "buildings"])
def test_another_or_edited_file_replaces_the_layer_and_logs_it(place, log, layer):
    without = {"buildings" if layer == "osm" else "osm": "none"}
    place.fetch(**without)
    name, moved = ("roads", road(20)) if layer == "osm" else ("buildings", houses(20).to_crs(4326))
    with rasterio.open(place.tile.file(name)) as src:
        before = src.read(1)
    path = place.folder / ("osm.gpkg" if layer == "osm" else "houses.geojson")
    old = path.stat()
    path.unlink()
    place.save(moved, path.name, **({"layer": "lines"} if layer == "osm" else {}))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns - 10**15))  # with an older date
    log.clear()
    place.fetch(**without)
    with rasterio.open(place.tile.file(name)) as src:
        after = src.read(1)
    assert after.any()
    assert not np.array_equal(before, after)
    assert name in log.text
    assert "fetching it again (changed: the content of the file)" in log.text
    log.clear()
    shutil.copy(path, place.folder / f"other{path.suffix}")
    place.fetch(**without, **{layer: place.folder / f"other{path.suffix}"})
    assert "fetching it again (changed: the source)" in log.text


def test_other_widths_are_noticed_and_logged(place, log):
    before = place.fetch(buildings="none")["roads"]
    assert place.fetch(buildings="none", road_width="tags")["roads"] > 1.5 * before
    assert "roads, waterways, waterbodies is stale; fetching it again (changed: --road-width)" in log.text


def test_a_file_of_the_same_size_and_an_older_or_the_same_date_is_noticed(files, bare):
    place = by_hand(files, bare, "naip")
    path = place.folder / "nlcd.tif"
    for when in (None, 978_307_200, 978_307_200):
        code = {None: 41}.get(when, 81 if when and codes_of(place) == {41} else 42)
        place.codes("nlcd.tif", np.full((40, 40), code, np.uint8))
        size = path.stat().st_size
        if when:
            os.utime(path, (when, when))
        place.fetch(osm="none", buildings="none")
        assert codes_of(place) == {code}
        assert path.stat().st_size == size


def codes_of(place):
    with rasterio.open(place.root / "town" / NAME / "nlcd.tif") as src:
        return set(np.unique(src.read()).tolist())


def test_sidecar_files_count_as_content(tmp_path):
    path = tmp_path / "labels.shp"
    shapes = [box(0, 0, 1, 1), box(2, 2, 3, 3)]
    frame(shapes, {"class": ["tree", "road"]}).to_file(path)
    first = identify(path)
    assert identify(path) == first
    geometry = path.read_bytes()
    frame(shapes, {"class": ["road", "tree"]}).to_file(path)  # changes only the .dbf
    assert path.read_bytes() == geometry
    second = identify(path)
    assert second != first
    path.with_suffix(".prj").unlink()
    assert identify(path) not in (first, second)
    assert identify(f"{path}|layername=labels") == identify(path)
    assert identify(tmp_path / "missing") is None


def test_rasters_in_a_vrt_and_files_in_a_folder_count_as_content(tmp_path, make_raster):
    make_raster("a.tif", np.full((32, 32), 1, np.uint8))
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    first, folder = identify(vrt), identify(tmp_path)
    make_raster("a.tif", np.full((32, 32), 2, np.uint8), overwrite=True)
    assert identify(vrt) != first
    assert identify(tmp_path) != folder


def test_large_files_are_distinguished_without_reading_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("landprior.sources.local_files._WHOLE", 1000)
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(5_000_000))
    first = identify(path)
    assert identify(path) == first
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(2_500_001)
        stream.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identify(path) != first


def test_a_different_spelling_of_a_path_is_the_same_source(place, monkeypatch, log):
    monkeypatch.chdir(place.folder)
    place.fetch(osm="none", buildings="houses.geojson")
    log.clear()
    place.fetch(osm="none", buildings=place.folder / "houses.geojson")
    assert "stale" not in log.text
    assert place.tile.steps()["buildings"]["origin"] == str(place.folder / "houses.geojson")


def test_settings_in_a_plan_have_absolute_paths(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    local = {"naip": "naip", "nlcd": "nlcd_{year}.tif", "osm": "osm.gpkg|layername=lines", "buildings": "none"}
    found = FetchSettings(**local, labels=("houses.geojson",)).make_absolute()
    assert found.naip == place.folder / "naip"
    assert found.nlcd == str(place.folder / "nlcd_{year}.tif")
    assert found.osm == str(place.folder / "osm.gpkg|layername=lines")
    assert found.buildings == "none"
    assert found.labels == (place.folder / "houses.geojson",)
    remote = FetchSettings(nlcd="https://h.test/nlcd_{year}.tif").make_absolute()
    assert (remote.nlcd, remote.naip, remote.osm, remote.labels) == ("https://h.test/nlcd_{year}.tif", None, None, ())


def test_a_layer_whose_fetch_was_killed_before_recording_it_is_fetched_again(place, log, monkeypatch):
    def killed(_tile, step, *_, **__):
        raise KeyboardInterrupt(step)

    with monkeypatch.context() as patch:
        patch.setattr(TileFolder, "record", killed)
        with pytest.raises(KeyboardInterrupt, match="buildings"):
            place.fetch(osm="none")
    path = place.root / "town" / NAME / "buildings.tif"
    assert path.is_file()
    assert "buildings" not in TileFolder(path=path.parent, city="town").steps()
    moved = place.save(houses(20).to_crs(4326), "moved.geojson")
    log.clear()
    place.fetch(osm="none", buildings=moved)
    assert "buildings.tif was not fetched" not in log.text
    with rasterio.open(path) as src:
        expected = burn(houses(20).geometry, Grid.of(src))
        assert np.array_equal(src.read(1), expected)
    assert "landprior:begun" not in json.loads((path.parent / "item.json").read_text())["properties"]


def test_tiles_of_another_year_at_the_same_place_are_named_also_in_a_dry_run(place, monkeypatch):
    (place.folder / "naip2").mkdir()
    older = place.folder / "naip2" / f"{NAME[:-8]}20110712.tif"
    shutil.copy(place.folder / "naip" / f"{NAME}.tif", older)
    place.fetch(osm="none", buildings="none", overwrite=True)
    shutil.copy(place.folder / "naip" / f"{NAME}.tif", older.parent)
    words = rf"town also has {NAME} \(NAIP 2014\) from an earlier fetch, of the same"
    dry = ("--naip", "naip2", "--year", "2011", "--dry-run", None)
    assert re.search(words, run(place, monkeypatch, *dry).stdout)
    (tile,) = json.loads(run(place, monkeypatch, *dry, "--json", None).stdout)["tiles"]
    assert (tile["tile"], tile["doubles"]) == (older.stem, [f"{NAME} (NAIP 2014)"])
    with pytest.warns(SourceWarning, match=words):
        place.fetch(naip=older.parent, year=2011, osm="none", buildings="none")
    assert place.tile.name == older.stem
    image = place.root / "town" / NAME / "naip.tif"
    assert image.is_file()
    again = run(place, monkeypatch, "--naip", "naip", "--year", "2014", "--dry-run", None)  # and vice versa
    assert re.search(rf"town also has {older.stem} \(NAIP 2011\)", again.stdout)
    image.write_bytes(b"II*")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SourceWarning)
        place.fetch(naip=older.parent, year=2011, osm="none", buildings="none")


# -- layers added by hand ------------------------------------------------------------------------


def test_layers_added_by_hand_are_never_silently_removed_or_replaced(bare, log):
    place = bare
    place.fetch()
    tile, own = place.tile, None
    with rasterio.open(tile.file("roads")) as src:
        grid, own = Grid.of(src), np.ones(src.shape, np.uint8)
    write_raster(tile.file("roads"), own, grid, overwrite=True)  # replaces the fetched layer
    write_raster(tile.file("buildings"), own, grid, overwrite=True)
    log.clear()
    assert place.fetch(osm="none")["roads"] == own.size
    assert f"--osm none: {tile.file('roads')} was not fetched and is kept" in log.text
    assert not tile.file("waterways").exists()
    kept = place.fetch(road_width="tags")
    assert (kept["roads"], kept["waterways"], kept["buildings"]) == (
        own.size,
        0,
        own.size,
    )  # the other layers are fetched
    assert f"{tile.file('buildings')} was not fetched and is kept" in log.text
    assert place.fetch(overwrite=True) == ALL


def test_a_damaged_layer_is_fetched_again_but_not_one_added_by_hand(place, log):
    place.fetch()
    path = place.tile.file("roads")
    path.write_bytes(path.read_bytes()[:100])
    assert place.fetch() == ALL
    assert f"{path} is damaged; fetching it again" in log.text
    other = place.tile.file("labels")
    other.write_text("no raster")
    frame([CORE], {"class": ["trees"]}).to_file(place.folder / "own.gpkg")
    with pytest.raises(InputError, match=r"labels.tif was not fetched, and .*; move it away, or give --overwrite"):
        place.fetch(labels=(place.folder / "own.gpkg",), scheme=chesapeake_scheme())


def chesapeake_scheme():
    from landprior.raster.scheme import load_scheme

    return load_scheme("chesapeake-4")


# -- files of another place ----------------------------------------------------------------------

FAR = 40_000.0
HERE = r"-80\.2\d+,37\.22\d+,-80\.20\d+,37\.22\d+"


@pytest.mark.parametrize("driver", ["gpkg", "geojson", "shp", "fgb", "zip", "parquet"])
def test_footprints_of_another_place_give_one_warning_with_both_places(place, driver):
    if driver == "parquet":
        pytest.importorskip("pyarrow")
        path = place.folder / "far.parquet"
        houses(FAR).to_crs(4326).to_parquet(path)
    elif driver == "zip":
        path = place.folder / "far.zip"
        place.save(houses(FAR), "far.shp")
        with zipfile.ZipFile(path, "w") as archive:
            for end in ("shp", "shx", "dbf", "prj"):
                archive.write(place.folder / f"far.{end}", f"far.{end}")
    else:
        path = place.save(houses(FAR).to_crs(4326 if driver == "geojson" else CRS), f"far.{driver}")
    with pytest.warns(SourceWarning) as caught:
        assert place.fetch(osm="none", buildings=path)["buildings"] == 0
    texts = [str(w.message) for w in caught if "far." in str(w.message)]
    assert len(texts) == 1
    assert "has nothing within 2 km of tile m_3708035_ne_17_1_20140915" in texts[0]
    numbers = [float(n) for n in texts[0].split("features lie in ")[1].split(" ")[0].rstrip(",").split(",")]
    assert numbers == pytest.approx(houses(FAR).to_crs(4326).total_bounds, abs=2e-3)
    assert texts[0].split("the tile in ")[1].startswith("-80.21")


def test_openstreetmap_of_another_place_is_refused_before_anything_is_fetched(bare):
    path = bare.save(road(FAR), "far.gpkg", layer="lines")
    with pytest.raises(
        GridMismatchError, match=r"far.gpkg has nothing within 2 km of tile .*; give a file of this place"
    ):
        bare.fetch(osm=path)
    assert bare.pixels() == {}


def extract(path, west, south, east, north, *, bounds=True):
    """Write a small .osm file with a road through the middle of its bounds."""
    middle = (south + north) / 2
    said = f'<bounds minlat="{south}" minlon="{west}" maxlat="{north}" maxlon="{east}"/>' if bounds else ""
    path.write_text(
        f'<?xml version="1.0"?><osm version="0.6">{said}<node id="1" version="1" lat="{middle}" lon="{west}"/>'
        f'<node id="2" version="1" lat="{middle}" lon="{east}"/><way id="3" version="1"><nd ref="1"/><nd ref="2"/>'
        '<tag k="highway" v="residential"/></way></osm>'
    )
    return path


PLACE = (-80.22, 37.22, -80.2, 37.23)


def test_an_extract_of_another_place_is_refused(place):
    path = extract(place.folder / "oakland.osm", -122.31, 37.8, -122.29, 37.81)
    words = r"oakland.osm covers -122.3100,37.8000,-122.2900,37.8100, not tile m_37\S+ \(-80.21.*\); give an extract"
    with pytest.raises(GridMismatchError, match=words):
        place.fetch(buildings="none", osm=path)
    assert place.fetch(buildings="none", osm=extract(place.folder / "here.osm", *PLACE))["roads"] > 100


def test_an_extract_without_bounds_and_without_roads_here_gives_a_warning(place):
    path = extract(place.folder / "plain.osm", -122.31, 37.8, -122.29, 37.81, bounds=False)
    with pytest.warns(SourceWarning, match=r"plain.osm has nothing within 2 km of tile .*-122.31.*the tile in -80.21"):
        assert place.fetch(buildings="none", osm=path)["roads"] == 0


def test_an_extract_that_covers_part_of_a_tile_gives_a_warning(place):
    path = extract(place.folder / "part.osm", -80.22, 37.22, -80.2096, 37.23)
    with pytest.warns(SourceWarning, match=r"part.osm covers .*, only [3-7]\d% of tile .*; the rest stays empty"):
        place.fetch(buildings="none", osm=path)


def test_bounds_are_read_from_the_header_of_a_pbf(tmp_path):
    osmium = pytest.importorskip("osmium")
    header = osmium.io.Header()
    header.add_box(osmium.osm.Box(osmium.osm.Location(-76.9, 40.1), osmium.osm.Location(-76.7, 40.3)))
    path = tmp_path / "a.osm.pbf"
    with osmium.SimpleWriter(str(path), header=header):
        pass
    found = extents.find_extent(path)
    assert found.covers
    assert tuple(found.box) == pytest.approx((-76.9, 40.1, -76.7, 40.3))
    path.write_bytes(path.read_bytes()[:20])
    assert extents.find_extent(path) is None


def test_a_compressed_source_is_refused_before_anything_is_fetched(bare):
    for name, option in (("town.osm.bz2", "osm"), ("houses.geojson.gz", "buildings")):
        (bare.folder / name).write_bytes(b"BZh9")
        with pytest.raises(
            InputError, match=rf"{name} is an archive; unpack it and give the file inside \(--{option}\)"
        ):
            bare.fetch(**{option: bare.folder / name})
    assert bare.pixels() == {}


def test_an_extract_is_recognised_with_an_upper_case_extension(place):
    path = extract(place.folder / "TOWN.OSM", *PLACE)
    assert place.fetch(buildings="none", osm=path)["roads"] > 100


def test_a_csv_of_outlines_in_degrees_is_read_as_degrees(place, log):
    houses().to_crs(4326).to_csv(place.folder / "houses.csv")
    assert place.fetch(osm="none", buildings=place.folder / "houses.csv")["buildings"] == ALL["buildings"]
    assert "houses.csv: coordinates are off this map and look like degrees" in log.text


def test_nlcd_in_an_archive_is_read_by_its_path_in_it(files, bare):
    place = by_hand(files, bare, "naip")
    with zipfile.ZipFile(place.folder / "nlcd.zip", "w") as archive:
        archive.write(place.folder / "nlcd.tif", "a/nlcd.tif")
    inside = f"/vsizip/{place.folder}/nlcd.zip/a/nlcd.tif"
    with pytest.raises(RasterReadError, match=rf"nlcd\.zip is an archive; name the raster in it: {inside}$"):
        place.fetch(osm="none", buildings="none", nlcd=place.folder / "nlcd.zip")
    found = place.fetch(osm="none", buildings="none", nlcd=inside)
    assert found["nlcd"] == ALL["nlcd"]
    assert codes_of(place) == {41}


def test_hidden_files_beside_images_are_ignored(place, log):
    (place.folder / "naip" / f"._{NAME}.tif").write_bytes(b"Mac OS X")
    (place.folder / "naip" / ".trash").mkdir()
    (place.folder / "naip" / ".trash" / "old.tif").write_bytes(b"")
    place.fetch(osm="none", buildings="none")
    assert "left out" not in log.text


@pytest.mark.realdata
def test_the_bounds_of_real_extracts(real_data):
    found = extents.find_extent(real_data / "osm-samples" / "harrisburg.osm.pbf")
    assert tuple(found.box) == pytest.approx((-76.8459, 40.2075, -76.7474, 40.3136), abs=1e-4)


def test_a_tile_without_features_in_a_source_of_this_place_gives_no_warning(place):
    beside = place.save(houses(900), "beside.gpkg")  # the next village
    with warnings.catch_warnings():
        warnings.simplefilter("error", SourceWarning)
        assert place.fetch(osm="none", buildings=beside)["buildings"] == 0


def test_features_on_both_sides_but_none_nearby_give_a_warning(place):
    both = gpd.GeoDataFrame(geometry=[*houses(-FAR).geometry, *houses(FAR).geometry], crs=CRS)
    path = place.save(both, "both.gpkg")
    with pytest.warns(SourceWarning, match=r"both.gpkg has no building on tile .* or within 2 km: it lies in -80.6"):
        place.fetch(osm="none", buildings=path)


def test_the_warning_for_swapped_coordinates_mentions_latitude_first(place):
    swapped = houses().to_crs(4326)
    swapped["geometry"] = swapped.geometry.map(lambda g: Polygon([(y, x) for x, y in g.exterior.coords]))
    path = place.save(swapped, "swapped.geojson")
    with pytest.warns(
        SourceWarning, match=r"swapped.geojson has nothing within .*coordinates seem to be latitude first"
    ):
        place.fetch(osm="none", buildings=path)


def test_coordinates_that_do_not_fit_their_crs_are_reported(place):
    metres = houses().set_crs(4326, allow_override=True)
    path = place.folder / "metres.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": json.loads(metres.to_json())["features"]}))
    with pytest.raises(InputError, match=r"metres.geojson declares its coordinates as degrees, but they lie in 570100"):
        place.fetch(osm="none", buildings=path)
    degrees = houses().to_crs(4326).set_crs(CRS, allow_override=True)
    with pytest.warns(SourceWarning, match="its coordinates look like degrees: is its CRS correct"):
        place.fetch(osm="none", buildings=place.save(degrees, "degrees.gpkg"))


@pytest.mark.parametrize(("crs", "advice"), [(CRS, "EPSG:CODE"), (4326, "EPSG:4326")])
def test_the_error_for_a_shapefile_without_prj_gives_fitting_advice(bare, crs, advice):
    path = bare.save(houses().to_crs(crs), "lost.shp")
    path.with_suffix(".prj").unlink()
    with pytest.raises(InputError, match=rf"lost.shp has no CRS; its coordinates lie in .*-a_srs {advice}"):
        bare.fetch(buildings=path)
    assert bare.pixels() == {}


def test_labels_of_another_place_are_reported(place):
    scheme = chesapeake_scheme()
    far = frame([box(LEFT + FAR, TOP, LEFT + FAR + 9, TOP + 9)], {"class": ["water"]})
    path = place.save(far, "far.gpkg")
    with pytest.warns(SourceWarning, match="far.gpkg has nothing within 2 km of tile"):
        assert "labels" not in place.fetch(osm="none", buildings="none", labels=(path,), scheme=scheme)
    place.codes("far.tif", np.ones((40, 40), np.uint8), left=LEFT + FAR)
    with pytest.raises(GridMismatchError, match=r"far.tif does not overlap any tile: .* -79\.7.*, the tiles -80\.2"):
        place.fetch(osm="none", buildings="none", labels=(place.folder / "far.tif",), scheme=scheme)
    place.codes("here.tif", np.ones((40, 40), np.uint8))
    both = (place.folder / "far.tif", place.folder / "here.tif")
    with pytest.warns(SourceWarning, match="far.tif does not overlap any tile"):
        assert place.fetch(osm="none", buildings="none", labels=both, scheme=scheme)["labels"] > 0


def test_nlcd_of_another_place_or_without_data_here_is_refused(files, bare):
    place = by_hand(files, bare, "naip")
    place.codes("far.tif", np.full((40, 40), 41, np.uint8), left=LEFT + FAR)
    with pytest.raises(GridMismatchError, match=r"far.tif and tile m_37"):
        place.fetch(osm="none", buildings="none", nlcd=place.folder / "far.tif")
    place.codes("empty.tif", np.zeros((40, 40), np.uint8), nodata=0)
    with pytest.raises(GridMismatchError, match=r"empty.tif has no data"):
        place.fetch(osm="none", buildings="none", nlcd=place.folder / "empty.tif")
    assert "nlcd" not in place.pixels()
    half = np.full((40, 40), 41, np.uint8)
    half[:, 16:] = 0
    place.codes("half.tif", half, nodata=0)
    with pytest.warns(SourceWarning, match=r"half.tif has codes for [23]\d% of the tile"):
        place.fetch(osm="none", buildings="none", nlcd=place.folder / "half.tif")


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(place, monkeypatch):
    monkeypatch.setattr("landprior.sources.local_files._WHOLE", 2**20)
    path = place.folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.shp", bytes(8 * 2**20))
    with pytest.raises(InputError, match=r"bomb.zip unpacks to 8 MB, over 100 times its size"):
        place.fetch(osm="none", buildings=path)
    with pytest.raises(InputError, match=r"bomb.zip unpacks to 8 MB"):
        area_from_file(path)


# -- the command line ----------------------------------------------------------------------------


def run(place, monkeypatch, *options):
    """Run the command in the folder of the place."""
    base = {"--aoi": "aoi.geojson", "--naip": "naip", "--nlcd": "nlcd.tif", "--osm": "none", "--buildings": "none"}
    base |= dict(zip(options[::2], options[1::2], strict=True))
    flags = [word for option, value in base.items() for word in ((option,) if value is None else (option, value))]
    monkeypatch.chdir(place.folder)
    return CliRunner().invoke(main, ["fetch", *flags, "--name", "town", "--data", "ws", "--offline"])


@pytest.mark.parametrize("option", ["--nlcd", "--naip", "--osm", "--buildings", "--reference", "--aoi"])
@pytest.mark.parametrize("value", ["s3://me:word@bucket/x.tif?sig=TOKEN", "gs://b/x", "/vsicurl/https://h.test/x.tif"])
def test_remote_addresses_are_refused_with_advice(bare, monkeypatch, option, value):
    result = run(bare, monkeypatch, option, value)
    assert result.exit_code in {1, 2}
    assert "download it" in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (bare.root / "town").exists()


@pytest.mark.parametrize("value", ["s3://b/x.tif", "s3:/b/x.tif", "gs://b/x", "https://h.test/x", "/vsis3/b/x"])
def test_remote_addresses_are_refused_from_python_too(value):
    for field in ("naip", "osm", "buildings"):
        with pytest.raises(ValidationError, match=rf"download it and give its path \(--{field}\)"):
            FetchSettings(**{field: value})
    with pytest.raises(ValidationError, match=r"download it and give its path \(--reference\)"):
        FetchSettings(labels=(value,))
    if not value.startswith("https"):
        with pytest.raises(ValidationError, match=r"download it and give its path \(--nlcd\)"):
            FetchSettings(nlcd=value)
    assert FetchSettings(nlcd="https://h.test/x.tif?year={year}").nlcd == "https://h.test/x.tif?year={year}"


def test_with_local_files_no_received_bytes_are_reported(bare, monkeypatch):
    result = run(bare, monkeypatch)
    assert result.exit_code == 0, result.output
    assert "received" not in result.output
    assert "0 bytes" not in result.output


def test_a_dry_run_finds_errors_in_local_files(bare, monkeypatch):
    bare.save(road(FAR), "far.gpkg", layer="lines")
    for options, words in [
        (("--osm", "far.gpkg"), "far.gpkg has nothing within 2 km"),
        (("--osm", "missing.gpkg"), "no such file: missing.gpkg"),
        (("--buildings", "missing.gpkg"), "no such file: missing.gpkg"),
        (("--nlcd", "missing_{year}.tif"), "no such file: missing_2014.tif"),
    ]:
        result = run(bare, monkeypatch, *options, "--dry-run", None)
        assert result.exit_code == 1, result.output
        assert words in result.output
    assert not bare.root.exists()
