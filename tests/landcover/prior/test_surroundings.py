"""Priors that read the layers of neighbouring tiles: the same where tiles overlap, whatever the tiles."""

from itertools import combinations

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from landprior.landcover.prior.build import build_prior, find_reach
from landprior.landcover.prior.coarse import CoarseLayers
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.prior.surroundings import grow_grid
from landprior.landcover.synthetic.scene import make_scene
from landprior.raster.cog import write_raster
from landprior.run import Run

SIDE = 300
WINDOWS = {
    "nw": Window(0, 0, 180, 170),
    "ne": Window(140, 0, 160, 175),
    "sw": Window(0, 130, 170, 170),
    "se": Window(135, 140, 165, 160),
}


@pytest.fixture(scope="module")
def scene():
    return make_scene(SIDE, seed=1)


@pytest.fixture(scope="module")
def files(scene, tmp_path_factory):
    """Return the layers of four tiles that overlap, and those of the whole scene."""
    root = tmp_path_factory.mktemp("layers")
    layers = {"nlcd": scene.nlcd, **scene.layers}
    return {
        name: {
            layer: write_raster(
                root / f"{name}-{layer}.tif", values[window.toslices()], scene.grid.window(window), overviews="nearest"
            )
            for layer, values in layers.items()
        }
        for name, window in {**WINDOWS, "whole": Window(0, 0, SIDE, SIDE)}.items()
    }


def build(files, path, scheme, *, around=(), **settings):
    layers = {name: file for name, file in files.items() if name != "nlcd"}
    how = PriorSettings(blur_sigma=9, blur_radius=20, **settings)
    build_prior(files["nlcd"], path, scheme=scheme, layers=layers, settings=how, around=around, run=Run(overwrite=True))
    with rasterio.open(path) as src:
        return src.read().astype(np.float64), src.transform


def put(values, window):
    """Return a tile's values on the grid of the scene, NaN elsewhere."""
    whole = np.full((len(values), SIDE, SIDE), np.nan)
    whole[(slice(None), *window.toslices())] = values
    return whole


@pytest.mark.parametrize("fusion", ["added", "conserving"])
def test_tiles_that_overlap_have_the_same_prior_there(files, scene, tmp_path, enviroatlas, fusion):
    whole, _ = build(files["whole"], tmp_path / "whole.tif", enviroatlas, fusion=fusion)
    reach = int(find_reach(PriorSettings(blur_radius=20)))
    inside = (slice(None), slice(reach, SIDE - reach), slice(reach, SIDE - reach))
    found = {}
    for name, window in WINDOWS.items():
        around = [files[other] for other in WINDOWS if other != name]
        prior, transform = build(files[name], tmp_path / "p.tif", enviroatlas, fusion=fusion, around=around)
        assert transform == scene.grid.window(window).transform
        found[name] = put(prior, window)
        assert np.nanmax(np.abs(found[name] - whole)[inside]) < 1e-3  # as if there were no tiles
    for one, other in combinations(found.values(), 2):
        assert np.isfinite(one + other).any()
        assert np.nanmax(np.abs(one - other)) < 1e-3
    alone = [
        put(build(files[name], tmp_path / "p.tif", enviroatlas, fusion=fusion)[0], WINDOWS[name]) for name in WINDOWS
    ]
    assert max(np.nanmax(np.abs(one - other)) for one, other in combinations(alone, 2)) > 0.05


def test_without_neighbours_within_reach_a_prior_stays_the_same_inside(files, tmp_path, enviroatlas):
    far = [files["se"]]
    alone, _ = build(files["nw"], tmp_path / "a.tif", enviroatlas)
    beside, _ = build(files["nw"], tmp_path / "b.tif", enviroatlas, around=far)
    # half floats of sums whose order depends on the window and the threads: at most a step apart, here 2^-11
    assert np.abs(alone[:, 30:90, 30:90] - beside[:, 30:90, 30:90]).max() <= 2**-11


