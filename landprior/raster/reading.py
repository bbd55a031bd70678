"""Opening and reading rasters, with errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from landprior.errors import InputError, RasterReadError
from landprior.inputs import check_file
from landprior.raster.outputs import reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

# Grid.pixel_size says where it matters that a raster has no place. Once and for all, as catch_warnings is not safe
# in threads, and rasters are opened in several.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

GDAL_CACHE_BYTES = 64 * 2**20
"""GDAL's block cache while landprior streams a raster. Its own default is 5 % of the machine's memory."""

TAG_DOMAIN = "landprior"
"""Metadata domain of the tags landprior writes (``rio info --namespace landprior``)."""

_BAND = re.compile(r"(?P<path>.+)\|band=(?P<band>\d{1,6})")
_SUBDATASET = re.compile(r"[A-Z][A-Z0-9_]+:")
"""How GDAL's names of rasters inside a file begin, such as ``NETCDF:"a.nc":codes``."""

_PLAIN = re.compile(r"[\w@%+=:,./\\-]+")

_SHOWN = 8
"""Rasters of a file that a message lists at most."""


def gdal_cores() -> str:
    """Return on how many cores GDAL may work: what an outer ``rasterio.Env`` or the environment says, or all."""
    outer = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    return str(outer.get("GDAL_NUM_THREADS") or os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS"))


def split_band(path: str | Path) -> tuple[str, int | None]:
    """Split ``stack.tif|band=2`` into the file and the band; None where no band is named.

    Returns
    -------
    path : str
    band : int or None
        From 1.
    """
    text = str(path)
    match = _BAND.fullmatch(text)
    if match is None:
        return text, None
    with contextlib.suppress(OSError, ValueError):  # a name too long, say; whoever opens it says so
        if Path(text).exists():
            return text, None
    return match["path"], int(match["band"])


def with_band(path: str | Path, band: int | None) -> Path:
    """Name a band of a raster, as :func:`split_band` reads it.

    Raises
    ------
    InputError
        If the path names another band already.
    """
    text, own = split_band(path)
    if band is None or band == own:
        return Path(path)
    if own is not None:
        msg = f"{path} names band {own}, but band {band} was requested; give only one of them"
        raise InputError(msg)
    return Path(f"{text}|band={band}")


def quote(path: str | Path) -> str:
    """Return a path as one word of a command line, in double quotes, which all shells know, where that is enough."""
    text = str(path)
    if _PLAIN.fullmatch(text):
        return text
    return shlex.quote(text) if re.search(r'["$`!]', text) else f'"{text}"'


def _advise_archive(text: str) -> str:
    """Return how to name a raster in an archive; "" if the file is not one, or is damaged."""
    name = text.lower()
    if name.endswith((".tar", ".tgz", ".tar.gz")):
        return f"name the raster in it: /vsitar/{text}/FILE.tif"
    if name.endswith(".gz"):
        return f"give {quote(f'/vsigzip/{text}')}"
    if not name.endswith(".zip"):
        return ""
    try:
        with zipfile.ZipFile(text) as archive:
            members = [one.filename for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return ""
    rasters = [one for one in members if one.lower().endswith((".tif", ".tiff", ".img"))]
    if not rasters:
        return "unpack it and give the raster in it"
    shown = ", ".join(quote(f"/vsizip/{text}/{one}") for one in rasters[:_SHOWN])
    return f"name the raster in it: {shown}{', ...' if len(rasters) > _SHOWN else ''}"


def open_raster(path: str | Path) -> DatasetReader:
    """Open a raster for reading.

    Parameters
    ----------
    path
        A file, or GDAL's name of a raster inside one. A band named at its end (``|band=2``) does not matter here.

    Returns
    -------
    DatasetReader
        To be closed by the caller, or used in ``with``.

    Raises
    ------
    MissingInputError
        If there is no such file.
    RasterReadError
        If it is a folder, or no raster that GDAL can read.
    InputError
        If the file holds several rasters, or is located by ground control points or RPCs only.
    """
    text, _ = split_band(path)
    if "://" not in text and not text.startswith("/vsi") and not _SUBDATASET.match(text):
        check_file(text, what="raster file", error=RasterReadError)
    try:
        with rasterio.Env(GDAL_NUM_THREADS=gdal_cores()):  # decompress on them
            src = rasterio.open(text)
    except UnicodeDecodeError as error:
        from landprior.raster.advice import advise_crs  # which reads by this module

        msg = f"{text} has a CRS whose name is not UTF-8; give it the CRS by its code: {advise_crs(text)}"
        raise RasterReadError(msg) from error
    except (RasterioError, CPLE_BaseError) as error:
        advice = _advise_archive(text)
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
    """Read a file's description, as GDAL reports damage there only when it is read.

    Raises
    ------
    RasterReadError
        If it cannot be read.
    """
    try:
        src.tags()
        for name in ("crs", "transform", "nodatavals", "descriptions", "mask_flag_enums", "subdatasets", "colorinterp"):
            getattr(src, name)  # the last one raises what went wrong before
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError
        msg = f"{path} is damaged ({reason_of(error)}); copy or download it again"
        raise RasterReadError(msg) from error


def _require_one_raster(src: DatasetReader, path: str) -> None:
    """Refuse a file of several rasters, of which GDAL opens the first, or none."""
    inside = src.subdatasets
    if src.count > 0 and len(inside) < 2:
        return
    if not inside:
        msg = f"{path} holds no raster band; is it vector data?"
        raise InputError(msg)
    more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
    msg = (
        f"{path} holds several rasters; give the name of one of them in place of the file's: "
        f"{' '.join(inside[:_SHOWN])}{more} (or copy it out: gdal_translate NAME one.tif)"
    )
    raise InputError(msg)


def _require_grid(src: DatasetReader, path: str) -> None:
    """Refuse a raster whose place is only told by control points or a sensor model: its pixels are no grid."""
    if not src.transform.is_identity:
        return
    from landprior.raster.bands import find_bands  # which reads by this module

    points, _ = src.gcps
    if not points and src.rpcs is None:
        return
    # gdalwarp would take near infrared that is called alpha for one, and hide by it
    alpha = "-nosrcalpha -dstalpha" if find_bands(src).called_alpha else "-dstalpha"
    if points:
        msg = (
            f"{path} is located by {len(points)} ground control points only, so its pixels lie on no grid; warp it "
            f"first: gdalwarp -tps {alpha} {quote(path)} warped.tif"
        )
        raise InputError(msg)
    msg = (
        f"{path} is located by RPCs (a sensor model) only, so its pixels lie on no grid; warp it first: "
        f"gdalwarp -rpc {alpha} {quote(path)} warped.tif (more exact with -to RPC_DEM=dem.tif)"
    )
    raise InputError(msg)


def read_window(
    src: DatasetReader,
    window: Window | None = None,
    bands: Sequence[int] | int | None = None,
    *,
    shape: tuple[int, int] | None = None,
) -> NDArray[np.generic]:
    """Read pixels of an open raster.

    Parameters
    ----------
    src
        The open raster.
    window
        The pixels wanted; None for all.
    bands
        Numbers of bands, from 1; one number drops the axis of bands; None for all.
    shape
        Shrink to so many rows and columns, by overviews where the file has some.

    Returns
    -------
    ndarray
        (bands, H, W), or (H, W) of one band, as the file stores them.

    Raises
    ------
    RasterReadError
        If the file is truncated or damaged there; names the file and the place.
    """
    try:
        if shape is None:
            return np.asarray(src.read(bands, window=window))
        out = shape if isinstance(bands, int) else (len(bands or src.indexes), *shape)
        return np.asarray(src.read(bands, window=window, out_shape=out))
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise RasterReadError(_damaged(src, window, error)) from error


def read_shrunk(src: DatasetReader, side: int, bands: Sequence[int] | None = None) -> NDArray[np.generic]:
    """Read a raster for a picture, shrunk to fit a square.

    Parameters
    ----------
    src
        The open raster.
    side
        Rows and columns at most.
    bands
        Numbers of bands, from 1; None for all.

    Returns
    -------
    ndarray
        (bands, H, W), as the file stores them.

    Raises
    ------
    RasterReadError
        As :func:`read_window`.
    """
    step = max(1.0, max(src.shape) / side)
    shape = (max(1, round(src.height / step)), max(1, round(src.width / step)))
    return read_window(src, bands=list(bands or src.indexes), shape=shape)


def read_mask(src: DatasetReader, window: Window | None = None, band: int | None = 1) -> NDArray[np.bool_]:
    """Read a raster's mask, which may lie inside the file or beside it.

    Parameters
    ----------
    src
        The open raster.
    window
        The pixels wanted; None for all.
    band
        The band whose mask it is; None: a pixel counts where any band has data.

    Returns
    -------
    ndarray of bool
        Shape (H, W), True where there is data.

    Raises
    ------
    RasterReadError
        As :func:`read_window`.
    """
    try:
        found = src.dataset_mask(window=window) if band is None else src.read_masks(band, window=window)
        return np.asarray(found) > 0
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise RasterReadError(_damaged(src, window, error)) from error


def _damaged(src: DatasetReader, window: Window | None, error: BaseException) -> str:
    place = "" if window is None else f" at column {window.col_off:.0f}, row {window.row_off:.0f}"
    return f"{src.name} is damaged or truncated{place} ({reason_of(error)}); copy or download it again"


def place_of(index: NDArray[np.integer], window: Window | None) -> str:
    """Say where a pixel of a window lies: ``row 5, column 7`` of the whole raster, from 0."""
    top, left = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
    return f"row {int(index[-2]) + top}, column {int(index[-1]) + left}"
