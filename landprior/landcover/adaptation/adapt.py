"""Adapting models to a place: a head fitted to labelled points takes the place of the posterior r.

The head is one for the whole place; each model keeps its own mean prediction. How good the adapted map is, is
estimated at the points by cross-validation: each group of neighbouring points is mapped by a head that was fitted
without it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError
from landprior.landcover.adaptation.fitting import (
    LEAST_POINTS,
    Labelled,
    Share,
    choose_ridge,
    estimate_share,
    fit,
    group,
)
from landprior.landcover.adaptation.labelled_pixels import (
    LabelledPixel,
    PlaceTile,
    begin_head,
    measure_sums,
    read_points,
    visit_points,
)
from landprior.landcover.adaptation.report import Report
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.training.layers import PriorLayer
from landprior.landcover.training.model import LandcoverModel, load_model, save_model
from landprior.raster.endings import check_named_output
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from landprior.landcover.training.head import Head
    from landprior.raster.scheme import ClassScheme


logger = logging.getLogger(__name__)


def adapt(
    model: str | Path,
    pairs: Sequence[tuple[str | Path, str | Path]],
    points: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    column: str | None = None,
    layer: str | None = None,
    run: Run = Run(),
) -> Report:
    """Adapt a model to labelled points and write it.

    Parameters
    ----------
    model
        A model file.
    pairs
        Image and prior of each tile that has points, on the same grid.
    points
        Labelled points, any vector file or a CSV (:func:`landprior.landcover.prior.sparse_labels.read_sparse_labels`),
        or several. Points of a sample are weighted by the area they represent; those of a file weigh one on average.
        Points of several classes, lines and polygons do not count.
    output
        The adapted model, a .safetensors file: :func:`landprior.landcover.mapping.predict.predict` maps with it.
    column, layer
        Column with the label, by default ``class`` or else ``reference``, and layer of the file.
    run
        Device, nodata value of the images, progress, and whether to replace an existing model.

    Returns
    -------
    Report
        The accuracy at the points; also in the model's record.

    Raises
    ------
    LandpriorError
        See :func:`fit_head` and :func:`landprior.landcover.training.model.save_model`.
    """
    files = list_files(points)
    inputs = [model, *files, *(path for pair in pairs for path in pair)]
    target = check_named_output(output, "model", overwrite=run.overwrite, inputs=inputs)
    adapted, report = _adapt(model, pairs, files, column=column, layer=layer, run=run)
    save_model(adapted, target, overwrite=run.overwrite)
    return report


def _adapt(
    model: str | Path,
    pairs: Sequence[tuple[str | Path, str | Path]],
    points: Sequence[str | Path],
    **how: Any,  # noqa: ANN401
) -> tuple[LandcoverModel, Report]:
    loaded = load_model(model)
    tiles = [PlaceTile(image=Path(image), prior=Path(prior), model=loaded) for image, prior in pairs]
    heads, report = fit_head(tiles, points, **how)
    return adapted_model(loaded, heads[0], points, report), report


def adapt_in_place(
    model: str | Path,
    pairs: Sequence[tuple[str | Path, str | Path]],
    points: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    layer: str | None = None,
    run: Run = Run(),
) -> Report:
    """Adapt a model that was just trained, and replace its file.

    Parameters
    ----------
    model, pairs, points, column, layer, run
        See :func:`adapt`.

    Returns
    -------
    Report
        The accuracy at the points.

    Raises
    ------
    LandpriorError
        See :func:`adapt`; the model then stays as it is.
    """
    adapted, report = _adapt(model, pairs, list_files(points), column=column, layer=layer, run=run)
    save_model(adapted, model, overwrite=True)
    return report


def require_points(
    priors: Sequence[str | Path],
    points: Sequence[str | Path],
    *,
    scheme: ClassScheme | None = None,
    column: str | None = None,
    layer: str | None = None,
) -> None:
    """Check points before a training that will be adapted to them.

    Parameters
    ----------
    priors
        The priors that the model is trained on.
    points, column, layer
        See :func:`adapt`.
    scheme
        Classes of priors whose files do not store them.

    Raises
    ------
    LandpriorError
        If a file cannot be read, or there are fewer than ten points of one class on the priors.
    """
    found: set[tuple[int, int]] = set()
    for path in priors:
        with PriorLayer(path, scheme=scheme) as belief:
            for number, file in enumerate(points):
                needed = len(priors) == 1
                labels = read_sparse_labels(file, belief.scheme, belief.grid, column=column, layer=layer, needed=needed)
                found |= {(number, index) for index in labels.locate_points(belief.grid).index}
    if len(found) < LEAST_POINTS:
        names = ", ".join(str(file) for file in points)
        msg = f"{names}: {len(found)} points have one class and lie on the priors; at least {LEAST_POINTS} are needed"
        raise InputError(msg)


def list_files(points: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return one file or several as a list."""
    return [points] if isinstance(points, str | Path) else [*points]


def adapted_model(
    model: LandcoverModel, head: Head, points: str | Path | Sequence[str | Path], report: Report
) -> LandcoverModel:
    """Return a model with a head, and the report in its record.

    Parameters
    ----------
    model
        The model.
    head
        Its head.
    points
        The files of the points, for the record.
    report
        What :func:`fit_head` found.

    Returns
    -------
    LandcoverModel
        The adapted model.
    """
    adaptation = {"files": [Path(file).name for file in list_files(points)], **report.to_dict()}
    return replace(model, head=head, record={**model.record, "adaptation": adaptation})


