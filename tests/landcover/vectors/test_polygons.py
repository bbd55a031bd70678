"""Maps as polygons."""

import json
import sqlite3
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter

from landprior.landcover.vectors import polygons as module
from landprior.landcover.vectors.outlines import EAST, NORTH, SOUTH, WEST, build_polygons, find_edges
from landprior.landcover.vectors.polygons import write_polygons
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.patches import find_patches
from landprior.raster.scheme import load_scheme
from landprior.run import Run
from tests.helpers import good, run
from tests.landcover.mapping.test_opened import ask_qgis

MAPS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int16, shape, elements=st.integers(-1, 2))
)


def outlines(values, transform, rows):
    grid = Grid(width=values.shape[1], height=values.shape[0], transform=transform, crs=None)
    patches = find_patches(
        lambda window: values[window.row_off : window.row_off + window.height], grid, areas=None, rows=rows
    )
    numbers, shapes = [], []

    def emit(some, found):
        numbers.append(some)
        shapes.append(found)

    module._outline(patches, emit, run=Run())
    np.testing.assert_array_equal(np.concatenate(numbers), np.arange(len(patches)))
    return patches, np.concatenate(shapes)


def draw(shapes, codes, shape, transform, fill):
    return rasterize(zip(shapes, codes, strict=True), shape, fill=fill, transform=transform, dtype="int16")


@settings(max_examples=40, deadline=None)
@given(
    values=MAPS,
    rows=st.sampled_from([1, 2, 3, 20]),
    transform=st.sampled_from(
        [Affine(1, 0, 0, 0, -1, 0), Affine(2, 0, 10, 0, 2, -7), Affine(0.5, 0, 6e5, 0, -0.5, 4e6)]
    ),
)
def test_polygons_give_any_map_back_and_are_valid_neighbours_whatever_the_strips(values, rows, transform):
    if (values < 0).all():
        return
    patches, shapes = outlines(values, transform, rows)
    np.testing.assert_array_equal(draw(shapes, patches.classes.tolist(), values.shape, transform, -1), values)
    assert shapely.is_valid(shapes).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(shapes)).all()
    assert shapely.coverage_is_valid(shapes)
    np.testing.assert_allclose(shapely.area(shapes), patches.areas * abs(transform.determinant))
    _, whole = outlines(values, transform, None)
    assert shapely.equals_exact(shapes, whole, tolerance=0).all()


def test_many_edges_are_built_in_batches_to_the_same_polygons(monkeypatch, rng):
    values = rng.integers(-1, 3, (40, 30)).astype(np.int16)
    transform = Affine(1, 0, 0, 0, -1, 0)
    _, once = outlines(values, transform, None)
    monkeypatch.setattr(module, "_BATCH_EDGES", 50)
    _, parts = outlines(values, transform, 7)
    assert shapely.equals_exact(once, parts, tolerance=0).all()


