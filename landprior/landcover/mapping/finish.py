"""Finishing a map: classes that the training gave up are left out, and probabilities follow the edges of the image.

The network sees 11 x 11 px around a pixel and decides each pixel by itself, so its maps are speckled and their outlines
fray. The colour guided filter (He, Sun and Tang, "Guided image filtering", 2013) fits each class's probability around
a pixel as a linear function of the image's bands and gives the average of these fits: what looks alike becomes
alike, and steps of the image stay. The fits are made on cells of 2 x 2 px, from the exact sums over their pixels (He
and Sun, "Fast guided filter", 2015), which takes half the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from landprior.errors import InputError
from landprior.landcover.mapping.options import FINISH_WIDTH
from landprior.landcover.training.head import SURE
from landprior.raster.filters import box_taps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

RIDGE = 0.1
"""Added to the variance of each standardised band: weaker steps of the image than its root are smoothed away."""

GIVEN_UP = 0.5
"""A class is given up if the share of pixels whose most probable class by q it is falls below this share of its mean
prior."""

_CELL = 2
"""Side of the cells on which the fits are made, pixels."""


@dataclass(frozen=True, eq=False)
class Finish:
    """How a map is finished: classes that were given up leave r, and probabilities are smoothed along edges.

    Parameters
    ----------
    smoothing
        The filter; None: there is none, as the pixels are too large for it.
    width
        Side of its square, metres.
    """

    smoothing: GuidedFilter | None
    width: float

    @classmethod
    def of(cls, pixel: tuple[float, float], width: float = FINISH_WIDTH) -> Finish:
        """Make the finish for a size of pixels; see :meth:`GuidedFilter.of`.

        Raises
        ------
        InputError
            If the width is not a positive number of metres.
        """
        if not (width > 0 and math.isfinite(width)):
            msg = f"the finish needs a positive width in metres, not {width}"
            raise InputError(msg)
        return cls(GuidedFilter.of(pixel, width), width)

    @property
    def name(self) -> str:
        """What the tags of a map call it."""
        return "classes" if self.smoothing is None else f"edge {self.width:g} m"


@dataclass(frozen=True, eq=False)
class GuidedFilter:
    """Smooths class probabilities along the edges of an image.

    Parameters
    ----------
    rows, columns
        Weights of the cells that a mean is over, along each axis: 2n + 1 of them.
    """

    rows: tuple[float, ...]
    columns: tuple[float, ...]

    @classmethod
    def of(cls, pixel: tuple[float, float], width: float = FINISH_WIDTH) -> GuidedFilter | None:
        """Make the filter of a width on the ground.

        Parameters
        ----------
        pixel
            Size of a pixel on the ground, metres, along x and y.
        width
            Side of the square, metres.

        Returns
        -------
        GuidedFilter or None
            None if the square is less than three pixels wide: there is nothing to smooth over.
        """
        if width < 3 * max(pixel):
            return None
        columns, rows = (_sums(width, size) for size in pixel)
        return cls(rows, columns)

    @property
    def halo(self) -> int:
        """How many pixels around a pixel its result depends on; one more, so that windows may begin anywhere."""
        return 2 * _CELL * (max(len(self.rows), len(self.columns)) // 2) + _CELL + 1

    @staticmethod
    def count_bytes(bands: int, classes: int, pixels: int) -> int:
        """Return how much memory :meth:`apply` takes at most, its arguments included.

        Parameters
        ----------
        bands, classes, pixels
            Numbers of bands of the guide, of classes, and of pixels of the window.

        Returns
        -------
        int
            Bytes.
        """
        on_pixels = 2 * (bands + classes) + 4
        on_cells = 3 * (bands * (bands + 1) // 2) + 4 * bands + 6
        return 4 * pixels * on_pixels + 4 * pixels * on_cells // _CELL**2

    def apply(self, shares: Tensor, valid: Tensor | None, guide: Tensor, corner: tuple[int, int]) -> Tensor:
        """Smooth the class probabilities of a window.

        Parameters
        ----------
        shares
            Class probabilities, (C, H, W), float32, finite; they sum to 1.
        valid
            Where there is data, (H, W), bool; None: everywhere. The rest has no part in any mean.
        guide
            Standardised bands, (B, H, W), float32, finite.
        corner
            Row and column of the raster at which the window begins.

        Returns
        -------
        Tensor
            (C, H, W), probabilities; right at :attr:`halo` pixels and more from those edges of the window that are not
            edges of the raster. Without meaning where not valid.
        """
        top, left = (at % _CELL for at in corner)
        height, width = shares.shape[1:]
        pads = (left, -(left + width) % _CELL, top, -(top + height) % _CELL)

        def frame(values: Tensor) -> Tensor:
            return functional.pad(values, pads) if any(pads) else values

        inside = None if valid is None else valid.to(shares.dtype)
        counts = _pool(frame(inside if inside is not None else torch.ones_like(shares[0])))
        total = self._sum(counts).clamp_min(_TINY)
        scale = 1 / total

        def mean(values: Tensor) -> Tensor:
            return self._sum(_pool(frame(values if inside is None else values * inside))).mul_(scale)

        bands = list(guide)
        means = [mean(band) for band in bands]
        spread = {}
        for i, j in combinations_with_replacement(range(len(bands)), 2):
            spread[i, j] = mean(bands[i] * bands[j]).addcmul_(means[i], means[j], value=-1)
        factors = _factorise(spread, len(bands))
        found = torch.empty_like(shares)
        rest = found[-1].fill_(1)
        for share, result in zip(shares[:-1], found, strict=False):  # the last class has what the others leave
            middle = mean(share)
            pairs = zip(bands, means, strict=True)
            together = [mean(share * band).addcmul_(middle, other, value=-1) for band, other in pairs]
            slopes = _solve(*factors, together)
            offset = middle
            for slope, other in zip(slopes, means, strict=True):
                offset = offset.addcmul(slope, other, value=-1)
            parts = [self._spread(value, counts, scale, pads) for value in (offset, *slopes)]
            result.copy_(parts[0])
            for slope, band in zip(parts[1:], bands, strict=True):
                result.addcmul_(slope, band)
            result.clamp_(0, 1)
            rest -= result
        rest.clamp_(0, 1)
        return found.div_(found.sum(0))

    def _sum(self, cells: Tensor) -> Tensor:
        """Sum over the square around each cell; beyond the edges there is nothing."""
        for axis, taps in ((0, self.rows), (1, self.columns)):
            n = len(taps) // 2
            padded = functional.pad(cells, (0, 0, n, n) if axis == 0 else (n, n))
            size = cells.shape[axis]
            pairs = padded.narrow(axis, 0, size) + padded.narrow(axis, 2 * n, size)
            cells = padded.narrow(axis, 1, size).clone()
            for offset in range(2, 2 * n):
                cells += padded.narrow(axis, offset, size)
            cells.add_(pairs, alpha=taps[0])
        return cells

    def _spread(self, values: Tensor, counts: Tensor, scale: Tensor, pads: tuple[int, ...]) -> Tensor:
        """Average a coefficient over the fits that a pixel has a part in, and interpolate it at the pixels."""
        cells = self._sum(values * counts).mul_(scale)
        left, right, top, bottom = pads
        finer = functional.interpolate(cells[None, None], scale_factor=_CELL, mode="bilinear")[0, 0]
        return finer[top : finer.shape[0] - bottom, left : finer.shape[1] - right]


_TINY = 1e-6
"""In place of a count of 0, where nothing is valid."""


def _sums(width: float, pixel: float) -> tuple[float, ...]:
    """Return the weights of cells that make a box of a width, 1 in the middle."""
    taps = box_taps(width, _CELL * pixel)
    if taps.size == 1:
        taps = np.array([0.0, 1.0, 0.0])
    return tuple((taps / taps[taps.size // 2]).tolist())


def _pool(values: Tensor) -> Tensor:
    """Sum over cells of 2 x 2 px."""
    rows = values[::2] + values[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _factorise(spread: dict[tuple[int, int], Tensor], size: int) -> tuple[dict[tuple[int, int], Tensor], list[Tensor]]:
    """Return L and 1 / D of the LDL' decomposition of the covariance, with the ridge on its diagonal, of each cell."""
    lower: dict[tuple[int, int], Tensor] = {}
    scaled: dict[tuple[int, int], Tensor] = {}  # L D
    inverse: list[Tensor] = []
    for j in range(size):
        pivot = spread[j, j] + RIDGE
        for k in range(j):
            pivot.addcmul_(lower[j, k], scaled[j, k], value=-1)
        inverse.append(pivot.clamp_min(RIDGE / 2).reciprocal_())
        for i in range(j + 1, size):
            value = spread[j, i].clone()
            for k in range(j):
                value.addcmul_(lower[i, k], scaled[j, k], value=-1)
            scaled[i, j] = value
            lower[i, j] = value * inverse[j]
    return lower, inverse


