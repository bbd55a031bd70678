"""Labels: rasters and vectors become codes of the scheme on the tile's grid, with the first source on top."""

from __future__ import annotations

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject, transform_bounds
from shapely.geometry import Point, box

from landprior.errors import GridMismatchError, InputError, MissingInputError, OutputExistsError, SchemeError
from landprior.raster.grid import Grid
from landprior.raster.scheme import ClassScheme
from landprior.sources.labels import is_raster, write_labels

SCHEME = ClassScheme.model_validate(
    {
        "name": "three",
        "classes": [
            {"code": 1, "name": "Water", "colour": "#0000ff"},
            {"code": 2, "name": "Trees", "colour": "#00ff00", "merge": [21, 22]},
            {"code": 7, "name": "Built up", "colour": "#ff0000"},
        ],
        "ignored": [0, 15],
    }
)
GONE = 255


@pytest.fixture
def grid(make_grid):
    return make_grid(60, 80)


@pytest.fixture
def put(tmp_path, grid):
    """Write labels onto the grid, and return them, or None if there are none."""

    def write(*sources, **options):
        path = tmp_path / "labels.tif"
        found = write_labels(sources, options.pop("grid", grid), path, options.pop("scheme", SCHEME), **options)
        assert found == path.exists()
        if not found:
            return None
        with rasterio.open(path) as src:
            assert (src.nodata, src.dtypes) == (GONE, ("uint8",))
            values = src.read(1)
        path.unlink()
        return values

    return write


@pytest.fixture
def codes(rng, grid):
    return rng.choice(np.array([0, 1, 2, 7, 15, 21, 22], dtype=np.uint8), size=grid.shape)


TABLE = {0: GONE, 1: 1, 2: 2, 7: 7, 15: GONE, 21: 2, 22: 2, 255: GONE}


def merged(codes):
    return np.vectorize(TABLE.get)(codes)


# -- rasters -------------------------------------------------------------------------------------


def test_a_raster_on_the_grid_is_merged_by_the_scheme(make_raster, codes, put, grid):
    np.testing.assert_array_equal(put(make_raster("a.tif", codes, grid=grid)), merged(codes))
    codes[:10] = 200
    np.testing.assert_array_equal(
        put(make_raster("b.tif", codes, grid=grid, nodata=200)), np.where(codes == 200, GONE, merged(codes % 200))
    )


def test_codes_are_mapped_before_merging(make_raster, codes, put, grid):
    path = make_raster("a.tif", codes + np.uint8(100), grid=grid)
    found = put(path, label_map={code + 100: code for code in (0, 1, 2, 7, 15, 21)} | {122: 7})
    np.testing.assert_array_equal(found, np.where(codes == 22, 7, merged(codes)))


def test_an_unknown_code_is_an_error_that_names_the_file(make_raster, codes, put, grid):
    codes[3, 4] = 99
    path = make_raster("a.tif", codes, grid=grid)
    with pytest.raises(SchemeError, match=r"a\.tif has code\(s\) 99 that are not in scheme 'three' .*--label-map"):
        put(path)
    fractional = np.where(codes == 99, 1.5, codes).astype("float32")
    with pytest.raises(InputError, match=r"f\.tif has 1\.5 at row 3, column 4.*whole numbers"):
        put(make_raster("f.tif", fractional, grid=grid))
    with pytest.raises(MissingInputError, match="no such file"):
        put(path.parent / "none.tif")


def test_a_shifted_raster_covers_part_of_the_tile(make_raster, codes, put, grid):
    moved = Grid(width=80, height=60, transform=grid.transform @ Affine.translation(30, -20), crs=grid.crs)
    expected = np.full(grid.shape, GONE)
    expected[:40, 30:] = merged(codes)[20:, :50]
    np.testing.assert_array_equal(put(make_raster("a.tif", codes, grid=moved, nodata=0)), expected)


