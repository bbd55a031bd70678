"""Training batches of patches cut from tiles in memory, with random colour changes and rotations.

A batch is gathered by index arithmetic on the device, so no file is read during training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from landprior.errors import InputError
from landprior.implicit.networks import FCN_HALO, log_prior
from landprior.implicit.objectives import Batch
from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import OUTPUT_SMOOTHING
from landprior.landcover.training.tile_sets import require_compatible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from landprior.landcover.training.model import BandStatistics
    from landprior.landcover.training.tiles import Tile


class PatchFeed:
    """Cut random patches from tiles; the batch of a step depends only on (seed, step).

    Parameters
    ----------
    tiles
        Tiles on the device of the network. A tile is chosen in proportion to its valid pixels; in a tile with gaps,
        such as a mosaic, a patch with data at its centre is chosen (:func:`count_middles`).
    statistics
        Statistics for standardising the bands.
    patch_size, batch_size
        Side in pixels and number of patches; the side shrinks to the smallest tile.
    seed
        See :func:`derive_seed`.
    smoothing
        Added to the prior, see :func:`landprior.implicit.networks.log_prior`; labels are not smoothed.
    halo
        Border of the patches left out of the loss: the reach of the network.
    jitter, tint
        How the standardised bands of each patch are varied at random, see :func:`vary_bands`; 0 and None: no variation.
    views
        Copies of each patch in a batch, each varied independently: all patches, then all again.
    turned
        Whether the patches of a step are turned by a random multiple of 90 degrees, and possibly mirrored.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        statistics: BandStatistics,
        *,
        patch_size: int = 64,
        batch_size: int = 16,
        seed: int = 0,
        smoothing: float = OUTPUT_SMOOTHING,
        halo: int = FCN_HALO,
        jitter: float = 0.0,
        tint: Tensor | None = None,
        views: int = 1,
        turned: bool = False,
    ) -> None:
        require_compatible(tiles)
        self._tiles = list(tiles)
        self._statistics = statistics
        self._side = min(patch_size, *(side for tile in tiles for side in tile.shape))
        if self._side <= 2 * halo:
            smallest = min(tiles, key=lambda tile: min(tile.shape))
            msg = (
                f"patches of {self._side} px leave nothing inside the {halo} px border that is left out; "
                f"use --patch-size of {2 * halo + 1} or more, on larger tiles ({smallest.name}: {smallest.shape})"
            )
            raise InputError(msg)
        self._count = batch_size
        self._seed = seed
        self._smoothing = 0.0 if tiles[0].labelled else smoothing
        self._halo = halo
        self._jitter, self._tint, self._views, self._turned = jitter, tint, views, turned
        self._middles = [count_middles(tile.valid, self._side) for tile in tiles]
        weights = torch.tensor([float(tile.valid.sum()) for tile in tiles])
        self._weights = weights / weights.sum()

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, str(step)))
        chosen = torch.multinomial(self._weights, self._count, replacement=True, generator=generator)
        places = torch.rand((self._count, 2), generator=generator)
        batch = repeat_batch(self._gather(chosen, places), self._views)
        if self._jitter or self._tint is not None:
            bands = self._tiles[0].image.shape[0]
            varied = vary_bands(batch.inputs[:, :bands], self._jitter, generator, tint=self._tint)
            batch = replace(batch, inputs=torch.cat([varied, batch.inputs[:, bands:]], dim=1))
        return turn_batch(batch, *torch.randint(8, (1,), generator=generator).tolist()) if self._turned else batch

    def _corner(self, index: int, place: Tensor) -> tuple[int, int]:
        """Return the top left pixel of a patch, given its position in a tile as two numbers from 0 to 1."""
        tile, side = self._tiles[index], self._side
        height, width = tile.shape
        middles = self._middles[index]
        if middles is None:
            row, column = (place * torch.tensor([height - side + 1, width - side + 1])).long().tolist()
            return row, column
        rank = int(place[0].double() * middles[-1])
        row = int(torch.searchsorted(middles, rank, right=True))
        before = int(middles[row - 1]) if row else 0
        columns = torch.nonzero(_middle_rows(tile.valid, side)[row])[:, 0]
        return row, int(columns[rank - before])

    def _gather(self, chosen: Tensor, places: Tensor) -> Batch:
        side = self._side
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in sorted(set(chosen.tolist())):
            tile = self._tiles[index]
            corners = [self._corner(index, place) for place in places[chosen == index]]
            parts.append(tile.patches(self._statistics, corners, side))
        image, prior, valid = parts[0] if len(parts) == 1 else (torch.cat(same) for same in zip(*parts, strict=True))
        return Batch(
            inputs=image.contiguous(memory_format=torch.channels_last),
            log_prior=log_prior(prior, smoothing=self._smoothing),
            mask=valid,
            border=self._halo,
        )


