"""The 30 m cells behind a coarse raster, and the spread between them."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window

from landprior.errors import CooccurrenceWarning, InputError, PriorError
from landprior.landcover.prior.cells import Cells, measure_spread, read_cells
from landprior.landcover.prior.cooccurrence import load_cooccurrence, measure_cooccurrence, write_cooccurrence
from landprior.landcover.prior.lattice import ALBERS, estimate_lattice, find_lattice
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme

CODES = np.array([11, 21, 22, 23, 41, 42, 71, 81, 82, 90])


def turn(height, width, tilt, *, pixel=1.0, cell=30.0, shift=(7.3, 19.1), seed=0):
    """Return random codes in tilted cells, and the cell of each pixel, computed one by one."""
    rng = np.random.default_rng(seed)
    table = rng.choice(CODES, (2000, 2000))
    codes, keys = np.zeros((height, width), np.uint8), np.zeros((height, width), np.int64)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) * pixel + shift[0], (row + 0.5) * pixel + shift[1]
            u = int(np.floor((x * np.cos(tilt) + y * np.sin(tilt)) / cell))
            v = int(np.floor((-x * np.sin(tilt) + y * np.cos(tilt)) / cell))
            codes[row, column], keys[row, column] = table[u + 1000, v + 1000], (u + 1000) * 2000 + v + 1000
    return codes, keys


def same_partition(first, second):
    """Return the share of pixels on which two numberings of cells agree, up to renumbering."""
    _, a = np.unique(first, return_inverse=True)
    _, b = np.unique(second, return_inverse=True)
    votes = np.zeros((a.max() + 1, b.max() + 1), dtype=int)
    np.add.at(votes, (a.ravel(), b.ravel()), 1)
    return votes.max(axis=1).sum() / first.size


@pytest.mark.parametrize(("degrees", "pixel"), [(0.0, 1.0), (9.0, 1.0), (-13.5, 1.0), (7.0, 0.6), (3.0, 4.7)])
def test_tilted_cells_are_found_from_changes_of_codes(make_grid, degrees, pixel):
    codes, keys = turn(180, 220, np.radians(degrees), pixel=pixel)
    grid = make_grid(180, 220, pixel=pixel, epsg=None)
    lattice = estimate_lattice(codes, grid)
    assert f"{abs(degrees):.0f}"[0] in lattice.source
    assert lattice.area == pytest.approx((30 / pixel) ** 2, rel=1e-6)
    assert same_partition(lattice.locate(Window(0, 0, 220, 180)), keys) > 0.97


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_a_cell_has_the_same_number_in_every_window(top, left, height, width):
    codes, _ = turn(40, 40, 0.2, seed=1)
    grid = Grid(width=200, height=200, transform=Affine(1, 0, 6e5, 0, -1, 4.5e6), crs=None)
    lattice = estimate_lattice(codes, Grid(width=40, height=40, transform=grid.transform, crs=None))
    whole = lattice.locate(Window(0, 0, 200, 200))
    piece = lattice.locate(Window(left, top, width, height))
    assert (piece == whole[top : top + height, left : left + width]).all()


@pytest.fixture
def national(make_raster):
    """Return NLCD-like codes on NLCD's own grid in Albers."""
    rng = np.random.default_rng(3)
    left, top = 1_500_015.0, 2_000_025.0 - 10  # edges at multiples of 30, plus 15
    left, top = left - left % 30 + 15, top - top % 30 + 15
    grid = Grid(width=60, height=60, transform=Affine(30, 0, left, 0, -30, top), crs=ALBERS)
    return make_raster("nlcd.tif", rng.choice(CODES, (60, 60)).astype(np.uint8), grid=grid, nodata=0), grid


def fine_grid(national_grid, size=300):
    x, y = national_grid.transform @ (20, 20)
    east, north = Transformer.from_crs(5070, 26918, always_xy=True).transform(x, y)
    return Grid(width=size, height=size, transform=Affine(1, 0, east, 0, -1, north), crs=CRS.from_epsg(26918))


