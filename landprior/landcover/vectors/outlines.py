"""Outlines of patches as polygons, built from the sides of their pixels.

The sides between patches are collected strip by strip as directed edges, with the patch on their left, and a patch's
rings are closed when its last row has been read. So there are no seams, and of the edges only those of unfinished
patches are in memory. A ring has a point where it turns and where the patch on its other side changes, and therefore
the same points as the rings of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray

EAST, SOUTH, WEST, NORTH = range(4)
"""Directions of edges; the next is a turn to the right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """Directed edges along the sides of pixels, each array of shape (n,).

    Parameters
    ----------
    patch, other
        The patch on the left of an edge, and that on the right; -1 for none.
    start, end
        Corners of pixels, as row * (width + 1) + column.
    direction
        One of :data:`EAST`, :data:`SOUTH`, :data:`WEST`, :data:`NORTH`.
    """

    patch: NDArray[np.int32]
    other: NDArray[np.int32]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    direction: NDArray[np.int8]

    def __len__(self) -> int:
        """Return the number of edges."""
        return self.patch.size

    def take(self, which: NDArray[np.generic]) -> Edges:
        """Return some of the edges, by a mask or by positions."""
        return Edges(**{name: getattr(self, name)[which] for name in self.__slots__})

    @classmethod
    def join(cls, parts: list[Edges]) -> Edges:
        """Return the edges of several parts, in order."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__})


def find_edges(numbers: NDArray[np.int32], above: NDArray[np.int32] | None, *, row: int, last: bool = False) -> Edges:
    """Find the edges between the patches of a strip, and between it and the row above.

    Parameters
    ----------
    numbers
        Number of each pixel's patch, shape (H, W), -1 where there is none.
    above
        The same for the row above the strip, shape (W,); None if it is the first.
    row
        Number of the strip's first row.
    last
        Whether the strip is the last.

    Returns
    -------
    Edges
        Of every patch; along a straight line between the same two patches there is one per side.
    """
    width = numbers.shape[1]
    outside = np.full((1, width), -1, dtype=numbers.dtype)
    full = np.concatenate([outside if above is None else above[None], numbers, *([outside] if last else [])])
    upper, lower, line, begin, finish = _find_runs(full[:-1], full[1:])
    begin, finish = ((row + line) * (width + 1) + at for at in (begin, finish))
    beside = np.pad(numbers, ((0, 0), (1, 1)), constant_values=-1).T
    left, right, column, top, bottom = _find_runs(beside[:-1], beside[1:])
    top, bottom = ((row + at) * (width + 1) + column for at in (top, bottom))
    sides = [
        _side(lower, upper, finish, begin, WEST),
        _side(upper, lower, begin, finish, EAST),
        _side(right, left, top, bottom, SOUTH),
        _side(left, right, bottom, top, NORTH),
    ]
    return Edges.join(sides)


def _find_runs(first: NDArray[np.int32], second: NDArray[np.int32]) -> tuple[NDArray[Any], ...]:
    """Find the runs along rows in which two arrays differ and neither changes.

    Returns the values of both, the row, and where the run starts and ends (exclusive).
    """
    changes = np.ones((first.shape[0], first.shape[1] + 1), dtype=bool)
    changes[:, 1:-1] = (first[:, 1:] != first[:, :-1]) | (second[:, 1:] != second[:, :-1])
    differ = first != second
    line, begin = np.nonzero(differ & changes[:, :-1])
    _, finish = np.nonzero(differ & changes[:, 1:])
    return first[line, begin], second[line, begin], line, begin, finish + 1


def _side(
    patch: NDArray[np.integer],
    other: NDArray[np.integer],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    direction: int,
) -> Edges:
    there = patch >= 0
    return Edges(
        patch=patch[there].astype(np.int32),
        other=other[there].astype(np.int32),
        start=start[there],
        end=end[there],
        direction=np.full(int(there.sum()), direction, dtype=np.int8),
    )


def build_polygons(edges: Edges, width: int, transform: Affine) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Build the polygons of patches from all their edges.

    Parameters
    ----------
    edges
        The edges of some patches, complete, in any order.
    width
        Width of the raster in pixels.
    transform
        Its transform.

    Returns
    -------
    patches : ndarray of int32
        The patches, in ascending order.
    polygons : ndarray of shapely.Polygon
        Their polygons: valid, with a counter-clockwise exterior. Their points do not depend on the order of edges.
    """
    order, rings = _trace(edges)
    traced = edges.take(order)
    firsts = np.flatnonzero(np.append(True, rings[1:] != rings[:-1]))
    before = np.arange(order.size) - 1
    before[firsts] = np.append(firsts[1:], order.size) - 1
    corner = (traced.direction != traced.direction[before]) | (traced.other != traced.other[before])
    traced, rings = traced.take(corner), rings[corner]
    rows, columns = np.divmod(traced.start, width + 1)
    firsts = np.flatnonzero(np.append(True, rings[1:] != rings[:-1]))
    after = np.arange(rings.size) + 1
    after[np.append(firsts[1:], rings.size) - 1] = firsts
    twice = np.add.reduceat(columns * rows[after] - columns[after] * rows, firsts)  # rows count downwards
    owner = traced.patch[firsts]
    # exteriors before holes, and each kind by its first corner
    wanted = np.lexsort((traced.start[firsts], twice > 0, owner))
    rank = np.empty(wanted.size, dtype=np.int64)
    rank[wanted] = np.arange(wanted.size)
    sizes = np.diff(np.append(firsts, rings.size))
    ranks = np.repeat(rank, sizes)
    points = np.argsort(ranks, kind="stable")
    x, y = transform @ (columns[points].astype(np.float64), rows[points].astype(np.float64))
    closed = shapely.linearrings(np.column_stack([x, y]), indices=ranks[points])
    found, owners = np.unique(owner[wanted], return_inverse=True)
    polygons = shapely.polygons(closed, indices=owners)
    if transform.determinant > 0:  # rows count upwards on the ground
        polygons = shapely.orient_polygons(polygons)
    return found, polygons


