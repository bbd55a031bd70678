"""Running the trainings of a sweep in a folder; finished ones are not repeated."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from landprior.domains.imagery.network import predict_images
from landprior.domains.imagery.records import RunRecord, add_run, find_run, key_of, read_runs
from landprior.implicit.posterior import log_posterior
from landprior.raster.outputs import make_folder, replacing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.imagery.training import Trained

logger = logging.getLogger(__name__)


class AnyCell(Protocol):
    """A training of a sweep."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    def row(self) -> dict[str, str]:
        """Return the configuration of the training, without its seed."""


C = TypeVar("C", bound=AnyCell)


class Runner(ABC, Generic[C]):
    """Run trainings in a folder, each once.

    Parameters
    ----------
    folder
        Folder for ``results.jsonl``, and ``models/`` with the weights at each training's chosen epoch.
    identity
        Hash of the data and of the settings common to all trainings.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    @abstractmethod
    def cells(self) -> list[C]:
        """Return the trainings, in the order in which they are run."""

    @abstractmethod
    def train(self, cell: C, key: str) -> RunRecord:
        """Run one training; its state for resuming is kept at :meth:`work`."""

    def work(self, key: str) -> Path:
        """Return the path of a training's state and weights, without suffix."""
        return self.folder / "models" / key

    def done(self) -> list[RunRecord]:
        """Return the finished runs, in the order of the trainings.

        Raises
        ------
        InputError
            If the folder has runs of other data or settings under the same names.
        """
        runs = read_runs(self.folder)
        found = (find_run(runs, key_of(c.row(), c.seed), self.identity, self.folder) for c in self.cells())
        return [run for run in found if run is not None]

    def run(self) -> list[RunRecord]:
        """Run the missing trainings and return all runs.

        Raises
        ------
        InputError
            See :meth:`done`.
        TrainingError, TrainingInterruptedError
            See :func:`landprior.implicit.training.fit`; finished runs are kept.
        """
        done = {run.key for run in self.done()}
        cells = self.cells()
        for number, cell in enumerate(cells, 1):
            key = key_of(cell.row(), cell.seed)
            if key in done:
                continue
            logger.info("%d of %d: %s", number, len(cells), key.replace("-", ", ").replace("_", " "))
            work = self.work(key)
            make_folder(work.parent)
            run = self.train(cell, key)
            add_run(self.folder, run)
            work.with_name(f"{key}.checkpoint").unlink(missing_ok=True)
        return self.done()


def write_predictions(path: Path, trained: Trained, data: ImageSplits, prior: Tensor | None = None) -> None:
    """Write the probabilities of every image as CSV, atomically.

    Parameters
    ----------
    path
        The file to write.
    trained, data
        The network and the images.
    prior
        Prior of the training images, (N, C): if given, their probabilities are r; otherwise, and for test images, q.
    """
    classes = data.train.classes
    make_folder(path.parent)
    with replacing(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "split", "label", "predicted", *classes])
        for split, images in (("train", data.train), ("test", data.test)):
            if images is None:
                continue
            device = trained.standardise.mean.device
            log_p = predict_images(trained.network, images.images.to(device), trained.standardise)
            if split == "train" and prior is not None:
                log_p = log_posterior(log_p, prior.log())
            rows = zip(
                images.names, images.labels.tolist(), log_p.argmax(1).tolist(), log_p.exp().tolist(), strict=True
            )
            for name, label, best, probabilities in rows:
                shown = "" if label < 0 else classes[label]
                writer.writerow([name, split, shown, classes[best], *(f"{p:.6f}" for p in probabilities)])
