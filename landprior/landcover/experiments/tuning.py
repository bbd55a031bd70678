"""Choosing a learning rate on a validation tile, by a grid."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import InputError
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.files import TrainingTile, train_files
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.provenance import make_key
from landprior.raster.outputs import check_apart, make_folder, replacing
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

PRIOR_RATES = (1e-3, 1e-4, 1e-5)
"""The paper's grid for QR and RQ (its published scripts)."""

LABEL_RATES = (1e-2, 1e-3, 1e-4, 1e-5)
"""The paper's grid for supervised runs."""


@dataclass(frozen=True)
class Trial:
    """One learning rate and how its model did on the validation tiles: of r, or of q for a model of labels."""

    learning_rate: float
    accuracy: float
    mean_iou: float
    model: str
    """Name of its model's file in the folder."""


def tune(
    tiles: Sequence[TrainingTile],
    validation: Sequence[TrainingTile],
    folder: str | Path,
    settings: TileSettings | None = None,
    *,
    rates: Sequence[float] = (),
    scheme: ClassScheme | None = None,
    label_map: Mapping[int, int] | None = None,
    run: Run = Run(),
) -> list[Trial]:
    """Train once per learning rate and score on validation tiles.

    Parameters
    ----------
    tiles
        With labels on every one, the labels are fitted, otherwise the priors.
    validation
        Tiles with labels, for scores only; with a prior where the model needs one, or for r.
    folder
        Where models, maps and ``tune.json`` go. The same call after an interruption goes on from there.
    settings
        Everything but the learning rate.
    rates
        The grid; by default the paper's.
    scheme
        The classes; needed with labels, otherwise those of the priors.
    label_map
        Codes of the labels -> codes of the scheme.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of Trial
        In the order of the grid; the best has the highest accuracy (:func:`find_best`).

    Raises
    ------
    InputError
        If some tiles have labels and others not, a validation tile lacks labels or a prior, or labels would be both
        fitted and scored against.
    LandpriorError
        See :func:`landprior.landcover.training.files.train_files` and
        :func:`landprior.landcover.mapping.predict.predict`.
    """
    labelled = {tile.labels is not None for tile in tiles}
    if len(labelled) != 1:
        msg = "give labels for every tile to train on, or for none" if tiles else "there is no tile to train on"
        raise InputError(msg)
    supervised = labelled.pop()
    if not validation or any(tile.labels is None for tile in validation):
        msg = "a learning rate is chosen by scores, so every validation tile needs labels"
        raise InputError(msg)
    if supervised and {tile.image for tile in tiles} & {tile.image for tile in validation}:
        msg = "a learning rate chosen on the labels that are fitted says nothing; validate on another tile"
        raise InputError(msg)
    settings = settings or (TileSettings.supervised() if supervised else TileSettings())
    rates = rates or (LABEL_RATES if supervised else PRIOR_RATES)
    folder = Path(folder)
    make_folder(folder)
    sources = [path for tile in (*tiles, *validation) for path in (tile.image, tile.prior, tile.labels)]
    check_apart([folder / "tune.json"], sources)
    unequal = [tile for tile in validation if (tile.prior is None) != (tiles[0].prior is None)]
    if unequal:
        msg = (
            f"give {unequal[0].image} a prior too" if tiles[0].prior else f"{unequal[0].image} has a prior to no use"
        ) + ": validation tiles have what the tiles to train on have"
        raise InputError(msg)
    done = _read_done(folder / "tune.json")
    basis = {
        "label_map": sorted((label_map or {}).items()),
        "scheme": None if scheme is None else scheme.model_dump(mode="json"),
        "names": [tile.name or tile.image.name for tile in tiles],
    }
    files = {
        f"{role} {number} {kind}": path
        for role, some in (("train", tiles), ("validate", validation))
        for number, tile in enumerate(some)
        for kind, path in _files_of(tile).items()
    }
    trials: list[Trial] = []
    for rate in rates:
        changed = settings.model_copy(update={"training": settings.training.model_copy(update={"learning_rate": rate})})
        key = make_key(basis | {"settings": changed.model_dump(mode="json")}, files)
        stem = f"rate-{rate:g}-{key[:8]}"
        if key not in done or not (folder / done[key].model).is_file():
            logger.info("learning rate %g", rate)
            done[key] = _run_trial(
                tiles,
                validation,
                folder / stem,
                changed,
                scheme=scheme,
                label_map=label_map,
                run=run,
            )
            with replacing(folder / "tune.json", overwrite=True) as temporary:
                temporary.write_text(json.dumps({k: asdict(t) for k, t in done.items()}, indent=2), encoding="utf-8")
        trials.append(done[key])
        logger.info("learning rate %g: accuracy %.4f, mean IoU %.4f", rate, done[key].accuracy, done[key].mean_iou)
    return trials


def find_best(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the highest accuracy; the first of equals."""
    return max(trials, key=lambda trial: trial.accuracy)


def _files_of(tile: TrainingTile) -> dict[str, Path]:
    found = {"image": tile.image, "prior": tile.prior, "labels": tile.labels}
    return {kind: path for kind, path in found.items() if path is not None}


def _read_done(path: Path) -> dict[str, Trial]:
    if not path.is_file():
        return {}
    try:
        return {key: Trial(**trial) for key, trial in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged ({error}); delete it to start anew"
        raise InputError(msg) from error


def _run_trial(
    tiles: Sequence[TrainingTile],
    validation: Sequence[TrainingTile],
    stem: Path,
    settings: TileSettings,
    *,
    scheme: ClassScheme | None,
    label_map: Mapping[int, int] | None,
    run: Run,
) -> Trial:
    """Train with one learning rate, map the validation tiles, score the maps."""
    supervised = tiles[0].labels is not None
    path = stem.with_name(f"{stem.name}.safetensors")
    model = train_files(
        [(tile.image, tile.prior) for tile in tiles],
        path,
        settings=settings,
        labels=[tile.labels for tile in tiles if tile.labels is not None],
        label_map=label_map,
        names=[tile.name or tile.image.name for tile in tiles],
        scheme=scheme,
        run=replace(run, overwrite=True),
    )
    pairs = []
    for number, tile in enumerate(validation):
        labels = tile.labels
        if labels is None:  # pragma: no cover - tune() has checked
            continue
        target = stem.with_name(f"{stem.name}-{number}.tif")
        predict(
            tile.image,
            target,
            model,
            prior=tile.prior if "prior" in model.extras else None,
            posterior=None if supervised else tile.prior,
            force=True,  # what is scored is r itself, not the prior that a harmful one would be replaced by
            run=replace(run, overwrite=True),
        )
        pairs.append((target, labels))
    scores = evaluate(pairs, model.scheme, label_map=label_map)
    return Trial(settings.training.learning_rate, scores.accuracy, scores.mean_iou, path.name)


def best_model(folder: str | Path, trials: Sequence[Trial]) -> Path:
    """Return the path of the best trial's model, which :func:`tune` has left in its folder."""
    return Path(folder) / find_best(trials).model
