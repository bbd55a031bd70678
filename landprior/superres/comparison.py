"""Comparing methods on the user's own tiles: from a short YAML to an experiment (``landprior compare``)."""

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
"""What can be compared: the prior itself, and what ``landprior train --method`` and ``self-epitome`` know."""

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
    """A method with other settings than its own, under a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: CompareName
    name: str = ""
    network: Literal["fcn", "unet"] | None = None
    options: dict[str, str | float | int | bool] = {}


class ComparedPlace(BaseModel):
    """Tiles that are scored together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: tuple[str, ...] = Field(min_length=1)
    cooccurrence: str | None = None
    label_map: dict[int, int] = {}


class Comparison(BaseModel):
    """What is compared, on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Methods compared"
    about: str = ""
    scheme: str
    files: dict[str, str] = Field(
        description="layer -> path with {tile}; image, nlcd and labels, and what else there is"
    )
    places: dict[str, ComparedPlace] = Field(min_length=1)
    methods: tuple[ComparedMethod, ...] = tuple(ComparedMethod(method=name) for name in COMPARE_NAMES)
    prior: PriorKind | None = Field(None, description="published: the files' own; by default that if there is one")
    seeds: int = Field(3, ge=1, le=1000)
    joint: bool = Field(default=True, description="one model for the tiles of a place, not one for each")
    settings: Settings = Settings()

    @model_validator(mode="before")
    @classmethod
    def _take_short_forms(cls, content: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Let a method be its name, and a place the list of its tiles."""
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
            msg = f"files need {', '.join(lacking)}: a path each, with {{tile}} where the tile's name stands"
            raise ValueError(msg)
        return self

    def to_experiment(self, *, seeds: int | None = None, **settings: Any) -> Experiment:  # noqa: ANN401
        """Return the experiment that it is, with other seeds or settings if any are given.

        Raises
        ------
        ConfigError
            If it is none, for instance because two methods have one name.
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
    """Load the user's own YAML by path, or a shipped comparison by name.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no such file or name, or it is no valid comparison.
    """
    path = find_config(name, "comparisons")
    try:
        return Comparison.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error
