"""Training a model of a target from density classes of blocks, and checking that it is not inverted.

Losses based on the implicit posterior distinguish the classes only by the prior. Density classes carry little
information about a pixel, and a fit may end with target and background swapped, which has an equally low loss. So after
each training the predicted share of the target in each block is compared with the block's prior. If they do not
correlate, the model is inverted and is trained again from other random weights with a longer warm-up by cross-entropy.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rasterio.windows import Window

from landprior.domains.density.blocks import UNKNOWN, BlockLabels, block_shape
from landprior.domains.density.priors import check_priors, mean_prior, pixel_prior, relate_priors
from landprior.domains.density.settings import DensitySettings
from landprior.errors import CollapseWarning, DirectionWarning, HarmWarning, InputError
from landprior.implicit.seeds import derive_seed
from landprior.landcover.training.image_kind import ImageKind
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.model import BandStatistics
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.tile_sets import require_compatible
from landprior.landcover.training.tiles import Tile
from landprior.landcover.training.trainer import train_model
from landprior.raster.scheme import ClassScheme, LandClass
from landprior.raster.windows import Block, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

TARGET = 1
"""Position of the target among the classes; background is 0."""

PIECE = 1000
"""Approximate side of the pieces of images used in training, pixels: whole blocks, or the whole image if smaller."""

CHECKED_PIXELS = 4 * 2**20
"""Maximum number of pixels on which the direction is checked (at least one piece)."""

NORMALISED = "normalised"
"""Key of a model's record for how images are standardised."""


def make_scheme(background: str = "background", target: str = "target") -> ClassScheme:
    """Return the scheme of two classes.

    Raises
    ------
    InputError
        If they have the same name, or an empty one.
    """
    if not (background and target) or background == target:
        msg = f"background and target need different names, not {background!r} and {target!r}"
        raise InputError(msg)
    return ClassScheme(
        name="density",
        classes=(
            LandClass(code=0, name=background, colour="#d9d9d9"),
            LandClass(code=1, name=target, colour="#6a1b9a"),
        ),
    )


# -- images as tiles -----------------------------------------------------------------------------------


class _BandSums:
    """Sum bands and their squares over windows; a sink for :func:`landprior.raster.windows.stream`."""

    def __init__(self, bands: int) -> None:
        self.total = np.zeros((3, bands))

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:  # noqa: ARG002 - a sink's
        self.total += values.astype(np.float64)


def measure_image(path: str | Path, *, nodata: float | None = None) -> BandStatistics:
    """Measure mean and standard deviation of each band of an image, window by window.

    Raises
    ------
    InputError
        If it has no valid pixel.
    """
    with ImageLayer(path, nodata=nodata) as pixels:
        sums = _BandSums(pixels.bands)

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            values, valid = pixels.read(block.core)
            here = values[:, valid].astype(np.float64)
            count = np.full(pixels.bands, here.shape[1], dtype=np.float64)
            return {"sums": np.stack([count, here.sum(axis=1), np.square(here).sum(axis=1)])}

        stream(compute, grid=pixels.grid, sinks={"sums": sums})
    count, total, squares = sums.total
    if not count.all():
        msg = f"{path} has no valid pixel; is its nodata value correct?"
        raise InputError(msg)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return BandStatistics(mean=mean, std=np.where(std > 0, std, 1.0))


def adapt_model(model: LandcoverModel, own: BandStatistics) -> LandcoverModel:
    """Convert a model for standardised images into one for an image with these statistics.

    Raises
    ------
    InputError
        If the image has a different number of bands.
    """
    common = model.statistics
    if len(common.mean) != len(own.mean):
        msg = (
            f"the image has {len(own.mean)} bands and the model was trained on {len(common.mean)}; give the same bands"
        )
        raise InputError(msg)
    # an image standardised by itself may have any unit
    units = ("dtype", "low", "high")
    image = {name: value for name, value in model.record.get("image", {}).items() if name not in units}
    return replace(
        model,
        statistics=BandStatistics(mean=own.mean + common.mean * own.std, std=common.std * own.std),
        record=model.record | ({"image": image} if image else {}),
    )


@dataclass(frozen=True)
class _Piece:
    """A window of whole blocks of an image."""

    path: Path
    window: Window


