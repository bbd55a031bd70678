"""Labelled images in memory.

Supported formats: a folder of images with a CSV, ``.npz``, IDX (MNIST's format, also gzipped), CIFAR-10's binary files,
and sheets of 32 x 32 tiles. All become one uint8 tensor, (N, bands, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from landprior.errors import InputError, RasterReadError
from landprior.inputs import read_text
from landprior.sources.tables import parse_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

UNKNOWN = -1
"""Label of an item whose label is unknown."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images of the same size, each with a label.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W).
    labels
        int64, (N,): positions in ``classes``, or :data:`UNKNOWN`.
    classes
        Names of the classes, in order (for ranks: ascending).
    names
        Name of each item in results.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Self:
        """Return some of the items, by position."""
        return replace(
            self,
            images=self.images[index.to(self.images.device)],
            labels=self.labels[index],
            names=tuple(self.names[i] for i in index.tolist()),
        )

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with the images on a device; labels are not moved."""
        return replace(self, images=self.images.to(device))

    @property
    def known(self) -> bool:
        """Whether all labels are known."""
        return bool((self.labels != UNKNOWN).all())


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """Training images and, if any, test images."""

    train: LabelledImages
    test: LabelledImages | None = None


class TableRow(dict[str, str]):
    """A row of a table by column, with its line in the file."""

    line: int = 0


def read_table(path: str | Path, columns: Iterable[str], *, optional: Iterable[str] = ()) -> list[TableRow]:
    """Read a CSV with a header, in any form written by Excel (:mod:`landprior.sources.tables`).

    Parameters
    ----------
    path
        The file, UTF-8 or UTF-16.
    columns
        Required columns; case does not matter.
    optional
        Optional columns; case does not matter.

    Returns
    -------
    list of TableRow
        Rows in the order of the file.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        If it does not exist, is not text, or lacks a column or a value in a row.
    """
    path = Path(path)
    if path.is_file() and not path.stat().st_size:
        msg = f"{path} is empty: no rows, or no column {' or '.join(repr(name) for name in (*columns, *optional))}"
        raise InputError(msg)
    try:
        text = read_text(path)
    except InputError as error:
        raise RasterReadError(str(error)) from error
    table = parse_table(text, path)
    names = list(table.header)
    for name in (*columns, *optional):
        at = table.need(name) if name in set(columns) else table.find(name)
        if at is not None:
            names[at] = name
    rows = []
    for row in table.rows:
        found = TableRow(zip(names, row.cells, strict=True))
        found.line = row.line
        rows.append(found)
    return rows


def assemble_splits(
    found: Sequence[tuple[str, NDArray[np.generic], NDArray[np.generic]]],
    classes: tuple[str, ...] | None,
    where: Path,
    *,
    names: dict[str, list[str]] | None = None,
) -> ImageSplits:
    """Turn arrays into tensors, and labels into positions of classes common to both splits.

    Parameters
    ----------
    found
        ``"train"`` or ``"test"``, images and labels of each.
    classes
        Names of the classes, in order; None: the labels found.
    where
        Name of the data in error messages.
    names
        Names of the images, by split.

    Returns
    -------
    ImageSplits
        Images as uint8, (N, bands, H, W).

    Raises
    ------
    InputError
        If sizes or bands differ, a split has no images, or a label is not among the classes.
    """
    shapes = {images.shape[1:] for _, images, _ in found}
    if len(shapes) > 1:
        msg = f"{where}: training and test images differ in size or bands"
        raise InputError(msg)
    classes = classes or _find_classes([labels for _, _, labels in found], where)
    parts: dict[str, LabelledImages] = {}
    for part, images, labels in found:
        if len(images) == 0:
            msg = f"{where} has no images for {part}ing"
            raise InputError(msg)
        parts[part] = LabelledImages(
            images=torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8)),
            labels=torch.from_numpy(_encode(labels, classes, where)),
            classes=classes,
            names=tuple(names[part]) if names else tuple(f"{part}/{i}" for i in range(len(images))),
        )
    return ImageSplits(train=parts["train"], test=parts.get("test"))


def _find_classes(labels: Sequence[NDArray[np.generic]], where: Path) -> tuple[str, ...]:
    every = np.concatenate(labels)
    if every.dtype.kind in "iu":
        top = int(every.max(initial=0))
        return check_classes(tuple(str(code) for code in range(top + 1)))
    texts = {str(text) for text in every if str(text)}
    if not texts:
        msg = f"{where} has no labels, so give the names of the classes (--classes)"
        raise InputError(msg)
    if all(text.isdecimal() for text in texts):
        return check_classes(tuple(sorted(texts, key=int)))
    return check_classes(tuple(sorted(texts)))


def _encode(labels: NDArray[np.generic], classes: tuple[str, ...], where: Path) -> NDArray[np.int64]:
    if labels.dtype.kind in "iu":
        codes = labels.astype(np.int64)
        wrong = codes[(codes < UNKNOWN) | (codes >= len(classes))]
        if wrong.size:
            msg = f"{where}: the label {wrong[0]} is not among the {len(classes)} classes (0 to {len(classes) - 1})"
            raise InputError(msg)
        return codes
    if labels.dtype.kind not in "US":
        msg = f"{where}: labels are {labels.dtype}; they must be integers from 0, or texts"
        raise InputError(msg)
    positions = {name: position for position, name in enumerate(classes)} | {"": UNKNOWN}
    texts = labels.astype(np.str_).tolist()
    unknown = next((text for text in texts if text not in positions), None)
    if unknown is not None:
        msg = f"{where}: the label {unknown!r} is not among the classes ({', '.join(classes)})"
        raise InputError(msg)
    return np.array([positions[text] for text in texts], dtype=np.int64)


def check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of classes after checking them.

    Raises
    ------
    InputError
        If there are fewer than two, or one occurs twice.
    """
    if len(set(classes)) != len(classes) or len(classes) < 2:
        msg = f"give at least two classes, each once, not {', '.join(classes) or 'none'}"
        raise InputError(msg)
    return classes
