"""Records of work: results as lines of JSON, so that the same command goes on, and what several processes change."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from landprior.errors import InputError, RasterWriteError
from landprior.inputs import read_text
from landprior.raster.outputs import replacing
from landprior.raster.scheme import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from _typeshed import DataclassInstance

RESULTS = "results.jsonl"

T = TypeVar("T", bound="DataclassInstance")

PATIENCE = 60.0
"""Seconds to wait for another process that writes the same description; it takes a fraction of one."""


@contextmanager
def changing(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Let one process at a time read a JSON file, change it and write it.

    Gives a function that writes, whole or not at all. The lock is the operating system's, on
    ``.landprior-<name>.lock`` beside the file: that of a process that was killed holds nobody up. It goes afterwards.

    Raises
    ------
    RasterWriteError
        If another process holds the lock for longer than :data:`PATIENCE`, or it cannot be made.
    """

    def write(content: Mapping[str, Any]) -> None:
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    try:
        with _locked(path.with_name(f".landprior-{path.name}.lock")):  # a name that clear_leftovers knows
            yield write
    except TimeoutError as error:
        msg = f"another process has been writing {path} for {PATIENCE:.0f} s; is it stopped? End it and try again"
        raise RasterWriteError(msg) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until the lock at a path is ours, and remove it in the end."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows, where a file that is open cannot be removed
        from filelock import FileLock

        with FileLock(path, timeout=PATIENCE):
            yield
        return
    end = time.monotonic() + PATIENCE
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            msg = f"cannot write {path} ({error.strerror})"
            raise RasterWriteError(msg) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(handle), path.stat())
        except (BlockingIOError, FileNotFoundError):  # another has it, or has removed it
            ours = False
        if ours:
            break
        os.close(handle)
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(handle)


def read_records(folder: Path, kind: type[T]) -> list[T]:
    """Read the records of a folder; none where there is no file yet.

    Parameters
    ----------
    folder
        That holds :data:`RESULTS`.
    kind
        The dataclass of a record.

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
        msg = f"{explain(error, path)}; delete that line and what it is of is done again"
        raise InputError(msg) from error


def write_records(folder: Path, records: Sequence[T], to_dict: Callable[[T], dict[str, Any]] = asdict) -> None:
    """Write all records, whole or not at all; ``to_dict`` says how one becomes JSON."""
    with replacing(folder / RESULTS, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(to_dict(one)) + "\n" for one in records), encoding="utf-8")
