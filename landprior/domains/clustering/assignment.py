"""Assigning classes to clusters with a few labelled points.

With q_i(l) the probability of cluster l at point i and c_i its class,

    p(c | l)  proportional to  sum_i q_i(l) 1[c_i = c] + w s(c),

with s(c) the share of class c among the points and w a small weight, so that a cluster without points gets the mix of
all points. A pixel's class probabilities are then sum_l q(l) p(c | l).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.domains.clustering.mapping import find_probabilities
from landprior.domains.clustering.training import make_scheme
from landprior.errors import InputError
from landprior.landcover.assessment.scores import Scores, count_pairs
from landprior.landcover.training.layers import PriorLayer
from landprior.raster.classes import read_classes
from landprior.raster.reading import open_raster
from landprior.raster.windows import Block, iter_blocks, stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.domains.clustering.points import LabelledPoints
    from landprior.raster.codes import CodeRaster
    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Found


WEIGHT = 0.5
"""Default weight w of the overall shares, in points."""

TRAIN_POINTS = 400
"""Default number of points of a draw from a labelled raster."""

TRAIN_SHARE = 0.8
"""Share of the given points used in a draw, if there is no labelled raster."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The classes of clusters.

    Parameters
    ----------
    table
        p(c | l), shape (k, C), rows sum to 1.
    scheme
        The classes.
    points
        Number of points used.
    """

    table: NDArray[np.float64]
    scheme: ClassScheme
    points: int

    def apply(self, shares: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return class probabilities, shape (C, ...), from cluster probabilities, shape (k, ...)."""
        return np.asarray(np.tensordot(self.table.T, shares, axes=1), dtype=np.float32)

    def to_text(self) -> str:
        """Return p(c | l) as a table for the terminal."""
        widths = [max(len(name), 6) for name in self.scheme.names]
        heads = " ".join(f"{name:>{width}}" for name, width in zip(self.scheme.names, widths, strict=True))
        lines = [f"cluster  {heads}"]
        for number, row in enumerate(self.table, start=1):
            cells = " ".join(f"{value:>{width}.3f}" for value, width in zip(row, widths, strict=True))
            lines.append(f"{number:>7}  {cells}")
        return "\n".join(lines)


def fit_assignment(
    shares: NDArray[np.floating], classes: NDArray[np.integer], scheme: ClassScheme, *, weight: float = WEIGHT
) -> Assignment:
    """Estimate p(c | l) from points.

    Parameters
    ----------
    shares
        q at the points, shape (k, n).
    classes
        Class positions of the points, shape (n,).
    scheme
        The classes.
    weight
        The weight w.

    Returns
    -------
    Assignment
        p(class | cluster).

    Raises
    ------
    InputError
        If there are no points.
    """
    if not len(classes):
        msg = "there are no labelled points to assign classes to clusters"
        raise InputError(msg)
    one_hot = np.eye(len(scheme))[classes]
    table = shares.astype(np.float64) @ one_hot + weight * one_hot.mean(axis=0)
    return Assignment(table=table / table.sum(axis=1, keepdims=True), scheme=scheme, points=len(classes))


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy over repeated draws of points.

    Parameters
    ----------
    scores
        Scores of each draw on all other labelled pixels or points.
    points
        Number of points of a draw.
    of
        What was scored: ``"pixels"`` or ``"points"``.
    """

    scores: tuple[Scores, ...]
    points: int
    of: str

    @property
    def values(self) -> NDArray[np.float64]:
        """Accuracy of each draw, shape (draws,)."""
        return np.array([score.accuracy for score in self.scores])

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(self.values.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over the draws."""
        return float(self.values.std(ddof=1)) if len(self.scores) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the accuracy as a dictionary for JSON."""
        return {
            "draws": len(self.scores),
            "points": self.points,
            "scored": self.of,
            "mean": self.mean,
            "standard_deviation": self.spread,
            "lowest": float(self.values.min()),
            "highest": float(self.values.max()),
            "mean_iou": float(np.mean([score.mean_iou for score in self.scores])),
            "values": self.values.tolist(),
        }

    def to_text(self) -> str:
        """Return a line for the terminal."""
        return (
            f"accuracy {self.mean:.4f} +- {self.spread:.4f} ({self.values.min():.4f} to {self.values.max():.4f}) over "
            f"{len(self.scores)} draws of {self.points} points, on all other labelled {self.of}"
        )


class ClusterLayer(PriorLayer):
    """Probabilities of clusters, one band each, in an open raster; clusters without names are numbered 1, 2, ..."""

    def __init__(self, path: str | Path) -> None:
        path = find_probabilities(path)
        with open_raster(path) as src:
            count = src.count
        try:
            super().__init__(path)
        except InputError:
            super().__init__(path, scheme=make_scheme(count))

    def take(self, points: LabelledPoints) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return q at points, shape (k, n), and the mask of valid points, (n,); reads only blocks with points."""
        shares = np.zeros((len(self.scheme), len(points)), dtype=np.float32)
        valid = np.zeros(len(points), dtype=bool)
        for block in iter_blocks(self.grid):
            rows, columns = block.core.toslices()
            here = np.flatnonzero(
                (points.rows >= rows.start)
                & (points.rows < rows.stop)
                & (points.columns >= columns.start)
                & (points.columns < columns.stop)
            )
            if len(here):
                values, known = self.read(block.core)
                at = points.rows[here] - rows.start, points.columns[here] - columns.start
                shares[:, here], valid[here] = values[:, *at], known[at]
        return shares, valid


