"""The implicit posterior r and the class sums it is based on [R eq. 2, 3].

Without a generative model of x, the network's own predictions define one over the items at hand:
p(x_i | l) = q_i(l) / sum_j q_j(l). With the prior p_i(l) this gives the posterior
r_i(l) proportional to p_i(l) q_i(l) / sum_j q_j(l).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from landprior.implicit.checks import LOG_Q_EXAMPLE, require_items, require_logs, require_marginal, require_pair

EPS = 1e-8
"""Lower bound of probabilities before taking logs (``torchgeo.losses`` adds the same value)."""


def zero_masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return logs with those of masked items set to 0, so that they contribute neither value nor gradient.

    Half precision becomes float32, because sums over many items overflow.
    """
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    where = require_items(values, mask)
    return values if where is None else torch.where(where, values, 0.0)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over items of ``values``, (N,) or (N, H, W), without masked items."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def log_class_marginal(log_q: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Return the log of the mean prediction, qbar(l) = mean_i q_i(l).

    Parameters
    ----------
    log_q
        Log-probabilities, (N, C) or (N, C, H, W).
    mask
        True for items to use, (N,) or (N, H, W); None for all.
    check
        Check that ``log_q`` is a log-probability (:mod:`landprior.implicit.checks`).

    Returns
    -------
    Tensor, shape (C,)
        Minus infinity for a class that no item has; in float32 or wider.

    Raises
    ------
    ProbabilityError
        If ``log_q`` is not a log of probabilities, or the mask does not match it.
    """
    if check:
        require_logs(log_q, "log_q", LOG_Q_EXAMPLE, mask=mask)
    log_q = log_q.float() if log_q.dtype in (torch.float16, torch.bfloat16) else log_q
    axes = [0, *range(2, log_q.ndim)]
    where = require_items(log_q, mask)
    if mask is None or where is None:
        return log_sum(log_q, axes) - math.log(log_q.numel() / log_q.shape[1])
    count = torch.log(mask.sum().clamp_min(1).to(log_q.dtype))
    return log_sum(torch.where(where, log_q, -torch.inf), axes) - count


def log_sum(values: Tensor, axes: list[int]) -> Tensor:
    """Return the log of the sum over axes; if all terms are 0, the gradient is 0 (NaN with logsumexp)."""
    if not values.requires_grad:
        return torch.logsumexp(values, dim=axes)
    some = values.detach().amax(dim=axes, keepdim=True) != -torch.inf
    found = torch.logsumexp(torch.where(some, values, 0.0), dim=axes)
    return torch.where(some.reshape(found.shape), found, -torch.inf)


class RunningMarginal(nn.Module):
    """Log of the mean prediction, estimated across batches, so that small batches suffice.

    The value is a running mean of q over past items with decaying weights; the gradient is that of the current batch
    at full weight (scaled down, as in a plain running mean, the losses were observed to collapse). The decay counts
    items, not batches: a batch of n multiplies earlier weights by 1 - n / ``memory``. So with ``memory`` or more items
    only the batch's own mean is left, and a full batch is exact. Sums and counts decay alike, so that early estimates
    are unbiased.

    Parameters
    ----------
    memory
        Approximate number of items (pixels, images, documents) remembered.
    classes
        Number of classes; if not given, the first batch sets it, and no state can be loaded before that.

    Raises
    ------
    ValueError
        If the memory is not positive.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, memory: float, *, classes: int | None = None) -> None:
        super().__init__()
        if not memory > 0:
            msg = f"the memory must be a positive number of items, not {memory}"
            raise ValueError(msg)
        self.memory = memory
        self.register_buffer("total", torch.zeros(classes or 1, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def forward(self, log_q: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
        """Add a batch and return the log of the estimate, shape (C,), as :func:`log_class_marginal` does.

        Parameters
        ----------
        log_q
            Log-probabilities, (N, C) or (N, C, H, W).
        mask
            True for items to use; None for all.
        check
            Check that ``log_q`` is a log-probability.

        Returns
        -------
        Tensor
            The log of the estimate, shape (C,).

        Raises
        ------
        ProbabilityError
            If it is not, or the mask does not match it; the state is then unchanged.
        """
        if check:
            require_logs(log_q, "log_q", LOG_Q_EXAMPLE, mask=mask)
        where = require_items(log_q, mask)
        q = zero_masked(log_q, mask).exp()
        q = q if where is None else torch.where(where, q, 0.0)
        own = q.sum(dim=[0, *range(2, q.ndim)]).double()
        items = own.new_tensor(q.numel() / q.shape[1]) if where is None else where.sum().double()
        sums = own.detach()
        keep = (1 - items / self.memory).clamp_min(0)
        self.total = keep * self.total.to(sums.device) + sums
        self.weight = keep * self.weight.to(sums.device) + items
        mean = (self.total / self.weight.clamp_min(1)).clamp_min(1e-300)
        change = (own - own.detach()) / items.clamp_min(1)
        return (torch.log(mean) + change / mean).to(q.dtype)


def log_posterior(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return the log of the implicit posterior r [R eq. 3].

    Parameters
    ----------
    log_q
        Log of the network's q, (N, C) or (N, C, H, W).
    log_prior
        Log of the prior, same shape; minus infinity for excluded classes, also in r.
    mask
        True for items to use in the sum over items, (N,) or (N, H, W).
    log_marginal
        Log of the class sums or means over the items to use instead of this batch's, shape (C,): for a
        tile that is mapped in windows, the sums over the whole tile. A constant factor has no effect.
    check
        Check that the arguments are log-probabilities (:mod:`landprior.implicit.checks`).

    Returns
    -------
    Tensor
        Same shape; normalised over axis 1.

    Raises
    ------
    ProbabilityError
        If ``log_q`` or ``log_prior`` is not a log of probabilities, or shapes do not match.
    """
    return torch.log_softmax(log_joint(log_q, log_prior, mask, log_marginal=log_marginal, check=check), dim=1)


def log_joint(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return the log of the unnormalised implicit posterior: enough to find the most probable class.

    Parameters
    ----------
    log_q, log_prior, mask, log_marginal, check
        As of :func:`log_posterior`.

    Returns
    -------
    Tensor
        log q + log p - log of the mean of q, with the shape of ``log_q``.

    Raises
    ------
    ProbabilityError
        As :func:`log_posterior`.
    """
    if check:
        require_pair(log_q, log_prior, mask)
        require_marginal(log_marginal, log_q.shape[1])
    if log_marginal is None:
        log_marginal = log_class_marginal(log_q, mask, check=False)
    shape = (1, -1, *([1] * (log_q.ndim - 2)))
    return log_q + (log_prior - log_marginal.clamp_min(math.log(EPS)).reshape(shape))


def log_evidence(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Return log p(x_i) = log sum_l p_i(l) q_i(l) / sum_j q_j(l), per item [R eq. 1, 2].

    Parameters
    ----------
    log_q, log_prior, mask, check
        As of :func:`log_posterior`.

    Returns
    -------
    Tensor
        Values in nats, (N,) or (N, H, W); meaningless for masked items.

    Raises
    ------
    ProbabilityError
        As :func:`log_posterior`.
    """
    if check:
        require_pair(log_q, log_prior, mask)
    count = log_q.numel() / log_q.shape[1] if mask is None else mask.sum().clamp_min(1)
    log_marginal = log_class_marginal(log_q, mask, check=False) + math.log(count)
    # a class that no item has contributes nothing: its sum is made finite below, and its q is 0
    log_marginal = log_marginal.clamp_min(torch.finfo(log_marginal.dtype).min)
    shape = (1, -1, *([1] * (log_q.ndim - 2)))
    return torch.logsumexp(log_q + log_prior - log_marginal.reshape(shape), dim=1)
