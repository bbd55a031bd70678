"""OpenStreetMap: roads, waterways and water bodies, from Overpass or from an extract.

From either source, features are first written to a small GeoPackage in the cache (layers ``lines`` and
``multipolygons``, columns as in ``configs/osm.ini``), and the layers of a tile are selected from it by
the same rules.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from landprior.addresses import hide_addresses, redact
from landprior.errors import InputError, SourceBusyError, SourceError
from landprior.inputs import check_file
from landprior.raster.outputs import replacing
from landprior.resources import config_file
from landprior.sources.burning import burn
from landprior.sources.http.cache import writing_features
from landprior.sources.http.origins import Origin
from landprior.sources.http.responses import MEGABYTE, parse_json, require_web
from landprior.sources.local_files import identify
from landprior.sources.osmnx_session import configured_osmnx
from landprior.sources.public import OVERPASS_URL, RoadWidth
from landprior.sources.vectors import choose_layer, list_layers, parse_source, read_vectors

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.sources.http.cache import Cache
    from landprior.sources.http.client import Network

OVERPASS = Origin(
    name="OpenStreetMap (Overpass)",
    folder="osm",
    remedy="give a local extract (--osm FILE.osm.pbf) or another server (--overpass-url)",
)
_OUTWARD = (-1e-6, -1e-6, 1e-6, 1e-6)
"""Margin of a request around the tile, in degrees, so that rounding loses nothing."""

LAYERS = ("roads", "waterways", "waterbodies")
ROAD_PIXELS = 3

TAGS: dict[str, bool | str | list[str]] = {
    "highway": True,
    "waterway": True,
    "natural": "water",
    "landuse": ["reservoir", "basin"],
}
_COLUMNS = {
    "lines": ("highway", "waterway", "tunnel", "covered", "location", "area", "width", "lanes"),
    "multipolygons": (
        "natural", "landuse", "waterway", "water", "tunnel", "covered", "location", "highway", "building",
    ),
}  # fmt: skip
# not in use, or not ways: excluded by osmnx in network_type="all"
_NO_ROADS = (
    "abandoned", "construction", "no", "planned", "platform", "proposed", "raceway", "razed", "rest_area", "services",
    "bus_stop", "corridor", "elevator",
)  # fmt: skip
_STREAMS = ("river", "stream", "brook", "tidal_channel", "canal", "drain", "ditch")
_PONDS = ("riverbank", "dock", "boatyard")
_OPEN = ("no", "F", "false", "0")
"""Values of ``tunnel`` and ``covered`` that mean no; F is Geofabrik's."""

# metres, if the tags give no width
_WIDTHS = {
    "motorway": 14.0, "trunk": 12.0, "primary": 11.0, "secondary": 10.0, "tertiary": 8.0, "residential": 7.0,
    "unclassified": 6.0, "living_street": 6.0, "motorway_link": 6.0, "trunk_link": 6.0, "primary_link": 6.0,
    "service": 4.0, "pedestrian": 4.0, "track": 3.0, "cycleway": 2.5, "footway": 2.0, "path": 1.5, "steps": 2.0,
    "bridleway": 2.0,
}  # fmt: skip
_LANE = 3.3
_OTHER_WIDTH = 5.0

# Ready-made layers recognised by their names: our own and Geofabrik's.
_NAMED = {
    "roads": "roads", "waterways": "waterways", "waterbodies": "waterbodies",
    "gis_osm_roads_free": "roads", "gis_osm_waterways_free": "waterways", "gis_osm_water_a_free": "waterbodies",
}  # fmt: skip

_OVERPASS_LIMIT = 256 * MEGABYTE
"""Maximum size of a response, decompressed; a quarter quad of the densest city needs a fifth of it."""


# -- fetching features ----------------------------------------------------------------------


def download_features(grid: Grid, network: Network, *, url: str | None = None) -> Path:
    """Download the OpenStreetMap features on a grid from Overpass.

    Parameters
    ----------
    grid
        Grid of a tile, in any CRS.
    network
        Client; responses are cached.
    url
        Overpass server, if not the public one.

    Returns
    -------
    Path
        A GeoPackage of lines and polygons in degrees, in the cache.

    Raises
    ------
    SourceError
        If there is no valid response. A response without features is valid.
    """
    from rasterio.warp import transform_bounds
    from shapely.geometry import box

    server = require_web(url or OVERPASS_URL).rstrip("/")
    exact = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds, densify_pts=21)
    left, bottom, right, top = (round(value + side, 6) for value, side in zip(exact, _OUTWARD, strict=True))
    key = json.dumps([server, (left, bottom, right, top), TAGS, _COLUMNS], sort_keys=True)
    path = network.cache.path(OVERPASS.folder, key, ".gpkg")
    if path.is_file() and not network.refresh:
        return path
    network.require_online(OVERPASS, "OpenStreetMap of this tile")

    def ask() -> geopandas.GeoDataFrame | None:
        import osmnx
        from osmnx._errors import InsufficientResponseError

        limited = server == OVERPASS_URL  # only that server is sure to have a status page
        with configured_osmnx(
            network, _check_features, _OVERPASS_LIMIT, overpass_url=server, overpass_rate_limit=limited
        ):
            try:
                return osmnx.features_from_polygon(box(left, bottom, right, top), TAGS)
            except InsufficientResponseError:
                return None  # every response was valid and empty

    return _write_features(network.call(OVERPASS, ask), path)


