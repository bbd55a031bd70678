"""Burning features into a raster, with buffers in metres or pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize

from landprior.raster.ground import NEAR, measure_steps, metres_per_unit, require_degrees

if TYPE_CHECKING:
    from collections.abc import Iterable

    import geopandas
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.grid import Grid


def burn(shapes: Iterable[BaseGeometry], grid: Grid, *, widen: int = 1, touched: bool = False) -> NDArray[np.uint8]:
    """Burn geometries into a raster.

    Parameters
    ----------
    shapes
        Geometries in the CRS of the grid.
    grid
        Grid of the raster.
    widen
        Side in pixels, odd, of the square drawn for each burnt pixel: 3 makes lines 3 pixels wide.
    touched
        Burn every pixel touched, not only those whose centre is inside (polygons).

    Returns
    -------
    ndarray of uint8, shape (H, W)
        1 where there is a feature.
    """
    shapes = list(shapes)
    if not shapes:
        return np.zeros(grid.shape, dtype=np.uint8)
    burnt = rasterize(shapes, grid.shape, transform=grid.transform, all_touched=touched, dtype="uint8")
    return widen_pixels(np.asarray(burnt, dtype=np.uint8), widen)


def grow_shapes(shapes: geopandas.GeoSeries, metres: float, grid: Grid) -> geopandas.GeoSeries:
    """Buffer shapes by metres on the ground, in any CRS.

    Parameters
    ----------
    shapes
        Shapes in the CRS of the grid.
    metres
        Size of the buffer on the ground; in map units for a grid without a CRS.
    grid
        Grid of the raster. The size of a metre is taken at the middle of each shape or, if that is outside the grid,
        at the nearest place on the grid.

    Returns
    -------
    GeoSeries
        The buffered shapes, in the same order and CRS.
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
            require_degrees(grid.bounds, "the raster")
        return shapes.buffer(metres / unit)
    scales = np.stack([steps.across, steps.down], axis=1)
    if not grid.crs.is_geographic and (np.abs(scales / unit - 1) < NEAR).all():
        return shapes.buffer(metres / unit)
    grown = [_grow(shape, metres, scale) for shape, scale in zip(shapes, scales, strict=True)]
    return type(shapes)(grown, index=shapes.index, crs=shapes.crs)


def _grow(shape: BaseGeometry, metres: float, scale: NDArray[np.float64]) -> BaseGeometry:
    """Buffer a shape, given the length of a map unit in metres along x and y."""
    return shapely.transform(shapely.transform(shape, lambda at: at * scale).buffer(metres), lambda at: at / scale)


def widen_pixels(mask: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Expand every set pixel to a square of ``width`` pixels (odd), by shifting whole rows and columns."""
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
