"""NAIP imagery: from a STAC API or a local folder, onto the grid of a tile."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject, transform_bounds
from shapely.geometry import box, shape

from landprior.errors import InputError, RasterReadError, SourceError
from landprior.raster.cog import CogWriter
from landprior.raster.files import open_raster
from landprior.raster.grid import Grid
from landprior.raster.windows import stream
from landprior.sources.network import DAY, Network, Origin, Remote, redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.windows import Block
    from landprior.sources.network import Signer

logger = logging.getLogger(__name__)

NAIP = Origin(
    name="NAIP",
    folder="naip",
    remedy="give another catalogue (--stac-url), or a folder of NAIP files (--naip)",
)
STAC_URL = "https://planetarycomputer.microsoft.com/api/stac/v1"
SIGN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/sign"
COLLECTION = "naip"
KEY_VARIABLE = "PC_SDK_SUBSCRIPTION_KEY"
"""Environment variable of Planetary Computer's own key; optional, raises its limits."""

KEEP_SEARCH = 30 * DAY
NODATA = 0
_PAGE = 100
_SHRINKING = 0.95
"""Source pixels below this many metres are averaged."""
_WINDOW = 1024
_LEAST_HECTARES = 1.0


@dataclass(frozen=True, kw_only=True)
class NaipImage:
    """One NAIP file, usually a quarter quad.

    Parameters
    ----------
    id
        Name of the item or file, without ending.
    year
        Of the survey; None if a local file does not say.
    date
        Of acquisition, ``YYYY-MM-DD``, or "".
    footprint
        Polygon in degrees (EPSG:4326).
    source
        Where the pixels are.
    resolution
        Metres per pixel; None if the catalogue does not say.
    crs
        As the catalogue or the file says; None if the former does not.
    """

    id: str
    year: int | None
    date: str
    footprint: BaseGeometry
    source: Path | Remote = field(repr=False)
    resolution: float | None = None
    crs: CRS | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, without secrets."""
        return str(self.source) if isinstance(self.source, Path) else redact(self.source.href)


# -- finding ---------------------------------------------------------------------------------------


def search_images(
    outline: BaseGeometry,
    network: Network,
    *,
    stac_url: str = STAC_URL,
    sign_url: str | None = None,
    collection: str = COLLECTION,
) -> list[NaipImage]:
    """Find all NAIP images of a place, of all years, in a STAC API.

    Parameters
    ----------
    outline
        In degrees.
    network
        Answers are cached for 30 days.
    stac_url
        Root of the API.
    sign_url
        An endpoint that signs URLs as Planetary Computer's does; by default that, for its own files.
    collection
        Name of the collection.

    Raises
    ------
    SourceError
        If the catalogue does not answer.
    """
    import pystac_client
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    class _IO(StacApiIO):
        """Asks through our network, so that all its care and the cache apply."""

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            post = method == "POST"
            answer = network.get(
                href,
                NAIP,
                params=None if post else parameters,
                body=parameters if post else None,
                headers=headers,
                keep=KEEP_SEARCH,
                suffix=".json",
                check=_check_json,
            )
            return answer.decode("utf-8")

    if sign_url is None and (urlsplit(stac_url).hostname or "") == urlsplit(STAC_URL).hostname:
        sign_url = SIGN_URL
    signer = None if sign_url is None else TokenSigner(network, sign_url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on conformance classes; what is missing shows in the answer
            client = pystac_client.Client.open(stac_url, stac_io=_IO())
            search = client.search(
                collections=[collection], bbox=list(outline.bounds), limit=_PAGE, method="GET", max_items=None
            )
            found = [_image_of(item, signer) for item in search.items_as_dicts()]
    except (APIError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, (SourceError, InputError)):
            raise
        reason = " ".join(str(error).split())[:160]
        msg = f"NAIP: {redact(stac_url)} is no STAC API that can be searched ({reason}); {NAIP.remedy}"
        raise SourceError(msg) from error
    return [image for image in found if image is not None and image.footprint.intersects(outline)]


def _image_of(item: dict[str, Any], signer: Signer | None) -> NaipImage | None:
    """Return the image of a STAC item; None if it has no raster of ours."""
    asset = item.get("assets", {}).get("image")
    if asset is None:
        return None
    properties = item.get("properties", {})
    when = str(properties.get("datetime") or properties.get("start_datetime") or "")[:10]
    year = str(properties.get("naip:year") or when[:4])
    code = asset.get("proj:code") or properties.get("proj:code") or properties.get("proj:epsg")
    resolution = asset.get("gsd") or properties.get("gsd")
    return NaipImage(
        id=str(item["id"]),
        year=int(year) if year.isdigit() else None,
        date=when,
        footprint=shapely.make_valid(shape(item["geometry"])),
        source=Remote(_readable(str(asset["href"])), signer),
        resolution=None if resolution is None else float(resolution),
        crs=None if code is None else CRS.from_user_input(code),
    )


def _readable(href: str) -> str:
    if urlsplit(href).scheme in {"http", "https"}:
        return href
    msg = (
        f"NAIP: the catalogue gives {urlsplit(href).scheme or 'local'} addresses, which landprior does not read "
        "(requester pays?); use Planetary Computer (the default), or download and give --naip FOLDER"
    )
    raise SourceError(msg)


def _check_json(content: bytes) -> None:
    try:
        json.loads(content)
    except ValueError as error:
        msg = f"the catalogue sent no JSON ({len(content)} bytes)"
        raise SourceError(msg) from error


def list_images(folder: str | Path, outline: BaseGeometry | None = None) -> list[NaipImage]:
    """List the images of a local folder (``*.tif``, also in folders below), or one file.

    Raises
    ------
    InputError
        If there is none.
    """
    folder = Path(folder)
    paths = (
        [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".tif", ".tiff"})
    )
    images = []
    for path in paths:
        try:
            with open_raster(path) as src:
                if src.crs is None or src.count < 3:
                    logger.info("  %s is left out: it has %s", path, "no CRS" if src.crs is None else "too few bands")
                    continue
                bounds = transform_bounds(src.crs, "EPSG:4326", *src.bounds, densify_pts=21)
                x, _ = Grid.of(src).pixel_size(where=path)
                images.append(
                    NaipImage(
                        id=path.stem,
                        year=_year_of(path.stem),
                        date=_date_of(path.stem),
                        footprint=box(*bounds) if outline is None else _outline_of(Grid.of(src)),
                        source=path,
                        resolution=x,
                        crs=src.crs,
                    )
                )
        except (RasterReadError, InputError) as error:
            logger.warning("Warning: %s is left out: %s", path.name, error)
    if not images:
        msg = f"{folder} has no georeferenced image (.tif with at least 3 bands)"
        raise InputError(msg)
    return [image for image in images if outline is None or image.footprint.intersects(outline)]


def _outline_of(grid: Grid) -> BaseGeometry:
    """Return a raster's true outline in degrees: its box is turned there."""
    series = geopandas.GeoSeries([shapely.segmentize(box(*grid.bounds), 500.0)], crs=_wkt(grid.crs))
    return series.to_crs(4326).iloc[0]


