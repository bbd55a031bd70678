"""What lies around a tile, read from the layers of its neighbours, so that priors meet without a seam.

A prior depends on what is within reach of its filters. At the edge of a tile there is nothing to read, so two tiles
that overlap have different priors there. With the neighbours' layers both read the same, and have the same prior.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window, intersect, intersection

from landprior.raster.codes import CodeRaster, open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class JoinedCodes(CodeRaster):
    """A raster of codes on a larger grid: its own pixels, and around them those of other rasters.

    Parameters
    ----------
    own
        The raster in the middle.
    grid
        The larger grid.
    inner
        The place of ``own`` in it.
    others
        Rasters that cover parts of the rest, each with its place; the first that covers a pixel counts.
    """

    def __init__(
        self, own: CodeRaster, grid: Grid, inner: Window, others: Sequence[tuple[CodeRaster, Window]] = ()
    ) -> None:
        super().__init__(own.src, own.path, bands=own.bands)
        self.grid = grid
        self._parts = [(own, inner), *others]

    def read_values(self, window: Window | None = None) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read the bands as they are, 0 where nothing is, and the mask of valid pixels, both of shape (H, W)."""
        values, valid, _ = self._read(window)
        return values, valid

    def covers(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Return which pixels lie within one of the rasters, with or without data, shape (H, W)."""
        return self._read(window)[2]

    def place(self, index: NDArray[np.integer], window: Window | None) -> str:
        """Return the place of a pixel of a window, for messages: its row and column in the raster in the middle."""
        inner = self._parts[0][1]
        whole = self._whole(window)
        return super().place(
            index, Window(whole.col_off - inner.col_off, whole.row_off - inner.row_off, whole.width, whole.height)
        )

    def _whole(self, window: Window | None) -> Window:
        return Window(0, 0, self.grid.width, self.grid.height) if window is None else window

    def _read(self, window: Window | None) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return values, which are valid, and which are covered."""
        whole = self._whole(window)
        shape = (int(whole.height), int(whole.width))
        values: NDArray[np.generic] = np.zeros(shape, dtype=self.src.dtypes[0])
        valid, covered = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for raster, place in self._parts:
            if covered.all():
                break
            if not intersect(whole, place):
                continue
            shared = intersection(whole, place)
            at = _shift(shared, whole).toslices()
            free = ~covered[at]
            if not free.any():
                continue
            part = _shift(shared, place)
            found, good = raster.read_values(part)
            fresh = free & raster.covers(part)
            if found.dtype != values.dtype:
                values = values.astype(np.result_type(found, values))
            values[at][fresh], valid[at][fresh] = found[fresh], good[fresh]
            covered[at] |= fresh
        return values, valid, covered


def _shift(window: Window, origin: Window) -> Window:
    """Return a window as seen from the corner of another one."""
    return Window(window.col_off - origin.col_off, window.row_off - origin.row_off, window.width, window.height)


@contextmanager
def open_joined(
    own: CodeRaster, grid: Grid, inner: Window, others: Sequence[str | Path], *, like: str | Path
) -> Iterator[JoinedCodes]:
    """Open a raster with what other rasters have around it.

    Parameters
    ----------
    own
        The raster in the middle, open on its own grid.
    grid, inner
        The larger grid, and the place of ``own`` in it.
    others
        Rasters of the neighbours; those on another grid are warped (nearest neighbour).
    like
        The file that has the grid, for messages.

    Yields
    ------
    JoinedCodes
        The raster, open within the block.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.codes.open_on_grid`.
    """
    with ExitStack() as stack:
        found = []
        for path in others:
            with open_raster(path) as src:
                place = _find_place(Grid.of(src), grid)
            if place is not None:
                opened = open_on_grid(path, grid.window(place), like=like, partly=True)
                found.append((stack.enter_context(opened), place))
        yield JoinedCodes(own, grid, inner, found)


def _find_place(other: Grid, grid: Grid) -> Window | None:
    """Return the part of a grid that a raster may cover; all of it if the raster is in another CRS."""
    whole = Window(0, 0, grid.width, grid.height)
    if other.crs != grid.crs:
        return whole
    corners = [~grid.transform @ corner for corner in _corners(other)]
    columns, rows = (np.array(values) for values in zip(*corners, strict=True))
    left, top = np.floor(columns.min() + 1e-3), np.floor(rows.min() + 1e-3)
    right, bottom = np.ceil(columns.max() - 1e-3), np.ceil(rows.max() - 1e-3)
    box = Window(int(left), int(top), int(right - left), int(bottom - top))
    return intersection(whole, box) if intersect(whole, box) else None


def _corners(grid: Grid) -> list[tuple[float, float]]:
    left, bottom, right, top = grid.bounds
    return [(left, top), (right, top), (left, bottom), (right, bottom)]


def grow_grid(grid: Grid, pixels: int) -> tuple[Grid, Window]:
    """Return a grid that is larger by some pixels on every side, and the place of the original in it."""
    larger = grid.window(Window(-pixels, -pixels, grid.width + 2 * pixels, grid.height + 2 * pixels))
    return larger, Window(pixels, pixels, grid.width, grid.height)
