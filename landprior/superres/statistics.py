"""Statistics matching: comparing predictions within a block with the statistics of the block's coarse class.

"Label super-resolution networks" (Malkin et al., ICLR 2019) [S]: a block of pixels has a coarse class z. The share of
the fine class l in the block has two Gaussian distributions: one from the network, which draws each pixel's class from
its q, and one from the statistics of class z, with mean eta(z, l) and standard deviation rho(z, l). They should match.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from landprior.errors import ProbabilityError
from landprior.implicit.checks import LOG_Q_EXAMPLE, require_logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from landprior.superres.settings import CriterionName

LEAST_SPREAD = 0.01
"""Minimum standard deviation: printed tables have two decimals, and with a spread of 0 the loss is -inf."""

LEAST_VARIANCE = 1e-10
"""Minimum variance, for the logarithm in the Kullback-Leibler form when a network is certain of every pixel."""


class BlockStatistics(NamedTuple):
    """Mean and variance of the shares of each class within blocks, (M, C), and the number of pixels, (M,)."""

    mean: Tensor
    variance: Tensor
    sizes: Tensor


def count_blocks(log_q: Tensor, blocks: Tensor, count: int, *, check: bool = True) -> BlockStatistics:
    """Count predicted classes within blocks [S eq. 3, 4].

    Parameters
    ----------
    log_q
        Log-probabilities, (N, C, H, W) or (N, C).
    blocks
        The block of each pixel, (N, H, W) or (N,), 0 to ``count`` - 1; -1 for pixels in none.
    count
        Number of blocks, M.
    check
        Check that ``log_q`` is a log-probability (:mod:`landprior.implicit.checks`).

    Returns
    -------
    BlockStatistics
        mean = sum_i q_i / |B|, variance = sum_i q_i (1 - q_i) / |B|^2.

    Raises
    ------
    ProbabilityError
        If ``log_q`` is not a log of probabilities where there are blocks, or their shapes do not match.
    """
    inside = blocks >= 0
    if check:
        require_logs(log_q, "log_q", LOG_Q_EXAMPLE, mask=inside)
    q = log_q.movedim(1, -1)[inside].exp()
    index = blocks[inside]
    sizes = torch.bincount(index, minlength=count).to(q.dtype)
    whole = sizes.clamp_min(1)[:, None]
    empty = q.new_zeros((count, q.shape[1]))
    mean = empty.index_add(0, index, q) / whole
    variance = empty.index_add(0, index, q * (1 - q)) / whole.square()
    return BlockStatistics(mean, variance, sizes)


class Criterion(Protocol):
    """A measure of the difference between predicted and expected statistics of blocks."""

    def __call__(self, statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:
        """Return a value per block, (M,), from the mean and standard deviation of its coarse class, (M, C)."""


def match(statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:
    """Statistics matching [S eq. 5-7]: minus the log of the overlap of the two Gaussians, summed over classes.

    -log integral N(c; mu, sigma^2) N(c; eta, rho^2) dc = (mu - eta)^2 / (2 s) + log(2 pi s) / 2, s = sigma^2 + rho^2

    Parameters
    ----------
    statistics
        Mean mu and variance sigma^2 of the shares of M blocks, each (M, C).
    eta, rho
        Mean and standard deviation of the shares of each block's coarse class, (M, C).

    Returns
    -------
    Tensor
        One value per block, (M,), in nats.
    """
    total = statistics.variance + rho.clamp_min(LEAST_SPREAD).square()
    distance = (statistics.mean - eta).square() / total
    return 0.5 * (distance + torch.log(2 * math.pi * total)).sum(dim=1)


def kl(statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:
    """Return the Kullback-Leibler form [S footnote 3]: KL(N(mu, sigma^2) || N(eta, rho^2)), summed over classes.

    It favours sigma = rho, which prevents a network from becoming certain of its pixels.

    Parameters
    ----------
    statistics, eta, rho
        Means and variances of blocks, and what they should be: see :func:`match`.

    Returns
    -------
    Tensor
        One value per block, (M,), in nats, at least 0.
    """
    variance = statistics.variance.clamp_min(LEAST_VARIANCE)
    wanted = rho.clamp_min(LEAST_SPREAD).square()
    distance = (statistics.mean - eta).square() / wanted
    return 0.5 * (distance + variance / wanted - 1 - torch.log(variance / wanted)).sum(dim=1)


def interval(statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:
    """Squared distance of the means from the intervals eta - rho to eta + rho; 0 inside. For comparison.

    Parameters
    ----------
    statistics
        See :func:`match`.
    eta, rho
        Middle and half width of the intervals.

    Returns
    -------
    Tensor
        One value per block, (M,), at least 0.
    """
    outside = (statistics.mean - eta).abs() - rho.clamp_min(LEAST_SPREAD)
    return outside.clamp_min(0).square().sum(dim=1)


def l1(statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:  # noqa: ARG001 - a criterion's signature
    """Return absolute differences of the means, as if all blocks of a class had the same shares. For comparison.

    Parameters
    ----------
    statistics, eta, rho
        See :func:`l2`.

    Returns
    -------
    Tensor
        For each block the sum over classes, (M,).
    """
    return (statistics.mean - eta).abs().sum(dim=1)


def l2(statistics: BlockStatistics, eta: Tensor, rho: Tensor) -> Tensor:  # noqa: ARG001
    """Return squared differences of the means. For comparison.

    Parameters
    ----------
    statistics, eta
        See :func:`match`.
    rho
        Ignored.

    Returns
    -------
    Tensor
        For each block the sum of squares over classes, (M,).
    """
    return (statistics.mean - eta).square().sum(dim=1)


CRITERIA: Mapping[CriterionName, Criterion] = {"match": match, "kl": kl, "interval": interval, "l1": l1, "l2": l2}
"""All criteria by name. The last three are documented failures: they ignore that cells of one class differ."""


def compare_statistics(
    log_q: Tensor,
    blocks: Tensor,
    eta: Tensor,
    rho: Tensor,
    *,
    criterion: CriterionName = "match",
    least: Tensor | float = 1,
    check: bool = True,
) -> Tensor:
    """Return the mean of a criterion over blocks, weighted by its pixels.

    Parameters
    ----------
    log_q, blocks
        See :func:`count_blocks`.
    eta, rho
        Mean and standard deviation of the shares of each block's coarse class, (M, C).
    criterion
        See :data:`CRITERIA`.
    least
        Minimum number of pixels of a block, as patch edges cut blocks off; one number, or one per block.
    check
        Check that log-probabilities and shares are valid.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    ProbabilityError
        See :func:`count_blocks`; also if ``eta`` is not a share from 0 to 1, or ``rho`` is negative or NaN.
    """
    if check:
        _require_shares(eta, rho, log_q.shape[1] if log_q.ndim > 1 else 0)
    statistics = count_blocks(log_q, blocks, len(eta), check=check)
    weights = torch.where(statistics.sizes >= least, statistics.sizes, 0.0)
    values = CRITERIA[criterion](statistics, eta, rho)
    return (values * weights).sum() / weights.sum().clamp_min(1)


def _require_shares(eta: Tensor, rho: Tensor, classes: int) -> None:
    if eta.ndim != 2 or eta.shape != rho.shape or eta.shape[1] != classes:
        msg = f"eta has shape {tuple(eta.shape)} and rho {tuple(rho.shape)}; give (blocks, {classes}) for both"
        raise ProbabilityError(msg)
    if not bool(((eta >= 0) & (eta <= 1)).all()):
        msg = "eta has values that are not shares from 0 to 1 (or NaN); give mean shares of the classes, not logs"
        raise ProbabilityError(msg)
    if not bool(((rho >= 0) & torch.isfinite(rho)).all()):
        msg = "rho has negative, infinite or NaN values; give standard deviations of the shares"
        raise ProbabilityError(msg)