_DATE = re.compile(r"(?:^|_)((?:19|20)\d{2})(\d{2})(\d{2})(?=_|$)")


def _year_of(stem: str) -> int | None:
    found = _DATE.search(stem)
    return None if found is None else int(found[1])


def _date_of(stem: str) -> str:
    found = _DATE.search(stem)
    return "" if found is None else "-".join(found.groups())


# -- choosing --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An image and the part of the place that it is taken for (degrees)."""

    image: NaipImage
    part: BaseGeometry


def choose_images(images: Sequence[NaipImage], outline: BaseGeometry, year: int | None) -> tuple[list[Choice], float]:
    """Choose images that cover a place, of the year nearest to the one wanted wherever there are several.

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
    to_metres = geopandas.GeoSeries([outline, *(image.footprint for image in images)], crs=4326).to_crs(5070)
    place, footprints = shapely.make_valid(to_metres.iloc[0]), to_metres.iloc[1:]
    target = year if year is not None else max((i.year for i in images if i.year is not None), default=0)

    def distance(image: NaipImage) -> float:
        return 0.0 if image.year is None else abs(image.year - target)

    least = min(_LEAST_HECTARES * 1e4, 1e-3 * place.area)
    left = place
    waiting = [
        (distance(image), -(image.year or 0), image.id, image, shapely.make_valid(footprint))
        for image, footprint in zip(images, footprints, strict=True)
    ]
    chosen: list[Choice] = []
    for gap in sorted({entry[0] for entry in waiting}):
        nearest = [entry for entry in waiting if entry[0] == gap]
        while nearest:
            gains = [entry[4].intersection(left).area for entry in nearest]
            # the largest gain; of equal ones the later year, then the name, so that the choice is the same each time
            best = min(range(len(nearest)), key=lambda i: (-round(gains[i]), nearest[i][1], nearest[i][2]))
            if gains[best] < max(least, 1e-9):
                break
            image, footprint = nearest.pop(best)[3:]
            chosen.append(Choice(image=image, part=outline.intersection(image.footprint)))
            left = left.difference(footprint)
    return chosen, 1.0 - left.area / max(place.area, 1e-9)


def tile_grid(choice: Choice, *, margin: int) -> Grid:
    """Return the grid of a tile: UTM, 1 m, corners on whole metres.

    Parameters
    ----------
    choice
        An image and the part of the place it covers.
    margin
        Metres to add on every side.

    Notes
    -----
    The image's own zone if it is in one, so that its pixels stay what they are; else NAD83's at the place.
    """
    crs = utm_of(choice.image.crs, choice.part)
    part = shapely.segmentize(choice.part, 0.005)
    left, bottom, right, top = geopandas.GeoSeries([part], crs=4326).to_crs(_wkt(crs)).total_bounds
    left, bottom = np.floor(left + 1e-6) - margin, np.floor(bottom + 1e-6) - margin
    right, top = np.ceil(right - 1e-6) + margin, np.ceil(top - 1e-6) + margin
    return Grid(
        width=round(right - left), height=round(top - bottom), transform=Affine(1, 0, left, 0, -1, top), crs=crs
    )


def utm_of(crs: CRS | None, place: BaseGeometry) -> CRS:
    """Return a CRS if it is UTM, else NAD83's zone at a place (degrees)."""
    if crs is not None and crs.to_dict().get("proj") == "utm":
        return crs
    zone = int((place.centroid.x + 180) // 6) + 1
    return CRS.from_epsg(26900 + zone if zone <= 23 else 32600 + zone)


# -- reading ---------------------------------------------------------------------------------------


def write_image(image: NaipImage, grid: Grid, path: Path, network: Network, *, overwrite: bool = False) -> Path:
    """Warp an image onto the grid of a tile, by windows, and write it as a COG.

    Pixels below 1 m are averaged; pixels that lie on the grid's own are copied; others are interpolated.
    Pixels without data (the file's nodata value, or zero in all bands) become zero in all bands.

    Raises
    ------
    SourceError, RasterReadError
        If it cannot be read; a damaged download is fetched again once.
    """
    for last in (False, True):
        try:
            with open_image(image, network) as src:
                return _write_image(src, image, grid, path, overwrite=overwrite)
        except SourceError as error:
            if last or "damaged" not in str(error):
                raise
            logger.warning("%s; fetching it again", error)
    raise AssertionError  # pragma: no cover - the loop returns or raises


@contextmanager
def open_image(image: NaipImage, network: Network) -> Iterator[DatasetReader]:
    """Open an image, local or remote."""
    if isinstance(image.source, Path):
        with open_raster(image.source) as src:
            yield src
    else:
        with network.open_raster(image.source, NAIP) as src:
            yield src


def _write_image(src: DatasetReader, image: NaipImage, grid: Grid, path: Path, *, overwrite: bool) -> Path:
    if src.crs is None:
        msg = f"{image.origin} says no CRS, so it cannot be put on the tile's grid"
        raise RasterReadError(msg)
    if src.dtypes[0] != "uint8":
        msg = f"{image.origin} holds {src.dtypes[0]}, NAIP is uint8"
        raise RasterReadError(msg)
    bands = list(range(1, min(src.count, 4) + 1))  # named one by one: the fourth may be marked as alpha
    source_nodata = NODATA if src.nodata is None else int(src.nodata)
    resampling = _resampling(src, grid)
    with CogWriter(
        path,
        grid,
        count=len(bands),
        dtype="uint8",
        nodata=NODATA,
        overviews="average",
        descriptions=("red", "green", "blue", "near infrared")[: len(bands)],
        tags={"kind": "image", "origin": image.origin, "date": image.date, "resampling": resampling.name},
        overwrite=overwrite,
    ) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            window = grid.window(block.core)
            values = np.full((len(bands), *window.shape), source_nodata, dtype=np.uint8)
            try:
                reproject(
                    rasterio.band(src, bands),
                    values,
                    dst_transform=window.transform,
                    dst_crs=window.crs,
                    src_nodata=source_nodata,
                    dst_nodata=source_nodata,
                    resampling=resampling,
                    UNIFIED_SRC_NODATA="YES",
                )
            except RasterioError as error:
                if isinstance(image.source, Path):
                    reason = " ".join(str(error.__cause__ or error).split())
                    msg = f"{image.origin} is damaged or truncated ({reason}); copy or download it again"
                    raise RasterReadError(msg) from error
                raise  # Network.open_raster says it
            if source_nodata != NODATA:
                values = _renumber(values, source_nodata)
            return {"naip": values}

        stream(compute, grid=grid, sinks={"naip": writer}, size=_WINDOW, label="naip")
    return path


def _renumber(values: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
    """Let zero in all bands mean no data, and nothing else."""
    empty = (values == nodata).all(axis=0)
    black = (values == NODATA).all(axis=0) & ~empty
    values[:, empty] = NODATA
    values[0, black] = 1
    return values


def _resampling(src: DatasetReader, grid: Grid) -> Resampling:
    """Return how pixels become the tile's."""
    x, _ = Grid.of(src).pixel_size(where=src.name)
    if x < _SHRINKING:
        return Resampling.average
    if src.crs == grid.crs:
        to_pixels = ~grid.transform @ src.transform
        corner = to_pixels @ (0, 0)
        same_size = abs(to_pixels.a - 1) < 1e-6 and abs(to_pixels.e - 1) < 1e-6
        if same_size and all(abs(value - round(value)) < 0.01 for value in corner):
            return Resampling.nearest
    return Resampling.bilinear


def _wkt(crs: CRS | None) -> str | None:
    return None if crs is None else crs.to_wkt()


# -- signing ---------------------------------------------------------------------------------------


class TokenSigner:
    """Signs URLs late, by an endpoint like Planetary Computer's ``sas/v1/sign?href=``.

    A signature holds for a whole container, so one is asked for per container, kept until shortly before
    it runs out, and forgotten when a read is denied. It lives in memory only.
    """

    def __init__(self, network: Network, url: str) -> None:
        self._network = network
        self._url = url
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def sign(self, href: str) -> str:
        """Return the URL with a signature that holds now."""
        with self._lock:
            container = _container(href)
            query, until = self._tokens.get(container, ("", 0.0))
            if time.time() > until - 60:
                query, until = self._ask(href)
                self._tokens[container] = (query, until)
        return f"{href}{'&' if urlsplit(href).query else '?'}{query}" if query else href

    def forget(self, href: str) -> None:
        """Drop the signature of the container of this URL."""
        with self._lock:
            self._tokens.pop(_container(href), None)

    def _ask(self, href: str) -> tuple[str, float]:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Ocp-Apim-Subscription-Key": key} if key else None
        answer = self._network.get(self._url, NAIP, params={"href": href}, headers=headers, check=_check_json)
        try:
            signed = json.loads(answer)
            query = urlsplit(str(signed["href"])).query
            text = str(signed.get("msft:expiry") or "")
            until = datetime.fromisoformat(text) if text else None
        except (ValueError, KeyError, TypeError) as error:
            msg = f"NAIP: {redact(self._url)} signs nothing; {NAIP.remedy}"
            raise SourceError(msg) from error
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        return query, time.time() + 1800 if until is None else until.timestamp()


def _container(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return (parts.netloc, parts.path.lstrip("/").partition("/")[0])
