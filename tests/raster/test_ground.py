"""Ground metres: sizes, areas and widths in Web Mercator, degrees, feet, kilometres and Albers."""

from __future__ import annotations

import math
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from landprior.batch.mosaic import join_maps
from landprior.errors import InputError
from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.assessment.sampling import draw_sample, measure_classes, write_sample
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.fusion import PriorModel
from landprior.landcover.prior.lattice import estimate_lattice
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.pixel_areas import PixelAreas

UTM = CRS.from_epsg(26917)
SQUARE = (570_000.0, 4_120_000.0, 570_240.0, 4_120_240.0)
"""The test square: 240 x 240 m in Virginia, at 37.2 N, in UTM 17 (5.76 ha)."""

STRETCH = 1 / math.cos(math.radians(37.224))
"""Scale of EPSG:3857 at that latitude, on a sphere."""


def grid_over(crs, pixel, *, bounds=SQUARE, own=UTM):
    """Return a grid with square pixels over the test square, in another CRS."""
    crs = CRS.from_user_input(crs)
    left, bottom, right, top = transform_bounds(own, crs, *bounds)
    width, height = math.ceil((right - left) / pixel), math.ceil((top - bottom) / pixel)
    return Grid(width=width, height=height, transform=Affine(pixel, 0, left, 0, -pixel, top), crs=crs)


@pytest.mark.parametrize(
    ("crs", "pixel", "expected"),
    [
        ("EPSG:26917", 1.0, (1.0, 1.0)),
        ("EPSG:3857", STRETCH, (1.0, 1.0)),
        ("EPSG:3857", 1.0, (1 / STRETCH, 1 / STRETCH)),
        ("EPSG:4326", 1e-5, (1.113195 / STRETCH, 1.109786)),
        ("EPSG:2264", 3.0, (0.9144, 0.9144)),
        ("+proj=utm +zone=17 +datum=NAD83 +units=km", 0.001, (1.0, 1.0)),
        ("+proj=utm +zone=17 +datum=NAD83 +units=us-ft", 3.0, (0.9144, 0.9144)),
        ("EPSG:32616", 1.0, (1 / 1.0043, 1 / 1.0043)),  # the neighbouring zone, 6.8 degrees from its central meridian
    ],
)
def test_the_size_of_a_pixel_is_that_on_the_ground(crs, pixel, expected):
    assert grid_over(crs, pixel).pixel_size() == pytest.approx(expected, rel=6e-3 if "3857" in crs else 2e-3)


def test_utm_within_its_zone_is_unchanged():
    grid = grid_over("EPSG:26917", 1.0)
    assert grid.pixel_size() == (1.0, 1.0)
    assert PixelAreas(grid).constant
    assert PixelAreas(grid).mean == 1.0


def test_albers_keeps_areas_but_not_lengths():
    grid = grid_over("EPSG:5070", 30.0)
    across, down = grid.pixel_size()
    assert across > 30.1
    assert down < 29.9
    assert across * down == pytest.approx(900, rel=1e-4)
    assert PixelAreas(grid).mean == pytest.approx(900, rel=1e-9)


def test_a_rotated_raster_in_degrees_has_the_same_area():
    grid = grid_over("EPSG:4326", 1e-5)
    turned = replace(grid, transform=grid.transform @ Affine.rotation(30))
    assert PixelAreas(turned).mean == pytest.approx(PixelAreas(grid).mean, rel=1e-3)


def test_pixels_of_the_whole_world_in_degrees_add_up_to_its_area():
    grid = Grid(width=360, height=180, transform=Affine(1, 0, -180, 0, -1, 90), crs=CRS.from_epsg(4326))
    rows = np.repeat((np.arange(180) < 60)[:, None], 360, axis=1).astype(int)  # from the pole to 30 N
    total = PixelAreas(grid).sums(rows, Window(0, 0, 360, 180), 2)
    assert total.sum() == pytest.approx(510.0656e12, rel=2e-5)
    assert total[1] / total.sum() == pytest.approx(0.25, rel=5e-3)  # sin 30 = 1/2


@pytest.mark.parametrize("epsg", [4326, 4269])
def test_coordinates_beyond_degrees_are_refused(make_grid, epsg):
    grid = replace(make_grid(), crs=CRS.from_epsg(epsg))
    with pytest.raises(InputError, match=r"but its coordinates are not \(600000, .*assign its true CRS"):
        grid.pixel_size()
    assert grid.pixel_size(1.0) == (1.0, 1.0)


