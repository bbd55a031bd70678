"""Interpreted points on a map: their classes on the map and in truth, and the strata they were drawn from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.landcover.assessment.independence import require_independent
from landprior.raster.classes import read_classes_at
from landprior.raster.scheme import IGNORED_INDEX
from landprior.sources.labels import class_position
from landprior.sources.points import blanks, explain_outside, find_column, locate, name_feature, require_points
from landprior.sources.sample_design import REFERENCE, read_design
from landprior.sources.vectors import read_everything

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.codes import CodeRaster
    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InterpretedPoints:
    """Interpreted points on a map.

    Parameters
    ----------
    places
        x and y in the CRS of the map, shape (n, 2).
    mapped, reference
        Class positions of each point on the map and in truth, shape (n,).
    strata
        Stratum of each point, shape (n,); None if the points have no design.
    sizes
        Pixels of each stratum, including those without an interpreted point; empty without a design.
    areas
        Hectares of each stratum; None if unknown.
    """

    places: NDArray[np.float64]
    mapped: NDArray[np.int64]
    reference: NDArray[np.int64]
    strata: NDArray[np.int64] | None
    sizes: Mapping[int, int]
    areas: Mapping[int, float] | None

    def weights(self) -> NDArray[np.float64]:
        """Return the area that each point represents, shape (n,): its stratum's, divided by its interpreted points.

        In hectares or pixels; all are 1 without a design.
        """
        if self.strata is None:
            return np.ones(len(self.mapped))
        whole: Mapping[int, float] = self.sizes if self.areas is None else self.areas
        names, inverse, counts = np.unique(self.strata, return_inverse=True, return_counts=True)
        each = np.array([whole[int(name)] for name in names]) / counts
        return np.asarray(each[inverse], dtype=np.float64)


def read_interpreted(
    raster: CodeRaster,
    points: str | Path,
    scheme: ClassScheme,
    *,
    column: str = REFERENCE,
    layer: str | None = None,
    map_map: Mapping[int, int] | None = None,
    label_map: Mapping[int, int] | None = None,
) -> InterpretedPoints:
    """Read interpreted points and their classes on a map.

    Parameters
    ----------
    raster
        The open map.
    points
        A vector file with points, as written by ``landprior sample`` and filled in, or a CSV.
    scheme
        The classes.
    column
        The column with the interpreted class (name or code); points without one are left out.
    layer
        Layer of the file, if it has several.
    map_map, label_map
        Codes of the map and of the points -> codes of the scheme.

    Returns
    -------
    InterpretedPoints
        The points with a class.

    Raises
    ------
    InputError
        If the file has no such column or no interpreted point, if points lie outside the map, if the sample design is
        damaged, or if the points were proposed for an adaptation.
    SchemeError
        If a class is unknown.
    """
    path, grid = raster.path, raster.grid
    everything, column = _read_points(points, grid, column, layer)
    design = read_design(everything, points)
    done = _interpreted(everything, points, column)
    frame = everything[done]
    require_independent(frame, points, path)
    centres = frame.geometry
    places = np.column_stack([centres.x, centres.y])
    mapped = read_classes_at(raster, places, scheme, codes=map_map, where=path).astype(np.int64)
    if (mapped == IGNORED_INDEX).any():
        where = name_feature(frame, int(np.flatnonzero(mapped == IGNORED_INDEX)[0]))
        msg = (
            f"{(mapped == IGNORED_INDEX).sum()} points of {points} lie where {path} has no class; is it the "
            f"right map? The first one is at {where}"
        )
        raise InputError(msg)
    reference = _classes(frame, column, points, scheme, label_map)
    if design is not None:
        _require_known(design.sizes, scheme, {**(map_map or {}), **(label_map or {})}, points)
    return InterpretedPoints(
        places=places,
        mapped=mapped,
        reference=reference,
        strata=None if design is None else design.strata[done],
        sizes={} if design is None else design.sizes,  # with strata whose points were all left out
        areas=None if design is None else design.areas,
    )


def _require_known(
    sizes: Mapping[int, int], scheme: ClassScheme, others: Mapping[int, int], points: str | Path
) -> None:
    """Raise an error if a stratum is not a class of the map (points of another place, or a damaged file)."""
    known = {code for c in scheme.classes for code in (c.code, *c.merge)} | set(scheme.ignored) | set(others)
    strange = [str(stratum) for stratum in sizes if stratum not in known]
    if strange:
        msg = (
            f"{points} has strata {', '.join(strange)}, which are not codes of scheme {scheme.name!r}; were the points "
            "drawn on a map with other classes? Give its scheme with --scheme and the map's codes with --map-map"
        )
        raise InputError(msg)


def _read_points(points: str | Path, grid: Grid, column: str, layer: str | None) -> tuple[geopandas.GeoDataFrame, str]:
    """Read points, check that all lie on the grid, and return them with the name of the class column."""
    everything = read_everything(points, layer=layer, grid=grid)
    found = find_column(everything.columns, column, points, joined=True)
    if found is None:
        names = ", ".join(str(name) for name in everything.columns)
        msg = f"{points} has no column {column!r} with the class seen (it has {names}); name it with --class-column"
        raise InputError(msg)
    if found != column:
        logger.info("%s: reading the interpreted class from column %r", points, found)
    frame = require_points(everything, points)
    *_, inside = locate(frame, grid)
    if not inside.all():
        first = name_feature(frame, int(np.flatnonzero(~inside)[0]))
        msg = (
            f"{(~inside).sum()} of {len(frame)} points of {points} lie outside the map (the first is {first}): "
            f"{explain_outside(frame[~inside], grid)}"
        )
        raise InputError(msg)
    return frame, found


def _interpreted(frame: geopandas.GeoDataFrame, points: str | Path, column: str) -> NDArray[np.bool_]:
    """Return which points have a class, shape (n,)."""
    done = ~blanks(frame, column)
    if not done.any():
        msg = f"no point of {points} has a class in column {column!r} yet; fill it in (for example in QGIS)"
        raise InputError(msg)
    if not done.all():
        logger.warning(
            "%d of %d points have no class and are left out; if they were hard to interpret, accuracy is overestimated",
            int((~done).sum()),
            len(frame),
        )
    return done


def _classes(
    frame: geopandas.GeoDataFrame,
    column: str,
    points: str | Path,
    scheme: ClassScheme,
    label_map: Mapping[int, int] | None,
) -> NDArray[np.int64]:
    """Return the interpreted class of each point, shape (n,)."""
    found = np.empty(len(frame), dtype=np.int64)
    for position, value in enumerate(frame[column].tolist()):
        where = f"{points}, {name_feature(frame, position)}"
        found[position] = class_position(value, scheme, label_map, where)
        if found[position] == IGNORED_INDEX:
            msg = (
                f"{where}: {points} has points with code {value}, which scheme {scheme.name!r} ignores; leave their "
                "class empty instead"
            )
            raise InputError(msg)
    return found
