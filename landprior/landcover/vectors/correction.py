"""Areas per polygon corrected for the errors of a map, by points interpreted within it and elsewhere.

Let m(k) be the mapped and y(k) the true class of pixel k, and p(j | m) the share of class j among the sampled points
mapped as m, weighted by the area that each point represents.

- *synthetic*: the sum over the map's classes of (mapped area in the polygon) p(j | m). It assumes that the map errs in
  the polygon as it does elsewhere. Its error has two parts: that of p, and how much error rates differ between polygons
  (Särndal, Swensson and Wretman 1992, "Model Assisted Survey Sampling", 10.7; Rao and Molina 2015, "Small Area
  Estimation", 3.2). The second part is measured by pairs of points in the same polygon: if their residuals are alike,
  polygons differ. Where there are too few pairs, or a polygon is much smaller than those with pairs, there is no
  interval.
- *assisted*: the synthetic area plus the polygon's area times the weighted mean residual 1[y = j] - p(j | m) of its own
  points. This is the generalised regression estimator for a domain, in its ratio form (Särndal et al. 1992, 10.6;
  Stehman 2009, "Model-assisted estimation as a unifying framework for estimating the area of land cover and land-cover
  change from remote sensing", Remote Sensing of Environment 113; McRoberts 2011, "Satellite image-based maps:
  Scientific inference or pretty pictures?", the same journal 115). It is nearly unbiased for each polygon. If a polygon
  is the whole map and the strata are its classes, it is the estimator of Olofsson et al. (2014, the same journal 148,
  eq. 9 to 11).

The variance of a few residuals is itself uncertain, and is 0 if none of them is wrong. So it is averaged with the
variance expected from the whole sample, which counts as :data:`PRIOR_POINTS` points, and intervals are Student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from landprior.landcover.assessment.estimation import Z95

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_POINTS = 20
"""Points in a polygon, counted by their weights, from which on the estimator uses them alone for the residual."""

PRIOR_POINTS = 15.0
"""Points that the variance expected from the whole sample counts for."""

LEAST_PAIRS = 200
"""Pairs of points in the same polygon that are needed to measure how much polygons differ."""

_CAUTION = 0.25
"""Standard errors added to the measured likeness of a polygon's residuals, which a few pairs show only roughly."""

_UNKNOWN = 0.01
"""Share of a polygon in map classes without a point above which its estimate has no interval."""

ASSISTED, SYNTHETIC, NONE = "assisted", "synthetic", "none"


@dataclass(frozen=True, kw_only=True)
class Members:
    """Which points lie in which polygons, each of shape (k,), by ascending polygon.

    Parameters
    ----------
    polygons, points
        Positions of a polygon and of a point in it.
    parts
        Part of the point's pixel within the polygon, 0 to 1.
    sizes
        Area of the polygon, in any unit.
    """

    polygons: NDArray[np.int64]
    points: NDArray[np.int64]
    parts: NDArray[np.float64]
    sizes: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CorrectedAreas:
    """Corrected areas of n polygons, in the unit of the mapped areas.

    Parameters
    ----------
    values, low, high
        Area and its 95 % interval, shape (n, C); NaN where nothing can be said.
    points
        Points in each polygon, shape (n,).
    estimators
        ``assisted``, ``synthetic`` or ``none``, shape (n,).
    """

    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    points: NDArray[np.int64]
    estimators: NDArray[np.object_]


