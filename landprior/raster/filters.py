"""Separable filters as matrices: one product per axis, exact at any window.

A separable filter of a window is ``rows @ values @ columns.T`` where each matrix holds the filter's
weights for the output pixels, with reflection at the edges of the raster included. So a window gives the same
result as the whole raster (up to rounding), fractional widths are just other weights, and the work is a dense
matrix product, which processors do fastest. On 2,000 x 2,000 px the 101-tap blur of five classes is tens of times
faster than a 2-D convolution.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def gaussian_taps(sigma: float, radius: float, pixel: float = 1.0) -> NDArray[np.float64]:
    """Return the normalised weights of a truncated Gaussian.

    Parameters
    ----------
    sigma, radius
        Standard deviation and half width of the cut, in metres. The paper: 31 and 50.
    pixel
        Pixel size in metres. At 1 m the taps are those of ``torchvision``'s ``GaussianBlur(101, 31)``.

    Returns
    -------
    ndarray of float64
        Weights of offsets -n..n, sum 1.

    Raises
    ------
    InputError
        If sigma is not positive, or the radius negative.
    """
    if not (sigma > 0 and radius >= 0):
        msg = f"the blur needs sigma > 0 and radius >= 0 (metres), not {sigma} and {radius}"
        raise InputError(msg)
    cut = box_taps(2 * radius + pixel, pixel)
    offsets = (np.arange(cut.size) - cut.size // 2) * pixel
    taps = cut * np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(taps / taps.sum(), dtype=np.float64)


def box_taps(width: float, pixel: float = 1.0) -> NDArray[np.float64]:
    """Return the normalised weights of a box mean, with the edge pixels weighted by their share.

    Parameters
    ----------
    width
        Full width in metres (the paper's 9 x 9 px at 1 m is 9).
    pixel
        Pixel size in metres; a box narrower than a pixel becomes one pixel.

    Returns
    -------
    ndarray of float64
        Weights of offsets -n..n, sum 1.
    """
    half = (max(width / pixel, 1.0) - 1) / 2
    n = int(np.ceil(half - 1e-9))
    taps = np.ones(2 * n + 1)
    if n:
        taps[0] = taps[-1] = half - (n - 1)
    return np.asarray(taps / taps.sum(), dtype=np.float64)


def axis_matrix(
    taps: NDArray[np.float64], *, size: int, out: tuple[int, int], source: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the matrix that filters one axis of a window.

    Parameters
    ----------
    taps
        Weights of offsets -n..n.
    size
        Length of the whole axis; beyond its ends the signal is reflected without repeating the edge
        (``numpy.pad(mode="reflect")``, as often as needed).
    out
        First and one-past-last position of the output.
    source
        First and one-past-last position of the input; must include every position the output needs.

    Returns
    -------
    ndarray of float32, shape (out length, source length)
    """
    n = taps.size // 2
    if out[0] - n >= source[0] and out[1] + n <= source[1]:  # no reflection: all such windows have the same matrix
        length = source[1] - source[0]
        return _axis_matrix(taps.tobytes(), length, (out[0] - source[0], out[1] - source[0]), (0, length))
    return _axis_matrix(taps.tobytes(), size, out, source)


@lru_cache(maxsize=32)
def _axis_matrix(weights: bytes, size: int, out: tuple[int, int], source: tuple[int, int]) -> NDArray[np.float32]:
    """Compute :func:`axis_matrix`; the windows of a raster need only a few."""
    taps = np.frombuffer(weights)
    n = taps.size // 2
    positions = np.arange(out[0], out[1])[:, None] + np.arange(-n, n + 1)[None, :]
    period = max(2 * (size - 1), 1)
    folded = np.abs(positions) % period
    folded = np.where(folded > size - 1, period - folded, folded) - source[0]
    if folded.min() < 0 or folded.max() >= source[1] - source[0]:
        msg = f"filtering positions {out} needs more than positions {source}"
        raise ValueError(msg)
    matrix = np.zeros((out[1] - out[0], source[1] - source[0]))
    rows = np.broadcast_to(np.arange(matrix.shape[0])[:, None], folded.shape)
    np.add.at(matrix, (rows, folded), np.broadcast_to(taps, folded.shape))
    return matrix.astype(np.float32)


BAND = 64
"""Outputs computed at once: few enough to skip most of the zeros of the matrix."""


def filter_window(
    values: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Apply a filter to the last two axes of ``values``: ``rows @ values @ columns.T``.

    Parameters
    ----------
    values
        Shape (..., H, W).
    rows, columns
        The filter along each axis as a banded matrix, (h, H) and (w, W).

    Returns
    -------
    ndarray of float32
        Shape (..., h, w).
    """
    *channels, height, width = values.shape
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, width)
    across = np.empty((flat.shape[0], columns.shape[0]), dtype=np.float32)
    for out, source, part in _bands(columns):
        across[:, out] = flat[:, source] @ part.T
    stacked = across.reshape(-1, height, columns.shape[0])
    down = np.empty((stacked.shape[0], rows.shape[0], columns.shape[0]), dtype=np.float32)
    for out, source, part in _bands(rows):
        for channel, result in zip(stacked, down, strict=True):
            np.matmul(part, channel[source], out=result[out])
    return down.reshape(*channels, rows.shape[0], columns.shape[0])


def _bands(matrix: NDArray[np.float32]) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
    """Cut the matrix of an axis into runs of rows, each with the columns that are not zero there."""
    for start in range(0, matrix.shape[0], BAND):
        out = slice(start, min(start + BAND, matrix.shape[0]))
        used = np.flatnonzero(matrix[out].any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        yield out, source, np.ascontiguousarray(matrix[out, source])
