"""Patches: connected areas of one class, found strip by strip over rasters of any size.

Memory depends on the number of patches, not on the number of pixels. Patches are numbered in the order of their last
pixels, so that the numbers do not depend on the strips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from landprior.errors import InputError
from landprior.raster.windows import Block, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from landprior.raster.grid import Grid
    from landprior.raster.pixel_areas import PixelAreas
    from landprior.raster.windows import Sink

Connectivity = Literal[4, 8]
"""Whether pixels that only touch at a corner belong to one patch (8) or not (4)."""

STRIP_PIXELS = 2**22
"""Number of pixels of a strip, unless a single row has more."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The patches of a raster.

    Parameters
    ----------
    grid
        Grid of the raster.
    rows
        Number of rows of a strip.
    classes
        Class of each patch, shape (P,).
    last
        Index of its last pixel in row-major order, shape (P,).
    areas
        Its area in square metres on the ground, shape (P,), or in pixels if areas were not measured.
    """

    grid: Grid
    rows: int
    classes: NDArray[np.int16]
    last: NDArray[np.int64]
    areas: NDArray[np.float64]
    _read: Callable[[Window], NDArray[np.int16]]
    _connectivity: Connectivity
    _numbers: NDArray[np.int32]
    _offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.classes.size

    def stream(
        self,
        compute: Callable[[Block, NDArray[np.int32]], Mapping[str, NDArray[np.generic]]],
        *,
        sinks: Mapping[str, Sink] | None = None,
        label: str = "",
        progress: bool = False,
    ) -> None:
        """Run ``compute`` on every strip, from the top down, and write its results.

        Parameters
        ----------
        compute
            Function that gets a strip and the number of each pixel's patch, shape (H, W), -1 where there is none. See
            :func:`landprior.raster.windows.stream` for its results.
        sinks, label, progress
            See :func:`landprior.raster.windows.stream`.
        """

        def number(block: Block, values: NDArray[np.int16]) -> Mapping[str, NDArray[np.generic]]:
            labels, _ = label_strip(values, self._connectivity)
            offset = self._offsets[int(block.core.row_off) // self.rows]
            found = self._numbers[labels + offset]
            found[labels < 0] = -1
            return compute(block, found)

        stream(
            number,
            read=lambda block: self._read(block.core),
            grid=self.grid,
            sinks=sinks or {},
            size=(self.rows, self.grid.width),
            label=label,
            progress=progress,
        )


def find_patches(
    read: Callable[[Window], NDArray[np.int16]],
    grid: Grid,
    *,
    areas: PixelAreas | None,
    connectivity: Connectivity = 4,
    rows: int | None = None,
    where: str | Path = "the map",
    progress: bool = False,
) -> Patches:
    """Find the patches of a raster of classes.

    Parameters
    ----------
    read
        Function that reads the classes of a window, shape (H, W); negative where there is no data.
    grid
        Grid of the raster.
    areas
        Areas of its pixels on the ground; None to count pixels.
    connectivity
        See :data:`Connectivity`.
    rows
        Number of rows of a strip; by default as many as give about :data:`STRIP_PIXELS`.
    where
        Name of the raster in messages.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    Patches
        The patches, in the order of their last pixels.

    Raises
    ------
    InputError
        If no pixel has a class.
    """
    rows = rows or max(1, STRIP_PIXELS // grid.width)
    classes: list[NDArray[np.int16]] = []
    last: list[NDArray[np.int64]] = []
    sums: list[NDArray[np.float64]] = []
    seams: list[NDArray[np.int64]] = []
    offsets = [0]
    above: tuple[NDArray[np.int64], NDArray[np.int16]] | None = None

    def gather(block: Block, values: NDArray[np.int16]) -> dict[str, NDArray[np.generic]]:
        nonlocal above
        labels, found = label_strip(values, connectivity)
        flat = labels.ravel()
        ends = np.zeros(found.size + 1, dtype=np.int64)  # one more for pixels without data
        ends[flat] = np.arange(flat.size) + int(block.core.row_off) * grid.width  # the last of equal indices counts
        sizes = np.bincount(flat[flat >= 0], minlength=found.size).astype(np.float64)
        classes.append(found)
        last.append(ends[:-1])
        sums.append(sizes if areas is None else areas.sums(labels, block.core, found.size))
        first, final = labels[0].astype(np.int64) + offsets[-1], labels[-1].astype(np.int64) + offsets[-1]
        if above is not None:
            seams.append(_pairs(np.stack([above[0], first]), np.stack([above[1], values[0]]), connectivity))
        above = final, values[-1]
        offsets.append(offsets[-1] + found.size)
        return {}

    stream(
        gather,
        read=lambda block: read(block.core),
        grid=grid,
        sinks={},
        size=(rows, grid.width),
        label="finding patches",
        progress=progress,
    )
    if not offsets[-1]:
        msg = f"{where} has no classified pixel"
        raise InputError(msg)
    pairs = np.concatenate([np.empty((2, 0), dtype=np.int64), *seams], axis=1)
    count, joined = _components(pairs, offsets[-1])
    ends = np.zeros(count, dtype=np.int64)
    np.maximum.at(ends, joined, np.concatenate(last))
    order = np.argsort(ends)
    rank = np.empty(count, dtype=np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    numbers = rank[joined]
    class_of = np.empty(count, dtype=np.int16)
    class_of[numbers] = np.concatenate(classes)
    return Patches(
        grid=grid,
        rows=rows,
        classes=class_of,
        last=ends[order],
        areas=np.bincount(numbers, weights=np.concatenate(sums), minlength=count).astype(np.float64),
        _read=read,
        _connectivity=connectivity,
        _numbers=numbers,
        _offsets=np.array(offsets),
    )


def label_strip(
    values: NDArray[np.int16], connectivity: Connectivity = 4
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Find the patches of an array, as runs along rows that are joined where they meet.

    Parameters
    ----------
    values
        Classes, shape (H, W); negative where there is no data.
    connectivity
        See :data:`Connectivity`.

    Returns
    -------
    labels : ndarray of int32
        Number of each pixel's patch, shape (H, W), -1 where there is no data.
    classes : ndarray of int16
        Class of each patch.
    """
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    runs = np.cumsum(starts.ravel(), dtype=np.int32).reshape(values.shape) - 1
    of_runs = values[starts]
    _, joined = _components(_pairs(runs, values, connectivity, starts), of_runs.size)
    # of the numbers only those of patches with data remain
    classes = np.full(int(joined.max()) + 1, -1, dtype=np.int16)
    classes[joined] = of_runs
    known = classes >= 0
    renumbered = np.where(known, np.cumsum(known, dtype=np.int32) - 1, -1).astype(np.int32)
    return renumbered[joined][runs], classes[known]


