"""The whole chain over a workspace: build-prior, train, predict, evaluate, each run only where needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.workspace.groups import Group, make_groups
from landprior.landcover.workspace.steps import (
    ensure_joint_model,
    ensure_map,
    ensure_model,
    ensure_prior,
    require_own_results,
    score_tile,
)
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.assessment.scores import Scores
    from landprior.landcover.training.methods import Method
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.settings import PipelineSettings

logger = logging.getLogger(__name__)


Step = Literal["prior", "model", "map", "scores"]

STEPS: tuple[Step, ...] = ("prior", "model", "map", "scores")
"""The steps of the chain for a tile, or for a group of tiles that share a model."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step.

    Parameters
    ----------
    step
        The step.
    path
        Path of its file; for scores, of the map that was scored.
    scores
        Scores of the step ``"scores"``.
    """

    step: Step
    path: Path
    scores: Scores | None = None


def run_steps(
    tiles: Sequence[TileFolder],
    steps: Sequence[Step],
    settings: PipelineSettings | None = None,
    *,
    training: TileSettings | None = None,
    method: Method | None = None,
    mapping: Mapping[str, Any] | None = None,
    groups: Sequence[Group] = (),
    command: str = "run",
    run: Run = Run(),
) -> Iterator[StepResult]:
    """Run steps for tiles, tile by tile or group by group, each only where needed.

    Parameters
    ----------
    tiles
        Tiles of a place.
    steps
        The steps to run; their order does not matter.
    settings
        Settings of priors and scores; not used by the other steps.
    training, method
        See :func:`ensure_model`.
    mapping
        Options of :func:`ensure_map`.
    groups
        Groups of tiles that share a model (:func:`landprior.landcover.workspace.groups.make_groups`). The priors and
        the model of a whole group are made, and the maps of those of its tiles that are in ``tiles``.
    command
        Command that is running, for the record (:func:`ensure_prior`).
    run
        See :class:`landprior.run.Run`.

    Yields
    ------
    StepResult
        Each result as soon as it exists. Tiles without labels have no scores.

    Raises
    ------
    LandpriorError
        The first failure; earlier results are kept.
    """
    chain = _Chain(steps, settings, training, method, mapping or {}, {"command": command, "run": run})
    if not groups:
        for tile in tiles:
            if len(steps) > 1:
                logger.info("%s", tile.id)
            yield from chain.prepare(tile)
            yield from chain.train(tile)
            yield from chain.finish(tile)
        return
    for group in groups:
        chosen = [tile for tile in group.tiles if tile in tiles]
        if not chosen:
            continue
        if len(steps) > 1:
            logger.info("%s: %d tiles", group.name, len(group.tiles))
        for tile in group.tiles:
            yield from chain.prepare(tile, group)
        yield from chain.train(group)
        for tile in chosen:
            yield from chain.finish(tile, group)


@dataclass(frozen=True)
class _Chain:
    """The steps that were asked for, and how they are carried out."""

    steps: Sequence[Step]
    settings: PipelineSettings | None
    training: TileSettings | None
    method: Method | None
    mapping: Mapping[str, Any]
    how: Mapping[str, Any]

    def prepare(self, tile: TileFolder, group: Group | None = None) -> Iterator[StepResult]:
        """Build the prior."""
        if "prior" in self.steps and self.settings is not None:
            yield StepResult("prior", ensure_prior(tile, self.settings, group=group, **self.how))

    def train(self, unit: TileFolder | Group) -> Iterator[StepResult]:
        """Train the model of a tile or of a group."""
        if "model" not in self.steps:
            return
        if isinstance(unit, Group):
            yield StepResult("model", ensure_joint_model(unit, self.training, **self.how))
        else:
            yield StepResult("model", ensure_model(unit, self.training, method=self.method, **self.how))

    def finish(self, tile: TileFolder, group: Group | None = None) -> Iterator[StepResult]:
        """Make the map, and score it."""
        if "map" in self.steps:
            own = self.mapping if group is None else {**self.mapping, "model": group.require_model()}
            yield StepResult("map", ensure_map(tile, **own, **self.how))
        if "scores" in self.steps and self.settings is not None:
            scores = score_tile(tile, self.settings)
            if scores is not None:
                yield StepResult("scores", tile.file("prediction"), scores)


def run_workspace(
    workspace: Workspace,
    city: str | CityRef,
    settings: PipelineSettings,
    *,
    only: Sequence[str] = (),
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> tuple[list[Path], Scores | None]:
    """Run the whole chain for the tiles of a city.

    Parameters
    ----------
    workspace
        Workspace of the tiles.
    city
        City of the tiles.
    settings
        Settings of the chain.
    only
        Names of tiles to run; if empty, all.
    options
        Other files to write beside the maps.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    maps : list of Path
        One per tile.
    scores : Scores or None
        Pooled over the tiles that have labels.

    Raises
    ------
    OutputExistsError
        If a tile has a result that the chain would not replace; raised before any work.
    LandpriorError
        The first failure; earlier results are kept, and a rerun resumes from there.
    """
    maps: list[Path] = []
    total: Scores | None = None
    tiles = workspace.tiles(city, only=only)
    groups = make_groups(workspace.tiles(city), settings.group) if settings.joint else []
    if not run.overwrite:
        require_own_results(tiles, settings, groups=groups, options=options)
    how: dict[str, Any] = {"mapping": {"posterior": settings.posterior, "options": options}, "groups": groups}
    for found in run_steps(tiles, STEPS, settings, training=settings.training, run=run, **how):
        if found.step == "map":
            maps.append(found.path)
        elif found.scores is not None:
            total = found.scores if total is None else total + found.scores
    return maps, total
