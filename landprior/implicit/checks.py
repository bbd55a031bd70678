"""Checks of the arguments of losses and posteriors: log-probabilities, class axis 1, and masks of items.

Other libraries' losses take logits or probabilities, and confusing the two causes no error, only wrong numbers. So
the arguments are checked: whether any value is NaN, infinite or positive, and whether a sample of items sums to one.
This costs less than a loss itself, and ``check=False`` skips it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from landprior.errors import ProbabilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE = 16_384
"""Maximum number of items, evenly spread, whose sum over classes is checked."""

_TOLERANCE = {torch.float16: 0.03, torch.bfloat16: 0.1}
"""Maximum distance of the log of a sum from 0: half precision keeps two or three digits of a log."""

_USUAL_TOLERANCE = 0.02

LOG_Q_EXAMPLE = "torch.log_softmax(logits, dim=1)"
LOG_PRIOR_EXAMPLE = "torch.log(prior)"
MARGINAL_EXAMPLE = "log_class_marginal(log_q)"


class _Summary(NamedTuple):
    """Summary of a tensor of logs: its largest value, the worst log of a sum, and how many items have no class."""

    largest: float
    worst: float
    empty: int


def require_items(log_q: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return a mask of items, (N,) or (N, H, W), in the layout of ``log_q`` with one class.

    Raises
    ------
    ProbabilityError
        If it has another shape or is not boolean.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        msg = f"the mask is of {_name_type(mask)}; give booleans, True for items to use: mask.bool()"
        raise ProbabilityError(msg)
    if mask.shape != (log_q.shape[0], *log_q.shape[2:]):
        shapes = f"{tuple(mask.shape)}; for probabilities of shape {tuple(log_q.shape)}"
        msg = f"the mask has shape {shapes} it needs the same shape without axis 1"
        raise ProbabilityError(msg)
    return mask.unsqueeze(1)


def require_logs(
    values: Tensor,
    name: str,
    expected: str,
    *,
    mask: Tensor | None = None,
    axes: Sequence[int] = (1,),
) -> None:
    """Raise an error if values are not log-probabilities.

    Parameters
    ----------
    values
        Log-probabilities; class axis 1, at least two axes. Minus infinity excludes a class.
    name
        Name of the values in error messages.
    expected
        The expected argument, as code.
    mask
        True for items to use, without axis 1; other items may have any values.
    axes
        Axes over which probabilities sum to one.

    Raises
    ------
    ProbabilityError
        If they are not floats, have no class axis, are NaN, infinite or positive, do not sum to one, or exclude every
        class of an item.
    """
    if not isinstance(values, Tensor):
        msg = f"{name} is of type {type(values).__name__}; give a tensor: {expected}"
        raise ProbabilityError(msg)
    if not values.is_floating_point():
        msg = f"{name} is of {_name_type(values)}, like labels; give logs of probabilities, one per class: {expected}"
        raise ProbabilityError(msg)
    if values.ndim < 2:
        msg = f"{name} has shape {tuple(values.shape)}; give (items, classes), or (items, classes, height, width)"
        raise ProbabilityError(msg)
    if not values.numel():
        msg = f"{name} is empty, of shape {tuple(values.shape)}"
        raise ProbabilityError(msg)
    where = require_items(values, mask)
    if not _can_read(values):
        return
    values = values.detach()
    summary = _summarise(values, where, axes)
    tolerance = _TOLERANCE.get(values.dtype, _USUAL_TOLERANCE)
    fine = summary.largest <= tolerance and summary.worst <= tolerance and not summary.empty
    if not fine:  # also true for NaN
        raise ProbabilityError(_describe(values, where, summary, tolerance, name, expected, axes))


def require_pair(log_q: Tensor, log_prior: Tensor, mask: Tensor | None = None) -> None:
    """Raise an error if log q and log prior are not log-probabilities, or they and the mask do not match.

    Parameters
    ----------
    log_q, log_prior
        Log-probabilities of the network and of the prior, (N, C) or (N, C, H, W), class axis 1.
    mask
        True for items to use, (N,) or (N, H, W); None for all.

    Raises
    ------
    ProbabilityError
        See :func:`require_logs`; also if the two have different shapes.
    """
    require_logs(log_q, "log_q", LOG_Q_EXAMPLE, mask=mask)
    if isinstance(log_prior, Tensor) and log_prior.is_floating_point() and log_prior.shape != log_q.shape:
        msg = (
            f"log_prior has shape {tuple(log_prior.shape)} and log_q {tuple(log_q.shape)}; "
            "give both in the same shape, class axis 1 (one prior for all items: log_prior.expand_as(log_q))"
        )
        raise ProbabilityError(msg)
    require_logs(log_prior, "log_prior", LOG_PRIOR_EXAMPLE, mask=mask)


def require_marginal(
    log_marginal: Tensor | None, classes: int, name: str = "log_marginal", *, mean: bool = False
) -> None:
    """Raise an error for a log of class sums that is NaN, infinite, not a log, or does not have shape (C,).

    Parameters
    ----------
    log_marginal
        The log of the sum or of the mean of q over items, shape (C,); None is accepted.
    classes
        Number of classes C.
    name
        Name of the argument in error messages.
    mean
        Whether it must be the log of a mean, which sums to one; otherwise sums are accepted as well.

    Raises
    ------
    ProbabilityError
        If it is; the message says what is wrong.
    """
    if log_marginal is None:
        return
    if log_marginal.shape != (classes,):
        msg = f"{name} has shape {tuple(log_marginal.shape)}; give one value per class, shape ({classes},)"
        raise ProbabilityError(msg)
    if not _can_read(log_marginal):
        return
    values = log_marginal.detach().double()
    if not float(values.amax()) < math.inf:
        msg = f"{name} contains NaN or infinity; give the log of the sum or mean of q over items"
        raise ProbabilityError(msg)
    tolerance = _TOLERANCE.get(log_marginal.dtype, _USUAL_TOLERANCE)
    if classes > 1 and float(values.amin()) >= 0 and abs(float(values.sum()) - 1) <= tolerance:
        msg = f"{name} looks like probabilities; give their logs: {name}.log()"
        raise ProbabilityError(msg)
    if mean and abs(float(torch.logsumexp(values, dim=0))) > tolerance:
        msg = (
            f"{name} does not sum to one (are these sums or logits?); give the log of the mean of q, {MARGINAL_EXAMPLE}"
        )
        raise ProbabilityError(msg)


def _can_read(values: Tensor) -> bool:
    """Return whether values can be read: not while a graph is compiled, traced or captured."""
    if values.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def _summarise(values: Tensor, where: Tensor | None, axes: Sequence[int]) -> _Summary:
    """Summarise all values, and the sums of a sample of items; synchronises with a GPU once."""
    largest = (values if where is None else torch.where(where, values, -torch.inf)).amax()
    steps = _choose_strides(values, axes)
    sample = values[steps].float() if values.dtype in _TOLERANCE else values[steps]
    sums = torch.logsumexp(sample, dim=tuple(axes), keepdim=True)
    counts = torch.ones_like(sums, dtype=torch.bool) if where is None else where[steps]
    none = counts & (sums == -torch.inf)
    worst = torch.where(counts & ~none, sums.abs(), 0.0).amax()
    found = torch.stack([largest.double(), worst.double(), none.sum().double()]).tolist()
    return _Summary(found[0], found[1], int(found[2]))


def _choose_strides(values: Tensor, axes: Sequence[int]) -> tuple[slice, ...]:
    """Return strides along the axes of items that keep about :data:`SAMPLE` of them."""
    items = [axis for axis in range(values.ndim) if axis not in axes]
    left = math.prod(values.shape[axis] for axis in items) / SAMPLE
    steps = dict.fromkeys(range(values.ndim), 1)
    for axis in items:
        if left > 1:
            steps[axis] = min(values.shape[axis], math.ceil(left ** (1 / (len(items) - items.index(axis)))))
            left /= steps[axis]
    return tuple(slice(None, None, steps[axis]) for axis in range(values.ndim))


def _describe(
    values: Tensor,
    where: Tensor | None,
    summary: _Summary,
    tolerance: float,
    name: str,
    expected: str,
    axes: Sequence[int],
) -> str:
    """Return a sentence about what was given and what is needed."""
    kept = values if where is None else torch.where(where, values, -torch.inf)
    nans = int(torch.isnan(kept).sum())
    if nans:
        return f"{name} contains NaN ({nans} of {values.numel()} values); mask such items out, or give {expected}"
    if summary.largest == math.inf:
        return f"{name} contains infinity; give logs of probabilities, {expected}"
    if summary.largest > tolerance:
        return _describe_positive(kept, tolerance, name, expected)
    if summary.empty:
        what = "excludes every class of some items (all are minus infinity)"
        return f"{name} {what}; mask such items out, or give {expected}"
    other = _other_axis(kept, axes, tolerance)
    if other is not None:
        return (
            f"{name} sums to one over axis {other} of its shape {tuple(values.shape)}, but classes belong on axis 1; "
            f"move them there: {name}.movedim({other}, 1)"
        )
    return (
        f"{name} does not sum to one over the classes (the log of a sum is {summary.worst:.3g} away from 0), "
        f"as with logits or scaled probabilities; give logs of probabilities, {expected}"
    )


def _describe_positive(kept: Tensor, tolerance: float, name: str, expected: str) -> str:
    known = kept[kept > -torch.inf]
    low, high = float(known.amin()), float(known.amax())
    given = f"{name} has values from {low:.3g} to {high:.3g}, but logs of probabilities are at most 0"
    if low >= 0 and high <= 1 + tolerance:
        return f"{given}: it looks like probabilities; give their logs (torch.log), {expected}"
    if low >= 0:
        remedy = f"divide by the sum over classes, then give {expected}"
        return f"{given}: it looks like counts or scaled probabilities; {remedy}"
    return f"{given}: it looks like logits or scores; give logs of probabilities, {expected}"


def _other_axis(values: Tensor, axes: Sequence[int], tolerance: float) -> int | None:
    """Return the axis over which values sum to one, if it is not one of ``axes``."""
    for axis in range(values.ndim):
        if (axis,) != tuple(axes) and values.shape[axis] > 1:
            sums = torch.logsumexp(values.float(), dim=axis)
            if bool((sums.abs() <= tolerance).all()):
                return axis
    return None


def _name_type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
