"""Posteriors of patches over all positions of the image they come from, fast and exact.

The direct formulation convolves the image with every patch and takes a softmax over the whole of each result. Here
inner products come from matrix products in pieces that stay in the processor's cache; of each piece only the rows that
reach near their own largest value are looked at again; and what is kept of a posterior is sparse, unless the patch is
of an even surface and matches a large part of the image, when a dense product is faster. What is left out of a
posterior sums to less than 1e-6 of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from scipy.sparse import csr_matrix

from landprior.superres.epitome_training import cut_patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

LEFT_OUT = 1e-6
"""Largest part of a posterior that is left out."""

BLOCK_VALUES = 32_000_000
"""Floats of dense posteriors held at a time (128 MB)."""

CACHED_PATCHES = 64_000_000
"""Floats of the unfolded image that are kept; a larger one is unfolded again for each block of patches."""

CACHED_ENTRIES = 12_000_000
"""Entries of sparse posteriors that are kept for a further pass (some 200 MB); beyond, they are computed again."""

MERGED_ENTRIES = 4_000_000
"""Entries at which sparse rows are handed on."""

ROWS = 256
"""Patches whose posteriors are computed together, at most."""

STRIP = 1024
"""Positions of a piece, about: the products of a piece with all rows are a megabyte."""

REFINED = 1e-3
"""Share of a posterior from which an entry is computed anew, by differences: the product's exponents are rounded to some
1e-4, which is a share of the entry."""

DENSE = 0.05
"""Share of a block's entries from which it is kept dense."""


@dataclass(frozen=True)
class Sparse:
    """Posteriors of some patches, sparse: ``rows`` are indices of patches, (r,); the matrix is (r, S)."""

    rows: NDArray[np.int64]
    matrix: csr_matrix
    turned: csr_matrix

    def gather(self, values: Tensor) -> Tensor:
        """Return posterior means, (r, m), of values, (S, m)."""
        return _multiply(self.matrix, values)

    def scatter(self, values: Tensor) -> Tensor:
        """Return sums over patches of posterior times value, (S, m), of values, (r, m)."""
        return _multiply(self.turned, values)


@dataclass(frozen=True)
class Dense:
    """The same, as a full matrix, (r, S)."""

    rows: NDArray[np.int64]
    matrix: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """See :meth:`Sparse.gather`."""
        return self.matrix @ values

    def scatter(self, values: Tensor) -> Tensor:
        """See :meth:`Sparse.scatter`."""
        return self.matrix.T @ values


def _multiply(matrix: csr_matrix, values: Tensor) -> Tensor:
    """Multiply a sparse matrix and a dense one on all cores."""
    found: Tensor = F.embedding_bag(
        torch.from_numpy(matrix.indices),
        values.contiguous(),
        torch.from_numpy(matrix.indptr),
        mode="sum",
        per_sample_weights=torch.from_numpy(matrix.data),
        include_last_offset=True,
    )
    return found


