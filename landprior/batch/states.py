"""States of the tiles of a plan, from the records written by its runs."""

from __future__ import annotations

import json
import logging
import os
import platform
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from landprior.inputs import checksum, stamp_of
from landprior.landcover.workspace.item import INPUTS, ITEM, TileFolder
from landprior.landcover.workspace.place_head import ADAPTATION
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from landprior.batch.plans import BatchPlan

logger = logging.getLogger(__name__)

RUN = "run.json"
"""Name of the run's record in a tile's folder."""

STAGE_DONE = "a stage is done"
"""Why a tile waits that has further stages."""

State = Literal["waiting", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class TileState:
    """The state of a tile of a plan."""

    name: str
    state: State
    detail: str = ""
    seconds: float | None = None


def find_tile(plan: BatchPlan, name: str) -> TileFolder:
    """Return the folder of a tile."""
    return TileFolder.of(Path(plan.workspace), plan.city, name)


class Note(dict[str, Any]):
    """The record of a tile's run, including how it ended."""

    state: State = "interrupted"
    detail: str = ""
    seconds: float | None = None

    def close(self, state: State, detail: str, seconds: float) -> TileState:
        """Record how the tile ended.

        Parameters
        ----------
        state
            One of :data:`State`.
        detail, seconds
            Why, and after how long.

        Returns
        -------
        TileState
            State of this tile.
        """
        self.state, self.detail, self.seconds = state, detail, seconds
        return TileState(str(self["tile"]), state, detail, seconds)


@contextmanager
def recording(plan: BatchPlan, tile: TileFolder) -> Iterator[Note]:
    """Record that a tile is running and, at the end, its result, even after ctrl-C."""
    note = Note(tile=tile.name, plan=plan.digest, host=platform.node(), pid=os.getpid(), started=_now())
    _write_note(tile, note | {"state": "running"})
    try:
        yield note
    finally:
        ended: dict[str, Any] = {"state": note.state, "ended": _now()}
        ended |= {} if note.seconds is None else {"seconds": round(note.seconds, 3)}
        _write_note(tile, note | ended | ({"detail": note.detail} if note.detail else {}))


def _write_note(tile: TileFolder, content: Mapping[str, Any]) -> None:
    with replacing(tile.path / RUN, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_state(plan: BatchPlan, name: str) -> TileState:
    """Return the state of a tile, by its ``run.json`` and whether its map and layers are unchanged."""
    tile = find_tile(plan, name)
    try:
        note = dict(json.loads((tile.path / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return TileState(name, "waiting")
    if note.get("plan") != plan.digest:
        return TileState(name, "waiting", "was run by another plan")
    state, seconds = note.get("state"), note.get("seconds")
    if state == "done":
        lost = (
            _find_change(tile, note.get("files"))
            or _find_other_model(plan, name, note.get("model"))
            or _find_other_head(plan, note.get("adaptation"))
        )
        return TileState(name, "waiting", lost) if lost else TileState(name, "done", "", seconds)
    if state == "running":
        where = f"since {note.get('started')} on {note.get('host')}"
        if note.get("host") == platform.node() and not psutil.pid_exists(int(note.get("pid", -1))):
            return TileState(name, "interrupted", f"{where}; the process has ended")
        return TileState(name, "running", where)
    # it waits for the other tiles of its group, failed, or was interrupted
    ended: State = state if state in ("waiting", "failed") else "interrupted"
    return TileState(name, ended, str(note.get("detail", "")), seconds)


def describe_files(tile: TileFolder) -> dict[str, dict[str, Any]]:
    """Return the checksums of a tile's layers and map and time stamps that avoid reading them again."""
    return {
        name: {"stamp": _shared_stamp(path), "sha256": checksum(path)}
        for name, path in tile.present([*INPUTS, "prediction"]).items()
    }


def _shared_stamp(path: Path) -> list[int]:
    """Return the stamp of a file without its device, which differs between the nodes of a cluster."""
    return list(stamp_of(path)[1:])


def _find_change(tile: TileFolder, recorded: object) -> str:
    """Return what has changed since a tile was done; empty if nothing has."""
    if not (tile.file("prediction").is_file() and (tile.path / ITEM).is_file()):
        return "its map was removed"
    if not isinstance(recorded, dict):  # written by an earlier version
        return ""
    there = tile.present([*INPUTS, "prediction"])
    for name in sorted({*recorded, *there}):
        entry = recorded.get(name)
        if name not in there or not isinstance(entry, dict):
            return f"{tile.file(name).name} is {'new' if name in there else 'gone'} since it was done"
        path = there[name]
        if entry.get("stamp") != _shared_stamp(path) and entry.get("sha256") != checksum(path):
            what = "its map is not the one that this plan made" if name == "prediction" else f"{path.name} has changed"
            return f"{what} since it was done"
    return ""


def _find_other_model(plan: BatchPlan, name: str, recorded: object) -> str:
    """Return that the model of a tile's group is not the one that it was mapped with; empty if it is."""
    group = plan.find_group(name)
    if group is None or (group.model.is_file() and checksum(group.model) == recorded):
        return ""
    return f"{group.model.name} is {'another' if group.model.is_file() else 'gone'} since it was done"


def _find_other_head(plan: BatchPlan, recorded: object) -> str:
    """Return that the fit to the points is not the one that a tile was mapped with; empty if it is."""
    head = place_of(plan) / ADAPTATION
    if plan.points is None or (head.is_file() and checksum(head) == recorded):
        return ""
    return f"{head.name} is {'another' if head.is_file() else 'gone'} since it was done"


def place_of(plan: BatchPlan) -> Path:
    """Return the folder of the place."""
    return Path(plan.workspace) / plan.city


def read_states(plan: BatchPlan) -> list[TileState]:
    """Return the states of all tiles of a plan."""
    return [read_state(plan, tile.name) for tile in plan.tiles]


def report_state(state: TileState) -> None:
    """Log the state of a tile."""
    if state.state == "failed":
        logger.warning("%s failed: %s", state.name, state.detail)
    else:
        took = "" if state.seconds is None else f" ({state.seconds:.1f} s)"
        logger.info("%s: %s%s", state.name, state.state, took)