def slow_cells(grid, national_grid):
    """Return the national cell of every pixel of a grid, computed one by one."""
    to_albers = Transformer.from_crs(grid.crs, ALBERS, always_xy=True)
    keys = np.zeros(grid.shape, np.int64)
    for row in range(grid.height):
        xs, ys = grid.transform @ (np.arange(grid.width) + 0.5, np.full(grid.width, row + 0.5))
        for column, (x, y) in enumerate(zip(*to_albers.transform(xs, ys), strict=True)):
            u, v = ~national_grid.transform @ (x, y)
            keys[row, column] = int(np.floor(v)) * 10_000 + int(np.floor(u))
    return keys


def test_cells_of_a_raster_on_its_own_grid_are_its_pixels(national, make_raster):
    path, own = national
    grid = fine_grid(own)
    like = make_raster("like.tif", np.zeros(grid.shape, np.uint8), grid=grid)
    cells, codes = read_cells(path, like)
    assert find_lattice(path, grid, like=like).source == "its own pixels"
    assert same_partition(cells.index, slow_cells(grid, own)) == pytest.approx(1.0, abs=2e-4)
    assert (cells.codes[cells.index] == codes).mean() > 0.9999
    assert cells.area == pytest.approx(900, rel=0.01)
    assert cells.sizes.sum() == codes.size


def test_cells_of_a_warped_raster_are_those_of_nlcd(national, make_raster):
    path, own = national
    grid = fine_grid(own)
    import rasterio

    warped = np.zeros(grid.shape, np.uint8)
    with rasterio.open(path) as src:
        reproject(
            rasterio.band(src, 1), warped, dst_transform=grid.transform, dst_crs=grid.crs, resampling=Resampling.nearest
        )
    like = make_raster("warped.tif", warped, grid=grid, nodata=0)
    assert "Albers" in find_lattice(like, grid, like=like).source
    cells, codes = read_cells(like, like)
    # GDAL's warper approximates positions to an eighth of a pixel
    assert same_partition(cells.index, slow_cells(grid, own)) > 0.999
    assert (cells.codes[cells.index] == codes).mean() > 0.995


def test_cells_that_do_not_match_nlcd_are_found_from_the_codes(make_raster, make_grid):
    codes, keys = turn(200, 200, np.radians(20))
    grid = make_grid(200, 200)
    path = make_raster("codes.tif", codes, grid=grid)
    assert "found from" in find_lattice(path, grid, like=path).source
    assert same_partition(read_cells(path, path)[0].index, keys) > 0.97


def test_cells_are_numbered_without_nodata():
    keys = np.array([[5, 5, 9], [5, 7, 9]])
    codes = np.array([[41, 41, 0], [42, 11, 255]])
    cells = Cells.of(keys, codes, area=4)
    assert cells.index.tolist() == [[0, 0, -1], [0, 1, -1]]
    assert (cells.codes.tolist(), cells.sizes.tolist()) == ([41, 11], [3, 1])


def test_a_raster_without_data_has_no_cells(make_raster):
    path = make_raster("empty.tif", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="no NLCD code in the area of"):
        read_cells(path, path)


# -- spread ------------------------------------------------------------------------------------------


def test_the_spread_equals_that_of_single_cells(make_raster, chesapeake):
    rng = np.random.default_rng(5)
    shares = rng.random((40, 40))
    grid_codes = rng.choice([21, 41], (40, 40))
    labels = np.where(rng.random((1200, 1200)) < np.kron(shares, np.ones((30, 30))), 2, 4).astype(np.uint8)
    nlcd = np.kron(grid_codes, np.ones((30, 30))).astype(np.uint8)
    matrix = measure_spread([(make_raster("nlcd.tif", nlcd), make_raster("labels.tif", labels))], chesapeake)
    blocks = (labels == 2).reshape(40, 30, 40, 30).mean(axis=(1, 3))
    for code in (21, 41):
        own = blocks[grid_codes == code]
        assert matrix.cells[code] == own.size
        assert matrix.spread[code][1] == pytest.approx(own.std(), abs=2e-3)
        assert matrix.spread[code][3] == pytest.approx(own.std(), abs=2e-3)
        assert matrix.spread[code][0] == 0
        assert matrix.probabilities[code][1] == pytest.approx(own.mean(), abs=1e-6)


