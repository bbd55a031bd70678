"""Locks between processes that write to the same folder: on results and on their temporary folders.

A lock ends with its process, so leftovers of a killed process can be told from files being written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import OutputBusyError, RasterWriteError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY = ".landprior-"
"""Prefix of the names of temporary folders and locks."""

LOCK = "lock"
"""Name of the lock in a temporary folder."""

LEFT_BEHIND = 86_400.0
"""Seconds after which a temporary file counts as left behind, if the file system has no locks."""


@contextmanager
def claiming(path: str | Path, *, patience: float = 0.0) -> Iterator[None]:
    """Lock the result at ``path`` against other processes within the block.

    Parameters
    ----------
    path
        The result.
    patience
        Seconds to wait for another process that holds the lock.

    Yields
    ------
    None

    Raises
    ------
    OutputBusyError
        If another process holds the lock.
    """
    path = Path(path)
    name = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    lock = path.with_name(f"{TEMPORARY}{name}.lock")
    held: int | None = None
    end = time.monotonic() + patience
    try:
        while (held := try_lock(lock)) is None and time.monotonic() < end:
            time.sleep(0.2)
    except OSError:  # a file system without locks: the user must avoid conflicts
        pass
    else:
        if held is None:
            msg = f"another process is writing {path}; wait for it, or give another output path"
            raise OutputBusyError(msg)
    try:
        yield
    finally:
        if held is not None:
            lock.unlink(missing_ok=True)
            os.close(held)


def clear_leftovers(folder: str | Path) -> None:
    """Remove the temporary files left in a folder by killed processes; those in use are kept."""
    for leftover in Path(folder).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            inside = leftover / LOCK if leftover.is_dir() else leftover
            try:
                held = try_lock(inside)
            except OSError:
                if time.time() - leftover.stat().st_mtime > LEFT_BEHIND:
                    _remove(leftover)
                continue
            if held is not None:
                _remove(leftover)
                os.close(held)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_temporary(parent: Path) -> tuple[Path, int | None]:
    """Create a temporary folder and lock it, if the file system has locks.

    Raises
    ------
    RasterWriteError
        If the parent folder is not writable.
    """
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
        except OSError as error:
            msg = f"cannot write to the folder {parent} ({error.strerror})"
            raise RasterWriteError(msg) from error
        try:
            lock = try_lock(folder / LOCK)
        except FileNotFoundError:
            continue  # another process removed it as a leftover before it was locked
        except OSError:
            return folder, None
        if lock is not None:
            return folder, lock


def try_lock(path: Path) -> int | None:
    """Lock a file, creating it if necessary, and return its descriptor; None if another process has the lock.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):  # the second is raised on Windows
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its previous owner has removed it meanwhile
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened on this system
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