def read_tiles(
    paths: Sequence[Path],
    grids: Mapping[str, Grid],
    labels: BlockLabels,
    priors: NDArray[np.float64],
    *,
    scheme: ClassScheme,
    settings: DensitySettings | None = None,
    nodata: float | None = None,
) -> list[Tile]:
    """Read images with density classes into memory, in pieces; if they do not fit, pieces are drawn at random.

    Parameters
    ----------
    paths
        Images; those without a known block are left out.
    grids
        Grids of the images, by file name.
    labels, priors
        Classes of blocks, and the probability of the target by class.
    scheme
        Scheme of background and target.
    settings
        Settings of standardisation, of relative densities, the number of pixels, and the seed of the draw.
    nodata
        See :class:`landprior.landcover.training.layers.ImageLayer`.

    Returns
    -------
    list of Tile
        One tile per piece; pixels outside known blocks are shown to the network but not used in the loss.

    Raises
    ------
    InputError
        If no block is known, images have different bands, or there is no valid pixel.
    PriorError
        If the priors are invalid.
    """
    settings = settings or DensitySettings()
    check_priors(priors, "the prior")
    pieces = [piece for path in paths for piece in _cut(path, grids[path.name], labels)]
    if not pieces:
        msg = "no image has a block with a known density class, so there is nothing to learn from"
        raise InputError(msg)
    order = np.random.default_rng(derive_seed(settings.seed, "pieces")).permutation(len(pieces))
    sizes = np.cumsum([pieces[i].window.width * pieces[i].window.height for i in order])
    some = max(1, int(np.searchsorted(sizes, settings.most_pixels, side="right")))
    if some < len(pieces):
        logger.info("training on %d of %d pieces of the images, drawn at random", some, len(pieces))
    chosen = [pieces[i] for i in sorted(order[:some].tolist())]
    rate = _find_rate(labels, priors, settings)
    own: dict[Path, BandStatistics] = {}
    tiles = []
    for piece in chosen:
        if settings.normalise == "image" and piece.path not in own:
            own[piece.path] = measure_image(piece.path, nodata=nodata)
        tile = _read_piece(piece, own.get(piece.path), labels, priors, scheme, nodata, rate=rate)
        if tile is not None:
            tiles.append(tile)
    if not tiles:
        msg = "no known block has a valid pixel; is the nodata value correct?"
        raise InputError(msg)
    require_compatible(tiles)
    return tiles


def _find_rate(labels: BlockLabels, priors: NDArray[np.float64], settings: DensitySettings) -> float | None:
    """Return the share of the target to which images are adjusted; None if priors are used unchanged."""
    if not settings.relative:
        return None
    if not any(
        np.ptp(priors[some[some != UNKNOWN]]) > 0 for some in labels.classes.values() if (some != UNKNOWN).any()
    ):
        # for example crops of one block each: adjusted to themselves, all would be equal, with nothing to learn
        logger.warning("no image has blocks of different density, so densities are used unchanged (--absolute)")
        return None
    return settings.share or mean_prior(priors, labels.classes.values())


