"""Building footprints: Microsoft's, by quadkey, or any vector file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import warnings
import zlib
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import mercantile

from landprior.errors import SourceBusyError, SourceError, SourceWarning
from landprior.raster.outputs import replacing
from landprior.sources.http.cache import writing_features
from landprior.sources.http.client import DAY, Network
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Origin, Remote
from landprior.sources.http.responses import MEGABYTE
from landprior.sources.public import INDEX_URL

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas

logger = logging.getLogger(__name__)

BUILDINGS = Origin(
    name="Buildings (Microsoft)",
    folder="buildings",
    remedy="give a file of footprints (--buildings FILE), or do without (--buildings none)",
)
ZOOM = 9
KEEP_INDEX = 30 * DAY
_INDEX_LIMIT = 64 * MEGABYTE
_PART_LIMIT = 4096 * MEGABYTE
_UNPACKED, _SMALL_PART = 100, 64 * MEGABYTE
"""Limits of unpacking, as a ratio and in bytes: footprints shrink about tenfold; beyond both, it is a zip bomb."""


def quadkeys_of(bounds: tuple[float, float, float, float]) -> list[str]:
    """Return the quadkeys of level 9 that a box in degrees touches."""
    return sorted({mercantile.quadkey(tile) for tile in mercantile.tiles(*bounds, zooms=ZOOM)})


def list_files(
    bounds: tuple[float, float, float, float], network: Network, *, index_url: str = INDEX_URL
) -> dict[str, list[str]]:
    """Return the files of footprints for a box, from the published index.

    Parameters
    ----------
    bounds
        Left, bottom, right, top (west, south, east, north) in degrees.
    network
        Client; the index is cached.
    index_url
        A CSV with the columns ``QuadKey`` and ``Url``.

    Returns
    -------
    dict
        Quadkey -> URLs; every quadkey that touches the box is included, even if it has none.

    Raises
    ------
    SourceError
        If the index cannot be downloaded, or is invalid.
    """
    answer = network.get(index_url, BUILDINGS, keep=KEEP_INDEX, suffix=".csv", check=_check_index, limit=_INDEX_LIMIT)
    wanted = quadkeys_of(bounds)
    found: dict[str, list[str]] = {key: [] for key in wanted}
    for row in csv.DictReader(io.StringIO(answer.decode("utf-8-sig", errors="replace"))):
        key = str(row["QuadKey"]).zfill(ZOOM)  # a spreadsheet may have dropped leading zeros
        if key in found:
            found[key].append(urljoin(index_url, str(row["Url"])))  # a copy may have relative addresses
    return found


def download_buildings(
    bounds: tuple[float, float, float, float], network: Network, *, index_url: str = INDEX_URL
) -> Path:
    """Download the footprints within a box.

    Warns (:class:`SourceWarning`) about quadkeys missing in the index, which have no footprints.

    Parameters
    ----------
    bounds, network, index_url
        As for :func:`list_files`; what is downloaded stays in the cache.

    Returns
    -------
    Path
        A FlatGeobuf of polygons in degrees, in the cache.

    Raises
    ------
    SourceError
        If the index or a file cannot be downloaded, or is damaged.
    """
    import geopandas
    import pandas as pd
    import pyogrio

    files = list_files(bounds, network, index_url=index_url)
    missing = [key for key, urls in files.items() if not urls]
    if missing:
        msg = f"Microsoft's index has no buildings for quadkey {', '.join(missing)}; the layer stays empty there"
        warnings.warn(msg, SourceWarning, stacklevel=2)
    urls = sorted({url for several in files.values() for url in several})
    path = network.cache.path(BUILDINGS.folder, json.dumps([urls, bounds]), ".fgb")
    if path.is_file() and not network.refresh:
        return path
    frames = [_read_footprints(_download(url, network), bounds) for url in urls]
    whole = pd.concat(frames, ignore_index=True) if frames else geopandas.GeoDataFrame(geometry=[], crs=4326)
    with writing_features(path), replacing(path, overwrite=True) as temporary:
        pyogrio.write_dataframe(
            whole[["geometry"]], temporary, driver="FlatGeobuf", geometry_type="MultiPolygon", promote_to_multi=True
        )
    return path


def _download(url: str, network: Network) -> Path:
    return download(network, Remote(url), BUILDINGS, suffix=".csv.gz", check=_check_gzip, limit=_PART_LIMIT)


def _read_footprints(path: Path, bounds: tuple[float, float, float, float]) -> geopandas.GeoDataFrame:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    pyogrio.set_gdal_config_options({"CPL_VSIL_GZIP_WRITE_PROPERTIES": False})  # write no side file in the cache
    try:
        frame = pyogrio.read_dataframe(f"GeoJSONSeq:/vsigzip/{path}", bbox=bounds, columns=[])
    except (DataSourceError, DataLayerError, ValueError) as error:
        path.unlink(missing_ok=True)
        msg = f"{BUILDINGS.name}: a file is damaged and was deleted ({' '.join(str(error).split())}); run again"
        raise SourceError(msg) from error
    return frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])]


def _check_gzip(path: Path) -> None:
    """Raise an error unless a gzip file is complete (its checksum matches) and unpacks to a plausible size."""
    most, size = max(_UNPACKED * path.stat().st_size, _SMALL_PART), 0
    try:
        with gzip.open(path) as stream:
            while piece := stream.read(1 << 20):
                size += len(piece)
                if size > most:
                    break
    except (OSError, EOFError, zlib.error) as error:
        msg = f"a file of footprints is damaged ({error})"
        raise SourceError(msg) from error
    if size > most:
        msg = f"a file of footprints unpacks to more than {_UNPACKED} times its size, too much for footprints"
        raise SourceError(msg)


def _check_index(content: bytes) -> None:
    head = content[:200].decode("utf-8-sig", errors="replace").splitlines()
    if not head or not {"QuadKey", "Url"} <= set(head[0].split(",")) or not content.endswith(b"\n"):
        msg = f"the index is not a table with QuadKey and Url, or is truncated ({len(content)} bytes)"
        raise SourceBusyError(msg)
