"""The jobs of a plan, and their order: a tile's whole chain, or the stages of the tiles of a group that share a model.

In a group all tiles are fetched, then all priors are built, then the model is trained, then all maps are made. The jobs
of a stage may run side by side on any number of workers. If the plan has points, all models are trained before the
points are fitted, once for the whole place, and the maps are made after that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from landprior.batch.states import STAGE_DONE, read_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from landprior.batch.plans import BatchPlan
    from landprior.batch.states import TileState

Stage = Literal["whole", "train", "fetch", "prior", "model", "points", "map"]

JOINT: tuple[Stage, ...] = ("model", "points")
"""Stages that are one job for all tiles of a chain."""

LAST: tuple[Stage, ...] = ("whole", "map")
"""Stages after which a tile is done."""


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Parameters
    ----------
    stage
        What is done: the whole chain of a tile, the chain up to its model, or a stage of a group.
    tiles
        Name of the tile; for a model, those of all tiles of the group; for the points, all tiles that are to be mapped.
    """

    stage: Stage
    tiles: tuple[str, ...]


@dataclass
class Chain:
    """The jobs of a tile or of a group, stage by stage.

    Parameters
    ----------
    names
        The tiles.
    stages
        The stages that are left; each begins when the one before it has ended well for all tiles.
    states
        The last known state of each tile.
    """

    names: tuple[str, ...]
    stages: list[Stage]
    states: dict[str, TileState] = field(default_factory=dict)
    _open: set[Job] = field(default_factory=set)

    def begin(self) -> list[Job]:
        """Return the jobs of the next stage; none if there is none."""
        if not self.stages:
            return []
        stage = self.stages.pop(0)
        jobs = [Job(stage, self.names)] if stage in JOINT else [Job(stage, (name,)) for name in self.names]
        self._open = {*jobs}
        return jobs

    def close(self, job: Job, states: Sequence[TileState]) -> list[Job]:
        """Note how a job ended.

        Parameters
        ----------
        job
            A job that :meth:`begin` or this method returned.
        states
            The states of its tiles.

        Returns
        -------
        list of Job
            Those that may begin now.
        """
        self._open.remove(job)
        self.states |= {state.name: state for state in states}
        if self._open:
            return []
        stopped = [state for state in self.states.values() if state.state not in ("waiting", "done")]
        if not stopped:
            return self.begin()
        self.stages.clear()
        for name, state in self.states.items():
            if state.state == "waiting":
                self.states[name] = replace(state, detail=f"its group waits for {stopped[0].name}", seconds=None)
        return []

    @property
    def well(self) -> bool:
        """Whether all of its stages ended well so far."""
        return all(state.state == "done" or state.detail == STAGE_DONE for state in self.states.values())

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._open or self.stages)


def list_chains(plan: BatchPlan, *, whole: bool = False) -> list[Chain]:
    """Return what is to be done for a plan.

    Parameters
    ----------
    plan
        The plan.
    whole
        Treat each tile by itself, whatever its group.

    Returns
    -------
    list of Chain
        Of each tile, in the order of the plan, or of each group; if the plan has points, without the maps. A group
        whose tiles are all done has no stages left.
    """
    if whole or not (plan.groups or plan.points):
        return [Chain((tile.name,), ["whole"]) for tile in plan.tiles]
    if not plan.groups:
        known = {tile.name: read_state(plan, tile.name) for tile in plan.tiles}
        return [
            Chain((name,), [], {name: state}) if state.state == "done" else Chain((name,), ["train"])
            for name, state in known.items()
        ]
    chains = []
    for group in plan.find_groups():
        names = tuple(tile.name for tile in group.tiles)
        states = {name: read_state(plan, name) for name in names}
        stages: list[Stage] = ["prior", "model"] if plan.fetch is None else ["fetch", "prior", "model"]
        stages += [] if plan.points else ["map"]
        done = all(state.state == "done" for state in states.values())
        chains.append(Chain(names, [] if done else stages, states if done else {}))
    return chains


def list_phases(plan: BatchPlan, *, whole: bool = False) -> Iterator[list[Chain]]:
    """Yield what is to be done for a plan, phase by phase: the chains of a phase may run side by side.

    Take the next phase when all chains of the one before have ended.

    Parameters
    ----------
    plan, whole
        See :func:`list_chains`.

    Yields
    ------
    list of Chain
        All of them at once; for a plan with points, first the chains up to the models, then the fit to the points, then
        the maps of the tiles that are ready.
    """
    chains = list_chains(plan, whole=whole)
    yield chains
    if whole or plan.points is None:
        return
    ready = [name for chain in chains if chain.well for name in chain.names]
    due = [name for chain in chains if chain.well for name, state in chain.states.items() if state.state != "done"]
    if not due:
        return
    fit = Chain(tuple(due), ["points"])
    yield [fit]
    if fit.well:  # tiles that were done are mapped again if the fit is another one
        yield [Chain((name,), ["map"]) for name in ready if read_state(plan, name).state != "done"]


@dataclass
class Tally:
    """The states of tiles while a plan is run.

    Parameters
    ----------
    states
        The last known state of each.
    """

    states: dict[str, TileState] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def note(self, chain: Chain) -> list[TileState]:
        """Note the states of a chain that has ended; return those that are final, each only once."""
        self.states |= chain.states
        return self._take([state for state in chain.states.values() if state.state != "waiting"])

    def close(self) -> list[TileState]:
        """Return the states that :meth:`note` has not returned."""
        return self._take([*self.states.values()])

    def _take(self, states: Sequence[TileState]) -> list[TileState]:
        new = [state for state in states if state.name not in self._reported]
        self._reported |= {state.name for state in new}
        return new
