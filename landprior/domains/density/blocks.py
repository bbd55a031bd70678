"""Coarse labels: a density class for each block of an image, and the prior of each class.

A block is a square of pixels; blocks are counted from 0 at the top left corner. Blocks at the right and bottom edges
are smaller if the image is not a whole number of blocks.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from landprior.errors import InputError, TableWarning
from landprior.sources import tables

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid

UNKNOWN = -1
"""Class of a block whose class is unknown."""

CLASSES = 10
"""Default number of density classes made from counts."""


@dataclass(frozen=True, kw_only=True)
class BlockLabels:
    """Density classes of the blocks of images.

    Parameters
    ----------
    classes
        By image, int16, shape (rows, columns) of blocks; :data:`UNKNOWN` where unknown.
    count
        Number of classes: 0 .. count - 1.
    block
        Side of a block, pixels.
    """

    classes: Mapping[str, NDArray[np.int16]]
    count: int
    block: int


def read_table(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV with at least these columns; rows are indexed by their lines in the file.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    InputError
        If it is not a CSV, lacks a column, has no rows, or one of the columns has an empty cell.
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
        msg = f"{path} has no rows"
        raise InputError(msg)
    for name in columns:
        if table[name].isna().any():
            msg = f"{path}, line {table.index[table[name].isna()][0]}: {name} is empty"
            raise InputError(msg)
    return table


def require_numbers(table: pd.DataFrame, names: Sequence[str], path: str | Path, *, whole: bool = True) -> None:
    """Raise an error for values that are not finite numbers, or not whole numbers from 0.

    Parameters
    ----------
    table
        Table whose index is the line of each row.
    names
        The columns.
    path
        Name of the table in error messages.
    whole
        Whether whole numbers from 0 are required.

    Raises
    ------
    InputError
        If there is one; the message names the line and the value.
    """
    for name in names:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(numbers)
        if whole:
            wrong |= (numbers < 0) | (numbers != np.round(numbers))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            value = table[name].iloc[at]
            shown = repr(value) if isinstance(value, str) else f"{value:g}"
            kind = "a whole number from 0" if whole else "a number"
            msg = f"{path}, line {table.index[at]}: {name} is {shown}, not {kind}"
            raise InputError(msg)


def match_images(table: pd.DataFrame, images: Sequence[str | Path], path: str | Path) -> dict[str, pd.DataFrame]:
    """Split a table by image; images may be named with or without extension.

    Parameters
    ----------
    table
        Table with a column ``image``.
    images
        Paths of the images.
    path
        Name of the table in error messages.

    Returns
    -------
    dict
        Tables by the images' file names; images without rows are left out.

    Raises
    ------
    InputError
        If two images have the same name, or no row matches an image. A :class:`TableWarning` names unmatched rows.
    """
    by_name: dict[str, str] = {}
    for image in images:
        file = Path(image).name
        for name in {file, Path(image).stem}:
            if by_name.get(name, file) != file or (name == file and name in by_name):
                msg = f"two images are named {name}, so tables cannot tell them apart; rename one"
                raise InputError(msg)
            by_name[name] = file
    files = table["image"].map(by_name)
    lost = sorted(set(table["image"][files.isna()]))
    if files.isna().all():
        msg = f"{path} names none of the images: it has {lost[0]}, the first image is {Path(images[0]).name}"
        raise InputError(msg)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        warnings.warn(f"{path} has rows of {lost[0]}{more}, which are not among the images", TableWarning, stacklevel=2)
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
        Grids of the images, by file name.
    block
        Side of a block, pixels.
    count
        Number of classes; by default one more than the largest class, or :data:`CLASSES` for counts.

    Returns
    -------
    BlockLabels
        The class of each block, by image.

    Raises
    ------
    MissingInputError, InputError
        If the table cannot be used, does not match the images, or has a block that an image does not have, or a block
        twice.
    """
    if block < 1:
        msg = f"a block must have a side of at least 1 px, not {block}"
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
        msg = f"{path} has class {largest}, but there are {count}: 0 to {count - 1}"
        raise InputError(msg)
    classes = {file: _place(rows, file, grids[file], block, path) for file, rows in rows_of.items()}
    return BlockLabels(classes=classes, count=count, block=block)


def _place(rows: pd.DataFrame, file: str, grid: Grid, block: int, path: str | Path) -> NDArray[np.int16]:
    """Return the classes of an image as an array of blocks."""
    shape = block_shape(grid, block)
    row, col = rows["row"].to_numpy(dtype=int), rows["col"].to_numpy(dtype=int)
    outside = (row >= shape[0]) | (col >= shape[1])
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        msg = (
            f"{path}, line {rows.index[at]}, has row {row[at]}, column {col[at]} of {file}, which has {shape[0]} x "
            f"{shape[1]} blocks of {block} px ({grid.width} x {grid.height} px); "
            "is --block correct, and are rows and columns counted from 0?"
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
    """Return the number of rows and columns of blocks in an image; the last may be incomplete."""
    return (-(-grid.height // block), -(-grid.width // block))


def rank_counts(counts: NDArray[np.floating], classes: int = CLASSES) -> NDArray[np.int16]:
    """Turn counts into density classes: 0 for no count, the others by quantiles of the rest.

    Equal counts get the same class, so with many equal counts some classes stay empty.

    Parameters
    ----------
    counts
        Counts (or shares, or scores) of the blocks, shape (N,), 0 or more.
    classes
        Number of classes, at least two.

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
        msg = f"there must be at least two density classes, not {classes}"
        raise InputError(msg)
    if not (counts >= 0).all():
        msg = f"counts must be 0 or more, not {counts.min():g}"
        raise InputError(msg)
    some = counts > 0
    if not some.any():
        msg = "all counts are 0, so blocks cannot be distinguished"
        raise InputError(msg)
    found = np.zeros(counts.shape, dtype=np.int16)
    middle = (rankdata(counts[some]) - 0.5) / some.sum()  # equal counts get their mean rank
    found[some] = 1 + np.minimum((middle * (classes - 1)).astype(np.int16), classes - 2)
    return found


# -- the prior of a class ------------------------------------------------------------------------------
