from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from landprior.errors import CooccurrenceWarning, GridMismatchError, InputError, PriorError, SchemeError
from landprior.landcover.prior.cooccurrence import load_cooccurrence, measure_cooccurrence, write_cooccurrence
from landprior.raster.grid import Grid
from landprior.raster.scheme import ClassScheme


def test_defaults_are_complete_and_normalised(enviroatlas, chesapeake):
    for scheme in (enviroatlas, chesapeake):
        matrix = load_cooccurrence(None, scheme)
        assert len(matrix.probabilities) == 20
        for row in matrix.probabilities.values():
            assert row.sum() == pytest.approx(1)
    maryland = load_cooccurrence(None, chesapeake).probabilities
    np.testing.assert_allclose(maryland[22], np.array([0.01, 0.31, 0.34, 0.35]) / 1.01)


def test_the_table_has_zeros_for_nodata_and_rows_by_code(chesapeake):
    table = load_cooccurrence(None, chesapeake).table([0, 11, 41, 255])
    assert table.shape == (256, 4)
    assert (table[[0, 255]] == 0).all()
    assert table[11].argmax() == 0
    assert table[41].argmax() == 1


def test_unknown_codes_are_refused(chesapeake):
    with pytest.raises(PriorError, match="code\\(s\\) 7, 99 are neither NLCD codes"):
        load_cooccurrence(None, chesapeake).table([11, 7, 99])


def test_in_a_published_npy_shrub_is_added_to_trees_and_the_rest_dropped(tmp_path, enviroatlas):
    array = np.zeros((11, 17))
    array[0] = 1  # the published value for codes that never occur
    array[:, 8] = 0
    array[[2, 4, 5, 7], 8] = [0.1, 0.5, 0.3, 0.1]  # code 41: impervious, trees, shrub, agriculture
    np.save(tmp_path / "m.npy", array)
    matrix = load_cooccurrence(tmp_path / "m.npy", enviroatlas)
    assert list(matrix.probabilities) == [41]
    np.testing.assert_allclose(matrix.probabilities[41], [0, 0.1 / 0.9, 0, 0.8 / 0.9, 0])


def test_missing_codes_fall_back_to_the_default_with_a_warning(tmp_path, chesapeake):
    path = tmp_path / "m.csv"
    path.write_text("nlcd,water,tree canopy,low vegetation,impervious\n41,0,1,0,0\n")
    matrix = load_cooccurrence(path, chesapeake)
    with pytest.warns(CooccurrenceWarning, match=r"no row for NLCD code\(s\) 11, 22; using the shipped default"):
        table = matrix.table([11, 22, 41])
    np.testing.assert_allclose(table[41], [0, 1, 0, 0])
    np.testing.assert_allclose(table[11], load_cooccurrence(None, chesapeake).probabilities[11], rtol=1e-6)


