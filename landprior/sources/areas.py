"""Areas of interest: city presets (``configs/cities``), boxes, outlines from files, places by name."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from shapely import make_valid
from shapely.geometry import box

from landprior.errors import ConfigError, InputError
from landprior.raster.scheme import explain
from landprior.resources import find_config, read_yaml, shipped_names

if TYPE_CHECKING:
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from landprior.sources.http.client import Network

Year = Annotated[int, Field(ge=1985, le=2100)]


class PaperRun(BaseModel):
    """What the paper's own runs used for a city."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rates: dict[str, float]
    filters: int = 128
    batch_size: int = 128
    patch_size: int = 128


class CityPreset(BaseModel):
    """A place, the years of its layers, its grid and its classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    bounds: tuple[float, float, float, float]
    naip_year: Year
    nlcd_year: Year
    epsg: int
    scheme: str
    cooccurrence: str | None = None
    paper: PaperRun | None = None

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return check_name(name)

    @field_validator("bounds")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        left, bottom, right, top = bounds
        if not (-180 <= left < right <= 180 and -90 <= bottom < top <= 90):
            msg = f"bounds are left, bottom, right, top in degrees, not {bounds}"
            raise ValueError(msg)
        return bounds


def load_city(name: str | Path) -> CityPreset:
    """Load a preset by name, whose case does not matter, or the user's own YAML by path.

    Raises
    ------
    ConfigError
        If the name is unknown (the message lists what ships) or the file is not a preset.
    """
    shipped = {known.casefold(): known for known in list_cities()}
    path = find_config(shipped.get(str(name).casefold(), name), "cities", (".yaml", ".yml"))
    try:
        return CityPreset.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error


def list_cities() -> list[str]:
    """Return the names of the presets that ship."""
    return shipped_names("cities")


@dataclass(frozen=True, kw_only=True)
class Area:
    """A place to fetch.

    Parameters
    ----------
    name
        Its folder in the workspace.
    outline
        Polygon or multipolygon in degrees (EPSG:4326, longitude first).
    preset
        The preset it comes from, if it does.
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
        Its folder; by default made from the corner.

    Returns
    -------
    Area
        A rectangle in degrees.

    Raises
    ------
    InputError
        If the numbers are no such box, or in another order; says the right one.
    """
    _check_bounds(bounds)
    left, bottom, _, _ = bounds
    label = f"{abs(left):.4f}{'w' if left < 0 else 'e'}-{abs(bottom):.4f}{'s' if bottom < 0 else 'n'}"
    return Area(name=name or label.replace(".", "_"), outline=box(*bounds))


_EXAMPLE = "-80.02,40.43,-79.98,40.46"
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"), "-")
"""What stands for a minus in text from word processors and web pages."""
_NUMBER = re.compile(
    r"(?P<before>[NSEW])?\s*(?P<value>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)\s*°?\s*(?P<after>[NSEW])?", re.IGNORECASE
)


def parse_bounds(text: str) -> tuple[float, float, float, float]:
    """Read a box from text: four numbers between commas, semicolons or blanks.

    Brackets around them, Unicode's minus signs, decimal commas (between semicolons or blanks), ``80.2W`` for ``-80.2``
    and QGIS's ``[EPSG:4326]`` behind them are understood. The numbers are not checked: see :func:`area_from_bounds`.

    Raises
    ------
    InputError
        If it is anything else; says what is wrong.
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
    separator = r"\s*;\s*|\s*,\s+|\s+,\s*|\s+(?![NSEW°](?:[NSEW\s,;]|$))"  # not before a letter of its own
    parts = [part for part in re.split(separator, plain.strip(), flags=re.IGNORECASE) if part]
    if len(parts) == 4 and any("," in part for part in parts):
        if all(re.fullmatch(r"[-+]?\d+,\d+\D*", part) for part in parts):  # 37,22; between semicolons or blanks
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


def area_from_file(path: str | Path, *, name: str | None = None) -> Area:
    """Return the area of the polygons of a vector file (GeoJSON, GeoPackage, ...), in any CRS.

    Raises
    ------
    MissingInputError, InputError
        If the file is missing, unreadable, has no CRS, or has no polygon.
    """
    from landprior.sources.vectors import parse_source, read_vectors

    source = parse_source(path)
    found = read_vectors(path)
    polygons = found.geometry[found.geom_type.isin(["Polygon", "MultiPolygon"])]
    if not len(polygons):
        msg = f"{path} has no polygon; an outline is one or more polygons"
        raise InputError(msg)
    outline = polygons.make_valid().to_crs(4326).make_valid().union_all()
    left, bottom, right, top = outline.bounds
    if right - left > 180 and max(abs(left), abs(right)) <= 360:
        msg = (
            f"{path} reaches from {left:.6g} to {right:.6g} degrees of longitude: it crosses the antimeridian "
            "(180 degrees), or is most of the world; cut it at 180 degrees and fetch the halves as two places"
        )
        raise InputError(msg)
    try:
        _check_bounds((left, bottom, right, top))
    except InputError as error:
        msg = f"{path}: {error}"
        raise InputError(msg) from error
    return Area(name=name or slug(source.path.stem), outline=outline)