def test_partly_labelled_cells_do_not_count(make_raster, chesapeake):
    nlcd = np.full((60, 60), 41, np.uint8)
    nlcd[:30] = 21
    labels = np.full((60, 60), 2, np.uint8)
    labels[:30, :30] = 15  # not labelled
    matrix = measure_spread([(make_raster("n.tif", nlcd), make_raster("l.tif", labels))], chesapeake)
    assert matrix.cells == {41: 2}  # only one cell of code 21 is left, which has no spread


def test_a_spread_is_written_and_read(make_raster, chesapeake, tmp_path):
    nlcd = np.kron(np.array([[21, 41], [41, 21]]), np.ones((30, 30))).astype(np.uint8)
    labels = np.full((60, 60), 2, np.uint8)
    labels[:15, :30] = 4
    matrix = measure_spread([(make_raster("n.tif", nlcd), make_raster("l.tif", labels))], chesapeake)
    assert matrix.spread[21] == pytest.approx([0, 0.25, 0, 0.25])
    write_cooccurrence(matrix, tmp_path / "m.csv")
    again = load_cooccurrence(tmp_path / "m.csv", chesapeake)
    assert again.spread[21] == pytest.approx(matrix.spread[21])
    assert again.cells == {21: 2, 41: 2}
    assert again.spread_table([21])[21] == pytest.approx([0, 0.25, 0, 0.25])


def test_the_shipped_spread_is_that_of_maryland(chesapeake, real_data):
    matrix = load_cooccurrence(None, chesapeake)
    published = np.genfromtxt(
        real_data / "chesapeake-nlcd-class-frequencies" / "nlcd_sigma.csv", delimiter=",", skip_header=1
    )
    for code, *row in published.tolist():
        if code not in (0, 255):
            assert matrix.spread[int(code)] == pytest.approx(row)


def test_intervals_in_a_matrix(tmp_path, chesapeake):
    names = chesapeake.names
    header = ",".join(["nlcd", *(f"{name} {end}" for name in names for end in ("low", "high"))])
    path = tmp_path / "intervals.csv"
    path.write_text(f"{header}\n23,0,0,0,0.5,0,0.5,0.5,0.8\n")
    matrix = load_cooccurrence(path, chesapeake)
    means = np.array([0, 0.25, 0.25, 0.65])
    assert matrix.probabilities[23] == pytest.approx(means / means.sum())
    assert matrix.spread[23] == pytest.approx(np.array([0, 0.5, 0.5, 0.3]) / np.sqrt(12))
    path.write_text(f"{header}\n23,0,0,0,0.5,0,0.5,0.8,0.5\n")
    with pytest.raises(PriorError, match="interval's high is below its low"):
        load_cooccurrence(path, chesapeake)


def test_an_unknown_spread_is_replaced_by_the_usual_one(tmp_path, chesapeake):
    path = tmp_path / "m.csv"
    path.write_text(",".join(["nlcd", *chesapeake.names]) + "\n41,0,0.9,0.1,0\n")
    matrix = load_cooccurrence(path, chesapeake)
    with pytest.warns(CooccurrenceWarning, match="--spread"):
        table = matrix.spread_table([41, 0])
    assert table[41] == pytest.approx([0, 0.2, 0.2, 0])
    assert not table[0].any()


@pytest.mark.realdata
def test_cells_in_west_virginia_are_found_and_differ_as_usual(real_data):
    folder = real_data / "chesapeake-wv-patches"
    path = folder / "m_3708035_ne_17_1-6_nlcd.tif"
    cells, codes = read_cells(path, path)
    assert (cells.codes[cells.index] == codes).mean() > 0.98
    assert np.median(cells.sizes[cells.sizes > 880]) == pytest.approx(900, abs=5)
    pairs = [(nlcd, nlcd.with_name(nlcd.name.replace("_nlcd", "_lc"))) for nlcd in sorted(folder.glob("*_nlcd.tif"))]
    matrix = measure_spread(pairs, load_scheme("chesapeake-4"))
    plain = measure_cooccurrence(pairs, load_scheme("chesapeake-4"))
    assert matrix.probabilities[41] == pytest.approx(plain.probabilities[41])
    share = matrix.probabilities[41][1]
    assert 0.3 < matrix.spread[41][1] / np.sqrt(share * (1 - share)) < 0.9  # 2/3 is usual
    assert matrix.cells[41] > 400
