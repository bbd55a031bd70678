"""Data bands and valid pixels of a raster: one rule for every reader.

A pixel is valid if no alpha band is 0, the mask (inside the file, or a ``.msk`` beside it) is not 0, its values are
not the file's nodata value, and none is NaN or infinite, whatever the file declares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from landprior.raster.pixels import read_mask, read_window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

_FULL = (1, 255, 1023, 2047, 4095, 8191, 16383, 32767, 65535, 2**31 - 1, 2**32 - 1)
"""Values of full opacity, by data type and by the sensor's bit depth."""

_OPAQUE = 0.5
"""Minimum share of fully opaque pixels among those an alpha band does not hide; infrared is rarely at its maximum."""

_SIDE = 64
_HUGE = 1e30
"""Bound of measured values; nodata values may be larger."""

_SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, 1e20, 9.969209968386869e36)
"""Values that usually mean no data even if undeclared; so do huge values."""


@dataclass(frozen=True, kw_only=True)
class Bands:
    """The bands of a raster, by number from 1.

    Parameters
    ----------
    data
        Bands that contain data, in the file's order.
    alpha
        Bands that mark valid pixels: 0 where there is no data.
    nodata
        Nodata value of each data band, None if it has none (or one its type cannot represent).
    masked
        Whether the file has a mask, inside or beside it.
    called_alpha
        Data bands that the file declares as alpha.
    """

    data: tuple[int, ...]
    alpha: tuple[int, ...] = ()
    nodata: tuple[float | None, ...] = ()
    masked: bool = False
    called_alpha: tuple[int, ...] = ()

    def find_valid(
        self, src: DatasetReader, values: NDArray[np.generic], window: Window | None = None
    ) -> NDArray[np.bool_]:
        """Say which pixels are valid.

        Parameters
        ----------
        src
            The open raster.
        values
            Its data bands in the window, shape (B, H, W).
        window
            The window; None for the whole raster.

        Returns
        -------
        ndarray of bool, shape (H, W)
        """
        valid = ~match_nodata(values, self.nodata)
        if values.dtype.kind in "fc":
            valid &= np.isfinite(values).all(axis=0)
        for index in self.alpha:
            valid &= read_window(src, window, index) != 0
        if self.masked:
            valid &= read_mask(src, window, self.data[0])
        return valid


def find_bands(src: DatasetReader, *, due: int | None = None, band: int | None = None) -> Bands:
    """Find which bands of an open raster are data and what marks its valid pixels.

    Many 4-band NAIP files declare near infrared as alpha (GDAL's default for four bands of bytes). A
    band declared as alpha is treated as one only if it looks like one: mostly opaque where it is not 0; soft edges do
    not matter.

    Parameters
    ----------
    src
        The raster.
    due
        Expected number of data bands, if known (for a prior): if the file has exactly that many, all are data.
    band
        The only data band to read, if any.

    Returns
    -------
    Bands
        The numbers of the data bands, from 1, and what marks valid pixels.
    """
    called = [i for i, kind in enumerate(src.colorinterp, start=1) if kind == ColorInterp.alpha]
    if due is not None and src.count == due:
        alpha: tuple[int, ...] = ()
    else:
        alpha = tuple(i for i in called if i != band and src.count > 1 and _is_mask(src, i))
    data = (band,) if band is not None else tuple(i for i in range(1, src.count + 1) if i not in alpha)
    if not data:  # nothing but alpha
        data, alpha = (1,), tuple(i for i in alpha if i != 1)
    flags = src.mask_flag_enums[data[0] - 1]
    return Bands(
        data=data,
        alpha=alpha,
        nodata=tuple(usable_nodata(src.nodatavals[i - 1], src.dtypes[i - 1]) for i in data),
        masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        called_alpha=tuple(i for i in called if i in data and src.count > 1),
    )


