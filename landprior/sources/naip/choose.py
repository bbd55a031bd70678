"""Which NAIP images cover a place, from the year wanted or the nearest to it."""

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
    """An image and the part of the place that it is taken for (degrees)."""

    image: NaipImage
    part: BaseGeometry


def choose_images(images: Sequence[NaipImage], outline: BaseGeometry, year: int | None) -> tuple[list[Choice], float]:
    """Choose images that cover a place, of the year nearest to the one wanted wherever there are several.

    Of two years as near, the later one is taken for all it covers before the earlier one.

    Parameters
    ----------
    images
        Of :func:`search_images` or :func:`list_images`.
    outline
        The place, in degrees.
    year
        The year wanted; None: the latest.

    Returns
    -------
    choices : list of Choice
        Each covers at least a hectare, or a thousandth of the place, that those before do not.
    covered : float
        Share of the place that they cover, 0..1.
    """
    # edges get points in between, as what is straight in degrees is not in metres
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
            # the largest gain; of equal ones by name, so that the choice is the same each time
            gain, _, i = min((-round(f.intersection(left).area), im.id, i) for i, (im, f) in enumerate(nearest))
            if -gain < least:
                break
            image, footprint = nearest.pop(i)
            parts = shapely.get_parts(outline.intersection(image.footprint))  # where edges only touch, lines too
            chosen.append(Choice(image=image, part=shapely.union_all(parts[shapely.area(parts) > 0])))
            left = left.difference(footprint)
    return chosen, 1.0 - left.area / max(place.area, 1e-9)
