"""Tiles in memory: image, prior and mask, on the device.

The image is stored in its own type (uint8 for NAIP), the prior in half precision.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.errors import InputError, PriorError
from landprior.landcover.training.image_kind import ImageKind
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.landcover.training.model import BandStatistics
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import require_same_grid
from landprior.raster.scheme import IGNORED_INDEX
from landprior.raster.windows import iter_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A tile from which patches are cut.

    Parameters
    ----------
    name
        Name used in messages and for the seed of the tile.
    image
        Shape (B, H, W), in the file's own type.
    prior
        Shape (C, H, W), half precision; sum 1 where valid. The target: probabilities, or labels as one-hot vectors.
    valid
        Shape (H, W): all inputs and the prior have data; these pixels are used.
    scheme
        The prior's classes.
    extra
        Additional inputs, shape (K, H, W), half precision, and their names (:class:`LandcoverModel`).
    seen
        Shape (H, W): all inputs have data; by default :attr:`valid`.
    labelled
        Whether :attr:`prior` holds labels.
    kind
        Kind of image, stored with the model.
    """

    name: str
    image: Tensor
    prior: Tensor
    valid: Tensor
    scheme: ClassScheme
    extra: Tensor | None = None
    extras: tuple[str, ...] = ()
    seen: Tensor | None = None
    labelled: bool = False
    kind: ImageKind | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (int(self.image.shape[-2]), int(self.image.shape[-1]))

    def to(self, device: torch.device) -> Tile:
        """Return the tile on a device."""
        return replace(
            self,
            image=self.image.to(device),
            prior=self.prior.to(device),
            valid=self.valid.to(device),
            extra=None if self.extra is None else self.extra.to(device),
            seen=None if self.seen is None else self.seen.to(device),
        )

    @property
    def visible(self) -> Tensor:
        """Where all inputs have data, shape (H, W)."""
        return self.valid if self.seen is None else self.seen

    def inputs(self, statistics: BandStatistics, rows: slice, columns: slice) -> Tensor:
        """Cut a piece of the network's input.

        Parameters
        ----------
        statistics
            Statistics for standardising the bands.
        rows, columns
            The requested pixels.

        Returns
        -------
        Tensor
            Shape (channels, h, w), float32.
        """
        extra = None if self.extra is None else self.extra[:, rows, columns]
        return statistics.standardise(self.image[:, rows, columns], self.visible[rows, columns], extra)

    def patches(
        self, statistics: BandStatistics, corners: Sequence[tuple[int, int]], side: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut square patches.

        Parameters
        ----------
        statistics
            Statistics for standardising the bands.
        corners
            Row and column of the upper left pixel of each patch.
        side
            Side in pixels.

        Returns
        -------
        inputs : Tensor
            Shape (N, channels, side, side).
        priors : Tensor
            Shape (N, C, side, side).
        valid : Tensor
            Shape (N, side, side), True where a pixel is used.
        """

        def cut(values: Tensor) -> Tensor:  # copying slices is many times faster than indexing with arrays
            return torch.stack([values[..., row : row + side, column : column + side] for row, column in corners])

        extra = None if self.extra is None else cut(self.extra)
        valid = cut(self.valid)
        seen = valid if self.seen is None else cut(self.seen)
        return statistics.standardise(cut(self.image), seen, extra), cut(self.prior).float(), valid


def read_tile(
    image: str | Path,
    prior: str | Path,
    *,
    name: str | None = None,
    scheme: ClassScheme | None = None,
    nodata: float | None = None,
) -> Tile:
    """Read an image and its prior into memory, to fit the prior.

    Parameters
    ----------
    image, prior
        Rasters on one grid.
    name
        Name used in messages and for the seed; by default the image's file name.
    scheme, nodata
        The prior's classes and the image's nodata value, if the files do not store them.

    Returns
    -------
    Tile
        The tile; pixels with both image and prior are used.

    Raises
    ------
    GridMismatchError
        If they are on different grids.
    PriorError
        If no pixel has both image and prior.
    InputError, SchemeError
        See :class:`ImageLayer` and :class:`PriorLayer`.
    """
    with ImageLayer(image, nodata=nodata) as pixels, PriorLayer(prior, scheme=scheme) as belief:
        require_same_grid(pixels.grid, belief.grid, names=(str(image), str(prior)))
        height, width = pixels.grid.shape
        values = np.empty((pixels.bands, height, width), dtype=pixels.dtype)
        shares = np.empty((len(belief.scheme), height, width), dtype=np.float16)
        valid = np.empty((height, width), dtype=bool)
        for block in iter_blocks(pixels.grid, size=2048):  # in blocks, so that float32 copies stay small
            at = block.core.toslices()
            values[(slice(None), *at)], seen = pixels.read(block.core)
            shares[(slice(None), *at)], believed = belief.read(block.core)
            valid[at] = seen & believed
        if not valid.any():
            msg = f"{image} and {prior} have no pixel with data in common: the prior is empty where the image is valid"
            raise PriorError(msg)
        return Tile(
            name=name or Path(image).name,
            image=torch.from_numpy(values),
            prior=torch.from_numpy(shares),
            valid=torch.from_numpy(valid),
            scheme=belief.scheme,
            kind=ImageKind.of(pixels),
        )


def read_labelled_tile(
    image: str | Path,
    labels: str | Path,
    *,
    scheme: ClassScheme,
    prior: str | Path | None = None,
    label_map: Mapping[int, int] | None = None,
    name: str | None = None,
    nodata: float | None = None,
) -> Tile:
    """Read an image and its labels into memory, to fit the labels.

    Parameters
    ----------
    image
        Raster.
    labels
        Raster of codes; resampled to the image's grid (nearest neighbour) if necessary. Pixels without a label are
        shown to the network but not used in the loss.
    scheme
        The classes.
    prior
        A prior on the image's grid, as additional input ("HR + aux" of the paper).
    label_map
        Codes of the labels -> codes of the scheme.
    name, nodata
        See :func:`read_tile`.

    Returns
    -------
    Tile
        The tile; pixels with both image and label are used.

    Raises
    ------
    InputError
        If no pixel has both image and label.
    GridMismatchError, SchemeError
        See :func:`read_tile`; also if codes are not in the scheme.
    """
    with ExitStack() as stack:
        pixels = stack.enter_context(ImageLayer(image, nodata=nodata))
        truth = stack.enter_context(open_on_grid(labels, pixels.grid, like=image))
        belief = None
        if prior is not None:
            belief = stack.enter_context(PriorLayer(prior, scheme=scheme))
            require_same_grid(pixels.grid, belief.grid, names=(str(image), str(prior)))
        shape = pixels.grid.shape
        values = np.empty((pixels.bands, *shape), dtype=pixels.dtype)
        extra = None if belief is None else np.empty((len(scheme), *shape), dtype=np.float16)
        seen, classes = np.empty(shape, dtype=bool), np.empty(shape, dtype=np.int16)
        for block in iter_blocks(pixels.grid, size=2048):
            at = block.core.toslices()
            values[(slice(None), *at)], seen[at] = pixels.read(block.core)
            classes[at] = read_classes(truth, block.core, scheme, codes=label_map or {}, where=labels)
            if belief is not None and extra is not None:
                extra[(slice(None), *at)], believed = belief.read(block.core)
                seen[at] &= believed
        kind = ImageKind.of(pixels)
    return label_tile(
        name or Path(image).name,
        torch.from_numpy(values),
        classes,
        scheme=scheme,
        seen=seen,
        extra=extra,
        extras=() if extra is None else ("prior",),
        where=labels,
        kind=kind,
    )


def label_tile(
    name: str,
    image: Tensor,
    classes: NDArray[np.integer],
    *,
    scheme: ClassScheme,
    seen: NDArray[np.bool_],
    extra: NDArray[np.float16] | None = None,
    extras: tuple[str, ...] = (),
    where: str | Path = "the labels",
    kind: ImageKind | None = None,
) -> Tile:
    """Make a tile to fit labels on.

    Parameters
    ----------
    name
        Name used in messages and for the seed.
    image
        Shape (B, H, W).
    classes
        Class positions, shape (H, W), -1 where there is no label.
    scheme
        The classes.
    seen
        Where the network's input is valid, shape (H, W).
    extra, extras
        Additional inputs, (K, H, W), and their names.
    where
        Name of the labels in error messages.
    kind
        Kind of the image.

    Returns
    -------
    Tile
        The tile; pixels with valid inputs and a label are used.

    Raises
    ------
    InputError
        If no pixel has both inputs and a label.
    """
    valid = seen & (classes != IGNORED_INDEX)
    if not valid.any():
        msg = f"{where} has no label where {name} has data, so there is nothing to learn from"
        raise InputError(msg)
    target = np.zeros((len(scheme), *classes.shape), dtype=np.float16)
    np.put_along_axis(target, np.where(valid, classes, 0)[None].astype(np.int64), np.float16(1), axis=0)
    return Tile(
        name=name,
        image=image,
        prior=torch.from_numpy(target),
        valid=torch.from_numpy(valid),
        scheme=scheme,
        extra=None if extra is None else torch.from_numpy(extra),
        extras=extras,
        seen=torch.from_numpy(seen),
        labelled=True,
        kind=kind,
    )


def measure_bands(tiles: Sequence[Tile]) -> BandStatistics:
    """Measure mean and standard deviation of each band over the pixels of all tiles that have data."""
    bands, device = tiles[0].image.shape[0], tiles[0].image.device
    count = 0
    total = torch.zeros(bands, dtype=torch.float64, device=device)
    squares = torch.zeros_like(total)
    for tile in tiles:
        for top in range(0, tile.shape[0], 512):  # in strips: a whole tile in doubles takes eight times its size
            rows = slice(top, top + 512)
            here = tile.image[:, rows][:, tile.visible[rows]].double()
            count += here.shape[1]
            total += here.sum(1)
            squares += here.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # a constant band carries no information; dividing by one keeps it finite
    std = torch.where(std > 0, std, 1.0)
    return BandStatistics(mean=mean.cpu().numpy(), std=std.cpu().numpy())


COLOUR_FLOOR = 0.003
"""Share of the largest variance that is added to all, so that directions that are only noise stay small."""


def measure_colours(tiles: Sequence[Tile], statistics: BandStatistics) -> Tensor:
    """Measure how the standardised bands of images vary together.

    Returns
    -------
    Tensor of float64, shape (B, B), on the CPU
        The symmetric root R of their covariance: white noise times R varies as the bands do, and bands times the
        inverse of R are uncorrelated. :data:`COLOUR_FLOOR` of the largest variance is added to all.
    """
    bands = len(statistics.mean)
    total, count = torch.zeros(bands, bands, dtype=torch.float64), 0
    for tile in tiles:
        for top in range(0, tile.shape[0], 512):  # in strips, as above
            rows = slice(top, top + 512)
            here = tile.inputs(statistics, rows, slice(None))[:bands, tile.valid[rows]].double()
            total += (here @ here.T).cpu()
            count += here.shape[1]
    variances, directions = torch.linalg.eigh(total / max(count, 1))
    most = variances.max().clamp_min(1e-6)  # an image of one colour has no variance, and its root no inverse
    deviations = torch.sqrt(variances.clamp_min(0) + COLOUR_FLOOR * most)
    root: Tensor = (directions * deviations) @ directions.T
    return root