def test_a_given_size_that_contradicts_the_file_gives_a_warning(make_grid, caplog):
    grid_over("EPSG:3857", 1.0).pixel_size(1.0, where="web.tif")
    assert (
        "web.tif has pixels of 0.7972 x 0.7939 m by its own georeferencing; using 1 m from --pixel-size" in caplog.text
    )
    caplog.clear()
    make_grid().pixel_size(1.05)
    make_grid(epsg=None).pixel_size(1.0)
    replace(make_grid(epsg=None), transform=Affine.identity()).pixel_size(30.0)
    assert not caplog.text


# -- areas -----------------------------------------------------------------------------------------


@pytest.fixture
def town(tmp_path, enviroatlas):
    """Return a factory of maps of the test square in any CRS: a third water, the rest trees."""

    def make(crs, pixel):
        grid = grid_over(crs, pixel)
        codes = np.full(grid.shape, 40, np.uint8)
        codes[:, : round(grid.width / 3)] = 10
        return write_raster(tmp_path / "map.tif", codes, grid, nodata=255, scheme=enviroatlas), grid

    return make


@pytest.mark.parametrize(
    ("crs", "pixel"),
    [("EPSG:26917", 1.0), ("EPSG:3857", 1.0), ("EPSG:4326", 1e-5), ("EPSG:2264", 3.0), ("EPSG:5070", 1.0)],
)
def test_hectares_of_a_sample_and_its_estimate_are_measured_on_the_ground(tmp_path, town, enviroatlas, crs, pixel):
    path, grid = town(crs, pixel)
    true = shapely.geometry.box(*grid.bounds).segmentize((grid.bounds.right - grid.bounds.left) / 50)
    hectares = geopandas.GeoSeries([true], crs=grid.crs.to_wkt()).to_crs(6350).area[0] / 1e4  # CONUS Albers
    sample = draw_sample(path, enviroatlas, count=60)
    strata = sample.drop_duplicates("stratum").set_index("stratum")["stratum_hectares"]
    assert strata.sum() == pytest.approx(hectares, rel=2e-3)
    assert strata[10] == pytest.approx(hectares / 3, rel=1e-2)
    sample["reference"] = sample["stratum"].map({10: "water", 40: "trees"})
    write_sample(sample, tmp_path / "points.gpkg", enviroatlas)
    found = evaluate_points(path, tmp_path / "points.gpkg", enviroatlas)
    assert found.hectares == pytest.approx(hectares, rel=2e-3)
    sample.drop(columns=["stratum", "stratum_pixels", "stratum_hectares"]).to_file(tmp_path / "plain.gpkg")
    assert evaluate_points(path, tmp_path / "plain.gpkg", enviroatlas).hectares == pytest.approx(hectares, rel=2e-3)
    sample.drop(columns=["stratum_hectares"]).to_file(tmp_path / "pixels.gpkg")
    assert evaluate_points(path, tmp_path / "pixels.gpkg", enviroatlas).hectares == pytest.approx(hectares, rel=2e-3)


def test_rows_of_a_large_map_in_degrees_are_weighted_by_their_own_area(tmp_path, enviroatlas):
    """45 N to the pole and 45 N to the equator: the same number of pixels, but 0.29 and 0.71 of the area."""
    grid = Grid(width=40, height=180, transform=Affine(0.5, 0, -100, 0, -0.5, 90), crs=CRS.from_epsg(4326))
    codes = np.full(grid.shape, 10, np.uint8)
    codes[90:] = 40
    path = write_raster(tmp_path / "map.tif", codes, grid, nodata=255, scheme=enviroatlas)
    pixels, hectares = measure_classes(path, enviroatlas)
    assert pixels[pixels > 0].tolist() == [3600, 3600]
    shares = hectares[pixels > 0] / hectares.sum()
    assert shares == pytest.approx([1 - math.sin(math.pi / 4), math.sin(math.pi / 4)], abs=3e-3)
    sample = draw_sample(path, enviroatlas, count=80)
    sample["reference"] = sample["stratum"].map({10: "water", 40: "trees"})
    write_sample(sample, tmp_path / "points.gpkg", enviroatlas)
    found = evaluate_points(path, tmp_path / "points.gpkg", enviroatlas)
    assert found.shares[enviroatlas.index(40)].value == pytest.approx(math.sin(math.pi / 4), abs=3e-3)


