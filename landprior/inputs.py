"""Input files: checks before opening, reading text, and checksums; errors name the file and the place in it."""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
import time
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landprior.errors import InputError, LandpriorError, MissingInputError, RasterReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_SHOWN = 120
"""Number of characters of an invalid path shown in a message."""

_DAMAGED = (
    OSError, ValueError, TypeError, LookupError, EOFError, AttributeError, SyntaxError, ArithmeticError,
    RuntimeError, ImportError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""Exceptions raised by numpy and zipfile for damaged files.

RuntimeError or a subclass if an entry is marked as encrypted or as compressed in another way, ImportError
if the module for that compression is missing.
"""


def check_file(
    path: str | Path,
    *,
    what: str = "file",
    empty: bool = False,
    folder: bool = False,
    error: type[LandpriorError] = InputError,
) -> Path:
    """Check that an input is a readable file, without opening it, as opening a pipe could block forever.

    Parameters
    ----------
    path
        The file.
    what
        Expected kind of file, for example ``"raster file"``.
    empty, folder
        Whether an empty file, or a folder, is accepted.
    error
        Exception to raise if it is not a readable file.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    MissingInputError
        If it does not exist.
    InputError
        If it is a folder, pipe, socket or device, is empty or unreadable, or has an invalid name.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        msg = f"no such file: {path}"
        raise MissingInputError(msg) from None
    except (OSError, ValueError) as reason:  # a name too long, a loop of links, a null byte in the name
        msg = f"{_short(path)} cannot be opened ({getattr(reason, 'strerror', None) or reason})"
        raise error(msg) from reason
    if stat.S_ISDIR(status.st_mode):
        if folder:
            return path
        msg = f"{path} is a folder; give the path of a {what}"
        raise error(msg)
    kind = _kind_of(status.st_mode)
    if kind:
        msg = f"{path} is {kind}, not a file; save its content to a file first"
        raise error(msg)
    if not os.access(path, os.R_OK):
        msg = f"{path} cannot be read (permission denied)"
        raise error(msg)
    if status.st_size == 0 and not empty and not str(path).startswith("/proc/"):
        msg = f"{path} is empty"
        raise error(msg)
    return path


def check_target(path: str | Path) -> None:
    """Raise an error if an output path is a pipe, socket or device, which would be replaced by a file.

    Raises
    ------
    InputError
        If it is one.
    """
    try:
        kind = _kind_of(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return
    if kind:
        msg = f"{path} is {kind}; give the path of a file to write"
        raise InputError(msg)


def read_text(path: str | Path, *, empty: bool = False, error: type[LandpriorError] = InputError) -> str:
    """Read a text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Parameters
    ----------
    path
        The file.
    empty, error
        See :func:`check_file`.

    Returns
    -------
    str
        The text, without the mark.

    Raises
    ------
    MissingInputError, InputError
        See :func:`check_file`; also if the file is not text: the error names the line.
    """
    path = check_file(path, empty=empty, error=error)
    try:
        content = path.read_bytes()
    except OSError as reason:
        msg = f"{path} cannot be read ({reason.strerror or reason})"
        raise error(msg) from reason
    return decode_text(content, path, error=error)


def decode_text(content: bytes, where: str | Path, *, error: type[LandpriorError] = InputError) -> str:
    """Decode a text: UTF-8 with or without a mark, or UTF-16 with one, as Excel writes "Unicode text".

    Parameters
    ----------
    content, where
        The bytes, and their source, which is named in error messages.
    error
        Exception to raise.

    Returns
    -------
    str
        The text, without the mark.

    Raises
    ------
    InputError
        If it has another encoding or is not text; the message names the line.
    """
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as reason:
        if encoding == "utf-16":
            msg = f"{where} is damaged: it starts as UTF-16 but is not; save it as UTF-8"
            raise error(msg) from reason
        skipped = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
        at = min(reason.start + skipped, len(content) - 1)
        line = content.count(b"\n", 0, at) + 1
        msg = (
            f"{where}, line {line}: the byte 0x{content[at]:02x} is not UTF-8; save the file as UTF-8 "
            '(Excel: "CSV UTF-8")'
        )
        raise error(msg) from reason
    if "\0" in text:
        msg = f"{where} is not a text file, or is UTF-16 without a mark; save it as UTF-8"
        raise error(msg)
    return text


Stamp = tuple[int, ...]

_SUMS: dict[tuple[str, Stamp], str] = {}

_UNSETTLED = 50_000_000
"""Nanoseconds after a change within which another change may get the same time from the file system."""


def stamp_of(path: Path) -> Stamp:
    """Return an identifier of a file's version without reading it: device, inode, size and times of change.

    It includes the time of the last status change, which cannot be set: a file replaced by one of the same
    size with an older date gets a different stamp.

    Raises
    ------
    RasterReadError
        If the file cannot be accessed.
    """
    try:
        status = path.stat()
    except OSError as error:
        msg = f"cannot read {path} ({error.strerror})"
        raise RasterReadError(msg) from error
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file; computed once per run for an unchanged file (:func:`stamp_of`).

    Raises
    ------
    RasterReadError
        If the file cannot be read.
    """
    stamp = stamp_of(path)
    known = (str(path), stamp)
    if known in _SUMS:
        return _SUMS[known]
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        msg = f"cannot read {path} ({error.strerror})"
        raise RasterReadError(msg) from error
    if time.time_ns() - stamp[-1] > _UNSETTLED and stamp_of(path) == stamp:
        _SUMS[known] = found
    return found


def read_arrays(path: str | Path, *, trouble: str, error: type[LandpriorError] = InputError) -> dict[str, NDArray[Any]]:
    """Read all arrays of a ``.npz``; pickled objects are rejected.

    Parameters
    ----------
    path, error
        See :func:`check_file`.
    trouble
        Description of the problem in errors, for example ``"is not a .npz file"``.

    Returns
    -------
    dict
        Name -> array.

    Raises
    ------
    MissingInputError, InputError
        See :func:`check_file`; also if the file is damaged, encrypted, or contains objects.
    """
    found = _load(path, trouble=trouble, error=error)
    if isinstance(found, dict):
        return found
    msg = f"{path} {trouble} (it is a single array, like a .npy)"
    raise error(msg)


def read_array(path: str | Path, *, trouble: str, error: type[LandpriorError] = InputError) -> NDArray[Any]:
    """Read the array of a ``.npy``; pickled objects are rejected.

    Parameters
    ----------
    path, trouble, error
        See :func:`read_arrays`.

    Returns
    -------
    ndarray
        The array, of any type except objects.

    Raises
    ------
    MissingInputError, InputError
        See :func:`read_arrays`.
    """
    found = _load(path, trouble=trouble, error=error)
    if not isinstance(found, dict):
        return found
    msg = f"{path} {trouble} (it is an archive of arrays, like a .npz)"
    raise error(msg)


def _load(path: str | Path, *, trouble: str, error: type[LandpriorError]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    import numpy as np

    path = check_file(path, error=error)
    try:
        with path.open("rb") as stream:  # numpy would leave a damaged file open
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            with found as archive:
                return {name: archive[name] for name in archive.files}
    except (*_DAMAGED, MemoryError) as reason:
        why = next(iter(str(reason).splitlines()), "") or type(reason).__name__
        msg = f"{path} {trouble} ({why})"
        raise error(msg) from reason


def _kind_of(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