def _is_mask(src: DatasetReader, index: int) -> bool:
    """Return whether a band declared as alpha looks like one: in sixteen windows, or everywhere if those are all 0."""
    height, width = src.shape
    seen: set[float] = set()
    full = visible = 0
    tops = np.unique(np.linspace(0, max(height - _SIDE, 0), 4).astype(int)).tolist()
    lefts = np.unique(np.linspace(0, max(width - _SIDE, 0), 4).astype(int)).tolist()
    samples = [Window(left, top, min(_SIDE, width), min(_SIDE, height)) for top in tops for left in lefts]
    rest = (Window(0, top, width, min(512, height - top)) for top in range(0, height, 512))
    for windows in (samples, rest):
        found: list[NDArray[np.generic]] = []
        for window in windows:
            values = read_window(src, window, index)
            values = values[values != 0]
            if values.size:
                found.append(values)
            if found and windows is not samples:
                break
        if found:
            shown = np.concatenate(found)
            seen, visible = set(np.unique(shown[: 2**16]).tolist()), shown.size
            top_value = shown.max()
            full = int((shown == top_value).sum()) if float(top_value) in _FULL else 0
            break
    return visible == 0 or len(seen) == 1 or full >= _OPAQUE * visible


def usable_nodata(value: float | None, dtype: str | np.dtype[Any]) -> float | None:
    """Return a nodata value as represented in a data type; None if it cannot be: -99 and NaN never occur in bytes."""
    kind = np.dtype(dtype)
    if value is None or kind.kind == "c":
        return None
    if kind.kind in "iu":
        if not math.isfinite(value) or value != int(value):
            return None
        limits = np.iinfo(kind)
        return int(value) if limits.min <= int(value) <= limits.max else None
    if math.isnan(value) or math.isinf(value):
        return float(value)
    ends = np.finfo(kind)
    return float(kind.type(min(max(value, float(ends.min)), float(ends.max))))


def match_nodata(values: NDArray[np.generic], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Return which pixels have no data, by their values.

    A value such as 0 or 255 may be measured, so all bands with a nodata value must have it. A negative
    or huge value is never measured (except in int8), nor is NaN: one band is enough.

    Parameters
    ----------
    values
        Shape (B, H, W).
    nodata
        Nodata value of each band; None if it has none.

    Returns
    -------
    ndarray of bool, shape (H, W)
    """
    found = np.zeros(values.shape[1:], dtype=bool)
    everywhere: NDArray[np.bool_] | None = None
    for band, value in zip(values, nodata, strict=True):
        if value is None:
            continue
        hit = _equals(band, value)
        if math.isnan(value) or abs(value) >= _HUGE or (value < 0 and values.dtype != np.int8):
            found |= hit
        everywhere = hit if everywhere is None else everywhere & hit
    return found if everywhere is None else found | everywhere


def _equals(band: NDArray[Any], value: float) -> NDArray[np.bool_]:
    if math.isnan(value):
        return np.asarray(np.isnan(band))
    if abs(value) >= _HUGE and math.isfinite(value):  # tags store them rounded
        return np.asarray(band <= value * 0.9999 if value < 0 else band >= value * 0.9999)
    return np.asarray(band == value)


def find_sentinel(values: NDArray[np.generic], valid: NDArray[np.bool_]) -> tuple[float, NDArray[np.integer]] | None:
    """Find a valid pixel that has, in all bands, a value that usually means no data.

    Parameters
    ----------
    values, valid
        Shapes (B, H, W) and (H, W).

    Returns
    -------
    value : float
    index : ndarray of int, shape (2,)
        Row and column. None instead of both if there is no such pixel.
    """
    if values.dtype.kind not in "if" or values.dtype == np.int8:
        return None
    first = values[0]
    odd = np.isin(first, np.array(_SENTINELS, dtype=values.dtype if values.dtype.kind == "f" else np.float64))
    if values.dtype.kind == "f":
        odd |= np.abs(first) >= _HUGE
    odd &= valid & (values == first).all(axis=0)
    if not odd.any():
        return None
    index = np.argwhere(odd)[0]
    return float(first[tuple(index)]), index
