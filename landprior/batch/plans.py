"""Plans of many tiles and their settings, which any number of workers can run together.

Each tile depends only on its own files, the plan's settings and its name, so that the result is the same for any
number of shards or workers (:mod:`landprior.batch.tile_runner`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import shapely
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from shapely.geometry import box

import landprior
from landprior.batch.points import PlannedPoints
from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.inputs import checksum, read_text
from landprior.landcover.prior.settings import PriorSettings  # noqa: TC001 - pydantic reads it
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.city import CityRef, find_city
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.landcover.workspace.groups import Group, divide_tiles, name_model
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.endings import check_named_output
from landprior.raster.grid import Grid
from landprior.raster.outputs import replacing
from landprior.raster.reading import open_raster
from landprior.raster.scheme import MAP_NODATA, ClassScheme, explain
from landprior.sources.areas import Area
from landprior.sources.cities import CityPreset, list_cities, load_city
from landprior.sources.folder_names import check_component

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.landcover.workspace.place_points import PointFiles
    from landprior.landcover.workspace.settings import PipelineSettings


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


FORMAT = 1
"""Version of the plan format; others are rejected."""

MOST_THREADS = 1024
"""Maximum number of cores per tile."""

Side = Annotated[int, Field(ge=1, le=10_000_000)]


class PlannedTile(_Part):
    """A tile and its size in pixels."""

    name: Annotated[str, AfterValidator(check_component)]
    width: Side
    height: Side


class Recipe(_Part):
    """Settings of every tile: everything the result depends on except the tile's own files."""

    scheme: ClassScheme
    cooccurrence: dict[int, tuple[float, ...]]
    cooccurrence_pixels: dict[int, int] = Field({}, description="number of fine pixels behind a row, as its weight")
    cooccurrence_source: str = ""
    learned: str | None = Field(None, description="path of a learned prior")
    learned_checksum: str | None = None
    prior: PriorSettings | None = Field(None, description="how layers join NLCD, and the blur; none for the defaults")
    training: dict[str, Any] = Field(description="fields of TileSettings")
    posterior: bool = True
    label_map: dict[int, int] = {}
    threads: int = Field(
        1, ge=1, le=MOST_THREADS, description="cores per tile; sums of floats depend on the number of cores"
    )

    @model_validator(mode="after")
    def _is_of_the_scheme(self) -> Recipe:
        for code, row in self.cooccurrence.items():
            good = len(row) == len(self.scheme) and all(0 <= value <= 1 for value in row)
            if not good or not 0 <= code <= MAP_NODATA or abs(sum(row) - 1) > 1e-3:
                msg = f"cooccurrence of code {code} is not {len(self.scheme)} probabilities that sum to 1"
                raise ValueError(msg)
        return self


class Fetching(_Part):
    """Sources of the tiles' layers, if they are still to be fetched."""

    outline: str = Field(description="WKT, degrees")
    city: str | None = Field(None, description="shipped preset")
    preset: CityPreset | None = Field(None, description="the user's own preset")
    settings: dict[str, Any] = Field(description="fields of FetchSettings")


def _check_city(name: str) -> str:
    return check_component(name, "a city")


