"""Locating the 30 m cells behind a coarse raster on a fine grid."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform
from rasterio.windows import Window
from scipy.interpolate import RectBivariateSpline

from landprior.landcover.prior.coarse import NLCD_NODATA, read_nlcd
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


ROW, HALF = 2**31, 2**30
"""A cell's key is its row times ROW and its column, which is between -HALF and HALF."""

CELL = 30.0
"""Side of NLCD's cells, metres."""


ALBERS = CRS.from_epsg(5070)


NLCD_GRID = Affine(CELL, 0, 15.0, 0, -CELL, 15.0)
"""NLCD's cells of the conterminous United States in Albers: edges are 15 m off the multiples of 30."""


CONTROL = 32
"""Pixels between the points that are projected exactly; between them coordinates are interpolated, to 1 mm."""


IMPURE = 0.01
"""How much worse (share of pixels) NLCD's own cells may fit than estimated ones: warping moves edges."""


SAMPLE = 1024
"""Side, in pixels, of the piece of a raster in which cells are searched."""


MOST_EDGES = 20_000
"""Maximum number of code changes examined."""


WHOLE = 0.9
"""Share of a cell that must be labelled for its shares to count."""


MOST_TILT = math.radians(45)


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """A lattice of cells: maps a pixel's coordinates to the row and column of its cell.

    Parameters
    ----------
    grid
        Grid of the pixels.
    cells
        Transform from coordinates in ``crs`` to (column, row) of cells.
    crs
        CRS in which cells are axis-aligned; None for the grid's own coordinates.
    source
        Description of where the lattice comes from.
    """

    grid: Grid
    cells: Affine
    crs: CRS | None = None
    source: str = ""

    def locate(self, window: Window) -> NDArray[np.int64]:
        """Return a number for the cell of each pixel of a window, shape (h, w); it is the same in any window."""
        rows = np.arange(int(window.height)) + int(window.row_off) + 0.5
        columns = np.arange(int(window.width)) + int(window.col_off) + 0.5
        if self.crs is None or self.crs == self.grid.crs:
            to_cells = self.cells @ self.grid.transform
            u = to_cells.a * columns + to_cells.b * rows[:, None] + to_cells.c
            v = to_cells.d * columns + to_cells.e * rows[:, None] + to_cells.f
        else:
            u, v = self._project(rows, columns)
        keys: NDArray[np.int64] = np.floor(v).astype(np.int64) * ROW + np.floor(u).astype(np.int64)
        return keys

    @property
    def area(self) -> float:
        """Number of pixels in a whole cell."""
        return float(1 / abs((self.cells @ self._local()).determinant))

    def _local(self) -> Affine:
        """Return the transform from pixels to the cells' CRS, as at the centre of the grid."""
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


def find_lattice(nlcd: str | Path, grid: Grid, *, like: str | Path) -> Lattice:
    """Find the cells behind a coarse raster.

    Parameters
    ----------
    nlcd
        The raster.
    grid
        Grid on which to locate the cells.
    like
        File with that grid, named in messages.

    Returns
    -------
    Lattice
        Gives the cell of each pixel of the grid.

    Raises
    ------
    GridMismatchError, InputError
        If the raster cannot be brought to the grid, or its pixel size is unknown.
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
    """Return the window at the centre of a raster."""
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
    """Estimate cells from code changes: find the tilt and phases that put the changes on lines one cell apart.

    A line of changes at a whole number of cells gives the same phase everywhere, so the length of the mean of
    exp(2 pi i u) over the changes between columns, and of exp(2 pi i v) over those between rows, is largest at the
    lattice's own tilt; its argument is the offset. If there are few changes, no tilt is assumed.

    Parameters
    ----------
    codes
        Shape (H, W).
    grid
        Grid of the codes, for the pixel size.
    where
        Name of the raster in error messages.

    Returns
    -------
    Lattice
        The most likely lattice.

    Raises
    ------
    InputError
        If the pixel size is unknown.
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
    """Make a lattice from tilt and phases in pixels; ``scale`` is the pixel size in cells."""
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
    """Return the offset, 0 to 1, of the values."""
    return float(np.angle(_mean_phase(values)) / (2 * np.pi) % 1.0)
