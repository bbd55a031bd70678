"""Windowed processing: read with a halo, compute, write the core, in constant memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar

import rasterio
from rasterio.windows import Window

from landprior.progress import track
from landprior.raster.reading import GDAL_CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid

T = TypeVar("T")

BLOCK = 512
"""Side of the blocks of COGs, and the default side of windows."""


class Sink(Protocol):
    """A receiver of windows, such as :class:`landprior.raster.cog.CogWriter`."""

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:
        """Write a window."""


Found: TypeAlias = "NDArray[np.generic] | Callable[[], NDArray[np.generic]]"
"""Result for a window: an array, or a function that returns it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A window to write (``core``), the window to read for it (``outer``), and the crop from one to the other.

    ``outer`` is the core grown by the halo and clipped to the raster, so a function that
    treats the edge of its input as the edge of the raster is correct for every block.
    """

    core: Window
    outer: Window

    @property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns of the core within an array of the outer window."""
        top = int(self.core.row_off - self.outer.row_off)
        left = int(self.core.col_off - self.outer.col_off)
        return (slice(top, top + int(self.core.height)), slice(left, left + int(self.core.width)))


def grow_window(window: Window, halo: int, within: Grid | Window) -> Window:
    """Grow a window on all sides, within a raster or another window.

    Parameters
    ----------
    window
        Rows and columns of a raster.
    halo
        Pixels to add on each side.
    within
        The raster's grid, or another window, that limits it.

    Returns
    -------
    Window
        The larger window, clipped to ``within``.
    """
    outer = within if isinstance(within, Window) else Window(0, 0, within.width, within.height)
    left, top = max(window.col_off - halo, outer.col_off), max(window.row_off - halo, outer.row_off)
    right = min(window.col_off + window.width + halo, outer.col_off + outer.width)
    lower = min(window.row_off + window.height + halo, outer.row_off + outer.height)
    return Window(left, top, right - left, lower - top)


def iter_blocks(grid: Grid, *, size: int | tuple[int, int] = BLOCK, halo: int = 0) -> Iterator[Block]:
    """Cut a grid into blocks, row by row.

    Parameters
    ----------
    grid
        The raster's grid.
    size
        Side of the core windows in pixels, or rows and columns.
    halo
        Pixels around a core that the result depends on.

    Yields
    ------
    Block
        Blocks from the top down, and from left to right.
    """
    rows, columns = size if isinstance(size, tuple) else (size, size)
    for row in range(0, grid.height, rows):
        for col in range(0, grid.width, columns):
            bottom, right = min(row + rows, grid.height), min(col + columns, grid.width)
            core = Window(col, row, right - col, bottom - row)
            yield Block(core=core, outer=grow_window(core, halo, grid))


def count_blocks(grid: Grid, *, size: int | tuple[int, int] = BLOCK) -> int:
    """Return the number of blocks of :func:`iter_blocks`."""
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return -(-grid.height // rows) * -(-grid.width // columns)


AHEAD = 3
"""Number of windows read ahead, and of windows that may wait to be written."""


def stream(
    compute: Callable[..., Mapping[str, Found]],
    *,
    grid: Grid,
    sinks: Mapping[str, Sink],
    read: Callable[[Block], Any] | None = None,
    halo: int = 0,
    size: int | tuple[int, int] = BLOCK,
    label: str = "",
    progress: bool = False,
) -> None:
    """Run ``compute`` on every block and write its results.

    Parameters
    ----------
    compute
        Function that gets a block, reads what it needs and returns one array per sink for the block's core, shape
        (H, W) or (bands, H, W). Names without a sink are dropped. A pass that only gathers sums, or a block without
        data, returns an empty mapping; unwritten pixels are nodata. Instead of an array it may return a function that
        returns it, which is called in the writing thread, so that the next block need not wait, for example for a GPU.
    grid
        The raster's grid.
    sinks
        Open writers by name. They are called from another thread, one window at a time.
    read
        Function that returns the second argument of ``compute`` for a block; called in another thread, a few
        blocks ahead, so that reading and computing overlap.
    halo, size
        See :func:`iter_blocks`.
    label, progress
        Label of the progress bar on stderr, and whether to show it.
    """
    every, total = iter_blocks(grid, size=size, halo=halo), count_blocks(grid, size=size)
    bar = track(every, label, "block", total=total, show=progress)
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),  # also for a pass without a writer
        closing(_read_ahead(bar, read)) as blocks,
        _WriteBehind(sinks) as behind,
    ):
        for block, *data in blocks:
            behind.write(compute(block, *data), block.core)


def _read_ahead(blocks: Iterable[Block], read: Callable[[Block], Any] | None) -> Generator[tuple[Any, ...]]:
    """Yield each block with the data read for it in another thread."""
    if read is None:
        yield from ((block,) for block in blocks)
        return
    waiting: deque[tuple[Block, Future[Any]]] = deque()
    with ThreadPoolExecutor(1, "read") as pool:
        try:
            for block in blocks:
                waiting.append((block, pool.submit(_with_gdal_env, read, block)))
                if len(waiting) > AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _with_gdal_env(call: Callable[..., T], *arguments: object) -> T:
    """Call a function in a thread, which does not inherit GDAL's settings and error handler."""
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
        return call(*arguments)


class _WriteBehind:
    """Write windows in another thread, in order; an error is raised at the next window or at the end."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, "write")
        return self

    def write(self, found: Mapping[str, Found], window: Window) -> None:
        """Queue the windows of all sinks."""
        for name, values in found.items():
            if name in self._sinks:
                self._waiting.append(self._pool.submit(_with_gdal_env, self._put, name, values, window))
        while len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def _put(self, name: str, values: Found, window: Window) -> None:
        self._sinks[name].write(values() if callable(values) else values, window)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)  # waits for running tasks
        if kind is None:
            for future in self._waiting:
                future.result()