class BatchPlan(_Part):
    """Tiles of one city of a workspace, and how to map them."""

    format: Literal[1] = 1
    landprior: str = ""
    workspace: str = Field(min_length=1, description="absolute path, or relative to the plan's file")
    city: Annotated[str, AfterValidator(_check_city)]
    tiles: tuple[PlannedTile, ...] = Field(min_length=1)
    recipe: Recipe
    groups: tuple[tuple[str, ...], ...] = Field((), description="names of the tiles that share each model, if they do")
    fetch: Fetching | None = None
    points: PlannedPoints | None = Field(None, description="points to which the models are adapted")

    @field_validator("workspace")
    @classmethod
    def _is_a_path(cls, workspace: str) -> str:
        if not workspace.isprintable():
            msg = "a path may not contain control characters"
            raise ValueError(msg)
        return workspace

    @field_validator("tiles")
    @classmethod
    def _check_unique(cls, tiles: tuple[PlannedTile, ...]) -> tuple[PlannedTile, ...]:
        twice = [name for name, count in Counter(tile.name for tile in tiles).items() if count > 1]
        if twice:
            msg = f"{twice[0]} is listed twice"
            raise ValueError(msg)
        return tiles

    @model_validator(mode="after")
    def _is_divided(self) -> BatchPlan:
        grouped = Counter(name for names in self.groups for name in names)
        twice = [name for name, count in grouped.items() if count > 1]
        if twice or (self.groups and not {tile.name for tile in self.tiles} <= set(grouped)):
            msg = "each tile must be in exactly one of the groups"
            raise ValueError(msg)
        for name in grouped:
            check_component(name, "a tile")
        if self.points is not None and not {*self.points.tiles} <= {tile.name for tile in self.tiles}:
            msg = "each tile with points must be a tile of the plan"
            raise ValueError(msg)
        return self

    def find_groups(self) -> list[Group]:
        """Return the groups of tiles that share a model and have a tile in this plan; none if each has its own."""
        there = {tile.name for tile in self.tiles}
        return [self._group(number) for number, names in enumerate(self.groups) if there & {*names}]

    def find_group(self, name: str) -> Group | None:
        """Return the group of a tile; None if it has a model of its own."""
        return next((self._group(number) for number, names in enumerate(self.groups) if name in names), None)

    def _group(self, number: int) -> Group:
        folder = Path(self.workspace) / self.city
        tiles = tuple(TileFolder(path=folder / name, city=self.city) for name in self.groups[number])
        return Group(tiles, folder / name_model(number, len(self.groups)))

    @property
    def digest(self) -> str:
        """A hash of the settings and groups; independent of the workspace's path and, without groups, of the tiles."""
        left_out = {"learned", "cooccurrence_source"}
        # fields of later versions: if unset, the hash of a plan is unchanged
        left_out |= set() if self.recipe.cooccurrence_pixels else {"cooccurrence_pixels"}
        left_out |= set() if self.recipe.prior else {"prior"}
        own = self.fetch is not None and self.fetch.preset is not None
        content = {
            "city": self.city,
            "recipe": self.recipe.model_dump(mode="json", exclude=left_out),
            "fetch": None
            if self.fetch is None
            else self.fetch.model_dump(mode="json", exclude=set() if own else {"preset"}),
            **({"groups": self.groups} if self.groups else {}),
            **({"points": self.points.describe()} if self.points else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def pixels(self) -> int:
        """Number of pixels of all tiles."""
        return sum(tile.width * tile.height for tile in self.tiles)


# -- plans -----------------------------------------------------------------------------------------


def describe_recipe(settings: PipelineSettings, *, learned: Path | None = None, threads: int = 1) -> Recipe:
    """Return the part of a plan with the settings of mapping.

    Parameters
    ----------
    settings
        Settings of mapping.
    learned
        Path of the learned prior in the settings.
    threads
        Cores per tile.

    Returns
    -------
    Recipe
        The settings with the matrix and checksums, so that no other file but the learned prior is needed.
    """
    return Recipe(
        scheme=settings.scheme,
        cooccurrence={code: tuple(row.tolist()) for code, row in settings.cooccurrence.probabilities.items()},
        cooccurrence_pixels={code: int(count) for code, count in settings.cooccurrence.pixels.items()},
        cooccurrence_source=settings.cooccurrence.source,
        learned=None if learned is None else str(learned.resolve()),
        learned_checksum=None if learned is None else checksum(learned),
        prior=settings.prior,
        training=(settings.training or TileSettings()).model_dump(mode="json"),
        posterior=settings.posterior,
        label_map=dict(settings.label_map),
        threads=threads,
    )


def plan_workspace(
    workspace: Workspace,
    city: str | CityRef,
    settings: PipelineSettings,
    *,
    only: Sequence[str] = (),
    learned: Path | None = None,
    threads: int = 1,
    points: PointFiles | None = None,
) -> BatchPlan:
    """Plan the tiles of a city that are in a workspace.

    Parameters
    ----------
    workspace, city, only
        Workspace and city of the tiles, and optionally the names of some.
    settings, learned
        Settings of mapping, and the path of their learned prior.
    threads
        Cores per tile. Part of the plan, because the last digits of sums, and so a map's pixels, depend on it.
    points
        Points to which the models are adapted.

    Returns
    -------
    BatchPlan
        The plan, with tiles in the order of their names.

    Raises
    ------
    MissingInputError
        If there is no such city or tile.
    InputError
        See :func:`landprior.landcover.workspace.place_points.find_points`.
    """
    place = find_city(city, workspace.root)
    grids = {}
    for tile in workspace.tiles(place, only=only):
        with open_raster(tile.require("naip", hint="every tile needs its image")) as src:
            grids[tile.name] = Grid.of(src)
    return BatchPlan(
        landprior=landprior.__version__,
        workspace=str(workspace.root.resolve()),
        city=place.name,
        tiles=_list_tiles(grids),
        groups=_divide(grids, settings),
        recipe=describe_recipe(settings, learned=learned, threads=threads),
        points=None if points is None else PlannedPoints.of(points.find(grids, settings.scheme)),
    )


def plan_area(
    found: FetchPlan,
    workspace: Workspace,
    fetching: FetchSettings,
    settings: PipelineSettings,
    *,
    learned: Path | None = None,
    threads: int = 1,
    points: PointFiles | None = None,
) -> BatchPlan:
    """Plan the tiles of a place that is still to be fetched.

    Parameters
    ----------
    found
        The tiles as laid out by fetch.
    workspace
        Workspace for the tiles.
    fetching
        Sources and settings of the fetch.
    settings, learned, threads, points
        See :func:`plan_workspace`.

    Returns
    -------
    BatchPlan
        The plan; each worker fetches the tiles that it maps.
    """
    preset = found.area.preset
    shipped = preset is not None and preset.name in list_cities() and load_city(preset.name) == preset
    grids = {tile.folder.name: tile.grid for tile in found.tiles}
    return BatchPlan(
        landprior=landprior.__version__,
        workspace=str(workspace.root.resolve()),
        city=found.area.name,
        tiles=_list_tiles(grids),
        groups=_divide(grids, settings),
        recipe=describe_recipe(settings, learned=learned, threads=threads),
        points=None if points is None else PlannedPoints.of(points.find(grids, settings.scheme)),
        fetch=Fetching(
            outline=found.area.outline.wkt,
            city=preset.name if preset is not None and shipped else None,
            preset=None if shipped else preset,
            settings=fetching.make_absolute().model_dump(mode="json", exclude={"scheme"}),
        ),
    )


def _list_tiles(grids: Mapping[str, Grid]) -> tuple[PlannedTile, ...]:
    return tuple(PlannedTile(name=name, width=grid.width, height=grid.height) for name, grid in grids.items())


def _divide(grids: Mapping[str, Grid], settings: PipelineSettings) -> tuple[tuple[str, ...], ...]:
    return tuple(divide_tiles(grids, settings.group)) if settings.joint else ()


def write_plan(plan: BatchPlan, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a plan as JSON.

    Parameters
    ----------
    plan, path, overwrite
        The plan to write, a file that ends in ``.json``, and whether it may replace an existing one.

    Returns
    -------
    Path
        The plan's file.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.endings.check_named_output`.
    """
    target = check_named_output(path, "plan", overwrite=overwrite)
    with replacing(target, overwrite=overwrite) as temporary:
        temporary.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return target


def read_plan(path: str | Path) -> BatchPlan:
    """Read a plan.

    Raises
    ------
    MissingInputError, ConfigError
        If the file is missing or is not a plan.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except MissingInputError as error:
        msg = f"no plan at {path}; make one with: landprior plan --city CITY -o {path}"
        raise MissingInputError(msg) from error
    except InputError as error:
        msg = f"{error}; a plan is made by landprior plan"
        raise ConfigError(msg) from error
    try:
        _require_format(text)
        plan = BatchPlan.model_validate_json(text)
        if plan.fetch is not None:
            parse_fetch(plan)
    except ValidationError as error:
        msg = f"{explain(error, path)}; a plan is made by landprior plan"
        raise ConfigError(msg) from error
    except (InputError, MissingInputError) as error:
        msg = f"{path}: {error}; a plan is made by landprior plan"
        raise ConfigError(msg) from error
    return plan.model_copy(update={"workspace": str((path.parent / plan.workspace).resolve())})


def _require_format(text: str) -> None:
    """Raise an error for a plan of another version, before anything else is checked."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return  # pydantic reports the place
    version = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    if version != FORMAT or isinstance(version, bool):
        msg = f"the plan has format {str(version)[:20]}, but this version of landprior reads format {FORMAT}"
        raise ConfigError(msg)


def parse_fetch(plan: BatchPlan) -> tuple[Area, FetchSettings]:
    """Return the place that a plan fetches, and the settings of the fetch.

    Raises
    ------
    ConfigError
        If it fetches nothing, its settings or its outline (a polygon in degrees) are invalid, or its preset is unknown.
    """
    if plan.fetch is None:
        msg = "this plan fetches nothing"
        raise ConfigError(msg)
    try:
        settings = FetchSettings.model_validate(plan.fetch.settings | {"scheme": plan.recipe.scheme, "jobs": 1})
    except ValidationError as error:
        raise ConfigError(explain(error, "fetch.settings")) from error
    preset = plan.fetch.preset
    if preset is None and plan.fetch.city is not None:
        preset = load_city(check_component(plan.fetch.city, "a city"))
    try:
        outline = shapely.from_wkt(plan.fetch.outline)
    except shapely.errors.ShapelyError as error:
        msg = "fetch.outline is not WKT"
        raise ConfigError(msg) from error
    inside = outline is not None and not outline.is_empty and box(-360, -90, 360, 90).covers(outline)
    if not inside or outline.geom_type not in ("Polygon", "MultiPolygon"):
        msg = "fetch.outline is not a polygon in degrees"
        raise ConfigError(msg)
    return Area(name=plan.city, outline=outline, preset=preset), settings


def parse_training(plan: BatchPlan) -> TileSettings:
    """Return the training settings of a plan.

    Raises
    ------
    ConfigError
        If its settings are invalid.
    """
    try:
        return TileSettings.read(plan.recipe.training)
    except ValidationError as error:
        msg = f"{explain(error, 'the plan: recipe.training')}; a plan is made by landprior plan"
        raise ConfigError(msg) from error
