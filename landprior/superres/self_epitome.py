"""Self-epitomic super-resolution of one tile: the image itself is the epitome, without training.

"Mining self-similarity" (Malkin, Ortiz, Robinson, Jojic 2020), section on self-epitomic super-resolution: patches at
random positions of the tile are matched with all its positions, p(s|x) [1]; each adds the coarse codes of its pixels to
the positions it matches, n(s, c) [11]; expectation-maximisation turns these into class probabilities [8, 9]. Every
position is a pixel, so the probabilities are the map.

There are three differences from the paper, chosen on data other than that scored: a patch does not match itself, which
adds no information; codes are propagated further, from match to match (``passes``); and the EM stops early, which
keeps more of P(class | code). See ``docs/research/epitomes.md`` for results.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from scipy.ndimage import distance_transform_edt

from landprior.errors import InputError, PriorError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import starting_map, writing_map
from landprior.landcover.prior.coarse import read_nlcd
from landprior.landcover.training.layers import ImageLayer
from landprior.progress import Progress
from landprior.raster.codes import open_on_grid
from landprior.raster.cog import encode_probabilities
from landprior.run import Run
from landprior.superres.embedding import resolve_labels
from landprior.superres.posteriors import Posteriors
from landprior.superres.settings import SelfEpitomeSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)


def resolve_tile(
    image: NDArray[np.generic],
    valid: NDArray[np.bool_],
    codes: NDArray[np.integer],
    table: NDArray[np.floating],
    settings: SelfEpitomeSettings | None = None,
    *,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return class probabilities of one tile in memory.

    Parameters
    ----------
    image
        Shape (B, H, W). Bytes are scaled from 0 to 255; for other types, the range of each band over valid pixels is
        scaled to 0 to 1.
    valid
        Shape (H, W): mask of valid pixels. Patches do not include gaps; valid pixels between gaps still get a label.
    codes
        Coarse codes, (H, W); those without a row in ``table`` are no data.
    table
        P(class | code), (codes, C), rows of zeros for codes without information; see
        :meth:`landprior.landcover.prior.cooccurrence.Cooccurrence.table`.
    settings
        See :class:`SelfEpitomeSettings`.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        Sum 1 where valid, NaN elsewhere.

    Raises
    ------
    InputError
        If shapes do not match, no patch is without a gap, or no pixel is valid.
    PriorError
        If no valid pixel has a code.

    Notes
    -----
    Time grows with the square of the number of pixels: seconds for 250 x 250, minutes for 1,000 x 1,000. Memory
    is about 400 MB plus the image.
    """
    settings = settings or SelfEpitomeSettings()
    if image.ndim != 3 or image.shape[1:] != valid.shape or codes.shape != valid.shape:
        msg = f"an image of shape {image.shape}, validity {valid.shape} and codes {codes.shape} do not match"
        raise InputError(msg)
    if not valid.any():
        msg = "the image has no valid pixel; is its nodata value correct?"
        raise InputError(msg)
    values = torch.from_numpy(scale_image(image, valid))
    small, known, whole = _shrink(values, torch.from_numpy(np.asarray(valid)), settings.shrink)
    coarse = _sample(np.asarray(codes), settings.shrink, known.shape)
    present, index = _index_codes(coarse, known, np.asarray(table))
    usable = find_usable(whole, settings.patch)
    if usable is None or not bool(usable.any()):
        side = settings.patch * settings.shrink
        msg = (
            f"the image of {valid.shape[0]} x {valid.shape[1]} px has no {side} x {side} px without a gap, so no patch "
            "to match; give a larger tile, or a smaller --shrink"
        )
        raise InputError(msg)
    corners = draw_corners(usable, round(settings.samples * int(known.sum())), settings.seed)
    spreader = Spreader(small, usable, corners, index, settings, progress=progress)
    counts = spreader.count(len(present))
    for _ in range(settings.passes):
        counts = spreader.travel(counts)
    flat = counts.reshape(-1, len(present)).numpy()
    share = np.bincount(index[index >= 0], minlength=len(present)).astype(np.float64)
    found = resolve_labels(flat, np.asarray(table)[present], shares=share / share.sum(), iterations=settings.iterations)
    labels = torch.from_numpy(found.labels.astype(np.float32)).reshape(*known.shape, -1)
    for _ in range(settings.smoothing):
        labels = spreader.smooth(labels)
    spreader.close()
    reached = (flat.sum(axis=1) > 0).reshape(known.shape)
    return _finish(labels.numpy(), reached & known.numpy(), valid, settings.shrink)


