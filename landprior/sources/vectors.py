"""Vector data: read what lies on a grid, from any format, and burn it into a raster."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from shapely.errors import ShapelyError

from landprior.errors import InputError
from landprior.inputs import check_file
from landprior.raster.ground import NEAR, measure_steps, metres_per_unit, require_degrees
from landprior.sources.local import refuse_zip_bomb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

_PARQUET = {".parquet", ".geoparquet", ".pq"}


def read_vectors(path: str | Path, *, layer: str | None = None, grid: Grid | None = None) -> geopandas.GeoDataFrame:
    """Read features, in any format GDAL knows (zipped shapefiles too), or GeoParquet.

    Parameters
    ----------
    path
        The file.
    layer
        Which of its layers; None for the first that has geometries.
    grid
        Only what may lie on this grid, in its CRS (a grid without one: all, as it is). None: all, in the file's.

    Returns
    -------
    GeoDataFrame
        Features with a geometry.

    Raises
    ------
    MissingInputError, InputError
        If it is missing, cannot be read, or says no CRS.
    """
    path = check_file(path, folder=True)  # a .gdb is one
    refuse_zip_bomb(path)
    frame = _read_parquet(path, grid) if path.suffix.lower() in _PARQUET else _read_gdal(path, layer, grid)
    _check_coordinates(frame, path)
    shapes = frame.geometry.to_numpy()
    frame = frame[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    if grid is not None and grid.crs is None:
        return frame  # local coordinates, the grid's own
    if frame.crs is None:
        msg = f"{path} says no CRS; set it (ogr2ogr -a_srs EPSG:4326), or give GeoJSON in degrees"
        raise InputError(msg)
    if grid is None or grid.crs is None:
        return frame
    frame = _project(frame, grid.crs, path)
    left, bottom, right, top = grid.bounds
    return frame.cx[left:right, bottom:top]


def _read_gdal(path: Path, layer: str | None, grid: Grid | None) -> geopandas.GeoDataFrame:
    import pyogrio
    from pyproj.exceptions import ProjError

    try:
        layer = layer or _first_layer(path)
        bounds = None if grid is None else _bounds_in(grid, pyogrio.read_info(path, layer=layer)["crs"])
        return pyogrio.read_dataframe(path, layer=layer, bbox=bounds)
    except UnicodeDecodeError as error:
        msg = f"{path} has text that is not UTF-8 ({error.reason}); save it as UTF-8, a GeoPackage for example"
        raise InputError(msg) from error
    except (RuntimeError, ValueError, CRSError, ProjError, ShapelyError) as error:  # pyogrio's own are RuntimeErrors
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be read as vector data ({reason}); GeoPackage, FlatGeobuf and GeoJSON work"
        raise InputError(msg) from error


def _check_coordinates(frame: geopandas.GeoDataFrame, path: Path) -> None:
    """Refuse features with coordinates that are no numbers."""
    coordinates, owner = shapely.get_coordinates(frame.geometry.to_numpy(), return_index=True)
    wrong = owner[~np.isfinite(coordinates).all(axis=1)]
    if wrong.size:
        msg = f"{path}: feature {int(wrong[0]) + 1} has a coordinate that is not a finite number; mend or delete it"
        raise InputError(msg)


def _project(frame: geopandas.GeoDataFrame, crs: CRS, path: Path) -> geopandas.GeoDataFrame:
    """Put features in another CRS, without those for which it has no place."""
    from pyproj.exceptions import ProjError

    try:
        found = frame.to_crs(crs.to_wkt())
    except (ProjError, ShapelyError, ValueError) as error:
        msg = f"{path} cannot be put in another CRS ({' '.join(str(error).split())}); check its own CRS"
        raise InputError(msg) from error
    coordinates, owner = shapely.get_coordinates(found.geometry.to_numpy(), return_index=True)
    lost = np.unique(owner[~np.isfinite(coordinates).all(axis=1)])
    if lost.size:
        logger.warning(
            "%d feature(s) of %s lie where the raster's CRS has no place; they are left out", lost.size, path
        )
        found = found.drop(index=found.index[lost])
    return found


def _first_layer(path: Path) -> str:
    import pyogrio

    names = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not names:
        msg = f"{path} has no geometries; give GeoPackage, FlatGeobuf or GeoJSON"
        raise InputError(msg)
    if len(names) > 1:
        logger.info("  of %s the layer %s is read (it also has %s)", path, names[0], ", ".join(names[1:]))
    return names[0]


def _read_parquet(path: Path, grid: Grid | None) -> geopandas.GeoDataFrame:
    import geopandas

    try:
        bounds = None if grid is None else _bounds_in(grid, _parquet_crs(path))
        try:
            return geopandas.read_parquet(path, bbox=bounds)
        except ValueError:
            if bounds is None:
                raise
            return geopandas.read_parquet(path)  # it has no boxes of its features
    except ImportError as error:
        msg = f"{path} is GeoParquet, which needs pyarrow: pip install 'landprior[parquet]'"
        raise InputError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError, ShapelyError) as error:
        msg = f"{path} cannot be read as GeoParquet ({' '.join(str(error).split())})"
        raise InputError(msg) from error


def _parquet_crs(path: Path) -> str | None:
    """Return the CRS of a GeoParquet file, in which its features' boxes are; None if it says none."""
    import geopandas
    from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

    text = (read_schema(path).metadata or {}).get(b"geo")
    if text is None:
        return None
    about = json.loads(text)
    crs = about["columns"][about["primary_column"]].get("crs", "OGC:CRS84")
    return None if crs is None else str(geopandas.GeoSeries([], crs=crs).crs.to_wkt())


