"""The whole chain over a workspace: build-prior, train, predict, evaluate, each run only where needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from landprior.landcover.mapping.options import MapOptions
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


Step = Literal["prior", "model", "joint model", "map", "scores"]

STEPS: tuple[Step, ...] = ("prior", "model", "map", "scores")
"""The steps of the chain for a tile; ``"joint model"`` trains one model for all tiles, once, before they are mapped."""


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
    command: str = "run",
    run: Run = Run(),
) -> Iterator[StepResult]:
    """Run steps for tiles, tile by tile, each only where needed.

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
    if "joint model" in steps:
        yield StepResult("joint model", ensure_joint_model(tiles, training, run=run))
    for tile in tiles:
        if len(steps) > 1:
            logger.info("%s/%s", tile.city, tile.name)
        if "prior" in steps and settings is not None:
            yield StepResult("prior", ensure_prior(tile, settings, command=command, run=run))
        if "model" in steps:
            yield StepResult("model", ensure_model(tile, training, method=method, command=command, run=run))
        if "map" in steps:
            yield StepResult("map", ensure_map(tile, **(mapping or {}), command=command, run=run))
        if "scores" in steps and settings is not None:
            scores = score_tile(tile, settings)
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
    if not run.overwrite:
        require_own_results(tiles, settings, options=options)
    mapping = {"posterior": settings.posterior, "options": options}
    for found in run_steps(tiles, STEPS, settings, training=settings.training, mapping=mapping, run=run):
        if found.step == "map":
            maps.append(found.path)
        elif found.scores is not None:
            total = found.scores if total is None else total + found.scores
    return maps, total