def scale_image(image: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return an image, (B, H, W), scaled to 0 to 1: bytes by 255, others by each band's range; 0 where invalid."""
    if image.dtype == np.uint8:
        return np.where(valid, image.astype(np.float32) / 255, np.float32(0))
    values = image.astype(np.float64)
    inside = values[:, valid]
    low, high = inside.min(axis=1), inside.max(axis=1)
    width = np.where(high > low, high - low, 1)
    scaled = (values - low[:, None, None]) / width[:, None, None]
    return np.where(valid, scaled, 0).astype(np.float32)


def find_usable(valid: Tensor, patch: int) -> Tensor | None:
    """Return the positions, (H - w + 1, W - w + 1), where a patch has no gap; None if the tile is too small."""
    if min(valid.shape) < patch:
        return None
    gaps = (~valid).float()[None, None]
    return F.max_pool2d(F.max_pool2d(gaps, (patch, 1), stride=1), (1, patch), stride=1)[0, 0] == 0


def draw_corners(usable: Tensor, count: int, seed: int) -> Tensor:
    """Draw positions at random.

    Parameters
    ----------
    usable, count
        True where a position may be drawn, and the number of positions.
    seed
        Random seed; the same seed gives the same draw.

    Returns
    -------
    Tensor
        Flat indices, at least one and at most all.
    """
    there = torch.nonzero(usable.flatten())[:, 0]
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))
    return there[order[: max(1, min(count, len(there)))]]


class Spreader:
    """Propagate codes and labels between patches and the positions they match.

    Parameters
    ----------
    image, usable, corners
        See :class:`landprior.superres.posteriors.Posteriors`.
    index
        Indices of the pixels' codes, (H, W), negative for none.
    settings
        See :class:`SelfEpitomeSettings`.
    progress
        Show a progress bar on stderr.
    """

    def __init__(
        self,
        image: Tensor,
        usable: Tensor,
        corners: Tensor,
        index: NDArray[np.int64],
        settings: SelfEpitomeSettings,
        *,
        progress: bool = False,
    ) -> None:
        self._patch, self._own = settings.patch, settings.own_code
        self._height, self._width = int(usable.shape[0]), int(usable.shape[1])
        self._index = index
        self.pure = find_pure(index, usable, settings.patch).flatten()[corners]
        self._posteriors = Posteriors(
            image,
            usable,
            corners,
            patch=settings.patch,
            variance=settings.variance,
            own=settings.own_match,
            groups=self.pure.long(),
        )
        self._rows, self._columns = corners // self._width, corners % self._width
        total = len(corners) * (1 + settings.passes + settings.smoothing)
        self._bar = Progress(total, "matching patches", "patch", show=progress)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def count(self, codes: int) -> Tensor:
        """Return n(s, c) [11], shape (H, W, codes)."""
        own = self._one_hot(codes)
        total = _Sum(self._height, self._width, self._patch, codes)
        middle = self._patch // 2
        # a patch with one code adds the same to all pixels of a match: add once per position, and spread at the end
        centre = torch.zeros(self._posteriors.positions, codes)
        for block in self._posteriors.blocks():
            if bool(self.pure[torch.from_numpy(block.rows)].all()):
                here = torch.from_numpy(block.rows)
                centre += block.scatter(own[self._rows[here] + middle, self._columns[here] + middle])
            else:
                for row in range(self._patch):
                    total.put(block.scatter(self._windows(own, row, block.rows)), row)
            self._bar.update(len(block.rows))
        total.spread(centre)
        return total.values() + own * self._own

    def travel(self, counts: Tensor) -> Tensor:
        """Return counts after each patch has averaged its matches' counts and sent the mean to them."""
        shares = counts / counts.sum(dim=2, keepdim=True).clamp_min(1e-12)
        total = _Sum(self._height, self._width, self._patch, counts.shape[2])
        for block in self._posteriors.blocks():
            for row in range(self._patch):
                total.put(block.scatter(block.gather(self._table(shares, row))), row)
            self._bar.update(len(block.rows))
        return total.values() + self._one_hot(counts.shape[2]) * self._own

    def smooth(self, labels: Tensor) -> Tensor:
        """Return labels, (H, W, C), averaged over the matches of the patches at each pixel; others are unchanged."""
        total, number = torch.zeros_like(labels), torch.zeros_like(labels[..., :1])
        classes = labels.shape[2]
        for block in self._posteriors.blocks():
            here = torch.from_numpy(block.rows)
            rows, columns = self._rows[here], self._columns[here]
            for row in range(self._patch):
                fetched = block.gather(self._table(labels, row)).reshape(len(here), self._patch, classes)
                for column in range(self._patch):  # patches have different positions, so no index occurs twice
                    total[rows + row, columns + column] += fetched[:, column]
                    number[rows + row, columns + column] += 1
            self._bar.update(len(block.rows))
        return torch.where(number > 0, total / number.clamp_min(1), labels)

    def _one_hot(self, codes: int) -> Tensor:
        where = torch.from_numpy(self._index)
        found = F.one_hot(where.clamp_min(0), codes).float()
        return found * (where >= 0)[..., None]

    def _windows(self, values: Tensor, row: int, patches: NDArray[np.int64]) -> Tensor:
        """Return one row of the patches' own windows, (r, w m), of values, (H, W, m)."""
        here = torch.from_numpy(patches)
        columns = self._columns[here][:, None] + torch.arange(self._patch)
        return values[self._rows[here][:, None] + row, columns].flatten(1)

    def _table(self, values: Tensor, row: int) -> Tensor:
        """Return one row of the windows of all positions, (S, w m)."""
        strip = values[row : row + self._height]
        pieces = [strip[:, column : column + self._width] for column in range(self._patch)]
        return torch.stack(pieces, dim=2).reshape(self._height * self._width, -1)


