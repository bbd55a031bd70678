"""Many tiles: a plan that says which and how, and a run that any number of workers may share.

Each tile depends on its own files, the plan's settings and its name alone, so that the result is the same for any
number of shards or workers (:mod:`landprior.batch.tile_runner`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import landprior
from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.landcover.workspace import Workspace, checksum
from landprior.raster.files import open_raster, replacing
from landprior.raster.scheme import ClassScheme, explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.landcover.pipeline import PipelineSettings
    from landprior.landcover.plan import FetchPlan, FetchSettings

logger = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedTile(_Part):
    """A tile and its size in pixels."""

    name: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Recipe(_Part):
    """How every tile is mapped; all that the result hangs on besides the tile's own files."""

    scheme: ClassScheme
    cooccurrence: dict[int, tuple[float, ...]]
    cooccurrence_source: str = ""
    learned: str | None = Field(None, description="path of a learned prior")
    learned_checksum: str | None = None
    training: dict[str, Any] = Field(description="of TileSettings")
    posterior: bool = True
    label_map: dict[int, int] = {}
    threads: int = Field(1, ge=1, description="cores of a tile; sums of floats hang on how many share them")


class Fetching(_Part):
    """Where the tiles' layers come from, if they are not there yet."""

    outline: str = Field(description="WKT, degrees")
    city: str | None = Field(None, description="preset")
    settings: dict[str, Any] = Field(description="of FetchSettings")


class BatchPlan(_Part):
    """Tiles of one city of a workspace, and what is to be done with each."""

    format: Literal[1] = 1
    landprior: str = ""
    workspace: str = Field(description="absolute, or relative to the plan's file")
    city: str
    tiles: tuple[PlannedTile, ...] = Field(min_length=1)
    recipe: Recipe
    fetch: Fetching | None = None

    @property
    def digest(self) -> str:
        """A hash of what is done with the tiles; the workspace may move, and tiles be added."""
        content = {
            "city": self.city,
            "recipe": self.recipe.model_dump(mode="json", exclude={"learned", "cooccurrence_source"}),
            "fetch": None if self.fetch is None else self.fetch.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def pixels(self) -> int:
        """Of all tiles."""
        return sum(tile.width * tile.height for tile in self.tiles)


# -- plans -----------------------------------------------------------------------------------------


def describe_recipe(settings: PipelineSettings, *, learned: Path | None = None, threads: int = 1) -> Recipe:
    """Return the part of a plan that says how tiles are mapped."""
    from landprior.landcover.training import TileSettings

    return Recipe(
        scheme=settings.scheme,
        cooccurrence={code: tuple(row.tolist()) for code, row in settings.cooccurrence.probabilities.items()},
        cooccurrence_source=settings.cooccurrence.source,
        learned=None if learned is None else str(learned.resolve()),
        learned_checksum=None if learned is None else checksum(learned),
        training=(settings.training or TileSettings()).model_dump(mode="json"),
        posterior=settings.posterior,
        label_map=dict(settings.label_map),
        threads=threads,
    )


def plan_workspace(
    workspace: Workspace,
    city: str,
    settings: PipelineSettings,
    *,
    only: Sequence[str] = (),
    learned: Path | None = None,
    threads: int = 1,
) -> BatchPlan:
    """Plan the tiles of a city that are in a workspace.

    Parameters
    ----------
    workspace, city, only
        Where the tiles are; only some of them, by name.
    settings
        How they are mapped.
    learned
        Path of the learned prior that the settings have.
    threads
        Cores of each tile. Part of the plan, since the last digits of sums, and so a map's pixels, hang on it.

    Raises
    ------
    MissingInputError
        If there is no such city or tile.
    """
    tiles = []
    for tile in workspace.tiles(city, only=only):
        with open_raster(tile.require("naip", hint="every tile needs its image")) as src:
            tiles.append(PlannedTile(name=tile.name, width=src.width, height=src.height))
    return BatchPlan(
        landprior=landprior.__version__,
        workspace=str(workspace.root.resolve()),
        city=Path(city).stem if city.endswith((".yaml", ".yml")) else city,
        tiles=tuple(tiles),
        recipe=describe_recipe(settings, learned=learned, threads=threads),
    )


def plan_area(
    found: FetchPlan,
    workspace: Workspace,
    fetching: FetchSettings,
    settings: PipelineSettings,
    *,
    learned: Path | None = None,
    threads: int = 1,
) -> BatchPlan:
    """Plan the tiles of a place that is yet to be fetched; arguments as :func:`plan_workspace`."""
    preset = found.area.preset
    return BatchPlan(
        landprior=landprior.__version__,
        workspace=str(workspace.root.resolve()),
        city=found.area.name,
        tiles=tuple(
            PlannedTile(name=tile.folder.name, width=tile.grid.width, height=tile.grid.height) for tile in found.tiles
        ),
        recipe=describe_recipe(settings, learned=learned, threads=threads),
        fetch=Fetching(
            outline=found.area.outline.wkt,
            city=None if preset is None else preset.name,
            settings=fetching.model_dump(mode="json", exclude={"scheme"}),
        ),
    )


def write_plan(plan: BatchPlan, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a plan as JSON.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`landprior.raster.files.replacing`.
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Path(path)


def read_plan(path: str | Path) -> BatchPlan:
    """Read a plan.

    Raises
    ------
    MissingInputError, ConfigError
        If it is missing, or is no plan.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"no plan at {path}; make one with: landprior plan --city CITY -o {path}"
        raise MissingInputError(msg)
    try:
        plan = BatchPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = explain(error, path) if isinstance(error, ValidationError) else f"{path} is no text"
        msg = f"{reason}; a plan is made by landprior plan"
        raise ConfigError(msg) from error
    return plan.model_copy(update={"workspace": str((path.parent / plan.workspace).resolve())})


def choose_shard(plan: BatchPlan, index: int, count: int) -> BatchPlan:
    """Return every count-th tile of a plan, from the index-th (from 0) on.

    Raises
    ------
    InputError
        If there is no such shard, or it has no tile.
    """
    if not 0 <= index < count:
        msg = f"shard {index}/{count}: the index goes from 0 to {count - 1}"
        raise InputError(msg)
    tiles = plan.tiles[index::count]
    if not tiles:
        msg = f"shard {index}/{count} has no tile; the plan has {len(plan.tiles)}"
        raise InputError(msg)
    return plan.model_copy(update={"tiles": tiles})


_ARRAYS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", None),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", None),
)
"""Environment variables of batch systems: index, count, first index."""


def shard_of_environment(environment: Mapping[str, str], count: int | None = None) -> tuple[int, int]:
    """Return index (from 0) and count of the shard that a batch system has given this process.

    Raises
    ------
    InputError
        If it has given none, or does not say of how many and ``count`` does not either.
    """
    for index, size, first in _ARRAYS:
        if index in environment:
            total = count or int(environment.get(size, "0"))
            if not total:
                msg = f"{index} is set and {size} is not; say of how many: --shard auto/N"
                raise InputError(msg)
            return int(environment[index]) - int(environment.get(first, "0") if first else 0), total
    names = ", ".join(names[0] for names in _ARRAYS)
    msg = f"--shard auto: none of {names} is set; give --shard INDEX/COUNT"
    raise InputError(msg)
