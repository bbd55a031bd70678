"""Labelled points from a CSV or a vector file, as pixels of a grid and classes of a scheme."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError, MissingInputError
from landprior.landcover.sampling import REFERENCE
from landprior.sources.labels import class_position
from landprior.sources.vectors import read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

CLASS_NAMES = ("class", "label", REFERENCE)
"""Columns that may hold the class; the first there is taken."""

PLACES = (("x", "y"), ("col", "row"), ("column", "row"))
"""Columns that may hold the place: map coordinates, or a pixel's column and row from 0."""


@dataclass(frozen=True)
class LabelledPoints:
    """Points on a grid: rows, columns and class positions, each shape (n,)."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.classes)

    def take(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> LabelledPoints:
        """Return some of the points."""
        return LabelledPoints(self.rows[chosen], self.columns[chosen], self.classes[chosen])


def read_points(
    path: str | Path, grid: Grid, scheme: ClassScheme, *, label_map: Mapping[int, int] | None = None
) -> LabelledPoints:
    """Read labelled points.

    Parameters
    ----------
    path
        A CSV with a header: ``x`` and ``y`` in the raster's coordinates, or ``row`` and ``col``, pixels from 0; and
        ``class``, ``label`` or ``reference``, a code or a name of the scheme. Or points in any vector format.
    grid
        The raster's.
    scheme
        The classes; points of an ignored code, or without a class, are left out.
    label_map
        Codes of the points -> codes of the scheme.

    Raises
    ------
    MissingInputError, InputError
        If the file is missing, has no such columns, or a place is no number; names the line.
    InputError
        If a point lies outside of the raster.
    SchemeError
        If a class is not of the scheme.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"no such file: {path}"
        raise MissingInputError(msg)
    found = _read_csv(path, grid) if path.suffix.lower() in (".csv", ".txt") else _read_features(path, grid)
    columns, rows = np.floor(np.array([place for place, _ in found]).reshape(-1, 2).T)
    outside = (columns < 0) | (rows < 0) | (columns >= grid.width) | (rows >= grid.height)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        msg = (
            f"{path}: {int(outside.sum())} of {len(found)} points lie outside of the raster of {grid.width} x "
            f"{grid.height} px, the first at column {columns[first]:.0f}, row {rows[first]:.0f} (point {first + 1}); "
            "x and y are in the raster's CRS, row and col are pixels from 0"
        )
        raise InputError(msg)
    classes = np.array([_position(text, scheme, label_map, path) for _, text in found], dtype=np.int64)
    points = LabelledPoints(rows.astype(np.int64), columns.astype(np.int64), classes)
    return points.take(classes >= 0)


def _position(text: object, scheme: ClassScheme, label_map: Mapping[int, int] | None, path: Path) -> int:
    blank = text is None or (isinstance(text, float) and math.isnan(text)) or not str(text).strip()
    return -1 if blank else class_position(text, scheme, label_map, path)


def _read_csv(path: Path, grid: Grid) -> list[tuple[tuple[float, float], object]]:
    """Return places as (column, row), fractions of pixels, and what stands for the class."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read as a CSV ({error})"
        raise InputError(msg) from error
    if not lines:
        msg = f"{path} has no points; it needs a header such as x,y,class and a line for each point"
        raise InputError(msg)
    names = {str(name).strip().lower(): name for name in lines[0] if name is not None}
    place = next((pair for pair in PLACES if set(pair) <= set(names)), None)
    label = next((name for name in CLASS_NAMES if name in names), None)
    if place is None or label is None:
        msg = (
            f"{path} has the columns {', '.join(names)}; it needs x,y (map coordinates) or row,col (pixels from 0), "
            "and class"
        )
        raise InputError(msg)
    inverse = ~grid.transform
    found: list[tuple[tuple[float, float], object]] = []
    for number, line in enumerate(lines, start=2):
        try:
            first, second = (float(line[names[name]]) for name in place)
        except (TypeError, ValueError) as error:
            msg = f"{path}, line {number}: {place[0]} and {place[1]} must be numbers"
            raise InputError(msg) from error
        if not (math.isfinite(first) and math.isfinite(second)):
            msg = f"{path}, line {number}: {place[0]} and {place[1]} must be finite numbers"
            raise InputError(msg)
        at = inverse @ (first, second) if place == PLACES[0] else (first, second)
        found.append(((float(at[0]), float(at[1])), line[names[label]]))
    return found


def _read_features(path: Path, grid: Grid) -> list[tuple[tuple[float, float], object]]:
    everything = read_vectors(path, grid=grid if grid.crs is None else None)
    frame = everything if grid.crs is None else everything.to_crs(grid.crs.to_wkt())
    label = next((name for name in CLASS_NAMES if name in frame.columns), None)
    if label is None or frame.empty or not (frame.geom_type == "Point").all():
        msg = f"{path} needs points with an attribute {' or '.join(CLASS_NAMES)}"
        raise InputError(msg)
    places = [~grid.transform @ (x, y) for x, y in zip(frame.geometry.x, frame.geometry.y, strict=True)]
    return [((float(c), float(r)), text) for (c, r), text in zip(places, frame[label].tolist(), strict=True)]


def require_enough(points: LabelledPoints, scheme: ClassScheme, where: str | Path) -> None:
    """Refuse fewer points than classes; say which classes have none.

    Raises
    ------
    InputError
        If there are fewer points than classes.
    """
    if len(points) < len(scheme):
        msg = f"{where}: {len(points)} labelled points are fewer than the {len(scheme)} classes of {scheme.name!r}"
        raise InputError(msg)
    without = missing_classes(points.classes, scheme)
    if without:
        logger.warning("%s has no point of %s; no cluster can become it", where, ", ".join(without))


def missing_classes(classes: NDArray[np.integer], scheme: ClassScheme) -> Sequence[str]:
    """Return the names of classes that no point has."""
    counts = np.bincount(classes, minlength=len(scheme))
    return [name for name, count in zip(scheme.names, counts, strict=True) if not count]