def _cut(path: Path, grid: Grid, labels: BlockLabels) -> Iterator[_Piece]:
    """Cut an image into pieces, and yield those with a known block."""
    classes, block = labels.classes.get(path.name), labels.block
    if classes is None:
        return
    along = max(1, PIECE // block)
    rows, columns = block_shape(grid, block)
    for row in range(0, rows, along):
        for column in range(0, columns, along):
            if (classes[row : row + along, column : column + along] != UNKNOWN).any():
                top, left = row * block, column * block
                height, width = (
                    min(along * block, size - at) for size, at in zip(grid.shape, (top, left), strict=True)
                )
                yield _Piece(path, Window(left, top, width, height))


@lru_cache(maxsize=64)
def _describe(path: Path, nodata: float | None, changed: int) -> ImageKind:  # noqa: ARG001 - part of the cache key
    """Return the kind of an image, once for all its pieces."""
    with ImageLayer(path, nodata=nodata) as pixels:
        return ImageKind.of(pixels)


def _read_piece(
    piece: _Piece,
    own: BandStatistics | None,
    labels: BlockLabels,
    priors: NDArray[np.float64],
    scheme: ClassScheme,
    nodata: float | None,
    *,
    rate: float | None,
) -> Tile | None:
    """Read a piece; None if no known block of it has data."""
    with ImageLayer(piece.path, nodata=nodata) as pixels:
        kind = _describe(piece.path, nodata, piece.path.stat().st_mtime_ns)
        values, seen = pixels.read(piece.window)
    classes = labels.classes[piece.path.name]
    table = priors if rate is None else relate_priors(priors, classes, rate)
    prior = pixel_prior(classes, table, labels.block, *piece.window.toslices())
    valid = seen & ~np.isnan(prior[0])
    if not valid.any():
        return None
    image = torch.from_numpy(values)
    if own is not None:
        image = own.standardise(image, torch.from_numpy(seen)).half()
    name = piece.path.name
    return Tile(
        name=f"{name}@{piece.window.col_off},{piece.window.row_off}",
        image=image,
        prior=torch.from_numpy(np.nan_to_num(prior).astype(np.float16)),
        valid=torch.from_numpy(valid),
        scheme=scheme,
        seen=torch.from_numpy(seen),
        kind=kind,
    )


# -- training ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """Whether a model agrees with its prior.

    Parameters
    ----------
    correlation
        Correlation, over blocks, of the predicted share of the target with the prior's; NaN if either is constant.
    marginal
        Mean prediction over the examined pixels, shape (C,).
    """

    correlation: float
    marginal: tuple[float, ...]

    @property
    def inverted(self) -> bool:
        """Whether the prediction contradicts the prior, or does not follow it."""
        return not self.correlation > 0


@torch.inference_mode()
def check_direction(model: LandcoverModel, tiles: Sequence[Tile], block: int) -> Direction:
    """Compare predictions with the prior over blocks.

    Parameters
    ----------
    model
        Model for tiles that are already standardised, as in :func:`train_density`.
    tiles
        See :func:`read_tiles`; a selection, if they are many.
    block
        Side of a block, pixels.

    Returns
    -------
    Direction
        Correlation of predictions and prior.
    """
    device = next(model.network.parameters()).device
    size = max(tile.shape[0] * tile.shape[1] for tile in tiles)
    wanted = min(len(tiles), max(1, CHECKED_PIXELS // size))
    sums, found = np.zeros(len(model.scheme)), []
    for index in np.linspace(0, len(tiles) - 1, wanted).round().astype(int).tolist():
        tile = tiles[index].to(device)
        q = model.network(tile.inputs(model.statistics, slice(None), slice(None))[None])[0].exp()
        q = torch.where(tile.valid, q, 0.0).double()
        sums += q.sum((1, 2)).cpu().numpy()
        both = torch.stack([q[TARGET], tile.prior[TARGET].double() * tile.valid, tile.valid.double()]).cpu().numpy()
        parts = _sum_blocks(both, block).reshape(3, -1)
        found.append(parts[:2, parts[2] > 0] / parts[2, parts[2] > 0])
    predicted, prior = np.concatenate(found, axis=1)
    constant = len(prior) < 2 or np.ptp(prior) == 0 or np.ptp(predicted) == 0
    correlation = math.nan if constant else float(np.corrcoef(predicted, prior)[0, 1])
    return Direction(correlation, tuple((sums / sums.sum()).tolist()))


def _sum_blocks(values: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Sum over the blocks of the last two axes; the last blocks may be incomplete."""
    starts = [np.arange(0, size, block) for size in values.shape[-2:]]
    return np.asarray(np.add.reduceat(np.add.reduceat(values, starts[0], axis=-2), starts[1], axis=-1))


def train_density(
    tiles: Sequence[Tile],
    block: int,
    settings: DensitySettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train one model on the tiles of all images, again if it is inverted.

    Parameters
    ----------
    tiles
        See :func:`read_tiles`.
    block
        Side of a block, pixels.
    settings
        How: two trainings more if it comes out inverted, for instance.
    checkpoint, run
        See :func:`landprior.landcover.training.trainer.train_model`.

    Returns
    -------
    LandcoverModel
        The model. Its record has the agreement with the prior (``direction``) and the mean prediction (``marginal``)
        used for the posterior. If every attempt is inverted, the least inverted one is returned, with a
        :class:`DirectionWarning`.

    Raises
    ------
    InputError, TrainingError, TrainingInterruptedError
        See :func:`landprior.landcover.training.trainer.train_model`.
    """
    settings = settings or DensitySettings()
    attempts: list[tuple[Direction, LandcoverModel]] = []
    for attempt in range(1 + settings.restarts):
        path = checkpoint if checkpoint is None or not attempt else checkpoint.with_name(f"{checkpoint.name}-{attempt}")
        with warnings.catch_warnings():
            # Both use most probable classes, but a rare target is rightly the most probable class nowhere. The check
            # below is the direction, which also detects a constant prediction.
            warnings.simplefilter("ignore", HarmWarning)
            warnings.simplefilter("ignore", CollapseWarning)
            model = train_model(
                tiles,
                settings.tile_settings(attempt),
                feed=partial(PatchFeed, jitter=settings.jitter, turned=True),
                identity=f"jitter {settings.jitter}",
                checkpoint=path,
                run=run,
            )
        direction = check_direction(model, tiles, block)
        attempts.append((direction, model))
        logger.info("correlation of prediction and prior over blocks: %.3f", direction.correlation)
        if not direction.inverted:
            break
        if attempt < settings.restarts:
            warnings.warn(
                f"the model is inverted (correlation {direction.correlation:.2f} with the prior over blocks); "
                "training again, with a longer warm-up by cross-entropy",
                DirectionWarning,
                stacklevel=2,
            )
    chosen = max(range(len(attempts)), key=lambda i: np.nan_to_num(attempts[i][0].correlation, nan=-2.0))
    direction, model = attempts[chosen]
    if direction.inverted:
        warnings.warn(
            f"the model does not agree with its prior (correlation {direction.correlation:.2f} over blocks) in any of "
            f"{len(attempts)} trainings; try --loss ce, more --steps, or another prior",
            DirectionWarning,
            stacklevel=2,
        )
    record: dict[str, Any] = {
        NORMALISED: settings.normalise,
        "block": block,
        "direction": None if math.isnan(direction.correlation) else round(direction.correlation, 4),
        "attempts": len(attempts),
        "marginal": list(direction.marginal),
    }
    verdictless = {name: value for name, value in model.record.items() if name != "verdict"}
    return replace(model, record=verdictless | {"density": record})
