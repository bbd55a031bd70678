"""Training a land-cover model on a tile, or on several jointly, against their priors."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from landprior.errors import InputError, ModelError
from landprior.implicit.devices import make_fabric
from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import IMPLICIT, WARMED, WIDEST_FIELD
from landprior.implicit.training import fit
from landprior.landcover.training.image_kind import kind_of, require_one_kind
from landprior.landcover.training.model import LandcoverModel, build_network
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.shares import measure_shares
from landprior.landcover.training.tile_sets import find_doubles, require_compatible, require_inside, sort_tiles
from landprior.landcover.training.tiles import Tile, measure_bands
from landprior.landcover.training.verdict import Judge, Snapshot, warn_of_harm
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from landprior.implicit.history import Epoch
    from landprior.implicit.networks import PixelNetwork
    from landprior.implicit.objectives import Batch, Objective
    from landprior.landcover.training.image_kind import ImageKind

logger = logging.getLogger(__name__)

MOST_BORDER = 16
"""Maximum border left out of a patch, pixels: the full reach of a U-Net would leave nothing."""


def train_model(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    *,
    init: LandcoverModel | None = None,
    start: int = 0,
    feed: Callable[..., Callable[[int], Batch]] = PatchFeed,
    objective: Objective | None = None,
    identity: str = "",
    checkpoint: Path | None = None,
    watch: Callable[[Snapshot], Mapping[str, float]] | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train one model on tiles in memory.

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.training.tiles.read_tile`; several tiles share one joint model; their order does
        not matter.
    settings
        See :class:`TileSettings`.
    init
        Start from this model's weights instead of a random network; for an ensemble, from those of one member.
    start
        Number of the random start (:func:`train_best`), which changes the seed.
    feed, objective
        Factory of the batches, called like :class:`PatchFeed`, and the objective
        (:func:`landprior.implicit.training.fit`), if it is not the settings' loss.
    identity
        Anything else the run depends on, for its checkpoint.
    checkpoint
        Path for the state, saved after every epoch, so that an interrupted run can resume.
    watch
        Called with every snapshot; the returned values are stored in the history and have no effect.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        The model on the CPU, with its record and verdict.

    Raises
    ------
    InputError
        If tiles have different bands or classes, are smaller than the network's border, or have no usable pixel inside
        it.
    ModelError
        If ``init`` has other bands, classes, filters or another receptive field.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings = settings or TileSettings()
    if not tiles:
        msg = "there are no tiles to train on"
        raise InputError(msg)
    if PatchFeed in (feed, getattr(feed, "func", None)):  # other feeds use lists in the order of the tiles
        tiles = sort_tiles(tiles)
    for name in find_doubles(tiles):
        logger.warning("%s is given more than once, and is weighted accordingly in training", name)
    require_compatible(tiles)
    kind = require_one_kind([(tile.name, tile.kind) for tile in tiles])
    _require_kind_of_start(init, kind)
    names = sorted(tile.name for tile in tiles)
    seed = derive_seed(settings.training.seed, "|".join(names) + (f"#{start}" if start else ""))
    fabric = make_fabric(settings.training.precision, run.device)
    on_device = [tile.to(fabric.device) for tile in tiles]
    statistics = measure_bands(on_device)
    labelled = tiles[0].labelled
    _require_targets(labelled, settings.training.loss)
    options = _choose_options(on_device[0], settings, init)
    if settings.network == "fcn":
        settings = settings.model_copy(update={"receptive_field": options.get("receptive_field", WIDEST_FIELD)})
    network = _start(on_device[0], settings, options, init, start, seed)
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
    snapshot: Snapshot | None = None

    def monitor(network: nn.Module) -> dict[str, float]:
        nonlocal snapshot
        if judge is None:  # no verdict with labels
            return {}
        snapshot = judge.take_snapshot(network)
        figures = {"change": snapshot.change, "evidence": snapshot.evidence, "gain": snapshot.gain}
        return figures | dict(watch(snapshot) if watch is not None else {})

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
        identity=f"{identify_run(tiles, settings, init, start)}{identity}" if checkpoint is not None else "",
        progress=run.progress,
    )
    network.eval()
    shares = None if labelled or len(tiles) == 1 else measure_shares(network, on_device, statistics)
    verdict = None if judge is None else (snapshot or judge.take_snapshot(network)).judge()
    if verdict is not None:
        if settings.training.loss not in IMPLICIT:  # cross-entropy leaves out unlikely classes, whatever the matrix
            verdict = replace(verdict, distance=None)
        logger.info("verdict: %s; %s", verdict.decision, verdict.why)
        warn_of_harm(verdict)
    return LandcoverModel(
        network=network,
        scheme=tiles[0].scheme,
        statistics=statistics,
        filters=settings.filters,
        architecture=settings.network,
        options=options,
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
            **({} if verdict is None else {"verdict": verdict.to_dict()}),
            **({} if shares is None else {"shares": shares}),
            **({} if kind is None else {"image": kind.model_dump()}),
            "device": fabric.device.type,
            "torch": torch.__version__,
        },
    )


def _require_kind_of_start(init: LandcoverModel | None, kind: ImageKind | None) -> None:
    """Raise an error if a start model is for another kind of image; value ranges may differ."""
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


def _choose_options(tile: Tile, settings: TileSettings, init: LandcoverModel | None) -> dict[str, int]:
    """Return the options of the network; unless they are asked for, those of the model to start from."""
    if init is not None and settings.receptive_field is None and settings.network == init.architecture:
        return dict(init.options)
    return settings.network_options(int(tile.image.shape[0]), tile.extras)


def _start(
    tile: Tile,
    settings: TileSettings,
    options: dict[str, int],
    init: LandcoverModel | None,
    start: int,
    seed: int,
) -> PixelNetwork:
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
            options=options,
        )
    if init is not None:
        own = (settings.network, bands, tile.scheme.names, settings.filters, tile.extras, options)
        other = (init.architecture, init.bands, init.scheme.names, init.filters, init.extras, init.options)
        if own != other:
            msg = f"the model to start from has {_describe(*other)}; this run has {_describe(*own)}"
            raise ModelError(msg)
        network.load_state_dict(init.members[start % len(init.members)].state_dict())
    return network.to(memory_format=torch.channels_last)


def _describe(
    network: str,
    bands: int,
    classes: Sequence[str],
    filters: int,
    extras: Sequence[str],
    options: Mapping[str, int],
) -> str:
    more = f", {' and '.join(extras)} as input" if extras else ""
    kind = f"{network}, receptive field {options.get('receptive_field', WIDEST_FIELD)}" if network == "fcn" else network
    return f"{bands} bands{more}, {filters} filters ({kind}) and classes {', '.join(classes)}"


def identify_run(tiles: Sequence[Tile], settings: TileSettings, init: LandcoverModel | None, start: int) -> str:
    """Return a hash of everything a training depends on.

    Parameters
    ----------
    tiles, settings, init, start
        See :func:`train_model`.

    Returns
    -------
    str
        SHA-256, in hexadecimal digits.
    """
    sha = hashlib.sha256(settings.model_dump_json().encode())
    sha.update(f"{start}:{init.digest() if init is not None else ''}".encode())
    for tile in tiles:
        sha.update(tile.name.encode())
        for values in (tile.image, tile.prior, tile.valid, tile.extra, tile.seen):
            if values is not None:
                sha.update(values.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
