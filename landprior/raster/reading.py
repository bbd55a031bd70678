"""Opening rasters, with errors that give a remedy."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Self

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from landprior.errors import InputError, RasterReadError
from landprior.inputs import check_file
from landprior.raster.advice import advise_archive, advise_crs
from landprior.raster.bands import find_bands
from landprior.raster.names import quote, split_band
from landprior.raster.outputs import reason_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rasterio.io import DatasetReader

# Grid.pixel_size reports missing georeferencing where it matters. Set once, as catch_warnings is not safe
# in threads, and rasters are opened in several threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

GDAL_CACHE_BYTES = 64 * 2**20
"""GDAL's block cache while landprior processes a raster. Its own default is 5 % of the machine's memory."""

TAG_DOMAIN = "landprior"
"""Metadata domain of landprior's tags (``rio info --namespace landprior``)."""

_SUBDATASET = re.compile(r"[A-Z][A-Z0-9_]+:")
"""Prefixes of GDAL's names for rasters inside a file, such as ``NETCDF:"a.nc":codes``."""

_SHOWN = 8
"""Maximum number of rasters of a file listed in a message."""


class OpenDataset:
    """A reader of an open raster, ``src``, which closes it at the end of a ``with`` block."""

    src: DatasetReader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.src.close()


def gdal_cores() -> str:
    """Return the number of cores for GDAL: as set by an outer ``rasterio.Env`` or the environment, otherwise all."""
    outer = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    return str(outer.get("GDAL_NUM_THREADS") or os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS"))


def open_raster(path: str | Path) -> DatasetReader:
    """Open a raster for reading.

    Parameters
    ----------
    path
        A file, or GDAL's name of a raster inside one. A band at its end (``|band=2``) is ignored.

    Returns
    -------
    DatasetReader
        The open raster, to be closed by the caller or used in ``with``.

    Raises
    ------
    MissingInputError
        If there is no such file.
    RasterReadError
        If it is a folder, or not a raster that GDAL can read.
    InputError
        If the file contains several rasters, or is georeferenced only by ground control points or RPCs.
    """
    text, _ = split_band(path)
    if "://" not in text and not text.startswith("/vsi") and not _SUBDATASET.match(text):
        check_file(text, what="raster file", error=RasterReadError)
    try:
        with rasterio.Env(GDAL_NUM_THREADS=gdal_cores()):  # for decompression
            src = rasterio.open(text)
    except UnicodeDecodeError as error:
        msg = f"{text} has a CRS whose name is not UTF-8; assign the CRS by its code: {advise_crs(text)}"
        raise RasterReadError(msg) from error
    except (RasterioError, CPLE_BaseError) as error:
        advice = advise_archive(text)
        msg = f"{text} cannot be read as a raster ({reason_of(error)}); is it complete, and a GeoTIFF?"
        if advice:
            msg = f"{text} is an archive; {advice}"
        raise RasterReadError(msg) from error
    try:
        _read_description(src, text)
        _require_one_raster(src, text)
        _require_grid(src, text)
    except InputError:
        src.close()
        raise
    return src


def _read_description(src: DatasetReader, path: str) -> None:
    """Read a file's metadata, because GDAL reports damage in it only then.

    Raises
    ------
    RasterReadError
        If it cannot be read.
    """
    try:
        src.tags()
        for name in ("crs", "transform", "nodatavals", "descriptions", "mask_flag_enums", "subdatasets", "colorinterp"):
            getattr(src, name)  # the last one raises earlier errors
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError
        msg = f"{path} is damaged ({reason_of(error)}); copy or download it again"
        raise RasterReadError(msg) from error


def _require_one_raster(src: DatasetReader, path: str) -> None:
    """Raise an error for a file with several rasters, of which GDAL would open the first, or none."""
    inside = src.subdatasets
    if src.count > 0 and len(inside) < 2:
        return
    if not inside:
        msg = f"{path} has no raster band; is it vector data?"
        raise InputError(msg)
    more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
    msg = (
        f"{path} contains several rasters; give the name of one of them instead of the file's: "
        f"{' '.join(inside[:_SHOWN])}{more} (or copy it out: gdal_translate NAME one.tif)"
    )
    raise InputError(msg)


def _require_grid(src: DatasetReader, path: str) -> None:
    """Raise an error for a raster located only by control points or a sensor model: it is not on a grid."""
    if not src.transform.is_identity:
        return
    points, _ = src.gcps
    if not points and src.rpcs is None:
        return
    # gdalwarp would use near infrared declared as alpha as a mask
    alpha = "-nosrcalpha -dstalpha" if find_bands(src).called_alpha else "-dstalpha"
    if points:
        msg = (
            f"{path} is georeferenced only by {len(points)} ground control points, so its pixels lie on no grid; warp "
            f"it first: gdalwarp -tps {alpha} {quote(path)} warped.tif"
        )
        raise InputError(msg)
    msg = (
        f"{path} is georeferenced only by RPCs (a sensor model), so its pixels are not on a grid; warp it first: "
        f"gdalwarp -rpc {alpha} {quote(path)} warped.tif (more accurate with -to RPC_DEM=dem.tif)"
    )
    raise InputError(msg)
