"""Feeding images to training: standardised batch by batch, in shuffled order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from landprior.implicit.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 2048
"""Number of images measured at a time."""


@dataclass(frozen=True)
class Standardiser:
    """Standardise bytes for the network: subtract the mean of each band and divide by its standard deviation.

    Parameters
    ----------
    mean, std
        Statistics of the bands, float32, (bands,), in byte units.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Measure the bands of uint8 images, (N, bands, H, W)."""
        total = torch.zeros(images.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for some in torch.split(images, _BATCH):
            values = some.double()
            total += values.sum((0, 2, 3)).cpu()
            squares += values.square().sum((0, 2, 3)).cpu()
        count = images.numel() / images.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        return cls(mean.float().to(images.device), std.clamp_min(1.0).float().to(images.device))

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 of the same shape."""
        shape = (1, -1, 1, 1)
        return (images.float() - self.mean.reshape(shape)).div_(self.std.reshape(shape))


class ShuffledOrder:
    """The items of every step: each once per epoch, reshuffled every epoch; a pure function of the step.

    The incomplete last batch of an epoch is dropped, with different items every time.

    Parameters
    ----------
    count
        Total number of items.
    batch_size
        Items per step, at most ``count``.
    seed
        Seed of the order.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self.batch_size, self._seed = count, min(batch_size, count), seed
        self.epoch_steps = count // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Return the positions of a step's items, int64, (batch_size,)."""
        epoch, place = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, f"epoch {epoch}"))
            self._epoch, self._order = epoch, torch.randperm(self._count, generator=generator)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]
