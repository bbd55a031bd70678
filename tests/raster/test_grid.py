from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from landprior.errors import GridMismatchError, InputError
from landprior.raster.grid import Grid, require_same_grid


def test_bounds_are_left_bottom_right_top(make_grid):
    assert make_grid(64, 80, pixel=0.5).bounds == (600_000, 4_499_968, 600_040, 4_500_000)


def test_window_grid_is_shifted(make_grid):
    part = make_grid().window(Window(10, 20, 5, 6))
    assert part.shape == (6, 5)
    assert part.bounds == (600_010, 4_499_974, 600_015, 4_499_980)


def test_same_grid_up_to_a_hundredth_of_a_pixel(make_grid):
    grid = make_grid()
    near = replace(grid, transform=grid.transform @ Affine.translation(0.005, 0))
    far = replace(grid, transform=grid.transform @ Affine.translation(0.5, 0))
    assert grid.matches(near)
    assert grid.differences(far) == ["corners up to 0.5 px apart"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 81}, "80 x 64 px and 81 x 64 px"), ({"crs": CRS.from_epsg(26918)}, "CRS EPSG:26917 and EPSG:26918")],
)
def test_a_mismatch_names_the_files_and_suggests_a_command(make_grid, change, message):
    grid = make_grid()
    with pytest.raises(GridMismatchError, match=message) as caught:
        require_same_grid(grid, replace(grid, **change), names=("image.tif", "prior.tif"))
    assert "rio warp prior.tif aligned.tif --like image.tif" in str(caught.value)


def test_pixel_size_in_metres(make_grid):
    assert make_grid(pixel=0.6).pixel_size() == pytest.approx((0.6, 0.6))
    assert make_grid(epsg=None, pixel=1.36).pixel_size() == pytest.approx((1.36, 1.36))
    feet = replace(make_grid(pixel=3.0, left=1_000_000.0, top=200_000.0), crs=CRS.from_epsg(2263))  # New York, US feet
    assert feet.pixel_size() == pytest.approx((0.9144, 0.9144), rel=1e-5)
    assert make_grid().pixel_size(2.0) == (2.0, 2.0)


def test_pixel_size_without_a_known_unit(make_grid):
    degrees = replace(make_grid(), crs=CRS.from_epsg(4326))
    with pytest.raises(InputError, match="in degrees"):
        degrees.pixel_size()
    with pytest.raises(InputError, match="give --pixel-size"):
        Grid(width=4, height=4, transform=Affine.identity()).pixel_size()
    with pytest.raises(InputError, match="positive"):
        degrees.pixel_size(0)


@pytest.mark.parametrize("size", [0.0, 1.8e-255, float("nan"), float("inf")])
def test_pixels_without_an_area_are_refused(size):
    transform = Affine(size, 0, 600_000, 0, -size, 4_500_000)
    torn = SimpleNamespace(name="torn.tif", width=4, height=4, transform=transform, crs=None)
    with pytest.raises(InputError, match=r"torn.tif: .* its pixels have no area .*gdal_translate -a_ullr"):
        Grid.of(torn)