def _bounds_in(grid: Grid, crs: str | None) -> tuple[float, float, float, float] | None:
    """Return a grid's bounds in another CRS; None if either is unknown."""
    if crs is None or grid.crs is None:
        return None
    left, bottom, right, top = transform_bounds(grid.crs, CRS.from_user_input(crs), *grid.bounds, densify_pts=21)
    return (left, bottom, right, top)


def burn(shapes: Iterable[BaseGeometry], grid: Grid, *, widen: int = 1, touched: bool = False) -> NDArray[np.uint8]:
    """Burn geometries into a raster.

    Parameters
    ----------
    shapes
        In the CRS of the grid.
    grid
        The raster's.
    widen
        Side in pixels, odd, of the square that each burnt pixel becomes: 3 makes lines 3 pixels wide.
    touched
        Burn every pixel touched, not only those whose centre is inside (polygons).

    Returns
    -------
    ndarray of uint8, shape (H, W)
        1 where there is one.
    """
    shapes = list(shapes)
    if not shapes:
        return np.zeros(grid.shape, dtype=np.uint8)
    burnt = rasterize(shapes, grid.shape, transform=grid.transform, all_touched=touched, dtype="uint8")
    return widen_pixels(np.asarray(burnt, dtype=np.uint8), widen)


def grow_shapes(shapes: geopandas.GeoSeries, metres: float, grid: Grid) -> geopandas.GeoSeries:
    """Grow shapes by metres on the ground, in any CRS.

    Parameters
    ----------
    shapes
        In the CRS of the grid.
    metres
        On the ground; in map units for a grid without a CRS.
    grid
        Where they are needed: a shape grows by what metres are in its own middle, or, if that lies outside, at the
        nearest place on the grid.
    """
    if grid.crs is None or shapes.empty:
        return shapes.buffer(metres)
    left, bottom, right, top = grid.bounds
    boxes = shapes.bounds
    x = ((boxes["minx"] + boxes["maxx"]) / 2).clip(left, right).to_numpy()
    y = ((boxes["miny"] + boxes["maxy"]) / 2).clip(bottom, top).to_numpy()
    unit = metres_per_unit(grid.crs)
    north_up = Affine.scale(1, -1)
    steps = measure_steps(grid.crs, north_up, x, -y)
    if steps is None or not (np.isfinite(steps.across).all() and np.isfinite(steps.down).all()):
        if grid.crs.is_geographic:
            require_degrees(grid, "the raster")
        return shapes.buffer(metres / unit)
    scales = np.stack([steps.across, steps.down], axis=1)
    if not grid.crs.is_geographic and (np.abs(scales / unit - 1) < NEAR).all():
        return shapes.buffer(metres / unit)
    grown = [_grow(shape, metres, scale) for shape, scale in zip(shapes, scales, strict=True)]
    return type(shapes)(grown, index=shapes.index, crs=shapes.crs)


def _grow(shape: BaseGeometry, metres: float, scale: NDArray[np.float64]) -> BaseGeometry:
    """Grow a shape, given the metres of a unit along x and y."""
    return shapely.transform(shapely.transform(shape, lambda at: at * scale).buffer(metres), lambda at: at / scale)


def widen_pixels(mask: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Grow every set pixel to a square of ``width`` pixels (odd), by shifting whole rows and columns."""
    reach = width // 2
    for axis in (0, 1):
        grown = mask.copy()
        for shift in range(1, reach + 1):
            size = mask.shape[axis]
            if shift >= size:
                break
            ahead, behind = _slice(axis, shift, size), _slice(axis, 0, size - shift)
            grown[ahead] |= mask[behind]
            grown[behind] |= mask[ahead]
        mask = grown
    return mask


def _slice(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)
