"""Training by expectation-maximisation: the posterior of one round is the target of the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from landprior.errors import InputError
from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import EPS, log_posterior
from landprior.landcover.mapping.engines import TorchEngine, iter_strips
from landprior.landcover.training.ensemble import train_kept
from landprior.landcover.training.settings import TileSettings
from landprior.run import Run
from landprior.superres.settings import EmSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.tiles import Tile

STRIP_ROWS = 512
"""Rows of a tile for which posteriors are computed at a time."""


def train_by_em(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    rounds: EmSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Fit the prior, then repeatedly the smoothed posterior of the last fit.

    M: cross-entropy with the targets, initially the prior. E: targets are the posterior of the network and the
    prior [R eq. 3], averaged over small blocks. It is the baseline of "Label super-resolution networks".

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.training.trainer.train_model`.
    settings
        Settings of all rounds together.
    rounds
        See :class:`EmSettings`.
    checkpoint
        See :func:`landprior.landcover.training.trainer.train_model`. Finished rounds are kept beside the checkpoint.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        Model of the last round.

    Raises
    ------
    InputError
        If there are fewer steps than rounds.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings, rounds = settings or TileSettings(), rounds or EmSettings()
    steps = settings.training.steps // rounds.rounds
    if not steps:
        msg = f"{settings.training.steps} steps are fewer than the {rounds.rounds} rounds; give more --steps"
        raise InputError(msg)
    loop = settings.training.model_copy(update={"loss": "ce", "steps": steps})
    fit_targets = settings.model_copy(update={"training": loop, "settled": 0.0})
    model: LandcoverModel | None = None
    targets = list(tiles)
    for number in range(rounds.rounds):
        model = train_kept(targets, fit_targets, init=model, start=number, checkpoint=checkpoint, run=run)
        if number + 1 < rounds.rounds:
            targets = [_expect(tile, model, rounds.block) for tile in tiles]
    if model is None:  # pragma: no cover - there are two rounds or more
        msg = "no rounds"
        raise ValueError(msg)
    model.record["settings"]["training"]["loss"] = "em"
    model.record["method"] = {"name": "em", **rounds.model_dump()}
    return model


@torch.no_grad()
def _expect(tile: Tile, model: LandcoverModel, block: int) -> Tile:
    """Return a tile whose prior is the posterior of the network and its prior, averaged over blocks."""
    network, device = model.network, tile.image.device
    place = next(network.parameters()).device
    engine = TorchEngine(network, place, "fp32")
    rows = tile.shape[0]
    count = -(-rows // STRIP_ROWS)
    q = torch.empty(tile.prior.shape, dtype=torch.float16, device=device)
    sums = torch.zeros(len(tile.prior), dtype=torch.float64, device=device)
    for strip in iter_strips(rows, count, network.halo, network.stride):
        x = tile.inputs(model.statistics, slice(strip.first, strip.last), slice(None))[None]
        found = engine.start(x.to(place))()[0, :, strip.inside].exp().to(device)
        sums += (found * tile.valid[strip.top : strip.bottom]).double().sum((1, 2))
        q[:, strip.top : strip.bottom] = found
    log_marginal = torch.log(sums / tile.valid.sum()).float()
    target = torch.zeros_like(tile.prior)
    for strip in iter_strips(rows, count, block // 2):
        at = slice(strip.first, strip.last)
        known = tile.valid[None, None, at]
        log_q = q[None, :, at].float().clamp_min(EPS).log()
        prior = log_prior(tile.prior[None, :, at].float(), smoothing=network.smoothing)
        r = log_posterior(log_q, prior, log_marginal=log_marginal, check=False).exp().masked_fill(~known, 0.0)
        smooth = [_average(values, block) for values in (r, known.float())]
        target[:, strip.top : strip.bottom] = (smooth[0] / smooth[1].clamp_min(EPS))[0, :, strip.inside]
    return replace(tile, prior=target)


def _average(values: Tensor, block: int) -> Tensor:
    """Return the mean over blocks around each pixel, (1, C, H, W); clipped at the edges."""
    rows, columns = values.shape[2:]
    found = torch.nn.functional.avg_pool2d(values, block, stride=1, padding=block // 2)
    return found[..., :rows, :columns]  # an even block extends one pixel further
