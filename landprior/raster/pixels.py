"""Reading pixels of open rasters by windows, with errors that name the file and the place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from landprior.errors import RasterReadError
from landprior.raster.outputs import reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window


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
        The window to read; None for all.
    bands
        Numbers of bands, from 1; one number drops the axis of bands; None for all.
    shape
        Number of rows and columns to reduce to, using overviews if the file has them.

    Returns
    -------
    ndarray
        (bands, H, W), or (H, W) of one band, as the file stores them.

    Raises
    ------
    RasterReadError
        If the file is truncated or damaged there; the message names the file and the place.
    """
    try:
        if shape is None:
            return np.asarray(src.read(bands, window=window))
        out = shape if isinstance(bands, int) else (len(bands or src.indexes), *shape)
        return np.asarray(src.read(bands, window=window, out_shape=out))
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise RasterReadError(_damaged(src, window, error)) from error


def read_shrunk(src: DatasetReader, side: int, bands: Sequence[int] | None = None) -> NDArray[np.generic]:
    """Read a raster reduced to fit into a square, for a picture.

    Parameters
    ----------
    src
        The open raster.
    side
        Maximum number of rows and columns.
    bands
        Numbers of bands, from 1; None for all.

    Returns
    -------
    ndarray
        (bands, H, W), as the file stores them.

    Raises
    ------
    RasterReadError
        See :func:`read_window`.
    """
    step = max(1.0, max(src.shape) / side)
    shape = (max(1, round(src.height / step)), max(1, round(src.width / step)))
    return read_window(src, bands=list(bands or src.indexes), shape=shape)


def read_mask(src: DatasetReader, window: Window | None = None, band: int | None = 1) -> NDArray[np.bool_]:
    """Read a raster's mask, which may lie inside the file or beside it.

    Parameters
    ----------
    src, window
        See :func:`read_window`.
    band
        Band of the mask; None: a pixel is valid if any band has data.

    Returns
    -------
    ndarray of bool
        Shape (H, W), True where there is data.

    Raises
    ------
    RasterReadError
        See :func:`read_window`.
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
    """Return the place of a pixel of a window, such as ``row 5, column 7``, in the whole raster, from 0."""
    top, left = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
    return f"row {int(index[-2]) + top}, column {int(index[-1]) + left}"
