"""The losses: implicit-posterior (QR, RQ) and their baselines.

Every loss has the signature ``loss(log_q, log_prior, mask=None, *, check=True)``: log-probabilities of the network
and of the prior, class axis 1, shape (N, C) or (N, C, H, W), and a mask of the items to use, (N,) or
(N, H, W). Each returns a scalar, the mean over these items; the values of masked items, even NaN, affect
neither it nor the gradient. Logits, probabilities and anything else but log-probabilities are rejected with a
:class:`landprior.errors.ProbabilityError`, unless ``check`` is False. Gradients flow through the
posterior; the losses based on it also accept ``log_marginal``, the log of the mean prediction to use instead
of this batch's (:class:`landprior.implicit.posterior.RunningMarginal`). Logs are clamped at ``log(EPS)`` where
an infinite value would meet a positive weight; no smoothing is applied. Hard zeros of the prior stay zeros of
the posterior.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

from landprior.implicit.checks import require_marginal, require_pair
from landprior.implicit.posterior import EPS, log_class_marginal, log_posterior, log_sum, masked_mean, zero_masked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from landprior.implicit.settings import LossName


_FLOOR = math.log(EPS)
_LEAST = -1e30


class Loss(Protocol):
    """Interface of all losses."""

    def __call__(self, log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
        """Return the mean loss of a batch."""


class ImplicitLoss(Protocol):
    """Interface of the losses based on the posterior, and so on the class marginal."""

    def __call__(
        self,
        log_q: Tensor,
        log_prior: Tensor,
        mask: Tensor | None = None,
        *,
        log_marginal: Tensor | None = None,
        check: bool = True,
    ) -> Tensor:
        """Return the mean loss of a batch."""


def qr(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """QR, the free energy [R eq. 1, 5]: sum_l qbar log qbar - mean_i sum_l q_i log p_i.

    The land-cover objective, the same as ``torchgeo.losses.QRLoss``. It is the variational bound on
    minus the mean log evidence, minus log N.

    Parameters
    ----------
    log_q
        Log-probabilities of the network, (N, C) or (N, C, H, W), class axis 1; each item sums to one.
    log_prior
        Log-probabilities of the prior, of the same shape; minus infinity rules a class out.
    mask
        True for items to use, (N,) or (N, H, W); None for all.
    log_marginal
        Log of the mean prediction over more than this batch, shape (C,); by default this batch's own.
    check
        Check that both are log-probabilities; a training loop may check only its first batch.

    Returns
    -------
    Tensor
        A scalar, in nats, at least -log C.

    Raises
    ------
    ProbabilityError
        If ``check`` is set and an argument is not a log-probability, or shapes do not match.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, log_marginal, check=check, mean=True)
    log_marginal = log_class_marginal(log_q, mask, check=False) if log_marginal is None else log_marginal
    entropy = (log_marginal.exp() * log_marginal.clamp_min(_FLOOR)).sum()
    expected = (log_q.exp() * log_prior.clamp_min(_FLOOR)).sum(dim=1)
    return entropy - masked_mean(expected, mask)


def qr_kl(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """QR in the form mean_i KL(q_i || r_i) [R eq. 4, Figure 2]; the free energy plus the mean log evidence.

    Parameters
    ----------
    log_q, log_prior, mask, log_marginal, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats, at least 0.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, log_marginal, check=check)
    log_r = log_posterior(log_q, log_prior, mask, log_marginal=log_marginal, check=False).clamp_min(_FLOOR)
    return masked_mean(_kl(log_q, log_r), mask)


def rq(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """RQ: mean_i KL(r_i || q_i) [R section 2]. With a one-hot prior this is cross-entropy.

    Parameters
    ----------
    log_q, log_prior, mask, log_marginal, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats, at least 0.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, log_marginal, check=check)
    log_r = log_posterior(log_q, log_prior, mask, log_marginal=log_marginal, check=False)
    return masked_mean(_kl(log_r, log_q.clamp_min(_FLOOR)), mask)


def ce(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Cross-entropy with the soft prior: -mean_i sum_l p_i log q_i.

    Parameters
    ----------
    log_q, log_prior, mask, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats, at least the mean entropy of the prior.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, check=check)
    return masked_mean(-(log_prior.exp() * log_q.clamp_min(_FLOOR)).sum(dim=1), mask)


def ce_argmax(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Cross-entropy with the prior's most probable class.

    Parameters
    ----------
    log_q, log_prior, mask, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats, at least 0.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, check=check)
    best = log_prior.argmax(dim=1, keepdim=True)
    return masked_mean(-log_q.clamp_min(_FLOOR).gather(1, best).squeeze(1), mask)


def squared_error(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Squared error between probabilities: mean_i sum_l (q_i - p_i)^2.

    Parameters
    ----------
    log_q, log_prior, mask, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar from 0 to 2.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, check=check)
    return masked_mean((log_q.exp() - log_prior.exp()).square().sum(dim=1), mask)


def nll_union(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, check: bool = True) -> Tensor:
    """Negative log-likelihood of the union: -mean_i log sum_l p_i(l) q_i(l).

    Parameters
    ----------
    log_q, log_prior, mask, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats, at least 0.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    log_q, log_prior = _take(log_q, log_prior, mask, check=check)
    joint = log_sum(log_q + log_prior, [1])
    return masked_mean(-joint.clamp_min(2 * _FLOOR), mask)


def em(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Cross-entropy with the current posterior, held fixed: a step of expectation-maximisation.

    Parameters
    ----------
    log_q, log_prior, mask, log_marginal, check
        As of :func:`qr`.

    Returns
    -------
    Tensor
        A scalar, in nats; its gradient is that of log q only.

    Raises
    ------
    ProbabilityError
        As :func:`qr`.
    """
    if check:
        require_pair(log_q, log_prior, mask)
        require_marginal(log_marginal, log_q.shape[1])
    with torch.no_grad():  # finite, so that an item whose prior allows only what q has ruled out has a posterior
        least = log_q.clamp_min(torch.finfo(log_q.dtype).min / 16)
        log_r = log_posterior(least, log_prior, mask, log_marginal=log_marginal, check=False)
    return ce(log_q, log_r, mask, check=False)


def _take(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None,
    log_marginal: Tensor | None = None,
    *,
    check: bool,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check the arguments of a loss, and exclude masked items from its value and gradient."""
    if check:
        require_pair(log_q, log_prior, mask)
        require_marginal(log_marginal, log_q.shape[1], mean=mean)
    # finite, so that an item whose prior allows only classes excluded by q still has a posterior
    return zero_masked(log_q, mask).clamp_min(_LEAST), zero_masked(log_prior, mask)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return KL(a || b) per item; a class with a = 0 contributes nothing to value or gradient."""
    some = log_a > -torch.inf
    safe = torch.where(some, log_a, 0.0)
    return torch.where(some, safe.exp() * (safe - log_b), 0.0).sum(dim=1)


LOSSES: Mapping[LossName, Loss] = {
    "qr": qr,
    "qr-kl": qr_kl,
    "rq": rq,
    "ce": ce,
    "ce-argmax": ce_argmax,
    "squared-error": squared_error,
    "nll-union": nll_union,
}
"""All losses by name."""

IMPLICIT_LOSSES: Mapping[str, ImplicitLoss] = {"qr": qr, "qr-kl": qr_kl, "rq": rq}
"""The losses based on the implicit posterior."""
