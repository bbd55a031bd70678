"""Reading labelled images: npz, IDX, CIFAR files, sheets, and folders with a table."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior import inputs
from landprior.domains.imagery.images import UNKNOWN, ImageSplits, assemble_splits, check_classes, read_table
from landprior.errors import InputError, MissingInputError, RasterReadError
from landprior.inputs import check_file, read_text
from landprior.raster.pixels import read_window
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Classes of CIFAR-10, in its order."""


CIFAR_SIDE = 32


_CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2


_IDX_BYTES = 0x08
"""IDX's code for unsigned bytes, the type of images and of labels."""


_TABLE = "labels.csv"


def read_images(
    path: str | Path, *, table: str | Path | None = None, classes: Sequence[str] | None = None
) -> ImageSplits:
    """Read labelled images in any supported format.

    Parameters
    ----------
    path
        A ``.npz`` with x_train, y_train and optionally x_test, y_test, or x and y; or a folder of IDX files
        (``train-images-idx3-ubyte`` and so on, optionally ``.gz``), of CIFAR-10's ``data_batch_1.bin`` and so on, of
        sheets (``train.png``, ``labels.npz``), or of images with a table.
    table
        For a folder of images, a CSV with the columns file, label and optionally split (train or test); by default
        ``labels.csv`` in the folder. An empty label means unknown.
    classes
        Names of the classes, in order; by default those in the file, or the sorted labels.

    Returns
    -------
    ImageSplits
        Training images and, if any, test images.

    Raises
    ------
    MissingInputError
        If a file does not exist.
    RasterReadError
        If a file is damaged.
    InputError
        If sizes differ, labels are not among the classes, or the format is none of these.
    """
    path = Path(path)
    if not path.exists():
        msg = f"no such file or folder: {path}"
        raise MissingInputError(msg)
    given = None if classes is None else check_classes(tuple(classes))
    if path.is_file():
        if path.suffix != ".npz":
            msg = f"{path} is not a .npz; give one, or a folder with IDX or CIFAR files, or images with a CSV"
            raise InputError(msg)
        return read_npz(path, classes=given)
    if table is not None:
        return read_folder(path, table, classes=given)
    if any(path.glob("*idx3-ubyte*")):
        return read_idx(path, classes=given)
    if (path / "data_batch_1.bin").exists():
        return read_cifar(path, classes=given)
    if (path / "train.png").exists() and (path / "labels.npz").exists():
        return read_sheets(path, classes=given)
    if (path / _TABLE).exists():
        return read_folder(path, path / _TABLE, classes=given)
    msg = (
        f"{path} has no train-images-idx3-ubyte, data_batch_1.bin or {_TABLE}; "
        "for a folder of images give a CSV with the columns file,label[,split]"
    )
    raise MissingInputError(msg)


def read_npz(path: str | Path, *, classes: tuple[str, ...] | None = None) -> ImageSplits:
    """Read a ``.npz``: x_train, y_train[, x_test, y_test] or x, y[, classes].

    Images are uint8, (N, H, W), (N, H, W, bands) or (N, bands, H, W) with at most four bands. Labels are integers
    from 0 (-1: unknown) or texts.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        See :func:`read_images`.
    """
    path = Path(path)
    arrays = read_arrays(path)
    if classes is None and "classes" in arrays:
        classes = check_classes(tuple(str(name) for name in arrays["classes"].tolist()))
    found: list[tuple[str, NDArray[np.generic], NDArray[np.generic]]] = []
    for part, x, y in (("train", "x_train", "y_train"), ("test", "x_test", "y_test"), ("train", "x", "y")):
        if x not in arrays or (found and x == "x"):
            continue
        images = _bands_first(arrays[x], f"{x} of {path}")
        labels = arrays[y] if y in arrays else np.full(len(images), UNKNOWN)
        if len(labels) != len(images) or labels.ndim != 1:
            msg = f"{path}: {x} has {len(images)} images, and {y} the shape {labels.shape}; each needs one label"
            raise InputError(msg)
        found.append((part, images, labels))
    if not found or found[0][0] != "train":
        msg = f"{path} contains {', '.join(arrays) or 'nothing'}; it must have x_train and y_train, or x and y"
        raise InputError(msg)
    return assemble_splits(found, classes, path)


