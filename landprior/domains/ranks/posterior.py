"""The joint posterior of the classes of two items whose order is known [R eq. 6]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from landprior.errors import ProbabilityError
from landprior.implicit.checks import LOG_PRIOR_EXAMPLE, LOG_Q_EXAMPLE, require_logs, require_marginal
from landprior.implicit.posterior import EPS, log_class_marginal

if TYPE_CHECKING:
    from torch import Tensor

    from landprior.domains.ranks.settings import Fit, Ties


RELATIONS = (">=", ">", "=")
"""Relations of a pair, first to second."""


def pair_priors(classes: int, ties: Ties = "included") -> Tensor:
    """Return the joint prior of two classes for each relation.

    Parameters
    ----------
    classes
        Number of ordered classes; for ten, with ties included, the prior of ``>=`` is 55 times 1/55.
    ties
        Meaning of ``>=`` for items of the same class.

    Returns
    -------
    Tensor
        float32, (relations, C, C): in the order of :data:`RELATIONS`, by class of the first and of the second item.
    """
    above = torch.ones((classes, classes), dtype=torch.float64).tril(-1)
    equal = torch.eye(classes, dtype=torch.float64)
    share = {"included": 1.0, "half": 0.5, "excluded": 0.0}[ties]
    tables = torch.stack([above + share * equal, above, equal])
    return (tables / tables.sum((1, 2), keepdim=True)).float()


def log_pair_posterior(
    log_q1: Tensor,
    log_q2: Tensor,
    log_prior: Tensor,
    *,
    log_marginal1: Tensor | None = None,
    log_marginal2: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return the log of the joint posterior r(l1, l2) of pairs [R eq. 6].

    It is proportional to p(l1, l2) q(l1 | x1) q(l2 | x2) / (Q1(l1) Q2(l2)).

    Parameters
    ----------
    log_q1, log_q2
        Log of q for the first and the second items, (N, C).
    log_prior
        Log of the joint prior, (C, C) or (N, C, C); minus infinity for excluded classes, also in r.
    log_marginal1, log_marginal2
        Log of Q1 and Q2, (C,), means or sums; by default the means over this batch's first and second items.
    check
        Check that the arguments are log-probabilities (:mod:`landprior.implicit.checks`).

    Returns
    -------
    Tensor
        (N, C, C), normalised over the last two axes.

    Raises
    ------
    ProbabilityError
        If an argument is not a log-probability, or shapes do not match.
    """
    joint = log_pair_joint(
        log_q1, log_q2, log_prior, log_marginal1=log_marginal1, log_marginal2=log_marginal2, check=check
    )
    return torch.log_softmax(joint.flatten(1), dim=1).reshape(joint.shape)


