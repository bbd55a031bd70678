"""The commands that messages suggest work when they are pasted."""

from __future__ import annotations

import gzip
import shlex
import shutil
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from click.testing import CliRunner
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rio.main import main_group

from landprior.errors import GridMismatchError, InputError, RasterReadError
from landprior.landcover.prior.coarse import CoarseLayers
from landprior.landcover.training.layers import ImageLayer
from landprior.raster.advice import advise_crs, advise_extent, advise_nodata
from landprior.raster.codes import open_codes
from landprior.raster.grid import Grid, require_same_grid
from landprior.raster.reading import open_raster


def paste(command, folder):
    """Run a suggested command, and return the file that it changes or writes."""
    words = shlex.split(command)
    if words[0] == "rio":
        ran = CliRunner().invoke(main_group, words[1:])
        assert ran.exit_code == 0, ran.output
    elif shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    else:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / words[-1]


@pytest.fixture(params=["GTiff", "COG", "HFA", "PNG"])
def codes(request, make_raster, tmp_path):
    """Codes 5 and 7 with nodata 7, in each format, in a file whose name has a blank."""
    plain = make_raster("plain.tif", np.array([[5, 7] * 32] * 64, np.uint8), nodata=7)
    path = tmp_path / f"my codes.{'tif' if request.param in ('GTiff', 'COG') else request.param.lower()}"
    rasterio.shutil.copy(plain, path, driver=request.param)
    return path


def test_advice_on_nodata_works_in_each_format(codes, tmp_path):
    """GDAL refuses to edit a COG, and ``rio edit-info --unset-nodata`` does nothing to an ERDAS file."""
    command = advise_nodata(codes, 5)
    with rasterio.open(codes) as src:
        plain = src.driver == "GTiff" and src.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") != "COG"
    assert command.startswith("rio edit-info" if plain else "gdal_translate")
    with rasterio.open(paste(command, tmp_path)) as src:
        assert src.nodata == 5
        assert (src.read(1)[:, :2] == [5, 7]).all()
    with rasterio.open(paste(advise_nodata(codes, None), tmp_path)) as src:
        assert src.nodata is None


def test_advice_on_a_crs_works_in_each_format(codes, tmp_path):
    with rasterio.open(paste(advise_crs(codes, "EPSG:5070"), tmp_path)) as src:
        assert src.crs.to_epsg() == 5070


def test_advice_on_an_extent_works_in_each_format(codes, make_grid, tmp_path):
    """GDAL refuses to edit a COG and cannot edit a PNG, so the file is copied."""
    expected = make_grid(64, 64)
    left, bottom, right, top = expected.bounds
    command = advise_extent(codes).replace("LEFT TOP RIGHT BOTTOM", f"{left} {top} {right} {bottom}")
    with rasterio.open(paste(command, tmp_path)) as src:
        assert Grid.of(src).bounds == pytest.approx(expected.bounds)
        assert (src.read(1)[:, :2] == [5, 7]).all()


def test_a_raster_without_an_area_becomes_readable_by_the_command_of_its_error(make_raster, make_grid, tmp_path):
    flat = replace(make_grid(64, 64), transform=Affine(1.8e-255, 0, 600_000, 0, -1.8e-255, 4_500_000))
    path = make_raster("flat codes.tif", np.full((64, 64), 41, np.uint8), grid=flat)
    with pytest.raises(InputError, match="its pixels have no area") as caught:
        CoarseLayers(path)
    command = str(caught.value).split("the right extent: ")[1]
    with CoarseLayers(paste(command.replace("LEFT TOP RIGHT BOTTOM", "0 64 64 0"), tmp_path)) as layers:
        assert layers.codes() == {41: 64 * 64}


def test_the_command_in_an_error_works(make_raster, make_grid, tmp_path):
    """An NLCD COG with the nodata value -9999, and a layer without a CRS."""
    plain = make_raster("plain.tif", np.array([[41, -9999] * 32] * 64, np.int16))
    path = tmp_path / "nlcd.tif"
    rasterio.shutil.copy(plain, path, driver="COG")
    with CoarseLayers(path) as layers, pytest.raises(InputError, match="-9999") as caught:
        layers.codes()
    mended = paste(str(caught.value).split("in the file: ")[1].split(";")[0], tmp_path)
    with CoarseLayers(mended) as layers:
        assert layers.codes() == {41: 2048, 0: 2048}
    grid = make_grid(64, 64)
    bare = make_raster("bare.tif", np.ones((64, 64), np.uint8), grid=replace(grid, crs=None))
    with open_codes(bare) as raster, pytest.raises(GridMismatchError, match="assign it: ") as lost:
        require_same_grid(grid, raster.grid, names=("image.tif", str(bare)))
    with open_codes(paste(str(lost.value).split("assign it: ")[1], tmp_path)) as raster:
        assert raster.grid.matches(grid)


