"""Results of trainings: one line of ``results.jsonl`` each, so that an interrupted sweep can resume."""

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
    """Metrics of a network after an epoch.

    Parameters
    ----------
    epoch
        Number of the epoch, from 1.
    loss
        Mean loss over the epoch's steps.
    scores
        Scores on held-out items without true labels; see the judge that computes them.
    train, test
        Percent of training and test items whose most probable class is correct; None without true labels.
    confusion
        Test items by true class (rows) and predicted class, if requested.
    """

    epoch: int
    loss: float
    scores: dict[str, float]
    train: float | None = None
    test: float | None = None
    confusion: list[list[int]] | None = None


@dataclass(frozen=True)
class RunRecord:
    """Record of a training.

    Parameters
    ----------
    row
        Configuration, as name -> value, without the seed; all runs of a sweep have the same names.
    seed
        Seed of the run.
    identity
        Hash of data and settings.
    looks
        The scores of every epoch, under the name used in files.
    chosen
        The epoch chosen with the held-out items.
    items
        Number of items fitted.
    seconds
        Duration without interruptions; not reproducible.
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
        """Key of the run, unique in a sweep."""
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
        Finished runs.
    key, identity
        Unique key of the run in its sweep, and the hash of its data and settings.
    folder
        Folder of the runs, for the message.

    Returns
    -------
    RunRecord or None
        The run; None if it is not finished.

    Raises
    ------
    InputError
        If it used other data or settings.
    """
    found = next((run for run in runs if run.key == key), None)
    if found is not None and found.identity != identity:
        msg = f"{folder} has results of other data or settings ({key}); give another folder with -o"
        raise InputError(msg)
    return found
