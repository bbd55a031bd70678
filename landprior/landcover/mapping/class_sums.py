"""Sums over a map, class by class: the mean prediction of r, and which classes the training gave up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.landcover.mapping.finish import find_given_up

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.windows import Window
    from torch import Tensor

    from landprior.implicit.devices import Transfer


_LEAST_PRIOR = 1e-4
"""Lower bound of a class's mean prior."""


class ClassSums:
    """Class sums over a map, added up block by block; a sink for :func:`landprior.raster.windows.stream`.

    There are three rows: the sums of q; the number of pixels where the class is the most probable by q; and the sums of
    the prior. The last two count only pixels with a prior, and stay 0 if :meth:`Mapper.gather` is not asked for them.
    """

    def __init__(self, classes: int) -> None:
        self._total = np.zeros((3, classes))

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:  # noqa: ARG002 - a sink's
        """Add the sums of a block, shape (C,) or (3, C)."""
        rows = np.atleast_2d(values.astype(np.float64))
        self._total[: len(rows)] += rows

    def to_list(self) -> list[list[float]]:
        """Return the sums, shape (3, C)."""
        return self._total.tolist()

    @property
    def seen(self) -> bool:
        """Whether there is a pixel with a prediction and a prior."""
        return bool(self._total[1].any())

    def log_shares(self) -> Tensor:
        """Return the log of the mean prediction over the gathered blocks, shape (C,), float64."""
        predicted = self._total[0]
        return torch.log(torch.from_numpy(predicted / predicted.sum()))

    def log_prior(self) -> Tensor:
        """Return the log of the mean prior over the gathered pixels that have one, shape (C,), float64."""
        prior = self._total[2]
        return torch.log(torch.from_numpy(prior / prior.sum()).clamp_min(_LEAST_PRIOR))

    def given_up(self) -> list[int]:
        """Return the classes that the training gave up (:func:`landprior.landcover.mapping.finish.find_given_up`)."""
        _, named, prior = self._total
        return find_given_up(named / named.sum(), prior / prior.sum()) if named.any() else []


def count_named(shares: Tensor, belief: Transfer, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how many pixels have each class as the most probable, and the sums of the prior, where there is one.

    Parameters
    ----------
    shares
        q, (C, h, w).
    belief
        The prior on its way to the device, (C, h, w), and the mask of where it exists, (h, w).
    inside
        Where there is data, (h, w); None: everywhere.

    Returns
    -------
    tuple of Tensor
        Two of shape (C,), float64.
    """
    prior, has_prior = arrived(belief)
    counted = has_prior if inside is None else has_prior & inside
    named = torch.bincount(shares.argmax(0)[counted], minlength=len(shares))
    return named.double(), (prior * counted).sum((1, 2), dtype=torch.float64)


def arrived(belief: Transfer) -> tuple[Tensor, Tensor]:
    """Return a prior that was sent to the device, (C, h, w), and the mask of where it exists, (h, w)."""
    prior, has_prior = belief.wait()
    if prior is None or has_prior is None:  # pragma: no cover - both are always sent
        msg = "the prior was not sent"
        raise ValueError(msg)
    return prior, has_prior