def test_the_smallest_64_bit_number_can_be_nodata(make_raster, tmp_path):
    """``rio edit-info`` writes it in a form that GDAL reads as -9."""
    least = np.iinfo(np.int64).min
    path = make_raster("l.tif", np.array([[1, least]], np.int64))
    with open_codes(paste(advise_nodata(path, str(least)), tmp_path)) as raster:
        found, valid = raster.read_codes()
    assert (found.tolist(), valid.tolist()) == ([[1, 0]], [[True, False]])


def test_the_advice_on_control_points_keeps_infrared_declared_as_alpha(tmp_path, rng):
    """``gdalwarp -dstalpha`` alone takes it for the source's alpha: the result had three bands and holes."""
    path, values = tmp_path / "gcps.tif", rng.integers(40, 200, (4, 48, 48), dtype=np.uint8)
    points = [GroundControlPoint(r, c, 600_000 + c, 4_500_000 - r) for r in (0, 48) for c in (0, 48)]
    with rasterio.open(
        path, "w", driver="GTiff", width=48, height=48, count=4, dtype="uint8", photometric="RGB"
    ) as dst:
        dst.write(values)
        dst.gcps = points, CRS.from_epsg(26917)
        dst.colorinterp = [*dst.colorinterp[:3], ColorInterp.alpha]
    with pytest.raises(InputError, match="4 ground control points") as caught:
        ImageLayer(path)
    with ImageLayer(paste(str(caught.value).split("first: ")[1], tmp_path)) as layer:
        found, valid = layer.read()
    assert layer.bands == 4
    assert valid[4:44, 4:44].all()
    np.testing.assert_array_equal(found[:, 4:44, 4:44], values[:, 4:44, 4:44])


def test_a_huge_code_is_not_reported_as_a_fraction(make_raster):
    path = make_raster("n.tif", np.array([[41, -3.4028235e38]], np.float32))
    with (
        open_codes(path) as raster,
        pytest.raises(InputError, match=r"means.*no data.*nodata -3.40282347e\+38") as e,
    ):
        raster.read_codes()
    assert "whole numbers" not in str(e.value)


@pytest.mark.parametrize(("value", "dtype"), [(3.4e38, "float32"), (1e20, "float32"), (32767, "int16")])
def test_a_few_huge_values_beside_presence_are_not_presence(make_raster, value, dtype):
    """Zeros and ones with an edge of undeclared nodata, far smaller than the tile."""
    values = np.zeros((64, 80), dtype)
    values[10:20, 30:50], values[:, :3] = 1, value
    nlcd = make_raster("n.tif", np.full((64, 80), 41, np.uint8))
    with (
        CoarseLayers(nlcd, {"buildings": make_raster("b.tif", values)}) as layers,
        pytest.raises(InputError, match=r"cannot mark buildings.*nodata (3.39999995e\+38|1.00000002e\+20|32767) "),
    ):
        layers.codes()


@pytest.mark.parametrize("name", ["codes.zip", "two words.zip", "codes.tif.gz"])
def test_a_raster_in_an_archive_opens_by_the_suggested_name(tmp_path, make_raster, name):
    codes = make_raster("codes.tif", np.full((8, 8), 41, np.uint8))
    path = tmp_path / name
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(codes.read_bytes()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(codes, "a/codes.tif")
            archive.writestr("read me.txt", "")
    with pytest.raises(RasterReadError, match="is an archive; ") as caught:
        open_raster(path)
    (inside,) = (word for word in shlex.split(str(caught.value)) if word.startswith("/vsi"))
    with open_raster(inside) as src:
        assert (src.read(1) == 41).all()


@pytest.mark.parametrize(("name", "advice"), [("a.zip", "unpack it"), ("a.tar.gz", "/vsitar/.*/FILE.tif")])
def test_an_archive_without_a_raster_or_a_listing_gives_advice_too(tmp_path, name, advice):
    path = tmp_path / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("read me.txt", "")
    else:
        path.write_bytes(gzip.compress(bytes(1024)))
    with pytest.raises(RasterReadError, match=f"is an archive; .*{advice}"):
        open_raster(path)
    path.write_bytes(b"PK")
    if path.suffix == ".zip":
        with pytest.raises(RasterReadError, match="cannot be read as a raster"):
            open_raster(path)
