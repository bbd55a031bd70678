"""A prior for each pixel from the network's own predictions around it.

With q5 and q50 the mean predictions in a small and a large square around pixel i, and qbar that over all pixels,

    log p_i(l) = alpha log q5_i(l) + beta log q50_i(l) - gamma log qbar(l), normalised over l.

Alpha > 0 means that near pixels are alike (self-similarity), beta < 0 that what is common further away is uninformative
about this pixel (contrast), and gamma > 0 that no cluster is more common than others. With QR, whose first term is the
entropy of qbar, the gradient is then alpha times that of the cross-entropy of q with the predictions around it, held
constant, minus 1 + gamma times that of the entropy. For alpha = 1, beta = gamma = 0, minus the loss is a bound on the
mutual information of the clusters of a pixel and its neighbours.

Alpha and beta can be re-estimated during training by a multinomial logistic regression of the network's own q_i on the
two logs. Gamma is fixed: estimated in that way, it would let clusters die out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from landprior.domains.clustering.settings import BALANCE, FAR, NEAR, START
from landprior.implicit.posterior import log_class_marginal

if TYPE_CHECKING:
    from numpy.typing import NDArray


FLOOR = 1e-6
"""Lower bound of mean predictions before taking logs."""

RIDGE = 1e-3
"""Penalty on the squares of the weights, so that certain predictions do not make them infinite."""

SAMPLE = 4096
"""Pixels of a batch used in the regression."""


def sum_boxes(values: Tensor, side: int) -> Tensor:
    """Sum values over the box of ``side`` x ``side`` pixels around each pixel; pixels outside count as 0.

    Parameters
    ----------
    values
        Shape (..., H, W), floats.
    side
        Side in pixels; an even box has one more pixel above and to the left than below and to the right.

    Returns
    -------
    Tensor
        Same shape. The cost does not depend on the side.
    """
    for axis in (-2, -1):
        size = values.shape[axis]
        start = torch.arange(size, device=values.device) - side // 2
        sums = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.cumsum(axis)], dim=axis)
        last = sums.index_select(axis, (start + side).clamp(0, size))
        values = last - sums.index_select(axis, start.clamp(0, size))
    return values


def mean_boxes(q: Tensor, mask: Tensor, side: int) -> Tensor:
    """Average predictions over boxes, over pixels with data.

    Parameters
    ----------
    q
        Shape (N, C, H, W).
    mask
        True where there is data, (N, H, W).
    side
        See :func:`sum_boxes`.

    Returns
    -------
    Tensor, shape (N, C, H, W)
        Means; 0 where a box has no data.
    """
    known = mask.unsqueeze(1).to(q.dtype)
    return (sum_boxes(q * known, side) / sum_boxes(known, side).clamp_min(0.5)).clamp_min(0)


def fit_logistic(
    near: NDArray[np.float64], far: NDArray[np.float64], q: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Estimate alpha and beta by maximum likelihood.

    Parameters
    ----------
    near, far
        Logs of the mean predictions, shape (n, C).
    q
        Predictions to be explained, shape (n, C), rows sum to 1.
    start
        Initial values, shape (2,).

    Returns
    -------
    ndarray, shape (2,)
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    features = np.stack([near, far])

    def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = log_softmax(np.tensordot(weights, features, axes=1), axis=1)
        loss = -(q * log_p).sum() / len(q)
        slope = (features * (np.exp(log_p) - q)).sum(axis=(1, 2)) / len(q)
        return float(loss + RIDGE / 2 * (weights**2).sum()), slope + RIDGE * weights

    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B").x, dtype=np.float64)


class NeighbourhoodPrior(nn.Module):
    """The prior, with its weights and batch count as buffers, so that checkpoints include them.

    Parameters
    ----------
    near, far
        Sides of the neighbourhoods in pixels.
    every
        Batches between two estimates of the weights; 0 keeps them fixed.
    start
        Initial alpha and beta.
    balance
        Gamma.
    views
        Number of views in a batch, one after the other: the prior of one view uses the predictions of the previous
        one, so that the random variation between them does not count as similarity.
    """

    weights: Tensor
    batches: Tensor

    def __init__(
        self,
        *,
        near: int = NEAR,
        far: int = FAR,
        every: int = 50,
        start: tuple[float, float] = START,
        balance: float = BALANCE,
        views: int = 1,
    ) -> None:
        super().__init__()
        self._near, self._far, self._every, self._balance, self._views = near, far, every, balance, views
        self.register_buffer("weights", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, log_q: Tensor, mask: Tensor) -> Tensor:
        """Return the log prior of a batch, (N, C, H, W); counts the batch, and re-estimates the weights when due.

        Parameters
        ----------
        log_q
            The network's predictions, (N, C, H, W), N a multiple of the views. No gradient flows through the prior.
        mask
            True where there is data, (N, H, W).

        Returns
        -------
        Tensor
            Log prior, (N, C, H, W).
        """
        q = log_q.exp()
        seen, there = (values.roll(len(q) // self._views, 0) for values in (q, mask))
        near, far = (mean_boxes(seen, there, side).clamp_min(FLOOR).log() for side in (self._near, self._far))
        count = int(self.batches)
        if self._every and count and count % self._every == 0:
            self._estimate(q, near, far, mask, count)
        self.batches += 1
        alpha, beta = self.weights.tolist()
        common = log_class_marginal(log_q, mask, check=False).clamp_min(math.log(FLOOR))
        return torch.log_softmax(alpha * near + beta * far - self._balance * common[:, None, None], dim=1)

    def _estimate(self, q: Tensor, near: Tensor, far: Tensor, mask: Tensor, count: int) -> None:
        there = torch.nonzero(mask.flatten())[:, 0].cpu()
        if not len(there):
            return
        order = torch.randperm(len(there), generator=torch.Generator().manual_seed(count))
        chosen = there[order[:SAMPLE]].to(q.device)
        parts = (values.movedim(1, -1).flatten(0, -2)[chosen].double().cpu().numpy() for values in (near, far, q))
        first, second, wanted = parts
        found = fit_logistic(first, second, wanted, self.weights.cpu().numpy())
        self.weights.copy_(torch.from_numpy(found))