def _pairs(
    labels: NDArray[np.integer],
    values: NDArray[np.int16],
    connectivity: Connectivity,
    starts: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Return the pairs of labels that meet between rows, shape (2, n); each at least once.

    Labels must not change within a run of equal values.
    """
    upper, lower, high, low = values[:-1], values[1:], labels[:-1], labels[1:]
    same = (upper == lower) & (lower >= 0)
    if starts is None:
        starts = np.ones(values.shape, dtype=bool)
        starts[:, 1:] = values[:, 1:] != values[:, :-1]
    once = same & (starts[:-1] | starts[1:])
    found = [np.stack([high[once], low[once]])]
    if connectivity == 8:  # corners count where no side joins the two pixels
        for a, b, other in ((np.s_[:, :-1], np.s_[:, 1:], upper[:, 1:]), (np.s_[:, 1:], np.s_[:, :-1], upper[:, :-1])):
            touch = (upper[a] == lower[b]) & (lower[b] >= 0) & (other != upper[a]) & (lower[a] != upper[a])
            found.append(np.stack([high[a][touch], low[b][touch]]))
    return np.concatenate(found, axis=1).astype(np.int64)


def _components(pairs: NDArray[np.int64], count: int) -> tuple[int, NDArray[np.int32]]:
    """Return the number of connected components of ``count`` nodes joined by pairs, and that of each node."""
    graph = csr_array((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(count, count))
    number, found = connected_components(graph, directed=False)
    return int(number), found