def read_arrays(path: str | Path) -> dict[str, NDArray[np.generic]]:
    """Read all arrays of a ``.npz``; pickled objects are rejected.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    RasterReadError
        If it is damaged or contains objects.
    """
    return inputs.read_arrays(path, trouble="cannot be read as .npz of plain arrays", error=RasterReadError)


def _bands_first(images: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    if images.dtype != np.uint8:
        msg = f"{where} has {images.dtype} numbers; images are uint8 (0 to 255)"
        raise InputError(msg)
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] <= 4:
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] <= 4:
        return images
    msg = f"{where} has shape {images.shape}; images are (N, H, W) or (N, H, W, bands) with at most four bands"
    raise InputError(msg)


def read_idx(folder: str | Path, *, classes: tuple[str, ...] | None = None) -> ImageSplits:
    """Read MNIST's four IDX files, or only the two for training, plain or gzipped.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        See :func:`read_images`.
    """
    folder = Path(folder)
    found: list[tuple[str, NDArray[np.generic], NDArray[np.generic]]] = []
    for part, prefix in (("train", "train"), ("test", "t10k")):
        paths = [find_idx(folder, f"{prefix}-{kind}") for kind in ("images-idx3", "labels-idx1")]
        if part == "test" and paths == [None, None]:
            continue
        for path, kind in zip(paths, ("images-idx3", "labels-idx1"), strict=True):
            if path is None:
                msg = f"no such file: {folder / f'{prefix}-{kind}-ubyte'} (or .gz)"
                raise MissingInputError(msg)
        images, labels = (read_idx_file(path) for path in paths if path is not None)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            msg = f"{paths[0]} has shape {images.shape} and {paths[1]} {labels.shape}; each image needs one label"
            raise InputError(msg)
        found.append((part, images[:, None], labels))
    return assemble_splits(found, classes, folder)


