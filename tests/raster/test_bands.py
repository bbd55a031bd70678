"""Which bands are data and which pixels are valid, checked by value for every combination."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import GroundControlPoint

from landprior.errors import InputError, RasterReadError
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.raster.bands import find_bands, match_nodata, usable_nodata
from landprior.raster.codes import open_codes
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network
from landprior.sources.naip.search import list_images
from landprior.sources.naip.warp import write_image

SIDE = 96
TRANSFORM = Affine(1, 0, 600_000, 0, -1, 4_500_000)


def write(path, values, *, alpha=None, mask=None, sidecar=False, **options):
    """Write bands; ``alpha`` is the number of the alpha band, ``mask`` puts a mask inside or beside the file."""
    values = np.asarray(values)
    profile = {
        "driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
        "dtype": values.dtype, "crs": "EPSG:26917", "transform": TRANSFORM, "photometric": "MINISBLACK",
    } | options  # fmt: skip
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO" if sidecar else "YES"),
        rasterio.open(path, "w", **profile) as dst,
    ):
        if alpha is not None:
            kinds = [ColorInterp.undefined] * len(values)
            kinds[alpha - 1] = ColorInterp.alpha
            dst.colorinterp = kinds
        dst.write(values)
        if mask is not None:
            dst.write_mask(mask)
    return path


def image(rng, dtype, bands=3):
    return rng.integers(2, 120, (bands, SIDE, SIDE)).astype(dtype)


def alpha_band(dtype, kind):
    """Return an alpha band that hides 10 columns, with a hard or soft edge, or infrared declared as alpha."""
    full = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1}[np.dtype(dtype).name]
    band = np.full((SIDE, SIDE), full, dtype=dtype)
    band[:, :10] = 0
    if kind == "soft":
        band[:, 10:30] = np.linspace(0.1, 0.9, 20) * full if dtype != "float32" else np.linspace(0.1, 0.9, 20)
    return band


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("kind", ["hard", "soft", "infrared", "none"])
@pytest.mark.parametrize("position", [1, 2, 4])
@pytest.mark.parametrize("mask", ["none", "inside", "beside", "nodata"])
def test_every_combination_of_alpha_and_mask(tmp_path, rng, dtype, kind, position, mask):
    values = image(rng, dtype, 4 if kind == "infrared" else 3)
    expected = np.ones((SIDE, SIDE), dtype=bool)
    if mask == "nodata":
        values[:, :7] = 1
        values[0, 50, 50] = 1  # in one band only: a measured value
        expected[:7] = False
    given = values
    if kind in ("hard", "soft"):
        given = np.insert(values, position - 1, alpha_band(dtype, kind), axis=0)
        expected[:, :10] = False
    options = {}
    if mask in ("inside", "beside"):
        hidden = np.full((SIDE, SIDE), 255, dtype=np.uint8)
        hidden[:7] = 0
        expected[:7] = False
        options = {"mask": hidden, "sidecar": mask == "beside"}
    elif mask == "nodata":
        options = {"nodata": 1}
    path = write(tmp_path / "i.tif", given, alpha=None if kind == "none" else position, **options)
    with ImageLayer(path) as layer:
        assert layer.bands == len(values)
        found, valid = layer.read()
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(found, np.where(expected, values, 0))


def test_alpha_with_few_visible_pixels_is_recognised(tmp_path, rng):
    """The sixteen samples are all 0, so the rest is read."""
    values = np.concatenate([rng.integers(2, 120, (3, 900, 900)), np.zeros((1, 900, 900))]).astype(np.uint8)
    values[3, 300:310, 100:140] = 255
    with ImageLayer(write(tmp_path / "a.tif", values, alpha=4)) as layer:
        assert layer.bands == 3
        assert layer.read()[1].sum() == 400
    values[3, 300:310, 100:140] = rng.integers(1, 200, (10, 40))
    with ImageLayer(write(tmp_path / "b.tif", values, alpha=4)) as layer:
        assert layer.bands == 4


def test_nodata_of_each_band_of_a_vrt(tmp_path, rng):
    values = image(rng, "uint8", 2)
    values[0, :5], values[1, :5] = 200, 201
    values[0, 20] = 200  # nodata of the first band only
    path = write(tmp_path / "i.tif", values)
    text = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i}"><NoDataValue>{199 + i}</NoDataValue><SimpleSource>'
        f"<SourceFilename>{path}</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i in (1, 2)
    )
    vrt = tmp_path / "i.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:26917</SRS>'
        f"<GeoTransform>600000, 1, 0, 4500000, 0, -1</GeoTransform>{text}</VRTDataset>"
    )
    with ImageLayer(vrt) as layer:
        _, valid = layer.read()
    assert np.flatnonzero(~valid.all(axis=1)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (None, "uint8", None), (-99, "uint8", None), (256, "uint8", None), (0.5, "uint8", None),
        (float("nan"), "uint8", None), (255, "uint8", 255), (-9999, "int16", -9999), (1e20, "int32", None),
        (-1.7976931348623157e308, "float32", float(np.finfo("float32").min)), (0.1, "float32", float(np.float32(0.1))),
    ],
)  # fmt: skip
def test_nodata_is_rounded_to_the_data_type_or_unusable(value, dtype, expected):
    assert usable_nodata(value, dtype) == expected


def test_an_impossible_value_in_a_single_band_is_nodata():
    values = np.array([[[-9999, 0, 5]], [[7, 0, 0]]], dtype=np.int16)
    assert match_nodata(values, [-9999, -9999]).tolist() == [[True, False, False]]
    assert match_nodata(values, [0, 0]).tolist() == [[False, True, False]]
    assert match_nodata(values, [None, 0]).tolist() == [[False, True, True]]
    small = values.clip(-128, 127).astype(np.int8)  # bytes minus 128: -128 is black
    assert match_nodata(small, [-128, -128]).tolist() == [[False, False, False]]
    huge = np.array([[[np.finfo("f4").min, 1]], [[1, 1]]], dtype=np.float32)
    assert match_nodata(huge, [-3.4028234663852886e38] * 2).tolist() == [[True, False]]


@pytest.mark.parametrize("nodata", [float("nan"), -9999.0, 0.0])
def test_nodata_given_by_the_user_may_be_nan(tmp_path, rng, nodata):
    values = image(rng, "float32")
    values[:, :, :5] = nodata
    with ImageLayer(write(tmp_path / "i.tif", values), nodata=nodata) as layer:
        _, valid = layer.read()
    assert np.flatnonzero(~valid.all(axis=0)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [("int16", -9999, "-9999"), ("float32", np.finfo("f4").min, "-3.4028235e+38"), ("int32", -32768, "-32768")],
)
def test_a_customary_nodata_value_is_not_taken_for_brightness(tmp_path, rng, dtype, value, said):
    values = image(rng, dtype)
    values[:, 3:9, 5:] = value
    path = write(tmp_path / "i.tif", values)
    with ImageLayer(path) as layer, pytest.raises(InputError) as error:
        layer.read()
    assert f"has {said} in every band at row 3, column 5" in str(error.value)
    assert f"--nodata={said}" in str(error.value)
    with ImageLayer(path, nodata=float(said)) as layer:
        assert layer.read()[1].sum() == SIDE * SIDE - 6 * (SIDE - 5)


def test_rasters_with_a_palette_or_complex_numbers_are_refused_as_images(tmp_path, rng):
    path = write(tmp_path / "p.tif", image(rng, "uint8", 1))
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, {i: (i, 255 - i, 0, 255) for i in range(256)})
    with pytest.raises(InputError, match=r"palette.*gdal_translate -expand rgb"):
        ImageLayer(path)
    with pytest.raises(InputError, match="complex64"):
        ImageLayer(write(tmp_path / "c.tif", image(rng, "complex64")))


def test_one_band_of_an_image_can_be_chosen(tmp_path, rng):
    values = image(rng, "uint8")
    path = write(tmp_path / "i.tif", values)
    with ImageLayer(f"{path}|band=2") as layer:
        np.testing.assert_array_equal(layer.read()[0], values[1:2])


def test_the_fourth_class_of_a_prior_is_not_a_mask(tmp_path):
    """GDAL declares the last of four bands of bytes as alpha, but a class of 0 hides nothing."""
    scheme = load_scheme("chesapeake-4")
    values = np.zeros((4, SIDE, SIDE), dtype=np.uint8)
    values[0, :, :40], values[3, :, 40:] = 255, 255
    with PriorLayer(write(tmp_path / "p.tif", values, alpha=4), scheme=scheme) as layer:
        prior, valid = layer.read()
    assert valid.all()
    np.testing.assert_array_equal(prior, values / np.float32(255))
    mask = np.full((1, SIDE, SIDE), 255, dtype=np.uint8)
    mask[0, 5] = 0
    with PriorLayer(write(tmp_path / "m.tif", np.concatenate([mask, values]), alpha=1), scheme=scheme) as layer:
        prior, valid = layer.read()
    assert np.flatnonzero(~valid.all(axis=1)).tolist() == [5]
    assert prior[0, 0, 0] == prior[3, 0, 50] == 1


def test_codes_beside_an_alpha_band(tmp_path):
    codes = np.full((SIDE, SIDE), 41, dtype=np.uint8)
    alpha = alpha_band("uint8", "soft")
    for number, bands in ((1, [alpha, codes]), (2, [codes, alpha])):
        with open_codes(write(tmp_path / f"{number}.tif", np.stack(bands), alpha=number)) as raster:
            found, valid = raster.read_codes()
        assert found[valid].tolist() == [41] * (SIDE * (SIDE - 10))
        assert not valid[:, :10].any()


@pytest.mark.parametrize("by", ["points", "rpcs"])
def test_images_without_a_grid_are_refused(tmp_path, rng, by):
    path = tmp_path / "i.tif"
    values = image(rng, "uint8")
    points = [GroundControlPoint(row=r, col=c, x=600_000 + c, y=4_500_000 - r) for r in (0, 90) for c in (0, 90)]
    with rasterio.open(path, "w", driver="GTiff", count=3, height=SIDE, width=SIDE, dtype="uint8") as dst:
        dst.write(values)
        if by == "points":
            dst.gcps = (points, "EPSG:26917")
        else:
            line = " ".join(["1", *["0"] * 19])
            dst.update_tags(
                ns="RPC", LINE_OFF="48", SAMP_OFF="48", LAT_OFF="40", LONG_OFF="-80", HEIGHT_OFF="0", LINE_SCALE="48",
                SAMP_SCALE="48", LAT_SCALE="0.01", LONG_SCALE="0.01", HEIGHT_SCALE="100", LINE_NUM_COEFF=line,
                LINE_DEN_COEFF=line, SAMP_NUM_COEFF=line, SAMP_DEN_COEFF=line,
            )  # fmt: skip
    advice = {"points": "only by 4 ground control points.*gdalwarp -tps", "rpcs": "RPCs.*gdalwarp -rpc"}[by]
    for read in (ImageLayer, open_raster):
        with pytest.raises(InputError, match=advice):
            read(path)


@pytest.mark.parametrize("name", ["n.tif", "n.bil"])
def test_a_crs_with_a_name_that_is_not_utf_8_is_a_one_line_error(tmp_path, name):
    """Older programs write it in Latin-1, and rasterio raises a UnicodeDecodeError."""
    path, wkt = tmp_path / name, CRS.from_epsg(26917).to_wkt().replace("NAD83 / UTM zone 17N", "Quebec")
    wkt = wkt.replace(',AUTHORITY["EPSG","26917"]', "").replace('"false_easting",500000', '"false_easting",500001')
    driver = "GTiff" if path.suffix == ".tif" else "EHdr"
    options = {"driver": driver, "count": 1, "height": 8, "width": 8, "dtype": "uint8", "transform": TRANSFORM}
    with rasterio.open(path, "w", crs=wkt, **options) as dst:
        dst.write(np.full((1, 8, 8), 41, np.uint8))
    told = path if driver == "GTiff" else path.with_suffix(".prj")
    assert b"Quebec" in told.read_bytes()
    told.write_bytes(told.read_bytes().replace(b"Quebec", b"Qu\xe9bec"))
    said = rf"{name} has a CRS whose name is not UTF-8; .*gdal_translate -a_srs EPSG:CODE .*{name} fixed\.tif"
    for read in (open_raster, ImageLayer):
        with pytest.raises(RasterReadError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_the_error_for_a_file_with_several_rasters_lists_them(tmp_path):
    path = tmp_path / "pages.tif"
    pages = [Image.fromarray(np.full((8, 8), page, np.uint8)) for page in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"several rasters.*GTIFF_DIR:1:.*GTIFF_DIR:3:"):
        open_raster(path)
    with open_raster(f"GTIFF_DIR:2:{path}") as src:
        assert src.read(1).max() == 1


def test_opening_in_threads_leaves_no_warning_filter(tmp_path, rng):
    """catch_warnings in threads used to leave its filters behind."""
    path = tmp_path / "i.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1, height=8, width=8, dtype="uint8") as dst:
        dst.write(image(rng, "uint8", 1)[:, :8, :8])
    before = list(warnings.filters)

    def work():
        for _ in range(40):
            open_raster(path).close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_find_bands_returns_the_role_of_each_band(tmp_path, rng):
    path = write(tmp_path / "i.tif", np.insert(image(rng, "uint8"), 1, alpha_band("uint8", "hard"), axis=0), alpha=2)
    with open_raster(path) as src:
        found = find_bands(src)
    assert (found.data, found.alpha, found.masked, found.called_alpha) == ((1, 3, 4), (2,), False, ())


def test_naip_from_a_folder_follows_the_same_rule(tmp_path, rng, make_grid):
    """A local image's alpha band hides pixels and is not infrared; infrared declared as alpha is infrared."""
    grid = replace(make_grid(SIDE, SIDE), transform=TRANSFORM)
    for number, band in enumerate((alpha_band("uint8", "soft"), image(rng, "uint8", 1)[0])):
        values = np.concatenate([image(rng, "uint8"), band[None]])
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "m_20190101.tif", values, alpha=4)
        (found,) = list_images(folder)
        write_image(found, grid, tmp_path / f"{number}.tif", Network(Cache(tmp_path / "cache"), offline=True))
        with ImageLayer(tmp_path / f"{number}.tif") as layer:
            pixels, valid = layer.read()
        assert layer.bands == 3 + number
        hidden = 0 if number else 10
        assert np.flatnonzero(~valid.all(axis=0)).tolist() == list(range(hidden))
        np.testing.assert_array_equal(pixels[:, :, hidden:], values[: 3 + number, :, hidden:])
