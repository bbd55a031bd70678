"""Results of an experiment: one line per map of a finished cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landprior.landcover.assessment.scores import Scores

if TYPE_CHECKING:
    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True)
class Cell:
    """One training run (or map) of one row on one region."""

    row: str
    mode: str
    region: str
    seed: int

    @property
    def key(self) -> str:
        """Key of the cell, unique in the experiment."""
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
        """Key of the result's cell."""
        return Cell(self.row, self.mode, self.region, self.seed).key

    def scores(self, scheme: ClassScheme) -> Scores:
        """Return the scores from the stored confusion matrix."""
        return Scores(scheme=scheme, confusion=np.array(self.confusion, dtype=np.int64))
