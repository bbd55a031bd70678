"""Settings of a fetch: years, sources, options. Imports no torch, so that help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from landprior.raster.scheme import ClassScheme  # noqa: TC001 - pydantic reads it
from landprior.sources.local_files import absolute_source, refuse_remote
from landprior.sources.public import COVERAGE, INDEX_URL, NOMINATIM_URL, OVERPASS_URL, STAC_URL, WCS_URL, RoadWidth

Layer = Literal["nlcd", "osm", "buildings", "labels", "naip"]
"""Layers in the order in which they are fetched: the image last, so that a folder with an image is complete."""


LAYERS: tuple[Layer, ...] = get_args(Layer)


MARGIN = 64
"""Margin around the requested place, metres: the reach of the prior's filters (50 m) and of a learned prior (10 m)."""


NONE = "none"


_FILES = ("nlcd", "osm", "buildings")
"""Settings that may name a file."""


class FetchSettings(BaseModel):
    """Years, sources and options of a fetch; every default is a public source.

    Parameters
    ----------
    label_map, scheme
        Codes of the reference labels to codes of the scheme, and the scheme.
    margin
        Margin around the requested place, metres.

    The other fields are options of ``landprior fetch``, with its help as their descriptions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    year: int | None = Field(
        None,
        ge=2003,
        le=2100,
        description="NAIP year; the nearest available year is used.  [default: the preset's, or the latest]",
    )
    nlcd_year: int | None = Field(
        None,
        ge=1985,
        le=2100,
        description="NLCD year; the nearest available year is used.  [default: the preset's, or NAIP's]",
    )
    naip: Path | None = Field(None, description="Folder (or file) of NAIP images, used instead of the catalogue.")
    stac_url: str = Field(STAC_URL, description="STAC API with a collection named naip.  [default: Planetary Computer]")
    sign_url: str | None = Field(
        None,
        description="Service that signs the catalogue's URLs.  [default: Planetary Computer's, for its own catalogue]",
    )
    nlcd: str | None = Field(
        None,
        description="NLCD raster (file or URL), used instead of the coverage service; may contain {year}.",
    )
    nlcd_wcs: str = Field(
        WCS_URL, description="Coverage service (WCS 1.0.0) to get NLCD from.  [default: USGS, Annual NLCD]"
    )
    nlcd_coverage: str = Field(
        COVERAGE, description="Name of the coverage at the coverage service.  [default: that of Annual NLCD]"
    )
    osm: str | None = Field(
        None,
        description="OpenStreetMap extract (.osm.pbf, .gpkg), used instead of Overpass; 'none' for no roads and water.",
    )
    overpass_url: str = Field(OVERPASS_URL, description="Overpass server to ask.  [default: overpass-api.de]")
    nominatim_url: str = Field(
        NOMINATIM_URL, description="Nominatim server that finds --place.  [default: nominatim.openstreetmap.org]"
    )
    buildings: str | None = Field(
        None,
        description="Building footprints (GeoJSON, FlatGeobuf, GeoParquet, ...), used instead of Microsoft's; "
        "'none' for no buildings.",
    )
    buildings_index: str = Field(
        INDEX_URL, description="Copy of Microsoft's index of building footprints.  [default: Microsoft's own]"
    )
    labels: tuple[Path, ...] = Field(
        (), description="Reference labels, raster or vector, to score the maps with; may be repeated."
    )
    label_field: str = Field("class", description="Attribute of vector reference labels that holds the class.")
    label_map: dict[int, int] = Field(default_factory=dict)
    scheme: ClassScheme | None = None
    road_width: RoadWidth = Field(
        "fixed", description="Width of roads: 3 pixels for every road, or by the tags of OpenStreetMap."
    )
    margin: int = Field(MARGIN, ge=0, le=2000)
    jobs: int = Field(2, ge=1, le=16, description="Number of tiles fetched at a time; public servers set limits.")

    @field_validator("naip", "nlcd", "osm", "buildings", "labels", mode="before")
    @classmethod
    def _local(cls, value: object, info: ValidationInfo) -> object:
        for one in value if isinstance(value, (tuple, list)) else [value]:
            option = "--reference" if info.field_name == "labels" else f"--{info.field_name}"
            refuse_remote(one, option, web=info.field_name == "nlcd")
        return value

    def make_absolute(self) -> FetchSettings:
        """Return the settings with absolute paths of local sources, for use from another folder or process."""
        absolute: dict[str, Any] = {name: absolute_source(path) for name in _FILES if (path := getattr(self, name))}
        absolute["naip"] = self.naip and self.naip.absolute()
        absolute["labels"] = tuple(Path(absolute_source(path)) for path in self.labels)
        return self.model_copy(update=absolute)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers to fetch."""
        left_out = {name for name in ("osm", "buildings") if getattr(self, name) == NONE}
        return tuple(name for name in LAYERS if name not in left_out and (name != "labels" or self.labels))
