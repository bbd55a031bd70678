"""The implicit posterior r and the class sums it rests on [R eq. 2, 3].

Without a generative model of x, the network's own predictions define one over the items at hand:
p(x_i | l) = q_i(l) / sum_j q_j(l). With the prior p_i(l) this gives the posterior
r_i(l) proportional to p_i(l) q_i(l) / sum_j q_j(l).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-8
"""Where logarithms of probabilities are floored (their arguments; ``torchgeo.losses`` adds the same)."""


def items_mask(log_q: Tensor, mask: Tensor | None) -> Tensor | None:
    """Bring a mask of items, (N,) or (N, H, W), to the layout of ``log_q`` with one class."""
    if mask is None:
        return None
    if mask.shape != (log_q.shape[0], *log_q.shape[2:]):
        shapes = f"{tuple(mask.shape)}; for probabilities of shape {tuple(log_q.shape)}"
        msg = f"the mask has shape {shapes} it is the same without axis 1"
        raise ValueError(msg)
    return mask.unsqueeze(1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over items of ``values``, (N,) or (N, H, W); masked items count in neither part."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def log_class_marginal(log_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log of the mean prediction, qbar(l) = mean_i q_i(l).

    Parameters
    ----------
    log_q
        Log-probabilities, (N, C) or (N, C, H, W).
    mask
        True for items that count, (N,) or (N, H, W); None for all.

    Returns
    -------
    Tensor, shape (C,)
        Minus infinity for a class no item has.
    """
    axes = [0, *range(2, log_q.ndim)]
    where = items_mask(log_q, mask)
    if mask is None or where is None:
        return torch.logsumexp(log_q, dim=axes) - math.log(log_q.numel() / log_q.shape[1])
    count = torch.log(mask.sum().clamp_min(1).to(log_q.dtype))
    return torch.logsumexp(torch.where(where, log_q, -torch.inf), dim=axes) - count


def log_posterior(
    log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None
) -> Tensor:
    """Log of the implicit posterior r [R eq. 3].

    Parameters
    ----------
    log_q
        Log of the network's q, (N, C) or (N, C, H, W).
    log_prior
        Log of the prior, same shape; minus infinity where a class is excluded, which r keeps.
    mask
        True for items that count in the sum over items, (N,) or (N, H, W).
    log_marginal
        Log of the class sums or means over the items to use instead of this batch's, shape (C,): for a
        tile that is mapped in windows, the sums over the whole tile. A constant factor changes nothing.

    Returns
    -------
    Tensor
        Same shape; normalised over axis 1.
    """
    return torch.log_softmax(log_joint(log_q, log_prior, mask, log_marginal=log_marginal), dim=1)


def log_joint(
    log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None
) -> Tensor:
    """Log of the implicit posterior but for its normalisation: enough to find the most probable class.

    Arguments as :func:`log_posterior`.
    """
    if log_marginal is None:
        log_marginal = log_class_marginal(log_q, mask)
    shape = (1, -1, *([1] * (log_q.ndim - 2)))
    return log_q + (log_prior - log_marginal.clamp_min(math.log(EPS)).reshape(shape))


def log_evidence(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log p(x_i) = log sum_l p_i(l) q_i(l) / sum_j q_j(l), per item, (N,) or (N, H, W) [R eq. 1, 2]."""
    count = log_q.numel() / log_q.shape[1] if mask is None else mask.sum().clamp_min(1)
    log_marginal = log_class_marginal(log_q, mask) + math.log(count)
    shape = (1, -1, *([1] * (log_q.ndim - 2)))
    return torch.logsumexp(log_q + log_prior - log_marginal.reshape(shape), dim=1)