def score_splits(
    shares: NDArray[np.floating],
    classes: NDArray[np.integer],
    scheme: ClassScheme,
    *,
    draws: int = 50,
    train_points: int | None = None,
    seed: int = 0,
) -> Accuracy:
    """Score repeated splits of labelled points: some assign classes, the others are scored.

    Parameters
    ----------
    shares, classes, scheme
        See :func:`fit_assignment`.
    draws
        Number of splits.
    train_points
        Points of the first part; by default four fifths.
    seed
        Random seed; the same seed gives the same splits.

    Returns
    -------
    Accuracy
        One score per split.

    Raises
    ------
    InputError
        If there are no points left to score or to learn from.
    """
    number = round(TRAIN_SHARE * len(classes)) if train_points is None else train_points
    if not 0 < number < len(classes):
        msg = (
            f"{len(classes)} points cannot be split into {number} and the rest; give more points, or fewer "
            "--train-points"
        )
        raise InputError(msg)
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        order = rng.permutation(len(classes))
        first, rest = order[:number], order[number:]
        found = fit_assignment(shares[:, first], classes[first], scheme)
        scores.append(Scores.of(found.apply(shares[:, rest]).argmax(0), classes[rest], scheme))
    return Accuracy(scores=tuple(scores), points=number, of="points")


class LabelDraws:
    """Repeated draws of points from a labelled raster, scored on all its other pixels, window by window.

    Parameters
    ----------
    clusters
        Open probabilities of clusters.
    labels
        The labelled raster, open on their grid.
    scheme, label_map
        The classes, and the meaning of the raster's codes.
    where
        Name of the raster in error messages.
    progress
        Show progress bars on stderr.
    """

    def __init__(
        self,
        clusters: ClusterLayer,
        labels: CodeRaster,
        scheme: ClassScheme,
        *,
        label_map: Mapping[int, int] | None = None,
        where: str | Path = "the labels",
        progress: bool = False,
    ) -> None:
        self._clusters, self._labels, self._scheme = clusters, labels, scheme
        self._codes, self._where, self._progress = label_map or {}, where, progress

    def _read(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Return q, (k, n), and classes, (n,), of the labelled pixels of a block, in order."""
        truth = read_classes(self._labels, block.core, self._scheme, codes=self._codes, where=self._where)
        if not (truth >= 0).any():
            return np.empty((len(self._clusters.scheme), 0), dtype=np.float32), np.empty(0, dtype=np.int16)
        shares, valid = self._clusters.read(block.core)
        known = valid & (truth >= 0)
        return shares[:, known], truth[known]

    def _stream(self, take: Any, label: str) -> None:  # noqa: ANN401 - takes q and classes of a block
        def compute(block: Block) -> dict[str, Found]:
            take(*self._read(block))
            return {}

        stream(compute, grid=self._clusters.grid, sinks={}, label=label, progress=self._progress)

    def count(self) -> int:
        """Count the pixels with both clusters and labels."""
        total = 0

        def take(_: NDArray[np.float32], classes: NDArray[np.int16]) -> None:
            nonlocal total
            total += len(classes)

        self._stream(take, "labelled pixels")
        return total

    def draw(self, draws: int, number: int, seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Draw points from the labelled pixels, without replacement.

        Parameters
        ----------
        draws
            Number of draws.
        number
            Number of points of a draw.
        seed
            Random seed; the same seed gives the same draws.

        Returns
        -------
        list of tuple
            For each draw q, (k, number), and class positions, (number,).

        Raises
        ------
        InputError
            If there are not more labelled pixels than points.
        """
        total = self.count()
        if total <= number:
            msg = f"{self._where} has {total} labelled pixels with data, not more than the {number} points of a draw"
            raise InputError(msg)
        rng = np.random.default_rng(seed)
        ranks = [np.sort(rng.choice(total, number, replace=False)) for _ in range(draws)]
        parts: list[list[tuple[NDArray[np.float32], NDArray[np.int16]]]] = [[] for _ in ranks]
        seen = 0

        def take(shares: NDArray[np.float32], classes: NDArray[np.int16]) -> None:
            nonlocal seen
            for found, wanted in zip(parts, ranks, strict=True):
                first, last = np.searchsorted(wanted, (seen, seen + len(classes)))
                if last > first:
                    at = wanted[first:last] - seen
                    found.append((shares[:, at], classes[at]))
            seen += len(classes)

        self._stream(take, "drawing points")
        return [
            (np.concatenate([q for q, _ in found], axis=1), np.concatenate([c for _, c in found]).astype(np.int64))
            for found in parts
        ]

    def score(self, draws: int, number: int, seed: int) -> Accuracy:
        """Score draws of points on all other labelled pixels.

        Parameters
        ----------
        draws, number, seed
            How many draws, of how many points each: see :meth:`draw`.

        Returns
        -------
        Accuracy
            One score per draw.

        Raises
        ------
        InputError
            See :meth:`draw`.
        """
        drawn = self.draw(draws, number, seed)
        found = [fit_assignment(shares, classes, self._scheme) for shares, classes in drawn]
        count = len(self._scheme)
        # a draw's own points are not scored
        confusions = [
            -count_pairs(one.apply(shares).argmax(0), classes, count)
            for one, (shares, classes) in zip(found, drawn, strict=True)
        ]

        def take(shares: NDArray[np.float32], classes: NDArray[np.int16]) -> None:
            for index, one in enumerate(found):
                confusions[index] += count_pairs(one.apply(shares).argmax(0), classes, count)

        self._stream(take, "accuracy")
        scores = tuple(Scores(scheme=self._scheme, confusion=confusion) for confusion in confusions)
        return Accuracy(scores=scores, points=number, of="pixels")