def test_around_a_tile_there_is_what_the_first_neighbour_has(make_raster, make_grid):
    """Own pixels count first, also those without data; then the neighbours in their order."""
    own = np.full((40, 40), 41, np.uint8)
    own[:, -5:] = 0
    nlcd = make_raster("own.tif", own, grid=make_grid(40, 40))
    east = make_raster("east.tif", np.full((40, 30), 81, np.uint8), grid=make_grid(40, 30, left=600_030.0))
    more = make_raster("more.tif", np.full((40, 60), 11, np.uint8), grid=make_grid(40, 60, left=600_020.0))
    with CoarseLayers(nlcd, around=[{"nlcd": east}, {"nlcd": more}], margin=30) as coarse:
        assert (coarse.own.shape, coarse.grid.shape) == ((40, 40), (100, 100))
        codes, layers = coarse.read(Window(0, 0, 100, 100))
        assert coarse.codes() == {0: 6000 + 1200 + 200, 41: 1400, 81: 800, 11: 400}
        block = coarse.locate(Window(35, 0, 5, 40), 8)
    assert layers == {}
    row = codes[50]
    assert row[:30].tolist() == [0] * 30  # nothing lies to the west
    assert row[30:70].tolist() == [41] * 35 + [0] * 5
    assert row[70:90].tolist() == [81] * 20
    assert row[90:].tolist() == [11] * 10
    assert not codes[:30].any()
    assert not codes[70:].any()
    assert (block.core, block.outer) == (Window(65, 30, 5, 40), Window(57, 22, 21, 56))


def test_neighbours_of_another_zone_are_warped(make_raster, make_grid):
    """Two tiles on the border of zones 17 and 18, at 78 degrees west, show the same ground."""
    west = make_grid(40, 40, left=753_000.0, top=4_430_000.0)
    nlcd = make_raster("west.tif", np.full((40, 40), 41, np.uint8), grid=west)
    (x,), (y,) = rasterio.warp.transform(west.crs, "EPSG:26918", [753_040.0], [4_430_000.0])
    east = make_grid(400, 400, left=round(x) - 200.0, top=round(y) + 200.0, epsg=26918)
    other = make_raster("east.tif", np.full((400, 400), 81, np.uint8), grid=east)
    with CoarseLayers(nlcd, around=[{"nlcd": other}], margin=20) as coarse:
        codes, _ = coarse.read(Window(0, 0, 80, 80))
    assert (codes[20:60, 20:60] == 41).all()
    codes[20:60, 20:60] = 81
    assert (codes == 81).all()


def test_a_layer_that_a_neighbour_lacks_is_absent_there(make_raster, make_grid):
    nlcd = make_raster("own.tif", np.full((40, 40), 41, np.uint8), grid=make_grid(40, 40))
    roads = make_raster("roads.tif", np.full((40, 40), 1, np.uint8), grid=make_grid(40, 40))
    east = make_raster("east.tif", np.full((40, 40), 81, np.uint8), grid=make_grid(40, 40, left=600_040.0))
    with CoarseLayers(nlcd, {"roads": roads}, around=[{"nlcd": east}], margin=10) as coarse:
        codes, layers = coarse.read(Window(0, 0, 60, 60))
    assert (codes[30, 50:] == 81).all()
    assert not layers["roads"][:, 50:].any()
    assert layers["roads"][10:50, 10:50].all()


def test_a_wrong_value_around_a_tile_is_placed_from_the_tiles_corner(make_raster, make_grid):
    from landprior.errors import PriorError

    nlcd = make_raster("own.tif", np.full((40, 40), 41, np.int16), grid=make_grid(40, 40))
    bad = np.full((40, 40), 81, np.int16)
    bad[3, 2] = 300
    east = make_raster("east.tif", bad, grid=make_grid(40, 40, left=600_040.0))
    with (
        CoarseLayers(nlcd, around=[{"nlcd": east}], margin=10) as coarse,
        pytest.raises(PriorError, match=r"300 \(at row 3, column 42"),
    ):
        coarse.codes()


def test_a_grid_grows_on_all_sides(make_grid):
    grid = make_grid(30, 50)
    larger, inner = grow_grid(grid, 7)
    assert larger.shape == (44, 64)
    assert larger.window(inner) == grid
    assert grow_grid(grid, 0) == (grid, Window(0, 0, 50, 30))
