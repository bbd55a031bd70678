"""Judging a training without labels: is the map it leads to better or worse than its prior?

A look takes fixed crops of the tiles and compares the posterior r there with the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import log_posterior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from landprior.landcover.model import BandStatistics
    from landprior.landcover.tiles import Tile

CROP = 512
"""Side of the crops that are looked at, pixels."""

LOOK_PIXELS = CROP * CROP
"""How many pixels a look takes in all."""

BLOCKS = 4
"""A crop is compared with its prior in so many by so many blocks."""


@dataclass(frozen=True)
class _Crop:
    inputs: Tensor
    log_prior: Tensor
    valid: Tensor


class Judge:
    def __init__(self, tiles: Sequence[Tile], statistics: BandStatistics, *, smoothing: float) -> None:
        self._crops = list(_take_crops(tiles, statistics, smoothing))
        self._before = None

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        with torch.no_grad():
            maps = [network(c.inputs) for c in self._crops]
        C = maps[0].shape[1]
        sums = torch.zeros(C, dtype=torch.float64, device=maps[0].device)
        n = 0
        for q, c in zip(maps, self._crops):
            sums += (q.exp().double() * c.valid[:, None]).sum((0, 2, 3)); n += int(c.valid.sum())
        lm = torch.log(sums / n).float()
        ev = 0.0; qp = 0.; maxp = 0.0; maxr = 0.; tvs, tvh, ws, kls = [], [], [], []; prb = 0.; hp = 0.; eq = 0.
        args = []
        pm = torch.zeros(C); rm = torch.zeros(C); hm = torch.zeros(C)
        for q, c in zip(maps, self._crops):
            v = c.valid[:, None].float()
            e = torch.logsumexp(q + c.log_prior - lm.reshape(1, -1, 1, 1), 1)
            ev += float((e * v[:, 0]).sum())
            r = log_posterior(q, c.log_prior, log_marginal=lm).exp()
            p = c.log_prior.exp()
            a = r.argmax(1)
            args.append(a)
            h = functional.one_hot(a, C).permute(0, 3, 1, 2).float()
            maxp += float((p.amax(1) * v[:, 0]).sum()); maxr += float((r.amax(1) * v[:, 0]).sum())
            prb += float(((p * h).sum(1) * v[:, 0]).sum())
            hp += float((-(p * c.log_prior).sum(1) * v[:, 0]).sum())
            qp += float((-(q.exp() * c.log_prior).sum(1) * v[:, 0]).sum())
            eq += float((-(q.exp() * q.clamp_min(-50)).sum(1) * v[:, 0]).sum())
            pm += (p * v).sum((0, 2, 3)).cpu(); rm += (r * v).sum((0, 2, 3)).cpu(); hm += (h * v).sum((0, 2, 3)).cpu()
            side = max(1, min(q.shape[-2:]) // BLOCKS)
            pool = lambda x: functional.avg_pool2d(x * v, side, ceil_mode=True, count_include_pad=False)
            w = pool(torch.ones_like(v)); 
            bp, br, bh = (pool(x) / w.clamp_min(1e-6) for x in (p, r, h))
            ok = w[:, 0] > 0.2
            tvs.append((0.5 * (br - bp).abs().sum(1))[ok]); tvh.append((0.5 * (bh - bp).abs().sum(1))[ok]); ws.append(w[:, 0][ok])
        ws = torch.cat(ws); W = ws.sum()
        H = lambda m: float(-(m * m.clamp_min(1e-9).log()).sum())
        pm, rm, hm = pm / n, rm / n, hm / n
        ch = math.nan
        if self._before is not None:
            ch = sum(float(((a != b) & c.valid).sum()) for a, b, c in zip(args, self._before, self._crops)) / n
        self._before = args
        F = -H(lm.exp().cpu()) + qp / n
        return dict(E=ev / n, F=F, Hpm=H(pm), Hp=hp / n, Hq=H(lm.exp().cpu()), eq=eq / n, maxp=maxp / n, maxr=maxr / n, prb=prb / n, tvb=float((torch.cat(tvs) * ws).sum() / W),
                    tvh=float((torch.cat(tvh) * ws).sum() / W), tvg=float(0.5 * (rm - pm).abs().sum()), tvgh=float(0.5 * (hm - pm).abs().sum()), ch=ch)


def _take_crops(tiles: Sequence[Tile], statistics: BandStatistics, smoothing: float):
    """Take evenly spread crops: whole tiles where they are small."""
    per_tile = max(1, LOOK_PIXELS // (CROP * CROP * len(tiles)))
    every = max(1, math.ceil(sum(min(t.shape[0], CROP) * min(t.shape[1], CROP) for t in tiles) / LOOK_PIXELS))
    for tile in list(tiles)[::every]:
        h, w = tile.shape
        top, left = max(0, (h - CROP) // 2), max(0, (w - CROP) // 2)
        at = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
        valid = tile.valid[at[1:]]
        yield _Crop(statistics.standardise(tile.image[at], valid)[None].contiguous(memory_format=torch.channels_last),
                    log_prior(tile.prior[at][None].float(), smoothing=smoothing), valid[None])
