"""Patches of a raster, found strip by strip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label

from landprior.errors import InputError
from landprior.raster.patches import find_patches, label_strip
from landprior.raster.pixel_areas import PixelAreas

CODES = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int16, shape, elements=st.integers(-1, 2))
)


def patches_of(values, grid, **options):
    def read(window):
        return values[window.row_off : window.row_off + window.height]

    found = find_patches(read, grid, **{"areas": None, **options})
    numbers = np.full(values.shape, -2)

    def keep(block, part):
        numbers[block.core.row_off : block.core.row_off + block.core.height] = part
        return {}

    found.stream(keep)
    return found, numbers


def expected(values, connectivity):
    """Return the patches found by scipy, class by class."""
    structure = np.ones((3, 3)) if connectivity == 8 else None
    numbers, count = np.full(values.shape, -1), 0
    for code in np.unique(values[values >= 0]):
        found, more = label(values == code, structure)
        numbers[found > 0] = found[found > 0] - 1 + count
        count += more
    return numbers, count


@settings(max_examples=40, deadline=None)
@given(values=CODES, rows=st.sampled_from([1, 2, 3, 20]), connectivity=st.sampled_from([4, 8]))
def test_patches_are_those_of_scipy_in_the_order_of_their_last_pixels(make_grid_once, values, rows, connectivity):
    if (values < 0).all():
        return
    found, numbers = patches_of(values, make_grid_once(*values.shape), connectivity=connectivity, rows=rows)
    same, count = expected(values, connectivity)
    assert len(found) == count
    assert len({*zip(numbers.ravel().tolist(), same.ravel().tolist(), strict=True)}) == count + (values < 0).any()
    np.testing.assert_array_equal(numbers < 0, values < 0)
    np.testing.assert_array_equal(numbers.ravel()[found.last], np.arange(count))
    assert (np.diff(found.last) > 0).all()
    np.testing.assert_array_equal(found.classes, values.ravel()[found.last])
    np.testing.assert_array_equal(found.areas, np.bincount(numbers[numbers >= 0], minlength=count))


@pytest.fixture(scope="module")
def make_grid_once():
    from affine import Affine
    from rasterio.crs import CRS

    from landprior.raster.grid import Grid

    return lambda height, width, size=1.0: Grid(
        width=width, height=height, transform=Affine(size, 0, 6e5, 0, -size, 4.5e6), crs=CRS.from_epsg(26917)
    )


def test_areas_are_on_the_ground(make_grid_once):
    values = np.array([[0, 0, 1], [1, 1, 1]], dtype=np.int16)
    grid = make_grid_once(2, 3, 0.5)
    found, _ = patches_of(values, grid, areas=PixelAreas(grid))
    assert found.areas.tolist() == [0.5, 1.0]


def test_a_spiral_that_meets_itself_only_at_the_end_is_one_patch(make_grid_once):
    values = np.array(
        [[0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=np.int16
    )
    for rows in (1, 2, 5):
        found, numbers = patches_of(values, make_grid_once(5, 5), rows=rows)
        assert found.areas.tolist() == [8, 17]
        np.testing.assert_array_equal(numbers, 1 - values)


def test_a_strip_without_data_has_no_patches(make_grid_once):
    labels, classes = label_strip(np.full((3, 4), -1, dtype=np.int16))
    assert (labels == -1).all()
    assert classes.size == 0
    with pytest.raises(InputError, match=r"map\.tif has no classified pixel"):
        patches_of(np.full((3, 4), -1, dtype=np.int16), make_grid_once(3, 4), where="map.tif")
