"""Labelled points, and scoring how well a map's probabilities order them.

A map that only repeats the density of blocks already orders points of different blocks well. Its additional information
shows *within* blocks: the share of pairs of a positive and a negative point in the same block that are ordered
correctly (ties count half). The chance level is 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.domains.density.blocks import match_images, read_table, require_numbers
from landprior.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from landprior.raster.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Points:
    """Labelled points of an image.

    Parameters
    ----------
    rows, columns
        Pixel of each point, int64, shape (N,).
    places
        x to the right and y down, in pixels, shape (N, 2).
    positive
        Whether each point is of the target, shape (N,).
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    places: NDArray[np.float64]
    positive: NDArray[np.bool_]


def read_points(
    path: str | Path, grids: Mapping[str, Grid], *, positive: Collection[str], ignored: Collection[str] = ()
) -> dict[str, Points]:
    """Read a CSV ``image,x,y,type``; x to the right and y down, in pixels from the top left corner.

    Parameters
    ----------
    path
        The table.
    grids
        Grids of the images, by file name.
    positive
        Types that are the target; all others are not.
    ignored
        Types to leave out.

    Returns
    -------
    dict
        Points by image; images without any are left out.

    Raises
    ------
    MissingInputError, InputError
        If the table cannot be used, does not match the images, has a point outside one, or no point of these types.
    """
    table = read_table(path, ("image", "x", "y", "type"))
    require_numbers(table, ("x", "y"), path, whole=False)
    there = sorted(set(table["type"]))
    for name in (*positive, *ignored):
        if name not in there:
            msg = f"{path} has no point of type {name!r}; it has {', '.join(there)}"
            raise InputError(msg)
    table = table[~table["type"].isin(list(ignored))]
    found = {}
    for file, rows in match_images(table, list(grids), path).items():
        places = rows[["x", "y"]].to_numpy(dtype=float)
        height, width = grids[file].shape
        # a point on the right or bottom edge belongs to the last pixel
        outside = (places < 0).any(axis=1) | (places > (width, height)).any(axis=1)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            x, y = places[at]
            msg = f"{path}, line {rows.index[at]}: ({x:g}, {y:g}) is outside {file} ({width} x {height} px)"
            raise InputError(msg)
        pixels = np.minimum(places.astype(np.int64), (width - 1, height - 1))
        found[file] = Points(
            rows=pixels[:, 1],
            columns=pixels[:, 0],
            places=places,
            positive=rows["type"].isin(list(positive)).to_numpy(),
        )
    return found


def area_under_curve(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: P(a positive scores above a negative), ties half; NaN without both.

    Parameters
    ----------
    scores, positive
        Scores and labels of the points, shape (N,).

    Returns
    -------
    float
        The area, from 0 to 1; 0.5 by chance.
    """
    right, pairs = _count_right(scores, positive)
    return right / pairs if pairs else float("nan")


def _count_right(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> tuple[float, int]:
    """Count pairs of a positive and a negative, and the correctly ordered ones (the U of Mann and Whitney)."""
    from scipy.stats import rankdata

    some = int(positive.sum())
    pairs = some * (len(positive) - some)
    if not pairs:
        return 0.0, 0
    return float(rankdata(scores)[positive].sum()) - some * (some + 1) / 2, pairs


@dataclass(frozen=True, kw_only=True)
class PointScores:
    """Scores of the order of points.

    Parameters
    ----------
    overall
        Area under the ROC curve over all points; NaN unless there are both kinds.
    within
        Share of correctly ordered pairs within blocks; NaN if no block has both kinds.
    points, positives
        Number of points, and of points of the target.
    blocks, pairs
        Number of blocks with both kinds, and of pairs in them.
    """

    overall: float
    within: float
    points: int
    positives: int
    blocks: int
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as a dictionary for JSON; NaN becomes None."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in vars(self).items()}


def score_points(scores: NDArray[np.floating], positive: NDArray[np.bool_], blocks: NDArray[np.integer]) -> PointScores:
    """Score how well the target's points are separated from others, overall and within blocks.

    Parameters
    ----------
    scores
        Larger for the target, shape (N,).
    positive
        Which points are of the target, shape (N,).
    blocks
        The block of each point, as a unique number, shape (N,).

    Returns
    -------
    PointScores
        Areas under the curve.
    """
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.diff(blocks[order])) + 1
    right, pairs, count = 0.0, 0, 0
    for group in np.split(order, starts):
        some, all_ = _count_right(scores[group], positive[group])
        right, pairs, count = right + some, pairs + all_, count + (all_ > 0)
    return PointScores(
        overall=area_under_curve(scores, positive),
        within=right / pairs if pairs else float("nan"),
        points=len(scores),
        positives=int(positive.sum()),
        blocks=count,
        pairs=pairs,
    )


class PointSink:
    """Collect the values of a raster at points, window by window; a sink for :func:`landprior.raster.windows.stream`.

    Parameters
    ----------
    points
        Points to collect values at.
    bands
        Bands of the windows, from 0.
    """

    def __init__(self, points: Points, bands: Sequence[int]) -> None:
        self._points, self._bands = points, list(bands)
        self.values = np.full((len(self._bands), len(points.rows)), np.nan)
        """Values at the points, shape (bands, N); NaN where no window was written."""

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:
        """Collect values from a window, shape (bands, H, W)."""
        top, left = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
        rows, columns = self._points.rows - top, self._points.columns - left
        here = (rows >= 0) & (rows < values.shape[1]) & (columns >= 0) & (columns < values.shape[2])
        self.values[:, here] = values[self._bands][:, rows[here], columns[here]]