def test_a_ring_around_a_hole_that_touches_its_outside():
    numbers = np.array([[1, 1, 1, 0], [1, 2, 1, 0], [1, 1, 3, 0]], dtype=np.int32)
    edges = find_edges(numbers, None, row=0, last=True)
    assert {*edges.direction.tolist()} == {EAST, SOUTH, WEST, NORTH}
    found, shapes = build_polygons(edges, 4, Affine.identity())
    assert found.tolist() == [0, 1, 2, 3]
    assert (
        shapes[1]
        .normalize()
        .equals(shapely.Polygon([(0, 0), (3, 0), (3, 2), (2, 2), (2, 3), (0, 3)], [[(1, 1), (2, 1), (2, 2), (1, 2)]]))
    )
    assert shapes[1].is_valid


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A map with patches of all classes and a part without data."""
    folder, scheme, rng = tmp_path_factory.mktemp("polygons"), load_scheme("enviroatlas-5"), np.random.default_rng(3)
    fields = [gaussian_filter(rng.normal(size=(120, 150)), 3) for _ in range(5)]
    codes = scheme.codes[np.argmax(fields, axis=0)]
    codes[:20, :30] = 255
    grid = Grid(width=150, height=120, transform=Affine(2, 0, 6e5, 0, -2, 4.5e6), crs=CRS.from_epsg(26917))
    write_raster(folder / "map.tif", codes, grid, nodata=255, scheme=scheme, tags={"kind": "map"}, overviews="mode")
    return folder, codes, grid, scheme


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.geojson", "a.parquet"])
def test_every_format_has_the_columns_and_the_map(place, monkeypatch, name):
    folder, codes, grid, scheme = place
    monkeypatch.chdir(folder)
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="GeoParquet needs pyarrow")
    assert good(f"polygons map.tif --overwrite -o {name}") == f"{name}\n"
    frame = geopandas.read_parquet(name) if name.endswith(".parquet") else geopandas.read_file(name, layer="a")
    assert frame.crs.to_epsg() == (4326 if name.endswith(".geojson") else 26917)
    frame = frame.to_crs(26917)
    assert [*frame.columns] == ["code", "name", "colour", "hectares", "geometry"]
    drawn = draw(frame.geometry, frame["code"].tolist(), grid.shape, grid.transform, 255)
    np.testing.assert_array_equal(drawn, codes)
    for c in scheme.classes:
        some = frame[frame["code"] == c.code]
        assert {*some["name"]} == {c.name}
        assert {*some["colour"]} == {c.colour.lower()}
        assert some["hectares"].sum() == pytest.approx((codes == c.code).sum() * 4 / 1e4, abs=1e-9)
        np.testing.assert_allclose(some.area / 1e4, some["hectares"], rtol=1e-3)


def test_a_package_holds_a_style_that_qgis_uses_by_default(place, monkeypatch):
    folder, _, _, scheme = place
    monkeypatch.chdir(folder)
    good("polygons map.tif --overwrite -o styled.gpkg")
    with sqlite3.connect("styled.gpkg") as database:
        rows = database.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ((table, column, default, style),) = rows
    assert (table, column, default) == ("styled", "geom", 1)
    renderer = ET.fromstring(style).find("renderer-v2")  # noqa: S314 - written by landprior
    assert renderer.get("attr") == "code"
    assert [(int(one.get("value")), one.get("label")) for one in renderer.iter("category")] == [
        (c.code, c.name) for c in scheme.classes
    ]
    fills = [one.get("value") for one in renderer.iter("Option") if one.get("name") == "color"]
    assert fills == [",".join(map(str, (*c.rgb, 255))) for c in scheme.classes]


VECTOR = """
import json, sys
from qgis.core import QgsApplication, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
layer = QgsVectorLayer(sys.argv[1], "map", "ogr")
renderer = layer.renderer()
found = [[c.value(), c.label(), c.symbol().color().name()] for c in renderer.categories()]
print(json.dumps([layer.isValid(), renderer.type(), found]))
"""


@pytest.mark.integration
def test_qgis_opens_a_package_coloured(place, tmp_path):
    folder, _, _, scheme = place
    write_polygons(folder / "map.tif", tmp_path / "map.gpkg", scheme)
    valid, kind, found = ask_qgis(VECTOR, tmp_path / "map.gpkg")
    assert (valid, kind) == (True, "categorizedSymbol")
    assert [[int(value), *rest] for value, *rest in found] == [
        [c.code, c.name, c.colour.lower()] for c in scheme.classes
    ]


def test_small_patches_merge_as_sieve_merges_them(place, monkeypatch):
    folder, _, grid, _ = place
    monkeypatch.chdir(folder)
    good("sieve map.tif --minimum-area 80 --overwrite -o clean.tif")
    good("polygons map.tif --minimum-area 80 --overwrite -o clean.gpkg")
    frame = geopandas.read_file("clean.gpkg", layer="clean")
    assert frame["hectares"].min() >= 0.008
    with rasterio.open("clean.tif") as src:
        np.testing.assert_array_equal(
            draw(frame.geometry, frame["code"].tolist(), grid.shape, grid.transform, 255), src.read(1)
        )
    assert [path.name for path in folder.glob(".landprior*")] == []


def test_simplified_neighbours_still_meet(place, monkeypatch):
    folder, _, _, _ = place
    monkeypatch.chdir(folder)
    good("polygons map.tif --overwrite -o plain.gpkg")
    good("polygons map.tif --simplify 4 --overwrite -o simple.gpkg")
    plain, simple = (geopandas.read_file(f"{name}.gpkg", layer=name) for name in ("plain", "simple"))
    assert shapely.get_num_coordinates(simple.geometry).sum() < 0.5 * shapely.get_num_coordinates(plain.geometry).sum()
    assert shapely.coverage_is_valid(simple.geometry.to_numpy())
    assert simple.geometry.is_valid.all()
    assert simple.area.sum() == pytest.approx(plain.area.sum(), rel=0.01)
    assert simple["hectares"].tolist() == plain["hectares"].tolist()  # as mapped


def test_errors_say_what_to_do(place, tmp_path, monkeypatch):
    folder, codes, grid, scheme = place
    monkeypatch.chdir(tmp_path)
    source = folder / "map.tif"
    write_raster("plain.tif", codes, grid, nodata=255)
    write_raster("empty.tif", np.full_like(codes, 255), grid, nodata=255)
    bare = Grid(width=150, height=120, transform=Affine.identity(), crs=None)
    write_raster("bare.tif", codes, bare, nodata=255, scheme=scheme)
    write_raster("p.tif", np.full((5, 9, 9), 0.2, np.float32), grid.window(rasterio.windows.Window(0, 0, 9, 9)),
                 tags={"kind": "probabilities"})  # fmt: skip
    (tmp_path / "there.gpkg").write_text("mine")
    for line, said in (
        (f"{source} -o a.shp", "polygons are written as .gpkg, .geojson, .fgb or .parquet"),
        (f"{source} -o there.gpkg", "there.gpkg exists; give --overwrite"),
        ("plain.tif -o a.gpkg", "plain.tif has no classes in its tags; give --scheme"),
        ("empty.tif --scheme enviroatlas-5 -o a.gpkg", "empty.tif has no classified pixel"),
        ("p.tif -o a.gpkg", "p.tif has probabilities and not classes; give the map itself"),
        ("p.tif --scheme enviroatlas-5 -o a.gpkg", "if it is a prior or probabilities, give the map"),
        ("bare.tif --simplify 2 -o a.gpkg", "bare.tif has no georeferencing"),
        ("bare.tif --minimum-area 2 -o a.gpkg", "bare.tif has no georeferencing"),
    ):
        result = run(f"-q polygons {line}")
        assert result.exit_code == 1, line
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.gpkg").exists()
    good("polygons bare.tif -o bare.geojson")  # without areas
    found = json.loads((tmp_path / "bare.geojson").read_text())["features"]
    assert {feature["properties"]["hectares"] for feature in found} == {None}


@pytest.mark.realdata
def test_a_real_map_comes_back(real_data, tmp_path):
    source = real_data / "enviroatlas-4city-notebook" / "phoenix_az-2010_highres_labels.tif"
    with rasterio.open(source) as src:
        codes, transform = src.read(1), src.transform
    scheme = load_scheme("enviroatlas-5")
    count = write_polygons(source, tmp_path / "map.fgb", scheme, rows=100)
    frame = geopandas.read_file(tmp_path / "map.fgb")
    assert len(frame) == count == 729
    np.testing.assert_array_equal(draw(frame.geometry, frame["code"].tolist(), codes.shape, transform, 0), codes)
