"""The 30 m cells behind a coarse raster, on a fine grid.

An NLCD raster on a 1 m grid stores, in every pixel, the code of the 30 m cell that contains the pixel. Label
super-resolution counts classes cell by cell, so it needs the cells themselves as well as their codes. If the raster is
still on its own grid, the cells are its pixels; if it was resampled to the image's grid, they are NLCD's own, in
Albers; if it has no CRS, or other cells, they are found from the places where codes change. On a UTM grid the cells
are rotated by some degrees, and they are cut at the edges of a tile.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.landcover.prior.coarse import NLCD_NODATA, read_nlcd
from landprior.landcover.prior.cooccurrence import measure_cooccurrence
from landprior.landcover.prior.lattice import HALF, ROW, WHOLE, Lattice, find_lattice
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes, open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import IGNORED_INDEX
from landprior.raster.windows import iter_blocks, stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.raster.codes import CodeRaster
    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Block


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of a tile.

    Parameters
    ----------
    index
        Position of each pixel's cell in the other arrays, shape (H, W); -1 where there is no code.
    codes
        The cells' codes, shape (K,).
    sizes
        Number of pixels of each cell in the tile, shape (K,).
    area
        Number of pixels in a whole cell.
    """

    index: NDArray[np.int32]
    codes: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    area: float

    @classmethod
    def of(cls, keys: NDArray[np.int64], codes: NDArray[np.integer], *, area: float) -> Cells:
        """Make the cells of a tile from arbitrary cell numbers.

        Parameters
        ----------
        keys
            A number for each pixel's cell (:meth:`Lattice.locate`), shape (H, W).
        codes
            Codes, shape (H, W); those in :data:`NLCD_NODATA` mean no data.
        area
            Number of pixels in a whole cell.

        Returns
        -------
        Cells
            Numbered from 0; -1 where there is no code.
        """
        known = ~np.isin(codes, NLCD_NODATA)
        number, count = _number(keys[known])
        index = np.full(codes.shape, -1, dtype=np.int32)
        index[known] = number
        votes = np.bincount(number * 256 + codes[known], minlength=count * 256).reshape(count, 256)
        own = votes.argmax(axis=1) if count else np.zeros(0)
        return cls(index=index, codes=own.astype(np.uint8), sizes=votes.sum(axis=1), area=area)

    def centres(
        self, where: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.int64]]:
        """Return the row and column of each cell's middle and its number of pixels, each of shape (K,).

        ``where`` selects the pixels to use, shape (H, W); a cell without any has its middle at 0, 0.
        """
        count = len(self.codes)
        sizes = np.zeros(count, dtype=np.int64)
        total = np.zeros((2, count))
        for top in range(0, self.index.shape[0], 512):  # in strips, to save memory
            strip = self.index[top : top + 512]
            inside = strip >= 0 if where is None else (strip >= 0) & where[top : top + 512]
            rows, columns = np.nonzero(inside)
            cell = strip[inside]
            sizes += np.bincount(cell, minlength=count)
            total[0] += np.bincount(cell, rows + top, count)
            total[1] += np.bincount(cell, columns, count)
        middle = total / np.maximum(sizes, 1)
        return middle[0], middle[1], sizes


