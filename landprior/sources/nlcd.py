"""NLCD: from a web coverage service, or from a national file, by its original codes."""

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

from landprior.errors import GridMismatchError, InputError, SourceBusyError, SourceError
from landprior.raster.files import replacing
from landprior.raster.grid import Grid
from landprior.sources.network import DAY, Network, Origin, Remote, redact

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

logger = logging.getLogger(__name__)

NLCD = Origin(
    name="NLCD",
    folder="nlcd",
    remedy="give the national file (--nlcd FILE or URL), or another coverage service (--nlcd-wcs)",
)
WCS_URL = "https://dmsdata.cr.usgs.gov/geoserver/mrlc_Land-Cover-Native_conus_year_data/wcs"
COVERAGE = "mrlc_Land-Cover-Native_conus_year_data:Land-Cover-Native_conus_year_data"
"""Annual NLCD of the conterminous United States (USGS, MRLC)."""

FIRST_YEAR, LAST_YEAR = 1985, 2024
KEEP_DESCRIPTION = 30 * DAY
_CELLS_AROUND = 2
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a coverage service says of its raster.

    Parameters
    ----------
    crs
        Its own.
    srs
        As the service writes it.
    transform
        From (column, row) to its CRS; corners of cells, not centres.
    width, height
        In cells.
    years
        Those it has; empty if it does not say.
    format
        How the service calls GeoTIFF.
    """

    crs: CRS
    srs: str
    transform: Affine
    width: int
    height: int
    years: tuple[int, ...] = ()
    format: str = "image/geotiff"


def match_year(year: int, years: tuple[int, ...] = ()) -> int:
    """Return the year of NLCD nearest to a year; of equal ones the earlier."""
    return min(years or range(FIRST_YEAR, LAST_YEAR + 1), key=lambda y: (abs(y - year), y))


def describe_coverage(network: Network, *, url: str = WCS_URL, coverage: str = COVERAGE) -> Coverage:
    """Ask a coverage service (WCS 1.0.0) for the grid and the years of its raster.

    Raises
    ------
    SourceError
        If it does not answer, or not so that it can be used.
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
    """Download the cells that cover a grid, by their own grid and codes; return the file in the cache.

    Parameters
    ----------
    grid
        What is to be covered, in any CRS.
    year
        Which; None for a service without years.

    Raises
    ------
    GridMismatchError
        If the service has nothing there.
    SourceError
        If there is no good answer.
    """
    described = describe_coverage(network, url=url, coverage=coverage)
    cells = _cells(described, grid, url)
    key = json.dumps([redact(url), coverage, year, list(cells.bounds)])
    path = network.cache.path(NLCD.folder, key, ".tif")
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

    values = _read_answer(network.get(url, NLCD, params=params, check=check), cells, url)
    # the service's own transform may be off by rounding; ours is what was asked for
    with replacing(path, overwrite=True) as temporary, rasterio.open(
        temporary, "w", driver="GTiff", height=cells.height, width=cells.width, count=1, dtype="uint8",
        crs=cells.crs, transform=cells.transform, compress="deflate",
    ) as dst:  # fmt: skip
        dst.write(values, 1)
    return path


def clip_file(source: str | Path, year: int | None, grid: Grid, network: Network) -> Path:
    """Return a raster of NLCD that covers a grid: the user's file itself, or the part of a remote one.

    Parameters
    ----------
    source
        Path or URL; ``{year}`` in it is replaced.
    year
        Which.
    grid
        What is to be covered.
    """
    text = str(source).replace("{year}", str(year))
    if not re.match(r"https?://", text):
        return Path(text)
    path = network.cache.path(NLCD.folder, json.dumps([redact(text), repr(grid)]), ".tif")
    if path.is_file() and not network.refresh:
        return path
    with network.open_raster(Remote(text), NLCD) as src:
        values, part = _read_part(src, grid, text)
    with replacing(path, overwrite=True) as temporary, rasterio.open(
        temporary, "w", driver="GTiff", height=part.height, width=part.width, count=1, dtype=values.dtype,
        crs=part.crs, transform=part.transform, nodata=src.nodata, compress="deflate",
    ) as dst:  # fmt: skip
        dst.write(values, 1)
    return path


def _read_part(src: DatasetReader, grid: Grid, name: str) -> tuple[NDArray[np.generic], Grid]:
    own = Grid.of(src)
    if own.crs is None or grid.crs is None:
        msg = f"{redact(name)} says no CRS, so it cannot be put on a tile's grid"
        raise GridMismatchError(msg)
    bounds = transform_bounds(grid.crs, own.crs, *grid.bounds, densify_pts=21)
    window = from_bounds(*bounds, transform=own.transform)
    left, top = int(np.floor(window.col_off)) - _CELLS_AROUND, int(np.floor(window.row_off)) - _CELLS_AROUND
    right = int(np.ceil(window.col_off + window.width)) + _CELLS_AROUND
    bottom = int(np.ceil(window.row_off + window.height)) + _CELLS_AROUND
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, own.width), min(bottom, own.height)
    if right <= left or bottom <= top:
        msg = f"{redact(name)} does not reach this place; give NLCD of the place (--nlcd)"
        raise GridMismatchError(msg)
    part = Window(left, top, right - left, bottom - top)
    return np.asarray(src.read(1, window=part)), own.window(part)