def convert_extract(path: Path, cache: Cache, bounds: tuple[float, float, float, float]) -> Path:
    """Convert the part of a ``.osm.pbf`` or ``.osm`` file within a box to a GeoPackage.

    GDAL reads such a file from beginning to end, so this is done once for a whole area.

    Parameters
    ----------
    path
        The extract.
    cache
        Cache for the result.
    bounds
        Left, bottom, right, top (west, south, east, north) in degrees.

    Returns
    -------
    Path
        A GeoPackage as :func:`download_features` gives it.

    Raises
    ------
    MissingInputError, InputError
        If it is missing or cannot be read.
    """
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    check_file(path)
    key = json.dumps([identify(path), bounds, _COLUMNS])
    target = cache.path(OVERPASS.folder, key, ".gpkg")
    if target.is_file():
        return target
    wanted = {
        "lines": "highway IS NOT NULL OR waterway IS NOT NULL",
        "multipolygons": "\"natural\" = 'water' OR landuse IN ('reservoir', 'basin') OR waterway IS NOT NULL",
    }
    try:
        frames = {
            layer: pyogrio.read_dataframe(
                path, layer=layer, bbox=bounds, where=where, CONFIG_FILE=str(config_file("osm.ini"))
            )
            for layer, where in wanted.items()
        }
    except (DataSourceError, DataLayerError, ValueError) as error:
        msg = f"{path} cannot be read as an OpenStreetMap extract ({' '.join(str(error).split())}); download it again"
        raise InputError(msg) from error
    return _write_layers(frames, target)


def is_extract(path: Path) -> bool:
    """Return whether a file is an extract in one of OpenStreetMap's own formats."""
    return path.name.lower().endswith((".pbf", ".osm"))


def _check_features(body: bytes, url: str) -> None:
    """Raise an error if Overpass's response is incomplete; it reports failures midway as a remark, with status 200."""
    answer = parse_json(body, redact(url))
    if isinstance(answer, dict) and "remark" in answer:
        msg = f"{redact(url)} could not answer in full ({hide_addresses(str(answer['remark']))[:120]})"
        raise SourceBusyError(msg)
    if not isinstance(answer, dict) or "elements" not in answer:
        msg = f"{redact(url)} sent JSON that is not an Overpass response"
        raise SourceError(msg)


def _write_features(frame: geopandas.GeoDataFrame | None, path: Path) -> Path:
    """Write the features returned by osmnx."""
    if frame is None:
        return _write_layers({}, path)
    return _write_layers({"lines": frame[_is_line(frame)], "multipolygons": frame[_is_area(frame)]}, path)


def _write_layers(frames: dict[str, geopandas.GeoDataFrame], path: Path) -> Path:
    import geopandas
    import pyogrio

    with writing_features(path), replacing(path, overwrite=True) as temporary:
        temporary.unlink()
        for layer, kind in (("lines", "MultiLineString"), ("multipolygons", "MultiPolygon")):
            source = frames.get(layer)
            columns = _COLUMNS[layer]
            if source is None or source.empty:
                data = geopandas.GeoDataFrame({name: [] for name in columns}, geometry=[], crs=4326)
            else:
                data = geopandas.GeoDataFrame(
                    {name: _column(source, name).to_numpy() for name in columns},
                    geometry=source.geometry.to_numpy(),
                    crs=source.crs or 4326,
                )
            pyogrio.write_dataframe(
                data.astype(dict.fromkeys(columns, "object")),
                temporary,
                layer=layer,
                driver="GPKG",
                geometry_type=kind,
                promote_to_multi=True,
            )
    return path


# -- selecting layers ----------------------------------------------------------------------------