def area_from_place(place: str, network: Network, *, url: str | None = None, name: str | None = None) -> Area:
    """Return the area of a place by its name, from Nominatim through osmnx.

    Parameters
    ----------
    place
        As one would write it: "Ithaca, NY".
    network
        Used once per place; the answer is cached.
    url
        Another Nominatim server.
    name
        Its folder; by default made from the place.

    Returns
    -------
    Area
        Its outline in degrees.

    Raises
    ------
    InputError
        If the place is not found, or is a point.
    SourceError
        If the server does not answer.
    """
    from landprior.sources.osm import geocode

    return Area(name=name or slug(place), outline=make_valid(geocode(place, network, url=url)))


def slug(text: str) -> str:
    """Return a text as the name of a folder."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "area"


MOST_BYTES = 200
"""Of a name: file systems take 255, and temporary files add some."""


def check_name(name: str) -> str:
    """Return the name of an area if it can be a new folder of the workspace.

    Raises
    ------
    InputError
        If not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name.lower().endswith((".yaml", ".yml")):
        msg = f"{_shown(name)} cannot be the name of a folder; use letters, digits, '-', '_' and '.'"
        raise InputError(msg)
    return check_component(name, "an area")


def check_component(name: str, what: str = "a tile") -> str:
    """Return the name of a folder, wherever it comes from, if it stays in the folder it is put into.

    Parameters
    ----------
    name
        Such as of a tile that a plan or a catalogue lists.
    what
        What has the name, for the message.

    Returns
    -------
    str
        ``name``.

    Raises
    ------
    InputError
        If it is empty, hidden, ``..`` or a path, has control characters, or is longer than :data:`MOST_BYTES`.
    """
    reason = ""
    if not name.strip():
        reason = "it is empty"
    elif "/" in name or "\\" in name:
        reason = "it is a path"
    elif name.startswith("."):
        reason = "it starts with a dot"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        reason = "it has control characters"
    elif len(name.encode()) > MOST_BYTES:
        reason = f"it is longer than {MOST_BYTES} bytes"
    if reason:
        msg = f"{_shown(name)} cannot be the name of {what}: {reason}; a name is that of one folder"
        raise InputError(msg)
    return name


def _shown(name: str) -> str:
    """Return a name as it is shown in a message, shortened."""
    return repr(name if len(name) <= 60 else f"{name[:60]}...")


def _check_bounds(bounds: tuple[float, float, float, float]) -> None:
    """Refuse what is no box in degrees, and say the order that is probably meant."""
    if not all(abs(value) <= 360 for value in bounds):
        msg = f"{_text(bounds)} are no degrees; give west,south,east,north in degrees (EPSG:4326)"
        raise InputError(msg)
    _check_longitudes(bounds)
    # the numbers of a place in the United States can be told apart, in whatever order they come
    meant = next((order for order in permutations(bounds) if _is_box(order) and _in_america(order)), None)
    if _is_box(bounds) and meant in {None, bounds}:
        return
    left, bottom, right, top = bounds
    if meant is None:  # elsewhere only corners can be put right
        meant = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
    if not _is_box(meant):
        msg = f"{_text(bounds)} is not a box; give west,south,east,north in degrees, for example {_EXAMPLE}"
        raise InputError(msg)
    swapped = left in meant[1::2]
    why = "looks like latitude before longitude" if swapped else "has its numbers in another order"
    msg = f"{_text(bounds)} {why}; a box is west,south,east,north: {_text(meant)}"
    raise InputError(msg)


def _check_longitudes(bounds: tuple[float, float, float, float]) -> None:
    """Refuse a box over the antimeridian, or counted beyond it, and say the way out."""
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
        f"{_text(bounds)} crosses the antimeridian (180 degrees), on which a place cannot lie; "
        f"give its halves as two places: {_text(west)} and {_text(east)}"
    )
    raise InputError(msg)


def _is_box(bounds: tuple[float, ...]) -> bool:
    left, bottom, right, top = bounds
    return -180 <= left < right <= 180 and -90 <= bottom < top <= 90


def _in_america(bounds: tuple[float, ...]) -> bool:
    """Say whether a box may lie in the United States and their islands, the farthest ones aside."""
    left, bottom, right, top = bounds
    return left >= -180 and right <= -60 and bottom >= 13 and top <= 72


def _text(bounds: tuple[float, ...]) -> str:
    return ",".join(f"{value:.10g}" for value in bounds)
