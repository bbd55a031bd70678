"""The 30 m cells behind a coarse raster, on a fine grid.

A raster of NLCD on a 1 m grid holds, in every pixel, the code of the 30 m cell that the pixel fell into. Label
super-resolution counts classes cell by cell, so the cells themselves are needed, not only their codes: where the raster
is still on its own grid they are its pixels; where it was put on the image's grid they are NLCD's own, in Albers; and
where the raster has no CRS, or its cells are others, they are found from where codes change. On a UTM grid they are
turned by some degrees, and cut at the edges of a tile.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform
from rasterio.windows import Window
from scipy.interpolate import RectBivariateSpline

from landprior.errors import InputError
from landprior.landcover.prior.coarse import NLCD_NODATA, read_nlcd
from landprior.landcover.prior.cooccurrence import measure_cooccurrence
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

logger = logging.getLogger(__name__)

CELL = 30.0
"""Side of NLCD's cells, metres."""

ALBERS = CRS.from_epsg(5070)
NLCD_GRID = Affine(CELL, 0, 15.0, 0, -CELL, 15.0)
"""NLCD's cells of the conterminous United States in Albers: edges at 15 m beside the multiples of 30."""

CONTROL = 32
"""Pixels between the points that are projected exactly; between them coordinates are interpolated, to a mm."""

IMPURE = 0.01
"""Share of the pixels by which NLCD's own cells may fit a raster worse than those found in it: warping moves edges."""

SAMPLE = 1024
"""Side, in pixels, of the piece of a raster in which cells are looked for."""

MOST_EDGES = 20_000
"""Places where codes change that are looked at."""

WHOLE = 0.9
"""Share of a cell that must be labelled for its shares to count."""

_ROW, _HALF = 2**31, 2**30
"""A cell's key is its row times _ROW and its column, which is between -_HALF and _HALF."""

