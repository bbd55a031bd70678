"""What an experiment is: its data, its regions, its rows, and the published figures to compare with, as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from landprior.errors import ConfigError
from landprior.implicit.losses import IMPLICIT, LossName
from landprior.raster.scheme import explain
from landprior.resources import find_config, read_yaml, shipped_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Method = Literal["prior", "supervised", "weak", "external"]
"""Map the prior itself; fit labels; fit the prior of the place; score a map that somebody else made."""

Mode = Literal["joint", "tile"]
"""One model over all tiles of a region, as the paper has it, or one per tile."""

PriorKind = Literal["published", "nlcd", "hand", "learned"]
"""The file that comes with the data; NLCD alone; with the layers added by hand; fused by a learned prior."""

View = Literal["all", "merged", "reassigned"]
"""Score all classes; with the classes of ``merge`` as one; or with errors between those classes counted right
(Table E.2: all five classes, four, and barren reassigned)."""

Rate = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Region(_Part):
    """A place with splits: name -> names of the data set's own splits; or several such places as one (``of``)."""

    title: str = ""
    splits: dict[str, tuple[str, ...]] = {}
    of: tuple[str, ...] = ()
    cooccurrence: str | None = Field(None, description="a shipped name or a path within the data; null: the scheme's")
    measure: tuple[str, ...] = Field((), description="splits on which to measure the matrix instead")
    label_map: dict[int, int] = {}
    first: int | None = Field(None, ge=1, description="only so many tiles of a split")
    leave_out: tuple[int, ...] = Field((), description="tiles whose labels have one of these codes are left out")


class Data(_Part):
    """Where tiles come from: torchgeo's layouts, or files named by a pattern."""

    kind: Literal["enviroatlas", "chesapeake", "files"]
    layers: dict[str, str] = Field({}, description="files: layer -> path with {split}")
    halves: bool = Field(False, description="files: cut each into a left and a right half, two tiles")

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        if (self.kind == "files") != bool(self.layers):
            msg = "layers (with image, nlcd, labels, ...) are for kind: files, and needed there"
            raise ValueError(msg)
        return self


class Learned(_Part):
    """On what a prior is learned: the other tiles of the same region, other regions, or a split of the region."""

    source: str = "siblings"
    filters: int = Field(128, ge=1)
    steps: int = Field(300, ge=1)
    learning_rate: Rate = 1e-3


class Tuning(_Part):
    """Choose the learning rate on a region, by the accuracy of r (of q for labels) there."""

    region: str
    split: str = "test"
    rates: tuple[Rate, ...] = Field(min_length=2)


class Row(_Part):
    """One line of a table."""

    name: str = Field(min_length=1)
    method: Method
    loss: LossName = "qr"
    train: str = Field("", description="supervised: region/split, or 'others': the other regions' tests")
    inputs: tuple[Literal["image", "prior"], ...] = ("image",)
    prior: PriorKind = "hand"
    learned: Learned = Learned()
    init: str | None = Field(None, description="name of a supervised row to start from")
    maps: tuple[Literal["prior", "q", "r"], ...] = ()
    learning_rate: Rate | None = None
    tune: Tuning | None = None
    recipe: Literal["paper", "default", "best"] | None = None
    regions: tuple[str, ...] = ()
    path: str = Field("", description="external: map files, with {region}, {split} and {tile}")
    map_map: dict[int, int] = {}
    optional: bool = Field(default=False, description="external: leave the row out where its maps are not there")
    published: dict[str, dict[str, tuple[float | None, float | None]]] = Field(
        {}, description="region -> map -> (accuracy, mean IoU), percent"
    )

    @property
    def shown(self) -> tuple[str, ...]:
        """Which maps are scored."""
        return (
            self.maps
            or {"prior": ("prior",), "supervised": ("q",), "weak": ("q", "r"), "external": ("q",)}[self.method]
        )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.method == "supervised" and not self.train:
            msg = f"row {self.name!r}: say on what it is trained, train: region/split, or others"
            raise ValueError(msg)
        if self.method == "external" and not self.path:
            msg = f"row {self.name!r}: say where its maps are, path: ..."
            raise ValueError(msg)
        if "image" not in self.inputs:
            msg = f"row {self.name!r}: inputs need the image"
            raise ValueError(msg)
        if self.method == "supervised" and self.loss in IMPLICIT:
            object.__setattr__(self, "loss", "ce")
        return self


