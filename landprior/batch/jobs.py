"""The jobs of a plan, and their order: a tile's whole chain, or the stages of the tiles of a group that share a model.

In a group all tiles are fetched, then all priors are built, then the model is trained, then all maps are made. The jobs
of a stage may run side by side on any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from landprior.batch.states import read_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from landprior.batch.plans import BatchPlan
    from landprior.batch.states import TileState

Stage = Literal["whole", "fetch", "prior", "model", "map"]

LAST: tuple[Stage, ...] = ("whole", "map")
"""Stages after which a tile is done."""


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Parameters
    ----------
    stage
        What is done: the whole chain of a tile, or a stage of a group.
    tiles
        Name of the tile; for a model, those of all tiles of the group.
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
        jobs = [Job(stage, self.names)] if stage == "model" else [Job(stage, (name,)) for name in self.names]
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
        Of each tile, in the order of the plan, or of each group. A group whose tiles are all done has no stages left.
    """
    if whole or not plan.groups:
        return [Chain((tile.name,), ["whole"]) for tile in plan.tiles]
    chains = []
    for group in plan.find_groups():
        names = tuple(tile.name for tile in group.tiles)
        states = {name: read_state(plan, name) for name in names}
        stages: list[Stage] = (
            ["fetch", "prior", "model", "map"] if plan.fetch is not None else ["prior", "model", "map"]
        )
        done = all(state.state == "done" for state in states.values())
        chains.append(Chain(names, [] if done else stages, states if done else {}))
    return chains
