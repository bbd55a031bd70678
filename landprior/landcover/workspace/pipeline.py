"""The whole chain over a workspace: build-prior, train, predict, evaluate, each done only where needed."""

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
"""The whole chain for a tile; ``"joint model"`` is one model for all tiles, made once, before their maps."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Parameters
    ----------
    step
        Which.
    path
        Its file; of scores, the map that was scored.
    scores
        Of the step ``"scores"``.
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
    """Do steps for tiles, each only where it is needed, tile by tile.

    Parameters
    ----------
    tiles
        Those of a place.
    steps
        Which, whatever their order.
    settings
        Of priors and scores; the other steps need none.
    training, method
        See :func:`ensure_model`.
    mapping
        Options of :func:`ensure_map`.
    command
        On whose behalf (:func:`ensure_prior`).
    run
        See :class:`landprior.run.Run`.

    Yields
    ------
    StepResult
        As soon as it is there. Tiles without labels have no scores.

    Raises
    ------
    LandpriorError
        The first failure; what was done before it stays.
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
        Where the tiles are.
    city
        Whose.
    settings
        How they are mapped.
    only
        Names of some tiles; none: all.
    options
        What else to write beside the maps.
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
        If some tile has a result that the chain would not replace; nothing is done then.
    LandpriorError
        The first failure; what was done before it stays, and a rerun goes on from there.
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