MOST_TILT = math.radians(45)


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Cells as a lattice: how a pixel's coordinates turn into the row and column of its cell.

    Parameters
    ----------
    grid
        Of the pixels.
    cells
        From coordinates in ``crs`` to (column, row) of cells.
    crs
        In which cells are axis-aligned; None for the grid's own coordinates.
    source
        Where it comes from, in words.
    """

    grid: Grid
    cells: Affine
    crs: CRS | None = None
    source: str = ""

    def locate(self, window: Window) -> NDArray[np.int64]:
        """Return a number for the cell of each pixel of a window, shape (h, w); the same cell has it in any window."""
        rows = np.arange(int(window.height)) + int(window.row_off) + 0.5
        columns = np.arange(int(window.width)) + int(window.col_off) + 0.5
        if self.crs is None or self.crs == self.grid.crs:
            to_cells = self.cells @ self.grid.transform
            u = to_cells.a * columns + to_cells.b * rows[:, None] + to_cells.c
            v = to_cells.d * columns + to_cells.e * rows[:, None] + to_cells.f
        else:
            u, v = self._project(rows, columns)
        keys: NDArray[np.int64] = np.floor(v).astype(np.int64) * _ROW + np.floor(u).astype(np.int64)
        return keys

    @property
    def area(self) -> float:
        """Pixels of a whole cell."""
        return float(1 / abs((self.cells @ self._local()).determinant))

    def _local(self) -> Affine:
        """Return the transform from pixels to the cells' CRS, as it is in the middle of the grid."""
        if self.crs is None or self.crs == self.grid.crs:
            return self.grid.transform
        row, column = self.grid.height / 2, self.grid.width / 2
        x, y = self.grid.transform @ (np.array([column, column + 1, column]), np.array([row, row, row + 1]))
        (x0, x1, x2), (y0, y1, y2) = transform(self.grid.crs, self.crs, x.tolist(), y.tolist())
        return Affine(x1 - x0, x2 - x0, x0, y1 - y0, y2 - y0, y0)

    def _project(
        self, rows: NDArray[np.floating], columns: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return cell coordinates of pixel centres, projected at control points and interpolated between them."""
        down, across = _control(rows), _control(columns)
        x, y = self.grid.transform @ (np.tile(across, len(down)), np.repeat(down, len(across)))
        xs, ys = transform(self.grid.crs, self.crs, x.tolist(), y.tolist())
        u, v = self.cells @ (np.asarray(xs), np.asarray(ys))
        shape = (len(down), len(across))
        orders = {"kx": min(2, shape[0] - 1), "ky": min(2, shape[1] - 1)}
        return tuple(
            RectBivariateSpline(down, across, values.reshape(shape), **orders)(rows, columns) for values in (u, v)
        )


def _control(at: NDArray[np.floating]) -> NDArray[np.floating]:
    count = max(2, math.ceil((at[-1] - at[0]) / CONTROL) + 1)
    last = at[-1] if at[-1] > at[0] else at[0] + 1
    return np.linspace(at[0], last, count)


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
        Their pixels in the tile, shape (K,).
    area
        Pixels of a whole cell.
    """

    index: NDArray[np.int32]
    codes: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    area: float

    @classmethod
    def of(cls, keys: NDArray[np.int64], codes: NDArray[np.integer], *, area: float) -> Cells:
        """Make the cells of a tile from numbers of any kind.

        Parameters
        ----------
        keys
            A number for each pixel's cell (:meth:`Lattice.locate`), shape (H, W).
        codes
            Codes, shape (H, W); those of :data:`NLCD_NODATA` are none.
        area
            Pixels of a whole cell.

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

    def middles(
        self, where: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.int64]]:
        """Return row and column of the middle of each cell, and its pixels, each of shape (K,).

        ``where`` says which pixels count, shape (H, W); of a cell without any the middle is 0, 0.
        """
        count = len(self.codes)
        sizes = np.zeros(count, dtype=np.int64)
        total = np.zeros((2, count))
        for top in range(0, self.index.shape[0], 512):  # by strips: positions of all pixels are many times the index
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
    """Replace keys by numbers from 0 on, and count them; without sorting where they are those of a lattice."""
    if not keys.size:
        return keys, 0
    v = (keys + _HALF) // _ROW
    u = keys - v * _ROW
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
        The raster whose grid is wanted.

    Returns
    -------
    cells : Cells
    codes : ndarray of uint8, shape (H, W)
        0 where there is none.

    Raises
    ------
    InputError
        If there is no code here.
    GridMismatchError, RasterReadError
        If the two cannot be brought together, or read.
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
        msg = f"{nlcd} has no NLCD code where {like} lies, so there are no cells to count in"
        raise InputError(msg)
    return cells, codes


def find_lattice(nlcd: str | Path, grid: Grid, *, like: str | Path) -> Lattice:
    """Find the cells behind a coarse raster.

    Parameters
    ----------
    nlcd
        The raster.
    grid
        On which its cells are wanted.
    like
        The file with that grid, for messages.

    Returns
    -------
    Lattice
        Says for each pixel of the grid in which cell it lies.

    Raises
    ------
    GridMismatchError, InputError
        If the raster cannot be brought on the grid, or its pixel size is not known.
    """
    with open_raster(nlcd) as src:
        own = Grid.of(src)
    fine = math.sqrt(abs(grid.transform.determinant))
    if (
        not own.matches(grid)
        and own.crs is not None
        and not (own.local or grid.local)
        and _size_in(own, grid) >= 2 * fine
    ):
        return Lattice(grid=grid, cells=~own.transform, crs=own.crs, source="its own pixels")
    with open_on_grid(nlcd, grid, like=like) as src:
        window = _middle(grid)
        codes = read_nlcd(src, window)
    found = estimate_lattice(codes, grid.window(window), where=like)
    chosen = found
    if grid.crs is not None:
        national = Lattice(grid=grid, cells=~NLCD_GRID, crs=ALBERS, source="NLCD's grid in Albers")
        if measure_purity(national.locate(window), codes) >= _purity(found, codes) - IMPURE:
            chosen = national
    logger.debug("cells of %s: %s", nlcd, chosen.source)
    return Lattice(grid=grid, cells=chosen.cells, crs=chosen.crs, source=chosen.source)


def _size_in(own: Grid, grid: Grid) -> float:
    """Return a raster's pixel size in the units of another grid."""
    if own.crs == grid.crs or grid.crs is None:
        return math.sqrt(abs(own.transform.determinant))
    middle = own.transform @ (own.width / 2, own.height / 2)
    beside = own.transform @ (own.width / 2 + 1, own.height / 2)
    xs, ys = transform(own.crs, grid.crs, [middle[0], beside[0]], [middle[1], beside[1]])
    return math.hypot(xs[1] - xs[0], ys[1] - ys[0])


def _middle(grid: Grid) -> Window:
    """Return the middle of a raster."""
    height, width = (min(SAMPLE, side) for side in grid.shape)
    return Window((grid.width - width) // 2, (grid.height - height) // 2, width, height)


def _purity(lattice: Lattice, codes: NDArray[np.integer]) -> float:
    return measure_purity(lattice.locate(Window(0, 0, codes.shape[1], codes.shape[0])), codes)


def measure_purity(keys: NDArray[np.int64], codes: NDArray[np.integer]) -> float:
    """Return the share of the pixels that have their cell's most frequent code; 1 where there is no code."""
    known = ~np.isin(codes, NLCD_NODATA)
    if not known.any():
        return 1.0
    _, cell = np.unique(keys[known], return_inverse=True)
    _, kind = np.unique(codes[known], return_inverse=True)
    kinds = int(kind.max()) + 1
    votes = np.bincount(cell.astype(np.int64) * kinds + kind, minlength=(int(cell.max()) + 1) * kinds)
    return float(votes.reshape(-1, kinds).max(axis=1).sum() / known.sum())


def estimate_lattice(codes: NDArray[np.integer], grid: Grid, *, where: str | Path = "the raster") -> Lattice:
    """Find cells from where codes change: the tilt and the phases at which these places lie on lines a cell apart.

    A line of changes at a whole number of cells gives the same phase everywhere, so the length of the mean of
    exp(2 pi i u) over the changes between columns, and of exp(2 pi i v) over those between rows, is largest at the
    lattice's own tilt; its argument is the offset. Where codes hardly change, cells are not tilted.

    Parameters
    ----------
    codes
        Shape (H, W).
    grid
        Of the codes; tells the pixel size.
    where
        What the raster is called in an error.

    Returns
    -------
    Lattice
        The likeliest.

    Raises
    ------
    InputError
        If the pixel size is not known.
    """
    width, height = grid.pixel_size(where=where)
    across, down = _changes(codes)  # (row, column) of edges between columns, between rows
    points = [(c * width / CELL, r * height / CELL) for r, c in (across, down)]
    if min(len(across[0]), len(down[0])) < 8:
        return _make_lattice(grid, 0.0, _phase(points[0][0]), _phase(points[1][1]), (width / CELL, height / CELL))
    extent = math.hypot(codes.shape[0] * height, codes.shape[1] * width) / CELL
    step = 1 / (8 * extent)  # a quarter of a cell at the far end, at most

    def score(tilt: float) -> float:
        (xu, yu), (xv, yv) = points
        cosine, sine = math.cos(tilt), math.sin(tilt)
        return abs(_mean_phase(xu * cosine + yu * sine)) + abs(_mean_phase(yv * cosine - xv * sine))

    best = max(np.arange(-MOST_TILT, MOST_TILT, step).tolist(), key=score)
    for _ in range(6):
        step /= 4
        best = max((best + step * k for k in range(-4, 5)), key=score)
    (xu, yu), (xv, yv) = points
    cosine, sine = math.cos(best), math.sin(best)
    phases = _phase(xu * cosine + yu * sine), _phase(yv * cosine - xv * sine)
    return _make_lattice(grid, best, *phases, (width / CELL, height / CELL))


def _make_lattice(grid: Grid, tilt: float, across: float, down: float, scale: tuple[float, float]) -> Lattice:
    """Make a lattice from tilt and phases in pixels; ``scale`` is the pixel in cells."""
    cosine, sine = math.cos(tilt), math.sin(tilt)
    from_pixels = Affine(cosine * scale[0], sine * scale[1], -across, -sine * scale[0], cosine * scale[1], -down)
    text = f"found from where codes change, turned by {math.degrees(tilt):.1f} degrees"
    return Lattice(grid=grid, cells=from_pixels @ ~grid.transform, source=text)


def _changes(
    codes: NDArray[np.integer],
) -> tuple[tuple[NDArray[np.floating], NDArray[np.floating]], tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Return rows and columns, in pixels, of the edges where the code changes: between columns, between rows."""
    known = ~np.isin(codes, NLCD_NODATA)
    found = []
    for axis in (1, 0):
        first = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        rows, columns = np.nonzero((codes[first] != codes[second]) & known[first] & known[second])
        keep = slice(None, None, max(1, len(rows) // MOST_EDGES))
        shift = (0.5, 1.0) if axis == 1 else (1.0, 0.5)
        found.append((rows[keep] + shift[0], columns[keep] + shift[1]))
    return found[0], found[1]


def _mean_phase(values: NDArray[np.floating]) -> complex:
    return complex(np.exp(2j * np.pi * values).mean()) if values.size else 0j


def _phase(values: NDArray[np.floating]) -> float:
    """Return the offset, 0 to 1, at which values lie."""
    return float(np.angle(_mean_phase(values)) / (2 * np.pi) % 1.0)


def measure_spread(
    pairs: Sequence[tuple[str | Path, str | Path]],
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    progress: bool = False,
) -> Cooccurrence:
    """Measure P(class | NLCD code) and how far the shares of single cells lie from it, where fine labels exist.

    The standard deviation, over the cells of a code, of the share of a class within the cell: with the mean it is what
    label super-resolution networks match ("Label super-resolution networks", eta and rho of its Table 4). Cells less
    than nine tenths of which are labelled are left out. Streamed, as :func:`measure_cooccurrence`; the means are its.

    Parameters
    ----------
    pairs, scheme, label_map, progress
        See :func:`landprior.landcover.prior.cooccurrence.measure_cooccurrence`.

    Returns
    -------
    Cooccurrence
        With :attr:`Cooccurrence.spread` for every code that has two cells or more.

    Raises
    ------
    LandpriorError
        As :func:`measure_cooccurrence`.
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
    """Return number, sum and sum of squares of the cells' shares by code, (3, 256, C), of cells that lie in a block."""
    moments = np.zeros((3, 256, count))
    known = (cells.index >= 0) & (classes != IGNORED_INDEX)
    index = cells.index[known].astype(np.int64)
    total = len(cells.codes)
    pixels = np.bincount(index * count + classes[known], minlength=total * count).reshape(total, count)
    labelled = pixels.sum(axis=1)
    *middle, _ = cells.middles()
    inside = np.all([(m >= s.start) & (m < s.stop) for m, s in zip(middle, block.crop, strict=True)], axis=0)
    kept = inside & (labelled >= WHOLE * cells.area)
    shares = pixels[kept] / labelled[kept, None]
    for power in range(3):
        np.add.at(moments[power], cells.codes[kept], shares**power)
    return moments
