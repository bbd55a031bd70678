from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_info, cog_validate

from landprior.errors import InputError, OutputExistsError, RasterWriteError
from landprior.raster.cog import CogWriter, encode_probabilities, encoding_options, write_raster
from landprior.raster.reading import gdal_cores
from landprior.raster.scheme import MAP_NODATA, parse_scheme
from landprior.raster.windows import iter_blocks


def write_map(path, scheme, grid, rng, **options):
    codes = scheme.codes[rng.integers(0, len(scheme), grid.shape)]
    codes[:7, :9] = MAP_NODATA
    write_raster(path, codes, grid, scheme=scheme, nodata=MAP_NODATA, overviews="mode", tags={"kind": "map"}, **options)
    return codes


def test_a_class_map_is_a_strictly_valid_cog_with_colours_and_tags(tmp_path, enviroatlas, make_grid, rng):
    path = tmp_path / "map.tif"
    codes = write_map(path, enviroatlas, make_grid(1100, 1300), rng)
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), codes)
        assert src.nodata == MAP_NODATA
        tags = src.tags(ns="landprior")
        assert set(tags) == {"kind", "scheme"}
        assert tags["kind"] == "map"
        assert parse_scheme(tags["scheme"], path) == enviroatlas
        assert src.overviews(1) == [2, 4]
        table = src.colormap(1)
        assert {code: table[code][:3] for code in (10, 20, 30, 40, 70)} == {
            int(c.code): c.rgb for c in enviroatlas.classes
        }
        assert src.crs.to_epsg() == 26917


def test_overviews_of_classes_are_the_mode(tmp_path, enviroatlas, make_grid):
    codes = np.full((1024, 1024), 10, np.uint8)
    codes[::2, ::2] = 70  # one pixel out of four
    path = write_raster(
        tmp_path / "map.tif", codes, make_grid(1024, 1024), scheme=enviroatlas, nodata=255, overviews="mode"
    )
    with rasterio.open(path, overview_level=0) as src:
        assert np.unique(src.read(1)).tolist() == [10]


def gdal_category_names(path: Path) -> list[str]:
    """Return the category names that the GDAL inside rasterio reads, through its C interface."""
    libraries = Path(rasterio.__file__).parent.parent / "rasterio.libs"
    found = sorted(libraries.glob("libgdal*"))
    if not found:
        pytest.skip("this rasterio does not carry its own GDAL")
    gdal = ctypes.CDLL(str(found[0]))
    gdal.GDALOpen.restype = gdal.GDALGetRasterBand.restype = ctypes.c_void_p
    gdal.GDALGetRasterBand.argtypes = [ctypes.c_void_p, ctypes.c_int]
    gdal.GDALGetRasterCategoryNames.restype = ctypes.POINTER(ctypes.c_char_p)
    gdal.GDALGetRasterCategoryNames.argtypes = gdal.GDALClose.argtypes = [ctypes.c_void_p]
    gdal.GDALGetMetadata.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    gdal.GDALAllRegister()
    dataset = gdal.GDALOpen(str(path).encode(), 0)
    band = gdal.GDALGetRasterBand(dataset, 1)
    gdal.GDALGetMetadata(band, None)  # like every reader; only then does GDAL look for sidecar files
    names, result = gdal.GDALGetRasterCategoryNames(band), []
    while names and names[len(result)] is not None:
        result.append(names[len(result)].decode())
    gdal.GDALClose(dataset)
    return result


def test_gdal_reads_the_category_names(tmp_path, enviroatlas, make_grid, rng):
    path = tmp_path / "map.tif"
    write_map(path, enviroatlas, make_grid(), rng)
    names = gdal_category_names(path)
    assert len(names) == 71
    assert {code: names[code] for code in enviroatlas.codes.tolist()} == dict(
        zip(enviroatlas.codes.tolist(), enviroatlas.names, strict=True)
    )


def test_the_side_file_has_a_table_of_the_classes_only(tmp_path, enviroatlas, make_grid, rng):
    path = tmp_path / "map.tif"
    codes = write_map(path, enviroatlas, make_grid(90, 80), rng)
    table = ET.parse(f"{path}.aux.xml").find("PAMRasterBand/GDALRasterAttributeTable")  # noqa: S314 - written above
    assert [field.findtext("Name") for field in table.iter("FieldDefn")] == [
        "Value", "Count", "Class", "Red", "Green", "Blue", "Alpha"
    ]  # fmt: skip
    rows = [[cell.text for cell in row] for row in table.iter("Row")]
    assert rows == [
        [str(c.code), str((codes == c.code).sum()), c.name, *map(str, c.rgb), "255"] for c in enviroatlas.classes
    ]


def test_names_with_marks_of_xml_survive(tmp_path, enviroatlas, make_grid):
    first = enviroatlas.classes[0].model_copy(update={"name": 'lakes & "ponds" <1 ha'})
    scheme = enviroatlas.model_copy(update={"classes": (first, *enviroatlas.classes[1:])})
    path = write_raster(tmp_path / "map.tif", np.full((4, 5), 10, np.uint8), make_grid(4, 5), scheme=scheme, nodata=255)
    assert gdal_category_names(path)[10] == first.name
    table = ET.parse(f"{path}.aux.xml").find("PAMRasterBand/GDALRasterAttributeTable")  # noqa: S314 - written above
    assert [cell.text for cell in table.find("Row")] == ["10", "20", first.name, "0", "197", "255", "255"]