def _number(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Renumber keys from 0, and count them; without sorting if they come from a lattice."""
    if not keys.size:
        return keys, 0
    v = (keys + HALF) // ROW
    u = keys - v * ROW
    v -= v.min()
    u -= u.min()
    dense = v * (int(u.max()) + 1) + u
    span = int(dense.max()) + 1
    if span > 4 * keys.size + 2**20:
        kinds, number = np.unique(keys, return_inverse=True)
        return number.astype(np.int64), len(kinds)
    there = np.zeros(span, dtype=bool)
    there[dense] = True
    return (np.cumsum(there) - 1)[dense], int(there.sum())


def read_cells(nlcd: str | Path, like: str | Path) -> tuple[Cells, NDArray[np.uint8]]:
    """Read the cells and codes of a coarse raster on the grid of another.

    Parameters
    ----------
    nlcd
        Coarse codes, on their own grid or on the other's.
    like
        The raster whose grid is used.

    Returns
    -------
    cells : Cells
    codes : ndarray of uint8, shape (H, W)
        0 where there is none.

    Raises
    ------
    InputError
        If there is no code on this grid.
    GridMismatchError, RasterReadError
        If a raster cannot be brought to the grid, or cannot be read.
    """
    with open_raster(like) as reference:
        grid = Grid.of(reference)
    lattice = find_lattice(nlcd, grid, like=like)
    with open_on_grid(nlcd, grid, like=like) as src:
        keys, codes = np.empty(grid.shape, dtype=np.int64), np.empty(grid.shape, dtype=np.uint8)
        for block in iter_blocks(grid, size=2048):
            at = block.core.toslices()
            keys[at] = lattice.locate(block.core)
            codes[at] = read_nlcd(src, block.core)
    codes[np.isin(codes, NLCD_NODATA)] = NLCD_NODATA[0]
    cells = Cells.of(keys, codes, area=lattice.area)
    if not len(cells.codes):
        msg = f"{nlcd} has no NLCD code in the area of {like}, so there are no cells to count classes in"
        raise InputError(msg)
    return cells, codes


def measure_spread(
    pairs: Sequence[tuple[str | Path, str | Path]],
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    progress: bool = False,
) -> Cooccurrence:
    """Measure P(class | NLCD code) and the spread of single cells around it, where fine labels exist.

    The standard deviation, over the cells of a code, of the share of a class within the cell: with the mean it is what
    label super-resolution networks match ("Label super-resolution networks", eta and rho of its Table 4). Cells less
    than nine tenths of which are labelled are left out. Reads window by window, like :func:`measure_cooccurrence`, and
    gives the same means.

    Parameters
    ----------
    pairs, scheme, label_map, progress
        See :func:`landprior.landcover.prior.cooccurrence.measure_cooccurrence`.

    Returns
    -------
    Cooccurrence
        With :attr:`Cooccurrence.spread` for every code with at least two cells.

    Raises
    ------
    LandpriorError
        See :func:`measure_cooccurrence`.
    """
    matrix = measure_cooccurrence(pairs, scheme, label_map=label_map, progress=progress)
    moments = np.zeros((3, 256, len(scheme)))
    for nlcd_path, labels_path in pairs:
        with ExitStack() as stack:
            labels = stack.enter_context(open_codes(labels_path))
            grid = labels.grid
            lattice = find_lattice(nlcd_path, grid, like=labels_path)
            nlcd = stack.enter_context(open_on_grid(nlcd_path, grid, like=labels_path))

            def count(
                block: Block,
                labels: CodeRaster = labels,
                nlcd: CodeRaster = nlcd,
                lattice: Lattice = lattice,
                path: str | Path = labels_path,
            ) -> dict[str, NDArray[np.generic]]:
                fine = read_classes(labels, block.outer, scheme, codes=label_map, where=path)
                codes = read_nlcd(nlcd, block.outer)
                cells = Cells.of(lattice.locate(block.outer), codes, area=lattice.area)
                moments[:] += _cell_moments(cells, fine, len(scheme), block)
                return {}

            halo = math.ceil(math.sqrt(2 * lattice.area)) + 1  # a cell whose middle is in a block is whole
            stream(count, grid=grid, sinks={}, halo=halo, label=Path(labels_path).name, progress=progress)
    number = moments[0, :, 0].astype(int)
    means = moments[1] / np.maximum(number, 1)[:, None]
    deviations = np.sqrt(np.maximum(moments[2] / np.maximum(number, 1)[:, None] - means**2, 0))
    some = [code for code in matrix.probabilities if number[code] > 1]
    return replace(
        matrix, spread={code: deviations[code] for code in some}, cells={code: int(number[code]) for code in some}
    )


def _cell_moments(cells: Cells, classes: NDArray[np.integer], count: int, block: Block) -> NDArray[np.floating]:
    """Return number, sum and sum of squares of the cells' shares by code, (3, 256, C), for cells centred in a block."""
    moments = np.zeros((3, 256, count))
    known = (cells.index >= 0) & (classes != IGNORED_INDEX)
    index = cells.index[known].astype(np.int64)
    total = len(cells.codes)
    pixels = np.bincount(index * count + classes[known], minlength=total * count).reshape(total, count)
    labelled = pixels.sum(axis=1)
    *middle, _ = cells.centres()
    inside = np.all([(m >= s.start) & (m < s.stop) for m, s in zip(middle, block.crop, strict=True)], axis=0)
    kept = inside & (labelled >= WHOLE * cells.area)
    shares = pixels[kept] / labelled[kept, None]
    for power in range(3):
        np.add.at(moments[power], cells.codes[kept], shares**power)
    return moments
