"""The losses: implicit-posterior (QR, RQ) and their baselines.

Every loss has the signature ``loss(log_q, log_prior, mask=None)``: log-probabilities of the network and
of the prior, class axis 1, shape (N, C) or (N, C, H, W), and a mask of the items that count, (N,) or
(N, H, W). Each returns a scalar, the mean over the items that count. Gradients flow through the
posterior; the losses that rest on it also take ``log_marginal``, the log of the mean prediction to use instead
of this batch's (:class:`landprior.implicit.posterior.RunningMarginal`). Logs are floored at ``log(EPS)`` where
an infinite value would meet a positive weight; nothing is smoothed here. Hard zeros of the prior stay zeros of
the posterior.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from landprior.implicit.posterior import EPS, log_class_marginal, log_posterior, masked_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LossName = Literal["qr", "qr-kl", "rq", "ce", "ce-argmax", "squared-error", "nll-union"]
"""Names of the losses, as on the command line."""

_FLOOR = math.log(EPS)


class Loss(Protocol):
    """What every loss is."""

    def __call__(self, log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch."""


class ImplicitLoss(Protocol):
    """What the losses are that rest on the posterior, and so on the class marginal."""

    def __call__(
        self, log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of a batch."""


def qr(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None) -> Tensor:
    """QR, the free energy [R eq. 1, 5]: sum_l qbar log qbar - mean_i sum_l q_i log p_i.

    The land-cover objective, the same as ``torchgeo.losses.QRLoss``. It is the variational bound on
    minus the mean log evidence, less log N.
    """
    log_marginal = log_class_marginal(log_q, mask) if log_marginal is None else log_marginal
    entropy = (log_marginal.exp() * log_marginal.clamp_min(_FLOOR)).sum()
    expected = (log_q.exp() * log_prior.clamp_min(_FLOOR)).sum(dim=1)
    return entropy - masked_mean(expected, mask)


def qr_kl(
    log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None
) -> Tensor:
    """QR in the form mean_i KL(q_i || r_i) [R eq. 4, Figure 2]; the free energy plus the mean log evidence."""
    log_r = log_posterior(log_q, log_prior, mask, log_marginal=log_marginal).clamp_min(_FLOOR)
    return masked_mean(_kl(log_q, log_r), mask)


def rq(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None, *, log_marginal: Tensor | None = None) -> Tensor:
    """RQ: mean_i KL(r_i || q_i) [R section 2]. With a one-hot prior this is cross-entropy."""
    log_r = log_posterior(log_q, log_prior, mask, log_marginal=log_marginal)
    return masked_mean(_kl(log_r, log_q.clamp_min(_FLOOR)), mask)


def ce(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with the soft prior: -mean_i sum_l p_i log q_i."""
    return masked_mean(-(log_prior.exp() * log_q.clamp_min(_FLOOR)).sum(dim=1), mask)


def ce_argmax(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with the prior's most probable class."""
    best = log_prior.argmax(dim=1, keepdim=True)
    return masked_mean(-log_q.clamp_min(_FLOOR).gather(1, best).squeeze(1), mask)


def squared_error(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared error between probabilities: mean_i sum_l (q_i - p_i)^2."""
    return masked_mean((log_q.exp() - log_prior.exp()).square().sum(dim=1), mask)


def nll_union(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the union: -mean_i log sum_l p_i(l) q_i(l)."""
    joint = torch.logsumexp(log_q + log_prior, dim=1)
    return masked_mean(-joint.clamp_min(2 * _FLOOR), mask)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) per item; a class with a = 0 adds nothing, to the value or the gradient."""
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
"""The losses that rest on the implicit posterior."""

IMPLICIT = frozenset(IMPLICIT_LOSSES)
"""Their names; of these r is the natural map."""
