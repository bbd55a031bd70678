"""Running the tiles of a plan, one at a time.

A tile is done when its map and ``item.json`` exist and its ``run.json`` records it for this plan; running it again
costs nothing. An error in one tile is recorded in its ``run.json`` and does not stop the others.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.batch.jobs import LAST, Tally, list_phases
from landprior.batch.plans import parse_fetch, parse_training
from landprior.batch.states import (
    RUN,
    STAGE_DONE,
    TileState,
    describe_files,
    find_tile,
    place_of,
    read_state,
    recording,
    report_state,
)
from landprior.errors import ConfigError, InputError, LandpriorError, MissingInputError, OutputBusyError
from landprior.inputs import checksum
from landprior.landcover.prior.cooccurrence import Cooccurrence
from landprior.landcover.training.model import load_model
from landprior.landcover.workspace.acquisition import fetch
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.layout import plan_fetch
from landprior.landcover.workspace.place_head import (
    ensure_adapted_model,
    ensure_head,
    find_sums,
    find_untrained,
    head_basis,
    judge_head,
    read_head,
)
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import (
    ensure_joint_model,
    ensure_map,
    ensure_model,
    ensure_prior,
    require_own_results,
    score_tile,
)
from landprior.progress import Progress
from landprior.raster.locks import claiming, clear_leftovers
from landprior.raster.outputs import make_folder
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from landprior.batch.jobs import Job
    from landprior.batch.plans import BatchPlan
    from landprior.batch.states import Note, State
    from landprior.landcover.workspace.fetch_settings import FetchSettings
    from landprior.landcover.workspace.groups import Group
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.landcover.workspace.place_points import PlacePoints
    from landprior.sources.http.client import Network

logger = logging.getLogger(__name__)


class TileRunner:
    """Run single tiles of a plan in this process.

    Parameters
    ----------
    plan
        The plan.
    network
        Network client, for plans that fetch.
    run
        See :class:`landprior.run.Run`; ``overwrite`` also replaces results that were not made by this
        plan.
    """

    def __init__(self, plan: BatchPlan, *, network: Network | None = None, run: Run = Run()) -> None:
        self.plan = plan
        self._network = network
        self._run = replace(run, progress=False)  # the progress bar counts tiles
        self._settings: PipelineSettings | None = None
        self._fetch: tuple[FetchPlan, FetchSettings] | None = None

    def run(self, name: str, *, work: Callable[[TileFolder], Mapping[str, Any]] | None = None) -> TileState:
        """Run one tile, unless it is done or being run by another process; never raises for errors of the tile.

        Parameters
        ----------
        name
            Name of the tile.
        work
            Function to run instead of the whole chain: gets the folder and returns entries for the record.

        Returns
        -------
        TileState
            The state, as recorded in the tile's folder.
        """
        known = self._open([name], whole=work is None)
        if known:
            return known[0]
        known = [read_state(self.plan, name)]
        if known[0].state == "done":
            return known[0]
        return self._run_claimed([name], work or self._map)[0]

    def run_job(self, job: Job, *, work: Callable[[TileFolder], Mapping[str, Any]] | None = None) -> list[TileState]:
        """Run a job; never raises for errors of its tiles.

        Parameters
        ----------
        job
            See :func:`landprior.batch.jobs.list_chains`.
        work
            See :meth:`run`.

        Returns
        -------
        list of TileState
            The states of the job's tiles; ``"waiting"`` if the stage ended well and others follow.
        """
        if job.stage == "whole":
            return [self.run(job.tiles[0], work=work)]
        stages: dict[str, Callable[..., Mapping[str, Any]]] = {
            "fetch": self._fetch_layers,
            "prior": self._build_prior,
            "model": self._train_group,
            "train": self._train,
            "points": self._fit_points,
            "map": self._map_in_group if self.plan.points is None else self._map_adapted,
        }
        return self._open(job.tiles) or self._run_claimed(job.tiles, stages[job.stage], last=job.stage in LAST)

    def _open(self, names: Sequence[str], *, whole: bool = True) -> list[TileState]:
        """Make the folders of tiles; return failures if they should exist and one does not."""
        for tile in (find_tile(self.plan, name) for name in names):
            if self.plan.fetch is None and whole and not tile.path.is_dir():  # do not create a workspace
                why = f"there is no tile at {tile.path}; make a new plan if it has moved"
                return [TileState(name, "failed", why) for name in names]
            make_folder(tile.path)
            clear_leftovers(tile.path)
        return []

    def _run_claimed(
        self, names: Sequence[str], work: Callable[..., Mapping[str, Any]], *, last: bool = True
    ) -> list[TileState]:
        """Run something for tiles that no other process is running."""
        tiles = [find_tile(self.plan, name) for name in names]
        with ExitStack() as stack:
            try:
                for tile in tiles:
                    stack.enter_context(claiming(tile.path / RUN))
            except OutputBusyError:
                return [TileState(name, "running", "another process is running it") for name in names]
            notes = [stack.enter_context(recording(self.plan, tile)) for tile in tiles]
            return self._run_locked(tiles, notes, work, last=last)

    def _run_locked(
        self, tiles: Sequence[TileFolder], notes: Sequence[Note], work: Callable[..., Mapping[str, Any]], *, last: bool
    ) -> list[TileState]:
        start = time.monotonic()

        def close(state: State, detail: str = "") -> list[TileState]:
            return [note.close(state, detail, time.monotonic() - start) for note in notes]

        try:
            found = work(*tiles)
        except _NotYetError as reason:
            return close("waiting", str(reason))
        except LandpriorError as error:
            return close("failed", str(error))
        except MemoryError:
            return close("failed", "out of memory")
        except Exception as error:  # a bug of ours or of a library in one tile must not stop the others
            logger.debug("%s", tiles[0].id, exc_info=True)
            return close("failed", f"{type(error).__name__}: {error}")
        for tile, note in zip(tiles, notes, strict=True):
            note.update(found)
            if last:
                note["files"] = describe_files(tile)
        return close("done") if last else close("waiting", STAGE_DONE)

    def _train(self, tile: TileFolder) -> dict[str, Any]:
        """Fetch, build the prior and train, and sum up what a fit to points needs to know of the whole tile."""
        if self.plan.fetch is not None:
            self._fetch_tile(tile)
        settings = self._pipeline()
        adapted = self.plan.points is not None
        if not self._run.overwrite:
            require_own_results([tile], settings, adapted=adapted)
        with _on_cores(self.plan.recipe.threads):
            ensure_prior(tile, settings, command="run", run=self._run)
            model = ensure_model(tile, settings.training, command="run", run=self._run)
            if adapted:
                find_sums(tile, model, load_model(model), run=self._run)
        return {}

    def _map(self, tile: TileFolder) -> dict[str, Any]:
        """Fetch, build the prior, train, map and score a tile."""
        self._train(tile)
        settings = self._pipeline()
        with _on_cores(self.plan.recipe.threads):
            ensure_map(tile, posterior=settings.posterior, command="run", run=self._run)
            scores = score_tile(tile, settings)
        return {} if scores is None else {"accuracy": scores.accuracy, "mean_iou": scores.mean_iou}

    def _fetch_layers(self, tile: TileFolder) -> dict[str, Any]:
        self._fetch_tile(tile)
        return {}

    def _build_prior(self, tile: TileFolder) -> dict[str, Any]:
        """Build a tile's prior, within its group."""
        group = self._group_of(tile)
        if not self._run.overwrite:
            adapted = self.plan.points is not None
            require_own_results([tile], self._pipeline(), groups=[group], adapted=adapted)
        with _on_cores(self.plan.recipe.threads):
            ensure_prior(tile, self._pipeline(), group=group, command="run", run=self._run)
        return {}

    def _train_group(self, *tiles: TileFolder) -> dict[str, Any]:
        """Train the model of a group."""
        with _on_cores(self.plan.recipe.threads):
            ensure_joint_model(self._group_of(tiles[0]), self._pipeline().training, command="run", run=self._run)
        return {}

    def _map_in_group(self, tile: TileFolder) -> dict[str, Any]:
        """Map and score a tile with the model of its group."""
        settings, model = self._pipeline(), self._group_of(tile).require_model()
        with _on_cores(self.plan.recipe.threads):
            ensure_map(tile, posterior=settings.posterior, model=model, command="run", run=self._run)
            scores = score_tile(tile, settings)
        note: dict[str, Any] = {"model": checksum(model)}
        return note if scores is None else note | {"accuracy": scores.accuracy, "mean_iou": scores.mean_iou}

    def _fit_points(self, *_: TileFolder) -> dict[str, Any]:
        """Fit the head of the place, if the models of all tiles with points are there."""
        points, groups = self._find_points()
        with _on_cores(self.plan.recipe.threads):
            ensure_head(points, place_of(self.plan), groups=groups, command="run", run=self._run)
        return {}

    def _find_points(self) -> tuple[PlacePoints, list[Group]]:
        """Return the points of the plan, and the groups of tiles with points, whose models must be there."""
        if self.plan.points is None:
            msg = "the plan has no points; make a new plan"
            raise ConfigError(msg)
        points = self.plan.points.open()
        found = {name: self.plan.find_group(name) for name in points.tiles}
        groups = [*{group.model: group for group in found.values() if group is not None}.values()]
        training = parse_training(self.plan)
        lacking = find_untrained(points, place_of(self.plan), training, groups)
        if lacking is not None:
            msg = f"the points wait for the model of {lacking.name}; run the plan again when it is trained"
            raise _NotYetError(msg)
        return points, groups

    def _map_adapted(self, tile: TileFolder) -> dict[str, Any]:
        """Adapt the model of a tile or its group, and map and score the tile."""
        settings, place, group = self._pipeline(), place_of(self.plan), self.plan.find_group(tile.name)
        points, groups = self._find_points()
        head = read_head(place)
        if head is None or judge_head(place, head_basis(points, place, groups)).state != "current":
            msg = "the points are not fitted yet; run the plan again"
            raise _NotYetError(msg)
        with _on_cores(self.plan.recipe.threads):
            model = ensure_adapted_model(tile, head, group=group, run=self._run)
            ensure_map(tile, posterior=settings.posterior, model=model, adapted=True, command="run", run=self._run)
            scores = score_tile(tile, settings)
        note: dict[str, Any] = {"adaptation": checksum(head.path)}
        note |= {} if group is None else {"model": checksum(group.model)}
        return note if scores is None else note | {"accuracy": scores.accuracy, "mean_iou": scores.mean_iou}

    def _group_of(self, tile: TileFolder) -> Group:
        group = self.plan.find_group(tile.name)
        if group is None:
            msg = f"{tile.id} is in no group of the plan; make a new plan"
            raise ConfigError(msg)
        return group

    def _pipeline(self) -> PipelineSettings:
        if self._settings is None:
            self._settings = make_pipeline_settings(self.plan)
        return self._settings

    def _fetch_tile(self, tile: TileFolder) -> None:
        workspace = Workspace(Path(self.plan.workspace))
        if self._network is None:
            msg = f"{tile.id} has to be fetched, but no network client was given"
            raise InputError(msg)
        if self._fetch is None:
            area, settings = parse_fetch(self.plan)
            self._fetch = plan_fetch(area, workspace, settings, self._network), settings
        found, settings = self._fetch
        own = tuple(planned for planned in found.tiles if planned.folder.name == tile.name)
        if not own:
            msg = f"the catalogue no longer has the image of {tile.name}; make a new plan"
            raise InputError(msg)
        fetch(replace(found, tiles=own), workspace, settings, self._network, collection=False)


