"""Points from vector files and CSVs: splitting, locating and checking them, and finding their columns."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from landprior.errors import InputError
from landprior.raster.scheme import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

CUT = 10
"""Length to which a Shapefile cuts a column's name."""

_ADDED = re.compile(r"_(left|right|x|y|\d{1,2})$")
"""Suffixes that joins of geopandas, pandas and QGIS add to duplicate names."""


def _plain(name: object) -> str:
    return re.sub(r"[\W_]+", "_", plain_name(str(name))).strip("_")


def find_column(columns: Iterable[object], name: str, where: str | Path, *, joined: bool = False) -> str | None:
    """Find a column by name, even if a file format has changed the name.

    Parameters
    ----------
    columns
        Names of the columns.
    name
        The original name of the column.
    where
        The file, for errors.
    joined
        Also recognise names changed by a join: with a prefix (``points_stratum``) or a suffix (``_left``, ``_1``).

    Returns
    -------
    str or None
        The exact name; otherwise one in another case, with other separators, or cut to ten letters; otherwise a joined
        one.

    Raises
    ------
    InputError
        If several columns match.
    """
    names = [str(column) for column in columns if str(column) != "geometry"]
    if name in names:
        return name
    wanted = _plain(name)
    cut = _plain(name[:CUT])
    levels: list[Callable[[str], bool]] = [lambda plain: plain == wanted, lambda plain: plain == cut]
    if joined:
        levels += [
            lambda plain: plain.endswith(f"_{wanted}") or _ADDED.sub("", plain) == wanted,
            lambda plain: len(name) > CUT and (plain.endswith(f"_{cut}") or _ADDED.sub("", plain) == cut),
        ]
    for matches in levels:
        found = [one for one in names if matches(_plain(one))]
        if len(found) > 1:
            msg = f"{where} has several columns that match {name!r} ({', '.join(found)}); keep one"
            raise InputError(msg)
        if found:
            return found[0]
    return None


def is_blank(value: object) -> bool:
    """Return whether a value is empty: null, NaN, or only spaces."""
    return value is None or value != value or not str(value).strip() or type(value).__name__ in ("NAType", "NaTType")  # noqa: PLR0124 - NaN


def blanks(frame: geopandas.GeoDataFrame, column: str) -> NDArray[np.bool_]:
    """Return for each feature whether a column is empty, shape (n,)."""
    return np.array([is_blank(value) for value in frame[column].tolist()], dtype=bool)


def name_feature(frame: geopandas.GeoDataFrame, position: int) -> str:
    """Return the name of a feature for error messages: its line in a CSV, otherwise its number from 1."""
    label = frame.index[position]
    return f"line {label}" if frame.index.name == "line" else f"feature {int(label) + 1}"


def single_points(frame: geopandas.GeoDataFrame, where: str | Path) -> geopandas.GeoDataFrame:
    """Split MultiPoints into points, and log their number; other geometries are unchanged."""
    import pandas as pd

    multi = frame.geom_type == "MultiPoint"
    if not multi.any():
        return frame
    split = frame[multi].explode(index_parts=False)
    if len(split) > multi.sum():
        logger.info("%s: %d MultiPoints are %d points", where, int(multi.sum()), len(split))
    found = pd.concat([frame[~multi], split])
    found.index.name = frame.index.name
    return found


def require_points(frame: geopandas.GeoDataFrame, where: str | Path) -> geopandas.GeoDataFrame:
    """Return single points; raise an error for lines and polygons.

    Raises
    ------
    InputError
        If there are other geometries; the message gives their kinds, number and the first.
    """
    frame = single_points(frame, where)
    kinds = frame.geom_type.to_numpy()
    other = np.flatnonzero(kinds != "Point")
    if len(other):
        msg = (
            f"{where} has {', '.join(sorted(set(kinds[other])))} ({len(other)} of {len(frame)} features, the first "
            f"is {name_feature(frame, int(other[0]))}); points are needed"
        )
        raise InputError(msg)
    return frame


def locate(frame: geopandas.GeoDataFrame, grid: Grid) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows and columns of points' pixels, and which points lie on the grid, each shape (n,)."""
    x, y = frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy()
    columns, rows = (np.floor(values) for values in ~grid.transform @ (x, y))
    inside = (rows >= 0) & (rows < grid.height) & (columns >= 0) & (columns < grid.width)
    rows, columns = (np.where(np.isfinite(values), values, -1).astype(np.intp) for values in (rows, columns))
    return rows, columns, inside & np.isfinite(x) & np.isfinite(y)


def _swapped_degrees(frame: geopandas.GeoDataFrame, grid: Grid) -> bool:
    """Say whether features would lie on a projected raster if longitude and latitude were swapped."""
    if grid.crs is None or frame.crs is None or grid.crs.is_geographic:
        return False
    try:
        west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *frame.total_bounds)
        if max(abs(west), abs(east)) > 90:
            return False
        left, bottom, right, top = transform_bounds("EPSG:4326", grid.crs, south, west, north, east)
    except RasterioError:
        return False
    x, y = float(left + right) / 2, float(bottom + top) / 2
    inside = grid.bounds
    return bool(inside.left <= x <= inside.right and inside.bottom <= y <= inside.top)


def explain_outside(frame: geopandas.GeoDataFrame, grid: Grid) -> str:
    """Return a message with the extents of a raster and the features outside it, and the likely cause."""
    left, bottom, right, top = grid.bounds
    west, south, east, north = (float(edge) for edge in frame.total_bounds)
    digits = 5 if max(abs(edge) for edge in (left, bottom, right, top)) <= 360 else 1

    def span(low: float, high: float) -> str:
        return f"{low:.{digits}f} to {high:.{digits}f}"

    text = (
        f"the raster has x from {span(left, right)} and y from {span(bottom, top)}, "
        f"they have x from {span(west, east)} and y from {span(south, north)}"
    )
    swapped = left <= south and north <= right and bottom <= west and east <= top
    degrees = grid.crs is not None and not grid.crs.is_geographic
    if swapped or _swapped_degrees(frame, grid):
        return f"{text}: are x and y (longitude and latitude) swapped?"
    if degrees and max(abs(west), abs(east)) <= 180 and max(abs(south), abs(north)) <= 90:
        return f"{text}: these look like degrees; in a CSV name the columns lon and lat, otherwise set the file's CRS"
    return f"{text}; check the CRS, and whether this is the right file"
