"""Training by statistics matching: class counts within the 30 m cells of NLCD should match those of each code.

Tiles, network, loop and warm-up on the prior are those of every other training; the loss is
:mod:`landprior.superres.statistics`.
"""

from __future__ import annotations

import hashlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.errors import InputError
from landprior.implicit.losses import ce
from landprior.implicit.networks import FCN_HALO, log_prior
from landprior.implicit.objectives import Batch
from landprior.implicit.seeds import derive_seed
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.tile_sets import order_tiles
from landprior.landcover.training.trainer import MOST_BORDER, train_model
from landprior.raster.scheme import IGNORED_INDEX
from landprior.run import Run
from landprior.superres.settings import CountSettings
from landprior.superres.statistics import compare_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.landcover.training.model import BandStatistics, LandcoverModel
    from landprior.landcover.training.tiles import Tile
    from landprior.superres.tiles import CoarseTile

logger = logging.getLogger(__name__)

CELLS_ACROSS = 3
"""Minimum inner side of a patch, in cell sides, so that it contains some whole cells."""


class CellFeed(PatchFeed):
    """Cut patches with their cells; rare coarse classes are drawn as often as frequent ones.

    First a coarse class is drawn with equal chances, then one of its cells by size, then a patch that contains the
    cell's middle: so pixels are drawn in inverse proportion to the frequency of their code.

    Parameters
    ----------
    tiles, statistics, **options
        See :class:`PatchFeed`.
    coarse
        Cells, and labels, of the tiles, in the same order.
    eta, rho
        Mean and standard deviation of class shares by code, shape (256, C).
    least
        See :class:`CountSettings`.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        statistics: BandStatistics,
        *,
        coarse: Sequence[CoarseTile],
        eta: NDArray[np.float32],
        rho: NDArray[np.float32],
        least: float,
        **options: float,
    ) -> None:
        super().__init__(tiles, statistics, **options)  # type: ignore[arg-type]
        device = tiles[0].image.device
        self._device = device
        self._index = [torch.from_numpy(one.cells.index).to(device) for one in coarse]
        self._labels = [None if one.labels is None else torch.from_numpy(one.labels).to(device) for one in coarse]
        self._cell_codes = [torch.from_numpy(one.cells.codes.astype(np.int64)).to(device) for one in coarse]
        self._least = [least * one.cells.area for one in coarse]
        self._eta, self._rho = torch.from_numpy(eta).to(device), torch.from_numpy(rho).to(device)
        places = [one.cells.centres(one.tile.valid.cpu().numpy()) for one in coarse]
        owner = np.concatenate([np.full(len(rows), number) for number, (rows, _, _) in enumerate(places)])
        rows, columns, sizes = (np.concatenate(parts) for parts in zip(*places, strict=True))
        codes = np.concatenate([one.cells.codes for one in coarse])
        if not sizes.any():
            msg = "no NLCD cell overlaps valid image and prior, so there is nothing to count"
            raise InputError(msg)
        kinds, kind = np.unique(codes[sizes > 0], return_inverse=True)
        chosen = np.flatnonzero(sizes > 0)
        per_code = np.bincount(kind, sizes[chosen])
        self._cells = torch.from_numpy(chosen)
        self._chances = torch.from_numpy(sizes[chosen] / per_code[kind] / len(kinds))
        self._owner, self._middle = torch.from_numpy(owner), torch.from_numpy(np.stack([rows, columns]))

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; its ``extra`` has the cells of inner pixels and their statistics."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, str(step)))
        drawn = self._cells[_draw(self._chances, self._count, generator)]
        shifts = torch.rand((self._count, 2), generator=generator)
        side, inner = self._side, self._side - 2 * self._halo
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        blocks: list[Tensor] = []
        codes: list[Tensor] = []
        least: list[Tensor] = []
        labels: list[Tensor] = []
        for cell, shift in zip(drawn.tolist(), shifts.tolist(), strict=True):
            number = int(self._owner[cell])
            tile = self._tiles[number]
            corner = [
                min(
                    max(round(float(self._middle[axis, cell]) - self._halo - shift[axis] * (inner - 1)), 0), most - side
                )
                for axis, most in enumerate(tile.shape)
            ]
            at = tuple(slice(start + self._halo, start + self._halo + inner) for start in corner)
            parts.append(tile.patches(self._statistics, [(corner[0], corner[1])], side))
            index = torch.where(tile.valid[at], self._index[number][at], -1)
            own, position = torch.unique(index, return_inverse=True)
            first = int(own[0] < 0)  # pixels outside all cells
            before = sum(len(some) for some in codes)
            blocks.append(torch.where(index < 0, -1, position - first + before))
            codes.append(self._cell_codes[number][own[first:].long()])
            least.append(torch.full((len(own) - first,), self._least[number], device=self._device))
            known = self._labels[number]
            labels.append(torch.full_like(index, IGNORED_INDEX) if known is None else known[at].to(index.dtype))
        image, prior, valid = (torch.cat(same) for same in zip(*parts, strict=True))
        every = torch.cat(codes)
        return Batch(
            inputs=image.contiguous(memory_format=torch.channels_last),
            log_prior=log_prior(prior, smoothing=self._smoothing),
            mask=valid,
            border=self._halo,
            extra={
                "blocks": torch.stack(blocks),
                "eta": self._eta[every],
                "rho": self._rho[every],
                "least": torch.cat(least),
                "labels": torch.stack(labels),
            },
        )


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw randomly with replacement from any number of items (``torch.multinomial`` is limited to 2^24)."""
    places = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.searchsorted(chances.cumsum(0), places).clamp_max(len(chances) - 1)


