"""Turning a map of clusters into a map of classes, on files."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.domains.clustering.assignment import (
    TRAIN_POINTS,
    Accuracy,
    Assignment,
    ClusterLayer,
    LabelDraws,
    fit_assignment,
    score_splits,
)
from landprior.domains.clustering.mapping import find_probabilities
from landprior.domains.clustering.points import missing_classes, read_points, require_enough
from landprior.errors import InputError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import starting_map, writing_map
from landprior.raster.codes import open_on_grid
from landprior.raster.cog import encode_probabilities
from landprior.raster.windows import Block, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Found
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """Result of :func:`assign_classes`; ``accuracy`` is None without draws."""

    path: Path
    assignment: Assignment
    accuracy: Accuracy | None
    without: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON."""
        return {
            "map": str(self.path),
            "points": self.assignment.points,
            "classes": self.assignment.scheme.names,
            "classes_without_points": list(self.without),
            "table": self.assignment.table.tolist(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
        }


def assign_classes(
    clusters: str | Path,
    output: str | Path,
    *,
    scheme: ClassScheme,
    points: str | Path | None = None,
    labels: str | Path | None = None,
    label_map: Mapping[int, int] | None = None,
    draws: int = 50,
    train_points: int | None = None,
    seed: int = 0,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> Assigned:
    """Turn clusters into classes, map them, and score it over repeated draws.

    Parameters
    ----------
    clusters
        The probabilities of ``landprior cluster``, or the map written with them.
    output
        The map: a COG of class codes, 255 where there is no data.
    scheme
        The classes.
    points
        See :func:`landprior.domains.clustering.points.read_points`; None to draw ``train_points`` from ``labels``.
    labels, label_map
        A labelled raster: draws are then taken from it and scored on all its other pixels.
    draws
        Number of draws for the accuracy; 0 for none.
    train_points
        Number of points of a draw; by default 400 from labels, otherwise four fifths of the points.
    seed
        Random seed; the same seed gives the same draws.
    options
        Other files to write; confidence is not supported.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Assigned
        The map and the assignment.

    Raises
    ------
    InputError
        If there are neither points nor labels, points outside the raster, or all on pixels without data, or fewer
        points than classes.
    OutputExistsError, SchemeError, MissingInputError, GridMismatchError
        If a result exists, a class is unknown, or a file is missing or of another place.
    """
    shares_of = find_probabilities(clusters)
    sources = (clusters, shares_of, points, labels)
    starting = starting_map(output, options, partial(ClusterLayer, shares_of), overwrite=run.overwrite, inputs=sources)
    with ExitStack() as stack:
        target, layer = stack.enter_context(starting)
        given = accuracy = None
        if points is not None:
            given = _take_points(layer, points, scheme, label_map)
            if draws and labels is None:
                accuracy = score_splits(*given, scheme, draws=draws, train_points=train_points, seed=seed)
        if labels is not None:
            truth = stack.enter_context(open_on_grid(labels, layer.grid, like=layer.path))
            drawn = LabelDraws(layer, truth, scheme, label_map=label_map, where=labels, progress=run.progress)
            number = train_points or TRAIN_POINTS
            accuracy = drawn.score(draws, number, seed) if draws else None
            given = given or drawn.draw(1, number, seed)[0]
        if given is None:
            msg = "give --points with labelled points, or --labels with a labelled raster to draw them from"
            raise InputError(msg)
        shares, classes = given
        found = fit_assignment(shares, classes, scheme)
        _write(layer, target, found, options, run=run)
    return Assigned(path=target, assignment=found, accuracy=accuracy, without=missing_classes(classes, scheme))


def _take_points(
    layer: ClusterLayer, points: str | Path, scheme: ClassScheme, label_map: Mapping[int, int] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return q, (k, n), and classes, (n,), of the points of a file that lie on valid pixels."""
    given = read_points(points, layer.grid, scheme, label_map=label_map)
    shares, valid = layer.take(given)
    if not valid.all():
        logger.warning("%d points lie on pixels without data and are left out", int((~valid).sum()))
    given = given.take(valid)
    require_enough(given, scheme, points)
    return shares[:, valid], given.classes


def _write(
    layer: ClusterLayer,
    target: Path,
    found: Assignment,
    options: MapOptions,
    *,
    run: Run,
) -> None:
    """Write the map of classes, and other files, window by window."""
    tags = {"method": "clusters", "clusters": Path(layer.path).name, "points": str(found.points)}
    with writing_map(target, found.scheme, layer.grid, options, tags, overwrite=run.overwrite) as sinks:

        def compute(block: Block) -> dict[str, Found]:
            shares, valid = layer.read(block.core)
            if not valid.any():
                return {}
            probabilities = found.apply(shares)
            best = found.scheme.decode(probabilities.argmax(0), valid)
            probabilities[:, ~valid] = np.nan
            return {"map": best, "probabilities": encode_probabilities(probabilities, options.encoding)}

        stream(compute, grid=layer.grid, sinks=sinks, label="map", progress=run.progress)
