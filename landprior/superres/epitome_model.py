"""Epitomes as land-cover models: trained without labels, then labelled by coarse codes or labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.errors import InputError, PriorError
from landprior.implicit.epitomes import EpitomeClassifier
from landprior.landcover.training.model import LandcoverModel
from landprior.run import Run
from landprior.superres.embedding import embed_classes, embed_codes, resolve_labels
from landprior.superres.epitome_training import fit_epitome
from landprior.superres.settings import EpitomeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.implicit.epitomes import Epitome
    from landprior.landcover.training.model import BandStatistics
    from landprior.landcover.training.tiles import Tile


def train_epitome_model(
    tiles: Sequence[Tile],
    codes: Sequence[NDArray[np.integer]] | None = None,
    table: NDArray[np.floating] | None = None,
    settings: EpitomeSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train an epitome on tiles and label it with classes.

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.training.tiles.read_tile`. Without ``codes`` they must have labels
        (:func:`landprior.landcover.training.tiles.read_labelled_tile`), which are then used [6]; otherwise the tiles'
        targets are ignored.
    codes
        Coarse codes of each tile, (H, W) [11].
    table
        P(class | code), (codes, C), see :meth:`landprior.landcover.prior.cooccurrence.Cooccurrence.table`.
    settings
        See :class:`EpitomeSettings`.
    checkpoint
        See :func:`landprior.superres.epitome_training.fit_epitome`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        The model, whose network is the labelled epitome.

    Raises
    ------
    InputError
        If the settings shrink the image (the map would have another scale), codes do not match the tiles, or there are
        neither codes nor labels.
    PriorError
        If no pixel has a code with a row in the table.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings = settings or EpitomeSettings()
    _check(tiles, codes, table, settings)
    epitome, statistics, history = fit_epitome(tiles, settings, checkpoint=checkpoint, run=run)
    scheme = tiles[0].scheme
    network = EpitomeClassifier(epitome, len(scheme), smoothing=settings.smoothing).to(epitome.mean.device)
    network.embed(_embed(epitome, tiles, statistics, codes, table, settings))
    labelled = codes is None
    return LandcoverModel(
        network=network.eval(),
        scheme=scheme,
        statistics=statistics,
        filters=1,
        architecture="epitome",
        options={"size": settings.size, "patch": settings.patch, "epitomes": settings.epitomes},
        record={
            "settings": {
                "training": settings.training.model_dump(mode="json"),
                "epitome": settings.model_dump(mode="json"),
            },
            "tiles": sorted(tile.name for tile in tiles),
            "labelled": labelled,
            "history": {name: value for name, value in history.summary().items() if not _is_nan(value)},
            "device": epitome.mean.device.type,
            "torch": torch.__version__,
        },
    )


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check(
    tiles: Sequence[Tile],
    codes: Sequence[NDArray[np.integer]] | None,
    table: NDArray[np.floating] | None,
    settings: EpitomeSettings,
) -> None:
    if settings.shrink > 1:
        msg = "a model maps images at their own scale, so its epitome cannot use shrunk ones; set shrink to 1"
        raise InputError(msg)
    if codes is None:
        if not tiles or not tiles[0].labelled:
            msg = "an epitome needs coarse codes, or tiles with labels, to predict classes"
            raise InputError(msg)
        return
    if table is None or len(codes) != len(tiles):
        msg = f"{len(tiles)} tiles and codes of {len(codes)} do not match, or there is no table of P(class | code)"
        raise InputError(msg)
    for tile, some in zip(tiles, codes, strict=True):
        if some.shape != tile.shape:
            msg = f"{tile.name} is {tile.shape} px but its codes are {some.shape}; they must be on the same grid"
            raise InputError(msg)


def _embed(
    epitome: Epitome,
    tiles: Sequence[Tile],
    statistics: BandStatistics,
    codes: Sequence[NDArray[np.integer]] | None,
    table: NDArray[np.floating] | None,
    settings: EpitomeSettings,
) -> Tensor:
    """Return p(l|s), (S, C)."""
    device = epitome.mean.device
    valid = [tile.visible.to(device) for tile in tiles]
    images = [statistics.standardise(tile.image.to(device), seen) for tile, seen in zip(tiles, valid, strict=True)]
    stride = max(1, math.ceil(math.sqrt(sum(int(seen.sum()) for seen in valid) / settings.embedded)))
    if codes is None or table is None:
        labels = [torch.where(tile.valid, tile.prior.argmax(dim=0), -1).to(device) for tile in tiles]
        return embed_classes(epitome, images, labels, len(tiles[0].scheme), valid=valid, stride=stride)
    known = np.flatnonzero(table.sum(axis=1) > 0)
    place = np.full(len(table), -1)
    place[known] = np.arange(len(known))
    index = [np.where((some >= 0) & (some < len(table)), place[np.clip(some, 0, len(table) - 1)], -1) for some in codes]
    seen = sum(
        np.bincount(some[tile.visible.cpu().numpy() & (some >= 0)], minlength=len(known))
        for some, tile in zip(index, tiles, strict=True)
    )
    present = np.flatnonzero(seen)
    if not len(present):
        msg = f"no pixel of {tiles[0].name} has a coarse code with a row in the matrix; is the NLCD for this place?"
        raise PriorError(msg)
    counts = embed_codes(
        epitome, images, [torch.from_numpy(some).to(device) for some in index], len(known), valid=valid, stride=stride
    )
    found = resolve_labels(
        counts.cpu().numpy()[:, present],
        table[known][present],
        shares=np.asarray(seen)[present] / np.sum(seen),
        iterations=settings.iterations,
    )
    return torch.from_numpy(found.labels).to(epitome.mean)
