"""Batches and objectives of training steps, including expectation-maximisation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from landprior.implicit.checks import require_marginal, require_pair
from landprior.implicit.losses import ce
from landprior.implicit.posterior import log_posterior

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Batch:
    """The batch of a step.

    Parameters
    ----------
    inputs
        Network input, (N, ...).
    log_prior
        Log prior, class axis 1, the layout of the network's output; None if the objective does not need it.
    mask
        True for items to use, without axis 1; None for all.
    border
        Pixels to leave out along the edges of height and width, where the network is affected by padding.
    extra
        Additional data for custom objectives.
    """

    inputs: Tensor
    log_prior: Tensor | None = None
    mask: Tensor | None = None
    border: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, send: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with all its tensors sent to a device."""
        return replace(
            self,
            inputs=send(self.inputs),
            log_prior=None if self.log_prior is None else send(self.log_prior),
            mask=None if self.mask is None else send(self.mask),
            extra={name: send(values) for name, values in self.extra.items()},
        )

    def crop(self, values: Tensor) -> Tensor:
        """Return values, (..., H, W), without the border."""
        if not self.border:
            return values
        return values[..., self.border : -self.border, self.border : -self.border]

    def without_border(self) -> Self:
        """Return the batch with prior and mask cropped, as the network's output is."""
        return replace(
            self,
            log_prior=None if self.log_prior is None else self.crop(self.log_prior),
            mask=None if self.mask is None else self.crop(self.mask),
            border=0,
        )


class Objective(Protocol):
    """A custom objective, which is more than a function of log q and log prior."""

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch, with the border cropped from output, prior and mask, but not from ``extra``."""


def em(
    log_q: Tensor,
    log_prior: Tensor,
    mask: Tensor | None = None,
    *,
    log_marginal: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Cross-entropy with the current posterior, held constant: a step of expectation-maximisation.

    Parameters
    ----------
    log_q, log_prior, mask, log_marginal, check
        As of :func:`landprior.implicit.losses.qr`.

    Returns
    -------
    Tensor
        A scalar, in nats; its gradient is that of log q only.

    Raises
    ------
    ProbabilityError
        As :func:`landprior.implicit.losses.qr`.
    """
    if check:
        require_pair(log_q, log_prior, mask)
        require_marginal(log_marginal, log_q.shape[1])
    with torch.no_grad():  # finite, so that an item whose prior allows only classes excluded by q has a posterior
        least = log_q.clamp_min(torch.finfo(log_q.dtype).min / 16)
        log_r = log_posterior(least, log_prior, mask, log_marginal=log_marginal, check=False)
    return ce(log_q, log_r, mask, check=False)
