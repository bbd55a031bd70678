"""Checking that local vector sources cover the tiles they are needed for."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from landprior.errors import GridMismatchError, InputError, MissingInputError, SourceWarning
from landprior.sources.local_files import plain_path, refuse_zip_bomb
from landprior.sources.vectors import PARQUET, choose_layer, list_layers, parse_source, read_parquet_crs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

NEAR = 2000.0
"""Distance from a tile, in metres, within which a vector source should have features."""
_ENOUGH = 0.95
"""Share of a tile, its margin included, that an extract must cover."""
_METRES_PER_DEGREE = 111_320.0
_HEADER = 64 * 1024
_SOME = 1000
_PACKED = {".bz2", ".gz", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz"}
"""Extensions of archives that GDAL does not open by itself."""


class Box(NamedTuple):
    """West, south, east, north in degrees."""

    west: float
    south: float
    east: float
    north: float

    def __str__(self) -> str:
        """Return the numbers as a user would write them."""
        return ",".join(f"{value:.4f}" for value in self)

    def meets(self, other: Box, metres: float = 0.0) -> bool:
        """Return whether another box is within a distance in metres."""
        tall = metres / _METRES_PER_DEGREE
        wide = tall / max(math.cos(math.radians(min(abs(other.south), abs(other.north), 89.0))), 0.01)
        return (
            self.west - wide <= other.east
            and other.west <= self.east + wide
            and self.south - tall <= other.north
            and other.south <= self.north + tall
        )

    def share_of(self, other: Box) -> float:
        """Return the share of another box that this one covers, 0..1."""
        wide = max(min(self.east, other.east) - max(self.west, other.west), 0.0)
        tall = max(min(self.north, other.north) - max(self.south, other.south), 0.0)
        whole = (other.east - other.west) * (other.north - other.south)
        return wide * tall / whole if whole > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The extent of a file's features.

    Parameters
    ----------
    box
        Bounds in degrees.
    covers
        Whether the file declares that it covers this box, like an OpenStreetMap extract, or only its features do.
    hint
        A likely cause, for a message; begins with "; ", or is "".
    swapped
        The box if the coordinates of the file are latitude first; None if that is impossible.
    """

    box: Box
    covers: bool = False
    hint: str = ""
    swapped: Box | None = None


def find_box(grid: Grid) -> Box:
    """Return a tile's bounds in degrees."""
    return Box(*transform_bounds(grid.crs, "EPSG:4326", *grid.bounds, densify_pts=21))


def check_extent(
    source: str | Path, tiles: Mapping[str, Box], option: str, *, strict: bool, thorough: bool = False
) -> bool:
    """Check that a vector file covers the tiles it is for.

    Parameters
    ----------
    source
        The file; may include a layer (``file.gpkg|layername=x``).
    tiles
        Name -> bounds of each tile.
    option
        Name of the option, such as ``--osm``, for messages.
    strict
        Whether a file far from all tiles is an error rather than a warning.
    thorough
        Read all features if the file does not store its bounds.

    Returns
    -------
    bool
        Whether it covers the tiles, as far as known.

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it has no CRS, or one that does not match its coordinates.
    GridMismatchError
        If it is an extract that does not cover a tile, or far from all of them and ``strict``.
    """
    path = plain_path(source)
    if not path.exists():
        msg = f"no such file: {path} ({option})"
        raise MissingInputError(msg)
    if path.suffix.lower() in _PACKED:
        msg = f"{path} is an archive; unpack it and give the file inside ({option})"
        raise InputError(msg)
    refuse_zip_bomb(path)
    extent = find_extent(source, thorough=thorough)
    if extent is None:
        return True
    far = {name: box for name, box in tiles.items() if not extent.box.meets(box, 0.0 if extent.covers else NEAR)}
    if not far:
        return not extent.covers or _check_shares(path, extent.box, tiles)
    name, box = next(iter(far.items()))
    which = f"tile {name}" if len(far) == 1 else f"{len(far)} of {len(tiles)} tiles, such as {name}"
    hint = extent.hint
    if extent.swapped is not None and extent.swapped.meets(box, NEAR):
        hint = "; its coordinates seem to be latitude first: swap them (QGIS: Swap X and Y coordinates)"
    if extent.covers:
        msg = (
            f"{path} covers {extent.box}, not {which} ({box}){hint}; "
            f"give an extract of this place ({option}), or do without ({option} none)"
        )
        raise GridMismatchError(msg)
    msg = (
        f"{path} has nothing within {NEAR / 1000:g} km of {which}: "
        f"its features lie in {extent.box}, the tile in {box} (west,south,east,north){hint}"
    )
    if strict and len(far) == len(tiles):
        msg = f"{msg}; give a file of this place ({option}), or do without ({option} none)"
        raise GridMismatchError(msg)
    warnings.warn(msg, SourceWarning, stacklevel=2)
    return False


