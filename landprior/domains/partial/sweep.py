"""Sweeps over losses, marginals, numbers of negative labels, batch sizes and seeds; finished runs are not repeated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from landprior.domains.imagery.records import RunRecord
from landprior.domains.imagery.runner import Runner, write_predictions
from landprior.domains.imagery.training import identify
from landprior.domains.partial.candidates import draw_negatives, thin_classes
from landprior.domains.partial.training import train_partial
from landprior.errors import InputError
from landprior.implicit.settings import IMPLICIT
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.partial.settings import Denominator, PartialLoss, Sweep


@dataclass(frozen=True)
class Cell:
    """One training of a sweep; its fields are the row of its result."""

    loss: PartialLoss
    marginal: Denominator
    negatives: int | None
    batch_size: int
    thin: str
    seed: int

    def row(self) -> dict[str, str]:
        """Return the configuration of the training, without its seed."""
        return {
            "loss": self.loss,
            "marginal": self.marginal if self.loss in IMPLICIT else "",
            "negatives": "" if self.negatives is None else str(self.negatives),
            "batch": str(self.batch_size),
            "thin": self.thin,
        }


class SweepRunner(Runner[Cell]):
    """Run the trainings of a sweep in a folder.

    Parameters
    ----------
    data
        Images; test images, if any, have true labels.
    sweep
        The trainings.
    folder
        Folder for ``results.jsonl``, and ``models/`` with the weights at each training's chosen epoch.
    candidates
        Candidate sets of the training images, (N, C), see :func:`read_candidates`; None: negative labels are drawn.
    predictions
        Also write ``predictions/``, one CSV per training: q of every item and, for those with candidates, r.
    run
        See :class:`landprior.run.Run`.

    Raises
    ------
    InputError
        If a class to thin is unknown, or required labels are missing.
    """

    def __init__(
        self,
        data: ImageSplits,
        sweep: Sweep,
        folder: Path,
        *,
        candidates: Tensor | None = None,
        predictions: bool = False,
        run: Run = Run(),
    ) -> None:
        self._data, self.sweep = data, sweep
        self._candidates, self._run = candidates, run
        self._predictions = predictions
        if candidates is None and not sweep.negatives:
            msg = "give candidate sets or a number of negative labels to draw"
            raise InputError(msg)
        unknown = [name for name in sweep.thin if name not in data.train.classes]
        if unknown:
            msg = f"{unknown[0]!r} to thin is not among the classes ({', '.join(data.train.classes)})"
            raise InputError(msg)
        if sweep.thin and not data.train.known:
            msg = "classes can be thinned only if the labels of all training images are known"
            raise InputError(msg)
        common = sweep.training.model_dump_json(exclude={"loss", "marginal", "batch_size", "seed"})
        super().__init__(folder, hashlib.sha256(f"{identify(data, candidates)}|{common}".encode()).hexdigest()[:16])

    def cells(self) -> list[Cell]:
        """Return the trainings, in the order in which they are run: all with the first seed first."""
        sweep = self.sweep
        thin = "+".join(f"{name}x{share:g}" for name, share in sweep.thin.items())
        negatives: tuple[int | None, ...] = (None,) if self._candidates is not None else sweep.negatives
        found = [
            Cell(loss, marginal, count, batch, thin, seed)
            for seed, count, batch, loss in product(range(sweep.seeds), negatives, sweep.batch_sizes, sweep.losses)
            for marginal in (sweep.marginals if loss in IMPLICIT else ("batch",))
        ]
        return list(dict.fromkeys(found))

    def train(self, cell: Cell, key: str) -> RunRecord:
        """Train a cell of the sweep."""
        settings = self.sweep.training.model_copy(
            update={
                "loss": cell.loss,
                "marginal": cell.marginal,
                "batch_size": cell.batch_size,
                "seed": cell.seed,
            }
        )
        train = self._data.train
        prior = self._candidates
        if prior is None:
            prior = draw_negatives(train.labels, len(train.classes), cell.negatives or 1, seed=cell.seed)
        items = None
        if self.sweep.thin:
            shares = {train.classes.index(name): share for name, share in self.sweep.thin.items()}
            items = thin_classes(train.labels, shares, seed=cell.seed)
        trained = train_partial(
            self._data,
            prior,
            settings,
            items=items,
            work=self.work(key),
            identity=f"{self.identity}|{key}",
            run=self._run,
        )
        if self._predictions:
            write_predictions(self.folder / "predictions" / f"{key}.csv", trained, self._data, prior)
        return RunRecord(
            row=cell.row(),
            seed=cell.seed,
            identity=self.identity,
            looks=trained.looks,
            chosen=trained.chosen,
            items=trained.items,
            seconds=round(trained.seconds, 1),
        )
