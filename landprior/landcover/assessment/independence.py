"""Whether points may score a map: those that it was made with say too much good of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from landprior.errors import InputError
from landprior.raster.names import split_band
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.sources.point_marks import mark_points
from landprior.sources.sample_design import find_proposed

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas

logger = logging.getLogger(__name__)


def require_independent(frame: geopandas.GeoDataFrame, points: str | Path, path: str | Path) -> None:
    """Check that points were not chosen by a map, and warn if the map was adapted to some of them.

    Parameters
    ----------
    frame
        The points.
    points, path
        Their file, and the map.

    Raises
    ------
    InputError
        If some were proposed for an adaptation.
    """
    proposed = int(find_proposed(frame, points).sum())
    if proposed:
        msg = (
            f"{proposed} points of {points} were proposed where a map is unsure (landprior sample --for adapt), so "
            "they say nothing of the whole map; draw a sample with: landprior sample MAP"
        )
        raise InputError(msg)
    with open_raster(split_band(path)[0]) as src:
        marks = set(src.tags(ns=TAG_DOMAIN).get("adapted_to", "").split())
    shared = len(marks.intersection(mark_points(frame))) if marks else 0
    if shared:
        logger.warning(
            "%s was adapted to %d of the %d points, so it looks better at them than it is; score it on other points",
            path, shared, len(frame),
        )  # fmt: skip