def fit_head(
    tiles: Sequence[PlaceTile],
    points: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    layer: str | None = None,
    run: Run = Run(),
) -> tuple[list[Head], Report]:
    """Fit one head to the points of a place.

    Parameters
    ----------
    tiles
        The tiles, whose models have the same classes. A point on several tiles counts for the first that has
        data there. Tiles of one model share their mean prediction.
    points, column, layer
        See :func:`adapt`.
    run
        Device, nodata value of the images, and progress.

    Returns
    -------
    heads : list of Head
        One per tile: the same weights, with the mean prediction of the tile's model.
    report : Report
        The accuracy at the points.

    Raises
    ------
    InputError
        If fewer than ten points lie on pixels with data, or the file has none for the place.
    ModelError, GridMismatchError, SchemeError
        If models, images and priors do not fit each other.
    """
    files = list_files(points)
    needed = len(tiles) == 1
    read = [read_points(tile, files, column=column, layer=layer, needed=needed, run=run) for tile in tiles]
    tiles = [replace(tile, sums=tile.sums or measure_sums(tile, run=run)) for tile in tiles]
    starts = {id(tile.model): _begin([one for one in tiles if one.model is tile.model]) for tile in tiles}
    found: list[LabelledPixel] = []
    seen: set[Any] = set()
    empty: set[Any] = set()
    for tile, own in zip(tiles, read, strict=True):
        mapped, missed = visit_points(tile, own, starts[id(tile.model)], seen, run=run)
        found += mapped
        empty |= missed
    names = ", ".join(str(file) for file in files)
    left_out = len(empty - seen)
    if left_out:
        logger.warning("%s: %d points lie on pixels without data and are left out", names, left_out)
    if len(found) < LEAST_POINTS:
        msg = f"{names}: {len(found)} points have one class and lie on data; at least {LEAST_POINTS} are needed"
        raise InputError(msg)
    proposed = sum(one.proposed for one in found)
    designed = read[0].designed and not proposed
    shown = np.unique([one.position for one in found])
    first = starts[id(tiles[0].model)]
    start = replace(first, left_out=np.setdiff1d(first.left_out, shown))
    head, report = _fit(found, start, tiles[0].model.scheme.names, designed=designed, proposed=proposed)
    return [share_head(head, report, starts[id(tile.model)]) for tile in tiles], report


def _begin(tiles: Sequence[PlaceTile]) -> Head:
    """Return the head that gives r with a model, from the sums over its tiles."""
    different: list[Sequence[Sequence[float]]] = []  # tiles of a joint model have the shares of all of them
    for tile in tiles:
        if tile.sums is not None and tile.sums not in different:
            different.append(tile.sums)
    return begin_head(different, tiles[0].model.bands)


def share_head(head: Head, report: Report, start: Head) -> Head:
    """Return the head of a place for another of its models.

    Parameters
    ----------
    head
        The head that was fitted.
    report
        Its report: a class that a point shows is never left out.
    start
        The head with which the model would begin (:func:`begin_head`).

    Returns
    -------
    Head
        The same weights, with the mean prediction and prior of the model.
    """
    shown = np.flatnonzero([*report.classes.values()])
    return replace(start, weights=head.weights, bias=head.bias, left_out=np.setdiff1d(start.left_out, shown))


def _fit(
    found: Sequence[LabelledPixel], start: Head, names: Sequence[str], *, designed: bool, proposed: int
) -> tuple[Head, Report]:
    """Fit the head, and estimate how good its map is."""
    shares, files = (np.array([getattr(one, name) for one in found]) for name in ("share", "file"))
    for file in np.unique(files):
        shares[files == file] /= shares[files == file].mean()
    truth = np.array([one.position for one in found])
    groups = group(np.array([one.x for one in found]), np.array([one.y for one in found]))
    labelled = Labelled(
        features=np.stack([one.middle() for one in found], axis=1),
        classes=truth,
        shares=shares,
        groups=groups,
    )
    ridge = choose_ridge(labelled, start)
    # every second point of a group, so that halves are spread alike
    order = np.argsort(groups, kind="stable")
    halved = np.zeros(len(found), dtype=bool)
    halved[order[::2]] = True

    def cross(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        right = np.zeros(len(found), dtype=bool)
        for left_out in np.unique(groups):
            head = fit(labelled.take((groups != left_out) & chosen), start, ridge)
            for index in np.flatnonzero(groups == left_out):
                right[index] = found[int(index)].map(head) == truth[index]
        return right

    def share(right: NDArray[np.bool_]) -> Share:
        return estimate_share(right, labelled.shares)

    counts = np.bincount(truth, minlength=len(names))
    report = Report(
        points=len(found),
        classes=dict(zip(names, counts.tolist(), strict=True)),
        ridge=ridge,
        prior=share(np.array([one.prior for one in found]) == truth),
        plain=share(np.array([one.plain for one in found]) == truth),
        half=share(cross(halved)),
        adapted=share(cross(np.ones(len(found), dtype=bool))),
        designed=designed,
        proposed=proposed,
        marks=" ".join(one.mark for one in found),
    )
    return fit(labelled, start, ridge), report
