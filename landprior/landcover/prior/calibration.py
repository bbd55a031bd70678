"""Recalibrating a prior with a few labelled points: class shares and sharpness of the whole place.

A hundred points tell little about the rest of their pixels but much about how wrong the cooccurrence matrix is here.
With p the prior at a point and y its label, the prior becomes

    p'(l)  proportional to  p(l)^a exp(b(l)),

with the sharpness a and biases b that maximise the likelihood of the labels, kept near a = 1 and b = 0 by Gaussian
penalties (bias-corrected temperature scaling: Alexandari et al., "Maximum likelihood with bias-corrected calibration
is hard-to-beat at label shift adaptation", ICML 2020). The points should be a random sample of the place. Points
drawn by ``landprior sample`` carry their strata, and are weighted by the area they represent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOOR = 1e-3
"""Lower bound of probabilities, so that one point cannot rule out or force a class."""

BIAS_SPREAD = 2.0
"""Standard deviation of the penalty on each bias, in nats."""

SHARPNESS_SPREAD = 0.5
"""Standard deviation of the penalty on log a."""

LEAST_POINTS = 20
"""Fewer labelled points than this are not enough for a calibration."""


@dataclass(frozen=True)
class Calibration:
    """A correction of a prior: p^sharpness exp(bias), renormalised; ``bias`` has shape (C,)."""

    sharpness: float
    bias: tuple[float, ...]
    points: int

    def apply(self, prior: NDArray[np.float32]) -> NDArray[np.float32]:
        """Recalibrate a prior, shape (C, ...); NaN stays NaN."""
        log_p = self.sharpness * np.log(np.maximum(prior, np.float32(FLOOR)))
        log_p += np.array(self.bias, dtype=np.float32).reshape(-1, *([1] * (prior.ndim - 1)))
        shares = np.exp(log_p - log_p.max(axis=0))
        return np.asarray(shares / shares.sum(axis=0), dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Return the calibration's entries for a prior's metadata."""
        return {"sharpness": self.sharpness, "bias": list(self.bias), "points": self.points}


def calibrate(
    prior: NDArray[np.floating], classes: NDArray[np.integer], weights: NDArray[np.floating] | None = None
) -> Calibration:
    """Fit a calibration.

    Parameters
    ----------
    prior
        The prior at the points, shape (C, n).
    classes
        Class positions of the labels, shape (n,).
    weights
        Weight of each point, shape (n,); scaled to mean 1.

    Returns
    -------
    Calibration
        The correction for the whole prior.

    Raises
    ------
    InputError
        If there are fewer than :data:`LEAST_POINTS` points.
    """
    from scipy.optimize import minimize

    count, number = prior.shape
    if number < LEAST_POINTS:
        msg = f"{number} labelled points lie where there is a prior; recalibration needs at least {LEAST_POINTS}"
        raise InputError(msg)
    log_p = np.log(np.maximum(prior.astype(np.float64), FLOOR))
    share = np.ones(number) if weights is None else np.asarray(weights, dtype=np.float64) * number / np.sum(weights)
    chosen = np.zeros((count, number))
    chosen[classes, np.arange(number)] = 1

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        sharpness, bias = np.exp(x[0]), x[1:]
        scores = sharpness * log_p + bias[:, None]
        scores -= scores.max(axis=0)
        log_q = scores - np.log(np.exp(scores).sum(axis=0))
        miss = (np.exp(log_q) - chosen) * share
        loss = -(share * (chosen * log_q).sum(axis=0)).sum()
        loss += 0.5 * (x[0] / SHARPNESS_SPREAD) ** 2 + 0.5 * ((bias / BIAS_SPREAD) ** 2).sum()
        slope = np.concatenate([[(miss * log_p).sum() * sharpness + x[0] / SHARPNESS_SPREAD**2], miss.sum(axis=1)])
        slope[1:] += bias / BIAS_SPREAD**2
        return float(loss), slope

    found = minimize(objective, np.zeros(count + 1), jac=True, method="L-BFGS-B")
    return Calibration(float(np.exp(found.x[0])), tuple(float(b) for b in found.x[1:]), number)