class _Sum:
    """Accumulate values of positions at the pixels of their windows."""

    def __init__(self, height: int, width: int, patch: int, values: int) -> None:
        self._height, self._width, self._patch = height, width, patch
        shape = (height + patch - 1, width + patch - 1)
        self._sums = torch.zeros(*shape, values)

    def put(self, found: Tensor, row: int) -> None:
        """Add values of positions, (S, w m), for one row of their windows."""
        parts = found.view(self._height, self._width, self._patch, -1)
        for column in range(self._patch):
            self._sums[row : row + self._height, column : column + self._width] += parts[:, :, column]

    def spread(self, centre: Tensor) -> None:
        """Add values of positions, (S, m), at all pixels of their windows."""
        pad = self._patch - 1
        values = F.pad(centre.T.reshape(1, -1, self._height, self._width), (pad, pad, pad, pad))
        box = F.avg_pool2d(values, self._patch, stride=1)[0] * self._patch**2
        self._sums += box.permute(1, 2, 0)

    def values(self) -> Tensor:
        """Return the sums, (H, W, m)."""
        return self._sums


def find_pure(index: NDArray[np.int64], usable: Tensor, patch: int) -> Tensor:
    """Find the positions where all pixels of a patch have the same code.

    Parameters
    ----------
    index
        Indices of codes, shape (H, W); negative where there are none.
    usable
        Usable positions, shape (H - w + 1, W - w + 1).
    patch
        Side w, pixels.

    Returns
    -------
    Tensor
        Mask with the shape of ``usable``.
    """
    codes = torch.from_numpy(index).float()[None, None]
    high = F.max_pool2d(codes, patch, stride=1)[0, 0]
    low = -F.max_pool2d(-codes, patch, stride=1)[0, 0]
    return usable & (high == low) & (low >= 0)


