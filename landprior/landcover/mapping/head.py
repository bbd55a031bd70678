"""A head from a few labelled points: a linear classifier on log q, log p and pixel statistics, which begins as r.

With f the features of a pixel (log q, log p, statistics of the image), the scores of the classes are W f + b. Their
weights maximise the likelihood of the labels with a Gaussian penalty that pulls W towards the identity on log q and
log p and 0 elsewhere, and b towards -log qbar, at which softmax(W f + b) is r [R eq. 3]. Without points the head is r,
with many it is a classifier of its own. Classes with few points are pulled more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BIAS_PULL = 0.25
"""Penalty on b as a share of that on W."""

RARE = 10.0
"""A class with this many points is pulled twice as much as one with very many."""


@dataclass(frozen=True, eq=False)
class Head:
    """Scores of classes: ``weights`` of shape (C, 2C + S) and ``bias`` of shape (C,), float64."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def of_posterior(cls, log_marginal: NDArray[np.float64], statistics: int) -> Head:
        """Return the head that gives r.

        Parameters
        ----------
        log_marginal
            Log of the mean prediction qbar, (C,).
        statistics
            Number S of features after log q and log p.

        Returns
        -------
        Head
            Its ``log_shares`` are log r.
        """
        count = len(log_marginal)
        return cls(np.hstack([np.eye(count), np.eye(count), np.zeros((count, statistics))]), -log_marginal)

    def log_shares(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return log probabilities of classes, (C, n), from features, (2C + S, n)."""
        scores = self.weights @ features + self.bias[:, None]
        scores -= scores.max(axis=0)
        return np.asarray(scores - np.log(np.exp(scores).sum(axis=0)))


def fit(
    features: NDArray[np.floating],
    classes: NDArray[np.integer],
    start: Head,
    *,
    ridge: float = 1.0,
    shares: NDArray[np.floating] | None = None,
) -> Head:
    """Fit a head by penalised maximum likelihood, which is a convex problem.

    Parameters
    ----------
    features
        Features at the points, (2C + S, n), finite.
    classes
        Class positions of the labels, (n,).
    start
        The head towards which the penalty pulls.
    ridge
        Strength of the penalty, above 0.
    shares
        Area that each point represents, (n,); scaled to mean 1. By default all are equal.

    Returns
    -------
    Head
        ``start`` itself if there are no points.
    """
    from scipy.optimize import minimize

    number, count = len(classes), len(start.bias)
    if not number:
        return start
    share = np.ones(number) if shares is None else np.asarray(shares, dtype=np.float64) * number / np.sum(shares)
    chosen = np.zeros((count, number))
    chosen[classes, np.arange(number)] = 1
    pull = ridge * (1 + RARE / np.maximum(np.bincount(classes, minlength=count), 1))
    inputs = np.vstack([features, np.ones(number)]).astype(np.float64)
    middle = np.hstack([start.weights, start.bias[:, None]])
    penalty = np.repeat(pull[:, None], middle.shape[1], axis=1)
    penalty[:, -1] *= BIAS_PULL

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        away = x.reshape(middle.shape)
        scores = (middle + away) @ inputs
        scores -= scores.max(axis=0)
        log_shares = scores - np.log(np.exp(scores).sum(axis=0))
        loss = -(share * (chosen * log_shares).sum(axis=0)).sum() + 0.5 * (penalty * away**2).sum()
        slope = ((np.exp(log_shares) - chosen) * share) @ inputs.T + penalty * away
        return float(loss), slope.ravel()

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(objective, np.zeros(middle.size), jac=True, method="L-BFGS-B", options=options)
    fitted = middle + found.x.reshape(middle.shape)
    return Head(fitted[:, :-1], fitted[:, -1])


def split(rows: NDArray[np.integer], columns: NDArray[np.integer], folds: int) -> NDArray[np.intp]:
    """Divide points into folds that are compact in space, by halving along the longer side.

    Parameters
    ----------
    rows, columns
        Positions of the points, (n,).
    folds
        Number of folds, at most n; their sizes differ by at most 1 if it is a power of 2.

    Returns
    -------
    ndarray of intp
        Fold of each point, (n,), from 0.
    """
    found = np.zeros(len(rows), dtype=np.intp)

    def divide(points: NDArray[np.intp], first: int, parts: int) -> None:
        if parts == 1:
            found[points] = first
            return
        along, across = (rows, columns) if np.ptp(rows[points]) >= np.ptp(columns[points]) else (columns, rows)
        ordered = points[np.lexsort((across[points], along[points]))]
        low = parts // 2
        cut = len(points) * low // parts
        divide(ordered[:cut], first, low)
        divide(ordered[cut:], first + low, parts - low)

    divide(np.arange(len(rows)), 0, folds)
    return found
