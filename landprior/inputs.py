"""Looking at an input before it is opened, and reading text: errors that name the file and the place in it."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from landprior.errors import InputError, MissingInputError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_file(path: str | Path, *, empty: bool = False, error: type[InputError] = InputError) -> Path:
    """Check that an input is a file that can be read. It is not opened: opening a pipe could wait for ever.

    Parameters
    ----------
    path
        The file.
    empty
        Whether a file of zero bytes is fine.
    error
        What is raised if it is something else than a readable file.

    Raises
    ------
    MissingInputError
        If there is nothing.
    InputError
        If it is a folder, a pipe, a socket or a device, or empty, or may not be read, or the name is not possible.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        msg = f"no such file: {path}"
        raise MissingInputError(msg) from None
    except (OSError, ValueError) as reason:  # a name too long, a loop of links, a zero byte in the name
        msg = f"{_short(path)} cannot be opened ({getattr(reason, 'strerror', None) or reason})"
        raise error(msg) from reason
    if stat.S_ISDIR(status.st_mode):
        msg = f"{path} is a folder; give the path of one file"
        raise error(msg)
    for test, name in _KINDS:
        if test(status.st_mode):
            msg = f"{path} is {name}, not a file; save its content to a file first"
            raise error(msg)
    if not os.access(path, os.R_OK):
        msg = f"{path} cannot be read (permission denied)"
        raise error(msg)
    if status.st_size == 0 and not empty and not str(path).startswith("/proc/"):
        msg = f"{path} is empty"
        raise error(msg)
    return path


def read_text(path: str | Path, *, empty: bool = False, error: type[InputError] = InputError) -> str:
    """Read a text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Parameters
    ----------
    path, empty, error
        See :func:`check_file`.

    Raises
    ------
    MissingInputError, InputError
        As :func:`check_file`; also if the bytes are no text: the error names the line.
    """
    path = check_file(path, empty=empty, error=error)
    try:
        content = path.read_bytes()
    except OSError as reason:
        msg = f"{path} cannot be read ({reason.strerror or reason})"
        raise error(msg) from reason
    return decode_text(content, path, error=error)


def decode_text(content: bytes, where: str | Path, *, error: type[InputError] = InputError) -> str:
    """Decode a text; see :func:`read_text`. Line ends become those of Python.

    Raises
    ------
    InputError
        If it is not UTF-8 (or UTF-16 with a mark), or holds a zero byte.
    """
    if content.startswith(_UTF16):
        encoding, name = "utf-16", "UTF-16"
    else:
        encoding, name = "utf-8-sig", "UTF-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as reason:
        at = reason.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        line = content.count(b"\n", 0, at) + 1
        found = content[at : at + 1].hex() or "the end"
        msg = f"{where} is not {name} text: byte {at + 1:,} (0x{found}, line {line:,}); save it as UTF-8"
        raise error(msg) from reason
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        msg = f"{where} is not a text file: a zero byte in line {line:,}"
        raise error(msg)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _short(path: Path, most: int = 120) -> str:
    text = str(path)
    return text if len(text) <= most else f"{text[: most - 3]}..."
