"""NLCD in its original codes, from a web coverage service or a national file."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import rasterio
from affine import Affine
from defusedxml import ElementTree
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from landprior.addresses import hide_addresses, redact
from landprior.errors import GridMismatchError, InputError, SourceBusyError, SourceError
from landprior.raster.codes import choose_band
from landprior.raster.grid import Grid
from landprior.raster.outputs import replacing
from landprior.raster.remote import archive_path
from landprior.sources.http.client import DAY, Network
from landprior.sources.http.origins import Origin, Remote
from landprior.sources.http.ranges import open_remote
from landprior.sources.http.responses import MEGABYTE
from landprior.sources.public import COVERAGE, WCS_URL

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

NLCD = Origin(
    name="NLCD",
    folder="nlcd",
    remedy="give the national file (--nlcd FILE or URL), or another coverage service (--nlcd-wcs)",
)
FIRST_YEAR, LAST_YEAR = 1985, 2025
KEEP_DESCRIPTION = 30 * DAY
_CELLS_AROUND = 2
_ROUNDING = 1e-6
"""Cells that overlap a tile by less than this are not needed."""
_MOST_CELLS = 2**28
"""Maximum cells of one tile, about a hundred times the number of 1 m cells."""
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Description of a coverage service's raster.

    Parameters
    ----------
    crs
        CRS of the raster.
    srs
        The CRS as the service writes it.
    transform
        Transform from (column, row) to the CRS; corners of cells, not centres.
    width, height
        Size in cells.
    years
        Available years; empty if the service does not list them.
    format
        Name of the GeoTIFF format at the service.
    """

    crs: CRS
    srs: str
    transform: Affine
    width: int
    height: int
    years: tuple[int, ...] = ()
    format: str = "image/geotiff"


def match_year(year: int, years: tuple[int, ...] = ()) -> int:
    """Return the NLCD year nearest to a year; of two equally near, the earlier."""
    return min(years or range(FIRST_YEAR, LAST_YEAR + 1), key=lambda y: (abs(y - year), y))


def describe_coverage(network: Network, *, url: str = WCS_URL, coverage: str = COVERAGE) -> Coverage:
    """Request the grid and the years of a coverage service's raster (WCS 1.0.0).

    Parameters
    ----------
    network
        Client; the description is cached.
    url
        Address of the service.
    coverage
        Name of NLCD's coverage.

    Returns
    -------
    Coverage
        Grid, CRS and years.

    Raises
    ------
    SourceError
        If it does not answer, or its answer cannot be used.
    """

    def check(content: bytes) -> None:
        _require_coverage(content, url)

    answer = network.get(
        url,
        NLCD,
        params={"service": "WCS", "version": "1.0.0", "request": "DescribeCoverage", "coverage": coverage},
        keep=KEEP_DESCRIPTION,
        suffix=".xml",
        check=check,
    )
    return _require_coverage(answer, url)


def download_nlcd(
    grid: Grid, year: int | None, network: Network, *, url: str = WCS_URL, coverage: str = COVERAGE
) -> Path:
    """Download the cells that cover a grid, on their own grid and with their own codes.

    Parameters
    ----------
    grid
        Grid to be covered, in any CRS.
    year
        NLCD year; None for a service without years.
    network
        Client; responses are cached.
    url, coverage
        See :func:`describe_coverage`.

    Returns
    -------
    Path
        A GeoTIFF of codes in the cache.

    Raises
    ------
    GridMismatchError
        If the service has no data there.
    SourceError
        If there is no valid response.
    """
    described = describe_coverage(network, url=url, coverage=coverage)
    whole = Grid(width=described.width, height=described.height, transform=described.transform, crs=described.crs)
    cells = whole.window(_window_around(whole, grid, url))
    path = network.cache.path(NLCD.folder, json.dumps([url, coverage, year, list(cells.bounds)]), ".tif")
    if path.is_file() and not network.refresh:
        return path
    params = {
        "service": "WCS",
        "version": "1.0.0",
        "request": "GetCoverage",
        "coverage": coverage,
        "crs": described.srs,
        "bbox": ",".join(f"{value:.10g}" for value in cells.bounds),
        "width": cells.width,
        "height": cells.height,
        "format": described.format,
        "interpolation": "nearest neighbor",
    } | ({} if year is None else {"time": f"{year}-01-01T00:00:00.000Z"})  # GeoServer's form, known to work at USGS

    def check(content: bytes) -> None:
        _read_answer(content, cells, url)

    # a byte or a float per cell, in one or a few bands, plus overhead
    answer = network.get(url, NLCD, params=params, check=check, limit=32 * MEGABYTE + 32 * cells.width * cells.height)
    values, nodata = _read_answer(answer, cells, url)
    return _write_part(path, values, cells, nodata)  # not the response's own transform, which may be rounded