def read_layers(path: Path, grid: Grid) -> dict[str, geopandas.GeoDataFrame]:
    """Read roads, waterways and water bodies that lie on a grid, in its CRS.

    Parameters
    ----------
    path
        A GeoPackage (or other file) of OSM features: written by landprior, ogr2ogr (tags as columns) or Geofabrik, or
        with layers named ``roads``, ``waterways``, ``waterbodies``.
    grid
        Grid of the tile.

    Returns
    -------
    dict
        ``roads``, ``waterways``, ``waterbodies``; features in tunnels, culverts or under ground are left out.

    Raises
    ------
    InputError
        If no layer has such features.
    """
    import geopandas
    import pandas as pd

    asked = parse_source(path)
    path = check_file(asked.path, folder=True)
    names = list_layers(path, points=False) if asked.layer is None else [choose_layer(asked)]
    parts: dict[str, list[geopandas.GeoDataFrame]] = {layer: [] for layer in LAYERS}
    used = False
    for name in names:
        frame = read_vectors(path, layer=name, grid=grid)
        frame = frame[_visible(frame)]
        tagged = {"highway", "waterway", "natural", "landuse"} & set(frame.columns)
        by_name = _NAMED.get(name.removesuffix("_1"))
        used |= bool(tagged) or by_name is not None
        if tagged:
            for layer, choose in (("roads", _is_road), ("waterways", _is_waterway), ("waterbodies", _is_waterbody)):
                parts[layer].append(frame[choose(frame)])
        elif by_name is not None:
            is_kind = _is_area(frame) if by_name == "waterbodies" else _is_line(frame)
            frame = frame[is_kind & ~_column(frame, "fclass").isin(["wetland", "glacier"])]
            parts[by_name].append(frame.rename(columns={"fclass": "highway"}))
    if not used:
        msg = (
            f"{path} has no layer of roads or water (its layers: {', '.join(names) or 'none'}); "
            "give an .osm.pbf, or a GeoPackage with OSM's tags as columns or layers roads, waterways, waterbodies"
        )
        raise InputError(msg)
    empty = geopandas.GeoDataFrame(geometry=[], crs=None if grid.crs is None else grid.crs.to_wkt())
    return {
        layer: pd.concat(found, ignore_index=True) if (found := [f for f in frames if len(f)]) else empty
        for layer, frames in parts.items()
    }


def burn_layer(
    layer: str, frame: geopandas.GeoDataFrame, grid: Grid, *, road_width: RoadWidth = "fixed"
) -> NDArray[np.uint8]:
    """Burn a layer of :func:`read_layers` into a raster.

    Parameters
    ----------
    layer
        ``roads``, ``waterways`` or ``waterbodies``.
    frame
        Its features, in the CRS of the grid.
    grid
        Grid of the tile.
    road_width
        ``"fixed"``: roads are 3 pixels wide. ``"tags"``: by width, lanes or kind of road.

    Returns
    -------
    ndarray of uint8
        Shape (H, W), 1 where there is a feature.
    """
    if layer != "roads":
        return burn(frame.geometry, grid, touched=layer == "waterways")
    if road_width == "fixed":
        return burn(frame.geometry, grid, widen=ROAD_PIXELS)
    widths = road_widths(frame)
    return burn(frame.geometry.buffer(widths / 2, cap_style="flat"), grid, touched=False)


def road_widths(frame: geopandas.GeoDataFrame) -> pd.Series:
    """Return the width of roads in metres: from the tag, else the lanes, else the kind of road."""
    import pandas as pd

    text = _column(frame, "width").astype("string").str.extract(r"^\s*([0-9.]+)\s*(m|ft|')?\s*$")
    tagged = pd.to_numeric(text[0], errors="coerce") * text[1].isin(["ft", "'"]).map({True: 0.3048, False: 1.0})
    lanes = pd.to_numeric(_column(frame, "lanes"), errors="coerce")
    kind = _column(frame, "highway").map(_WIDTHS).astype("float64").fillna(_OTHER_WIDTH)
    width = tagged.where(tagged > 0).fillna((lanes * _LANE).where(lanes > 0)).fillna(kind)
    return width.clip(1.0, 60.0).astype("float64")


def _is_road(frame: geopandas.GeoDataFrame) -> pd.Series:
    kind = _column(frame, "highway")
    return _is_line(frame) & kind.notna() & ~kind.isin(_NO_ROADS) & ~_column(frame, "area").eq("yes")


def _is_waterway(frame: geopandas.GeoDataFrame) -> pd.Series:
    return _is_line(frame) & _column(frame, "waterway").isin(_STREAMS)


def _is_waterbody(frame: geopandas.GeoDataFrame) -> pd.Series:
    return _is_area(frame) & (
        _column(frame, "natural").eq("water")
        | _column(frame, "landuse").isin(["reservoir", "basin"])
        | _column(frame, "waterway").isin(_PONDS + _STREAMS)
    )


def _is_line(frame: geopandas.GeoDataFrame) -> pd.Series:
    return frame.geom_type.isin(["LineString", "MultiLineString"])


def _is_area(frame: geopandas.GeoDataFrame) -> pd.Series:
    return frame.geom_type.isin(["Polygon", "MultiPolygon"])


def _visible(frame: geopandas.GeoDataFrame) -> pd.Series:
    """Return which features are visible from the air."""
    tunnel, covered = _column(frame, "tunnel"), _column(frame, "covered")
    hidden = (tunnel.notna() & ~tunnel.isin(_OPEN)) | covered.eq("yes")
    return ~hidden & ~_column(frame, "location").isin(["underground", "underwater"])


def _column(frame: geopandas.GeoDataFrame, name: str) -> pd.Series:
    """Return a tag, from GDAL's ``other_tags`` if it is not a column."""
    import pandas as pd

    if name in frame.columns:
        return frame[name]
    if "other_tags" in frame.columns:
        return frame["other_tags"].astype("string").str.extract(f'"{name}"=>"([^"]*)"')[0].astype("object")
    return pd.Series(None, index=frame.index, dtype="object")