class Posteriors:
    """p(s | patch) of patches of an image over all positions s of that image.

    p(s | x) is proportional to exp(-||x - x_s||^2 / (2 variance)) over the positions whose patch has no gap, all of
    them equally probable beforehand.

    Parameters
    ----------
    image
        Shape (B, H, W), float32, on the scale of ``variance``.
    usable
        Shape (H - w + 1, W - w + 1): positions (upper left pixels) whose patch has no gap.
    corners
        Positions of the patches, (P,), flat indices into ``usable``.
    patch, variance
        Side w, and variance of every value.
    without_self
        A patch does not match itself.
    """

    def __init__(
        self,
        image: Tensor,
        usable: Tensor,
        corners: Tensor,
        *,
        patch: int,
        variance: float,
        without_self: bool,
    ) -> None:
        # inner products of centred data are small, so that exponents lose no digits
        good = F.pad(usable[None, None].float(), (patch - 1,) * 4)
        seen = F.max_pool2d(good, patch, stride=1)[0, 0] > 0
        mean = image[:, seen].mean(dim=1) if bool(seen.any()) else image.flatten(1).mean(dim=1)
        self._image = torch.where(seen, image - mean[:, None, None], 0.0)
        self._shape = (int(usable.shape[0]), int(usable.shape[1]))
        self._patch, self._variance, self._without_self = patch, variance, without_self
        squares = F.avg_pool2d(self._image.square().sum(dim=0)[None, None], patch, stride=1)[0, 0] * patch**2
        self._bias = torch.where(usable, squares / (-2 * variance), -torch.inf).flatten()
        self._pieces: list[tuple[int, int, Tensor]] | None = None
        # patches of one kind together: their posteriors are alike in size
        energy = self._energy(corners)
        self._order = torch.argsort(energy).numpy()
        self._corners = corners
        self._range = math.log(max(int(usable.sum()), 1) / LEFT_OUT)
        self._kept: list[Sparse] = []
        self._left: list[NDArray[np.int64]] | None = None

    @property
    def positions(self) -> int:
        """Number of positions S, usable or not."""
        return self._shape[0] * self._shape[1]

    def _energy(self, corners: Tensor) -> Tensor:
        """Return how much each patch varies."""
        box = self._image[None]
        mean = F.avg_pool2d(box, self._patch, stride=1)[0]
        square = F.avg_pool2d(box.square(), self._patch, stride=1)[0]
        return (square - mean.square()).sum(dim=0).flatten()[corners]

    def blocks(self) -> Iterator[Sparse | Dense]:
        """Give the posteriors of all patches, in some order; what fits is kept for the next call."""
        first = self._left is None
        yield from self._kept
        left: list[NDArray[np.int64]] = []
        waiting: list[tuple[NDArray[np.int64], csr_matrix]] = []
        for rows in self._todo():
            block = self._compute(rows)
            if isinstance(block, Dense):
                left.append(rows)
                yield block
                continue
            waiting.append((rows, block))
            if sum(matrix.nnz for _, matrix in waiting) >= MERGED_ENTRIES:
                yield self._merge(waiting, left, keep=first)
                waiting = []
        if waiting:
            yield self._merge(waiting, left, keep=first)
        if first:
            self._left = left

    def _todo(self) -> list[NDArray[np.int64]]:
        if self._left is not None:
            return self._left
        count = max(1, min(ROWS, BLOCK_VALUES // max(self.positions, 1)))
        return [self._order[first : first + count] for first in range(0, len(self._order), count)]

    def _merge(
        self, waiting: list[tuple[NDArray[np.int64], csr_matrix]], left: list[NDArray[np.int64]], *, keep: bool
    ) -> Sparse:
        rows = np.concatenate([some for some, _ in waiting])
        indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(m.indptr) for _, m in waiting]))])
        matrix = csr_matrix(
            (
                np.concatenate([m.data for _, m in waiting]),
                np.concatenate([m.indices for _, m in waiting]),
                indptr.astype(np.int32),
            ),
            shape=(len(rows), self.positions),
        )
        block = Sparse(rows, matrix, matrix.T.tocsr())
        if keep and sum(one.matrix.nnz for one in self._kept) + matrix.nnz <= CACHED_ENTRIES:
            self._kept.append(block)
        else:
            left.extend(some for some, _ in waiting)
        return block

    def _unfolded(self) -> Iterator[tuple[int, int, Tensor]]:
        """Give the patches of all positions in pieces: first and last position, and (B w w, n)."""
        if self._pieces is not None:
            yield from self._pieces
            return
        height, width = self._shape
        rows = max(1, STRIP // width)
        size = self.positions * self._image.shape[0] * self._patch**2
        keep: list[tuple[int, int, Tensor]] | None = [] if size <= CACHED_PATCHES else None
        for top in range(0, height, rows):
            lower = min(top + rows, height)
            strip = self._image[None, :, top : lower + self._patch - 1]
            piece = (top * width, lower * width, F.unfold(strip, self._patch)[0])
            if keep is not None:
                keep.append(piece)
            yield piece
        self._pieces = keep

    def _compute(self, rows: NDArray[np.int64]) -> csr_matrix | Dense:
        corners = self._corners[rows]
        width = self._image.shape[-1]
        at = corners // self._shape[1] * width + corners % self._shape[1]
        patches = cut_patches(self._image, at, self._patch).flatten(1) / self._variance
        pieces: list[tuple[int, Tensor]] = []
        tops: list[Tensor] = []
        for first, last, unfolded in self._unfolded():
            exponent = torch.addmm(self._bias[first:last], patches, unfolded)
            if self._without_self:
                inside = (corners >= first) & (corners < last)
                exponent[inside, corners[inside] - first] = -torch.inf
            tops.append(exponent.amax(dim=1))
            pieces.append((first, exponent))
        top = torch.stack(tops, dim=1)
        largest = top.amax(dim=1)
        largest = torch.where(torch.isfinite(largest), largest, 0.0)  # the only usable position, without itself
        near = top > (largest - self._range)[:, None]
        found = self._pick(pieces, near.numpy(), largest.numpy(), budget=DENSE * len(rows) * self.positions)
        if found is None:
            matrix = torch.cat([exponent for _, exponent in pieces], dim=1)
            # what lies far below is nothing, and exact zeros keep subnormal numbers, which are slow, out of products
            matrix.sub_(largest[:, None]).clamp_min_(-self._range - 10).exp_()
            matrix.div_(matrix.sum(dim=1, keepdim=True))
            return Dense(rows, F.threshold_(matrix, LEFT_OUT / self.positions, 0.0))
        picked, positions, weights = found
        total = np.bincount(picked, weights=weights, minlength=len(rows))
        heavy = np.flatnonzero(weights > REFINED * total[picked])
        squares = patches.double().square().sum(dim=1).numpy() * (self._variance / 2)
        exact = self._measure(at[picked[heavy]], positions[heavy])
        weights[heavy] = np.exp(squares[picked[heavy]] - exact - largest.numpy()[picked[heavy]])
        return self._assemble(picked, positions, weights, count=len(rows))

    def _measure(self, at: Tensor, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ||x - x_s||^2 / (2 variance) by differences, of patches at pixels and of positions."""
        width = self._image.shape[-1]
        there = torch.from_numpy(positions // self._shape[1] * width + positions % self._shape[1])
        found = [
            (cut_patches(self._image, one, self._patch) - cut_patches(self._image, other, self._patch))
            .square()
            .sum(dim=(1, 2, 3))
            for one, other in zip(torch.split(at, 20_000), torch.split(there, 20_000), strict=True)
        ]
        return np.asarray(torch.cat(found).double().numpy() / (2 * self._variance))

    def _pick(
        self, pieces: list[tuple[int, Tensor]], near: NDArray[np.bool_], largest: NDArray[np.float32], *, budget: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]] | None:
        """Return rows, positions and weights of what counts, or None if it is more than the budget."""
        parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        total = 0
        threshold = largest - np.float32(self._range)
        for number, (first, exponent) in enumerate(pieces):
            rows = np.flatnonzero(near[:, number])
            if not len(rows):
                continue
            values = exponent.numpy()
            values = values if len(rows) == len(values) else values[rows]
            flat = np.flatnonzero(values > threshold[rows, None])
            total += len(flat)
            if total > budget:
                return None
            row, position = np.divmod(flat, values.shape[1])
            row = rows[row]
            parts.append((row, position + first, np.exp(values.ravel()[flat] - largest[row])))
        if not parts:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing, np.empty(0, dtype=np.float32)
        rows, positions, weights = (np.concatenate(some) for some in zip(*parts, strict=True))
        return rows, positions, weights

    def _assemble(
        self, rows: NDArray[np.int64], positions: NDArray[np.int64], weights: NDArray[np.float32], *, count: int
    ) -> csr_matrix:
        """Return a matrix with rows that sum to one, without the entries that sum to next to nothing."""
        total = np.bincount(rows, weights=weights, minlength=count)
        number = np.bincount(rows, minlength=count)
        share = weights / total[rows].astype(np.float32)
        kept = share > (LEFT_OUT / np.maximum(number, 1)).astype(np.float32)[rows]
        return csr_matrix(
            (share[kept], (rows[kept].astype(np.int32), positions[kept].astype(np.int32))),
            shape=(count, self.positions),
        )
