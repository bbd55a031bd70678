"""Definition of an experiment in YAML: its data, regions, rows, and the published figures to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from landprior.errors import ConfigError
from landprior.implicit.settings import IMPLICIT, LossName
from landprior.raster.scheme import explain
from landprior.resources import find_config, read_yaml, shipped_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Method = Literal["prior", "supervised", "weak", "rival", "external"]
"""What a row does: map the prior itself; fit labels; fit the prior of the place; map it by another method, passed to
the runner by name; or score a map made elsewhere."""

Mode = Literal["joint", "tile"]
"""One model over all tiles of a region, as in the paper, or one per tile."""

PriorKind = Literal["published", "nlcd", "hand", "learned"]
"""The prior: the file that comes with the data; NLCD alone; with layers added by hand; or fused by a learned prior."""

View = Literal["all", "merged", "reassigned"]
"""How to score: all classes; with the classes of ``merge`` as one; or with confusion between those classes counted as
correct (Table E.2: all five classes, four, and barren reassigned)."""

Rate = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Region(_Part):
    """A place with splits (name -> names of the data set's own splits), or several such places pooled (``of``)."""

    title: str = ""
    splits: dict[str, tuple[str, ...]] = {}
    of: tuple[str, ...] = ()
    cooccurrence: str | None = Field(None, description="shipped name or path within the data; default: the scheme's")
    measure: tuple[str, ...] = Field((), description="splits on which to measure the matrix instead")
    label_map: dict[int, int] = {}
    first: int | None = Field(None, ge=1, description="use only this many tiles of a split")
    leave_out: tuple[int, ...] = Field((), description="leave out tiles whose labels contain one of these codes")


class Data(_Part):
    """Where tiles come from: directories laid out as by torchgeo, or files named by a pattern."""

    kind: Literal["enviroatlas", "chesapeake", "files"]
    layers: dict[str, str] = Field({}, description="files: layer -> path with {split}")
    halves: bool = Field(False, description="files: cut each into a left and a right half (two tiles)")

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        if (self.kind == "files") != bool(self.layers):
            msg = "layers (with image, nlcd, labels, ...) must be given for kind: files, and only there"
            raise ValueError(msg)
        lacking = [name for name in ("image", "labels") if self.layers and name not in self.layers]
        wrong = [path for path in self.layers.values() if not _is_pattern(path, "split")]
        if lacking or wrong:
            msg = (
                f"layers need {lacking[0]}"
                if lacking
                else f"{wrong[0]!r} may contain no placeholder other than {{split}}"
            )
            raise ValueError(msg)
        return self


class Learned(_Part):
    """The tiles a prior is learned on: other tiles of the same region, other regions, or a split of the region."""

    source: str = "siblings"
    filters: int = Field(128, ge=1)
    steps: int = Field(300, ge=1)
    learning_rate: Rate = 1e-3

    def limit(self, settings: Settings) -> Learned:
        """Return a copy no larger than the settings allow for networks, where they set a limit."""
        bounds = {"filters": settings.filters, "steps": settings.steps}
        small = {name: min(getattr(self, name), most) for name, most in bounds.items() if most is not None}
        return self.model_copy(update=small)


class Tuning(_Part):
    """Choose the learning rate on a region that is not scored, by the accuracy of r (of q for labels) there."""

    region: str
    split: str = "test"
    rates: tuple[Rate, ...] = Field(min_length=2)


class Row(_Part):
    """One row of a table."""

    name: str = Field(min_length=1)
    method: Method
    loss: LossName | None = Field(None, description="by default qr, and ce for labels")
    train: str = Field("", description="supervised: region/split, or 'others': the other regions' tests")
    inputs: tuple[Literal["image", "prior"], ...] = ("image",)
    prior: PriorKind = "hand"
    learned: Learned = Learned()
    init: str | None = Field(None, description="name of a supervised row whose model is the starting point")
    maps: tuple[Literal["prior", "q", "r"], ...] = ()
    learning_rate: Rate | None = Field(None, description="for the recipe of the experiment or of the row")
    tune: Tuning | None = None
    recipe: Literal["paper", "default", "best"] | None = None
    rival: str = Field("", description="rival: name of the method")
    options: dict[str, str | float | int | bool] = Field({}, description="rival: settings of the method")
    network: Literal["fcn", "unet"] | None = None
    regions: tuple[str, ...] = ()
    path: str = Field("", description="external: paths of map files, with {region}, {split} and {tile}")
    map_map: dict[int, int] = {}
    optional: bool = Field(default=False, description="external: skip the row if its maps are missing")
    published: dict[str, dict[str, tuple[float | None, float | None]]] = Field(
        {}, description="region -> map -> (accuracy, mean IoU), percent"
    )

    @property
    def scored_maps(self) -> tuple[str, ...]:
        """Maps that are scored."""
        return self.maps or _MAPS[self.method]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        problems = {
            "give its training tiles, train: region/split, or others": self.method == "supervised" and not self.train,
            "give the paths of its maps, path: ...": self.method == "external" and not self.path,
            "name the method, rival: ...": self.method == "rival" and not self.rival,
            "rival and options are for rows of method rival": self.method != "rival"
            and bool(self.rival or self.options),
            "inputs need the image": "image" not in self.inputs,
            f"a row of method {self.method} has the maps {', '.join(_MAPS[self.method])}": (
                not set(self.maps) <= set(_MAPS[self.method])
            ),
            "train is for rows of method supervised": self.method != "supervised" and bool(self.train),
            "inputs are for rows of method supervised": self.method != "supervised" and self.inputs != ("image",),
            "init is for rows of method weak": self.method != "weak" and self.init is not None,
            "give a learning_rate or tune, not both": self.learning_rate is not None and self.tune is not None,
            f"{self.loss} is for priors; a row of labels is trained with ce or ce-argmax": (
                self.method == "supervised" and self.loss in IMPLICIT
            ),
            "its path may contain only {region}, {split} and {tile}": not _is_pattern(
                self.path, "region", "split", "tile"
            ),
        }
        for text, wrong in problems.items():
            if wrong:
                msg = f"row {self.name!r}: {text}"
                raise ValueError(msg)
        return self

    @property
    def objective(self) -> LossName:
        """Loss that the row is trained with."""
        return self.loss or ("ce" if self.method == "supervised" else "qr")


_MAPS: dict[str, tuple[str, ...]] = {
    "prior": ("prior",),
    "supervised": ("q",),
    "weak": ("q", "r"),
    "rival": ("q",),
    "external": ("q",),
}
"""Maps that each method gives."""


def _is_pattern(pattern: str, *names: str) -> bool:
    """Return whether a pattern contains no placeholders other than these names."""
    try:
        pattern.format(**dict.fromkeys(names, ""))
    except (KeyError, ValueError, IndexError):
        return False
    return True


class Settings(_Part):
    """How everything is trained: a recipe, and changes to it."""

    recipe: Literal["paper", "default", "best"] = "default"
    steps: int | None = Field(None, ge=1)
    filters: int | None = Field(None, ge=1)
    patch_size: int | None = Field(None, ge=11)
    batch_size: int | None = Field(None, ge=1)


class Experiment(_Part):
    """A whole experiment."""

    title: str
    about: str = ""
    source: str = Field("", description="where the published figures come from")
    scheme: str
    data: Data
    regions: dict[str, Region] = Field(min_length=1)
    scored: tuple[str, ...] = Field((), description="regions to score, one column each; by default all")
    elsewhere: tuple[str, ...] = Field((), description="regions that 'others' chooses from; by default those scored")
    rows: tuple[Row, ...] = Field(min_length=1)
    modes: tuple[Mode, ...] = ("joint", "tile")
    seeds: int = Field(1, ge=1, le=1000)
    settings: Settings = Settings()
    views: tuple[View, ...] = ("all",)
    merge: tuple[str, str] | None = Field(None, description="two classes to merge: (into, from)")
    panels: bool = Field(False, description="draw the maps of the first tile side by side, instead of dots")

    @property
    def columns(self) -> tuple[str, ...]:
        """The regions that are scored."""
        return self.scored or tuple(self.regions)

    def members(self, region: str) -> tuple[str, ...]:
        """Return the regions that a region is made of; usually just itself."""
        return self.regions[region].of or (region,)

    def others(self, region: str) -> tuple[str, ...]:
        """Return the regions that share no tiles with a region, for training elsewhere.

        Raises
        ------
        ConfigError
            If there are none.
        """
        own = set(self.members(region))
        found = [m for name in self.elsewhere or self.columns for m in self.members(name) if m not in own]
        if not found:
            msg = f"there is no region other than {region!r} to train on (elsewhere: [...] names them)"
            raise ConfigError(msg)
        return tuple(dict.fromkeys(found))

    def select(
        self, *, rows: Sequence[str] = (), regions: Sequence[str] = (), external: Mapping[str, str] | None = None
    ) -> Experiment:
        """Return the experiment with only some rows and regions, and with extra maps to score.

        Parameters
        ----------
        rows
            Names of the rows to keep; if empty, all. A row that another one starts from is always kept.
        regions
            Names of the regions to score; none: all.
        external
            Row name -> path of maps made elsewhere, with ``{region}``, ``{split}`` and ``{tile}``.

        Returns
        -------
        Experiment
            A copy.

        Raises
        ------
        ConfigError
            If there is no such row or region.
        """
        content = self.model_dump(mode="json")
        for requested, known, what in (
            (rows, [row.name for row in self.rows], "row"),
            (regions, self.columns, "region"),
        ):
            wrong = [name for name in requested if name not in known]
            if wrong:
                msg = f"{wrong[0]!r} is not a {what} of this experiment ({', '.join(known)})"
                raise ConfigError(msg)
        if rows:
            wanted = {*rows, *(row.init for row in self.rows if row.name in rows)}
            content["rows"] = [row for row in content["rows"] if row["name"] in wanted]
        if regions:
            content["scored"], content["elsewhere"] = list(regions), list(self.elsewhere or self.columns)
            content["rows"] = [
                row | {"regions": [name for name in row["regions"] if name in regions]}
                for row in content["rows"]
                if not row["regions"] or set(row["regions"]) & set(regions)
            ]
        for name, path in (external or {}).items():
            known_row = next((row for row in content["rows"] if row["name"] == name), {"name": name})
            changed = known_row | {"method": "external", "path": path, "optional": False, "maps": []}
            content["rows"] = [row for row in content["rows"] if row["name"] != name] + [changed]
        try:
            return type(self).model_validate(content)
        except ValidationError as error:
            raise ConfigError(explain(error, self.title)) from error

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            msg = "rows must have different names"
            raise ValueError(msg)
        mentioned = [*self.scored, *self.elsewhere, *(r for region in self.regions.values() for r in region.of)]
        for row in self.rows:
            mentioned += [*row.regions, *row.published]
            mentioned += [row.train.partition("/")[0]] if row.train and row.train != "others" else []
            mentioned += [row.tune.region] if row.tune else []
            above = [other.name for other in self.rows[: names.index(row.name)] if other.method == "supervised"]
            if row.init is not None and row.init not in above:
                msg = f"row {row.name!r} starts from {row.init!r}, which is not a supervised row above it"
                raise ValueError(msg)
        missing = [name for name in mentioned if name not in self.regions]
        if missing:
            msg = f"{missing[0]!r} is not a region of this experiment ({', '.join(self.regions)})"
            raise ValueError(msg)
        self._check_separation()
        if set(self.views) - {"all"} and self.merge is None:
            msg = "views other than 'all' need merge: [into, from]"
            raise ValueError(msg)
        return self

    def _check_separation(self) -> None:
        """Raise an error if a matrix is measured, or a learning rate chosen, on tiles that are scored."""
        scored = {member for column in self.columns for member in self.members(column)}
        tests = {split for name in scored for split in self.regions[name].splits.get("test", ())}
        for name, region in self.regions.items():
            if name in scored and tests & {own for split in region.measure for own in region.splits.get(split, ())}:
                msg = f"region {name!r}: its matrix would be measured on the tiles that are scored"
                raise ValueError(msg)
        for row in self.rows:
            if row.tune is None or row.tune.region not in self.regions:
                continue
            chosen = self.members(row.tune.region)
            if tests & {own for name in chosen for own in self.regions[name].splits.get(row.tune.split, ())}:
                msg = f"row {row.name!r}: its learning rate would be chosen on tiles that are scored"
                raise ValueError(msg)


def load_experiment(name: str | Path, **changes: Any) -> Experiment:  # noqa: ANN401 - the fields
    """Load a shipped experiment by name or a YAML file by path.

    If ``changes`` replaces the recipe, the learning rates of the file's rows are dropped, because they belong to the
    old recipe's schedule. Fewer steps or filters also apply to learned priors.

    Parameters
    ----------
    name
        ``"table-1"``, or a path.
    **changes
        Fields to replace; fields of ``settings`` are replaced one by one.

    Returns
    -------
    Experiment
        The checked experiment.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no such file or name, or it is not valid.
    """
    path = find_config(name, "experiments")
    content = read_yaml(path)
    settings = dict(content.get("settings") or {}) | changes.pop("settings", {})
    try:
        own = Experiment.model_validate(content)
        found = Experiment.model_validate(content | {"settings": settings} | changes)
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from error
    rates: dict[str, Any] = (
        {} if found.settings.recipe == own.settings.recipe else {"learning_rate": None, "tune": None}
    )
    small = found.settings.model_copy(
        update={
            name: None for name in ("steps", "filters") if getattr(found.settings, name) == getattr(own.settings, name)
        }
    )
    rows = [
        row.model_copy(update={"learned": row.learned.limit(small)} | (rates if row.recipe is None else {}))
        for row in found.rows
    ]
    return found.model_copy(update={"rows": tuple(rows)})


def list_experiments() -> list[str]:
    """Return the names of the shipped experiments."""
    return shipped_names("experiments")