class AreaCorrection:
    """Corrects the mapped areas of polygons.

    Parameters
    ----------
    mapped, reference
        Class positions of each point on the map and in truth, shape (n,).
    weights
        Area that each point represents, in any unit, shape (n,).
    count
        Number of classes, C.
    members
        The points in each polygon.
    """

    def __init__(
        self,
        mapped: NDArray[np.int64],
        reference: NDArray[np.int64],
        weights: NDArray[np.float64],
        count: int,
        *,
        members: Members,
    ) -> None:
        self._mapped, self._weights, self._members = mapped, weights, members
        self.shares, self.known, self._spread, self._effective = _fit_shares(mapped, reference, weights, count)
        self._residuals = np.eye(count)[reference] - self.shares[mapped]
        self.alike, self.pairs, self._smallest = self._measure_likeness()

    def _measure_likeness(self) -> tuple[NDArray[np.float64], float, float]:
        """Return the correlation of residuals within polygons by class, the number of pairs, and the least size."""
        at, w = self._members, self._weights[self._members.points] * self._members.parts
        starts = np.flatnonzero(np.diff(at.polygons, prepend=-1))
        count = self.shares.shape[0]
        if len(starts) == 0:
            return np.full(count, np.nan), 0.0, np.inf
        spread = self._spread[self._mapped[at.points]]

        def pair_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
            sums, squares = (np.add.reduceat(part, starts, axis=0) for part in (values, values**2))
            return np.asarray((sums**2 - squares) / 2, dtype=np.float64)

        products = pair_sums(w[:, None] * self._residuals[at.points] * np.sqrt(spread))
        most = pair_sums(w[:, None] * spread)
        own = pair_sums(w[:, None])[:, 0]
        squares = pair_sums(w[:, None] ** 2)[:, 0]
        pairs = float(own.sum() ** 2 / squares.sum()) if squares.sum() > 0 else 0.0
        if pairs < LEAST_PAIRS:
            return np.full(count, np.nan), pairs, np.inf
        # shares are fitted to the same points, which makes residuals repel each other a little
        fitted = 1 / len(self._mapped)
        alike = np.maximum(products.sum(axis=0) / most.sum(axis=0), products.sum() / most.sum()) + fitted
        alike += _CAUTION / np.sqrt(pairs)
        order = np.argsort(at.sizes[starts])
        ranked = np.cumsum(own[order]) / own.sum()
        smallest = float(at.sizes[starts][order][np.searchsorted(ranked, 0.1)])
        return np.clip(alike, 0, 1), pairs, smallest

    def estimate(self, first: int, areas: NDArray[np.float64]) -> CorrectedAreas:
        """Estimate the areas of some polygons.

        Parameters
        ----------
        first
            Position of the first of them.
        areas
            Mapped areas by class, shape (n, C).

        Returns
        -------
        CorrectedAreas
            Areas in the same unit, with intervals.
        """
        n = len(areas)
        whole = areas.sum(axis=1)
        limit = np.where(whole > 0, whole, np.nan)[:, None]
        values = areas @ self.shares
        sampling = (areas**2) @ (self._spread / self._effective[:, None])
        differing = (areas @ np.sqrt(self._spread)) ** 2 * self.alike
        variances = sampling + differing
        variances[whole < self._smallest / 2] = np.nan
        reach = np.full((n, 1), Z95)
        estimators = np.full(n, SYNTHETIC, dtype=object)
        points = np.zeros(n, dtype=np.int64)
        at = self._members
        begin, end = np.searchsorted(at.polygons, (first, first + n))
        starts = begin + np.flatnonzero(np.diff(at.polygons[begin:end], prepend=-1))
        for start, stop in pairwise([*starts.tolist(), int(end)]):
            row = int(at.polygons[start]) - first
            points[row] = stop - start
            inside = at.points[start:stop]
            w = self._weights[inside] * at.parts[start:stop]
            if w.sum() == 0 or w.sum() ** 2 / (w**2).sum() < LEAST_POINTS:
                continue
            mean, variance, freedom = self._mean_residual(inside, w)
            estimators[row] = ASSISTED
            values[row] += whole[row] * mean
            variances[row] = whole[row] ** 2 * variance
            reach[row] = stdtrit(freedom, 0.975)
        unknown = areas[:, ~self.known].sum(axis=1) > _UNKNOWN * whole
        variances[unknown] = np.nan
        estimators[whole <= 0] = NONE
        values = np.clip(values, 0, limit)
        margins = reach * np.sqrt(variances)
        low, high = (np.clip(ends, 0, limit) for ends in (values - margins, values + margins))
        return CorrectedAreas(values=values, low=low, high=high, points=points, estimators=estimators)

    def _mean_residual(
        self, inside: NDArray[np.int64], w: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return the weighted mean residual of a polygon's points by class, its variance, and degrees of freedom."""
        residuals, n = self._residuals[inside], len(inside)
        share = (w / w.sum())[:, None]
        mean = (share * residuals).sum(axis=0)
        own = (share**2 * (residuals - mean) ** 2).sum(axis=0) * n / (n - 1)
        expected = (share**2 * self._spread[self._mapped[inside]]).sum(axis=0)
        effective = float(1 / (share**2).sum())
        variance = (effective * own + PRIOR_POINTS * expected) / (effective + PRIOR_POINTS)
        return mean, variance, effective - 1 + PRIOR_POINTS


def _fit_shares(
    mapped: NDArray[np.int64], reference: NDArray[np.int64], weights: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Return shares of true classes by map class (C, C), which are known (C,), variances (C, C) and points (C,)."""
    table = np.zeros((count, count))
    np.add.at(table, (mapped, reference), weights)
    whole = table.sum(axis=1)
    known = whole > 0
    shares = np.where(known[:, None], table / np.where(known, whole, 1)[:, None], np.eye(count))
    squares = np.bincount(mapped, weights=weights**2, minlength=count)
    effective = np.where(known, whole**2 / np.where(known, squares, 1), 1.0)
    # half a point of either kind, so that the variance is not 0 where all points agree
    smooth = (shares * effective[:, None] + 0.5) / (effective[:, None] + 1)
    return shares, known, smooth * (1 - smooth), effective
