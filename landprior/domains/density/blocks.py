"""Coarse labels: a density class for each block of an image, and the prior that a class stands for.

A block is a square of an image's pixels; blocks are counted from 0 from the top left corner. Those at the right and
at the bottom are smaller where the image is no whole number of blocks.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from landprior.errors import InputError, PriorError, TableWarning
from landprior.raster.cog import CogWriter
from landprior.raster.windows import Block, stream
from landprior.sources import tables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

UNKNOWN = -1
"""The class of a block that none is known of."""

CLASSES = 10
"""How many density classes counts become."""


@dataclass(frozen=True, kw_only=True)
class BlockLabels:
    """Density classes of the blocks of images.

    Parameters
    ----------
    classes
        By image, int16, shape (rows, columns) of blocks; :data:`UNKNOWN` where none is known.
    count
        How many classes there are: 0 .. count - 1.
    block
        Side of a block, pixels.
    """

    classes: Mapping[str, NDArray[np.int16]]
    count: int
    block: int


def read_table(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV that has these columns, and perhaps more; rows are called by their lines in the file.

    Raises
    ------
    MissingInputError
        If it is not there.
    InputError
        If it is no CSV, lacks a column, has no row, or there is an empty cell in one of the columns.
    """
    found = tables.read_table(path)
    names = list(found.header)
    for name in columns:
        at = found.find(name)
        if at is None:
            there = ", ".join(names)
            msg = f"{path} has no column {name}; it must have {','.join(columns)} in its first line, not {there}"
            raise InputError(msg)
        names[at] = name
    values = {
        name: found.texts(at) if name in ("image", "type") else found.values(at)
        for at, name in enumerate(names)
        if name
    }
    table = pd.DataFrame(values, index=[row.line for row in found.rows])
    if table.empty:
        msg = f"{path} has no row"
        raise InputError(msg)
    for name in columns:
        if table[name].isna().any():
            msg = f"{path}, line {table.index[table[name].isna()][0]}: {name} is empty"
            raise InputError(msg)
    return table


def require_numbers(table: pd.DataFrame, names: Sequence[str], path: str | Path, *, whole: bool = True) -> None:
    """Refuse what is no number, not finite, or, where asked, no whole number from 0.

    Parameters
    ----------
    table
        Its index is the line of each row.
    names
        The columns.
    path
        What the table is called in an error.
    whole
        Whole numbers from 0 are wanted.

    Raises
    ------
    InputError
        Names the line and the value.
    """
    for name in names:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(numbers)
        if whole:
            wrong |= (numbers < 0) | (numbers != np.round(numbers))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            value = table[name].iloc[at]
            said = repr(value) if isinstance(value, str) else f"{value:g}"
            kind = "a whole number from 0" if whole else "a number"
            msg = f"{path}, line {table.index[at]}: {name} is {said}, not {kind}"
            raise InputError(msg)


def match_images(table: pd.DataFrame, images: Sequence[str | Path], path: str | Path) -> dict[str, pd.DataFrame]:
    """Part a table by image; an image may be named with or without its ending.

    Parameters
    ----------
    table
        With a column ``image``.
    images
        Paths of the images.
    path
        What the table is called in an error.

    Returns
    -------
    dict
        By the images' file names; images without a row are left out.

    Raises
    ------
    InputError
        If two images have one name, or no row is of any image. A :class:`TableWarning` says which rows are of none.
    """
    by_name: dict[str, str] = {}
    for image in images:
        file = Path(image).name
        for name in {file, Path(image).stem}:
            if by_name.get(name, file) != file or (name == file and name in by_name):
                msg = f"two images are called {name}, so tables cannot tell them apart; rename one"
                raise InputError(msg)
            by_name[name] = file
    files = table["image"].map(by_name)
    lost = sorted(set(table["image"][files.isna()]))
    if files.isna().all():
        msg = f"{path} names none of the images: it has {lost[0]}, the first image is {Path(images[0]).name}"
        raise InputError(msg)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        warnings.warn(f"{path} has rows of {lost[0]}{more}, no image that was given", TableWarning, stacklevel=2)
    return {str(file): rows for file, rows in table.groupby(files, sort=True)}


def read_blocks(
    path: str | Path, grids: Mapping[str, Grid], *, block: int = 100, count: int | None = None
) -> BlockLabels:
    """Read the density classes of blocks, or counts that become classes.

    Parameters
    ----------
    path
        A CSV ``image,row,col,class`` or ``image,row,col,count``; blocks from 0, one row for each.
    grids
        Of the images, by file name.
    block
        Side of a block, pixels.
    count
        Number of classes; by default one more than the largest, of counts :data:`CLASSES`.

    Returns
    -------
    BlockLabels
        The class of each block, by image.

    Raises
    ------
    MissingInputError, InputError
        If the table cannot be used, does not match the images, or names a block that an image does not have, or one
        twice.
    """
    if block < 1:
        msg = f"a block must be 1 px or more a side, not {block}"
        raise InputError(msg)
    table = read_table(path, ("image", "row", "col"))
    there = {str(name).lower() for name in table}
    value = next((name for name in ("class", "count") if name in there), None)
    if value is None:
        msg = f"{path} must have a column class (density classes from 0) or count (to be made into classes)"
        raise InputError(msg)
    table = read_table(path, ("image", "row", "col", value))
    require_numbers(table, ("row", "col"), path)
    require_numbers(table, (value,), path, whole=value == "class")
    rows_of = match_images(table, list(grids), path)
    if value == "count":
        count = count or CLASSES
        known = pd.concat(rows_of.values())
        table = known.assign(**{"class": rank_counts(known["count"].to_numpy(dtype=float), count)})
        rows_of = {file: table.loc[rows.index] for file, rows in rows_of.items()}
    largest = max(int(rows["class"].max()) for rows in rows_of.values())
    count = count or max(largest + 1, 2)
    if largest >= count:
        msg = f"{path} has class {largest}, and there are {count}: 0 to {count - 1}"
        raise InputError(msg)
    classes = {file: _place(rows, file, grids[file], block, path) for file, rows in rows_of.items()}
    return BlockLabels(classes=classes, count=count, block=block)


