"""City presets (``configs/cities``, or the user's own file): a place, the years of its layers, its grid and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from landprior.errors import ConfigError
from landprior.raster.scheme import explain
from landprior.resources import find_config, read_yaml, shipped_names
from landprior.sources.folder_names import check_name

if TYPE_CHECKING:
    from pathlib import Path

Year = Annotated[int, Field(ge=1985, le=2100)]


class PaperRun(BaseModel):
    """What the paper's own runs used for a city."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rates: dict[str, float]
    filters: int = 128
    batch_size: int = 128
    patch_size: int = 128


class CityPreset(BaseModel):
    """A place, the years of its layers, its grid and its classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    bounds: tuple[float, float, float, float]
    naip_year: Year
    nlcd_year: Year
    epsg: int
    scheme: str
    cooccurrence: str | None = None
    paper: PaperRun | None = None

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return check_name(name)

    @field_validator("bounds")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        left, bottom, right, top = bounds
        if not (-180 <= left < right <= 180 and -90 <= bottom < top <= 90):
            msg = f"bounds are left, bottom, right, top in degrees, not {bounds}"
            raise ValueError(msg)
        return bounds


def load_city(name: str | Path) -> CityPreset:
    """Load a preset by name (in any case) or from the user's own YAML file.

    Raises
    ------
    ConfigError
        If the name is unknown (the message lists the shipped ones) or the file is not a preset.
    """
    shipped = {known.casefold(): known for known in list_cities()}
    path = find_config(shipped.get(str(name).casefold(), name), "cities", (".yaml", ".yml"))
    try:
        return CityPreset.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error


def list_cities() -> list[str]:
    """Return the names of the shipped presets."""
    return shipped_names("cities")
