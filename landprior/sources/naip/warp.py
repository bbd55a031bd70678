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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import geopandas
import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import reproject, transform
from rasterio.windows import Window
from shapely.geometry import box, shape

from landprior.addresses import hide_addresses, redact
from landprior.errors import (
    InputError,
    LandpriorError,
    MissingInputError,
    RasterReadError,
    SourceError,
)
from landprior.raster.bands import Bands, find_bands
from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.windows import stream
from landprior.sources.http.client import DAY, Network, Origin, Remote
from landprior.sources.http.ranges import open_remote
from landprior.sources.http.responses import parse_json, require_web

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from shapely.geometry.base import BaseGeometry

    from landprior.raster.windows import Block
    from landprior.sources.http.client import Signer

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
_THREADS = 2
"""Of the warping of one tile; tiles are fetched side by side, too."""
_REACH = 8
"""Source pixels to read around a window, more than any resampling looks at."""
_TIFFS = {".tif", ".tiff"}
_DATE = re.compile(r"(?:^|_)((?:19|20)\d{2})(\d{2})(\d{2})(?=_|$)")
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
    from pystac_client.stac_api_io import StacApiIO

    asked: set[str] = set()

    class _IO(StacApiIO):
        """Asks through our network, so that all its care and the cache apply."""

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            question = json.dumps([href, method, parameters], sort_keys=True)
            if question in asked:
                msg = "its pages go round in a circle"
                raise ValueError(msg)
            asked.add(question)
            post = method == "POST"
            answer = network.get(
                href,
                NAIP,
                params=None if post else parameters,
                body=parameters if post else None,
                headers=headers,
                keep=KEEP_SEARCH,
                suffix=".json",
                check=_check_stac,
            )
            return answer.decode("utf-8")

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401 - pystac's signature
            """Read a link of the catalogue, which must not lead to files of this machine."""
            require_web(source if isinstance(source, str) else str(source.get_absolute_href()))
            return str(super().read_text(source, *args, **kwargs))

    if sign_url is None and (urlsplit(stac_url).hostname or "") == urlsplit(STAC_URL).hostname:
        sign_url = SIGN_URL
    signer = None if sign_url is None else TokenSigner(network, sign_url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on conformance classes; what is missing shows in the answer
            client = pystac_client.Client.open(stac_url, stac_io=_IO())
            search = client.search(
                collections=[collection], bbox=list(outline.bounds), limit=_PAGE, method="POST", max_items=None
            )
            found = [_image_of(item, signer) for item in search.items_as_dicts()]
    except LandpriorError:
        raise
    except Exception as error:  # noqa: BLE001 - pystac's errors have no root of their own, and items may be anything
        reason = hide_addresses(" ".join(str(error).split()))
        reason = re.sub(r"\?\S+", "", reason)[:160]  # nor the query strings of paths
        msg = f"NAIP: {redact(stac_url)} is no STAC API that can be searched ({reason}); {NAIP.remedy}"
        raise SourceError(msg) from None  # its own text may have addresses with secrets
    return [image for image in found if image is not None and image.footprint.intersects(outline)]


def _image_of(item: dict[str, Any], signer: Signer | None) -> NaipImage | None:
    """Return the image of a STAC item; None if it has no raster of ours, or no place."""
    asset = item.get("assets", {}).get("image")
    if asset is None or not item.get("geometry"):
        return None
    properties = item.get("properties", {})
    when = str(properties.get("datetime") or properties.get("start_datetime") or "")[:10]
    year = str(properties.get("naip:year") or when[:4])
    code = asset.get("proj:code") or properties.get("proj:code") or properties.get("proj:epsg")
    resolution = asset.get("gsd") or properties.get("gsd")
    return NaipImage(
        id=re.sub(r"[^\w.-]", "_", str(item["id"])).lstrip(".") or "image",  # it names a folder
        year=int(year) if year.isdigit() else None,
        date=when,
        footprint=shapely.make_valid(shape(item["geometry"])),
        source=Remote(_readable(str(asset["href"])), signer),
        resolution=None if resolution is None else float(resolution),
        crs=_crs_of(code),
    )


def _crs_of(code: object) -> CRS | None:
    """Return the CRS that a catalogue names; None if it names none, or an unknown one."""
    try:
        return None if code is None else CRS.from_user_input(code)
    except CRSError:
        return None


def _readable(href: str) -> str:
    if urlsplit(href).scheme in {"http", "https"}:
        return href
    msg = (
        f"NAIP: the catalogue gives {urlsplit(href).scheme or 'local'} addresses, which landprior does not read "
        "(requester pays?); use Planetary Computer (the default), or download and give --naip FOLDER"
    )
    raise SourceError(msg)


def _check_json(content: bytes) -> None:
    parse_json(content, "the catalogue")


def _check_stac(content: bytes) -> None:
    answer = parse_json(content, "the catalogue")
    if not isinstance(answer, dict) or answer.get("type") not in {"Catalog", "Collection", "FeatureCollection"}:
        msg = "the address leads to no STAC API"
        raise SourceError(msg)


def list_images(folder: str | Path, outline: BaseGeometry | None = None) -> list[NaipImage]:
    """List the images of a local folder (``*.tif``, also in folders below), or one file.

    What is no image in UTM or another projected CRS with at least 3 bands of uint8 is left out, and the log says so.

    Parameters
    ----------
    folder
        Folder or file.
    outline
        Only images that touch this place (degrees); None: all.

    Raises
    ------
    MissingInputError
        If there is no such folder or file.
    InputError
        If it has no image.
    """
    folder = Path(folder)
    if not folder.exists():
        msg = f"no such folder or file: {folder}"
        raise MissingInputError(msg)
    paths = [folder] if folder.is_file() else sorted(_tiffs_in(folder))
    images, reason = [], "no .tif"
    for path in paths:
        try:
            images.append(_image_in(path))
        except (RasterReadError, InputError) as error:
            reason = str(error)
            logger.warning("Warning: %s is left out: %s", path.name, reason)
    if not images:
        msg = f"{folder} has no NAIP image, georeferenced and with at least 3 bands of uint8 ({reason})"
        raise InputError(msg)
    return [image for image in images if outline is None or image.footprint.intersects(outline)]


def _tiffs_in(folder: Path) -> Iterator[Path]:
    """List the TIFFs in a folder; what is hidden, such as macOS's ``._name.tif``, is nothing of the user's."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in _TIFFS and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _image_in(path: Path) -> NaipImage:
    """Return the image that a local file is; raises if it is none."""
    with open_raster(path) as src:
        if src.crs is None:
            msg = "it has no CRS"
            raise InputError(msg)
        if src.count < 3 or src.dtypes[0] != "uint8":
            msg = f"it has {src.count} band(s) of {src.dtypes[0]}"
            raise InputError(msg)
        if src.crs.is_geographic:
            msg = "it is in degrees; warp it to UTM"
            raise InputError(msg)
        grid = Grid.of(src)
    date = _DATE.search(path.stem)
    return NaipImage(
        id=path.stem,
        year=None if date is None else int(date[1]),
        date="" if date is None else "-".join(date.groups()),
        footprint=_outline_of(grid),
        source=path,
        resolution=grid.pixel_size(where=path)[0],
        crs=grid.crs,
    )


def _outline_of(grid: Grid) -> BaseGeometry:
    """Return a raster's true outline in degrees: its box is turned there."""
    series = geopandas.GeoSeries([shapely.segmentize(box(*grid.bounds), 500.0)], crs=_wkt(grid.crs))
    return series.to_crs(4326).iloc[0]


# -- choosing --------------------------------------------------------------------------------------


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


def locate(choice: Choice, network: Network) -> Choice:
    """Return a choice whose image says its CRS, read from the file if the catalogue does not.

    Without it a tile beside the border of a UTM zone could get the other zone, and its pixels be interpolated.
    """
    if choice.image.crs is not None:
        return choice
    with open_image(choice.image, network) as src:
        return replace(choice, image=replace(choice.image, crs=src.crs))


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
    if crs is not None and crs.to_dict().get("proj") == "utm" and crs.linear_units_factor[1] == 1.0:
        return crs
    zone = min(int((place.centroid.x + 180) // 6) + 1, 60)
    return CRS.from_epsg(26900 + zone if zone <= 23 else 32600 + zone)


# -- reading ---------------------------------------------------------------------------------------


def write_image(image: NaipImage, grid: Grid, path: Path, network: Network, *, overwrite: bool = False) -> Path:
    """Warp an image onto the grid of a tile, by windows, and write it as a COG.

    Pixels below 1 m are averaged; pixels that lie on the grid's own are copied; others are interpolated.
    Pixels without data (the file's nodata value or mask; if it has neither, zero in all bands) become zero
    in all bands. A fourth band is near infrared, whatever it is tagged as.

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
        with open_remote(network, image.source, NAIP) as src:
            yield src


def _write_image(src: DatasetReader, image: NaipImage, grid: Grid, path: Path, *, overwrite: bool) -> Path:
    if src.crs is None:
        msg = f"{image.origin} has no CRS, so it cannot be put on the tile's grid"
        raise RasterReadError(msg)
    if src.dtypes[0] != "uint8":
        msg = f"{image.origin} holds {src.dtypes[0]}, NAIP is uint8"
        raise RasterReadError(msg)
    # of a remote file, which is NAIP's own, all are data, whatever they are marked as
    found = find_bands(src, due=None if isinstance(image.source, Path) else src.count)
    bands = replace(found, data=found.data[:4], nodata=found.nodata[:4])
    resampling = _resampling(src, grid)
    with CogWriter(
        path,
        grid,
        count=len(bands.data),
        dtype="uint8",
        nodata=NODATA,
        overviews="average",
        descriptions=("red", "green", "blue", "near infrared")[: len(bands.data)],
        tags={"kind": "image", "origin": image.origin, "date": image.date, "resampling": resampling.name},
        overwrite=overwrite,
    ) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            window = grid.window(block.core)
            values = np.full((len(bands.data), *window.shape), NODATA, dtype=np.uint8)
            try:
                part = _read_around(src, bands, window)
            except RasterioError as error:  # of a remote file, open_remote says it better
                reason = " ".join(str(error.__cause__ or error).split())
                msg = f"{image.origin} is damaged or truncated ({reason}); copy or download it again"
                raise RasterReadError(msg) from error
            if part is not None:
                _resample(*part, values, window, resampling)
            return {"naip": values}

        stream(compute, grid=grid, sinks={"naip": writer}, size=_WINDOW, label="naip")
    return path


def _read_around(src: DatasetReader, bands: Bands, target: Grid) -> tuple[NDArray[np.uint8], Grid] | None:
    """Read what a window of the tile's grid is made from; None if the image does not reach there.

    Zero in all bands means no data, and nothing else does.
    """
    own = Grid.of(src)
    along, ones = np.linspace(0, 1, 21), np.ones(21)
    columns = target.width * np.concatenate([along, along, 0 * ones, ones])
    rows = target.height * np.concatenate([0 * ones, ones, along, along])
    x, y = transform(target.crs, own.crs, *(target.transform @ (columns, rows)))
    columns, rows = ~own.transform @ (np.asarray(x), np.asarray(y))
    left, right = np.clip([columns.min() - _REACH, columns.max() + _REACH + 1], 0, own.width).astype(int)
    top, bottom = np.clip([rows.min() - _REACH, rows.max() + _REACH + 1], 0, own.height).astype(int)
    if left >= right or top >= bottom:
        return None
    window = Window(left, top, right - left, bottom - top)
    values = np.asarray(src.read(list(bands.data), window=window), dtype=np.uint8)
    if not bands.masked and not bands.alpha and bands.nodata[0] is None:
        bands = replace(bands, nodata=(NODATA,) * len(bands.data))
    empty = ~bands.find_valid(src, values, window)
    values[0, ~empty & (values == NODATA).all(axis=0)] = 1
    values[:, empty] = NODATA
    return values, own.window(window)


def _resample(
    values: NDArray[np.uint8], own: Grid, result: NDArray[np.uint8], target: Grid, resampling: Resampling
) -> None:
    """Put pixels onto a window of the tile's grid."""
    if resampling is Resampling.nearest:
        column, row = (round(value) for value in ~target.transform @ own.transform @ (0, 0))
        top, bottom = np.clip([row, row + own.height], 0, target.height)
        left, right = np.clip([column, column + own.width], 0, target.width)
        result[:, top:bottom, left:right] = values[:, top - row : bottom - row, left - column : right - column]
        return
    reproject(
        values,
        result,
        src_transform=own.transform,
        src_crs=own.crs,
        dst_transform=target.transform,
        dst_crs=target.crs,
        src_nodata=NODATA,
        dst_nodata=NODATA,
        resampling=resampling,
        num_threads=_THREADS,
        UNIFIED_SRC_NODATA="YES",
    )


def _resampling(src: DatasetReader, grid: Grid) -> Resampling:
    """Return how pixels become the tile's; nearest where they lie on its own."""
    if min(Grid.of(src).pixel_size(where=src.name)) < _SHRINKING:
        return Resampling.average
    if src.crs == grid.crs:
        moved = ~grid.transform @ src.transform
        same_size = np.allclose((moved.a, moved.b, moved.d, moved.e), (1, 0, 0, 1), rtol=0, atol=1e-6)
        if same_size and all(abs(value - round(value)) < 0.01 for value in (moved.c, moved.f)):
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
        answer = self._network.get(
            self._url, NAIP, params={"href": href}, headers=key_headers(self._url), check=_check_json
        )
        try:
            signed = json.loads(answer)
            query = urlsplit(str(signed["href"])).query.removeprefix(urlsplit(href).query).lstrip("&")
            text = str(signed.get("msft:expiry") or "")
            until = datetime.fromisoformat(text) if text else None
        except (ValueError, KeyError, TypeError) as error:
            msg = f"NAIP: {redact(self._url)} signs nothing; {NAIP.remedy}"
            raise SourceError(msg) from error
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        return query, time.time() + 1800 if until is None else until.timestamp()


def key_headers(url: str) -> dict[str, str]:
    """Return the header with the user's key for Planetary Computer; none for any other address.

    A catalogue, a plan or an option may name any signer, so the key goes only to the one that issued it. Its scheme,
    host and port are compared as they are written: two parsers may find two hosts in one crafted address.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return {}
    own, asked = SIGN_URL.split("/")[:3], url.split("/")[:3]
    if asked != own:
        logger.info("NAIP: the key of %s is only for %s and is not sent to %s", KEY_VARIABLE, own[2], redact(url))
        return {}
    return {"Ocp-Apim-Subscription-Key": key}


def _container(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return (parts.netloc, parts.path.lstrip("/").partition("/")[0])
