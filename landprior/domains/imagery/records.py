"""What trainings have found: a line of ``results.jsonl`` each, so that a sweep goes on where it was interrupted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from landprior.errors import InputError
from landprior.records import add_records, read_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class EpochScores:
    """How a network does after an epoch.

    Parameters
    ----------
    epoch
        From 1.
    loss
        Mean over the epoch's steps.
    scores
        Without true labels, on the items held out: see the judge that made them.
    train, test
        Percent of the items to train and to test with whose most probable class is right; None without true labels.
    confusion
        Test items by true class (rows) and predicted class, where it was asked for.
    """

    epoch: int
    loss: float
    scores: dict[str, float]
    train: float | None = None
    test: float | None = None
    confusion: list[list[int]] | None = None


@dataclass(frozen=True)
class RunRecord:
    """One training.

    Parameters
    ----------
    row
        What was trained, as name -> value, the seed left out; all runs of a sweep have the same names.
    seed
        Of the run.
    identity
        Hash of data and settings.
    looks
        The scores of every epoch; files call them so.
    chosen
        The epoch that the held-out items choose.
    items
        How many items were fitted.
    seconds
        That it took, interruptions left out; not part of what a rerun must give again.
    """

    row: dict[str, str]
    seed: int
    identity: str
    looks: list[EpochScores]
    chosen: int
    items: int
    seconds: float = field(default=0.0, compare=False)

    @property
    def key(self) -> str:
        """Unique in a sweep."""
        return key_of(self.row, self.seed)

    def at_chosen(self, split: str = "test") -> float | None:
        """Return the accuracy at the chosen epoch, percent."""
        found: float | None = getattr(self.looks[self.chosen - 1], split)
        return found

    def peak(self) -> float | None:
        """Return the best accuracy of all epochs on test items, percent."""
        return max((one.test for one in self.looks if one.test is not None), default=None)

    def final(self) -> float | None:
        """Return the accuracy on test items after the last epoch, percent."""
        return self.looks[-1].test


def key_of(row: dict[str, str], seed: int) -> str:
    """Return the key of a run."""
    return "-".join([*(f"{name}_{value}" for name, value in row.items() if value), f"seed_{seed}"]).replace(" ", "_")


def read_runs(folder: Path) -> list[RunRecord]:
    """Read the runs of a folder, see :func:`landprior.records.read_records`."""
    return read_records(folder, RunRecord)


def add_run(folder: Path, run: RunRecord) -> None:
    """Add a run to those of a folder, see :func:`landprior.records.add_records`."""
    add_records(folder, [run], RunRecord, _to_dict, key=lambda one: one.key)


def _to_dict(run: RunRecord) -> dict[str, Any]:
    found = asdict(run)
    for one in found["looks"]:
        if one["confusion"] is None:
            del one["confusion"]
    return found


def find_run(runs: Sequence[RunRecord], key: str, identity: str, folder: Path) -> RunRecord | None:
    """Return the run of a key.

    Parameters
    ----------
    runs
        Those that are done.
    key
        What tells runs of a sweep apart.
    identity
        Of its data and settings.
    folder
        Where the runs are, for the message.

    Returns
    -------
    RunRecord or None
        None if it is yet to be made.

    Raises
    ------
    InputError
        If it is of other data or settings.
    """
    found = next((run for run in runs if run.key == key), None)
    if found is not None and found.identity != identity:
        msg = f"{folder} holds results of other data or settings ({key}); give another folder with -o"
        raise InputError(msg)
    return found
