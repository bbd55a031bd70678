"""Rasters of codes, checked by value: nodata in the file's own values, whole numbers, one band, other grids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from landprior.cli import main
from landprior.errors import GridMismatchError, InputError, PriorError, SchemeError
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.prior.coarse import CoarseLayers
from landprior.landcover.prior.cooccurrence import find_default, measure_cooccurrence
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes, open_on_grid
from landprior.raster.grid import Grid, require_same_grid
from landprior.raster.scheme import ClassScheme, load_scheme

CHESAPEAKE = load_scheme("chesapeake-4")
LOCAL = CRS.from_wkt('LOCAL_CS["site",LOCAL_DATUM["unknown",0],UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]')


def scheme_of(*codes, merge=(), ignored=()):
    classes = [
        {"code": code, "name": f"c{code}", "colour": "#123456", "merge": merge if code == codes[-1] else ()}
        for code in codes
    ]
    return ClassScheme.model_validate({"name": "own", "classes": classes, "ignored": ignored})


def classes_of(path, scheme, codes=None):
    with open_codes(path) as raster:
        return read_classes(raster, None, scheme, codes=codes, where=path)


# -- nodata ------------------------------------------------------------------------------------------


def test_nodata_is_decided_before_a_label_map(make_raster):
    """With nodata 0, ``--label-map 255:1`` used to turn all nodata into class 1."""
    path = make_raster("l.tif", np.array([[0, 1, 2, 255]], np.uint8), nodata=0)
    assert classes_of(path, scheme_of(1, 2), {255: 1}).tolist() == [[-1, 0, 1, 0]]
    assert classes_of(path, scheme_of(1, 2)).tolist() == [[-1, 0, 1, -1]]
    assert classes_of(path, scheme_of(1, 2, merge=(255,))).tolist() == [[-1, 0, 1, 1]]


@pytest.mark.parametrize("codes", [None, {7: 1}])
def test_a_nodata_value_that_is_a_class_is_an_error(make_raster, codes):
    path = make_raster("l.tif", np.array([[0, 1, 1]], np.uint8), nodata=0)
    with pytest.raises(
        SchemeError, match=r"uses 0 for no data.*class 'c0'.*gdal_translate -a_nodata none .*--label-map \"0:255\""
    ):
        classes_of(path, scheme_of(0, 1), codes)
    assert classes_of(path, scheme_of(0, 1), {0: 255}).tolist() == [[-1, 1, 1]]
    assert classes_of(path, scheme_of(1, 2, ignored=(0,))).tolist() == [[-1, 0, 0]]
    with pytest.raises(SchemeError, match="uses 0 for no data"):
        classes_of(path, scheme_of(1, 2), {0: 2})
    free = make_raster("free.tif", np.array([[0, 1, 1]], np.uint8))
    assert classes_of(free, scheme_of(0, 1)).tolist() == [[0, 1, 1]]


def test_evaluate_explains_how_to_choose_between_nodata_and_class_0(make_raster):
    labels = make_raster("l.tif", np.array([[0, 1, 1, 0]], np.uint8), nodata=0)
    mapped = make_raster("m.tif", np.array([[0, 1, 0, 0]], np.uint8))
    with pytest.raises(SchemeError, match=r"l\.tif uses 0 for no data"):
        evaluate([(mapped, labels)], scheme_of(0, 1))
    assert evaluate([(mapped, labels)], scheme_of(0, 1), label_map={0: 255}).pixels == 2
    free = make_raster("free.tif", np.array([[0, 1, 1, 0]], np.uint8))
    scores = evaluate([(mapped, free)], scheme_of(0, 1))
    assert scores.confusion.tolist() == [[2, 0], [1, 1]]


def test_an_nlcd_code_as_nodata_value_is_an_error(make_raster):
    """Open water is 11: with a nodata value of 11 it would vanish from the prior."""
    codes = np.full((6, 8), 41, np.uint8)
    codes[:2] = 11
    path = make_raster("n.tif", codes, nodata=11)
    labels = make_raster("l.tif", np.ones((6, 8), np.uint8))
    said = r"uses 11 for no data.*NLCD code of open water.*-a_nodata none.*gdalwarp -srcnodata 11 -dstnodata 0"
    with CoarseLayers(path) as layers, pytest.raises(SchemeError, match=said):
        layers.codes()
    with pytest.raises(SchemeError, match=said):
        measure_cooccurrence([(path, labels)], CHESAPEAKE)
    for nodata, found in ((None, {11: 16, 41: 32}), (0, {11: 16, 41: 32}), (12.5, {11: 16, 41: 32})):
        kind = np.float32 if nodata == 12.5 else np.uint8
        with CoarseLayers(make_raster("n.tif", codes.astype(kind), nodata=nodata, overwrite=True)) as layers:
            assert layers.codes() == found


# -- whole numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_whole_numbers_of_any_type_are_codes(make_raster, dtype):
    path = make_raster("l.tif", np.array([[1, 2, 2]], dtype))
    assert classes_of(path, scheme_of(1, 2)).tolist() == [[0, 1, 1]]


def test_float_codes_with_nan_and_infinity(make_raster):
    path = make_raster("l.tif", np.array([[1, np.nan, np.inf, 2]], np.float32))
    assert classes_of(path, scheme_of(1, 2)).tolist() == [[0, -1, -1, 1]]


def test_a_fraction_is_an_error_that_gives_its_place(make_raster):
    values = np.full((50, 60), 41, np.float32)
    values[31, 7] = 41.6
    path = make_raster("f.tif", values)
    said = r"f\.tif has 41\.6 at row 31, column 7.*whole numbers.*nearest"
    with pytest.raises(InputError, match=said):
        classes_of(path, scheme_of(41, 42))
    with CoarseLayers(path) as layers, pytest.raises(InputError, match=said):
        layers.codes()
    with pytest.raises(InputError, match=said):
        measure_cooccurrence([(path, make_raster("l.tif", np.ones((50, 60), np.uint8)))], CHESAPEAKE)


def test_codes_made_by_averaging_are_counted_and_explained(make_raster):
    codes = np.full((40, 40), 41, np.uint8)
    codes[0, :3], codes[1, 0] = 50, 61
    with CoarseLayers(make_raster("n.tif", codes)) as layers:
        found = layers.codes()
    assert found == {41: 1596, 50: 3, 61: 1}
    with pytest.raises(PriorError, match=r"50 \(3 px\), 61 \(1 px\) are neither NLCD codes.*averaging.*nearest"):
        find_default(CHESAPEAKE).table(found)


# -- several bands -----------------------------------------------------------------------------------


@pytest.fixture
def stack(make_raster):
    """A stack of two years as named bands: all 21, all 41."""
    return make_raster(
        "stack.tif", np.stack([np.full((64, 80), c, np.uint8) for c in (21, 41)]), descriptions=("2001", "2021")
    )


def test_the_error_for_a_stack_lists_its_bands_and_one_can_be_chosen(stack):
    with pytest.raises(InputError, match=r"2 bands, but one .*1 \(2001\), 2 \(2021\); choose one with --band"):
        CoarseLayers(stack)
    for band, code in ((2, 41), (1, 21)):
        with open_codes(f"{stack}|band={band}") as raster:
            assert np.unique(raster.read_codes()[0]).tolist() == [code]
    with pytest.raises(InputError, match=r"no band 3; it has 1 \(2001\), 2 \(2021\)"), open_codes(f"{stack}|band=3"):
        pass


def test_choosing_a_band_on_the_command_line(stack, make_raster, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "p.tif"
    refused = run(main, ["-q", "build-prior", "--nlcd", str(stack), "--scheme", "chesapeake-4", "-o", str(out)])
    assert refused.exit_code == 1
    assert "1 (2001), 2 (2021)" in refused.output
    for name, band in (("--band", 2), ("--nlcd-band", 2)):
        given = ["--nlcd", str(stack), name, str(band), "--scheme", "chesapeake-4", "-o", str(out), "--overwrite"]
        result = run(main, ["-q", "build-prior", *given])
        assert result.exit_code == 0, result.output
    matrix = find_default(CHESAPEAKE).probabilities
    with rasterio.open(out) as src:
        np.testing.assert_allclose(src.read()[:, 5, 5], matrix[41], atol=1e-3)
    labels = make_raster("l.tif", np.full((64, 80), 2, np.uint8))
    csv = tmp_path / "c.csv"
    given = ["cooccurrence", str(stack), str(labels), "--band", "1", "--scheme", "chesapeake-4", "-o", str(csv)]
    assert run(main, ["-q", *given]).exit_code == 0
    assert [line.split(",")[0] for line in csv.read_text().splitlines()[2:]] == ["21"]
    many = make_raster("two.tif", np.stack([np.full((64, 80), c, np.uint8) for c in (1, 2)]))
    scored = run(main, ["-q", "evaluate", str(labels), str(many), "--band", "2", "--scheme", "chesapeake-4"])
    assert "accuracy 1.0000" in scored.output, scored.output


def test_the_error_for_an_rgb_picture_names_its_bands(tmp_path):
    path = tmp_path / "rgb.tif"
    options = {"count": 3, "height": 8, "width": 8, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(path, "w", driver="GTiff", **options) as dst:
        dst.write(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"1 \(red\), 2 \(green\), 3 \(blue\).*picture"):
        CoarseLayers(path)


# -- presence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absent", "dtype", "nodata", "said"),
    [
        (0, "uint8", None, None), (0, "uint8", 0, None), (255, "uint8", 255, None), (np.nan, "float32", None, None),
        (np.inf, "float32", None, None), (np.nan, "float32", np.nan, None), (-9999, "int16", -9999, None),
        (255, "uint8", None, "255, which occurs with small values"), (65535, "uint16", None, "65535, which"),
        (-9999, "int16", None, "-9999, which is negative"), (-128, "int16", None, "-128, which is negative"),
        (2, "uint8", None, "buildings in 100 % of its pixels"), (1, "uint8", None, "buildings in 100 %"),
    ],
)  # fmt: skip
def test_which_values_mean_absence_in_a_presence_layer(make_raster, coarse, absent, dtype, nodata, said):
    there = np.zeros((64, 80), bool)
    there[10:20, 30:50] = True
    layer = make_raster("b.tif", np.where(there, 1, absent).astype(dtype), nodata=nodata)
    with CoarseLayers(make_raster("n.tif", coarse(64, 80)), {"buildings": layer}) as layers:
        if said is not None:
            with pytest.raises(PriorError, match=said):
                layers.codes()
            return
        layers.codes()
        _, presence = layers.read(rasterio.windows.Window(0, 0, 80, 64))
    np.testing.assert_array_equal(presence["buildings"], there)


@pytest.mark.parametrize(
    ("shown", "hidden", "nodata", "level"),
    [(0, 255, 255, "WARNING"), (0, 1, 1, "WARNING"), (0, 100, 100, "WARNING"),
     (0, -1, -1, "INFO"), (0, 65535, 65535, "INFO"), (255, 255, 255, "INFO"), (0, 0, 255, "INFO"), (0, 0, 0, "INFO")],
)  # fmt: skip
def test_presence_that_may_be_hidden_by_its_nodata_value_gives_a_warning(
    make_raster, coarse, caplog, shown, hidden, nodata, level
):
    values = np.full((64, 80), shown, np.int32)
    values[10:20, 30:50] = hidden
    layer = make_raster("b.tif", values, nodata=nodata)
    with (
        caplog.at_level("INFO", logger="landprior"),
        CoarseLayers(make_raster("n.tif", coarse(64, 80)), {"buildings": layer}) as layers,
    ):
        layers.codes()
    (record,) = caplog.records
    assert record.levelname == level
    if level == "WARNING":
        assert f"has 0 and, in 200 pixels, {hidden}, which is its nodata value" in record.getMessage()
        assert "gdal_translate -a_nodata none" in record.getMessage()


def test_a_tile_in_the_sea_is_all_water(make_raster, coarse):
    sea = make_raster("w.tif", np.ones((64, 80), np.uint8))
    with CoarseLayers(make_raster("n.tif", coarse(64, 80)), {"waterbodies": sea}) as layers:
        layers.codes()


# -- other grids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "alpha first", "mask", "sidecar", "nodata"])
def test_nodata_stays_nodata_on_another_grid(make_grid, tmp_path, kind):
    codes = np.arange(1, 49, dtype=np.uint8).reshape(6, 8)
    hidden = (codes % 3 == 0) if kind != "plain" else np.zeros_like(codes, bool)
    bands = codes[None]
    if kind == "alpha first":
        bands = np.stack([np.where(hidden, 0, 255).astype(np.uint8), codes])
    path = tmp_path / "n.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO" if kind == "sidecar" else "YES"),
        rasterio.open(
            path, "w", driver="GTiff", count=len(bands), height=6, width=8, dtype="uint8", crs="EPSG:26917",
            transform=Affine(10, 0, 600_000, 0, -10, 4_500_000), nodata=200 if kind == "nodata" else None,
        ) as dst,
    ):  # fmt: skip
        if kind == "alpha first":
            dst.colorinterp = (ColorInterp.alpha, ColorInterp.undefined)
        dst.write(np.where(hidden, 200, codes)[None] if kind == "nodata" else bands)
        if kind in ("mask", "sidecar"):
            dst.write_mask(np.where(hidden, 0, 255).astype(np.uint8))
    grid = make_grid(60, 100)  # 20 columns beyond the raster's right edge
    with open_on_grid(path, grid, like="the image") as raster:
        found, valid = raster.read_codes()
        assert raster.covers().sum() == 60 * 80
    fine = np.kron(np.where(hidden, 0, codes), np.ones((10, 10), int))
    np.testing.assert_array_equal(found[:, :80], fine)
    np.testing.assert_array_equal(valid[:, :80], fine > 0)
    assert not valid[:, 80:].any()


def test_the_covered_share_of_a_grid_is_logged(make_raster, make_grid, caplog):
    path = make_raster("n.tif", np.ones((64, 40), np.uint8))
    with caplog.at_level("INFO", logger="landprior"), open_on_grid(path, make_grid(64, 80), like="i.tif"):
        pass
    assert [r.getMessage() for r in caplog.records] == [f"{path} covers about 52 % of i.tif; the rest is no data"]
    beyond = make_grid(64, 80, left=700_000.0)
    with pytest.raises(GridMismatchError, match="do not overlap"), open_on_grid(path, beyond, like="i.tif"):
        pass


@pytest.mark.parametrize("local", ["raster", "grid", "both"])
def test_local_crss_work_or_give_errors_without_tracebacks(make_raster, make_grid, local):
    plain = make_grid(64, 80)
    own = replace(plain, crs=LOCAL) if local != "grid" else plain
    wanted = make_grid(32, 40)
    wanted = replace(wanted, crs=LOCAL) if local != "raster" else wanted
    path = make_raster("n.tif", np.full((64, 80), 41, np.uint8), grid=own)
    if local == "both":
        with open_codes(make_raster("i.tif", np.zeros((32, 40), np.uint8), grid=wanted)) as image:
            wanted = image.grid
        with open_on_grid(path, wanted, like="i.tif") as raster:
            codes, valid = raster.read_codes()
        assert codes.shape == (32, 40)
        assert valid.all()
        return
    way = r"rio edit-info --crs EPSG:CODE i" if local == "grid" else r"gdal_translate -a_srs EPSG:CODE .*n\.tif fixed"
    said = rf"local CRS without a known place.*{way}\.tif"
    with pytest.raises(GridMismatchError, match=said), open_on_grid(path, wanted, like="i.tif"):
        pass


def test_advice_for_a_raster_without_a_crs(make_grid):
    """``rio warp`` makes zeros of a file without a CRS, so the advice is to set one, judged by the coordinates."""
    image = make_grid(64, 80)
    same_place = replace(make_grid(100, 100, left=599_990.0, top=4_500_010.0), crs=None)
    with pytest.raises(GridMismatchError, match=r"would fit EPSG:26917.*rio edit-info --crs EPSG:26917 b\.tif"):
        require_same_grid(image, same_place, names=("a.tif", "b.tif"))
    albers = replace(make_grid(18, 18, pixel=30.0, left=1_381_260.0, top=1_691_280.0), crs=None)
    with pytest.raises(GridMismatchError, match=r"not those of EPSG:26917.*EPSG:5070.*--crs EPSG:CODE b\.tif") as error:
        require_same_grid(image, albers, names=("a.tif", "b.tif"))
    assert "warp" not in str(error.value)
    nowhere = Grid(width=64, height=64, transform=Affine.identity())
    with pytest.raises(GridMismatchError, match=r"no coordinates.*gdal_translate -a_srs"):
        require_same_grid(image, nowhere, names=("a.tif", "b.tif"))
    with pytest.raises(GridMismatchError, match=r"rio warp b\.tif aligned\.tif --like a\.tif"):
        require_same_grid(image, make_grid(32, 40), names=("a.tif", "b.tif"))


def test_a_file_given_with_a_band_is_an_input_too(stack):
    result = CliRunner().invoke(
        main,
        ["-q", "build-prior", "--nlcd", f"{stack}|band=2", "--scheme", "chesapeake-4", "-o", str(stack), "--overwrite"],
    )
    assert result.exit_code != 0
    assert "input" in result.output
    with rasterio.open(stack) as src:
        assert src.count == 2
