"""Ground distances: the length of a step of one pixel, and the area of a pixel, anywhere on the earth.

Map units are not metres on the ground everywhere: EPSG:3857 stretches them by 1 / cos(latitude), degrees shrink towards
the poles, polar and equal-area projections stretch the two directions differently. Widths, buffers and areas are
therefore measured locally along the ellipsoid. A projection that keeps lengths within :data:`NEAR` (UTM in its
zone, a State Plane) is used as it is, so that a UTM pixel of 1 m is 1 m.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from landprior.errors import InputError
from landprior.raster.advice import advise_crs

if TYPE_CHECKING:
    from pathlib import Path

    import shapely
    from affine import Affine
    from numpy.typing import NDArray
    from rasterio.crs import CRS

NEAR = 0.002
"""Relative difference up to which lengths on a map are used as lengths on the ground."""

UNEVEN = 0.05
"""Relative variation of pixel lengths within a raster above which there is a warning."""

_SPAN = 200.0
"""Metres over which a step is measured: over single pixels the rounding of coordinates would matter."""

_DEGREE = 111_320.0


class Steps(NamedTuple):
    """Steps of one pixel on the ground, each of shape (n,); NaN outside the domain of the projection."""

    across: NDArray[np.float64]
    """Step along a row, metres."""
    down: NDArray[np.float64]
    """Step along a column, metres."""
    area: NDArray[np.float64]
    """Area of a pixel, square metres."""


def metres_per_unit(crs: CRS | None) -> float:
    """Return the length of a unit of a projected CRS in metres; 1 if the CRS does not define it."""
    from rasterio.errors import CRSError

    if crs is None or crs.is_geographic:
        return 1.0
    try:
        return float(crs.linear_units_factor[1])
    except (CRSError, KeyError):
        return 1.0


def measure_steps(
    crs: CRS, transform: Affine, columns: NDArray[np.floating], rows: NDArray[np.floating]
) -> Steps | None:
    """Measure steps of one pixel along the ellipsoid.

    Parameters
    ----------
    crs, transform
        CRS and transform of the raster.
    columns, rows
        Pixel coordinates, each of shape (n,).

    Returns
    -------
    Steps or None
        None for a local CRS.
    """
    found = _to_degrees(crs.to_wkt())
    if found is None:
        return None
    project, geod = found
    unit = _DEGREE if crs.is_geographic else metres_per_unit(crs)
    t = transform
    reach = [max(1.0, _SPAN / (np.hypot(*step) * unit)) / 2 for step in ((t.a, t.d), (t.b, t.e))]

    def length(dc: float, dr: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bearing and length of a step of one pixel."""
        first = project(*(t @ (columns - dc, rows - dr)))
        second = project(*(t @ (columns + dc, rows + dr)))
        bearing, _, metres = geod.inv(*first, *second)
        good = np.isfinite(first[0]) & np.isfinite(second[0])
        return np.radians(bearing), np.where(good, np.asarray(metres), np.nan) / (2 * max(dc, dr))

    bearing_across, across = length(reach[0], 0.0)
    bearing_down, down = length(0.0, reach[1])
    return Steps(across, down, across * down * np.abs(np.sin(bearing_across - bearing_down)))


_PARTS = 64
"""Parts per side of a polygon's extent into which its edges are divided, as they are not geodesics."""


def measure_polygon(crs: CRS, transform: Affine, shape: shapely.Geometry) -> float:
    """Measure the area of a polygon on the ellipsoid.

    Parameters
    ----------
    crs, transform
        CRS and transform of a raster.
    shape
        A valid polygon or multipolygon in its pixel coordinates (column, row).

    Returns
    -------
    float
        Square metres; NaN for a local CRS, and for a polygon outside the domain of the projection.
    """
    import shapely

    found = _to_degrees(crs.to_wkt())
    if found is None:
        return float("nan")
    project, geod = found
    left, top, right, bottom = shapely.bounds(shape)
    divided = shapely.segmentize(shape, max(right - left, bottom - top, 1e-9) / _PARTS)
    total = 0.0
    for part in shapely.get_parts(divided):
        if shapely.get_dimensions(part) != 2:
            continue
        for number, ring in enumerate(shapely.get_rings(part)):
            xy = shapely.get_coordinates(ring)
            area = abs(geod.polygon_area_perimeter(*project(*(transform @ (xy[:, 0], xy[:, 1]))))[0])
            total += area if number == 0 else -area
    return float(total)


@lru_cache(maxsize=32)
def _to_degrees(wkt: str) -> tuple[Any, Any] | None:
    """Return the transformation to longitude and latitude in degrees on the CRS's own ellipsoid, and the ellipsoid."""
    from pyproj import CRS as PROJ_CRS
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        crs = PROJ_CRS.from_wkt(wkt)
        base, geod = crs.geodetic_crs, crs.get_geod()
        if base is None or geod is None:
            return None
        transformer = Transformer.from_crs(crs, base, always_xy=True)
        degree = float(np.degrees(base.axis_info[0].unit_conversion_factor)) if base.axis_info else 1.0
    except ProjError:
        return None

    def project(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        longitude, latitude = transformer.transform(np.asarray(x, float), np.asarray(y, float))
        longitude, latitude = np.asarray(longitude) * degree, np.asarray(latitude) * degree
        lost = ~(np.isfinite(longitude) & np.isfinite(latitude)) | (np.abs(latitude) > 91) | (np.abs(longitude) > 540)
        latitude = np.clip(latitude, -90, 90)
        return np.where(lost, np.nan, longitude), np.where(lost, np.nan, latitude)

    return project, geod


def require_degrees(bounds: tuple[float, float, float, float], where: str | Path) -> None:
    """Raise an error for coordinates declared as degrees that cannot be.

    Raises
    ------
    InputError
        If they cannot be; the message gives the coordinates and the remedy.
    """
    left, bottom, right, top = bounds
    if max(abs(bottom), abs(top)) > 91 or max(abs(left), abs(right)) > 540:
        msg = (
            f"{where} is declared in degrees, but its coordinates are not ({left:.10g}, {bottom:.10g}, "
            f"{right:.10g}, {top:.10g}); assign its true CRS ({advise_crs(where)}), or give --pixel-size METRES"
        )
        raise InputError(msg)
