"""Areas of interest, from city presets and from boxes."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from shapely.geometry import box

from landprior.errors import InputError
from landprior.sources.cities import CityPreset, load_city

if TYPE_CHECKING:
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True, kw_only=True)
class Area:
    """A place to fetch.

    Parameters
    ----------
    name
        Name of its folder in the workspace.
    outline
        Polygon or multipolygon in degrees (EPSG:4326, longitude first).
    preset
        The preset it comes from, if any.
    """

    name: str
    outline: BaseGeometry
    preset: CityPreset | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in degrees."""
        left, bottom, right, top = self.outline.bounds
        return (left, bottom, right, top)


def area_from_city(city: str | Path | CityPreset) -> Area:
    """Return the area of a preset (:func:`load_city`)."""
    preset = city if isinstance(city, CityPreset) else load_city(city)
    return Area(name=preset.name, outline=box(*preset.bounds), preset=preset)


def area_from_bounds(bounds: tuple[float, float, float, float], *, name: str | None = None) -> Area:
    """Return the area of a box.

    Parameters
    ----------
    bounds
        Left, bottom, right, top (west, south, east, north) in degrees.
    name
        Name of its folder; by default made from the corner.

    Returns
    -------
    Area
        A rectangle in degrees.

    Raises
    ------
    InputError
        If the numbers are not such a box, or in another order; the message gives the right one.
    """
    check_bounds(bounds)
    left, bottom, _, _ = bounds
    label = f"{abs(left):.4f}{'w' if left < 0 else 'e'}-{abs(bottom):.4f}{'s' if bottom < 0 else 'n'}"
    return Area(name=name or label.replace(".", "_"), outline=box(*bounds))


_EXAMPLE = "-80.02,40.43,-79.98,40.46"
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"), "-")
"""Characters used as a minus in text from word processors and web pages."""
_NUMBER = re.compile(
    r"(?P<before>[NSEW])?\s*(?P<value>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)\s*°?\s*(?P<after>[NSEW])?", re.IGNORECASE
)


def parse_bounds(text: str) -> tuple[float, float, float, float]:
    """Read a box from text: four numbers separated by commas, semicolons or spaces.

    Brackets, Unicode minus signs, decimal commas (with semicolons or spaces), ``80.2W`` for ``-80.2``
    and QGIS's ``[EPSG:4326]`` after them are accepted. The numbers are not checked; see :func:`area_from_bounds`.

    Raises
    ------
    InputError
        If it is anything else; the message says what is wrong.
    """
    usage = f"give four numbers west,south,east,north in degrees, such as {_EXAMPLE}"
    plain = unicodedata.normalize("NFKC", text.translate(_MINUS)).translate(_MINUS)
    crs = re.search(r"[\[(]?\s*(EPSG:\d+|OGC:CRS84)\s*[\])]?\s*$", plain, re.IGNORECASE)
    if crs is not None:
        if crs[1].upper() not in {"EPSG:4326", "EPSG:4269", "OGC:CRS84"}:
            msg = f"{text!r} is in {crs[1]}; {usage} (EPSG:4326)"
            raise InputError(msg)
        plain = plain[: crs.start()]
    plain = re.sub(r"[\[\](){}'\"]", " ", plain).strip().rstrip(",;")
    separator = r"\s*;\s*|\s*,\s+|\s+,\s*|\s+(?![NSEW°](?:[NSEW\s,;]|$))"  # not before a separate letter
    parts = [part for part in re.split(separator, plain.strip(), flags=re.IGNORECASE) if part]
    if len(parts) == 4 and any("," in part for part in parts):
        if all(re.fullmatch(r"[-+]?\d+,\d+\D*", part) for part in parts):  # 37,22; with semicolons or spaces
            parts = [part.replace(",", ".") for part in parts]
    else:
        parts = [part.strip() for part in re.split(r"[,;]", ",".join(parts))]
    if len(parts) == 8 and all(re.fullmatch(r"[-+]?\d+", part) for part in parts):
        meant = ",".join(f"{whole}.{part}" for whole, part in zip(parts[::2], parts[1::2], strict=True))
        msg = f"{text!r} is eight numbers; with points in place of decimal commas it is {meant}"
        raise InputError(msg)
    if len(parts) != 4:
        msg = f"{text!r} is not four numbers west,south,east,north in degrees, such as {_EXAMPLE}"
        raise InputError(msg)
    west, south, east, north = (_coordinate(part, text, usage) for part in parts)
    return (west, south, east, north)


