"""The whole chain over a workspace: build-prior, train, predict, evaluate, each run only where needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.workspace.groups import Group, make_groups
from landprior.landcover.workspace.place_head import ensure_adapted_model, ensure_head, find_group, require_own_head
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

    from landprior.landcover.adaptation.report import Report
    from landprior.landcover.assessment.scores import Scores
    from landprior.landcover.training.methods import Method
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.place_head import PlaceHead
    from landprior.landcover.workspace.place_points import PlacePoints
    from landprior.landcover.workspace.settings import PipelineSettings

logger = logging.getLogger(__name__)


Step = Literal["prior", "model", "adaptation", "map", "scores"]

STEPS: tuple[Step, ...] = ("prior", "model", "map", "scores")
"""The steps of the chain for a tile, or for a group of tiles that share a model. With points, ``adaptation`` precedes
the maps."""


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
    report
        Report of the step ``"adaptation"``.
    """

    step: Step
    path: Path
    scores: Scores | None = None
    report: Report | None = None


def run_steps(
    tiles: Sequence[TileFolder],
    steps: Sequence[Step],
    settings: PipelineSettings | None = None,
    *,
    training: TileSettings | None = None,
    method: Method | None = None,
    mapping: Mapping[str, Any] | None = None,
    groups: Sequence[Group] = (),
    points: PlacePoints | None = None,
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
    points
        Points of the place (:func:`landprior.landcover.workspace.place_points.find_points`), to which its models are
        adapted before the first map is made. Priors and models are then also made of the tiles that hold points.
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
    if points is not None and "map" in steps:
        yield from _run_with_points(chain, tiles, points, groups)
    elif not groups:
        for tile in tiles:
            if len(steps) > 1:
                logger.info("%s", tile.id)
            yield from chain.prepare(tile)
            yield from chain.train(tile)
            yield from chain.finish(tile)
    else:
        for group in groups:
            chosen = [tile for tile in group.tiles if tile in tiles]
            if chosen:
                yield from chain.prepare_group(group)
            for tile in chosen:
                yield from chain.finish(tile, group)


def _run_with_points(
    chain: _Chain, tiles: Sequence[TileFolder], points: PlacePoints, groups: Sequence[Group]
) -> Iterator[StepResult]:
    """Train all models that are needed, fit the head of the place, and map."""
    folder = tiles[0].path.parent
    if not chain.how["run"].overwrite:
        require_own_head(folder)
    wanted = {*tiles, *points.find_tiles(folder)}
    if groups:
        for group in groups:
            if wanted & {*group.tiles}:
                yield from chain.prepare_group(group)
    else:
        for tile in sorted(wanted, key=lambda tile: tile.name):
            if len(chain.steps) > 1:
                logger.info("%s", tile.id)
            yield from chain.prepare(tile)
            yield from chain.train(tile)
    logger.info("%s: %d tiles with points", tiles[0].city, len(points.tiles))
    head = ensure_head(points, folder, groups=groups, **chain.how)
    yield StepResult("adaptation", head.path, report=head.report)
    for tile in tiles:
        yield from chain.finish(tile, find_group(tile, groups), head)


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

    def prepare_group(self, group: Group) -> Iterator[StepResult]:
        """Build the priors of a group, and train its model."""
        if len(self.steps) > 1:
            logger.info("%s: %d tiles", group.name, len(group.tiles))
        for tile in group.tiles:
            yield from self.prepare(tile, group)
        yield from self.train(group)

    def train(self, unit: TileFolder | Group) -> Iterator[StepResult]:
        """Train the model of a tile or of a group."""
        if "model" not in self.steps:
            return
        if isinstance(unit, Group):
            yield StepResult("model", ensure_joint_model(unit, self.training, **self.how))
        else:
            yield StepResult("model", ensure_model(unit, self.training, method=self.method, **self.how))

    def finish(
        self, tile: TileFolder, group: Group | None = None, head: PlaceHead | None = None
    ) -> Iterator[StepResult]:
        """Make the map, and score it."""
        if "map" in self.steps:
            own = self.mapping if group is None else {**self.mapping, "model": group.require_model()}
            if head is not None:
                if len(self.steps) > 1:
                    logger.info("%s", tile.id)
                adapted = ensure_adapted_model(tile, head, group=group, **self.how)
                own = {**own, "model": adapted, "adapted": True}
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
    points: PlacePoints | None = None,
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
    points
        See :func:`run_steps`.
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
        require_own_results(tiles, settings, groups=groups, options=options, adapted=points is not None)
    how: dict[str, Any] = {"mapping": {"posterior": settings.posterior, "options": options}, "groups": groups}
    how["points"] = points
    for found in run_steps(tiles, STEPS, settings, training=settings.training, run=run, **how):
        if found.step == "map":
            maps.append(found.path)
        elif found.scores is not None:
            total = found.scores if total is None else total + found.scores
    return maps, total
