"""Batches and objectives of training steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


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
