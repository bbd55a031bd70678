"""Outlines of places by name, from Nominatim through osmnx."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from landprior.addresses import hide_addresses, redact
from landprior.errors import InputError, SourceError
from landprior.sources.http.origins import Origin
from landprior.sources.http.responses import MEGABYTE, parse_json, require_web
from landprior.sources.osmnx_session import configured_osmnx
from landprior.sources.public import NOMINATIM_URL

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from landprior.sources.http.client import Network

NOMINATIM = Origin(
    name="Nominatim (places by name)",
    folder="places",
    remedy="give the place by --bbox or --aoi instead",
)

_PLACES_LIMIT = 32 * MEGABYTE


def geocode(place: str, network: Network, *, url: str | None = None) -> BaseGeometry:
    """Find the outline of a place by its name.

    Parameters
    ----------
    place
        Name of the place, such as "Ithaca, NY".
    network
        Client; the response is cached.
    url
        Nominatim server, if not the public one.

    Returns
    -------
    BaseGeometry
        Polygons in degrees.

    Raises
    ------
    InputError
        If it is not found, or is a point.
    SourceError
        If the server does not answer.
    """
    from shapely.geometry import mapping, shape

    server = require_web(url or NOMINATIM_URL).rstrip("/") + "/"
    path = network.cache.path(NOMINATIM.folder, json.dumps([server, place]), ".json")
    if path.is_file() and not network.refresh:
        return shape(json.loads(path.read_text(encoding="utf-8")))
    network.require_online(NOMINATIM, repr(place))

    def ask() -> BaseGeometry:
        import osmnx
        from osmnx._errors import InsufficientResponseError

        with configured_osmnx(network, _check_places, _PLACES_LIMIT, nominatim_url=server):
            try:
                return osmnx.geocode_to_gdf(place).geometry.iloc[0]
            except InsufficientResponseError as error:
                msg = f"{place!r} was not found at {redact(server)}; check the spelling, or give --bbox or --aoi"
                raise InputError(msg) from error
            except TypeError as error:
                msg = f"{place!r} has no outline at {redact(server)}, only a point; give --bbox or --aoi"
                raise InputError(msg) from error
            except (KeyError, ValueError) as error:
                msg = f"{redact(server)} sent unreadable places ({type(error).__name__}: {error})"
                raise SourceError(msg) from error

    outline = network.call(NOMINATIM, ask)
    network.cache.put(path, json.dumps(mapping(outline)).encode())
    return outline


def _check_places(body: bytes, url: str) -> None:
    """Raise an error for an invalid response of Nominatim."""
    answer = parse_json(body, redact(url))
    if not isinstance(answer, list):
        msg = f"{redact(url)} sent JSON that is not a Nominatim response ({hide_addresses(str(answer))[:120]})"
        raise SourceError(msg)