def _check_shares(path: Path, whole: Box, tiles: Mapping[str, Box]) -> bool:
    """Warn about tiles that an extract covers only in part, since nothing is burnt beyond its edge."""
    shares = {name: whole.share_of(box) for name, box in tiles.items()}
    name = min(shares, key=lambda one: shares[one])
    if shares[name] >= _ENOUGH:
        return True
    count = sum(share < _ENOUGH for share in shares.values())
    more = "" if count == 1 else f", and only part of {count - 1} more"
    msg = f"{path} covers {whole}, only {shares[name]:.0%} of tile {name} ({tiles[name]}){more}; the rest stays empty"
    warnings.warn(msg, SourceWarning, stacklevel=3)
    return True


def find_extent(source: str | Path, *, thorough: bool = False) -> Extent | None:
    """Return the extent of a vector file; None if unknown, or if it has no features.

    Raises
    ------
    InputError
        If it has no CRS, or one that does not match its coordinates.
    """
    path = plain_path(source)
    name = path.name.lower()
    declared = _pbf_box(path) if name.endswith(".pbf") else _xml_box(path) if name.endswith(".osm") else None
    if declared is not None:
        return Extent(box=declared, covers=True)
    if name.endswith((".pbf", ".osm")) and not thorough:
        return None  # would read the whole file
    found = _parquet_bounds(path) if path.suffix.lower() in PARQUET else _gdal_bounds(source, path, thorough=thorough)
    boxes = [extent for bounds, crs in found if (extent := _in_degrees(bounds, crs, path)) is not None]
    if not boxes:
        return None
    return Extent(
        box=_around([extent.box for extent in boxes]),
        hint=next((extent.hint for extent in boxes if extent.hint), ""),
        swapped=boxes[0].swapped,
    )


def list_spatial_layers(path: Path) -> list[str | None]:
    """Return the names of the layers that have geometries; [None] for a format without layers, or if unreadable."""
    if path.suffix.lower() in PARQUET:
        return [None]
    try:
        return [*list_layers(path)]
    except InputError:
        return [None]


def _around(boxes: Sequence[Box]) -> Box:
    corners = np.array(boxes)
    return Box(*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())


def _gdal_bounds(source: str | Path, path: Path, *, thorough: bool) -> list[tuple[Sequence[float], str | None]]:
    """Return bounds and CRS of the layers of a file that have features and known bounds."""
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    wanted = parse_source(source)
    found: list[tuple[Sequence[float], str | None]] = []
    try:
        names = list_layers(path)
    except InputError as error:
        logger.debug("%s", error)  # reported where it is read
        return found
    try:
        for name in names if wanted.layer is None else [choose_layer(wanted)]:
            about = pyogrio.read_info(path, layer=name, force_total_bounds=thorough)
            bounds = about["total_bounds"]
            if bounds is None and thorough:  # GDAL does not read extracts twice; some features are enough
                some = pyogrio.read_dataframe(path, layer=name, columns=[], max_features=_SOME).geometry
                bounds = some.total_bounds if len(some) else None
            if bounds is not None and np.isfinite(bounds).all() and about["features"] != 0:
                found.append((tuple(bounds), about["crs"]))
    except (DataSourceError, DataLayerError, UnicodeDecodeError, ValueError) as error:
        logger.debug("%s: %s", path, error)  # reported where it is read
    return found


