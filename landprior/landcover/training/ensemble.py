"""Training several times on the same tiles, to keep the most likely model or average all of them."""

from __future__ import annotations

import contextlib
import glob
import logging
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from landprior.errors import HarmWarning, ModelError
from landprior.implicit.checkpoints import partial_path
from landprior.implicit.devices import choose_device
from landprior.implicit.networks import Ensemble
from landprior.landcover.training.model import LandcoverModel, load_model, save_model
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.shares import measure_shares
from landprior.landcover.training.tile_sets import sort_tiles
from landprior.landcover.training.trainer import identify_run, train_model
from landprior.landcover.training.verdict import Judge, warn_of_harm
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from landprior.implicit.objectives import Batch
    from landprior.landcover.training.tiles import Tile

logger = logging.getLogger(__name__)


def train_best(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    *,
    init: LandcoverModel | None = None,
    feed: Callable[..., Callable[[int], Batch]] = PatchFeed,
    identity: str = "",
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train from several random weights, if the settings ask for it, and keep the most likely model or all models.

    With ``settings.starts`` the model with the largest evidence is kept: the mean of log p(x) under the prior, the
    likelihood that these losses increase. As in any fit with local optima, the best of several starts is chosen. With
    ``settings.members`` all models are kept and their predictions averaged. Neither needs labels.

    Parameters
    ----------
    tiles, settings, init, feed, identity
        See :func:`landprior.landcover.training.trainer.train_model`.
    checkpoint
        Path of the training state; finished models are kept beside it (:func:`clear_checkpoint`).
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        One network, or an ensemble.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.training.trainer.train_model`.
    """
    settings = settings or TileSettings()
    tiles = sort_tiles(tiles)
    # a fit to labels has no evidence to choose a model by
    count = max(settings.members, 1 if tiles and tiles[0].labelled else settings.starts)
    how: dict[str, Any] = {"init": init, "feed": feed, "identity": identity, "checkpoint": checkpoint, "run": run}
    if count == 1 and not settings.flips:
        return train_model(tiles, settings, **how)
    models: list[LandcoverModel] = []
    for start in range(count):
        with warnings.catch_warnings():
            if settings.members > 1:  # the verdict is on the ensemble
                warnings.simplefilter("ignore", HarmWarning)
            models.append(train_kept(tiles, settings, start=start, **how))
    if settings.members > 1 or settings.flips:
        best = join_models(models, tiles, flips=settings.flips, device=run.device)
    else:
        evidences = [model.record["verdict"]["evidence"] for model in models]
        known = [-math.inf if evidence is None else evidence for evidence in evidences]  # None: no pixels
        chosen = known.index(max(known))
        best = models[chosen]
        logger.info("start %d of %d has the largest evidence of %s", chosen + 1, count, evidences)
        best.record["starts"] = {"evidence": evidences, "chosen": chosen}
    return best


def train_kept(
    tiles: Sequence[Tile],
    settings: TileSettings,
    *,
    init: LandcoverModel | None = None,
    start: int = 0,
    feed: Callable[..., Callable[[int], Batch]] = PatchFeed,
    identity: str = "",
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train one of several models, or load it if an interrupted run has already finished it.

    Parameters
    ----------
    tiles, settings, init, start, feed, identity, checkpoint, run
        See :func:`landprior.landcover.training.trainer.train_model`.

    Returns
    -------
    LandcoverModel
        The model; its record includes the identity of the run.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.training.trainer.train_model`.
    """
    tiles = sort_tiles(tiles)
    done = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{start}.safetensors")
    own = f"{identify_run(tiles, settings, init, start)}{identity}"
    model = _load_finished(done, own)
    if model is None:
        how: dict[str, Any] = {"feed": feed, "identity": identity, "checkpoint": checkpoint, "run": run}
        model = train_model(tiles, settings, init=init, start=start, **how)
        model.record["identity"] = own
        if done is not None and checkpoint is not None:
            save_model(model, done, overwrite=True)
            checkpoint.unlink(missing_ok=True)
    return model


def clear_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, and the finished trainings beside it, once the model is saved."""
    finished = checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}-*.safetensors")
    for path in (checkpoint, partial_path(checkpoint), *finished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def join_models(
    models: Sequence[LandcoverModel], tiles: Sequence[Tile], *, flips: bool = False, device: str = "auto"
) -> LandcoverModel:
    """Join models of the same tiles into one that averages their predictions, and compute its verdict.

    Parameters
    ----------
    models
        Models of the same shape.
    tiles
        The tiles they were trained on.
    flips
        Also average over the mirrored image (:class:`landprior.implicit.networks.Ensemble`).
    device
        Device on which the verdict is computed.

    Returns
    -------
    LandcoverModel
        An ensemble, with a verdict of its own.
    """
    tiles = sort_tiles(tiles)
    place = choose_device(device)
    network = Ensemble([member for model in models for member in model.members], flips=flips).to(place).eval()
    first = models[0]
    record = {name: value for name, value in first.record.items() if name not in ("identity", "verdict")}
    record["members"] = [
        {name: model.record[name] for name in ("history", "verdict") if name in model.record} for model in models
    ]
    if not tiles[0].labelled:
        on_device = [tile.to(place) for tile in tiles]
        judge = Judge(on_device, first.statistics, smoothing=first.network.smoothing)
        verdict = judge.take_snapshot(network).judge()
        record["verdict"] = verdict.to_dict()
        if len(tiles) > 1:
            record["shares"] = measure_shares(network, on_device, first.statistics)
        warn_of_harm(verdict)
    return replace(first, network=network, record=record)


def _load_finished(path: Path | None, identity: str) -> LandcoverModel | None:
    """Return the model of a start that an interrupted run finished, if it belongs to the same run."""
    if path is None or not path.is_file():
        return None
    try:
        model = load_model(path)
    except ModelError:
        return None
    return model if model.record.get("identity") == identity else None