# -- widths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "pixel", "halo"),
    [("EPSG:26917", 1.0, 50), ("EPSG:3857", STRETCH, 50), ("EPSG:3857", 1.0, 63), ("EPSG:4326", 1e-5, 57)],
)
def test_the_blur_of_a_prior_has_its_width_on_the_ground(enviroatlas, crs, pixel, halo):
    matrix = load_cooccurrence(None, enviroatlas)
    grid = grid_over(crs, pixel)
    model = PriorModel(enviroatlas, matrix.table([11, 41]), grid, pixel_size=grid.pixel_size())
    assert model.halo == pytest.approx(halo, abs=1)


def test_a_prior_in_degrees_equals_that_in_utm(tmp_path, enviroatlas):
    """The same two codes on the same ground, compared halfway between them and 30 m away, in both CRSs."""
    matrix = load_cooccurrence(None, enviroatlas)
    values = {}
    for name, crs, pixel in (("utm", "EPSG:26917", 1.0), ("degrees", "EPSG:4326", 1e-5), ("web", "EPSG:3857", 1.0)):
        grid = grid_over(crs, pixel)
        codes = np.full(grid.shape, 41, np.uint8)
        codes[:, : grid.width // 2] = 11
        nlcd = write_raster(tmp_path / f"{name}.tif", codes, grid)
        out = build_prior(nlcd, tmp_path / f"{name}_prior.tif", cooccurrence=matrix)
        with rasterio.open(out) as src:
            water = src.read(1)[grid.height // 2]
        columns = grid.width // 2 + np.array([-30, -10, 10, 30]) / grid.pixel_size()[0]
        values[name] = np.interp(columns, np.arange(grid.width) + 0.5, water)
    np.testing.assert_allclose(values["degrees"], values["utm"], atol=5e-3)
    np.testing.assert_allclose(values["web"], values["utm"], atol=5e-3)
    assert values["utm"][0] > values["utm"][1] + 0.1


def test_a_prior_with_very_uneven_pixels_gives_a_warning(tmp_path, enviroatlas, caplog):
    """From 20 to 60 N in one raster, the width of the blur in the middle is off by up to half at the edges."""
    grid = Grid(width=40, height=400, transform=Affine(0.1, 0, -100, 0, -0.1, 60), crs=CRS.from_epsg(4326))
    nlcd = write_raster(tmp_path / "nlcd.tif", np.full(grid.shape, 41, np.uint8), grid)
    build_prior(nlcd, tmp_path / "prior.tif", cooccurrence=load_cooccurrence(None, enviroatlas))
    assert "the ground size of a pixel of" in caplog.text


@pytest.mark.parametrize(("crs", "pixel"), [("EPSG:26917", 1.0), ("EPSG:3857", 1.0), ("EPSG:4326", 1e-5)])
def test_the_area_excluded_around_a_point_is_a_circle_on_the_ground(tmp_path, town, enviroatlas, crs, pixel):
    path, grid = town(crs, pixel)
    middle = grid.transform @ (grid.width / 2, grid.height / 2)
    geopandas.GeoDataFrame(geometry=[shapely.Point(middle)], crs=grid.crs.to_wkt()).to_file(tmp_path / "p.gpkg")
    left = evaluate([(path, path)], enviroatlas, exclude=tmp_path / "p.gpkg", buffer=20).pixels
    assert (grid.width * grid.height - left) * PixelAreas(grid).mean == pytest.approx(math.pi * 400, rel=0.08)


def test_cells_in_web_mercator_are_thirty_metres_on_the_ground():
    """Stripes of 30 m on the ground, 37.7 px in EPSG:3857."""
    grid = grid_over("EPSG:3857", 1.0)
    rows, columns = (
        (np.arange(size) * side // 30).astype(int) for size, side in zip(grid.shape, grid.pixel_size(), strict=True)
    )
    codes = np.random.default_rng(0).choice([11, 41, 81], size=(40, 40))[rows[:, None] % 40, columns % 40]
    lattice = estimate_lattice(codes.astype(np.uint8), grid)
    assert lattice.area * PixelAreas(grid).mean == pytest.approx(900, rel=0.01)


# -- mosaics ---------------------------------------------------------------------------------------


@pytest.fixture
def tiles(tmp_path, enviroatlas):
    """Two tiles of 60 m side by side in UTM, with pixels of 1 m."""
    found = []
    for number, code in enumerate((40, 70)):
        folder = TileFolder(path=tmp_path / "town" / f"t{number}", city="town")
        folder.path.mkdir(parents=True)
        grid = Grid(width=60, height=60, transform=Affine(1, 0, 570_000 + 60 * number, 0, -1, 4_120_000), crs=UTM)
        write_raster(
            folder.file("prediction"), np.full(grid.shape, code, np.uint8), grid, nodata=255, scheme=enviroatlas
        )
        found.append(folder)
    return found


@pytest.mark.parametrize(
    ("crs", "metres"), [(c, m) for c in ("EPSG:4326", "EPSG:3857", "EPSG:2264") for m in (None, 2.0)]
)
def test_a_mosaic_in_another_crs_has_pixels_of_the_same_size_on_the_ground(tmp_path, tiles, enviroatlas, crs, metres):
    with rasterio.open(join_maps(tiles, tmp_path / "map.tif", enviroatlas, crs=crs, pixel=metres)) as src:
        grid, codes = Grid.of(src), src.read(1)
    assert grid.pixel_size() == pytest.approx((metres or 1.0,) * 2, rel=2e-3)
    area = PixelAreas(grid).mean
    assert (codes == 40).sum() * area == pytest.approx(3600, rel=0.03)
    assert (codes == 70).sum() * area == pytest.approx(3600, rel=0.03)


def test_a_mosaic_in_albers_keeps_whole_metres(tmp_path, tiles, enviroatlas):
    with rasterio.open(join_maps(tiles, tmp_path / "map.tif", enviroatlas, crs="EPSG:5070")) as src:
        assert src.res == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": "EPSG:4326", "pixel": 500.0}, "one pixel of 500 m is as large as the whole mosaic"),
        ({"pixel": 1e6}, "one pixel of 1e.06 m is as large as the whole mosaic"),
        ({"crs": "nonsense"}, "--crs nonsense: unknown CRS"),
        ({"crs": "EPSG:4978"}, "--crs EPSG:4978: neither projected nor geographic"),
        ({"crs": "EPSG:32760"}, None),
    ],
)
def test_an_impossible_mosaic_is_an_error_and_leaves_nothing(tmp_path, tiles, enviroatlas, options, message):
    if message is None:  # far outside its zone, but valid
        join_maps(tiles, tmp_path / "map.tif", enviroatlas, **options)
        return
    with pytest.raises(InputError, match=message):
        join_maps(tiles, tmp_path / "map.tif", enviroatlas, **options)
    assert not list(tmp_path.glob("*map*"))


def test_a_mosaic_without_any_data_is_not_written(tmp_path, tiles, enviroatlas):
    for tile in tiles:
        with rasterio.open(tile.file("prediction"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as src:
            src.write(np.full((1, 60, 60), 255, np.uint8))
    with pytest.raises(InputError, match=r"no pixel of the mosaic \(120 x 60 px\) would have data"):
        join_maps(tiles, tmp_path / "map.tif", enviroatlas)
    assert not list(tmp_path.glob("*map*"))


def test_tiles_across_the_antimeridian_are_not_joined_in_degrees(tmp_path, enviroatlas):
    folder = TileFolder(path=tmp_path / "town" / "t", city="town")
    folder.path.mkdir(parents=True)
    grid = Grid(width=200, height=200, transform=Affine(1, 0, 293_200, 0, -1, 5_750_000), crs=CRS.from_epsg(32601))
    left, *_ = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    shift = (180 - left) * 111_320 * math.cos(math.radians(51.9)) if left > 0 else -(left + 180) * 68_700
    grid = replace(grid, transform=Affine.translation(shift - 100, 0) @ grid.transform)
    write_raster(folder.file("prediction"), np.full(grid.shape, 40, np.uint8), grid, nodata=255, scheme=enviroatlas)
    with pytest.raises(InputError, match="crosses the antimeridian"):
        join_maps([folder], tmp_path / "map.tif", enviroatlas, crs="EPSG:4326")
    assert join_maps([folder], tmp_path / "map.tif", enviroatlas).exists()