def _place(rows: pd.DataFrame, file: str, grid: Grid, block: int, path: str | Path) -> NDArray[np.int16]:
    """Put the classes of one image on its grid of blocks."""
    shape = block_shape(grid, block)
    row, col = rows["row"].to_numpy(dtype=int), rows["col"].to_numpy(dtype=int)
    outside = (row >= shape[0]) | (col >= shape[1])
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        msg = (
            f"{path}, line {rows.index[at]}, has row {row[at]}, column {col[at]} of {file}, which has {shape[0]} x "
            f"{shape[1]} blocks of {block} px ({grid.width} x {grid.height} px); "
            "is --block right, and do rows and columns count from 0?"
        )
        raise InputError(msg)
    twice = rows.duplicated(["row", "col"]).to_numpy()
    if twice.any():
        at = int(np.flatnonzero(twice)[0])
        msg = f"{path}, line {rows.index[at]}, has row {row[at]}, column {col[at]} of {file} twice"
        raise InputError(msg)
    found = np.full(shape, UNKNOWN, dtype=np.int16)
    found[row, col] = rows["class"].to_numpy(dtype=np.int16)
    return found


def without_images(labels: BlockLabels, names: Collection[str]) -> BlockLabels:
    """Return the labels without those of some images, by file name."""
    return replace(labels, classes={name: found for name, found in labels.classes.items() if name not in names})


def block_shape(grid: Grid, block: int) -> tuple[int, int]:
    """Return how many rows and columns of blocks an image has; the last may be cut."""
    return (-(-grid.height // block), -(-grid.width // block))


def rank_counts(counts: NDArray[np.floating], classes: int = CLASSES) -> NDArray[np.int16]:
    """Turn counts into density classes: 0 where there is none, the others by quantiles of the rest.

    Equal counts are of one class, so with many equal ones some classes stay empty.

    Parameters
    ----------
    counts
        Of the blocks (or shares, or scores), shape (N,), 0 or more.
    classes
        How many, two or more.

    Returns
    -------
    ndarray of int16, shape (N,)

    Raises
    ------
    InputError
        If a count is negative, all are 0, or there are too few classes.
    """
    from scipy.stats import rankdata

    counts = np.asarray(counts, dtype=float)
    if classes < 2:
        msg = f"there must be two density classes or more, not {classes}"
        raise InputError(msg)
    if not (counts >= 0).all():
        msg = f"counts must be 0 or more, not {counts.min():g}"
        raise InputError(msg)
    some = counts > 0
    if not some.any():
        msg = "all counts are 0, so there is nothing to tell blocks apart by"
        raise InputError(msg)
    found = np.zeros(counts.shape, dtype=np.int16)
    middle = (rankdata(counts[some]) - 0.5) / some.sum()  # of equal ones their mean rank
    found[some] = 1 + np.minimum((middle * (classes - 1)).astype(np.int16), classes - 2)
    return found


# -- the prior of a class ------------------------------------------------------------------------------


def spread_priors(count: int) -> NDArray[np.float64]:
    """Return the paper's prior per density class: the middles of equal steps, 0.05, 0.15 .. 0.95 for ten [R F.2]."""
    return (np.arange(count) + 0.5) / count


def read_priors(path: str | Path, count: int) -> NDArray[np.float64]:
    """Read a CSV ``class,probability``: how probable the target is in a pixel of a block of each class.

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
    """Return priors that can be trained with.

    Raises
    ------
    PriorError
        If one is no probability, or they are all equal.
    """
    wrong = ~((priors >= 0) & (priors <= 1))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        msg = f"{where}: the probability of class {at} is {priors[at]:g}, not between 0 and 1"
        raise PriorError(msg)
    if np.ptp(priors) == 0:
        msg = f"{where}: all classes have the probability {priors[0]:g}, so they tell nothing"
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
        Of the images, by file name.
    points
        Middles of what is meant, x and y in pixels, shape (N, 2), by image: in each of these images, all of them.
    radius
        Of one of it, pixels.

    Returns
    -------
    ndarray, shape (classes,)
        A class without a block has the mean of its neighbours.

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
        One for each block, (rows, columns) of blocks.
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
    """Return the priors of an image's density classes as if the image were as dense as images are on average.

    With m the mean over the image's blocks, p becomes proportional to ``rate * p / m``, and 1 - p to
    ``(1 - rate) * (1 - p) / (1 - m)``. Images differ in much besides density (stain, kind of tissue, the scanner), and
    a network tells them apart by that; blocks of one image differ in little else.

    Parameters
    ----------
    priors
        Probability of the target by class.
    classes
        Of the blocks of an image.
    rate
        The share of the target in an average image.

    Returns
    -------
    NDArray
        Probability by class; 0 and 1 stay, and all do where a mean is 0 or 1.
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
        Of the blocks, shape :func:`block_shape`.
    priors
        Probability of the target by class.
    block
        Side of a block, pixels.
    rows, columns
        The window, pixels.

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
    """Write the prior of an image as a raster, constant over each block, that ``predict --posterior`` takes.

    Parameters
    ----------
    path
        Where it goes.
    classes
        Of its blocks, shape :func:`block_shape`.
    priors
        Probability of the target by class.
    block
        Side of a block, pixels.
    grid
        The image's.
    scheme
        Background and target.
    overwrite
        Replace what is there.

    Returns
    -------
    Path
        ``path``.

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