@pytest.mark.integration
def test_gdalinfo_shows_names_and_colours(tmp_path, enviroatlas, make_grid, rng):
    path = tmp_path / "map.tif"
    write_map(path, enviroatlas, make_grid(), rng)
    try:
        text = subprocess.run(["gdalinfo", "-mdd", "all", path], capture_output=True, text=True, check=True).stdout  # noqa: S607
    except FileNotFoundError:
        pytest.skip("gdalinfo is not installed (Debian: gdal-bin)")
    assert "40: trees" in text
    assert "40: 38,115,0,255" in text
    assert "LAYOUT=COG" in text
    assert "kind=map" in text
    assert text.count("<Row index=") == 5
    assert "<F>trees</F>" in text


@pytest.mark.parametrize(("encoding", "error"), [("float32", 0.0), ("float16", 2.5e-4), ("uint8", 0.5 / 255 + 1e-7)])
def test_probabilities_survive_a_round_trip(tmp_path, make_grid, rng, encoding, error):
    values = rng.dirichlet(np.ones(5), size=(600, 700)).transpose(2, 0, 1).astype(np.float32)
    path = tmp_path / "p.tif"
    write_raster(path, encode_probabilities(values, encoding), make_grid(600, 700), **encoding_options(encoding))
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as src:
        scale = np.array(src.scales)[:, None, None]
        assert np.abs(src.read() * scale - values).max() <= error
        assert src.scales[0] == pytest.approx(1 / 255 if encoding == "uint8" else 1)


def test_nodata_in_probabilities(tmp_path, make_grid):
    values = np.full((2, 4, 5), np.nan, np.float32)
    values[:, :2] = 0.5
    half = write_raster(
        tmp_path / "h.tif", encode_probabilities(values, "float16"), make_grid(4, 5), **encoding_options("float16")
    )
    small = encode_probabilities(values, "uint8")
    with rasterio.open(half) as src:
        np.testing.assert_array_equal(np.isnan(src.read()), np.isnan(values))
    assert (small[:, 2:] == 0).all()
    assert (small[:, :2] == 128).all()


def test_writing_in_windows_makes_the_same_file(tmp_path, make_grid, rng):
    grid = make_grid(700, 900)
    values = rng.integers(0, 200, (3, 700, 900), dtype=np.uint8)
    write_raster(tmp_path / "whole.tif", values, grid)
    with CogWriter(tmp_path / "parts.tif", grid, count=3) as writer:
        for block in iter_blocks(grid, size=256):
            writer.write(values[(slice(None), *block.core.toslices())], block.core)
    assert (tmp_path / "parts.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert cog_info(tmp_path / "parts.tif").COG


def test_an_existing_result_needs_overwrite(tmp_path, make_grid):
    path = tmp_path / "a.tif"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        CogWriter(path, make_grid())
    assert path.read_text() == "precious"
    with pytest.raises(InputError, match="is a folder"):
        CogWriter(tmp_path, make_grid(), overwrite=True)
    with pytest.raises(FileExistsError):  # the builtin exception that people catch
        CogWriter(path, make_grid())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_only_the_old_file(tmp_path, make_grid, failure):
    path = tmp_path / "a.tif"
    write_raster(path, np.zeros((64, 80), np.uint8), make_grid())
    before = path.read_bytes()

    def interrupted():
        with CogWriter(path, make_grid(), overwrite=True) as writer:
            writer.write(np.ones((64, 80), np.uint8))
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_gdal_uses_the_given_number_of_cores(monkeypatch):
    monkeypatch.delenv("GDAL_NUM_THREADS", raising=False)
    assert gdal_cores() == "ALL_CPUS"
    monkeypatch.setenv("GDAL_NUM_THREADS", "3")
    assert gdal_cores() == "3"
    with rasterio.Env(GDAL_NUM_THREADS="1"):
        assert gdal_cores() == "1"


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from affine import Affine
from landprior.errors import RasterWriteError
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
values = np.random.default_rng(0).integers(0, 255, (2000, 2000), dtype=np.uint8)
grid = Grid(width=2000, height=2000, transform=Affine(1, 0, 0, 0, -1, 0))
try:
    write_raster(sys.argv[1], values, grid, overwrite=True)
except RasterWriteError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("threads", [None, "ALL_CPUS"])  # GDAL's own threads do not report such errors
@pytest.mark.parametrize("limit", [500_000, 4_200_000])  # full while writing windows, and while laying out the COG
def test_a_full_disk_is_an_error_and_the_old_file_stays(tmp_path, limit, threads):
    path = tmp_path / "a.tif"
    path.write_text("precious")
    command = [sys.executable, "-c", _FULL_DISK, str(path), str(limit)]
    environment = os.environ | ({} if threads is None else {"GDAL_NUM_THREADS": threads})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 7, done.stderr
    assert "disk full" in done.stdout
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def test_a_folder_that_cannot_be_created(tmp_path, make_grid):
    (tmp_path / "file").write_text("")
    with pytest.raises(RasterWriteError, match="is a file, but a folder is needed"):
        CogWriter(tmp_path / "file" / "a.tif", make_grid())


def test_leftovers_of_a_killed_run_are_removed_once_they_are_old(tmp_path, make_grid):
    old, young, other = (
        tmp_path / name for name in (".map-ab12cd_4.tif", ".map-zz12cd_4.tif.draft.tif", ".map-notes.tif")
    )
    for path in (old, young, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (0, 0))
    write_raster(tmp_path / "map.tif", np.zeros((8, 8), np.uint8), make_grid(8, 8))
    assert sorted(p.name for p in tmp_path.glob(".*")) == sorted((young.name, other.name))
