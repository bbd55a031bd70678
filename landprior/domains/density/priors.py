"""The prior of a density class: reading, measuring, spreading over the pixels of a block, and writing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.domains.density.blocks import UNKNOWN, BlockLabels, read_table, require_numbers
from landprior.errors import PriorError
from landprior.raster.cog import CogWriter
from landprior.raster.windows import Block, stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme


def spread_priors(count: int) -> NDArray[np.float64]:
    """Return the paper's prior per density class: the midpoints of equal steps, 0.05, 0.15 .. 0.95 for ten [R F.2]."""
    return (np.arange(count) + 0.5) / count


def read_priors(path: str | Path, count: int) -> NDArray[np.float64]:
    """Read a CSV ``class,probability``: the probability of the target in a pixel of a block of each class.

    Raises
    ------
    MissingInputError, InputError
        If the table cannot be used.
    PriorError
        If a class has no probability or two, or one is outside 0 .. 1; or all are equal.
    """
    table = read_table(path, ("class", "probability"))
    require_numbers(table, ("class",), path)
    require_numbers(table, ("probability",), path, whole=False)
    numbers, values = table["class"].to_numpy(dtype=int), table["probability"].to_numpy(dtype=float)
    if sorted(numbers.tolist()) != list(range(count)):
        msg = f"{path} must give each class from 0 to {count - 1} one probability; it has {sorted(numbers.tolist())}"
        raise PriorError(msg)
    priors = np.empty(count)
    priors[numbers] = values
    return check_priors(priors, str(path))