def _trace(edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the order of edges along rings, ring by ring, and the number of each one's ring.

    Where a patch touches itself at a corner, rings turn right, so that they touch there and do not cross.
    """
    out = _sort(edges.patch, edges.start, edges.direction)
    into = _sort(edges.patch, edges.end, (edges.direction + 1) % 4)
    following = np.empty(len(edges), dtype=np.int64)
    following[into] = out
    count = len(edges)
    graph = csr_array((np.ones(count, dtype=np.int8), following, np.arange(count + 1)), shape=(count, count))
    _, ring = connected_components(graph, connection="weak")
    # the uppermost corner of a ring, of these the leftmost, is one where it turns
    _, heads = np.unique(ring[out], return_index=True)
    heads = out[heads]
    # a single path through all rings, from the end of each to the next
    before = np.empty(count, dtype=np.int64)
    before[following] = np.arange(count)
    following[before[heads]] = np.append(heads[1:], heads[0])
    path = csr_array((np.ones(count, dtype=np.int8), following, np.arange(count + 1)), shape=(count, count))
    order = depth_first_order(path, heads[0], return_predecessors=False).astype(np.int64)
    return order, ring[order]


def _sort(patch: NDArray[np.int32], corner: NDArray[np.int64], direction: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the order by patch, then corner, then direction."""
    lowest, span = int(corner.min()), int(np.ptp(corner)) + 1
    first = int(patch.min())
    if (int(patch.max()) - first + 1) * span * 4 >= 2**63:
        return np.lexsort((direction, corner, patch))
    key = ((patch.astype(np.int64) - first) * span + (corner - lowest)) * 4 + direction
    return np.argsort(key, kind="stable")
