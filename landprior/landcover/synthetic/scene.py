"""A synthetic scene: a believable place whose 1 m truth is known, for the demo and for tests.

From a seed: farmland parcels, woods of single crowns with a sunny and a shadow side, hedgerows, a
village with streets, houses, drives and garden trees, a river, ponds, a gravel pit; then what a user
would have of such a place: a 4-band image, NLCD codes by NLCD's own rules on 30 m cells that are
turned by a few degrees (as Albers is to UTM) and generalised, and OpenStreetMap-like vectors and
footprints with omissions and shifts. Colours overlap on purpose (lush crops and crowns, dry grass and
soil, shadow and water, roofs and soil), so that colour alone does not tell the classes apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from rasterio.crs import CRS
from shapely.geometry import LineString, Polygon

from landprior.errors import InputError
from landprior.landcover.synthetic.painter import Painter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.grid import Grid

Climate = Literal["temperate", "arid"]
"""Temperate: fields and woods. Arid: soil with scattered shrubs instead of grass, few trees."""

WATER, IMPERVIOUS, BARREN, TREES, GRASS = 10, 20, 30, 40, 70
"""Codes of the truth: the enviroatlas-5 scheme."""

SCENE_CRS = CRS.from_epsg(26917)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A synthetic place and its layers, all on one 1 m grid.

    Parameters
    ----------
    grid
        UTM, 1 m.
    image
        Red, green, blue, near infrared, uint8, shape (4, H, W).
    truth
        enviroatlas-5 codes, uint8, shape (H, W).
    nlcd
        NLCD codes, uint8, shape (H, W).
    layers
        ``roads``, ``buildings``, ``waterways``, ``waterbodies``: 0/1, uint8, shape (H, W).
    vectors
        The same as geometries in map coordinates, as a mapper would have drawn them.
    """

    grid: Grid
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    nlcd: NDArray[np.uint8]
    layers: dict[str, NDArray[np.uint8]]
    vectors: dict[str, list[BaseGeometry]] = field(repr=False)


def make_scene(size: int = 768, *, seed: int = 0, climate: Climate = "temperate") -> Scene:
    """Make a scene.

    Parameters
    ----------
    size
        Side in metres (= pixels), at least 128.
    seed
        Same seed, same scene.
    climate
        See :data:`Climate`.

    Returns
    -------
    Scene
        Image, NLCD, layers and the truth, on one grid of 1 m.

    Raises
    ------
    InputError
        If the size is too small or the climate unknown.
    """
    if size < 128:
        msg = f"a scene needs a side of at least 128 m, not {size}"
        raise InputError(msg)
    if climate not in get_args(Climate):
        msg = f"climate is one of {', '.join(get_args(Climate))}, not {climate!r}"
        raise InputError(msg)
    return Painter(size, np.random.default_rng(seed), arid=climate == "arid").scene()


def village_shape(village: NDArray[np.bool_]) -> Polygon:
    """Return the outline of the village, simplified, in pixels."""
    rows, columns = np.nonzero(village)
    points = np.column_stack([columns, rows])[:: max(rows.size // 4000, 1)]
    return Polygon(LineString(points).convex_hull.exterior)
