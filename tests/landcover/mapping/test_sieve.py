"""The minimum mapping unit of a map."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import sieve as gdal_sieve
from scipy.ndimage import gaussian_filter, label

from landprior.errors import InputError, OutputExistsError
from landprior.landcover.mapping.sieve import SieveReport, merge_small, sieve
from landprior.raster.cog import write_raster
from landprior.run import Run
from tests.helpers import good, run
from tests.raster.test_patches import make_grid_once, patches_of  # noqa: F401 - a fixture


@pytest.fixture
def source(tmp_path, enviroatlas, make_grid):
    def make(codes, **options):
        path = tmp_path / "map.tif"
        tags = {"kind": "map", "decision": "kept"}
        grid = make_grid(*np.shape(codes))
        return write_raster(
            path, np.asarray(codes, np.uint8), grid, nodata=255, scheme=enviroatlas, tags=tags, **options
        )

    return make


def read(path):
    with rasterio.open(path) as src:
        return src.read(1)


def test_patches_next_to_a_large_one_come_first_and_then_those_next_to_these(tmp_path, source, enviroatlas):
    codes = np.full((6, 8), 40)
    codes[0:3, 3:6], codes[1, 4] = 10, 30  # a pixel of barren within 8 of water
    codes[:, 7], codes[5, 7] = 255, 70  # grass alone in no data, but for one side
    path, output = source(codes), tmp_path / "clean.tif"
    report = sieve(path, output, enviroatlas, minimum_area=9)
    assert report == SieveReport(patches=4, small=3, kept=0)
    np.testing.assert_array_equal(read(output), np.where(codes == 255, 255, 40))
    with rasterio.open(output) as src:
        tags = src.tags(ns="landprior")
        assert (tags["decision"], tags["kind"], tags["sieve"]) == ("kept", "map", "9 m2, 4-connected")
    assert (tmp_path / "clean.qml").exists()
    eight = sieve(path, tmp_path / "eight.tif", enviroatlas, minimum_area=8)
    assert (eight.small, (read(tmp_path / "eight.tif") == 10).sum()) == (2, 9)


def test_a_small_patch_between_two_takes_the_class_of_the_larger_and_an_island_stays(tmp_path, source, enviroatlas):
    codes = np.array([[10, 10, 10, 70, 40, 40, 40, 40, 255, 20], [10, 10, 10, 70, 40, 40, 40, 255, 30, 255]])
    path = source(codes)
    report = sieve(path, tmp_path / "clean.tif", enviroatlas, minimum_area=6)
    assert (report.small, report.kept) == (3, 2)
    np.testing.assert_array_equal(read(tmp_path / "clean.tif"), np.where(codes == 70, 40, codes))


def test_corners_join_patches_if_asked(tmp_path, source, enviroatlas):
    codes = np.full((6, 6), 40)
    codes[np.arange(1, 5), np.arange(1, 5)] = 10
    path = source(codes)
    sieve(path, tmp_path / "four.tif", enviroatlas, minimum_area=4)
    assert (read(tmp_path / "four.tif") == 40).all()
    report = sieve(path, tmp_path / "eight.tif", enviroatlas, minimum_area=4, connectivity=8)
    assert report.small == 0
    np.testing.assert_array_equal(read(tmp_path / "eight.tif"), codes)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_the_map_is_that_of_gdal_where_the_largest_neighbour_is_large_enough(
    tmp_path, source, enviroatlas, rng, connectivity
):
    fields = [gaussian_filter(rng.normal(size=(300, 300)), 3) for _ in range(5)]
    codes = enviroatlas.codes[np.argmax(fields, axis=0)]
    codes[:30, :40] = 255
    sieve(source(codes), tmp_path / "clean.tif", enviroatlas, minimum_area=20, connectivity=connectivity)
    theirs = gdal_sieve(codes, 20, mask=codes != 255, connectivity=connectivity)
    found = read(tmp_path / "clean.tif")
    assert (found != codes).mean() > 0.02
    assert ((found != theirs) & (codes != 255)).mean() < 5e-4


@settings(max_examples=40, deadline=None)
@given(
    values=arrays(np.int16, (9, 11), elements=st.integers(-1, 2)),
    minimum=st.integers(2, 12),
    rows=st.sampled_from([1, 4, 9]),
)
def test_no_small_patch_is_left_next_to_a_large_one(make_grid_once, values, minimum, rows):  # noqa: F811 - the fixture
    if (values < 0).all():
        return
    grid = make_grid_once(*values.shape)
    found, numbers = patches_of(values, grid, rows=rows)
    if found.areas.max() < minimum:
        with pytest.raises(InputError, match="give a smaller --minimum-area"):
            merge_small(found, minimum)
        return
    merged = merge_small(found, minimum)
    after = np.append(found.classes[merged], -1)[numbers]
    np.testing.assert_array_equal(after < 0, values < 0)
    islands, _ = label(values >= 0)
    large = found.areas[numbers] * (numbers >= 0) >= minimum
    np.testing.assert_array_equal(after[large], values[large])
    rest, _ = patches_of(after, grid)
    for island in range(1, islands.max() + 1):
        here = islands == island
        if (large & here).any():
            left = [area for area, last in zip(rest.areas, rest.last, strict=True) if here.ravel()[last]]
            assert min(left) >= minimum
        else:
            np.testing.assert_array_equal(after[here], values[here])
    whole, _ = patches_of(values, grid)
    np.testing.assert_array_equal(merged, merge_small(whole, minimum))


def test_the_command_and_its_errors(tmp_path, source, enviroatlas, make_grid, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = np.full((20, 20), 40)
    codes[5:8, 5:8] = 10
    path = source(codes)
    assert good("sieve map.tif --minimum-area 10 -o clean.tif") == "clean.tif\n"
    assert (read("clean.tif") == 40).all()
    assert "exists; give --overwrite" in run("-q sieve map.tif --minimum-area 10 -o clean.tif").stderr
    assert "no patch has 1000 m2 (the largest has 391)" in run("-q sieve map.tif --minimum-area 1000 -o b.tif").stderr
    assert "is the input" in run("-q sieve map.tif --minimum-area 10 --overwrite -o map.tif").stderr
    shares = np.full((5, 20, 20), 0.2, np.float32)
    write_raster("p.tif", shares, make_grid(20, 20), tags={"kind": "probabilities"})
    assert (
        "has probabilities and not classes; give the map itself"
        in run("-q sieve p.tif --minimum-area 9 -o b.tif").stderr
    )
    write_raster("plain.tif", codes.astype(np.uint8), make_grid(20, 20, epsg=None), nodata=255)
    with pytest.raises(OutputExistsError):
        sieve(path, "clean.tif", enviroatlas, minimum_area=10)
    sieve(path, "clean.tif", enviroatlas, minimum_area=9, run=Run(overwrite=True))
    np.testing.assert_array_equal(read("clean.tif"), codes)