def find_idx(folder: Path, start: str) -> Path | None:
    """Return the IDX file with a prefix (``train-images-idx3``): plain, gzipped or with a dot; None if missing."""
    names = (f"{start}-ubyte", f"{start}-ubyte.gz", f"{start.replace('-idx', '.idx')}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx_file(path: str | Path) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes in the IDX format, plain or gzipped.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    RasterReadError
        If it is truncated or not an IDX file.
    """
    path = Path(path)
    content = _read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_BYTES or not 1 <= content[3] <= 4:
        msg = f"{path} is not an IDX file of unsigned bytes (it starts with {content[:4].hex() or 'nothing'})"
        raise RasterReadError(msg)
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        msg = f"{path} is truncated in its header; copy or download it again"
        raise RasterReadError(msg)
    shape = struct.unpack(f">{axes}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "longer than its header says"
        msg = f"{path} is {fault}: {len(content)} bytes, not {expected}; copy or download it again"
        raise RasterReadError(msg)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    check_file(path)
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} is not a complete gzip file ({error}); copy or download it again"
        raise RasterReadError(msg) from error


def read_cifar(folder: str | Path, *, classes: tuple[str, ...] | None = None) -> ImageSplits:
    """Read CIFAR-10's binary files: ``data_batch_*.bin`` and optionally ``test_batch.bin``, ``batches.meta.txt``.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        See :func:`read_images`.
    """
    folder = Path(folder)
    meta = folder / "batches.meta.txt"
    if classes is None:
        lines = read_text(meta, empty=True).split() if meta.is_file() else []
        classes = tuple(lines) if lines else CIFAR_CLASSES
    train = sorted(folder.glob("data_batch_*.bin"))
    if not train:
        msg = f"no such file: {folder / 'data_batch_1.bin'}"
        raise MissingInputError(msg)
    found: list[tuple[str, NDArray[np.generic], NDArray[np.generic]]] = []
    for part, paths in (("train", train), ("test", sorted(folder.glob("test_batch.bin")))):
        if paths:
            records = np.concatenate([_read_cifar_file(path) for path in paths])
            images = records[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
            found.append((part, images, records[:, 0]))
    return assemble_splits(found, classes, folder)


def _read_cifar_file(path: Path) -> NDArray[np.uint8]:
    content = _read_bytes(path)
    if not content or len(content) % _CIFAR_RECORD:
        msg = f"{path} has {len(content)} bytes, not a multiple of {_CIFAR_RECORD}: it is truncated, or not CIFAR-10"
        raise RasterReadError(msg)
    return np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)


def read_sheets(folder: str | Path, *, classes: tuple[str, ...] | None = None) -> ImageSplits:
    """Read sheets of 32 x 32 tiles, row by row: ``train.png``, ``labels.npz`` and optionally ``test.png``.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        See :func:`read_images`.
    """
    folder = Path(folder)
    arrays = read_arrays(folder / "labels.npz")
    found: list[tuple[str, NDArray[np.generic], NDArray[np.generic]]] = []
    for part in ("train", "test"):
        path, name = folder / f"{part}.png", f"y_{part}"
        if part == "test" and not path.exists():
            continue
        if name not in arrays:
            msg = f"{folder / 'labels.npz'} has no {name}"
            raise InputError(msg)
        sheet = _read_picture(path)
        bands, height, width = sheet.shape
        rows, columns = height // CIFAR_SIDE, width // CIFAR_SIDE
        if rows * columns < len(arrays[name]) or height % CIFAR_SIDE or width % CIFAR_SIDE:
            msg = f"{path} ({width} x {height} px) has no {len(arrays[name])} tiles of {CIFAR_SIDE} x {CIFAR_SIDE} px"
            raise InputError(msg)
        tiles = sheet.reshape(bands, rows, CIFAR_SIDE, columns, CIFAR_SIDE).transpose(1, 3, 0, 2, 4)
        images = tiles.reshape(-1, bands, CIFAR_SIDE, CIFAR_SIDE)[: len(arrays[name])]
        found.append((part, images, arrays[name]))
    return assemble_splits(found, classes, folder)


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """Read an image file, uint8, (bands, H, W); a palette is replaced by its colours."""
    from rasterio.enums import ColorInterp

    with open_raster(path) as src:
        values = read_window(src)
        if src.colorinterp[0] == ColorInterp.palette:
            colours = np.zeros((256, 3), np.uint8)
            for code, colour in src.colormap(1).items():
                colours[code] = colour[:3]
            values = colours[values[0]].transpose(2, 0, 1)
    if values.dtype != np.uint8:
        msg = f"{path} has {values.dtype} numbers; images must have 8 bits per band"
        raise InputError(msg)
    return values.astype(np.uint8, copy=False)


def read_folder(folder: str | Path, table: str | Path, *, classes: tuple[str, ...] | None = None) -> ImageSplits:
    """Read a folder of images of the same size, listed in a CSV.

    Parameters
    ----------
    folder
        Folder of the images.
    table
        CSV with the columns file, label and optionally split (train or test).
    classes
        Names of the classes, in order; by default the sorted labels.

    Returns
    -------
    ImageSplits
        See :func:`read_images`.

    Raises
    ------
    MissingInputError, RasterReadError, InputError
        See :func:`read_images`.
    """
    folder, table = Path(folder), Path(table)
    rows = read_table(table, ("file",), optional=("label", "split"))
    first: NDArray[np.uint8] | None = None
    pictures: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows:
        split = row.get("split", "").strip() or "train"
        if split not in pictures:
            msg = f"{table}, line {row.line}: the split {split!r} is neither train nor test"
            raise InputError(msg)
        picture = _read_picture(folder / row["file"])
        first = picture if first is None else first
        if picture.shape != first.shape:
            sizes = f"{_describe(picture)}, but {rows[0]['file']} {_describe(first)}"
            msg = f"{folder / row['file']} is {sizes}; all images must match in size and bands: resize or convert them"
            raise InputError(msg)
        pictures[split].append(picture)
        labels[split].append(row.get("label", "").strip())
        names[split].append(row["file"])
    if not pictures["train"]:
        msg = f"{table} lists no training images"
        raise InputError(msg)
    found = [
        (split, np.stack(pictures[split]), np.array(labels[split], dtype=np.str_)) for split in pictures if names[split]
    ]
    return assemble_splits(found, classes, table, names=names)


def _describe(picture: NDArray[np.uint8]) -> str:
    bands, height, width = picture.shape
    return f"{width} x {height} px in {bands} band{'s' if bands > 1 else ''}"
