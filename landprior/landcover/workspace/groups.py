"""Groups of neighbouring tiles that share one model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rasterio.warp import transform_bounds

from landprior.errors import InputError, MissingInputError
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.workspace.item import TileFolder


@dataclass(frozen=True)
class Group:
    """Tiles that share one model.

    Parameters
    ----------
    tiles
        The tiles, in the order of their names.
    model
        Path of the model, in the folder of the place.
    """

    tiles: tuple[TileFolder, ...]
    model: Path

    @property
    def name(self) -> str:
        """Name of the group in messages."""
        return f"{self.tiles[0].city}/{self.model.stem}"

    @property
    def adapted(self) -> Path:
        """Path of the model adapted to the points of the place."""
        return self.model.with_name(self.model.name.replace("model", "adapted", 1))

    def require_model(self) -> Path:
        """Return the path of the model, which must exist.

        Raises
        ------
        MissingInputError
            If it does not; the message says how to train it.
        """
        if not self.model.is_file():
            city = self.tiles[0].city
            msg = f"{self.model} is missing; train it with: landprior run --city {city} --joint --only model"
            raise MissingInputError(msg)
        return self.model

    def find_neighbours(self, tile: TileFolder, reach: float) -> list[TileFolder]:
        """Return the other tiles of the group that lie within some distance of a tile.

        Parameters
        ----------
        tile
            A tile of the group.
        reach
            Distance in metres (in units of the CRS, if it is not known).

        Returns
        -------
        list of TileFolder
            In the order of their names. A tile without a CRS has no neighbours.
        """
        own = read_grid(tile)
        if own.crs is None:
            return []
        across, down = own.pixel_size(where=tile.file("naip"))
        left, bottom, right, top = own.bounds
        wide = reach / across * (right - left) / own.width
        tall = reach / down * (top - bottom) / own.height
        found = []
        for other in self.tiles:
            grid = read_grid(other)
            if other == tile or grid.crs is None:
                continue
            box = transform_bounds(grid.crs, own.crs, *grid.bounds, densify_pts=21)
            if box[0] < right + wide and box[2] > left - wide and box[1] < top + tall and box[3] > bottom - tall:
                found.append(other)
        return found


def make_groups(tiles: Sequence[TileFolder], size: int | None = None) -> list[Group]:
    """Group the tiles of a place.

    Parameters
    ----------
    tiles
        Tiles of one city, with images.
    size
        Maximum number of tiles in a group; None: all share one model.

    Returns
    -------
    list of Group
        Compact groups of about the same size; they depend on the places of the tiles, not on their order.
    """
    grids = {tile.name: read_grid(tile) for tile in tiles}
    by_name = {tile.name: tile for tile in tiles}
    named = divide_tiles(grids, size)
    folder = tiles[0].path.parent
    return [
        Group(tuple(by_name[name] for name in names), folder / name_model(number, len(named)))
        for number, names in enumerate(named)
    ]


def name_model(number: int, count: int) -> str:
    """Return the file name of the model of a group, from its number, from 0, and the number of groups."""
    return "model.safetensors" if count == 1 else f"model-{number + 1}.safetensors"


def divide_tiles(grids: Mapping[str, Grid], size: int | None = None) -> list[tuple[str, ...]]:
    """Divide tiles into groups of neighbours.

    The tiles are cut in two along the longer side of what they cover, and the halves again, until no group has more
    than ``size`` tiles.

    Parameters
    ----------
    grids
        Name -> grid of a tile.
    size
        Maximum number of tiles in a group; None: no limit.

    Returns
    -------
    list of tuple of str
        Names of the tiles of each group, sorted; the groups are in the order of their first names.

    Raises
    ------
    InputError
        If the size is not positive, or a tile has a CRS and another has none.
    """
    if size is not None and size < 1:
        msg = f"a group has at least one tile, not {size}"
        raise InputError(msg)
    lost = [name for name, grid in grids.items() if grid.crs is None]
    if lost and len(lost) < len(grids):
        msg = f"{lost[0]} has no CRS, so its place among the other tiles is unknown; assign its CRS"
        raise InputError(msg)
    count = 1 if size is None else math.ceil(len(grids) / size)
    places = {name: _find_middle(grid) for name, grid in grids.items()}
    if not lost:  # a degree of longitude is as long as one of latitude only at the equator
        width = math.cos(math.radians(float(np.mean([y for _, y in places.values()]))))
        places = {name: (x * width, y) for name, (x, y) in places.items()}
    return sorted(tuple(sorted(names)) for names in _cut(sorted(grids), places, count))


def _cut(names: list[str], places: Mapping[str, tuple[float, float]], count: int) -> list[list[str]]:
    """Cut tiles into a number of groups; a half's share of the tiles is that of the groups."""
    if count <= 1:
        return [names]
    spans = [np.ptp([places[name][axis] for name in names]) for axis in (0, 1)]
    axis = int(spans[1] > spans[0])
    ordered = sorted(names, key=lambda name: (round(places[name][axis], 6), places[name][1 - axis], name))
    first = count // 2
    end = math.ceil(len(names) * first / count)
    return _cut(ordered[:end], places, first) + _cut(ordered[end:], places, count - first)


def _find_middle(grid: Grid) -> tuple[float, float]:
    """Return the middle of a tile in degrees, or in map units if it has no CRS."""
    left, bottom, right, top = grid.bounds
    if grid.crs is not None:
        left, bottom, right, top = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds, densify_pts=21)
    return (left + right) / 2, (bottom + top) / 2


def read_grid(tile: TileFolder) -> Grid:
    """Return the grid of a tile's image."""
    with open_raster(tile.require("naip", hint="every tile needs its image")) as src:
        return Grid.of(src)
