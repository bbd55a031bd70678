"""Fitting a head to labelled points by penalised maximum likelihood, with the penalty chosen by cross-validation.

The penalty is Gaussian: it pulls W towards the identity on log q and log p and towards 0 on the statistics of the
image, and b towards 0, at which the head gives r. Without points it stays r, with many it is a classifier of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from landprior.landcover.training.head import Head

LEAST_POINTS = 10
"""Fewer points than this are not enough to fit a head."""

BIAS_PULL = 0.25
"""Penalty on b as a share of that on W."""

RIDGES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Penalties to choose from."""

USUAL_RIDGE, RIDGE_SPREAD = 3.0, 1.0
"""The penalty that does well on all places, and how far from it (standard deviation of its log) a place may be: the
likelihood of thirty points alone would pick extremes by chance. Chosen on Durham, Ohio and the demo scene."""

FOLDS = 10
"""Groups of points, each left out of one fit of the cross-validation."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """Labelled points as a head sees them.

    Parameters
    ----------
    features
        Shape (F, n), finite.
    classes
        Class positions, (n,).
    shares
        Area that each point represents, (n,); only ratios matter.
    groups
        Group of neighbouring points that each belongs to, (n,), from 0 (:func:`group`).
    """

    features: NDArray[np.float64]
    classes: NDArray[np.intp]
    shares: NDArray[np.float64]
    groups: NDArray[np.intp]

    def take(self, chosen: NDArray[np.bool_]) -> Labelled:
        """Return some of the points."""
        return Labelled(
            features=self.features[:, chosen],
            classes=self.classes[chosen],
            shares=self.shares[chosen],
            groups=self.groups[chosen],
        )


def fit(points: Labelled, start: Head, ridge: float) -> Head:
    """Fit a head, which is a convex problem.

    Parameters
    ----------
    points
        The points.
    start
        The head towards which the penalty pulls.
    ridge
        Strength of the penalty, above 0.

    Returns
    -------
    Head
        ``start`` itself if there are no points.
    """
    from scipy.optimize import minimize

    number, count = len(points.classes), len(start.bias)
    if not number:
        return start
    share = points.shares * number / points.shares.sum()
    chosen = np.zeros((count, number))
    chosen[points.classes, np.arange(number)] = 1
    inputs = np.vstack([points.features, np.ones(number)])
    middle = np.hstack([start.weights, start.bias[:, None]])
    pull = np.full(middle.shape[1], ridge)
    pull[-1] *= BIAS_PULL

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        away = x.reshape(middle.shape)
        log_shares = _log_softmax((middle + away) @ inputs)
        loss = -(share * (chosen * log_shares).sum(axis=0)).sum() + 0.5 * (pull * away**2).sum()
        slope = ((np.exp(log_shares) - chosen) * share) @ inputs.T + pull * away
        return float(loss), slope.ravel()

    found = minimize(objective, np.zeros(middle.size), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    fitted = middle + found.x.reshape(middle.shape)
    return replace(start, weights=fitted[:, :-1], bias=fitted[:, -1])


def choose_ridge(points: Labelled, start: Head) -> float:
    """Choose the penalty by the likelihood of each group of points under a head that was fitted without it.

    A log-normal prior around :data:`USUAL_RIDGE` is added.

    Parameters
    ----------
    points, start
        As for :func:`fit`.

    Returns
    -------
    float
        One of :data:`RIDGES`.
    """
    likelihood = []
    share = points.shares * len(points.shares) / points.shares.sum()
    for ridge in RIDGES:
        total = -0.5 * (math.log(ridge / USUAL_RIDGE) / RIDGE_SPREAD) ** 2
        for left_out in np.unique(points.groups):
            out = points.groups == left_out
            head = fit(points.take(~out), start, ridge)
            log_shares = _log_softmax(head.weights @ points.features[:, out] + head.bias[:, None])
            total += float((share[out] * log_shares[points.classes[out], np.arange(out.sum())]).sum())
        likelihood.append(total)
    return RIDGES[int(np.argmax(likelihood))]


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = scores - scores.max(axis=0)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=0)))


def group(x: NDArray[np.floating], y: NDArray[np.floating], groups: int = FOLDS) -> NDArray[np.intp]:
    """Divide points into groups that are compact in space, by halving along the longer side.

    Neighbouring points look alike, so an estimate that leaves out single points would be too good.

    Parameters
    ----------
    x, y
        Positions of the points, (n,), in one unit.
    groups
        Number of groups; at most n are made.

    Returns
    -------
    ndarray of intp
        Group of each point, (n,), from 0; their sizes differ little.
    """
    found = np.zeros(len(x), dtype=np.intp)

    def divide(points: NDArray[np.intp], first: int, parts: int) -> None:
        if parts == 1:
            found[points] = first
            return
        along, across = (x, y) if np.ptp(x[points]) >= np.ptp(y[points]) else (y, x)
        ordered = points[np.lexsort((across[points], along[points]))]
        low = parts // 2
        cut = len(points) * low // parts
        divide(ordered[:cut], first, low)
        divide(ordered[cut:], first + low, parts - low)

    if len(x):
        divide(np.arange(len(x)), 0, min(groups, len(x)))
    return found


@dataclass(frozen=True)
class Share:
    """An estimated share with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_share(right: NDArray[np.bool_], shares: NDArray[np.float64]) -> Share:
    """Estimate the share of a place that is right from points, with Wilson's interval.

    Parameters
    ----------
    right
        Whether each point is right, (n,), n at least 1.
    shares
        Area that each point represents, (n,); unequal ones lower the effective number of points (Kish).

    Returns
    -------
    Share
        The weighted mean and the ends of its interval.
    """
    weights = shares / shares.sum()
    value = float(weights[right].sum())
    number = 1 / float((weights**2).sum())
    z = 1.959964
    middle = (value + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(value * (1 - value) / number + z * z / (4 * number * number))
    return Share(value, max(0.0, middle - half), min(1.0, middle + half))
