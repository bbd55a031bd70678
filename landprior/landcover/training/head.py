"""A head fitted to labelled points: a linear classifier on log q, log p and statistics of the image, which begins as r.

With s the means and deviations of the bands around a pixel, the score of each class is

    W [log q - log qbar; log p; s] + b,

and its probabilities are the softmax of the scores. With W the identity on log q - log qbar and on log p and 0 on s,
and b = 0, they are r [R eq. 3]. :mod:`landprior.landcover.adaptation` fits W and b to points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SURE = 0.51
"""Prior from which a class that was given up keeps its probability: there, no other class is as probable a priori."""

REACH = 2
"""The statistics are those of the 5 x 5 px around a pixel, as far as they have data."""

SCALE = 0.7
"""Factor of the statistics: with it, one penalty suits them and the log probabilities."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """A linear classifier on q, the prior and statistics of the image.

    Parameters
    ----------
    weights
        W, shape (C, 2C + 2B), float64.
    bias
        b, shape (C,), float64.
    log_marginal
        Log of the mean prediction qbar over the image that the head was fitted on, (C,), float64.
    log_prior
        Log of the mean prior over that image, (C,), float64; it stands in where a pixel has no prior.
    left_out
        Positions of classes that have no probability except where the prior is sure of them (:data:`SURE`): the
        training gave them up, and no point shows them.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    log_marginal: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    left_out: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))

    @classmethod
    def of_posterior(cls, log_marginal: NDArray[np.float64], log_prior: NDArray[np.float64], bands: int) -> Self:
        """Return the head that gives r.

        Parameters
        ----------
        log_marginal, log_prior
            See :class:`Head`.
        bands
            Number B of bands of the image.

        Returns
        -------
        Head
            The head that a fit begins with.
        """
        count = len(log_marginal)
        weights = np.hstack([np.eye(count), np.eye(count), np.zeros((count, 2 * bands))])
        return cls(weights=weights, bias=np.zeros(count), log_marginal=log_marginal, log_prior=log_prior)

    def features(self, log_q: Tensor, log_p: Tensor, statistics: Tensor) -> Tensor:
        """Return what the head sees of pixels.

        Parameters
        ----------
        log_q, log_p
            Log of the prediction and of the prior, (C, ...).
        statistics
            :func:`describe_surroundings` of the image, (2B, ...).

        Returns
        -------
        Tensor
            (2C + 2B, ...), of the type of ``log_q``.
        """
        marginal = _like(self.log_marginal, log_q)
        return torch.cat([log_q - marginal, log_p.to(log_q.dtype), statistics.to(log_q.dtype)])

    def apply(self, features: Tensor) -> Tensor:
        """Return log probabilities of the classes, (C, ...), from features, (2C + 2B, ...)."""
        weights = torch.as_tensor(self.weights, dtype=features.dtype, device=features.device)
        scores = (weights @ features.flatten(1)).reshape(-1, *features.shape[1:])
        for index in self.left_out.tolist():
            sure = features[len(scores) + index] >= math.log(SURE)
            scores[index] = scores[index].where(sure, torch.full_like(scores[index], -torch.inf))
        return torch.log_softmax(scores + _like(self.bias, features), 0)


def _like(values: NDArray[np.float64], wanted: Tensor) -> Tensor:
    """Return one value per class, shaped to be added to (C, ...)."""
    tensor = torch.as_tensor(values, dtype=wanted.dtype, device=wanted.device)
    return tensor.reshape(-1, *([1] * (wanted.dim() - 1)))


def describe_surroundings(image: Tensor, valid: Tensor | None) -> Tensor:
    """Return mean and standard deviation of each band over the 5 x 5 px around each pixel.

    Parameters
    ----------
    image
        Standardised bands, (B, H, W), float32, finite.
    valid
        Where there is data, (H, W), bool; None: everywhere. The rest does not count.

    Returns
    -------
    Tensor
        (2B, H, W), the means and then the deviations, times :data:`SCALE`. At the edges of the window over the pixels
        that it has, so right at :data:`REACH` pixels and more from those that are not edges of the raster.
    """
    inside = torch.ones_like(image[:1]) if valid is None else valid.to(image.dtype)[None]

    def sum_up(values: Tensor) -> Tensor:
        side = 2 * REACH + 1
        return functional.avg_pool2d(values[None], side, stride=1, padding=REACH, divisor_override=1)[0]

    count = sum_up(inside).clamp_min_(1)
    means = sum_up(image * inside) / count
    squares = sum_up(image.square() * inside) / count
    deviations = (squares - means.square()).clamp_min_(0).sqrt_()
    return torch.cat([means, deviations]).mul_(SCALE)
