"""Reading places from a CSV: map coordinates, degrees, pixels or WKT."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import shapely
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from landprior.errors import InputError
from landprior.sources.tables import read_table

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.sources.tables import Row, Table

logger = logging.getLogger(__name__)

_MAP = (
    ("x", "y"),
    ("easting", "northing"),
    ("utm_x", "utm_y"),
    ("x_coord", "y_coord"),
    ("xcoord", "ycoord"),
    ("point_x", "point_y"),
    ("coords.x1", "coords.x2"),
)
_DEGREES = (
    ("lon", "lat"),
    ("longitude", "latitude"),
    ("long", "lat"),
    ("lng", "lat"),
    ("lon_wgs84", "lat_wgs84"),
    ("decimallongitude", "decimallatitude"),
)
_PIXELS = (("col", "row"), ("column", "row"))
_WKT = ("wkt", "wkt_geom", "geometry", "geom", "the_geom", "geometry_wkt", ".geo")


def read_places(path: Path, grid: Grid | None) -> geopandas.GeoDataFrame:
    """Read a CSV with one place per row.

    Parameters
    ----------
    path
        Columns ``x`` and ``y`` (in the CRS of a ``.prj`` beside it, otherwise the grid's, or degrees if they cannot be
        map coordinates), ``lon`` and ``lat`` (degrees),
        ``row`` and ``col`` (pixels of the grid from 0), or a geometry as WKT (or GeoJSON, as Earth
        Engine exports it). Case does not matter.
    grid
        Grid of the raster; without it, places need degrees or a ``.prj``.

    Returns
    -------
    GeoDataFrame
        The places with the other columns, as numbers if all values are numbers, otherwise as text.

    Raises
    ------
    MissingInputError, InputError
        If it cannot be read, has no such columns, or a value is not a number; the message names the line.
    """
    import geopandas
    import pandas as pd
    from pyproj import CRS

    table = read_table(path)
    found = _find(table)
    if found is None:
        there = ", ".join(table.header) or "none"
        msg = (
            f"{path} has no coordinates; it has the columns {there}, but needs x,y (map coordinates), lon,lat "
            "(degrees), row,col (pixels from 0) or a geometry as WKT"
        )
        raise InputError(msg)
    kind, columns = found
    own = None if grid is None or grid.crs is None else grid.crs.to_wkt()
    beside = path.with_suffix(".prj")
    crs = own
    if kind == "degrees":
        crs = "EPSG:4326" if grid is None or grid.crs is not None else None
    elif kind != "pixels" and beside.is_file():
        crs = CRS.from_user_input(beside.read_text(encoding="utf-8", errors="replace")).to_wkt()
    if kind == "wkt":
        shapes, declared = _shapes(table, columns[0])
        crs = declared or crs
    else:
        xy = np.array([_place(table, row, columns) for row in table.rows]).reshape(-1, 2)
        if kind == "pixels":
            if grid is None:
                msg = f"{path} has rows and columns of pixels, but there is no raster; give x,y or lon,lat"
                raise InputError(msg)
            x, y = grid.transform @ tuple(np.floor(xy.T) + 0.5)
            xy = np.column_stack([x, y])
        shapes = shapely.points(xy)
    if crs is own and kind in ("map", "wkt") and grid is not None and _are_degrees(shapely.total_bounds(shapes), grid):
        logger.warning(
            "%s: coordinates are off this map and look like degrees; reading them as longitude and latitude", path
        )
        crs = "EPSG:4326"
    values = {name: _values(table, at) for at, name in enumerate(table.header) if name and at not in columns}
    lines = pd.Index([row.line for row in table.rows], name="line")
    return geopandas.GeoDataFrame(values, geometry=shapes, crs=crs, index=lines)


_NEAR = 1.0
"""Degrees around a raster within which coordinates without a CRS may be read as longitude and latitude."""


def _are_degrees(bounds: NDArray[np.float64], grid: Grid) -> bool:
    """Say whether bounds are degrees near a grid, and cannot be map coordinates around it."""
    world = (-180.0, -90.0, 180.0, 90.0)
    if grid.crs is None or grid.crs.is_geographic or not np.isfinite(bounds).all():
        return False
    within = all(low >= edge for low, edge in zip(bounds[:2], world[:2], strict=True)) and all(
        high <= edge for high, edge in zip(bounds[2:], world[2:], strict=True)
    )
    if not within or shapely.box(*grid.bounds).intersects(shapely.box(*world)):
        return False
    try:
        west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    except RasterioError:
        return False
    near = shapely.box(west - _NEAR, south - _NEAR, east + _NEAR, north + _NEAR)
    return bool(near.intersects(shapely.box(*bounds)))


def _find(table: Table) -> tuple[str, tuple[int, ...]] | None:
    for kind, pairs in (("map", _MAP), ("degrees", _DEGREES), ("pixels", _PIXELS)):
        for pair in pairs:
            first, second = (table.find(name) for name in pair)
            if first is not None and second is not None:
                return kind, (first, second)
    at = table.find(*_WKT)
    return None if at is None else ("wkt", (at,))


def _place(table: Table, row: Row, columns: tuple[int, ...]) -> list[float]:
    """Return the two coordinates of a row; NaN if one is empty."""
    found = []
    for at in columns:
        text = row.cells[at]
        number = table.parse(text) if text else float("nan")
        if number is None:
            names = " and ".join(table.header[i] for i in columns)
            kind = "finite numbers" if text.lower().lstrip("+-") in ("nan", "inf", "infinity") else "numbers"
            msg = f"{table.where(row)}: {names} must be unambiguous {kind}; {table.header[at]} is {text!r}"
            raise InputError(msg)
        found.append(number)
    return found


def _shapes(table: Table, at: int) -> tuple[NDArray[np.object_], str | None]:
    """Read WKT, optionally with a prefix ``SRID=4326;``, or GeoJSON; return geometries and the CRS."""
    found, codes = [], set()
    for row in table.rows:
        text = row.cells[at]
        head, mark, rest = text.partition(";")
        if mark and head.upper().startswith("SRID="):
            codes.add(head[5:].strip())
            text = rest
        elif text.startswith("{"):
            codes.add("4326")
        try:
            read = shapely.from_geojson if text.startswith("{") else shapely.from_wkt
            found.append(read(text) if text else None)
        except shapely.errors.ShapelyError as error:
            msg = f"{table.where(row)}: {table.header[at]} is {text[:60]!r}, not a geometry as WKT"
            raise InputError(msg) from error
    if len(codes) > 1:
        msg = f"{table.path} has geometries in several CRSs ({', '.join(sorted(codes))}); convert them to one"
        raise InputError(msg)
    shapes: NDArray[np.object_] = np.array(found, dtype=object)
    return shapes, f"EPSG:{codes.pop()}" if codes else None


def _values(table: Table, at: int) -> list[float | None] | list[str | None]:
    values = table.values(at)
    if all(value is None or isinstance(value, float) for value in values):
        return [value if isinstance(value, float) else None for value in values]
    return table.texts(at)
