"""Opening rasters and putting results in place, with errors that say what to do."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from landprior.errors import (
    GridMismatchError,
    InputError,
    RasterReadError,
)
from landprior.inputs import check_file
from landprior.raster.grid import Grid, require_same_grid
from landprior.raster.outputs import check_output, reason_of, replacing
from landprior.raster.scheme import MAP_NODATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

    from landprior.raster.scheme import ClassScheme

__all__ = [  # with what is defined in outputs.py
    "GDAL_CACHE_BYTES",
    "check_output",
    "gdal_cores",
    "local_grids_allowed",
    "open_on_grid",
    "open_raster",
    "read_classes",
    "read_valid",
    "read_window",
    "replacing",
]

GDAL_CACHE_BYTES = 64 * 2**20
"""GDAL's block cache while landprior streams a raster. Its own default is 5 % of the machine's memory."""


def gdal_cores() -> str:
    """Return on how many cores GDAL may work: what an outer ``rasterio.Env`` or the environment says, or all."""
    outer = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    return str(outer.get("GDAL_NUM_THREADS") or os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS"))


def open_raster(path: str | Path) -> DatasetReader:
    """Open a raster for reading.

    Raises
    ------
    MissingInputError
        If there is no such file.
    RasterReadError
        If it is a folder, or no raster that GDAL can read.
    """
    text = str(path)
    if "://" not in text and not text.startswith("/vsi"):
        check_file(text, what="raster file", error=RasterReadError)
    try:
        with local_grids_allowed(), rasterio.Env(GDAL_NUM_THREADS=gdal_cores()):  # decompress on them
            return rasterio.open(text)
    except RasterioError as error:
        msg = f"{text} cannot be read as a raster ({reason_of(error)}); is it complete, and a GeoTIFF?"
        raise RasterReadError(msg) from error


@contextmanager
def open_on_grid(path: str | Path, grid: Grid, *, like: str | Path) -> Iterator[DatasetReader]:
    """Open a raster of classes on a grid, warping it by nearest neighbour as it is read if need be.

    Parameters
    ----------
    path
        The raster.
    grid
        The grid wanted.
    like
        The file that has this grid, for messages.

    Raises
    ------
    GridMismatchError
        If the grids differ and a CRS is missing, so that nothing can be warped, or nothing overlaps.
    """
    with open_raster(path) as src:
        own = Grid.of(src)
        if own.matches(grid):
            yield src
            return
        if own.crs is None or grid.crs is None:
            require_same_grid(grid, own, names=(str(like), str(path)))
        left, bottom, right, top = transform_bounds(own.crs, grid.crs, *own.bounds)
        wanted = grid.bounds
        if right <= wanted.left or left >= wanted.right or top <= wanted.bottom or bottom >= wanted.top:
            boxes = f"{_box(left, bottom, right, top)} and {_box(*wanted)}"
            msg = f"{path} and {like} do not overlap: {boxes} in {like}'s CRS; give files of one place"
            raise GridMismatchError(msg)
        # Without a nodata value every code counts, 0 too: then an alpha band says how far the raster reaches.
        ends: dict[str, Any] = {}
        if src.nodata is not None:
            ends = {"src_nodata": src.nodata, "nodata": src.nodata}
        elif ColorInterp.alpha not in src.colorinterp:
            ends = {"add_alpha": True}
        left, _, right, _ = transform_bounds(grid.crs, own.crs, *grid.bounds)
        cell_pixels = grid.width * math.sqrt(abs(own.transform.determinant)) / (right - left)
        with WarpedVRT(
            src,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            tolerance=0.125 / max(cell_pixels, 1.0),  # GDAL counts in the raster's pixels; meant are the grid's
            **ends,
        ) as warped:
            yield warped


def _box(left: float, bottom: float, right: float, top: float) -> str:
    return f"({left:.6g}, {bottom:.6g}, {right:.6g}, {top:.6g})"


def read_window(
    src: DatasetReader, window: Window | None = None, bands: Sequence[int] | int | None = None
) -> NDArray[np.generic]:
    """Read pixels of an open raster.

    Raises
    ------
    RasterReadError
        If the file is truncated or damaged there; names the file and the place.
    """
    try:
        return np.asarray(src.read(bands, window=window))
    except (RasterioError, OSError) as error:
        place = "" if window is None else f" at column {window.col_off:.0f}, row {window.row_off:.0f}"
        msg = f"{src.name} is damaged or truncated{place} ({reason_of(error)}); copy or download it again"
        raise RasterReadError(msg) from error


def read_valid(src: DatasetReader, window: Window | None = None) -> NDArray[np.bool_]:
    """Say where an open raster has data (its nodata value, alpha or mask band), shape (H, W)."""
    try:
        return np.asarray(src.dataset_mask(window=window)) > 0
    except (RasterioError, OSError) as error:
        msg = f"{src.name} is damaged or truncated ({reason_of(error)}); copy or download it again"
        raise RasterReadError(msg) from error


def read_classes(
    src: DatasetReader,
    window: Window | None,
    scheme: ClassScheme,
    *,
    codes: Mapping[int, int] | None,
    where: str | Path,
) -> NDArray[np.int16]:
    """Read a raster of class codes as class positions, -1 where there is no data.

    Parameters
    ----------
    src, window
        An open raster and the pixels wanted; None for all.
    scheme
        The classes.
    codes
        Codes of the raster -> codes of the scheme, see :meth:`ClassScheme.encode`.
    where
        What the raster is called in an error.

    Raises
    ------
    InputError
        If it does not hold integers.
    SchemeError
        If it has codes the scheme does not know.
    """
    values = read_window(src, window, 1)
    if values.dtype.kind not in "iu":
        msg = f"{where} holds {values.dtype} numbers, not class codes; is it a prior or probabilities?"
        raise InputError(msg)
    known = np.where(read_valid(src, window), values.astype(np.int64), MAP_NODATA)
    return scheme.encode(known, label_map=codes, where=str(where))


@contextmanager
def local_grids_allowed() -> Iterator[None]:
    """Silence rasterio's remark on missing georeferencing; Grid.pixel_size says it where it matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