class Settings(_Part):
    """How everything is trained: a recipe, and what to change of it."""

    recipe: Literal["paper", "default", "best"] = "default"
    steps: int | None = Field(None, ge=1)
    filters: int | None = Field(None, ge=1)
    patch_size: int | None = Field(None, ge=11)
    batch_size: int | None = Field(None, ge=1)


class Experiment(_Part):
    """A whole experiment."""

    title: str
    about: str = ""
    source: str = Field("", description="where the published figures stand")
    scheme: str
    data: Data
    regions: dict[str, Region] = Field(min_length=1)
    scored: tuple[str, ...] = Field((), description="regions that are columns; all by default")
    rows: tuple[Row, ...] = Field(min_length=1)
    modes: tuple[Mode, ...] = ("joint", "tile")
    seeds: int = Field(1, ge=1)
    settings: Settings = Settings()
    views: tuple[View, ...] = ("all",)
    merge: tuple[str, str] | None = Field(None, description="class that takes another in: (into, from)")
    panels: bool = Field(False, description="draw the maps of the first tile side by side, instead of dots")

    @property
    def columns(self) -> tuple[str, ...]:
        """The regions that are scored."""
        return self.scored or tuple(self.regions)

    def narrowed(
        self, *, rows: Sequence[str] = (), regions: Sequence[str] = (), external: Mapping[str, str] | None = None
    ) -> Experiment:
        """Return the experiment with some rows and regions only, and with further maps of others to score.

        Raises
        ------
        ConfigError
            If it has no such row or region.
        """
        content = self.model_dump(mode="json")
        for asked, known, what in ((rows, [row.name for row in self.rows], "row"), (regions, self.columns, "region")):
            wrong = [name for name in asked if name not in known]
            if wrong:
                msg = f"{wrong[0]!r} is no {what} of this experiment ({', '.join(known)})"
                raise ConfigError(msg)
        if rows:
            wanted = {*rows, *(row.init for row in self.rows if row.name in rows)}
            content["rows"] = [row for row in content["rows"] if row["name"] in wanted]
        if regions:
            content["scored"] = list(regions)
            content["rows"] = [
                row | {"regions": [name for name in row["regions"] if name in regions]}
                for row in content["rows"]
                if not row["regions"] or set(row["regions"]) & set(regions)
            ]
        for name, path in (external or {}).items():
            known_row = next((row for row in content["rows"] if row["name"] == name), {"name": name})
            changed = known_row | {"method": "external", "path": path, "optional": False}
            content["rows"] = [row for row in content["rows"] if row["name"] != name] + [changed]
        try:
            return type(self).model_validate(content)
        except ValidationError as error:
            raise ConfigError(explain(error, self.title)) from error

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            msg = "rows must have different names"
            raise ValueError(msg)
        asked = [*self.scored, *(r for region in self.regions.values() for r in region.of)]
        for row in self.rows:
            asked += [*row.regions, *row.published]
            asked += [row.train.partition("/")[0]] if row.train and row.train != "others" else []
            asked += [row.tune.region] if row.tune else []
            if row.init is not None and row.init not in names[: names.index(row.name)]:
                msg = f"row {row.name!r} starts from {row.init!r}, which is no row above it"
                raise ValueError(msg)
        missing = [name for name in asked if name not in self.regions]
        if missing:
            msg = f"{missing[0]!r} is no region of this experiment ({', '.join(self.regions)})"
            raise ValueError(msg)
        if set(self.views) - {"all"} and self.merge is None:
            msg = "views other than 'all' need merge: [into, from]"
            raise ValueError(msg)
        return self


def load_experiment(name: str | Path, **changes: Any) -> Experiment:  # noqa: ANN401 - the fields
    """Load a shipped experiment by name, or the user's own YAML by path.

    Parameters
    ----------
    name
        ``"table-1"``, or a path.
    **changes
        Fields to replace; those of ``settings`` one by one.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no such file or name, or it is not a valid experiment.
    """
    path = find_config(name, "experiments")
    content = read_yaml(path)
    settings = dict(content.get("settings") or {}) | changes.pop("settings", {})
    try:
        return Experiment.model_validate(content | {"settings": settings} | changes)
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error


def list_experiments() -> list[str]:
    """List the shipped experiments."""
    return shipped_names("experiments")