@pytest.mark.parametrize("epsg", [26918, 5070])
def test_a_raster_in_another_crs_is_resampled_by_nearest_neighbour(make_raster, rng, put, grid, epsg):
    left, bottom, right, top = transform_bounds(grid.crs, CRS.from_epsg(epsg), *grid.bounds)
    transform = Affine(3, 0, left - 20, 0, -3, top + 20)
    own = Grid(
        width=int(right - left + 40) // 3,
        height=int(top - bottom + 40) // 3,
        transform=transform,
        crs=CRS.from_epsg(epsg),
    )
    codes = rng.choice(np.array([1, 2, 7, 21], dtype=np.uint8), size=own.shape)
    found = put(make_raster("a.tif", codes, grid=own, nodata=0))
    expected = np.zeros(grid.shape, dtype=np.uint8)
    reproject(
        codes, expected, src_transform=own.transform, src_crs=own.crs, dst_transform=grid.transform, dst_crs=grid.crs,
        resampling=Resampling.nearest, tolerance=0.001,
    )  # fmt: skip
    assert (found == merged(expected)).mean() > 0.99
    assert set(np.unique(found)) == {1, 2, 7}


def test_a_raster_without_a_crs_is_refused_unless_it_is_on_the_grid(make_raster, codes, put, grid):
    lost = Grid(width=80, height=60, transform=grid.transform, crs=None)
    with pytest.raises(GridMismatchError, match=r"the tile and .*a\.tif are on different grids \(CRS"):
        put(make_raster("a.tif", codes, grid=lost))


# -- vectors -------------------------------------------------------------------------------------


def fields(grid):
    left, _, _, top = grid.bounds
    corners = [(5, 5, 25, 20), (20, 10, 50, 40), (60, 2, 75, 55), (3, 45, 18, 58)]
    return [box(left + a, top - d, left + c, top - b) for a, b, c, d in corners]


def write_fields(path, grid, epsg=26917, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=fields(grid), crs=grid.crs.to_wkt()).to_crs(epsg)
    pyogrio.write_dataframe(frame, path)
    return path


def drawn(grid, values):
    """Draw the fields with the first one on top."""
    shapes = [(shape, value) for shape, value in zip(fields(grid), values, strict=True) if value is not None]
    return rasterize(shapes[::-1], grid.shape, fill=GONE, transform=grid.transform, dtype="uint8")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Water", "trees", "BUILT UP", " water "], [1, 2, 7, 1]),
        ([1, 2, 7, 22], [1, 2, 7, 2]),
        ([1.0, 2.0, 7.0, 21.0], [1, 2, 7, 2]),
        (["1", "2.0", "7", "21"], [1, 2, 7, 2]),
        ([15, 2, 0, 1], [None, 2, None, 1]),
        (["water", None, "trees", None], [1, None, 2, None]),
        ([1, None, 7, None], [1, None, 7, None]),
    ],
)
def test_classes_can_be_given_by_name_or_code(tmp_path, put, grid, values, expected):
    found = put(write_fields(tmp_path / "a.gpkg", grid, **{"class": values}))
    np.testing.assert_array_equal(found, drawn(grid, expected))


def test_polygons_in_another_crs_under_another_name_with_other_codes(tmp_path, put, grid):
    path = write_fields(tmp_path / "a.geojson", grid, epsg=4326, cover=[10, 20, 30, 10])
    found = put(path, field="cover", label_map={10: 1, 20: 21, 30: 15})
    assert (found == drawn(grid, [1, 2, None, 1])).mean() > 0.99
    with pytest.raises(
        InputError, match=r"a\.geojson has no column 'class' with the class \(it has cover\); .*--class-column"
    ):
        put(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["water", "lava", "trees", "water"], r"a\.gpkg: 'lava' is not a class of scheme 'three'; it has: 1 Water"),
        ([1, 2, 99, 1], r"a\.gpkg has code\(s\) 99 that are not in scheme 'three'"),
        ([1, 2, -5, 1], r"a\.gpkg has code\(s\) -5 that are not in scheme"),
        ([1.5, 2, 7, 1], r"a\.gpkg: '1\.5' is not a class"),
        (["1", "2", "99999999999999999999", "1"], r"a\.gpkg: '9+' is not a class"),
    ],
)
def test_an_unknown_class_is_an_error(tmp_path, put, grid, values, message):
    with pytest.raises(SchemeError, match=message):
        put(write_fields(tmp_path / "a.gpkg", grid, **{"class": values}))


# -- several -------------------------------------------------------------------------------------


