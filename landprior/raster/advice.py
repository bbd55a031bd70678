"""Commands suggested in messages, ready to be pasted into a shell."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from landprior.raster.names import quote, split_band

_SHOWN = 8
"""Maximum number of an archive's rasters listed in a message."""


def advise_nodata(path: str | Path, value: float | str | None) -> str:
    """Return the command that sets or unsets the nodata value of a raster.

    Parameters
    ----------
    path
        The raster.
    value
        The nodata value, as a number or placeholder; None to unset it.

    Returns
    -------
    str
        A command of GDAL or rasterio.
    """
    text = value if isinstance(value, str) else "none" if value is None else _write_number(value)
    option = "--unset-nodata" if value is None else f"--nodata {text}"
    return _advise(path, option, f"-a_nodata {text}")


def advise_crs(path: str | Path, crs: str = "EPSG:CODE") -> str:
    """Return the command that assigns a CRS to a raster without changing its pixels."""
    return _advise(path, f"--crs {crs}", f"-a_srs {crs}")


def advise_extent(path: str | Path) -> str:
    """Return the command that copies a raster and gives the copy a new extent; its pixels stay as they are."""
    return f"gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM {quote(split_band(path)[0])} fixed.tif"


def advise_archive(text: str) -> str:
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


def _advise(path: str | Path, edit: str, translate: str) -> str:
    """Choose the command: a plain GeoTIFF is edited; anything else is copied, as GDAL cannot edit all formats."""
    name = quote(split_band(path)[0])
    if _is_plain(path):
        return f"rio edit-info {edit} {name}"
    return f"gdal_translate {translate} {name} fixed.tif"


def _write_number(value: float) -> str:
    """Return a number with as few digits as a float of 32 bits needs, if it is one."""
    short = f"{value:.9g}"
    return short if value in (float(short), float(np.float32(short))) else f"{value:.17g}"


def _is_plain(path: str | Path) -> bool:
    """Say whether a raster is a GeoTIFF that can be edited; GDAL refuses to edit COGs."""
    text, _ = split_band(path)
    if not Path(text).exists():  # only a name
        return True
    try:
        with rasterio.open(text) as src:
            wide = src.count > 0 and src.dtypes[0] in ("int64", "uint64")  # rio writes -9 for their smallest value
            return src.driver == "GTiff" and not wide and src.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") != "COG"
    except (RasterioError, CPLE_BaseError, OSError, ValueError):
        return False
