"""Finding NAIP images of a place in a STAC API or a local folder."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError
from shapely.geometry import shape

from landprior.addresses import hide_addresses, redact
from landprior.errors import InputError, LandpriorError, MissingInputError, RasterReadError, SourceError
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.sources.http.client import DAY
from landprior.sources.http.origins import Remote
from landprior.sources.http.responses import parse_json, require_web
from landprior.sources.naip.grid import outline_of
from landprior.sources.naip.images import NAIP, NaipImage
from landprior.sources.naip.sign import SIGN_URL, TokenSigner
from landprior.sources.public import STAC_URL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

    from landprior.sources.http.client import Network
    from landprior.sources.http.origins import Signer

logger = logging.getLogger(__name__)

COLLECTION = "naip"
KEEP_SEARCH = 30 * DAY
_PAGE = 100
_TIFFS = {".tif", ".tiff"}
_DATE = re.compile(r"(?:^|_)((?:19|20)\d{2})(\d{2})(\d{2})(?=_|$)")


def search_images(
    outline: BaseGeometry,
    network: Network,
    *,
    stac_url: str = STAC_URL,
    sign_url: str | None = None,
) -> list[NaipImage]:
    """Find the NAIP images of a place, of all years, in a STAC API.

    Parameters
    ----------
    outline
        Outline of the place in degrees.
    network
        Client; responses are cached for 30 days.
    stac_url
        Root of the API.
    sign_url
        An endpoint that signs URLs as Planetary Computer's does; by default Planetary Computer's, for its own files.

    Returns
    -------
    list of NaipImage
        The images, in no particular order.

    Raises
    ------
    SourceError
        If the catalogue does not answer.
    """
    import pystac_client
    from pystac_client.stac_api_io import StacApiIO

    asked: set[str] = set()

    class _IO(StacApiIO):
        """Send requests through our client, so that its checks and cache apply."""

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            question = json.dumps([href, method, parameters], sort_keys=True)
            if question in asked:
                msg = "its pages form a loop"
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
            """Read a link of the catalogue, which must not lead to local files."""
            require_web(source if isinstance(source, str) else str(source.get_absolute_href()))
            return str(super().read_text(source, *args, **kwargs))

    if sign_url is None and (urlsplit(stac_url).hostname or "") == urlsplit(STAC_URL).hostname:
        sign_url = SIGN_URL
    signer = None if sign_url is None else TokenSigner(network, sign_url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about conformance classes; missing features show in the response
            client = pystac_client.Client.open(stac_url, stac_io=_IO())
            search = client.search(
                collections=[COLLECTION], bbox=list(outline.bounds), limit=_PAGE, method="POST", max_items=None
            )
            found = [_image_of(item, signer) for item in search.items_as_dicts()]
    except LandpriorError:
        raise
    except Exception as error:  # noqa: BLE001 - pystac's errors have no root of their own, and items may be anything
        reason = hide_addresses(" ".join(str(error).split()))
        reason = re.sub(r"\?\S+", "", reason)[:160]  # without query strings of paths
        problem = f"{redact(stac_url)} is not a STAC API with search ({reason})"
        raise NAIP.error(problem) from None  # the error's message may contain addresses with secrets
    return [image for image in found if image is not None and image.footprint.intersects(outline)]


def _image_of(item: dict[str, Any], signer: Signer | None) -> NaipImage | None:
    """Return the image of a STAC item; None if it has no suitable raster or no footprint."""
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
    """Return the CRS given by a catalogue; None if there is none, or an unknown one."""
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


def _check_stac(content: bytes) -> None:
    answer = parse_json(content, "the catalogue")
    if not isinstance(answer, dict) or answer.get("type") not in {"Catalog", "Collection", "FeatureCollection"}:
        msg = "the address is not a STAC API"
        raise SourceError(msg)


def list_images(folder: str | Path, outline: BaseGeometry | None = None) -> list[NaipImage]:
    """List the images of a local folder (``*.tif``, including subfolders), or one file.

    Files that are not images in a projected CRS with at least 3 bands of uint8 are left out and logged.

    Parameters
    ----------
    folder
        Folder or file.
    outline
        Only images that touch this place (degrees); None: all.

    Returns
    -------
    list of NaipImage
        In the order of their paths.

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
    """List the TIFFs in a folder; hidden files, such as macOS's ``._name.tif``, are ignored."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in _TIFFS and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _image_in(path: Path) -> NaipImage:
    """Return the image of a local file; raise an error if it is not one."""
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
        footprint=outline_of(grid),
        source=path,
        resolution=grid.pixel_size(where=path)[0],
        crs=grid.crs,
    )
