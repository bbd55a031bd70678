"""Marks of points: short hashes of their positions, by which a map tells the points that it was adapted to."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import geopandas

DIGITS = 6
"""Decimals of a degree that count, about 0.1 m; without a CRS, two decimals of a unit."""


def mark_points(frame: geopandas.GeoDataFrame) -> list[str]:
    """Return eight hexadecimal digits for each point: a hash of its place, whatever the CRS and the file."""
    places, digits = (frame.geometry, 2) if frame.crs is None else (frame.geometry.to_crs(4326), DIGITS)
    return [
        hashlib.sha256(f"{x:.{digits}f},{y:.{digits}f}".encode()).hexdigest()[:8]
        for x, y in zip(places.x, places.y, strict=True)
    ]
