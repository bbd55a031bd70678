"""Windows read from the files of many tiles, in place of the whole tiles, so that memory does not grow with them.

A joint training of large tiles holds two sets of windows: a fixed one, spread evenly over all tiles, for the statistics
of the bands, the verdict and the shares of the classes; and one from which patches are cut, which is replaced every
few steps by another that was read meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from landprior.errors import PriorError
from landprior.implicit.seeds import derive_seed
from landprior.inputs import checksum
from landprior.landcover.training.image_kind import ImageKind
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.tiles import Tile
from landprior.raster.grid import require_same_grid
from landprior.raster.reading import GDAL_CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from landprior.implicit.objectives import Batch
    from landprior.landcover.training.model import BandStatistics
    from landprior.raster.scheme import ClassScheme

HELD = 64_000_000
"""Pixels of all tiles together up to which whole tiles are held in memory: one NAIP quarter quad has 43 million."""

SIDE = 256
"""Side of a window, pixels."""

FIXED = 256
"""Number of windows of the fixed set."""

PERIOD = 25
"""Steps after which the windows that patches are cut from are replaced."""

POOL = 32
"""Least number of windows that patches are cut from at a time; there are two for each patch of a batch."""

_ROUNDS = 8
"""How often windows are drawn again where there is no data."""


@dataclass(frozen=True)
class Source:
    """The files of a tile.

    Parameters
    ----------
    name
        Name of the tile.
    image, prior
        Rasters on one grid.
    """

    name: str
    image: str | Path
    prior: str | Path

    @property
    def digest(self) -> str:
        """A hash of the files' contents."""
        return f"{checksum(Path(self.image))}:{checksum(Path(self.prior))}"