def test_the_first_source_with_a_label_counts(tmp_path, make_raster, codes, put, grid):
    first = write_fields(tmp_path / "a.gpkg", grid, **{"class": ["Water", "Trees", None, "Built up"]})
    on_top = drawn(grid, [1, 2, None, 7])
    second = make_raster("b.tif", codes, grid=grid)
    np.testing.assert_array_equal(put(first, second), np.where(on_top == GONE, merged(codes), on_top))
    np.testing.assert_array_equal(put(second, first), np.where(merged(codes) == GONE, on_top, merged(codes)))


def test_sources_of_other_places_are_skipped(tmp_path, make_raster, make_grid, codes, put, grid):
    far = make_grid(60, 80, left=700_000.0)
    raster = make_raster("far.tif", codes, grid=far)
    vector = write_fields(tmp_path / "far.gpkg", far, **{"class": ["Water"] * 4})
    here = make_raster("here.tif", codes, grid=grid)
    np.testing.assert_array_equal(put(raster, vector, here), merged(codes))
    assert put(raster, vector) is None
    assert put(raster) is None
    assert put(vector) is None


def test_labels_without_a_class_give_none(tmp_path, make_raster, put, grid):
    assert put(make_raster("a.tif", np.full(grid.shape, 15, dtype=np.uint8), grid=grid)) is None
    assert put(write_fields(tmp_path / "a.gpkg", grid, **{"class": [15, 0, 15, 0]})) is None


def test_existing_labels_are_kept_without_overwrite(make_raster, codes, grid):
    source = make_raster("a.tif", codes, grid=grid)
    path = make_raster("labels.tif", np.ones(grid.shape, dtype=np.uint8), grid=grid)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_labels([source], grid, path, SCHEME)
    assert write_labels([source], grid, path, SCHEME, overwrite=True)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), merged(codes))
        assert src.tags(ns="landprior")["kind"] == "labels"
        assert "Built up" in src.tags(ns="landprior")["scheme"]


@pytest.mark.realdata
def test_real_polygons_become_labels(real_data, tmp_path):
    folder = real_data / "redmond-naip-vector"
    with rasterio.open(folder / "naip_rgb_redmond_wa_2019.tif") as src:
        grid = Grid.of(src)
    scheme = SCHEME.model_copy(
        update={"classes": (*SCHEME.classes[:1], SCHEME.classes[1].model_copy(update={"name": "Other"}),
                            SCHEME.classes[2].model_copy(update={"name": "Building"}))}
    )  # fmt: skip
    path = tmp_path / "labels.tif"
    assert write_labels([folder / "example_labels.geojson"], grid, path, scheme)
    with rasterio.open(path) as src:
        codes, counts = np.unique(src.read(1), return_counts=True)
    assert set(codes) == {2, 7, 255}
    assert 0.005 < dict(zip(codes.tolist(), counts / counts.sum(), strict=True))[7] < 0.2


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("a.png", "PNG"),
        ("a.asc", "AAIGrid"),
        ("a.bil", "EHdr"),
        ("a.dat", "ENVI"),
        ("a.PNG", "PNG"),
        ("noending", "GTiff"),
    ],
)
def test_rasters_are_recognised_by_content(make_raster, codes, put, grid, tmp_path, name, driver):
    import rasterio.shutil

    expected = put(make_raster("a.tif", codes, grid=grid))
    rasterio.shutil.copy(make_raster("b.tif", codes, grid=grid), tmp_path / name, driver=driver)
    assert is_raster(tmp_path / name)
    np.testing.assert_array_equal(put(tmp_path / name), expected)


def test_vectors_are_not_taken_for_rasters_under_any_name(tmp_path):
    points = geopandas.GeoDataFrame({"class": ["water"]}, geometry=[Point(600001, 4499999)], crs=26917)
    points.to_file(tmp_path / "a.geojson")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.geojson").read_bytes())
    (tmp_path / "a.csv").write_text("x,y,class\n1,2,water\n")
    for name in ("a.tif", "a.geojson", "a.csv", "a.tif|layername=a"):
        assert not is_raster(f"{tmp_path}/{name}")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    assert is_raster(tmp_path / "damaged.png")
