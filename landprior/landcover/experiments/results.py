"""What an experiment has found: one line per map of a finished cell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter, ValidationError

from landprior.errors import InputError
from landprior.landcover.evaluation import Scores
from landprior.raster.files import replacing
from landprior.raster.scheme import explain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Cell:
    """One training (or map) of one row on one region."""

    row: str
    mode: str
    region: str
    seed: int

    @property
    def key(self) -> str:
        """Unique in the experiment."""
        return f"{self.row}|{self.mode}|{self.region}|{self.seed}"


@dataclass(frozen=True)
class Result:
    """The score of one map of one cell, pooled over its tiles."""

    row: str
    mode: str
    region: str
    seed: int
    map: str
    accuracy: float
    mean_iou: float
    pixels: int
    tiles: int
    confusion: list[list[int]]
    learning_rate: float | None = None

    @property
    def key(self) -> str:
        """The key of its cell."""
        return Cell(self.row, self.mode, self.region, self.seed).key

    def scores(self, scheme: ClassScheme) -> Scores:
        """Return the confusion matrix with what follows from it."""
        return Scores(scheme=scheme, confusion=np.array(self.confusion, dtype=np.int64))


def read_results(folder: Path) -> list[Result]:
    """Read the results of a folder; none where there is no file yet.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    adapter = TypeAdapter(Result)
    try:
        return [adapter.validate_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValidationError as error:
        msg = f"{explain(error, path)}; delete that line to run its cell again"
        raise InputError(msg) from error


def write_results(folder: Path, results: Sequence[Result]) -> None:
    """Write all results, whole or not at all."""
    with replacing(folder / RESULTS, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")