def _cells(described: Coverage, grid: Grid, url: str) -> Grid:
    """Return the cells of a coverage that cover a grid, with some around."""
    if grid.crs is None:
        msg = "a tile without a CRS cannot be looked up in NLCD"
        raise InputError(msg)
    bounds = transform_bounds(grid.crs, described.crs, *grid.bounds, densify_pts=21)
    window = from_bounds(*bounds, transform=described.transform)
    left = max(int(np.floor(window.col_off + 1e-6)) - _CELLS_AROUND, 0)
    top = max(int(np.floor(window.row_off + 1e-6)) - _CELLS_AROUND, 0)
    right = min(int(np.ceil(window.col_off + window.width - 1e-6)) + _CELLS_AROUND, described.width)
    bottom = min(int(np.ceil(window.row_off + window.height - 1e-6)) + _CELLS_AROUND, described.height)
    if right <= left or bottom <= top:
        msg = f"NLCD: {redact(url)} has nothing at this place; {NLCD.remedy}"
        raise GridMismatchError(msg)
    whole = Grid(width=described.width, height=described.height, transform=described.transform, crs=described.crs)
    return whole.window(Window(left, top, right - left, bottom - top))


def _read_answer(content: bytes, cells: Grid, url: str) -> NDArray[np.uint8]:
    """Return the codes of an answer, if it is one."""
    if not content.startswith(_TIFF):
        _raise_exception(content, url)
    try:
        with MemoryFile(content) as memory, memory.open() as src:
            if (src.height, src.width) != cells.shape:
                msg = (
                    f"{redact(url)} sent {src.width} x {src.height} cells where {cells.width} x {cells.height} are due"
                )
                raise SourceError(msg)
            shift = abs((~cells.transform @ src.transform).c) + abs((~cells.transform @ src.transform).f)
            if shift > 0.1:
                msg = f"{redact(url)} sent another place than was asked for ({shift:.1f} cells away)"
                raise SourceError(msg)
            values = src.read(1)
    except RasterioError as error:
        msg = f"{redact(url)} sent a damaged raster ({' '.join(str(error).split())})"
        raise SourceBusyError(msg) from error
    if values.min() < 0 or values.max() > 255:
        msg = f"{redact(url)} sent values such as {values.max()}, which are no NLCD codes"
        raise SourceError(msg)
    return np.asarray(values, dtype=np.uint8)


def _require_coverage(content: bytes, url: str) -> Coverage:
    """Parse a description, or raise."""
    root = _parse(content, url)
    rectified = _find(root, "RectifiedGrid")
    if rectified is None:
        _raise_exception(content, url)
    try:
        origin = _numbers(_find(rectified, "pos"))
        steps = [_numbers(e) for e in rectified.iter() if _tag(e) == "offsetVector"]
        low, high = _numbers(_find(rectified, "low")), _numbers(_find(rectified, "high"))
        width, height = (int(last - first) + 1 for first, last in zip(low, high, strict=True))
        dx, dy = steps[0][0], steps[1][1]
        srs, left, top = _corner(root, rectified, origin, (width, height), (dx, dy))
        crs = CRS.from_user_input(srs)
    except (TypeError, ValueError, IndexError, RasterioError) as error:
        msg = f"{redact(url)} does not describe its raster so that it can be used"
        raise SourceError(msg) from error
    times = [e.text or "" for e in root.iter() if _tag(e) in {"timePosition", "beginPosition", "endPosition"}]
    formats = [e.text or "" for e in root.iter() if _tag(e) == "formats"]
    return Coverage(
        crs=crs,
        srs=srs,
        transform=Affine(dx, 0, left, 0, dy, top),
        width=width,
        height=height,
        years=tuple(sorted({int(text[:4]) for text in times if re.match(r"\d{4}", text)})),
        format=next((name for name in formats if "tiff" in name.lower()), "image/geotiff"),
    )


def _corner(
    root: Element, rectified: Element, origin: list[float], size: tuple[int, int], cell: tuple[float, float]
) -> tuple[str, float, float]:
    """Return the CRS and the upper left corner of a coverage.

    Some services give the centre of the first cell (the standard), others its corner: the envelope of the
    raster's own size, among those given in several CRS, tells; without one, it is taken for a centre.
    """
    srs = rectified.get("srsName") or ""
    for envelope in root.iter():
        if _tag(envelope) not in {"Envelope", "EnvelopeWithTimePeriod"}:
            continue
        xs, ys = zip(*(_numbers(e) for e in envelope.iter() if _tag(e) == "pos"), strict=True)
        spans = ((xs, abs(size[0] * cell[0])), (ys, abs(size[1] * cell[1])))
        if all(abs(max(values) - min(values) - span) < 0.01 * span for values, span in spans):
            return srs or envelope.get("srsName") or "", min(xs), max(ys)
    native = _find(root, "nativeCRSs")
    srs = srs or (native.text if native is not None and native.text else "")
    return srs, origin[0] - cell[0] / 2, origin[1] - cell[1] / 2


def _raise_exception(content: bytes, url: str) -> NoReturn:
    """Raise what a service says instead of an answer."""
    text = ""
    if content.lstrip().startswith(b"<"):
        root = _parse(content, url)
        text = " ".join(" ".join(e.itertext()) for e in root.iter() if "Exception" in _tag(e))
    said = " ".join(text.split())[:200] or f"{len(content)} bytes that are no raster"
    msg = f"{redact(url)} says: {said}"
    raise SourceError(msg) if text else SourceBusyError(msg)


def _parse(content: bytes, url: str) -> Element:
    try:
        root: Element = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        msg = f"{redact(url)} sent no XML ({len(content)} bytes)"
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