class Extracts:
    """Windows of the tiles of a joint training, chosen at random and spread evenly over all tiles.

    Parameters
    ----------
    sources
        The tiles.
    scheme
        The prior's classes, if its files do not store them.
    nodata
        Nodata value of the images, if their files do not store it.
    side
        Side of a window, pixels.
    seed
        Seed of the choice.

    Raises
    ------
    GridMismatchError
        If an image and its prior are on different grids.
    LandpriorError
        See :class:`ImageLayer` and :class:`PriorLayer`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        scheme: ClassScheme | None = None,
        nodata: float | None = None,
        side: int = SIDE,
        seed: int = 0,
    ) -> None:
        twice = {name for name, count in Counter(source.name for source in sources).items() if count > 1}
        self._sources = sorted(sources, key=lambda source: (source.name, source.digest if source.name in twice else ""))
        self._scheme, self._nodata, self._side, self._seed = scheme, nodata, side, seed
        self._shapes = []
        for source in self._sources:
            with ImageLayer(source.image, nodata=nodata) as pixels, PriorLayer(source.prior, scheme=scheme) as belief:
                require_same_grid(pixels.grid, belief.grid, names=(str(source.image), str(source.prior)))
                self._shapes.append(pixels.grid.shape)
        cells = [-(-height // side) * -(-width // side) for height, width in self._shapes]
        self._ends = np.cumsum(cells)

    @property
    def pixels(self) -> int:
        """Number of pixels of all tiles."""
        return sum(height * width for height, width in self._shapes)

    def identify(self) -> str:
        """Return a hash of the tiles' names and files."""
        sha = hashlib.sha256()
        for source in self._sources:
            sha.update(f"{source.name}:{source.digest};".encode())
        return sha.hexdigest()

    def take(self, count: int, key: str) -> list[Tile]:
        """Read windows.

        Parameters
        ----------
        count
            Their number; all of the tiles' windows, if there are fewer.
        key
            What they are for: the same windows are chosen for the same key.

        Returns
        -------
        list of Tile
            Windows with data, in the order of their names.

        Raises
        ------
        PriorError
            If no window has data.
        """
        rng = np.random.default_rng(derive_seed(self._seed, key))
        total = int(self._ends[-1])
        found: dict[int, Tile] = {}
        empty: set[int] = set()
        for _ in range(_ROUNDS):
            chosen = np.arange(total) if count >= total else _spread(total, count - len(found), rng)
            fresh = sorted({*chosen.tolist()} - found.keys() - empty)
            for number, tile in self._read(fresh):
                if bool(tile.valid.any()):
                    found[number] = tile
                else:
                    empty.add(number)
            if len(found) > count / 2 or count >= total:
                break
        if not found:
            names = ", ".join(source.name for source in self._sources[:3])
            msg = f"{names}: there is no pixel where image and prior both have data; are they of the same place?"
            raise PriorError(msg)
        return [found[number] for number in sorted(found)]

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tile]]:
        """Read windows by their numbers, in ascending order; each tile's files are opened once."""
        owners = np.searchsorted(self._ends, numbers, side="right")
        for owner in sorted({*owners.tolist()}):
            source, (height, width) = self._sources[owner], self._shapes[owner]
            first = int(self._ends[owner - 1]) if owner else 0
            with ExitStack() as stack:
                stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
                pixels = stack.enter_context(ImageLayer(source.image, nodata=self._nodata))
                belief = stack.enter_context(PriorLayer(source.prior, scheme=self._scheme))
                kind = ImageKind.of(pixels)
                for number in np.array(numbers)[owners == owner].tolist():
                    row, column = divmod(number - first, -(-width // self._side))
                    tall, wide = min(self._side, height), min(self._side, width)
                    window = Window(
                        min(column * self._side, width - wide), min(row * self._side, height - tall), wide, tall
                    )
                    image, seen = pixels.read(window)
                    shares, believed = belief.read(window)
                    yield (
                        number,
                        Tile(
                            name=f"{source.name} {window.row_off},{window.col_off}",
                            image=torch.from_numpy(image),
                            prior=torch.from_numpy(shares.astype(np.float16)),
                            valid=torch.from_numpy(seen & believed),
                            scheme=belief.scheme,
                            kind=kind,
                        ),
                    )


def _spread(total: int, count: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Draw one number from each of ``count`` equal parts of 0 to ``total``."""
    edges = np.linspace(0, total, count + 1).astype(np.int64)
    return rng.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))


class StreamedFeed:
    """Cut patches from windows that are replaced every :data:`PERIOD` steps; a :class:`PatchFeed` of any size of tiles.

    The batch of a step depends only on (seed, step), so a training that was interrupted resumes as if it had not been.

    Parameters
    ----------
    tiles
        The fixed windows, on the device of the network.
    statistics
        Statistics for standardising the bands.
    extracts
        Where windows come from.
    batch_size, **options
        See :class:`PatchFeed`.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        statistics: BandStatistics,
        *,
        extracts: Extracts,
        batch_size: int = 16,
        **options: Any,  # noqa: ANN401 - those of PatchFeed
    ) -> None:
        self._device = tiles[0].image.device
        self._statistics, self._extracts = statistics, extracts
        self._options = {"batch_size": batch_size, **options}
        self._count = max(POOL, 2 * batch_size)
        self._pool = ThreadPoolExecutor(1, "extracts")
        self._next: tuple[int, Future[list[Tile]]] | None = None
        self._now: tuple[int, PatchFeed] | None = None

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        number = step // PERIOD
        if self._now is None or self._now[0] != number:
            if self._next is None or self._next[0] != number:
                self._next = self._start(number)
            tiles = [tile.to(self._device) for tile in self._next[1].result()]
            self._now = number, PatchFeed(tiles, self._statistics, **self._options)
            self._next = self._start(number + 1)
        return self._now[1](step)

    def _start(self, number: int) -> tuple[int, Future[list[Tile]]]:
        """Begin to read the windows of a period."""
        return number, self._pool.submit(self._extracts.take, self._count, f"period {number}")