class _NotYetError(Exception):
    """A stage cannot begin yet, because another run of the plan has not done what it needs."""


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Compute on a fixed number of cores, because the order of sums affects their last digits."""
    import rasterio
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"), rasterio.Env(GDAL_NUM_THREADS=str(count)):
            yield
    finally:
        torch.set_num_threads(before)


def make_pipeline_settings(plan: BatchPlan) -> PipelineSettings:
    """Return the settings of the chain of a plan.

    Raises
    ------
    ConfigError
        If the learned prior has changed since the plan was made.
    MissingInputError
        If the learned prior does not exist.
    """
    recipe = plan.recipe
    learned = None
    if recipe.learned is not None:
        path = Path(recipe.learned)
        if not path.is_file():
            msg = f"the learned prior {path} of the plan does not exist; every worker needs it"
            raise MissingInputError(msg)
        if checksum(path) != recipe.learned_checksum:
            msg = f"{path} has changed since the plan was made; make a new plan"
            raise ConfigError(msg)
        learned = load_model(path)
    return PipelineSettings(
        scheme=recipe.scheme,
        cooccurrence=Cooccurrence(
            scheme=recipe.scheme,
            probabilities={code: np.array(row) for code, row in recipe.cooccurrence.items()},
            pixels=recipe.cooccurrence_pixels,
            source=recipe.cooccurrence_source,
        ),
        prior=recipe.prior,
        learned=learned,
        training=parse_training(plan),
        posterior=recipe.posterior,
        label_map=recipe.label_map,
    )


# -- many tiles ------------------------------------------------------------------------------------


def run_plan(
    plan: BatchPlan,
    *,
    network: Network | None = None,
    work: Callable[[TileFolder], Mapping[str, Any]] | None = None,
    run: Run = Run(),
) -> list[TileState]:
    """Run the tiles of a plan one after the other in this process, group by group if they share models.

    Parameters
    ----------
    plan
        See :func:`read_plan`, :func:`choose_shard`.
    network
        See :class:`TileRunner`.
    work
        See :meth:`TileRunner.run`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of TileState
        States in the order of the plan; failed ones include the reason.

    Raises
    ------
    ConfigError
        If the plan requests an unknown training.
    """
    parse_training(plan)  # once, not in every tile
    runner = TileRunner(plan, network=network, run=run)
    tally = Tally()
    with Progress(len(plan.tiles), plan.city, "tile", show=run.progress, leave=True) as bar:

        def report(states: Sequence[TileState]) -> None:
            for state in states:
                report_state(state)
            bar.note(f"failed={sum(state.state == 'failed' for state in tally.states.values())}")
            bar.update(len(states))

        for chain in (chain for chains in list_phases(plan, whole=work is not None) for chain in chains):
            jobs = chain.begin()
            while jobs:
                job = jobs.pop(0)
                if job.stage != "whole":
                    bar.note(f"{job.stage} of {job.tiles[0]}")
                jobs += chain.close(job, runner.run_job(job, work=work))
            report(tally.note(chain))
        report(tally.close())
    return [tally.states[tile.name] for tile in plan.tiles]
