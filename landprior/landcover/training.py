"""Training a land-cover model on a tile, or on several jointly, against their priors."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from landprior.errors import HarmWarning, InputError, ModelError
from landprior.implicit.checkpoints import part_of
from landprior.implicit.devices import choose_device, make_fabric
from landprior.implicit.losses import IMPLICIT
from landprior.implicit.networks import Ensemble, PixelNetwork
from landprior.implicit.seeds import derive_seed
from landprior.implicit.training import WARMED, fit
from landprior.landcover.image_kind import kind_of, require_one_kind
from landprior.landcover.model import LandcoverModel, build_network, check_model_output, load_model, save_model
from landprior.landcover.patches import PatchFeed
from landprior.landcover.tiles import (
    Tile,
    find_doubles,
    measure_bands,
    order_tiles,
    read_labelled_tile,
    read_tile,
    require_compatible,
    require_inside,
)
from landprior.landcover.training_settings import TileSettings
from landprior.landcover.verdict import LEAST_PIXELS, Judge, Look
from landprior.raster.locks import claiming
from landprior.raster.outputs import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from landprior.implicit.history import Epoch
    from landprior.implicit.training import Batch, Objective
    from landprior.landcover.image_kind import ImageKind
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

MOST_BORDER = 16
"""Pixels left out along the edges of a patch at most: the reach of a U-Net would leave nothing of it."""


@dataclass(frozen=True, kw_only=True)
class TrainingTile:
    """The files of a tile to train or to validate on.

    Parameters
    ----------
    image
        Raster.
    prior
        What is fitted; with labels to train on, a further input.
    nlcd
        Coarse codes, for methods that count in their cells.
    labels
        What is fitted, or what a validation tile is scored against.
    name
        For the seed; by default the image's file name.
    """

    image: Path
    prior: Path | None = None
    nlcd: Path | None = None
    labels: Path | None = None
    name: str = ""


def train_model(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    *,
    init: LandcoverModel | None = None,
    start: int = 0,
    feed: Callable[..., Callable[[int], Batch]] = PatchFeed,
    objective: Objective | None = None,
    identity: str = "",
    device: str = "auto",
    checkpoint: Path | None = None,
    watch: Callable[[Look], Mapping[str, float]] | None = None,
    progress: bool = False,
) -> LandcoverModel:
    """Train one model on tiles in memory.

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.tiles.read_tile`; several share one joint model, in whatever order.
    settings
        See :class:`TileSettings`.
    init
        Start from this model's weights instead of a random network; of an ensemble, from those of one member.
    start
        Which of the random starts (:func:`train_best`); another start is another seed.
    feed, objective
        What makes the batches, called as :class:`PatchFeed` is, and what is minimised
        (:func:`landprior.implicit.training.fit`), where that is not the settings' loss.
    identity
        What else the run depends on, for its checkpoint.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    checkpoint
        Where the state is kept after every epoch, so that an interrupted run goes on.
    watch
        Called with every look; the values it returns are kept in the history. Nothing depends on them.
    progress
        A progress bar on stderr.

    Raises
    ------
    InputError
        If tiles have different bands or classes, are smaller than the network's border, or have no pixel that counts
        away from it.
    ModelError
        If ``init`` has other bands, classes or filters.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings = settings or TileSettings()
    if not tiles:
        msg = "there is no tile to train on"
        raise InputError(msg)
    if PatchFeed in (feed, getattr(feed, "func", None)):  # others go with lists in the order of the tiles
        tiles = _in_order(tiles)
    for name in find_doubles(tiles):
        logger.warning("%s is given more than once, and counts that often in the training", name)
    require_compatible(tiles)
    kind = require_one_kind([(tile.name, tile.kind) for tile in tiles])
    _require_kind_of_start(init, kind)
    names = sorted(tile.name for tile in tiles)
    seed = derive_seed(settings.training.seed, "|".join(names) + (f"#{start}" if start else ""))
    fabric = make_fabric(settings.training.precision, device)
    on_device = [tile.to(fabric.device) for tile in tiles]
    statistics = measure_bands(on_device)
    labelled = tiles[0].labelled
    _require_targets(labelled, settings.training.loss)
    network = _start(on_device[0], settings, init, start, seed)
    halo = min(network.halo, MOST_BORDER)
    require_inside(on_device, halo)
    batches = feed(
        on_device,
        statistics,
        patch_size=settings.patch_size,
        batch_size=settings.batch_size,
        seed=seed,
        smoothing=settings.smoothing,
        halo=halo,
    )
    judge = None if labelled else Judge(on_device, statistics, smoothing=settings.smoothing)
    look: Look | None = None

    def monitor(network: nn.Module) -> dict[str, float]:
        nonlocal look
        if judge is None:  # labels need no judgement
            return {}
        look = judge.look(network)
        figures = {"change": look.change, "evidence": look.evidence, "gain": look.gain}
        return figures | dict(watch(look) if watch is not None else {})

    def until(epoch: Epoch) -> str | None:
        late = judge is not None and settings.training.loss in WARMED and 2 * epoch.step >= settings.training.steps
        return "the map has settled" if late and epoch.extra["change"] < settings.settled else None

    history = fit(
        network,
        batches,
        settings.training,
        objective=objective,
        fabric=fabric,
        monitor=monitor,
        until=until,
        checkpoint=checkpoint,
        identity=f"{_identify(tiles, settings, init, start)}{identity}" if checkpoint is not None else "",
        progress=progress,
    )
    network.eval()
    verdict = None if judge is None else (look or judge.look(network)).judge()
    if verdict is not None:
        logger.info("verdict: %s; %s", verdict["decision"], verdict["why"])
        _warn_of_harm(verdict)
    return LandcoverModel(
        network=network,
        scheme=tiles[0].scheme,
        statistics=statistics,
        filters=settings.filters,
        architecture=settings.network,
        extras=tiles[0].extras,
        record={
            "settings": settings.model_dump(mode="json"),
            "tiles": names,
            "labelled": labelled,
            "history": history.summary()
            | {
                "looks": [
                    {"step": e.step} | {k: None if math.isnan(v) else v for k, v in e.extra.items()}
                    for e in history.epochs
                ]
            },
            **({} if verdict is None else {"verdict": verdict}),
            **({} if kind is None else {"image": kind.model_dump()}),
            "device": fabric.device.type,
            "torch": torch.__version__,
        },
    )


def train_best(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    *,
    init: LandcoverModel | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> LandcoverModel:
    """Train from several random weights, if the settings ask for it, and keep the likeliest model, or all of them.

    With ``settings.starts`` the model with the largest evidence is kept: the mean of log p(x) under the prior is
    the likelihood that these losses raise, and as in any fit with local optima, of several starts the likeliest is
    taken. With ``settings.members`` all are kept, and their predictions averaged. Neither needs labels. Arguments and
    errors as :func:`train_model`; finished trainings are kept beside the checkpoint (:func:`clear_checkpoint`).
    """
    settings = settings or TileSettings()
    tiles = _in_order(tiles)
    # a fit to labels has no evidence to choose by
    count = max(settings.members, 1 if tiles and tiles[0].labelled else settings.starts)
    if count == 1 and not settings.flips:
        return train_model(tiles, settings, init=init, device=device, checkpoint=checkpoint, progress=progress)
    models: list[LandcoverModel] = []
    for start in range(count):
        with warnings.catch_warnings():
            if settings.members > 1:  # it is the ensemble that is judged
                warnings.simplefilter("ignore", HarmWarning)
            models.append(
                train_kept(
                    tiles, settings, init=init, start=start, device=device, checkpoint=checkpoint, progress=progress
                )
            )
    if settings.members > 1 or settings.flips:
        best = join_models(models, tiles, flips=settings.flips, device=device)
    else:
        evidences = [model.record["verdict"]["evidence"] for model in models]
        known = [-math.inf if evidence is None else evidence for evidence in evidences]  # None: no pixel to judge by
        chosen = known.index(max(known))
        best = models[chosen]
        logger.info("start %d of %d has the largest evidence: %s", chosen + 1, count, evidences)
        best.record["starts"] = {"evidence": evidences, "chosen": chosen}
    return best


def train_kept(
    tiles: Sequence[Tile],
    settings: TileSettings,
    *,
    init: LandcoverModel | None = None,
    start: int = 0,
    device: str = "auto",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> LandcoverModel:
    """Train one of several models, or take it from beside the checkpoint if an interrupted run has finished it.

    Arguments and errors as :func:`train_model`.
    """
    tiles = _in_order(tiles)
    done = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{start}.safetensors")
    identity = _identify(tiles, settings, init, start)
    model = _finished(done, identity)
    if model is None:
        model = train_model(
            tiles, settings, init=init, start=start, device=device, checkpoint=checkpoint, progress=progress
        )
        model.record["identity"] = identity
        if done is not None and checkpoint is not None:
            save_model(model, done, overwrite=True)
            checkpoint.unlink(missing_ok=True)
    return model


def clear_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, and the finished trainings beside it, once the model is safe."""
    finished = checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}-*.safetensors")
    for path in (checkpoint, part_of(checkpoint), *finished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def join_models(
    models: Sequence[LandcoverModel], tiles: Sequence[Tile], *, flips: bool = False, device: str = "auto"
) -> LandcoverModel:
    """Join models of the same tiles into one that averages their predictions, and judge it anew.

    Parameters
    ----------
    models
        Of one shape.
    tiles
        What they were trained on.
    flips
        Average over the mirrored image too (:class:`landprior.implicit.networks.Ensemble`).
    device
        Where it is judged.
    """
    tiles = _in_order(tiles)
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
        record["verdict"] = judge.look(network).judge()
        _warn_of_harm(record["verdict"])
    return replace(first, network=network, record=record)


def _in_order(tiles: Sequence[Tile]) -> Sequence[Tile]:
    return [tiles[index] for index in order_tiles(tiles)]


def _finished(path: Path | None, identity: str) -> LandcoverModel | None:
    """Return the model of a start that an interrupted run has finished, if it is of the same run."""
    if path is None or not path.is_file():
        return None
    try:
        model = load_model(path)
    except ModelError:
        return None
    return model if model.record.get("identity") == identity else None


def _identify(tiles: Sequence[Tile], settings: TileSettings, init: LandcoverModel | None, start: int) -> str:
    """Return a hash of all that a run depends on."""
    sha = hashlib.sha256(settings.model_dump_json().encode())
    sha.update(f"{start}:{init.digest() if init is not None else ''}".encode())
    for tile in tiles:
        sha.update(tile.name.encode())
        for values in (tile.image, tile.prior, tile.valid, tile.extra, tile.seen):
            if values is not None:
                sha.update(values.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _warn_of_harm(verdict: Mapping[str, Any]) -> None:
    if verdict["decision"] != "kept":
        lead = "looks worse than its prior" if verdict["pixels"] >= LEAST_PIXELS else "cannot be judged"
        warnings.warn(
            f"this model {lead} ({verdict['why']}); predict --posterior will hand back the prior. "
            "Try another --seed, a better cooccurrence matrix or more layers in the prior",
            HarmWarning,
            stacklevel=3,
        )


def _require_kind_of_start(init: LandcoverModel | None, kind: ImageKind | None) -> None:
    """Refuse to start from a model of other images; their range may differ, as bands are standardised anew."""
    trained = None if init is None else kind_of(init)
    found = [] if trained is None or kind is None else trained.differences(kind, values=False)
    if found:
        msg = (
            f"the model to start from was trained on another kind of image: {'; '.join(found)}; "
            "leave --init out, or give images of one kind"
        )
        raise ModelError(msg)


def _require_targets(labelled: bool, loss: str) -> None:  # noqa: FBT001 - private
    if labelled and loss in IMPLICIT:
        msg = f"{loss} fits a prior, not labels; with labels use --loss ce, or give the prior without labels"
        raise InputError(msg)


def _start(tile: Tile, settings: TileSettings, init: LandcoverModel | None, start: int, seed: int) -> PixelNetwork:
    """Build the network, from the seed or from another model."""
    bands = int(tile.image.shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            bands,
            tile.scheme,
            tile.extras,
            filters=settings.filters,
            smoothing=settings.smoothing,
            architecture=settings.network,
        )
    if init is not None:
        own = (settings.network, bands, tile.scheme.names, settings.filters, tile.extras)
        other = (init.architecture, init.bands, init.scheme.names, init.filters, init.extras)
        if own != other:
            msg = f"the model to start from has {_describe(*other)}; this run has {_describe(*own)}"
            raise ModelError(msg)
        network.load_state_dict(init.members[start % len(init.members)].state_dict())
    return network.to(memory_format=torch.channels_last)


def _describe(network: str, bands: int, classes: Sequence[str], filters: int, extras: Sequence[str]) -> str:
    more = f", {' and '.join(extras)} as input" if extras else ""
    return f"{bands} bands{more}, {filters} filters ({network}) and classes {', '.join(classes)}"


def train_files(
    pairs: Sequence[tuple[str | Path, str | Path | None]],
    output: str | Path,
    settings: TileSettings | None = None,
    *,
    labels: Sequence[str | Path] = (),
    label_map: Mapping[int, int] | None = None,
    names: Sequence[str] | None = None,
    scheme: ClassScheme | None = None,
    nodata: float | None = None,
    init: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> LandcoverModel:
    """Train on (image, prior) files and write the model; several pairs make one joint model.

    With ``labels``, one raster per image, the labels are fitted; the prior is then an input, or None.
    ``names`` are the tiles' names, from which their seeds derive; by default the image's file names.
    While it runs, its state is kept beside the output (``.<name>.checkpoint``); the same call after an
    interruption goes on from there, and ends with the same weights as without.

    Raises
    ------
    LandpriorError
        See :func:`train_model`, :func:`landprior.landcover.tiles.read_tile` and
        :func:`landprior.landcover.model.save_model`.
    """
    sources = [init, *labels, *(path for pair in pairs for path in pair)]
    target = check_model_output(output, overwrite=overwrite, inputs=sources)
    start = None if init is None else load_model(init)
    names = names or [Path(image).name for image, _ in pairs]
    truths: Sequence[str | Path | None] = labels or [None] * len(pairs)
    tiles = [
        _read(image, prior, truth, name=name, scheme=scheme, label_map=label_map, nodata=nodata)
        for name, (image, prior), truth in zip(names, pairs, truths, strict=True)
    ]
    checkpoint = checkpoint_of(target)
    with claiming(target):
        model = train_best(tiles, settings, init=start, device=device, checkpoint=checkpoint, progress=progress)
        save_model(model, target, overwrite=overwrite)
        clear_checkpoint(checkpoint)
    return model


def _read(
    image: str | Path,
    prior: str | Path | None,
    labels: str | Path | None,
    *,
    name: str,
    scheme: ClassScheme | None,
    label_map: Mapping[int, int] | None,
    nodata: float | None,
) -> Tile:
    """Read a tile to fit its labels where there are some, its prior where not."""
    if labels is None:
        if prior is None:
            msg = f"{image} has neither prior nor labels to learn from"
            raise InputError(msg)
        return read_tile(image, prior, name=name, scheme=scheme, nodata=nodata)
    if scheme is None:
        msg = "labels need --scheme, which says what their codes are"
        raise InputError(msg)
    return read_labelled_tile(image, labels, scheme=scheme, prior=prior, label_map=label_map, name=name, nodata=nodata)
