"""Choosing a learning rate by grid search on validation tiles."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import InputError
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.options import MapOptions
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
"""The paper's grid for QR and RQ (from its published scripts)."""

LABEL_RATES = (1e-2, 1e-3, 1e-4, 1e-5)
"""The paper's grid for supervised runs."""


@dataclass(frozen=True)
class Trial:
    """One learning rate with its scores on the validation tiles: of r, or of q for a model trained on labels."""

    learning_rate: float
    accuracy: float
    mean_iou: float
    model: str
    """File name of the model in the folder."""


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
    """Train once per learning rate and score each model on validation tiles.

    Parameters
    ----------
    tiles
        Tiles to train on. If every tile has labels, the labels are fitted, otherwise the priors.
    validation
        Tiles with labels, used only for scoring; with a prior if the model needs one or r is scored.
    folder
        Folder for models, maps and ``tune.json``. After an interruption, the same call resumes.
    settings
        All settings except the learning rate.
    rates
        Learning rates to try; by default the paper's grid.
    scheme
        The classes; required with labels, otherwise taken from the priors.
    label_map
        Codes of the labels -> codes of the scheme.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of Trial
        In the order of the grid; the best is the one with the highest accuracy (:func:`find_best`).

    Raises
    ------
    InputError
        If only some tiles have labels, a validation tile lacks labels or a prior, or labels would be used both to fit
        and to score.
    LandpriorError
        See :func:`landprior.landcover.training.files.train_files` and
        :func:`landprior.landcover.mapping.predict.predict`.
    """
    labelled = {tile.labels is not None for tile in tiles}
    if len(labelled) != 1:
        msg = "give labels for every tile to train on, or for none" if tiles else "there are no tiles to train on"
        raise InputError(msg)
    supervised = labelled.pop()
    if not validation or any(tile.labels is None for tile in validation):
        msg = "a learning rate is chosen by scores, so every validation tile needs labels"
        raise InputError(msg)
    if supervised and {tile.image for tile in tiles} & {tile.image for tile in validation}:
        msg = "a learning rate chosen on the labels that are fitted is meaningless; validate on another tile"
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
            f"give {unequal[0].image} a prior too" if tiles[0].prior else f"{unequal[0].image} has an unused prior"
        ) + ": validation tiles need the same inputs as training tiles"
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
    """Return the trial with the highest accuracy; of equals, the first."""
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
        msg = f"{path} is damaged ({error}); delete it to start over"
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
            force=True,  # score r itself, not the prior that would replace a harmful r
            options=MapOptions(finish="none"),
            run=replace(run, overwrite=True),
        )
        pairs.append((target, labels))
    scores = evaluate(pairs, model.scheme, label_map=label_map)
    return Trial(settings.training.learning_rate, scores.accuracy, scores.mean_iou, path.name)


def best_model(folder: str | Path, trials: Sequence[Trial]) -> Path:
    """Return the path of the best trial's model, written to the folder by :func:`tune`."""
    return Path(folder) / find_best(trials).model