def _parquet_bounds(path: Path) -> list[tuple[Sequence[float], str | None]]:
    """Return the bounds stored in a GeoParquet file, if any."""
    try:
        from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

        about = json.loads((read_schema(path).metadata or {})[b"geo"])
        bounds = about["columns"][about["primary_column"]]["bbox"]
        half = len(bounds) // 2
        return [((*bounds[:2], *bounds[half : half + 2]), read_parquet_crs(path))]
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return []  # reported where it is read


def _in_degrees(bounds: Sequence[float], crs: str | None, path: Path) -> Extent | None:
    west, south, east, north = bounds
    numbers = ", ".join(f"{value:.8g}" for value in bounds)
    looks = abs(west) <= 360 and abs(east) <= 360 and abs(south) <= 180 and abs(north) <= 180
    if crs is None:
        how = "EPSG:4326" if looks else "EPSG:CODE, with the code of the CRS they are in"
        msg = f"{path} has no CRS; its coordinates lie in {numbers}; set it (ogr2ogr -a_srs {how}), or add its .prj"
        raise InputError(msg)
    try:
        own = CRS.from_user_input(crs)
        if not own.is_geographic:
            hint = "; its coordinates look like degrees: is its CRS correct?" if looks else ""
            return Extent(box=Box(*transform_bounds(own, "EPSG:4326", *bounds, densify_pts=21)), hint=hint)
    except RasterioError:
        return None  # an unusable CRS is reported where the features are read
    swapped = Box(south, west, north, east) if abs(west) <= 90 and abs(east) <= 90 else None
    beyond = south > 90 or north < -90 or west > 360 or east < -360
    if beyond and (swapped is None or not looks):
        msg = (
            f"{path} declares its coordinates as degrees, but they lie in {numbers}; "
            "set their CRS (ogr2ogr -a_srs EPSG:CODE)"
        )
        raise InputError(msg)
    return Extent(box=Box(west, south, east, north), swapped=swapped)


# -- metadata of OpenStreetMap extracts ----------------------------------------------


def _xml_box(path: Path) -> Box | None:
    """Return the bounds at the head of an ``.osm`` file."""
    with path.open("rb") as stream:
        head = stream.read(_HEADER).decode("utf-8", errors="replace")
    found = re.search(r"<bounds\b[^>]*>", head)
    sides = dict(re.findall(r"(minlon|minlat|maxlon|maxlat)=[\"']([-+0-9.eE]+)[\"']", found[0])) if found else {}
    try:
        return _check_box(*(float(sides[name]) for name in ("minlon", "minlat", "maxlon", "maxlat")))
    except (KeyError, ValueError):
        return None


def _pbf_box(path: Path) -> Box | None:
    """Return the bounds in the header of an ``.osm.pbf`` file (osmformat.proto: HeaderBlock.bbox, nanodegrees)."""
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack(">I", stream.read(4))
            blob_header = _fields(stream.read(min(size, _HEADER)))
            if blob_header[1] != b"OSMHeader":
                return None
            blob = _fields(stream.read(min(_integer(blob_header[3]), 32 * 2**20)))
        content = blob.get(1)
        if content is None:
            content = zlib.decompressobj().decompress(_bytes(blob[3]), _HEADER)
        sides = _fields(_bytes(_fields(_bytes(content))[1]))
        left, right, top, bottom = (_unzigzag(_integer(sides[number])) * 1e-9 for number in (1, 2, 3, 4))
    except (struct.error, KeyError, IndexError, ValueError, TypeError, zlib.error, OSError):
        return None
    return _check_box(left, bottom, right, top)


def _check_box(west: float, south: float, east: float, north: float) -> Box | None:
    box = Box(west, south, east, north)
    return box if -180 <= west < east <= 180 and -90 <= south < north <= 90 else None


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Return the first field of each number of a protobuf message."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value: int | bytes
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            size = {1: 8, 5: 4}[tag & 7]
            value, at = message[at : at + size], at + size
        found.setdefault(tag >> 3, value)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128 or shift > 63:
            return value, at


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _integer(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    raise TypeError


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise TypeError
