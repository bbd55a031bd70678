"""Areas from outlines: of vector files, and of places by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shapely import make_valid

from landprior.errors import InputError
from landprior.sources.areas import Area, check_bounds
from landprior.sources.folder_names import slug
from landprior.sources.nominatim import geocode
from landprior.sources.vectors import parse_source, read_vectors

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.sources.http.client import Network


def area_from_file(path: str | Path, *, name: str | None = None) -> Area:
    """Return the area of the polygons of a vector file (GeoJSON, GeoPackage, ...), in any CRS.

    Raises
    ------
    MissingInputError, InputError
        If the file is missing, unreadable, has no CRS, or has no polygon.
    """
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
        check_bounds((left, bottom, right, top))
    except InputError as error:
        msg = f"{path}: {error}"
        raise InputError(msg) from error
    return Area(name=name or slug(source.path.stem), outline=outline)


def area_from_place(place: str, network: Network, *, url: str | None = None, name: str | None = None) -> Area:
    """Return the area of a place by its name, from Nominatim through osmnx.

    Parameters
    ----------
    place
        Name of the place, such as "Ithaca, NY".
    network
        Client; each place is requested once and cached.
    url
        Nominatim server, if not the public one.
    name
        Name of its folder; by default made from the place.

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
    return Area(name=name or slug(place), outline=make_valid(geocode(place, network, url=url)))