def is_remote(source: str | Path) -> bool:
    """Say whether a raster of NLCD is read from the web."""
    return re.match(r"https?://", str(source)) is not None


def clip_file(source: str | Path, year: int | None, grid: Grid, network: Network) -> Path:
    """Return a raster of NLCD that covers a grid: the user's file itself, or the part of a remote one.

    Parameters
    ----------
    source
        Path or URL; ``{year}`` in it is replaced.
    year
        NLCD year.
    grid
        Grid to be covered.
    network
        Client to read a remote file by ranges.

    Returns
    -------
    Path
        The user's file, or a GeoTIFF of codes in the cache.

    Raises
    ------
    GridMismatchError, InputError
        If a remote file does not reach the grid, or the address is not supported.
    SourceError
        If it cannot be read.
    """
    text = str(source).replace("{year}", str(year))
    if not is_remote(text):
        if "://" in text:
            msg = f"{redact(text)} is neither a file nor an http address; download it and give its path (--nlcd)"
            raise InputError(msg)
        return Path(archive_path(text))
    # the whole address: its query may select the year; the cache stores only a hash of it
    path = network.cache.path(NLCD.folder, json.dumps([text, year, repr(grid)]), ".tif")
    if path.is_file() and not network.refresh:
        return path
    with open_remote(network, Remote(text), NLCD) as src:
        window = _window_around(Grid.of(src), grid, text)
        band = choose_band(src, redact(text)).data[0]
        values, part, nodata = src.read(band, window=window), Grid.of(src).window(window), src.nodatavals[band - 1]
    return _write_part(path, values, part, nodata)


def _window_around(whole: Grid, grid: Grid, name: str) -> Window:
    """Return the cells of a raster that cover a grid, with a margin; at least 3 x 3 unless it has fewer."""
    if whole.crs is None or grid.crs is None:
        msg = f"{redact(name)} has no CRS, so it cannot be warped to a tile's grid"
        raise GridMismatchError(msg)
    bounds = transform_bounds(grid.crs, whole.crs, *grid.bounds, densify_pts=21)
    exact = from_bounds(*bounds, transform=whole.transform)
    left, top = int(np.floor(exact.col_off + _ROUNDING)), int(np.floor(exact.row_off + _ROUNDING))
    right = int(np.ceil(exact.col_off + exact.width - _ROUNDING))
    bottom = int(np.ceil(exact.row_off + exact.height - _ROUNDING))
    if right <= 0 or bottom <= 0 or left >= whole.width or top >= whole.height:
        msg = f"NLCD: {redact(name)} has no data at this place; {NLCD.remedy}"
        raise GridMismatchError(msg)
    left, top = max(left - _CELLS_AROUND, 0), max(top - _CELLS_AROUND, 0)
    right, bottom = min(right + _CELLS_AROUND, whole.width), min(bottom + _CELLS_AROUND, whole.height)
    if (right - left) * (bottom - top) > _MOST_CELLS:
        msg = f"NLCD: {redact(name)} has {right - left:,} x {bottom - top:,} cells in one tile; NLCD's are 30 m wide"
        raise GridMismatchError(msg)
    return Window(left, top, right - left, bottom - top)


def _write_part(path: Path, values: NDArray[np.generic], grid: Grid, nodata: float | None) -> Path:
    """Write cells into the cache."""
    with replacing(path, overwrite=True) as temporary, rasterio.open(
        temporary, "w", driver="GTiff", height=grid.height, width=grid.width, count=1, dtype=values.dtype,
        crs=grid.crs, transform=grid.transform, nodata=nodata, compress="deflate",
    ) as dst:  # fmt: skip
        dst.write(values, 1)
    return path


def _read_answer(content: bytes, cells: Grid, url: str) -> tuple[NDArray[np.uint8], float | None]:
    """Return the codes of a valid response and its nodata value."""
    if not content.startswith(_TIFF):
        _raise_exception(content, url)
    try:
        with MemoryFile(content) as memory, memory.open() as src:
            if (src.height, src.width) != cells.shape:
                msg = f"{redact(url)} sent {src.width} x {src.height} cells instead of {cells.width} x {cells.height}"
                raise SourceError(msg)
            corners = np.array([(0, 0), (cells.width, cells.height)]).T
            shift = float(np.abs(~cells.transform @ (src.transform @ corners) - corners).max())
            if shift > 0.1:
                msg = f"{redact(url)} sent another place than requested ({shift:.1f} cells away)"
                raise SourceError(msg)
            values, nodata = src.read(1), src.nodata
    except RasterioError as error:
        msg = f"{redact(url)} sent a damaged raster ({' '.join(str(error).split())})"
        raise SourceBusyError(msg) from error
    if values.min() < 0 or values.max() > 255 or values.dtype.kind not in "iu":
        msg = f"{redact(url)} sent {values.dtype} numbers up to {values.max()}, which are not NLCD codes"
        raise SourceError(msg)
    return np.asarray(values, dtype=np.uint8), nodata if nodata is not None and 0 <= nodata <= 255 else None


