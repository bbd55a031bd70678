"""Grids of tiles: whole metres, in the UTM zone of the image."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from shapely.geometry import box

from landprior.sources.naip.choose import Choice
from landprior.sources.naip.grid import tile_grid, utm_of
from landprior.sources.naip.search import list_images

from .shared import AT, choose_all, write_tiff


def test_a_tile_has_whole_metres_and_a_margin(tmp_path):
    transform = Affine(0.6, 0, 600_000.3, 0, -0.6, 4_500_000.7)
    write_tiff(tmp_path / "a.tif", np.ones((4, 100, 200)), transform=transform)
    (image,) = list_images(tmp_path)
    grid = tile_grid(choose_all(image), margin=10)
    assert grid.transform == Affine(1, 0, 599_990, 0, -1, 4_500_011)
    assert grid.bounds.right == 600_131  # rounded up from 600 120.3 and the margin
    assert grid.bounds.bottom == 4_499_930  # rounded down from 4 499 940.7 and the margin
    assert grid.crs == CRS.from_epsg(26917)
    part = box(*image.footprint.centroid.buffer(0.0003).bounds)
    smaller = tile_grid(Choice(image=image, part=part), margin=0)
    to_utm = Transformer.from_crs(4326, 26917, always_xy=True)
    corners = np.array([to_utm.transform(*corner) for corner in part.exterior.coords])
    assert smaller.bounds == (*np.floor(corners.min(axis=0)), *np.ceil(corners.max(axis=0)))


def test_a_tile_in_whole_metres_does_not_grow(tmp_path):
    write_tiff(tmp_path / "a.tif", np.ones((4, 100, 200)), transform=AT)
    (image,) = list_images(tmp_path)
    grid = tile_grid(choose_all(image), margin=0)
    assert (grid.transform, grid.shape) == (AT, (100, 200))


@pytest.mark.realdata
def test_neighbours_across_a_zone_border_keep_their_zones(real_data):
    folder = real_data / "naip-samples"
    for name, epsg in (("m_3607717_sw_18_1_20160620_subset", 26918), ("m_3607824_se_17_1_20160620_subset", 26917)):
        (image,) = list_images(folder / f"{name}.tif")
        grid = tile_grid(choose_all(image), margin=0)
        with rasterio.open(folder / f"{name}.tif") as src:
            assert (grid.crs, grid.transform, grid.shape) == (src.crs, src.transform, src.shape)
        assert grid.crs == CRS.from_epsg(epsg)
        moved = tile_grid(Choice(image=image, part=box(-78.01, 36.6, -77.99, 36.61)), margin=64)
        assert moved.crs == CRS.from_epsg(epsg)


@pytest.mark.parametrize(
    ("crs", "x", "expected"),
    [
        (26917, -77.5, 26917),  # its own zone, although the place is in the next one
        (32617, -77.5, 32617),
        (3857, -77.5, 26918),
        (5070, -90.5, 26915),
        (None, -179.9, 26901),
        (None, 144.7, 32655),
        (None, 180.0, 32660),
    ],
)
def test_the_zone_is_that_of_the_image_or_else_of_the_place(crs, x, expected):
    crs = None if crs is None else CRS.from_epsg(crs)
    assert utm_of(crs, box(x - 0.001, 40, x + 0.001, 40.1)) == CRS.from_epsg(expected)


def test_utm_without_a_code_is_kept_but_not_utm_in_feet():
    place = box(-80.5, 40, -80.4, 40.1)
    own = CRS.from_string("+proj=utm +zone=18 +ellps=GRS80 +units=m")
    assert utm_of(own, place) is own
    feet = CRS.from_string("+proj=utm +zone=17 +ellps=GRS80 +units=us-ft")
    assert utm_of(feet, place) == CRS.from_epsg(26917)
