"""One map over all tiles of a plan: each tile's own ground from that tile, what only margins reach from those."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from landprior.errors import InputError
from landprior.landcover.prediction import map_writer
from landprior.raster.files import check_output, open_raster, read_window
from landprior.raster.grid import Bounds, Grid
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.windows import Block, stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from landprior.landcover.workspace import TileFolder
    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A tile's map and where it lies on the mosaic's grid."""

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
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Join the maps of tiles to one COG, streamed.

    Where tiles overlap, a pixel is that of the tile whose own ground (without the margin that fetch adds) it lies on;
    where it lies on none's or on several's, that of the first tile with data. So the result does not depend on when
    a tile was finished.

    Parameters
    ----------
    tiles
        With maps.
    output
        The mosaic.
    scheme
        The classes of the maps.
    crs
        Of the mosaic; that of most tiles by default. Tiles in another are warped by nearest neighbour.
    pixel
        Its pixel size; the first tile's by default.
    overwrite, progress
        As for :func:`landprior.landcover.prediction.predict`.

    Raises
    ------
    InputError
        If there is no map, or a map has no CRS.
    """
    target = check_output(output, overwrite=overwrite)
    grids = {}
    for tile in tiles:
        with open_raster(tile.require("prediction", hint="run the plan first")) as src:
            grids[tile] = Grid.of(src)
    if not grids:
        msg = "there is no map to join"
        raise InputError(msg)
    lost = [tile.id for tile, grid in grids.items() if grid.crs is None]
    if lost:
        msg = f"{lost[0]} has no CRS, so its place among the others is not known"
        raise InputError(msg)
    codes = [grid.crs for grid in grids.values()]
    wanted = CRS.from_user_input(crs) if crs is not None else max(codes, key=codes.count)
    parts = [
        _Part(
            path=tile.file("prediction"),
            box=_bounds_in(wanted, grid.crs, grid.bounds),
            core=_bounds_in(wanted, grid.crs, tile.core() or grid.bounds),
        )
        for tile, grid in grids.items()
    ]
    first = next(grid for grid in grids.values() if grid.crs == wanted or crs is not None)
    grid = _lay_out(parts, wanted, pixel or abs(first.transform.a), first)
    joiner = _Joiner(parts, grid)
    with (
        joiner,
        map_writer(target, scheme, grid, {"tiles": str(len(parts))}, overwrite=overwrite) as writer,
    ):
        stream(joiner.compute, grid=grid, sinks={"map": writer}, label="mosaic", progress=progress)
    return target


def _bounds_in(wanted: CRS, own: CRS, bounds: Bounds) -> Bounds:
    return bounds if wanted == own else Bounds(*transform_bounds(own, wanted, *bounds, densify_pts=21))


def _lay_out(parts: Sequence[_Part], crs: CRS, pixel: float, first: Grid) -> Grid:
    """Return the grid around all parts, its pixels in line with the first tile's where it has the same CRS."""
    left, bottom = min(p.box.left for p in parts), min(p.box.bottom for p in parts)
    right, top = max(p.box.right for p in parts), max(p.box.top for p in parts)
    x, y = (first.bounds.left, first.bounds.top) if first.crs == crs else (0.0, 0.0)
    left = x + np.floor(round((left - x) / pixel, 3)) * pixel
    top = y - np.floor(round((y - top) / pixel, 3)) * pixel
    width = int(np.ceil(round((right - left) / pixel, 3)))
    height = int(np.ceil(round((top - bottom) / pixel, 3)))
    return Grid(width=width, height=height, transform=Affine(pixel, 0, left, 0, -pixel, top), crs=crs)


OPEN_AT_ONCE = 32


class _Joiner(ExitStack):
    """Fills windows of the mosaic; keeps the maps of the last few windows open."""

    def __init__(self, parts: Sequence[_Part], grid: Grid) -> None:
        super().__init__()
        self._parts, self._grid = parts, grid
        self._boxes = np.array([part.box for part in parts])
        self._open: dict[Path, tuple[ExitStack, DatasetReader]] = {}

    def __exit__(self, *details: object) -> bool | None:
        for path in list(self._open):
            self._open.pop(path)[0].close()
        return super().__exit__(*details)  # type: ignore[arg-type]

    def compute(self, block: Block) -> dict[str, NDArray[np.generic]]:
        """Return the codes of a window, those of tiles on their own ground first."""
        here = self._grid.window(block.core).bounds
        left, bottom, right, top = self._boxes.T
        meets = (left < here.right) & (here.left < right) & (bottom < here.top) & (here.bottom < top)
        if not meets.any():
            return {}
        reaching = [self._parts[number] for number in np.flatnonzero(meets).tolist()]
        codes = np.full((int(block.core.height), int(block.core.width)), MAP_NODATA, dtype=np.uint8)
        spare = codes.copy()
        for part in reaching:
            found = read_window(self._source(part.path), block.core, 1)
            own = self._on_own_ground(part, block) & (found != MAP_NODATA) & (codes == MAP_NODATA)
            codes[own] = found[own]
            spare = np.where(spare == MAP_NODATA, found, spare)
        return {"map": np.where(codes == MAP_NODATA, spare, codes)}

    def _on_own_ground(self, part: _Part, block: Block) -> NDArray[np.bool_]:
        window = from_bounds(*part.core, transform=self._grid.window(block.core).transform)
        rows = np.arange(int(block.core.height)) + 0.5
        columns = np.arange(int(block.core.width)) + 0.5
        inside_rows = (rows > window.row_off) & (rows < window.row_off + window.height)
        inside_columns = (columns > window.col_off) & (columns < window.col_off + window.width)
        return np.asarray(inside_rows[:, None] & inside_columns)

    def _source(self, path: Path) -> DatasetReader:
        """Return a map as it lies on the mosaic's grid."""
        if path not in self._open:
            while len(self._open) >= OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open)))[0].close()
            stack = ExitStack()
            src = stack.enter_context(open_raster(path))
            grid = self._grid
            vrt = WarpedVRT(
                src,
                crs=grid.crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                resampling=Resampling.nearest,
                nodata=MAP_NODATA,
            )
            self._open[path] = stack, stack.enter_context(vrt)
        return self._open[path][1]