def check_priors(priors: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Return priors after checking that they are usable.

    Raises
    ------
    PriorError
        If one is not a probability, or all are equal.
    """
    wrong = ~((priors >= 0) & (priors <= 1))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        msg = f"{where}: the probability of class {at} is {priors[at]:g}, not between 0 and 1"
        raise PriorError(msg)
    if np.ptp(priors) == 0:
        msg = f"{where}: all classes have the probability {priors[0]:g}, so they carry no information"
        raise PriorError(msg)
    return priors


def measure_priors(
    labels: BlockLabels, grids: Mapping[str, Grid], points: Mapping[str, NDArray[np.float64]], *, radius: float
) -> NDArray[np.float64]:
    """Measure the share of pixels within a radius of a point, by density class.

    Parameters
    ----------
    labels
        Classes of blocks.
    grids
        Grids of the images, by file name.
    points
        Centres of targets, x and y in pixels, shape (N, 2), by image; must be complete in each of these images.
    radius
        Radius of a target, pixels.

    Returns
    -------
    ndarray, shape (classes,)
        Priors; a class without blocks has the mean of its neighbours.

    Raises
    ------
    PriorError
        If no image has both points and classes.
    """
    inside, total = np.zeros(labels.count), np.zeros(labels.count)
    reach = int(np.ceil(radius))
    for file, places in points.items():
        if file not in labels.classes:
            continue
        height, width = grids[file].shape
        near = np.zeros((height, width), dtype=bool)
        for x, y in places:
            rows = np.arange(max(0, int(y) - reach), min(height, int(y) + reach + 1))
            columns = np.arange(max(0, int(x) - reach), min(width, int(x) + reach + 1))
            here = np.hypot(rows[:, None] - y, columns[None, :] - x) <= radius
            near[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] |= here
        classes = labels.classes[file]
        for (row, col), number in np.ndenumerate(classes):
            if number != UNKNOWN:
                part = near[
                    row * labels.block : (row + 1) * labels.block, col * labels.block : (col + 1) * labels.block
                ]
                inside[number] += part.sum()
                total[number] += part.size
    if not total.any():
        msg = "no image has both points and density classes, so no prior can be measured"
        raise PriorError(msg)
    known = np.flatnonzero(total)
    shares = np.interp(np.arange(labels.count), known, inside[known] / total[known])
    return check_priors(shares, "the measured prior")


def spread_over_blocks(values: NDArray[np.generic], block: int, rows: slice, columns: slice) -> NDArray[np.generic]:
    """Repeat values of blocks for the pixels of a window.

    Parameters
    ----------
    values
        One value per block, (rows, columns) of blocks.
    block
        Side of a block, pixels.
    rows, columns
        The window, pixels.

    Returns
    -------
    ndarray
        Shape (h, w).
    """
    index = [np.arange(span.start, span.stop) // block for span in (rows, columns)]
    return np.asarray(values[np.ix_(*index)])


def mean_prior(priors: NDArray[np.float64], classes: Iterable[NDArray[np.int16]]) -> float:
    """Return the mean prior of the target over the known blocks of images; NaN if none is known."""
    known = np.concatenate([some[some != UNKNOWN] for some in classes])
    return float(priors[known].mean()) if known.size else math.nan


def relate_priors(priors: NDArray[np.float64], classes: NDArray[np.int16], rate: float) -> NDArray[np.float64]:
    """Return the priors of an image's density classes as if the image had average density.

    With m the mean over the image's blocks, p becomes proportional to ``rate * p / m``, and 1 - p to
    ``(1 - rate) * (1 - p) / (1 - m)``. Images differ in many ways besides density (stain, tissue, scanner), and
    a network distinguishes them by these; blocks of one image differ in little else.

    Parameters
    ----------
    priors
        Probability of the target by class.
    classes
        Classes of the blocks of an image.
    rate
        The share of the target in an average image.

    Returns
    -------
    NDArray
        Probability by class; 0 and 1 are unchanged, and so are all if a mean is 0 or 1.
    """
    mean = mean_prior(priors, [classes])
    if not (0 < mean < 1 and 0 < rate < 1):
        return priors
    target, background = rate * priors / mean, (1 - rate) * (1 - priors) / (1 - mean)
    return np.asarray(target / (target + background))


def pixel_prior(
    classes: NDArray[np.int16], priors: NDArray[np.float64], block: int, rows: slice, columns: slice
) -> NDArray[np.float32]:
    """Compute the prior of a window from the classes of its blocks.

    Parameters
    ----------
    classes
        Classes of the blocks, shape :func:`block_shape`.
    priors
        Probability of the target by class.
    block, rows, columns
        See :func:`spread_over_blocks`.

    Returns
    -------
    ndarray of float32
        Shape (2, h, w), background and target; NaN where no class is known.
    """
    found = spread_over_blocks(np.where(classes == UNKNOWN, np.nan, priors[classes]), block, rows, columns)
    return np.stack([1 - found, found]).astype(np.float32)


def write_prior(
    path: str | Path,
    classes: NDArray[np.int16],
    priors: NDArray[np.float64],
    *,
    block: int,
    grid: Grid,
    scheme: ClassScheme,
    overwrite: bool = False,
) -> Path:
    """Write the prior of an image as a raster, constant over each block, for ``predict --posterior``.

    Parameters
    ----------
    path, overwrite
        The file to write, and whether it may replace an existing one.
    classes, priors, block
        See :func:`pixel_prior`.
    grid, scheme
        Grid of the image, and scheme of background and target.

    Returns
    -------
    Path
        The raster's path.

    Raises
    ------
    OutputExistsError, RasterWriteError
        See :class:`landprior.raster.cog.CogWriter`.
    """

    def compute(window: Block) -> dict[str, NDArray[np.generic]]:
        return {"prior": pixel_prior(classes, priors, block, *window.core.toslices())}

    with CogWriter(
        path,
        grid,
        count=2,
        dtype="float16",
        nodata=float("nan"),
        descriptions=scheme.names,
        tags={"kind": "prior", "scheme": scheme.model_dump_json(exclude_defaults=True)},
        overwrite=overwrite,
    ) as writer:
        stream(compute, grid=grid, sinks={"prior": writer})
    return Path(path)