def _require_coverage(content: bytes, url: str) -> Coverage:
    """Parse a description, or raise an error."""
    root = _parse(content, url)
    rectified = _find(root, "RectifiedGrid")
    if rectified is None:
        _raise_exception(content, url)
    try:
        origin = _numbers(_find(rectified, "pos"))
        steps = [_numbers(e) for e in rectified.iter() if _tag(e) == "offsetVector"]
        low, high = _numbers(_find(rectified, "low")), _numbers(_find(rectified, "high"))
        width, height = (int(last - first) + 1 for first, last in zip(low, high, strict=True))
        (dx, right), (down, dy) = steps
        if not (dx > 0 > dy and right == down == 0 and width > 0 and height > 0):
            msg = "rotated, upside down or empty"
            raise ValueError(msg)  # noqa: TRY301 - said below, like all that is wrong with it
        srs, left, top = _corner(root, rectified, origin, [dx, dy])
        crs = CRS.from_user_input(srs)
    except (TypeError, ValueError, IndexError, RasterioError) as error:
        msg = f"{redact(url)} gives an unusable description of its raster"
        raise SourceError(msg) from error
    formats = [e.text or "" for e in root.iter() if _tag(e) == "formats"]
    return Coverage(
        crs=crs,
        srs=srs,
        transform=Affine(dx, 0, left, 0, dy, top),
        width=width,
        height=height,
        years=_years(root),
        format=next((name for name in formats if "tiff" in name.lower()), "image/geotiff"),
    )


def _corner(root: Element, rectified: Element, origin: list[float], cell: list[float]) -> tuple[str, float, float]:
    """Return the CRS and the upper left corner of a coverage.

    In the standard, and in GeoServer, the origin is the centre of the first cell. MapServer gives its
    corner, in which case one of the envelopes (in several CRSs) starts at the origin.
    """
    srs = rectified.get("srsName") or ""
    for envelope in root.iter():
        if _tag(envelope) not in {"Envelope", "EnvelopeWithTimePeriod"}:
            continue
        xs, ys = zip(*(_numbers(e) for e in envelope.iter() if _tag(e) == "pos"), strict=True)
        if abs(min(xs) - origin[0]) < abs(cell[0]) / 4 and abs(max(ys) - origin[1]) < abs(cell[1]) / 4:
            return srs or envelope.get("srsName") or "", origin[0], origin[1]
    native = _find(root, "nativeCRSs")
    srs = srs or ("" if native is None else native.text or "")
    return srs, origin[0] - cell[0] / 2, origin[1] - cell[1] / 2


def _years(root: Element) -> tuple[int, ...]:
    """Return the years of a description, which gives times or periods."""
    domain = _find(root, "temporalDomain")
    found: set[int] = set()
    for element in () if domain is None else domain.iter():
        if _tag(element) in {"timePosition", "timePeriod"}:
            years = [int(year) for year in re.findall(r"(?<!\d)\d{4}(?!\d)", " ".join(element.itertext()))]
            found.update(range(min(years), max(years) + 1) if years else ())
    return tuple(sorted(found))


def _raise_exception(content: bytes, url: str) -> NoReturn:
    """Raise an error with a service's error message."""
    text = ""
    if content.lstrip().startswith(b"<"):
        root = _parse(content, url)
        text = " ".join(e.text or "" for e in root.iter() if _tag(e) in {"ServiceException", "ExceptionText"})
    message = hide_addresses(" ".join(text.split()))[:200] or f"{len(content)} bytes that are not a raster"
    msg = f"{redact(url)} says: {message}"
    raise SourceError(msg) if text else SourceBusyError(msg)


def _parse(content: bytes, url: str) -> Element:
    try:
        root: Element = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        msg = f"{redact(url)} did not send XML ({len(content)} bytes)"
        raise SourceBusyError(msg) from error
    return root


def _find(root: Element, name: str) -> Element | None:
    return next((element for element in root.iter() if _tag(element) == name), None)


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _numbers(element: Element | None) -> list[float]:
    if element is None or element.text is None:
        msg = "missing"
        raise ValueError(msg)
    return [float(part) for part in element.text.replace(",", " ").split()]
