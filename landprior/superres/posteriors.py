"""Posteriors of patches over all positions of the image they come from, fast and exact.

Directly, one would convolve the image with every patch and take a softmax over each result. Here inner products are
matrix products of pieces that fit into the processor's cache. A piece contains positions with similar patches, so many
positions can be excluded as too distant from a patch by the leading principal components alone. Posteriors are stored
sparse, unless a patch is of a uniform surface and matches a large part of the image, when dense products are faster.
The dropped part of a posterior is less than 1e-6 of it.
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
"""Maximum mass of a posterior that is dropped."""

BLOCK_VALUES = 32_000_000
"""Maximum floats of dense posteriors in memory (128 MB)."""

CACHED_PATCHES = 64_000_000
"""Maximum floats of the unfolded image kept in memory; a larger one is unfolded again for each block of patches."""

CACHED_ENTRIES = 12_000_000
"""Maximum entries of sparse posteriors kept for another pass (about 200 MB); the rest are computed again."""

MERGED_ENTRIES = 4_000_000
"""Number of entries after which sparse rows are passed on."""

ROWS = 256
"""Maximum number of patches whose posteriors are computed together."""

LEAF = 1024
"""Maximum positions of a piece, so that its products with all rows take a megabyte."""

COMPONENTS = 8
"""Principal components used to exclude pieces too distant from a patch."""

REFINED = 1e-2
"""Share of a posterior above which an entry is recomputed by differences: the product's exponents are rounded to
about 1e-4, a relative error of the entry."""

DENSE = 0.05
"""Share of a block's entries above which it is stored dense."""


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
    """Posteriors as dense matrices of some rows and positions each; valid until the next block is requested."""

    rows: NDArray[np.int64]
    positions: int
    """Number of positions S."""
    order: Tensor
    """Usable positions in the order of the pieces."""
    pieces: list[tuple[Tensor, slice, Tensor]]
    """Rows, (m,), places, (n,), and their posteriors, (m, n)."""

    def gather(self, values: Tensor) -> Tensor:
        """See :meth:`Sparse.gather`."""
        found = values.new_zeros(len(self.rows), values.shape[1])
        sorted_values = values[self.order]
        for rows, places, matrix in self.pieces:
            found.index_add_(0, rows, matrix @ sorted_values[places])
        return found

    def scatter(self, values: Tensor) -> Tensor:
        """See :meth:`Sparse.scatter`."""
        found = values.new_zeros(self.positions, values.shape[1])
        turned = values.T.contiguous()
        for rows, places, matrix in self.pieces:
            # with the wide matrix on the right, products are several times faster; transposed back in cache
            here = turned if len(rows) == len(values) else turned[:, rows]
            found.index_copy_(0, self.order[places], torch.mm(here, matrix).T.contiguous())
        return found


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

    p(s | x) is proportional to exp(-||x - x_s||^2 / (2 variance)) over the positions whose patch has no gap, all
    equally probable a priori.

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
    groups
        A number for each patch, (P,): a block has only patches with the same number.
    own
        Weight of a patch's match with itself, 0 to 1, against 1 - own for all others; None: as given by p(s|x).
    """

    def __init__(
        self,
        image: Tensor,
        usable: Tensor,
        corners: Tensor,
        *,
        patch: int,
        variance: float,
        own: float | None,
        groups: Tensor | None = None,
    ) -> None:
        # inner products of centred data are small, so that exponents keep their precision
        good = F.pad(usable[None, None].float(), (patch - 1,) * 4)
        seen = F.max_pool2d(good, patch, stride=1)[0, 0] > 0
        mean = image[:, seen].mean(dim=1) if bool(seen.any()) else image.flatten(1).mean(dim=1)
        self._image = torch.where(seen, image - mean[:, None, None], 0.0)
        self._shape = (int(usable.shape[0]), int(usable.shape[1]))
        self._patch, self._variance, self._own = patch, variance, own
        self._groups = np.zeros(len(corners), dtype=np.int64) if groups is None else groups.numpy()
        self._corners = corners
        there = torch.nonzero(usable.flatten())[:, 0]
        self._range = math.log(max(len(there), 1) / LEFT_OUT)
        squares = F.avg_pool2d(self._image.square().sum(dim=0)[None, None], patch, stride=1)[0, 0] * patch**2
        self._squares = squares.flatten()
        features = self._describe(there)
        parts = _split(features, LEAF)
        self._leaves = [there[part] for part in parts]
        boxes = [features[part] for part in parts]
        self._low = torch.stack([box.amin(dim=0) for box in boxes])
        self._high = torch.stack([box.amax(dim=0) for box in boxes])
        place = torch.full((self.positions,), len(there))
        place[torch.cat(self._leaves)] = torch.arange(len(there))
        self._place = place  # rank of a position in the order of the leaves; unusable ones come last
        lengths = torch.tensor([0, *(len(leaf) for leaf in self._leaves)])
        self._first = torch.cumsum(lengths, dim=0).tolist()
        self._features = features[torch.searchsorted(there, corners)]
        # similar patches together, so that they exclude the same positions
        self._order = np.lexsort((place[corners].numpy(), self._groups))
        self._unfolded: list[Tensor | None] = [None] * len(self._leaves)
        self._kept: list[Sparse] = []
        self._buffer: Tensor | None = None
        self._left: list[NDArray[np.int64]] | None = None

    @property
    def positions(self) -> int:
        """Number of positions S, usable or not."""
        return self._shape[0] * self._shape[1]

    @property
    def _count(self) -> int:
        """Maximum number of patches in a block."""
        return max(1, min(ROWS, BLOCK_VALUES // max(self.positions, 1)))

    def _describe(self, positions: Tensor) -> Tensor:
        """Return coordinates of patches, (n, m): their distances never exceed those of the patches.

        They are the leading principal components, and the norm of the remainder.
        """
        some = positions[:: max(1, len(positions) // 4000)]
        sample = cut_patches(self._image, self._pixels(some), self._patch).flatten(1)
        _, axes = torch.linalg.eigh(sample.T @ sample)
        leading = axes[:, -min(COMPONENTS, axes.shape[1]) :].flip(1)
        kernels = leading.T.reshape(-1, self._image.shape[0], self._patch, self._patch)
        found = F.conv2d(self._image[None], kernels.contiguous())[0].flatten(1).T[positions]
        rest = (self._squares[positions] - found.square().sum(dim=1)).clamp_min(0).sqrt()
        return torch.cat([found, rest[:, None]], dim=1)

    def _pixels(self, positions: Tensor) -> Tensor:
        """Return the flat index of the upper left pixel of positions."""
        return positions // self._shape[1] * self._image.shape[-1] + positions % self._shape[1]

    def blocks(self) -> Iterator[Sparse | Dense]:
        """Yield the posteriors of all patches, in any order; as many as fit are kept for the next call."""
        first = self._left is None
        yield from self._kept
        left: list[NDArray[np.int64]] = []
        waiting: list[tuple[NDArray[np.int64], csr_matrix]] = []
        for rows in self._todo():
            if waiting and self._groups[waiting[0][0][0]] != self._groups[rows[0]]:
                yield self._merge(waiting, left, keep=first)
                waiting = []
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
        count = self._count
        ends = np.flatnonzero(np.diff(self._groups[self._order])) + 1
        return [
            group[first : first + count]
            for group in np.split(self._order, ends)
            for first in range(0, len(group), count)
        ]

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

    def _unfold(self, number: int) -> Tensor:
        """Return the patches of a leaf, (n, B w w)."""
        known = self._unfolded[number]
        if known is None:
            known = cut_patches(self._image, self._pixels(self._leaves[number]), self._patch).flatten(1)
            if self.positions * known.shape[1] <= CACHED_PATCHES:
                self._unfolded[number] = known
        return known

    def _compute(self, rows: NDArray[np.int64]) -> csr_matrix | Dense:
        corners = self._corners[rows]
        patches = cut_patches(self._image, self._pixels(corners), self._patch).flatten(1)
        squares = self._squares[corners] / (2 * self._variance)
        pieces, largest = self._reach(corners, patches / self._variance, squares, self._features[rows])
        found = self._pick(pieces, largest, budget=DENSE * len(rows) * self.positions)
        if found is None:
            return self._densify(rows, corners, pieces, largest)
        picked, positions, weights = found
        total = np.bincount(picked, weights=weights, minlength=len(rows))
        heavy = np.flatnonzero(weights > REFINED * total[picked])
        exact = self._measure(corners[picked[heavy]], torch.from_numpy(positions[heavy]))
        weights[heavy] = np.exp((squares - largest).double().numpy()[picked[heavy]] - exact)
        return self._assemble(picked, positions, weights, corners.numpy())

    def _reach(
        self, corners: Tensor, scaled: Tensor, squares: Tensor, features: Tensor
    ) -> tuple[list[tuple[Tensor, int, Tensor]], Tensor]:
        """Return the exponents of relevant rows and leaves, and the largest of each row.

        Exponents lack the row's own constant, ``squares``. A leaf's bounding box is at least as close as its positions,
        so the leaf is excluded if the box is too distant.
        """
        gaps = (self._low - features[:, None]).clamp_min_(0) + (features[:, None] - self._high).clamp_min_(0)
        # slightly less than the distance, to allow for rounding
        bounds = squares[:, None] - gaps.square_().sum(dim=2) * (0.9999 / (2 * self._variance)) + 0.01
        if self._buffer is None:
            self._buffer = torch.empty(self._count * self.positions)  # one for all: new pages are slow
        largest = torch.full((len(corners),), -torch.inf)
        if self._own is None:
            largest = squares - 0.01  # the match with itself
        pieces: list[tuple[Tensor, int, Tensor]] = []
        used = 0
        everyone = torch.arange(len(corners))
        for number in torch.argsort(bounds.amax(dim=0), descending=True).tolist():
            rows = torch.nonzero(bounds[:, number] > largest - self._range)[:, 0]
            if not len(rows):
                continue
            all_of_them = len(rows) > 0.7 * len(corners)
            rows = everyone if all_of_them else rows
            leaf = self._leaves[number]
            exponent = self._buffer[used : used + len(rows) * len(leaf)].view(len(rows), len(leaf))
            used += exponent.numel()
            bias = self._squares[leaf] / (-2 * self._variance)
            torch.addmm(bias, scaled if all_of_them else scaled[rows], self._unfold(number).T, out=exponent)
            if self._own is not None:
                exponent[self._find(corners[rows], number)] = -torch.inf
            top = exponent.amax(dim=1)
            largest[rows] = torch.maximum(largest[rows], top)
            pieces.append((rows, number, exponent))
        # a patch at the only usable position has no other match
        return pieces, torch.where(torch.isfinite(largest), largest, 0.0)

    def _densify(
        self, rows: NDArray[np.int64], corners: Tensor, pieces: list[tuple[Tensor, int, Tensor]], largest: Tensor
    ) -> Dense:
        sums = torch.zeros(len(rows), 1)
        for here, _, exponent in pieces:
            # negligible values become exact zeros, which keeps slow subnormal numbers out of products
            exponent.sub_(largest[here][:, None]).clamp_min_(-self._range - 10).exp_()
            F.threshold(exponent, LEFT_OUT / self.positions, 0.0, inplace=True)
            sums.index_add_(0, here, exponent.sum(dim=1, keepdim=True))
        found = []
        for here, number, exponent in pieces:
            exponent.mul_((1 - (self._own or 0)) / sums[here])
            if self._own:
                exponent[self._find(corners[here], number)] = self._own
            found.append((here, slice(self._first[number], self._first[number + 1]), exponent))
        return Dense(rows, self.positions, torch.cat(self._leaves), found)

    def _find(self, corners: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return which positions are in a leaf, and their indices in it."""
        at = self._place[corners] - self._first[number]
        rows = torch.nonzero((at >= 0) & (at < len(self._leaves[number])))[:, 0]
        return rows, at[rows]

    def _measure(self, ones: Tensor, others: Tensor) -> NDArray[np.float64]:
        """Return ||x - x_s||^2 / (2 variance) of pairs of positions, by differences."""
        pairs = zip(torch.split(self._pixels(ones), 5_000), torch.split(self._pixels(others), 5_000), strict=True)
        found = [
            (cut_patches(self._image, one, self._patch) - cut_patches(self._image, other, self._patch))
            .square()
            .sum(dim=(1, 2, 3))
            for one, other in pairs
        ]
        return np.asarray(torch.cat(found).double().numpy() / (2 * self._variance))

    def _pick(
        self, pieces: list[tuple[Tensor, int, Tensor]], largest: Tensor, *, budget: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]] | None:
        """Return rows, positions and weights of relevant entries, or None if they exceed the budget."""
        parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        total = 0
        tops = largest.numpy()
        threshold = tops - np.float32(self._range)
        for here, number, exponent in pieces:
            rows, values = here.numpy(), exponent.numpy()
            flat = np.flatnonzero(values > threshold[rows, None])
            total += len(flat)
            if total > budget:
                return None
            row, at = np.divmod(flat, values.shape[1])
            row = rows[row]
            parts.append((row, self._leaves[number].numpy()[at], np.exp(values.ravel()[flat] - tops[row])))
        if not parts:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing, np.empty(0, dtype=np.float32)
        rows, positions, weights = (np.concatenate(some) for some in zip(*parts, strict=True))
        return rows, positions, weights

    def _assemble(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        weights: NDArray[np.float32],
        corners: NDArray[np.int64],
    ) -> csr_matrix:
        """Return a matrix with rows that sum to one, without negligible entries."""
        count = len(corners)
        total = np.bincount(rows, weights=weights, minlength=count)
        number = np.bincount(rows, minlength=count)
        share = weights / total[rows].astype(np.float32)
        kept = share > (LEFT_OUT / np.maximum(number, 1)).astype(np.float32)[rows]
        share, rows, positions = share[kept], rows[kept], positions[kept]
        if self._own:
            share = np.concatenate([share * np.float32(1 - self._own), np.full(count, self._own, np.float32)])
            rows, positions = np.concatenate([rows, np.arange(count)]), np.concatenate([positions, corners])
        return csr_matrix((share, (rows.astype(np.int32), positions.astype(np.int32))), shape=(count, self.positions))


def _split(features: Tensor, size: int) -> list[Tensor]:
    """Split points, (n, m), into parts of at most ``size`` that are close together: by quarters of the widest axis."""
    waiting, found = [torch.arange(len(features))], []
    while waiting:
        some = waiting.pop()
        if len(some) <= size:
            found.append(some)
            continue
        values = features[some]
        along = values[:, values.var(dim=0).argmax()]
        waiting.extend(torch.tensor_split(some[torch.argsort(along)], 4))
    return found