def test_missing_codes_without_a_default_get_the_weighted_mean(tmp_path):
    scheme = ClassScheme.model_validate(
        {
            "name": "own",
            "classes": [{"code": 1, "name": "a", "colour": "#000000"}, {"code": 2, "name": "b", "colour": "#ffffff"}],
        }
    )
    (tmp_path / "m.csv").write_text("nlcd,a,b,pixels\n41,1,0,300\n42,0,1,100\n")
    with pytest.warns(CooccurrenceWarning, match="the mean of its rows"):
        table = load_cooccurrence(tmp_path / "m.csv", scheme).table([11])
    np.testing.assert_allclose(table[11], [0.75, 0.25])
    with pytest.raises(PriorError, match="landprior cooccurrence"):
        load_cooccurrence(None, scheme)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code2,water\n1,1\n", "first column must be 'nlcd'"),
        ("nlcd,water,trees\n11,1,0\n", "no column for class 'tree canopy'"),
        ("nlcd,1,2,3,4\n11,1,0,0\n", "line 2: 4 is '', not a finite number"),
        ("nlcd,1,2,3,4\n11,nan,0,0,1\n", "finite"),
        ("nlcd,1,2,3,4\n11,0,0,0,0\n", "no row with a positive probability"),
        ("", "m.csv is empty"),
    ],
)
def test_bad_csv_matrices(tmp_path, chesapeake, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(PriorError, match=message):
        load_cooccurrence(path, chesapeake)


def test_pickled_and_misshapen_npy_are_refused(tmp_path, chesapeake):
    np.save(tmp_path / "p.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PriorError, match=r"not a plain \.npy"):
        load_cooccurrence(tmp_path / "p.npy", chesapeake)
    np.save(tmp_path / "s.npy", np.ones((3, 17)))
    with pytest.raises(PriorError, match=r"shape \(3, 17\)"):
        load_cooccurrence(tmp_path / "s.npy", chesapeake)


def test_measuring_equals_a_table_of_counts(make_raster, coarse, chesapeake, rng, tmp_path):
    pairs, codes, labels = [], [], []
    for i in range(2):
        code, label = coarse(700, 600), rng.choice([0, 1, 2, 3, 4, 5, 6, 15], (700, 600)).astype(np.uint8)
        code[:5] = 255
        pairs.append((make_raster(f"n{i}.tif", code), make_raster(f"l{i}.tif", label)))
        codes.append(code)
        labels.append(label)
    matrix = measure_cooccurrence(pairs, chesapeake)
    code, label = np.stack(codes), np.stack(labels)
    for c in (11, 21, 22, 41, 81, 82):
        here = label[(code == c) & ~np.isin(label, [0, 15])]
        expected = [np.isin(here, k).mean() for k in ([1], [2], [3], [4, 5, 6])]
        np.testing.assert_allclose(matrix.probabilities[c], expected)
        assert matrix.pixels[c] == here.size
    assert 255 not in matrix.probabilities

    write_cooccurrence(matrix, tmp_path / "m.csv")
    again = load_cooccurrence(tmp_path / "m.csv", chesapeake)
    assert again.pixels == matrix.pixels
    for c, row in matrix.probabilities.items():
        np.testing.assert_allclose(again.probabilities[c], row, atol=1e-6)


def test_nlcd_at_30_m_in_albers_is_resampled_to_the_labels(make_raster, make_grid, chesapeake):
    grid = make_grid(90, 120)
    label = np.full((90, 120), 2, np.uint8)
    label[:, 60:] = 3
    coarse_grid = Grid(
        width=200, height=200, transform=Affine(30, 0, 597_000, 0, -30, 4_503_000), crs=CRS.from_epsg(26917)
    )
    codes = np.full((200, 200), 41, np.uint8)
    codes[:, 102:] = 81  # from 600 060 eastwards
    matrix = measure_cooccurrence(
        [(make_raster("n.tif", codes, grid=coarse_grid), make_raster("l.tif", label, grid=grid))], chesapeake
    )
    np.testing.assert_allclose(matrix.probabilities[41], [0, 1, 0, 0])
    np.testing.assert_allclose(matrix.probabilities[81], [0, 0, 1, 0])


def test_pairs_that_cannot_be_measured(make_raster, make_grid, chesapeake):
    ones = np.ones((64, 80), np.uint8)
    labels = make_raster("l.tif", ones)
    elsewhere = make_raster("far.tif", 41 * ones, grid=make_grid(left=900_000.0))
    with pytest.raises(GridMismatchError, match="do not overlap"):
        measure_cooccurrence([(elsewhere, labels)], chesapeake)
    local = make_raster("local.tif", 41 * ones, grid=make_grid(epsg=None))
    with pytest.raises(GridMismatchError, match="different grids"):
        measure_cooccurrence([(local, labels)], chesapeake)
    empty = make_raster("empty.tif", 0 * ones)
    with pytest.raises(InputError, match="share no pixel"):
        measure_cooccurrence([(make_raster("n.tif", 41 * ones), empty)], chesapeake)
    with pytest.raises(SchemeError, match="99"):
        measure_cooccurrence([(make_raster("n2.tif", 41 * ones), make_raster("odd.tif", 99 * ones))], chesapeake)


@pytest.mark.realdata
def test_a_real_pair(real_data, chesapeake):
    folder = real_data / "chesapeake-wv-quad-decimated"
    pair = (folder / "m_3907833_nw_17_1_nlcd.tif", folder / "m_3907833_nw_17_1_lc.tif")
    matrix = measure_cooccurrence([pair], chesapeake)
    code, label = (rasterio.open(path).read(1) for path in pair)
    for c in np.unique(code):
        here = label[code == c]
        expected = [np.isin(here, k).mean() for k in ([1], [2], [3], [4, 5, 6])]
        np.testing.assert_allclose(matrix.probabilities[c], expected)
    assert sum(matrix.pixels.values()) == code.size
