"""The grid of a tile: UTM at 1 m, in the zone of its NAIP image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box

from landprior.raster.grid import Grid
from landprior.sources.naip.images import open_image

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from landprior.sources.http.client import Network
    from landprior.sources.naip.choose import Choice


def locate(choice: Choice, network: Network) -> Choice:
    """Return a choice whose image has a CRS, read from the file if the catalogue does not give it.

    Otherwise a tile near the border of a UTM zone could get the other zone, and its pixels would be interpolated.
    """
    if choice.image.crs is not None:
        return choice
    with open_image(choice.image, network) as src:
        return replace(choice, image=replace(choice.image, crs=src.crs))


def tile_grid(choice: Choice, *, margin: int) -> Grid:
    """Return the grid of a tile: UTM at 1 m, with corners on whole metres.

    Parameters
    ----------
    choice
        An image and the part of the place it covers.
    margin
        Metres to add on every side.

    Returns
    -------
    Grid
        Grid of that part of the place, with its margin.

    Notes
    -----
    It is in the image's own UTM zone, if it has one, so that pixels are not resampled; otherwise in the NAD83 zone.
    """
    crs = utm_of(choice.image.crs, choice.part)
    part = shapely.segmentize(choice.part, 0.005)
    left, bottom, right, top = geopandas.GeoSeries([part], crs=4326).to_crs(_wkt(crs)).total_bounds
    left, bottom = np.floor(left + 1e-6) - margin, np.floor(bottom + 1e-6) - margin
    right, top = np.ceil(right - 1e-6) + margin, np.ceil(top - 1e-6) + margin
    return Grid(
        width=round(right - left), height=round(top - bottom), transform=Affine(1, 0, left, 0, -1, top), crs=crs
    )


def utm_of(crs: CRS | None, place: BaseGeometry) -> CRS:
    """Return the CRS if it is UTM, otherwise the NAD83 UTM zone of a place (degrees)."""
    if crs is not None and crs.to_dict().get("proj") == "utm" and crs.linear_units_factor[1] == 1.0:
        return crs
    zone = min(int((place.centroid.x + 180) // 6) + 1, 60)
    return CRS.from_epsg(26900 + zone if zone <= 23 else 32600 + zone)


def outline_of(grid: Grid) -> BaseGeometry:
    """Return the outline of a raster in degrees, where it is not a rectangle."""
    series = geopandas.GeoSeries([shapely.segmentize(box(*grid.bounds), 500.0)], crs=_wkt(grid.crs))
    return series.to_crs(4326).iloc[0]


def _wkt(crs: CRS | None) -> str | None:
    return None if crs is None else crs.to_wkt()
