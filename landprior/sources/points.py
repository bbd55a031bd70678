"""Points of any vector file or CSV: single, located and counted, and columns whose names formats have changed."""

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
"""Letters of a column's name that a Shapefile keeps."""

_ADDED = re.compile(r"_(left|right|x|y|\d{1,2})$")
"""What joins of geopandas, pandas and QGIS put behind a name that is there twice."""


def _plain(name: object) -> str:
    return re.sub(r"[\W_]+", "_", plain_name(str(name))).strip("_")


def find_column(columns: Iterable[object], name: str, where: str | Path, *, joined: bool = False) -> str | None:
    """Find a column whose name a format may have changed.

    Parameters
    ----------
    columns
        Names of the columns.
    name
        The column's own name.
    where
        The file, for errors.
    joined
        Also recognise what a join makes of it: a prefix (``points_stratum``), or ``_left``, ``_1`` behind it.

    Returns
    -------
    str or None
        The name itself; else in another case, with other characters between words, or cut to ten letters; else joined.

    Raises
    ------
    InputError
        If several columns may be it.
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
            msg = f"{where} has several columns that may be {name!r} ({', '.join(found)}); keep one"
            raise InputError(msg)
        if found:
            return found[0]
    return None


def is_blank(value: object) -> bool:
    """Say whether an attribute says nothing: null, NaN, or a text of blanks."""
    return value is None or value != value or not str(value).strip() or type(value).__name__ in ("NAType", "NaTType")  # noqa: PLR0124 - NaN


def blanks(frame: geopandas.GeoDataFrame, column: str) -> NDArray[np.bool_]:
    """Say of each feature whether a column says nothing, shape (n,)."""
    return np.array([is_blank(value) for value in frame[column].tolist()], dtype=bool)


def name_feature(frame: geopandas.GeoDataFrame, position: int) -> str:
    """Return what a feature is called in an error: its line in a CSV, else its number from 1."""
    label = frame.index[position]
    return f"line {label}" if frame.index.name == "line" else f"feature {int(label) + 1}"


def single_points(frame: geopandas.GeoDataFrame, where: str | Path) -> geopandas.GeoDataFrame:
    """Split MultiPoints into points, with a line that counts them; other geometries stay as they are."""
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
    """Return single points; refuse lines and polygons.

    Raises
    ------
    InputError
        If there is another geometry; says what, how many and the first.
    """
    frame = single_points(frame, where)
    kinds = frame.geom_type.to_numpy()
    other = np.flatnonzero(kinds != "Point")
    if len(other):
        msg = (
            f"{where} holds {', '.join(sorted(set(kinds[other])))} ({len(other)} of {len(frame)} features, the first "
            f"is {name_feature(frame, int(other[0]))}); points are needed"
        )
        raise InputError(msg)
    return frame


def locate(frame: geopandas.GeoDataFrame, grid: Grid) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows and columns of the pixels that points lie in, and which lie on the grid, each shape (n,)."""
    x, y = frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy()
    columns, rows = (np.floor(values) for values in ~grid.transform @ (x, y))
    inside = (rows >= 0) & (rows < grid.height) & (columns >= 0) & (columns < grid.width)
    rows, columns = (np.where(np.isfinite(values), values, -1).astype(np.intp) for values in (rows, columns))
    return rows, columns, inside & np.isfinite(x) & np.isfinite(y)


def _swapped_degrees(frame: geopandas.GeoDataFrame, grid: Grid) -> bool:
    """Say whether features would lie on a projected raster if their longitude and latitude changed places."""
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
    """Say where a raster and features beside it lie, and what may be wrong."""
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
        return f"{text}: these look like degrees; in a CSV call such columns lon and lat, else set the file's CRS"
    return f"{text}; check the CRS, and that it is the right file"