def _solve(lower: dict[tuple[int, int], Tensor], inverse: list[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Solve the equations of each cell."""
    found = [value.clone() for value in right]
    size = len(found)
    for i in range(size):
        for k in range(i):
            found[i].addcmul_(lower[i, k], found[k], value=-1)
    for i in reversed(range(size)):
        found[i].mul_(inverse[i])
        for k in range(i + 1, size):
            found[i].addcmul_(lower[k, i], found[k], value=-1)
    return found


def find_given_up(named: NDArray[np.float64], prior: NDArray[np.float64]) -> list[int]:
    """Return the classes that the training gave up.

    Parameters
    ----------
    named
        Share of the pixels whose most probable class by q it is, (C,).
    prior
        Mean prior over the same pixels, (C,).

    Returns
    -------
    list of int
        Positions of classes.
    """
    return np.flatnonzero(named < GIVEN_UP * prior).tolist()


def leave_out(log_prior: Tensor, given_up: Sequence[int]) -> Tensor:
    """Return a prior without the classes that were given up, except where it is sure of them.

    Parameters
    ----------
    log_prior
        Log of the prior, (N, C, H, W).
    given_up
        Positions of classes.

    Returns
    -------
    Tensor
        (N, C, H, W), not normalised; where nothing would be left the prior as it was.
    """
    if not given_up:
        return log_prior
    without = log_prior.clone()
    for index in given_up:
        channel = log_prior[:, index]
        without[:, index] = torch.where(channel >= math.log(SURE), channel, -torch.inf)
    return torch.where(torch.isinf(without).all(1, keepdim=True), log_prior, without)
