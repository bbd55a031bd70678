"""Vector data: read what lies on a grid, from any format, and burn it into a raster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from landprior.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import geopandas
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.grid import Grid

_PARQUET = {".parquet", ".geoparquet", ".pq"}


def read_vectors(
    path: str | Path,
    *,
    layer: str | None = None,
    grid: Grid | None = None,
    **options: Any,  # noqa: ANN401 - GDAL's
) -> geopandas.GeoDataFrame:
    """Read features, in any format GDAL knows, or GeoParquet.

    Parameters
    ----------
    path
        The file.
    layer
        Which of its layers; None for the first.
    grid
        Only what may lie on this grid, in its CRS. None: all, in the file's.
    **options
        Passed to ``pyogrio.read_dataframe``: ``where``, ``columns``, and GDAL's open options.

    Returns
    -------
    GeoDataFrame
        Features with a geometry.

    Raises
    ------
    MissingInputError, InputError
        If it is missing, cannot be read, or says no CRS.
    """
    if not Path(path).exists():
        msg = f"no such file: {path}"
        raise MissingInputError(msg)
    if Path(path).suffix.lower() in _PARQUET:
        frame = _read_parquet(Path(path), grid)
    else:
        frame = _read_gdal(Path(path), layer, grid, options)
    frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty]
    if frame.crs is None:
        msg = f"{path} says no CRS; set it (ogr2ogr -a_srs EPSG:4326), or give GeoJSON in degrees"
        raise InputError(msg)
    if grid is None or grid.crs is None:
        return frame
    frame = frame.to_crs(grid.crs.to_wkt())
    left, bottom, right, top = grid.bounds
    return frame.cx[left:right, bottom:top]


def _read_gdal(path: Path, layer: str | None, grid: Grid | None, options: dict[str, Any]) -> geopandas.GeoDataFrame:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        bounds = None
        if grid is not None:
            crs = pyogrio.read_info(path, layer=layer, **_open_options(options))["crs"]
            bounds = _bounds_in(grid, crs)
        return pyogrio.read_dataframe(path, layer=layer, bbox=bounds, **options)
    except (DataSourceError, DataLayerError, ValueError) as error:
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be read as vector data ({reason}); GeoPackage, FlatGeobuf and GeoJSON work"
        raise InputError(msg) from error


def _open_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.isupper()}


def _read_parquet(path: Path, grid: Grid | None) -> geopandas.GeoDataFrame:
    import geopandas

    try:
        bounds = None if grid is None else _bounds_in(grid, "EPSG:4326")
        try:
            return geopandas.read_parquet(path, bbox=bounds)
        except ValueError:  # no bbox column, or another CRS: read all of it
            return geopandas.read_parquet(path)
    except ImportError as error:
        msg = f"{path} is GeoParquet, which needs pyarrow: pip install 'landprior[parquet]'"
        raise InputError(msg) from error
    except (ValueError, OSError) as error:
        msg = f"{path} cannot be read as GeoParquet ({' '.join(str(error).split())})"
        raise InputError(msg) from error


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
