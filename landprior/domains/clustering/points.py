"""Labelled points from a CSV or a vector file, as pixels of a grid and classes of a scheme."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.sources import vectors
from landprior.sources.labels import class_position
from landprior.sources.points import blanks, explain_outside, find_column, locate, name_feature, require_points
from landprior.sources.sample_design import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

CLASS_NAMES = ("class", "label", REFERENCE)
"""Possible columns of the class; the first that exists is used."""


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
    path: str | Path,
    grid: Grid,
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    layer: str | None = None,
) -> LabelledPoints:
    """Read labelled points.

    Parameters
    ----------
    path
        A CSV with a header: ``x`` and ``y`` in the raster's coordinates, ``lon`` and ``lat`` in degrees, or ``row`` and
        ``col``, pixels from 0; and ``class``, ``label`` or ``reference``, a code or a name of the scheme. Or points in
        any vector format.
    grid
        Grid of the raster.
    scheme
        The classes; points with an ignored code or without a class are left out.
    label_map
        Codes of the points -> codes of the scheme.
    layer
        Layer of a vector file, if it has several.

    Returns
    -------
    LabelledPoints
        Rows, columns and class positions.

    Raises
    ------
    MissingInputError, InputError
        If the file is missing, has no such columns, or a coordinate is not a number; the message names the line.
    InputError
        If a point lies outside the raster.
    SchemeError
        If a class is not in the scheme.
    """
    frame = vectors.read_everything(path, layer=layer, grid=grid)
    label = next((found for name in CLASS_NAMES if (found := find_column(frame.columns, name, path)) is not None), None)
    if label is None:
        names = ", ".join(str(name) for name in frame.columns if name != "geometry")
        msg = (
            f"{path} needs points with a column {', '.join(CLASS_NAMES[:-1])} or {CLASS_NAMES[-1]}; it has "
            f"{names or 'none'} (a CSV needs x,y or lon,lat or row,col, and class)"
        )
        raise InputError(msg)
    if frame.empty:
        msg = f"{path} has no points; a CSV needs a header such as x,y,class and a line for each point"
        raise InputError(msg)
    frame = require_points(frame, path)
    rows, columns, inside = locate(frame, grid)
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        msg = (
            f"{path}: {int((~inside).sum())} of {len(frame)} points lie outside the raster of {grid.width} x "
            f"{grid.height} px, the first at column {columns[first]}, row {rows[first]} "
            f"({name_feature(frame, first)}): {explain_outside(frame[~inside], grid)}"
        )
        raise InputError(msg)
    blank = blanks(frame, label)
    classes = np.full(len(frame), -1, dtype=np.int64)
    for position in np.flatnonzero(~blank).tolist():
        where = f"{path}, {name_feature(frame, position)}"
        classes[position] = class_position(frame[label].iloc[position], scheme, label_map, where)
    ignored = int((classes < 0).sum() - blank.sum())
    if blank.any() or ignored:
        logger.info(
            "%s: %d points; leaving out %d without a class and %d with an ignored code",
            path, len(frame), int(blank.sum()), ignored,
        )  # fmt: skip
    points = LabelledPoints(rows.astype(np.int64), columns.astype(np.int64), classes)
    return points.take(classes >= 0)


def require_enough(points: LabelledPoints, scheme: ClassScheme, where: str | Path) -> None:
    """Raise an error for fewer points than classes; warn about classes without points.

    Parameters
    ----------
    points
        Points with their classes.
    scheme
        The classes.
    where
        Name of the points in error messages.

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
        logger.warning("%s has no point of %s; no cluster will be assigned to it", where, ", ".join(without))


def missing_classes(classes: NDArray[np.integer], scheme: ClassScheme) -> Sequence[str]:
    """Return the names of classes without points."""
    counts = np.bincount(classes, minlength=len(scheme))
    return [name for name, count in zip(scheme.names, counts, strict=True) if not count]