class CountObjective:
    """Objective of :func:`train_by_counts`: statistics matching, and cross-entropy where there are labels.

    Parameters
    ----------
    settings
        See :class:`CountSettings`.
    """

    def __init__(self, settings: CountSettings) -> None:
        self._settings = settings

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch of a :class:`CellFeed`."""
        extra, settings = batch.extra, self._settings
        counted = compare_statistics(
            output,
            extra["blocks"],
            extra["eta"],
            extra["rho"],
            criterion=settings.criterion,
            least=extra["least"],
            check=False,
        )
        labels = extra["labels"].long()
        known = labels != IGNORED_INDEX
        if not known.any():
            return counted
        one_hot = torch.nn.functional.one_hot(labels.clamp_min(0), output.shape[1]).movedim(-1, 1)
        fitted = ce(output, torch.log(one_hot.to(output.dtype)), known, check=False)
        return settings.weight * counted + (1 - settings.weight) * fitted


def train_by_counts(
    coarse: Sequence[CoarseTile],
    matrix: Cooccurrence,
    settings: TileSettings | None = None,
    counts: CountSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train a network so that its class counts within cells match the statistics of the cells' coarse class.

    Parameters
    ----------
    coarse
        Tiles with their cells; several share one model.
    matrix
        Means (eta) and, preferably measured, spread (rho) of class shares by code.
    settings
        Loop, network and patches. Patches too small for a whole cell are enlarged, and correspondingly fewer are cut.
    counts
        See :class:`CountSettings`.
    checkpoint, run
        As for :func:`landprior.landcover.training.trainer.train_model`.

    Returns
    -------
    LandcoverModel
        The model on the CPU, with its record.

    Raises
    ------
    InputError
        If no cell overlaps the tiles' data.
    PriorError
        If a code is neither an NLCD code nor in the matrix.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings, counts = settings or TileSettings(), counts or CountSettings()
    coarse = [coarse[index] for index in order_tiles([one.tile for one in coarse])]
    settings = _hold_cells(settings, max(one.cells.area for one in coarse))
    codes = {int(code) for one in coarse for code in np.unique(one.cells.codes)}
    eta, rho = matrix.table(codes), matrix.spread_table(codes)
    feed = partial(CellFeed, coarse=coarse, eta=eta, rho=rho, least=counts.least)
    sha = hashlib.sha256(counts.model_dump_json().encode() + eta.tobytes() + rho.tobytes())
    for one in coarse:
        sha.update(one.cells.index.tobytes() + one.cells.codes.tobytes())
        sha.update(b"" if one.labels is None else one.labels.tobytes())
    model = train_model(
        [one.tile for one in coarse],
        settings,
        feed=feed,
        objective=CountObjective(counts),
        identity=sha.hexdigest(),
        checkpoint=checkpoint,
        run=run,
    )
    model.record["method"] = {"name": "sr", **counts.model_dump(), "joint": any(c.labels is not None for c in coarse)}
    return model


def _hold_cells(settings: TileSettings, area: float) -> TileSettings:
    """Return settings for statistics matching, with patches large enough for whole cells of this area."""
    side = math.ceil(CELLS_ACROSS * math.sqrt(area)) + 2 * (MOST_BORDER if settings.network == "unet" else FCN_HALO)
    changes: dict[str, object] = {"training": settings.training.model_copy(update={"loss": "sr"})}
    if side > settings.patch_size:
        fewer = max(1, round(settings.batch_size * (settings.patch_size / side) ** 2))
        changes |= {"patch_size": side, "batch_size": fewer}
        logger.info("%d patches of %d px per step, to contain whole cells", fewer, side)
    return settings.model_copy(update=changes)