def log_pair_joint(
    log_q1: Tensor,
    log_q2: Tensor,
    log_prior: Tensor,
    *,
    log_marginal1: Tensor | None = None,
    log_marginal2: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return the log of the unnormalised joint posterior; its sum over classes is the evidence of a pair.

    Parameters
    ----------
    log_q1, log_q2, log_prior, log_marginal1, log_marginal2, check
        See :func:`log_pair_posterior`.

    Returns
    -------
    Tensor
        Shape (N, C, C): classes of the first and of the second item.

    Raises
    ------
    ProbabilityError
        See :func:`log_pair_posterior`.
    """
    if check:
        _require_pairs(log_q1, log_q2, log_prior)
        require_marginal(log_marginal1, log_q1.shape[1], "log_marginal1")
        require_marginal(log_marginal2, log_q2.shape[1], "log_marginal2")
    log_marginal1 = log_class_marginal(log_q1, check=False) if log_marginal1 is None else log_marginal1
    log_marginal2 = log_class_marginal(log_q2, check=False) if log_marginal2 is None else log_marginal2
    one = log_q1 - log_marginal1.clamp_min(math.log(EPS))
    two = log_q2 - log_marginal2.clamp_min(math.log(EPS))
    return log_prior + one[:, :, None] + two[:, None, :]


def _require_pairs(log_q1: Tensor, log_q2: Tensor, log_prior: Tensor) -> None:
    require_logs(log_q1, "log_q1", LOG_Q_EXAMPLE)
    require_logs(log_q2, "log_q2", LOG_Q_EXAMPLE)
    if log_q1.ndim != 2 or log_q1.shape != log_q2.shape:
        msg = f"log_q1 has shape {tuple(log_q1.shape)} and log_q2 {tuple(log_q2.shape)}; give (pairs, classes) for both"
        raise ProbabilityError(msg)
    count, classes = log_q1.shape
    if log_prior.shape not in ((classes, classes), (count, classes, classes)):
        msg = (
            f"log_prior has shape {tuple(log_prior.shape)}; give the joint prior of two classes, "
            f"({classes}, {classes}) or ({count}, {classes}, {classes})"
        )
        raise ProbabilityError(msg)
    require_logs(log_prior.reshape(-1, classes, classes), "log_prior", LOG_PRIOR_EXAMPLE, axes=(1, 2))


def pair_marginals(log_r: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """Return the log of both marginals of a joint posterior, (N, C, C), each (N, C); minus infinity if all are 0.

    Raises
    ------
    ProbabilityError
        If ``check`` is set and ``log_r`` is not a log of joint probabilities.
    """
    if check:
        if log_r.ndim != 3 or log_r.shape[1] != log_r.shape[2]:
            msg = f"log_r has shape {tuple(log_r.shape)}; give (pairs, classes, classes)"
            raise ProbabilityError(msg)
        require_logs(log_r, "log_r", "the result of log_pair_posterior", axes=(1, 2))
    return _log_sum(log_r, 2), _log_sum(log_r, 1)


def rank_loss(
    log_q1: Tensor,
    log_q2: Tensor,
    log_prior: Tensor,
    *,
    log_marginal1: Tensor | None = None,
    log_marginal2: Tensor | None = None,
    fit: Fit = "marginals",
    check: bool = True,
) -> Tensor:
    """Return RQ of pairs: the mean of KL(r_1 || q_1) + KL(r_2 || q_2), with r_1 and r_2 the marginals of r.

    Parameters
    ----------
    log_q1, log_q2, log_prior, log_marginal1, log_marginal2
        See :func:`log_pair_posterior`. Gradients flow through r.
    fit
        ``"joint"``: KL(r || q_1 q_2) instead, for comparison.
    check
        See :func:`log_pair_posterior`; also for errors.

    Returns
    -------
    Tensor
        A scalar, in nats, at least 0.
    """
    log_r = log_pair_posterior(
        log_q1, log_q2, log_prior, log_marginal1=log_marginal1, log_marginal2=log_marginal2, check=check
    )
    floor = math.log(EPS)
    log_q1, log_q2 = log_q1.clamp_min(floor), log_q2.clamp_min(floor)
    if fit == "joint":
        return _divergence(log_r.flatten(1), (log_q1[:, :, None] + log_q2[:, None, :]).flatten(1)).mean()
    log_r1, log_r2 = pair_marginals(log_r, check=False)
    return (_divergence(log_r1, log_q1) + _divergence(log_r2, log_q2)).mean()


def _log_sum(log_r: Tensor, axis: int) -> Tensor:
    """Return the log of the sum over an axis; if all terms are 0, the gradient is 0 (NaN with logsumexp)."""
    some = (log_r > -torch.inf).any(dim=axis)
    found = torch.logsumexp(torch.where(some.unsqueeze(axis), log_r, 0.0), dim=axis)
    return torch.where(some, found, -torch.inf)


def _divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return KL(a || b) per item; a class with a = 0 contributes nothing to value or gradient."""
    some = log_a > -torch.inf
    safe = torch.where(some, log_a, 0.0)
    return torch.where(some, safe.exp() * (safe - log_b), 0.0).sum(dim=1)
