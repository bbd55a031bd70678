"""Choosing the NAIP images that cover a place, of the requested year or the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas
import shapely

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely.geometry.base import BaseGeometry

    from landprior.sources.naip.images import NaipImage

_LEAST_HECTARES = 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An image and the part of the place it is used for (degrees)."""

    image: NaipImage
    part: BaseGeometry


def choose_images(images: Sequence[NaipImage], outline: BaseGeometry, year: int | None) -> tuple[list[Choice], float]:
    """Choose images that cover a place, preferring those nearest to the requested year.

    Of two equally near years, images of the later are chosen first.

    Parameters
    ----------
    images
        Images from :func:`search_images` or :func:`list_images`.
    outline
        The place, in degrees.
    year
        The requested year; None: the latest.

    Returns
    -------
    choices : list of Choice
        Each adds at least a hectare, or a thousandth of the place, to the previous ones.
    covered : float
        Share of the place covered, 0..1.
    """
    # add points along edges, as a straight line in degrees is not straight in metres
    shapes = shapely.segmentize([outline, *(image.footprint for image in images)], 0.01)
    to_metres = geopandas.GeoSeries(shapes, crs=4326).to_crs(5070)
    place, footprints = shapely.make_valid(to_metres.iloc[0]), to_metres.iloc[1:]
    target = year if year is not None else max((i.year for i in images if i.year is not None), default=0)

    def rank(image: NaipImage) -> tuple[int, int]:
        return (0, 0) if image.year is None else (abs(image.year - target), -image.year)

    least = max(min(_LEAST_HECTARES * 1e4, 1e-3 * place.area), 1e-9)
    left = place
    waiting = [
        (rank(image), image, shapely.make_valid(footprint)) for image, footprint in zip(images, footprints, strict=True)
    ]
    chosen: list[Choice] = []
    for best in sorted({entry[0] for entry in waiting}):
        nearest = [entry[1:] for entry in waiting if entry[0] == best]
        while nearest:
            # the largest gain; ties are broken by name, so that the choice is reproducible
            gain, _, i = min((-round(f.intersection(left).area), im.id, i) for i, (im, f) in enumerate(nearest))
            if -gain < least:
                break
            image, footprint = nearest.pop(i)
            parts = shapely.get_parts(outline.intersection(image.footprint))  # includes lines where edges only touch
            chosen.append(Choice(image=image, part=shapely.union_all(parts[shapely.area(parts) > 0])))
            left = left.difference(footprint)
    return chosen, 1.0 - left.area / max(place.area, 1e-9)
