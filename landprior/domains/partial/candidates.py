"""Candidate sets as priors: read from a table, or drawn as negative labels; hard zeros are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.domains.imagery.formats import read_arrays
from landprior.domains.imagery.images import UNKNOWN, read_table
from landprior.errors import InputError, PriorError
from landprior.implicit.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.domains.imagery.images import LabelledImages

_SETS = "candidates"
"""Name of the column, or of the array in a ``.npz``, with the sets."""

_SEPARATOR = "|"


def draw_negatives(labels: Tensor, classes: int, count: int, *, seed: int) -> Tensor:
    """Draw negative labels: for each item, distinct wrong classes with equal chances.

    Parameters
    ----------
    labels
        True classes, int64, (N,).
    classes
        Number of classes.
    count
        Negative labels per item, from 1 to classes - 1 (which leaves only the true class).
    seed
        Seed of the draw. The labels drawn for a larger ``count`` include those for a smaller one.

    Returns
    -------
    Tensor
        The prior, float32, (N, classes): uniform over the remaining classes.

    Raises
    ------
    InputError
        If the count is out of range, or a label is unknown.
    """
    if not 1 <= count < classes:
        msg = f"{count} negative labels per item cannot be drawn from {classes} classes; give 1 to {classes - 1}"
        raise InputError(msg)
    if bool((labels == UNKNOWN).any()):
        msg = "negative labels are drawn from true labels, but some are unknown; give candidate sets (--candidates)"
        raise InputError(msg)
    generator = torch.Generator().manual_seed(derive_seed(seed, "negative labels"))
    keys = torch.rand((len(labels), classes), generator=generator, dtype=torch.float64)
    keys[torch.arange(len(labels)), labels] = 2.0  # after all wrong ones
    negatives = keys.argsort(dim=1)[:, :count]
    left = torch.ones(keys.shape).scatter_(1, negatives, 0.0)
    return left / (classes - count)


def read_candidates(path: str | Path, images: LabelledImages) -> Tensor:
    """Read a candidate set, or a prior, for each item.

    Parameters
    ----------
    path
        A CSV with a column ``file`` (names of items) or ``item`` (positions from 0), and either a column
        ``candidates`` ("cat|dog") or one column per class (a weight; 0 excludes it). Or a ``.npz`` with ``candidates``,
        (N, C), in the items' order.
    images
        The items; each needs a row.

    Returns
    -------
    Tensor
        The prior, float32, (N, C), normalised; excluded classes stay exactly 0.

    Raises
    ------
    MissingInputError, RasterReadError
        If the file does not exist or is damaged.
    InputError
        If items or classes are unknown, duplicated or missing.
    PriorError
        If a set is empty or a weight is not a non-negative number.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if _SETS not in arrays:
            msg = f"{path} contains {', '.join(arrays) or 'nothing'}; it must have {_SETS!r}, of items by classes"
            raise InputError(msg)
        weights = arrays[_SETS]
        if weights.shape != (len(images), len(images.classes)) or weights.dtype.kind not in "biuf":
            wanted = (len(images), len(images.classes))
            msg = f"{path}: {_SETS} is {weights.dtype} of shape {weights.shape}; it must be numbers of shape {wanted}"
            raise InputError(msg)
        return normalise(weights.astype(np.float64), path, images.names)
    return normalise(_read_csv(path, images), path, images.names)


def _read_csv(path: Path, images: LabelledImages) -> NDArray[np.float64]:
    rows = read_table(path, (), optional=[name for name in ("file", "item", _SETS) if name not in images.classes])
    columns = set(rows[0]) if rows else set()
    key = next((name for name in ("file", "item") if name in columns), None)
    if key is None:
        msg = f"{path} has no rows, or no column 'file' or 'item' that identifies the item of a row"
        raise InputError(msg)
    as_set = _SETS in columns
    missing = [name for name in images.classes if name not in columns]
    if not as_set and missing:
        msg = f"{path} has neither a column {_SETS!r} nor one for the class {missing[0]!r}"
        raise InputError(msg)
    where = {name: i for i, name in enumerate(images.names)} if key == "file" else None
    positions = {name: i for i, name in enumerate(images.classes)}
    weights = np.zeros((len(images), len(images.classes)))
    seen = np.zeros(len(images), dtype=bool)
    for row in rows:
        place = f"{path}, line {row.line}"
        item = _find_item(row[key], where, len(images), place)
        if seen[item]:
            msg = f"{place}: {row[key]} already has a row"
            raise InputError(msg)
        seen[item] = True
        weights[item] = _parse_set(row[_SETS], positions, place) if as_set else _parse_weights(row, positions, place)
    if not seen.all():
        msg = f"{path} has no row for {images.names[int(np.argmin(seen))]} (and {int((~seen).sum()) - 1} more)"
        raise InputError(msg)
    return weights


def _find_item(text: str, where: Mapping[str, int] | None, count: int, place: str) -> int:
    if where is not None:
        if text not in where:
            msg = f"{place}: {text!r} is not among the training images"
            raise InputError(msg)
        return where[text]
    if re.fullmatch(r"\d{1,9}(\.0*)?", text.strip()) is None or float(text) >= count:
        msg = f"{place}: the item {text!r} is not a position from 0 to {count - 1}"
        raise InputError(msg)
    return int(float(text))


def _parse_set(text: str, positions: Mapping[str, int], place: str) -> NDArray[np.float64]:
    weights = np.zeros(len(positions))
    for name in (part.strip() for part in text.split(_SEPARATOR) if part.strip()):
        if name not in positions:
            msg = f"{place}: {name!r} is not among the classes ({', '.join(positions)})"
            raise InputError(msg)
        weights[positions[name]] = 1.0
    return weights


def _parse_weights(row: Mapping[str, str], positions: Mapping[str, int], place: str) -> NDArray[np.float64]:
    try:
        return np.array([float(row[name] or 0) for name in positions])
    except ValueError as error:
        msg = f"{place}: {error}"
        raise InputError(msg) from error


def normalise(weights: NDArray[np.float64], where: str | Path, names: tuple[str, ...]) -> Tensor:
    """Normalise weights over classes to a prior; zeros stay zeros.

    Parameters
    ----------
    weights
        Shape (N, C), at least 0.
    where
        Name of the weights in error messages.
    names
        Names of the items, for error messages.

    Returns
    -------
    Tensor
        float32, shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        If a row is empty, or a weight negative or not finite.
    """
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        item, column = np.argwhere(bad)[0]
        msg = f"{where}: {names[item]} has the weight {weights[item, column]}; weights are finite and not negative"
        raise PriorError(msg)
    total = weights.sum(1, keepdims=True)
    if not total.all():
        msg = f"{where}: {names[int(np.argmin(total))]} has no candidates; each item needs at least one"
        raise PriorError(msg)
    return torch.from_numpy(weights / total).float()


def thin_classes(labels: Tensor, shares: Mapping[int, float], *, seed: int) -> Tensor:
    """Leave out items of some classes, drawn at random.

    Parameters
    ----------
    labels
        Classes, int64, (N,).
    shares
        Class -> share of its items to keep, above 0 and at most 1.
    seed
        Seed of the draw.

    Returns
    -------
    Tensor
        Positions of the items kept, int64, ascending.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "thinning"))
    drawn = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    keep = torch.ones(len(labels), dtype=torch.bool)
    for label, share in shares.items():
        items = torch.nonzero(labels == label)[:, 0]
        order = drawn[items].argsort()
        keep[items[order[round(share * len(items)) :]]] = False
    return torch.nonzero(keep)[:, 0]