def _shrink(values: Tensor, valid: Tensor, shrink: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the image averaged over squares of pixels, and masks of squares with any and with half valid pixels."""
    if shrink == 1:
        return values, valid, valid
    height, width = valid.shape
    edge = (0, -width % shrink, 0, -height % shrink)
    weight = F.avg_pool2d(F.pad(valid[None, None].float(), edge), shrink)[0]
    small = F.avg_pool2d(F.pad((values * valid)[None], edge), shrink)[0] / weight.clamp_min(1e-6)
    return small, weight[0] > 0, weight[0] >= 0.5 - 1e-6


def _sample(codes: NDArray[np.integer], shrink: int, shape: tuple[int, ...]) -> NDArray[np.integer]:
    """Return the codes at the centre of squares, since codes cannot be averaged."""
    rows, columns = (
        np.minimum(np.arange(n) * shrink + shrink // 2, side - 1) for n, side in zip(shape, codes.shape, strict=True)
    )
    return codes[np.ix_(rows, columns)]


def _index_codes(
    coarse: NDArray[np.integer], known: Tensor, table: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the informative codes, and each pixel's index among them, -1 for none."""
    codes = coarse.astype(np.int64)
    inside = (codes >= 0) & (codes < len(table)) & known.numpy()
    inside &= table.sum(axis=1)[np.where(inside, codes, 0)] > 0
    present = np.unique(codes[inside])
    if not len(present):
        msg = "no valid pixel of the image has a coarse code with a row in the matrix; is the NLCD for this place?"
        raise PriorError(msg)
    index = np.where(inside, np.searchsorted(present, codes), -1)
    return present, index


def _finish(
    labels: NDArray[np.float32], reached: NDArray[np.bool_], valid: NDArray[np.bool_], shrink: int
) -> NDArray[np.float32]:
    """Return probabilities on the full grid, (C, H, W); pixels without a match get those of their nearest neighbour."""
    if not reached.all():
        nearest = distance_transform_edt(~reached, return_distances=False, return_indices=True)
        labels = labels[nearest[0], nearest[1]]
    height, width = valid.shape
    full = labels.repeat(shrink, axis=0).repeat(shrink, axis=1)[:height, :width]
    full = np.where(valid[..., None], full / full.sum(axis=2, keepdims=True), np.float32(np.nan))
    return np.ascontiguousarray(np.moveaxis(full, 2, 0), dtype=np.float32)


def map_by_self_epitome(
    image: str | Path,
    nlcd: str | Path,
    output: str | Path,
    *,
    scheme: ClassScheme,
    cooccurrence: Cooccurrence,
    settings: SelfEpitomeSettings | None = None,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> Path:
    """Map one tile from its image and NLCD, without training.

    Parameters
    ----------
    image
        Raster with any bands; it is held in memory as a whole.
    nlcd
        Original NLCD codes; resampled to the image's grid (nearest neighbour) if necessary.
    output
        The map: a COG of class codes, 255 where the image has no data.
    scheme, cooccurrence
        The classes, and P(class | NLCD code).
    settings
        See :class:`SelfEpitomeSettings`.
    options, run
        Other files to write (confidence is not supported), and how this is carried out.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    InputError, PriorError, GridMismatchError
        If a file cannot be used (see :func:`resolve_tile`); the message names it.
    OutputExistsError
        See :func:`landprior.raster.outputs.check_output`.
    """
    settings, options = settings or SelfEpitomeSettings(), replace(options, confidence=False)
    opening = partial(ImageLayer, image, nodata=run.nodata)
    with starting_map(output, options, opening, overwrite=run.overwrite, inputs=(image, nlcd)) as (target, pixels):
        values, valid = pixels.read()
        grid = pixels.grid
    with open_on_grid(nlcd, grid, like=image) as src:
        codes = read_nlcd(src)
    table = cooccurrence.table(np.unique(codes[valid]).tolist() if valid.any() else [])
    try:
        probabilities = resolve_tile(values, valid, codes, table, settings, progress=run.progress)
    except (InputError, PriorError) as error:
        msg = f"{image} with {nlcd}: {error}"
        raise type(error)(msg) from error
    best = np.where(valid, np.nan_to_num(probabilities).argmax(axis=0), 0)
    marks = {
        "method": "self-epitome",
        "cooccurrence": cooccurrence.source,
        "settings": settings.model_dump_json(),
    }
    with writing_map(target, scheme, grid, options, marks, overwrite=run.overwrite) as sinks:
        sinks["map"].write(scheme.decode(best, valid))
        if options.probabilities:
            sinks["probabilities"].write(encode_probabilities(probabilities, options.encoding))
    return target
