"""Training by expectation-maximisation: the posterior of what was fitted becomes what is fitted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field

from landprior.errors import InputError
from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import log_posterior
from landprior.landcover.engine import TorchEngine
from landprior.landcover.training import TileSettings, train_kept

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.landcover.model import LandcoverModel
    from landprior.landcover.tiles import Tile


class EmSettings(BaseModel):
    """How expectation-maximisation goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(4, ge=2, description="fits, the first to the prior; the steps are shared among them")
    block: int = Field(5, ge=1, description="side in pixels of the blocks over which posteriors are averaged")


def train_by_em(
    tiles: Sequence[Tile],
    settings: TileSettings | None = None,
    rounds: EmSettings | None = None,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> LandcoverModel:
    """Fit the prior, then, in turns, the smoothed posterior of what was fitted.

    M: cross-entropy with the targets, which are the prior at first. E: targets are the posterior of the network and the
    prior [R eq. 3], averaged over small blocks. It is the baseline of "Label super-resolution networks".

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.training.train_model`.
    settings
        Of all rounds together.
    rounds
        See :class:`EmSettings`.
    device, checkpoint, progress
        See :func:`landprior.landcover.training.train_model`. Finished rounds are kept beside the checkpoint.

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
        model = train_kept(
            targets, fit_targets, init=model, start=number, device=device, checkpoint=checkpoint, progress=progress
        )
        if number + 1 < rounds.rounds:
            targets = [_expect(tile, model, rounds.block) for tile in tiles]
    if model is None:  # pragma: no cover - there are two rounds or more
        msg = "no round"
        raise ValueError(msg)
    model.record["settings"]["training"]["loss"] = "em"
    model.record["method"] = {"name": "em", **rounds.model_dump()}
    return model


@torch.no_grad()
def _expect(tile: Tile, model: LandcoverModel, block: int) -> Tile:
    """Return a tile whose prior is the posterior of the network and its prior, averaged over blocks."""
    network = model.network
    place = next(network.parameters()).device
    engine = TorchEngine(network, place, "fp32")
    every = slice(None)
    x = tile.inputs(model.statistics, every, every)[None].to(place)
    log_q = engine.start(x)()
    prior = tile.prior[None].to(place).float()
    mask = tile.valid[None].to(place)
    r = log_posterior(log_q, log_prior(prior, smoothing=network.smoothing), mask).exp()
    r = r.masked_fill(~mask[:, None], 0.0)
    smooth = partial(torch.nn.functional.avg_pool2d, kernel_size=block, stride=1, padding=block // 2)
    if block > 1:
        rows, columns = tile.shape
        r, weight = (smooth(v)[..., :rows, :columns] for v in (r, mask[:, None].float()))
        r = r / weight.clamp_min(1e-6)
    return replace(tile, prior=r[0].to(tile.prior.dtype).to(tile.prior.device))
