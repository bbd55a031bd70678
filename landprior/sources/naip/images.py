"""NAIP images: one file each, local or in a catalogue, and its metadata."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.addresses import redact
from landprior.raster.reading import open_raster
from landprior.sources.http.origins import Origin, Remote
from landprior.sources.http.ranges import open_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from shapely.geometry.base import BaseGeometry

    from landprior.sources.http.client import Network

NAIP = Origin(
    name="NAIP",
    folder="naip",
    remedy="give another catalogue (--stac-url), or a folder of NAIP files (--naip)",
)


@dataclass(frozen=True, kw_only=True)
class NaipImage:
    """One NAIP file, usually a quarter quad.

    Parameters
    ----------
    id
        Name of the item or file, without extension.
    year
        Year of the survey; None if a local file does not give it.
    date
        Date of acquisition, ``YYYY-MM-DD``, or "".
    footprint
        Outline in degrees (EPSG:4326).
    source
        Local path or remote file.
    resolution
        Metres per pixel; None if the catalogue does not give it.
    crs
        CRS from the catalogue or the file; None if the catalogue does not give it.
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
        """Origin of the image, without secrets."""
        return str(self.source) if isinstance(self.source, Path) else redact(self.source.href)


@contextmanager
def open_image(image: NaipImage, network: Network) -> Iterator[DatasetReader]:
    """Open an image, local or remote."""
    if isinstance(image.source, Path):
        with open_raster(image.source) as src:
            yield src
    else:
        with open_remote(network, image.source, NAIP) as src:
            yield src
