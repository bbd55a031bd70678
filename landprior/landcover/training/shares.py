"""Shares of the classes over all tiles of a joint training, which the posterior of each of its tiles is divided by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from landprior.implicit.networks import PixelNetwork
    from landprior.landcover.training.model import BandStatistics
    from landprior.landcover.training.tiles import Tile

_BLOCK = 512
"""Side of the blocks that the network maps at a time, pixels; a multiple of every network's stride."""


@torch.no_grad()
def measure_shares(network: PixelNetwork, tiles: Sequence[Tile], statistics: BandStatistics) -> dict[str, list[float]]:
    """Measure the shares of the classes over tiles.

    Parameters
    ----------
    network
        Predicts log q.
    tiles, statistics
        The training tiles, or windows of them, and their statistics, on the network's device.

    Returns
    -------
    dict
        ``q``: the mean prediction [R eq. 3]; ``named``: the share of the pixels whose most probable class by q it is;
        ``prior``: the mean prior. Each has one number per class.
    """
    classes, device = len(tiles[0].scheme), tiles[0].image.device
    total = torch.zeros((3, classes), dtype=torch.float64, device=device)
    reach = network.halo
    for tile in tiles:
        height, width = tile.shape
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                rows, inner_rows = _grow(top, height, reach)
                columns, inner_columns = _grow(left, width, reach)
                valid = tile.valid[rows, columns][inner_rows, inner_columns]
                if not bool(valid.any()):
                    continue
                inputs = tile.inputs(statistics, rows, columns)[None].contiguous(memory_format=torch.channels_last)
                log_q: Tensor = network(inputs)[0][:, inner_rows, inner_columns]
                prior = tile.prior[:, rows, columns][:, inner_rows, inner_columns]
                total[0] += (log_q.exp() * valid).sum((1, 2), dtype=torch.float64)
                total[1] += torch.bincount(log_q.argmax(0)[valid], minlength=classes)
                total[2] += (prior.float() * valid).sum((1, 2), dtype=torch.float64)
    found = (total / total.sum(1, keepdim=True)).cpu().tolist()
    return dict(zip(("q", "named", "prior"), found, strict=True))


def _grow(start: int, size: int, reach: int) -> tuple[slice, slice]:
    """Return a block with its surroundings along an axis, and where the block is in it."""
    stop = min(start + _BLOCK, size)
    first = max(start - reach, 0)
    return slice(first, min(stop + reach, size)), slice(start - first, stop - first)


def find_shares(record: dict[str, Any], tile: str) -> list[list[float]] | None:
    """Return the shares that the posterior of a tile is divided by, if it was trained on with others.

    Parameters
    ----------
    record
        Record of a model (:class:`landprior.landcover.training.model.LandcoverModel`).
    tile
        Name of the tile.

    Returns
    -------
    list of list of float, shape (3, C), or None
        For ``marginal`` of :func:`landprior.landcover.mapping.predict.predict`; None if the tile's own shares apply.
    """
    shares = record.get("shares")
    if shares is None or tile not in record.get("tiles", ()):
        return None
    return [shares["q"], shares["named"], shares["prior"]]
