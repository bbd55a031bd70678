"""Comparing methods on the user's own tiles: converting a short YAML file to an experiment (``landprior compare``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from landprior.errors import ConfigError
from landprior.landcover.experiments.config import Experiment, PriorKind, Settings
from landprior.raster.scheme import explain
from landprior.resources import find_config, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CompareName = Literal["prior", "qr", "rq", "sr", "soft-naive", "hard-naive", "em", "epitome", "self-epitome"]
"""Methods that can be compared: the prior itself, those of ``landprior train --method``, and ``self-epitome``."""

COMPARE_NAMES: tuple[str, ...] = get_args(CompareName)

_ROWS: Mapping[str, dict[str, Any]] = {
    "prior": {"method": "prior"},
    "qr": {"method": "weak", "loss": "qr", "maps": ["q", "r"]},
    "rq": {"method": "weak", "loss": "rq", "maps": ["q", "r"]},
    "soft-naive": {"method": "weak", "loss": "ce", "maps": ["q"]},
    "hard-naive": {"method": "weak", "loss": "ce-argmax", "maps": ["q"]},
    **{name: {"method": "rival", "rival": name} for name in ("sr", "em", "epitome", "self-epitome")},
}


class ComparedMethod(BaseModel):
    """A method with non-default settings, under a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: CompareName
    name: str = ""
    network: Literal["fcn", "unet"] | None = None
    options: dict[str, str | float | int | bool] = {}


class ComparedPlace(BaseModel):
    """Tiles scored together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: tuple[str, ...] = Field(min_length=1)
    cooccurrence: str | None = None
    label_map: dict[int, int] = {}


class Comparison(BaseModel):
    """The methods to compare, and the tiles to compare them on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Comparison of methods"
    about: str = ""
    scheme: str
    files: dict[str, str] = Field(description="layer -> path with {tile}; image, nlcd, labels and any others")
    places: dict[str, ComparedPlace] = Field(min_length=1)
    methods: tuple[ComparedMethod, ...] = tuple(ComparedMethod(method=name) for name in COMPARE_NAMES)
    prior: PriorKind | None = Field(None, description="published: the files' own, which is the default if given")
    seeds: int = Field(3, ge=1, le=1000)
    joint: bool = Field(default=True, description="one model for all tiles of a place instead of one per tile")
    settings: Settings = Settings()

    @model_validator(mode="before")
    @classmethod
    def _take_short_forms(cls, content: Any) -> Any:  # noqa: ANN401 - any content of the file
        """Accept a name for a method, and a list of tiles for a place."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        methods, places = content.get("methods"), content.get("places")
        if isinstance(methods, list):
            content["methods"] = [{"method": one} if isinstance(one, str) else one for one in methods]
        if isinstance(places, dict):
            content["places"] = {
                name: {"tiles": some} if isinstance(some, list) else some for name, some in places.items()
            }
        return content

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        lacking = [name for name in ("image", "nlcd", "labels") if name not in self.files]
        if lacking:
            msg = f"files need {', '.join(lacking)}: a path each, with {{tile}} in place of the tile's name"
            raise ValueError(msg)
        return self

    def to_experiment(self, *, seeds: int | None = None, **settings: Any) -> Experiment:  # noqa: ANN401
        """Return the comparison as an experiment, with other seeds or settings if given.

        Raises
        ------
        ConfigError
            If that is impossible, for example because two methods have the same name.
        """
        prior = self.prior or ("published" if "prior" in self.files else "hand")
        rows = []
        for one in self.methods:
            row = {"name": one.name or one.method, "prior": prior, **_ROWS[one.method]}
            rows.append(
                row
                | ({"options": one.options} if one.options else {})
                | ({"network": one.network} if one.network else {})
            )
        given = {name: value for name, value in settings.items() if value is not None}
        content = {
            "title": self.title,
            "about": self.about,
            "scheme": self.scheme,
            "data": {
                "kind": "files",
                "layers": {name: path.replace("{tile}", "{split}") for name, path in self.files.items()},
            },
            "regions": {
                name: {
                    "splits": {"test": list(place.tiles)},
                    "cooccurrence": place.cooccurrence,
                    "label_map": place.label_map,
                }
                for name, place in self.places.items()
            },
            "rows": rows,
            "modes": ["joint" if self.joint else "tile"],
            "seeds": seeds or self.seeds,
            "settings": self.settings.model_dump() | given,
            "panels": True,
        }
        try:
            return Experiment.model_validate(content)
        except ValidationError as error:
            raise ConfigError(explain(error, self.title)) from error


def load_comparison(name: str | Path) -> Comparison:
    """Load a comparison from the user's own YAML file or by its shipped name.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no such file or name, or it is not a valid comparison.
    """
    path = find_config(name, "comparisons")
    try:
        return Comparison.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error