def _middle_rows(valid: Tensor, side: int) -> Tensor:
    """Return which patches have data at their centre, by their top left pixel."""
    height, width = valid.shape
    half = side // 2
    return valid[half : half + height - side + 1, half : half + width - side + 1]


def count_middles(valid: Tensor, side: int) -> Tensor | None:
    """Count the patches with data at their centre, accumulated over the rows of their top left pixels.

    Returns
    -------
    Tensor of int64, shape (H - side + 1,), or None
        None if no data is missing, or if some valid pixel is in no such patch (for example a label near the image's
        edge); then all positions are equally likely.
    """
    if bool(valid.all()):
        return None
    middles = _middle_rows(valid, side)
    covered = nn.functional.pad(middles.float(), (side - 1,) * 4)[None]
    for kernel in ((side, 1), (1, side)):
        covered = nn.functional.max_pool2d(covered, kernel, 1)
    if bool((valid & (covered[0] == 0)).any()):
        return None
    return middles.sum(dim=1).cumsum(0).cpu()


def repeat_batch(batch: Batch, times: int) -> Batch:
    """Return a batch with all patches repeated ``times`` times."""
    if times == 1:
        return batch

    def repeat(values: Tensor) -> Tensor:
        return torch.cat([values] * times)

    return replace(
        batch,
        inputs=repeat(batch.inputs).contiguous(memory_format=torch.channels_last),
        log_prior=None if batch.log_prior is None else repeat(batch.log_prior),
        mask=None if batch.mask is None else repeat(batch.mask),
    )


def vary_bands(inputs: Tensor, amount: float, generator: torch.Generator, *, tint: Tensor | None = None) -> Tensor:
    """Vary brightness, contrast and colour of patches at random: they differ between images, but not with the class.

    Parameters
    ----------
    inputs
        Standardised bands, (N, B, H, W).
    amount
        Standard deviation of a factor and of an offset common to the bands of a patch.
    generator
        Random generator on the CPU, so that draws do not depend on the device.
    tint
        Square root of a covariance, (B, B) (:func:`landprior.landcover.training.tiles.measure_colours`): a patch's
        bands are also offset by a draw from it. By default each band has its own factor and offset, half as large as
        the common ones.

    Returns
    -------
    Tensor
        Of the shape of ``inputs``.
    """
    count, bands = inputs.shape[:2]

    def draw(channels: int, deviation: float) -> Tensor:
        drawn = deviation * torch.randn((count, channels, 1, 1), generator=generator)
        return drawn.to(inputs)

    if tint is not None:
        offset = torch.einsum("ij,njhw->nihw", tint.to(inputs), draw(bands, 1.0))
        return inputs * (1 + draw(1, amount)) + draw(1, amount) + offset
    factor = (1 + draw(1, amount)) * (1 + draw(bands, amount / 2))
    return inputs * factor + draw(1, amount) + draw(bands, amount / 2)


def turn_batch(batch: Batch, way: int) -> Batch:
    """Rotate a batch of square patches by ``way % 4`` quarter turns, and mirror it if ``way`` is 4 or more."""

    def turn(values: Tensor) -> Tensor:
        found = torch.rot90(values, way % 4, (-2, -1))
        return found.flip(-1) if way >= 4 else found

    return replace(
        batch,
        inputs=turn(batch.inputs).contiguous(memory_format=torch.channels_last),
        log_prior=None if batch.log_prior is None else turn(batch.log_prior),
        mask=None if batch.mask is None else turn(batch.mask),
    )
