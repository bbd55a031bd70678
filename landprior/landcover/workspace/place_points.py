"""The labelled points of a place: which of its tiles hold some."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affine import Affine

from landprior.errors import InputError
from landprior.landcover.adaptation.fitting import LEAST_POINTS
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.grid import Grid
from landprior.sources.local_files import identify
from landprior.sources.points import locate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class PlacePoints:
    """Labelled points of a place.

    Parameters
    ----------
    files
        Their files.
    tiles
        Names of the tiles that hold points of one class.
    count
        Number of points of one class on the tiles.
    column, layer
        See :func:`landprior.landcover.adaptation.adapt.adapt`.
    """

    files: tuple[str, ...]
    tiles: tuple[str, ...]
    count: int
    column: str | None = None
    layer: str | None = None

    def find_tiles(self, folder: Path) -> list[TileFolder]:
        """Return the tiles that hold points, from the folder of the place."""
        return [TileFolder(path=folder / name, city=folder.name) for name in self.tiles]

    def name_files(self) -> list[str]:
        """Return a name of each file for records and messages."""
        return [f"points {number} ({Path(file).name})" for number, file in enumerate(self.files)]

    def identify(self) -> dict[str, str]:
        """Return the name of each file, and a text that changes with its content."""
        return {name: repr(identify(file)) for name, file in zip(self.name_files(), self.files, strict=True)}


@dataclass(frozen=True, kw_only=True)
class PointFiles:
    """Files of labelled points, and how to read them.

    Parameters
    ----------
    files, column, layer
        See :func:`landprior.landcover.adaptation.adapt.adapt`.
    """

    files: tuple[str | Path, ...]
    column: str | None = None
    layer: str | None = None

    def find(self, grids: Mapping[str, Grid], scheme: ClassScheme) -> PlacePoints:
        """Return the points of a place; see :func:`find_points`."""
        return find_points(grids, self.files, scheme, column=self.column, layer=self.layer)


def find_points(
    grids: Mapping[str, Grid],
    files: Sequence[str | Path],
    scheme: ClassScheme,
    *,
    column: str | None = None,
    layer: str | None = None,
) -> PlacePoints:
    """Find the tiles of a place that hold points.

    Parameters
    ----------
    grids
        Name -> grid of each tile.
    files, column, layer
        See :func:`landprior.landcover.adaptation.adapt.adapt`.
    scheme
        The classes.

    Returns
    -------
    PlacePoints
        The points, with the tiles in the order of their names.

    Raises
    ------
    InputError
        If a file cannot be read, or the tiles hold fewer than
        :data:`landprior.landcover.adaptation.fitting.LEAST_POINTS` points of one class.
    """
    by_crs: dict[str, list[str]] = {}
    for name, grid in sorted(grids.items()):
        by_crs.setdefault("" if grid.crs is None else grid.crs.to_wkt(), []).append(name)
    found: set[tuple[int, int]] = set()
    holding: set[str] = set()
    for names in by_crs.values():
        cover = _cover([grids[name] for name in names])
        for number, file in enumerate(files):
            labels = read_sparse_labels(file, scheme, cover, column=column, layer=layer, needed=len(grids) == 1)
            points = labels.locate_points(cover)
            for name in names:
                inside = points.index[locate(points, grids[name])[2]]
                found |= {(number, index) for index in inside}
                holding |= {name} if len(inside) else set()
    if len(found) < LEAST_POINTS:
        given = ", ".join(str(file) for file in files)
        msg = f"{given}: {len(found)} points have one class and lie on the tiles; at least {LEAST_POINTS} are needed"
        raise InputError(msg)
    there = tuple(sorted(holding))
    return PlacePoints(files=tuple(map(str, files)), tiles=there, count=len(found), column=column, layer=layer)


def _cover(grids: Sequence[Grid]) -> Grid:
    """Return a grid that covers some of one CRS; a single one itself."""
    first = grids[0]
    if len(grids) == 1:
        return first
    left, bottom = (min(grid.bounds[side] for grid in grids) for side in (0, 1))
    right, top = (max(grid.bounds[side] for grid in grids) for side in (2, 3))
    across, down = abs(first.transform.a) or 1.0, abs(first.transform.e) or 1.0
    return Grid(
        width=math.ceil((right - left) / across),
        height=math.ceil((top - bottom) / down),
        transform=Affine(across, 0, left, 0, -down, top),
        crs=first.crs,
    )