def _coordinate(part: str, text: str, usage: str) -> float:
    found = _NUMBER.fullmatch(part)
    letter = "" if found is None else (found["before"] or found["after"] or "").upper()
    if found is None or (found["before"] and found["after"]) or (letter and found["value"].startswith("-")):
        msg = f"{part!r} in {text!r} is not a number of degrees with a decimal point; {usage}"
        raise InputError(msg)
    return -float(found["value"]) if letter in {"S", "W"} else float(found["value"])


def check_bounds(bounds: tuple[float, float, float, float]) -> None:
    """Raise an error if four numbers are not a box in degrees, and suggest the order probably meant.

    Raises
    ------
    InputError
        If the numbers are not such a box, or in another order.
    """
    if not all(abs(value) <= 360 for value in bounds):
        msg = f"{_text(bounds)} are not degrees; give west,south,east,north in degrees (EPSG:4326)"
        raise InputError(msg)
    _check_longitudes(bounds)
    # the numbers of a place in the United States can be recognised in any order
    meant = next((order for order in permutations(bounds) if _is_box(order) and _in_america(order)), None)
    if _is_box(bounds) and meant in {None, bounds}:
        return
    left, bottom, right, top = bounds
    if meant is None:  # elsewhere only swapped corners can be recognised
        meant = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
    if not _is_box(meant):
        msg = f"{_text(bounds)} is not a box; give west,south,east,north in degrees, for example {_EXAMPLE}"
        raise InputError(msg)
    swapped = left in meant[1::2]
    why = "looks like latitude before longitude" if swapped else "has its numbers in another order"
    msg = f"{_text(bounds)} {why}; a box is west,south,east,north: {_text(meant)}"
    raise InputError(msg)


def _check_longitudes(bounds: tuple[float, float, float, float]) -> None:
    """Raise an error for a box across the antimeridian or with longitudes beyond 180 degrees, and suggest a remedy."""
    left, bottom, right, top = bounds
    if not -90 <= bottom < top <= 90:
        return  # not in this order, then
    if left > right and left - right >= 270:  # 179.9,...,-179.9
        right += 360
    if left >= right or right - left > 180 or (left >= -180 and right <= 180):
        return
    turns = 360 * ((left + 180) // 360)
    left, right = left - turns, right - turns
    if right <= 180:
        msg = f"{_text(bounds)} is not a box within 180 degrees of longitude; give {_text((left, bottom, right, top))}"
        raise InputError(msg)
    west, east = (left, bottom, 180.0, top), (-180.0, bottom, right - 360, top)
    msg = (
        f"{_text(bounds)} crosses the antimeridian (180 degrees), which a place may not cross; "
        f"give its halves as two places: {_text(west)} and {_text(east)}"
    )
    raise InputError(msg)


def _is_box(bounds: tuple[float, ...]) -> bool:
    left, bottom, right, top = bounds
    return -180 <= left < right <= 180 and -90 <= bottom < top <= 90


def _in_america(bounds: tuple[float, ...]) -> bool:
    """Say whether a box may lie in the United States or its islands, except the most remote ones."""
    left, bottom, right, top = bounds
    return left >= -180 and right <= -60 and bottom >= 13 and top <= 72


def _text(bounds: tuple[float, ...]) -> str:
    return ",".join(f"{value:.10g}" for value in bounds)
