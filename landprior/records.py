"""Records of results as JSON lines, so that a command can resume, and JSON files shared by several processes."""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from landprior.errors import InputError, RasterWriteError
from landprior.inputs import read_text
from landprior.raster.locks import try_lock
from landprior.raster.outputs import replacing
from landprior.raster.scheme import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from _typeshed import DataclassInstance

RESULTS = "results.jsonl"

T = TypeVar("T", bound="DataclassInstance")

PATIENCE = 60.0
"""Seconds to wait for another process that writes the same file, which takes a fraction of a second."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of a file system without locks, where the user must avoid simultaneous writers."""


@contextmanager
def changing(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Lock a JSON file, so that one process at a time reads, changes and writes it.

    Yields a function that writes atomically. The lock is the operating system's, on
    ``.landprior-<name>.lock`` beside the file: a killed process's lock is released. The lock file is removed
    afterwards.

    Raises
    ------
    RasterWriteError
        If another process holds the lock for longer than :data:`PATIENCE`, or it cannot be created.
    """

    def write(content: Mapping[str, Any]) -> None:
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    with _locked(path):
        yield write


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file against other processes, waiting for the one that holds the lock."""
    lock = path.with_name(f".landprior-{path.name}.lock")  # a name recognised by clear_leftovers
    end = time.monotonic() + PATIENCE
    while True:
        try:
            held = try_lock(lock)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                msg = f"cannot write {path} ({error.strerror})"
                raise RasterWriteError(msg) from error
            held = None
            break
        if held is not None:
            break
        if time.monotonic() > end:
            msg = f"another process has been writing {path} for {PATIENCE:.0f} s; end it if it hangs, then try again"
            raise RasterWriteError(msg)
        time.sleep(0.01)
    try:
        yield
    finally:
        if held is not None:
            lock.unlink(missing_ok=True)  # while the lock is still ours
            os.close(held)


def read_records(folder: Path, kind: type[T]) -> list[T]:
    """Read the records of a folder; empty if there is no file yet.

    Parameters
    ----------
    folder
        Folder with :data:`RESULTS`.
    kind
        The dataclass of a record.

    Returns
    -------
    list
        Records in the order in which they were written.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    adapter = TypeAdapter(kind)
    try:
        return [adapter.validate_json(line) for line in read_text(path, empty=True).splitlines() if line]
    except ValidationError as error:
        msg = f"{explain(error, path)}; delete that line, and its work is repeated"
        raise InputError(msg) from error


def add_records(
    folder: Path,
    new: Sequence[T],
    kind: type[T],
    to_dict: Callable[[T], dict[str, Any]] = asdict,
    *,
    key: Callable[[T], str],
) -> list[T]:
    """Add records to those of a folder atomically; several processes may do so at once.

    Parameters
    ----------
    folder, kind
        See :func:`read_records`.
    new
        New records, which replace those with the same key.
    to_dict
        Function that converts a record for JSON.
    key
        Function that returns the key of a record.

    Returns
    -------
    list
        All records in the folder.
    """
    path, keys = folder / RESULTS, {key(one) for one in new}
    with _locked(path):
        everything = [one for one in read_records(folder, kind) if key(one) not in keys] + list(new)
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(to_dict(one)) + "\n" for one in everything), encoding="utf-8")
    return everything
