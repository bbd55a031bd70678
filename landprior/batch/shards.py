"""Shares of a plan for workers, by hand or from the variables of a batch system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landprior.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landprior.batch.plans import BatchPlan


def choose_shard(plan: BatchPlan, index: int, count: int) -> BatchPlan:
    """Return every count-th tile of a plan, or every count-th group, starting at the index-th (from 0).

    Parameters
    ----------
    plan
        All tiles.
    index
        Index of the shard, from 0.
    count
        Number of shards.

    Returns
    -------
    BatchPlan
        The same plan with fewer tiles.

    Raises
    ------
    InputError
        If there is no such shard, or it has no tile.
    """
    if not 0 <= index < count:
        msg = f"shard {index}/{count}: the index goes from 0 to {count - 1}"
        raise InputError(msg)
    if plan.groups:  # a group is run as a whole
        chosen = {name for names in plan.groups[index::count] for name in names}
        tiles = tuple(tile for tile in plan.tiles if tile.name in chosen)
        what = f"group of tiles that share a model; the plan has {len(plan.groups)} (landprior plan --group N)"
    else:
        tiles = plan.tiles[index::count]
        what = f"tile; the plan has {len(plan.tiles)}"
    if not tiles:
        msg = f"shard {index}/{count} has no {what}"
        raise InputError(msg)
    return plan.model_copy(update={"tiles": tiles})


_ARRAYS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)
"""Environment variables of batch systems: index, count."""


def find_shard(environment: Mapping[str, str], count: int | None = None) -> tuple[int, int]:
    """Return index (from 0) and count of the shard assigned to this process by a batch system.

    Parameters
    ----------
    environment
        Variables and their values.
    count
        Number of shards, for batch systems that do not give it.

    Returns
    -------
    tuple of int
        Index and count.

    Raises
    ------
    InputError
        If there is no index or number of shards, if the number is not ``count``, or if the indexes are not evenly
        spaced because only part of the array was submitted.
    """
    for name, size in _ARRAYS:
        if name in environment:
            total = _number(environment, size) or count
            if not total:
                msg = f"{name} is set but {size} is not; give the number of shards: --shard auto/N"
                raise InputError(msg)
            if count is not None and count != total:
                msg = f"--shard auto/{count}, and {size} says {total}; give the index too: --shard INDEX/{count}"
                raise InputError(msg)
            index = _number(environment, name)
            if name.startswith("SLURM"):
                index = _slurm_index(environment, index, total)
            if not 0 <= index < total:
                found = environment[name]
                msg = f"{name} is {found}, which is not the index of one of {total} shards; give --shard INDEX/{total}"
                raise InputError(msg)
            return index, total
    names = ", ".join(names[0] for names in _ARRAYS)
    msg = f"--shard auto: none of {names} is set; give --shard INDEX/COUNT"
    raise InputError(msg)


def _slurm_index(environment: Mapping[str, str], task: int, total: int) -> int:
    """Return the index, from 0, of this task of ``sbatch --array=FIRST-LAST:STEP``."""
    first, step = _number(environment, "SLURM_ARRAY_TASK_MIN"), _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    last = _number(environment, "SLURM_ARRAY_TASK_MAX") if "SLURM_ARRAY_TASK_MAX" in environment else None
    even = step > 0 and (task - first) % step == 0 and (last is None or (last - first) // step + 1 == total)
    if not even:
        msg = (
            f"the array's {total} tasks are not evenly spaced (from {first} to {last}, task {task}, step {step}), so "
            f"the shard is unknown; submit it as --array=0-{total - 1}, or give --shard INDEX/COUNT"
        )
        raise InputError(msg)
    return (task - first) // step


def _number(environment: Mapping[str, str], name: str) -> int:
    """Return a variable as a number; 0 if it is not set."""
    text = environment.get(name, "").strip() or "0"
    try:
        return int(text)
    except ValueError as error:
        msg = f"{name} is {text!r}, which is not a whole number; give --shard INDEX/COUNT"
        raise InputError(msg) from error
