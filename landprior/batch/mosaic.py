"""Joining the maps of a plan: each tile covers its own ground, and margins fill the rest."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from landprior.errors import InputError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import check_products, writing_map
from landprior.raster.classes import read_classes
from landprior.raster.codes import CodeRaster, open_on_grid
from landprior.raster.grid import Bounds, Grid
from landprior.raster.ground import measure_steps, metres_per_unit
from landprior.raster.reading import open_raster
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.windows import Block, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.landcover.workspace.item import TileFolder
    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A tile's map and its position on the mosaic's grid."""

    path: Path
    box: Bounds
    core: Bounds


def join_maps(
    tiles: Sequence[TileFolder],
    output: str | Path,
    scheme: ClassScheme,
    *,
    crs: str | None = None,
    pixel: float | None = None,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> Path:
    """Join the maps of tiles into one COG, window by window.

    Where tiles overlap, a pixel comes from the tile whose core (without the margin that fetch adds) contains it. Where
    no core or several contain it, it comes from the first tile with data. So the result does not depend on the order
    in which tiles finish.

    Parameters
    ----------
    tiles
        Tiles with maps.
    output
        The mosaic to write.
    scheme
        The classes of the maps.
    crs
        CRS of the mosaic; by default that of most tiles. Other tiles are warped (nearest neighbour).
    pixel
        Pixel size in metres on the ground, at the centre of the mosaic; by default the first tile's. In a CRS that
        keeps lengths within 5 % (UTM, Albers, a State Plane), metres of its coordinates are used instead.
    options
        Whether to write a style and a picture beside it; the rest does not apply.
    run
        Whether to replace an older mosaic, and to show progress.

    Returns
    -------
    Path
        The mosaic's path.

    Raises
    ------
    InputError
        If there is no map, a map has no CRS, the CRS is unknown or does not cover the maps, a pixel is as large as
        the mosaic, or the mosaic would have no data.
    """
    sources = [tile.file("prediction") for tile in tiles]
    options = replace(options, probabilities=False, confidence=False)
    target = check_products(output, options, overwrite=run.overwrite, inputs=sources)
    grids = {}
    for tile in tiles:
        with open_raster(tile.require("prediction", hint="run the plan first")) as src:
            grids[tile] = Grid.of(src)
    if not grids:
        msg = "there is no map to join"
        raise InputError(msg)
    lost = [tile.id for tile, grid in grids.items() if grid.crs is None]
    if lost:
        msg = f"{lost[0]} has no CRS, so its place among the others is unknown"
        raise InputError(msg)
    codes = [grid.crs for grid in grids.values()]
    wanted = _find_crs(crs) if crs is not None else max(codes, key=codes.count)
    parts = [
        _Part(
            path=tile.file("prediction"),
            box=_bounds_in(wanted, grid.crs, grid.bounds, where=tile.id),
            core=_bounds_in(wanted, grid.crs, tile.core() or grid.bounds, where=tile.id),
        )
        for tile, grid in grids.items()
    ]
    first = next((grid for grid in grids.values() if grid.crs == wanted), next(iter(grids.values())))
    grid = _lay_out(parts, wanted, pixel, first)
    joiner = _Joiner(parts, grid, scheme, target)
    with (
        joiner,
        writing_map(target, scheme, grid, options, {"tiles": str(len(parts))}, overwrite=run.overwrite) as sinks,
    ):
        stream(joiner.compute, grid=grid, sinks=sinks, label="mosaic", progress=run.progress)
        if not joiner.filled:
            msg = f"no pixel of the mosaic ({grid.width} x {grid.height} px) would have data, so it is not written"
            raise InputError(msg)
    return target


def _find_crs(text: str) -> CRS:
    try:
        found = CRS.from_user_input(text)
    except CRSError as error:
        msg = f"--crs {text}: unknown CRS; give a code such as EPSG:5070"
        raise InputError(msg) from error
    if not (found.is_projected or found.is_geographic):
        msg = f"--crs {text}: neither projected nor geographic; give another code, such as EPSG:5070"
        raise InputError(msg)
    return found


def _bounds_in(wanted: CRS, own: CRS, bounds: Bounds, *, where: str) -> Bounds:
    if wanted == own:
        return bounds
    found = None
    with suppress(RasterioError):
        found = Bounds(*transform_bounds(own, wanted, *bounds, densify_pts=21))
    if found is None or not np.isfinite(found).all() or found.left >= found.right or found.bottom >= found.top:
        crosses = found is not None and found.left > found.right
        why = "it crosses the antimeridian" if crosses else "it lies outside"
        msg = f"{where} cannot be warped to the CRS of the mosaic ({why}); give another CRS (--crs), such as the tile's"
        raise InputError(msg)
    return found


def _lay_out(parts: Sequence[_Part], crs: CRS, pixel: float | None, first: Grid) -> Grid:
    """Return the grid around all parts, aligned with the first tile's pixels if it has the same CRS."""
    left, bottom = min(p.box.left for p in parts), min(p.box.bottom for p in parts)
    right, top = max(p.box.right for p in parts), max(p.box.top for p in parts)
    across, down = _pixel_in(crs, Bounds(left, bottom, right, top), pixel, first)
    if across >= right - left or down >= top - bottom:
        size = "one pixel" if pixel is None else f"one pixel of {pixel:g} m"
        msg = f"{size} is as large as the whole mosaic; give a smaller --pixel-size, in metres on the ground"
        raise InputError(msg)
    x, y = (first.bounds.left, first.bounds.top) if first.crs == crs else (0.0, 0.0)
    left = x + np.floor(round((left - x) / across, 3)) * across
    top = y - np.floor(round((y - top) / down, 3)) * down
    width = int(np.ceil(round((right - left) / across, 3)))
    height = int(np.ceil(round((top - bottom) / down, 3)))
    return Grid(width=width, height=height, transform=Affine(across, 0, left, 0, -down, top), crs=crs)


def _pixel_in(crs: CRS, box: Bounds, metres: float | None, first: Grid) -> tuple[float, float]:
    """Return the width and height of the mosaic's pixels in units of its CRS."""
    t = first.transform
    if metres is None and first.crs == crs:
        return math.hypot(t.a, t.d), math.hypot(t.b, t.e)
    wanted = first.pixel_size(where="the first tile") if metres is None else (metres, metres)
    middle = Affine(1, 0, (box.left + box.right) / 2, 0, -1, (box.bottom + box.top) / 2)
    steps = measure_steps(crs, middle, np.zeros(1), np.zeros(1))  # metres of one unit
    factor = metres_per_unit(crs)
    units = (factor, factor) if steps is None else (float(steps.across[0]), float(steps.down[0]))
    if not crs.is_geographic and all(abs(unit / factor - 1) < _TRUE for unit in units):
        units = (factor, factor)
    if not all(np.isfinite(unit) and unit > 0 for unit in units):
        place = f"({middle.c:.6g}, {middle.f:.6g})"
        msg = f"the mosaic's centre {place} lies outside the area of its CRS; give another with --crs"
        raise InputError(msg)
    return wanted[0] / units[0], wanted[1] / units[1]


_TRUE = 0.05
"""Share by which a projection may stretch lengths while its metres still count as metres on the ground."""

OPEN_AT_ONCE = 32


class _Joiner(ExitStack):
    """Compute windows of the mosaic; keeps the maps of the last few windows open."""

    def __init__(self, parts: Sequence[_Part], grid: Grid, scheme: ClassScheme, target: Path) -> None:
        super().__init__()
        self._parts, self._grid, self._scheme, self._target = parts, grid, scheme, target
        self.filled = 0
        """Number of pixels with data so far."""
        self._boxes = np.array([part.box for part in parts])
        self._open: dict[Path, tuple[ExitStack, CodeRaster]] = {}

    def __exit__(self, *details: object) -> bool | None:
        for path in list(self._open):
            self._open.pop(path)[0].close()
        return super().__exit__(*details)  # type: ignore[arg-type]

    def compute(self, block: Block) -> dict[str, NDArray[np.generic]]:
        """Return the codes of a window, tiles on their own ground first."""
        here = self._grid.window(block.core).bounds
        left, bottom, right, top = self._boxes.T
        meets = (left < here.right) & (here.left < right) & (bottom < here.top) & (here.bottom < top)
        if not meets.any():
            return {}
        reaching = [self._parts[number] for number in np.flatnonzero(meets).tolist()]
        codes = np.full((int(block.core.height), int(block.core.width)), MAP_NODATA, dtype=np.uint8)
        spare = codes.copy()
        for part in reaching:
            source = self._source(part.path)
            positions = read_classes(source, block.core, self._scheme, codes=None, where=part.path)
            found = self._scheme.decode(positions, positions >= 0)
            own = self._on_own_ground(part, block) & (found != MAP_NODATA) & (codes == MAP_NODATA)
            codes[own] = found[own]
            spare = np.where(spare == MAP_NODATA, found, spare)
        joined = np.where(codes == MAP_NODATA, spare, codes)
        self.filled += int((joined != MAP_NODATA).sum())
        return {"map": joined}

    def _on_own_ground(self, part: _Part, block: Block) -> NDArray[np.bool_]:
        window = from_bounds(*part.core, transform=self._grid.window(block.core).transform)
        rows = np.arange(int(block.core.height)) + 0.5
        columns = np.arange(int(block.core.width)) + 0.5
        inside_rows = (rows > window.row_off) & (rows < window.row_off + window.height)
        inside_columns = (columns > window.col_off) & (columns < window.col_off + window.width)
        return np.asarray(inside_rows[:, None] & inside_columns)

    def _source(self, path: Path) -> CodeRaster:
        """Return a map on the mosaic's grid."""
        if path not in self._open:
            while len(self._open) >= OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open)))[0].close()
            stack = ExitStack()
            raster = stack.enter_context(open_on_grid(path, self._grid, like=self._target, partly=True))
            self._open[path] = stack, raster
        return self._open[path][1]
