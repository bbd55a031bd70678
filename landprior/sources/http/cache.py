"""The cache of what was downloaded: one folder, shared by all workspaces; good answers only."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from landprior.errors import InputError, LandpriorError, RasterWriteError
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARK = "CACHEDIR.TAG"
_LOCKS = ".locks"
_MARK_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# landprior's downloads; safe to delete\n"


def default_cache() -> Path:
    """Return the folder of ``LANDPRIOR_CACHE``, or the system's usual one."""
    named = os.environ.get("LANDPRIOR_CACHE")
    return Path(named) if named else user_cache_path("landprior", appauthor=False)


@dataclass(frozen=True)
class Usage:
    """How much of the cache a source takes.

    Parameters
    ----------
    source
        Name of the source.
    entries
        Number of files.
    size
        Bytes.
    """

    source: str
    entries: int
    size: int


class Cache:
    """Files by source and key.

    Parameters
    ----------
    root
        The folder; made on first use. None: :func:`default_cache`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_cache()

    def path(self, source: str, key: str, suffix: str = "") -> Path:
        """Return where something lies, there or not; its folder exists afterwards.

        Parameters
        ----------
        source
            Name of the source, the name of a folder.
        key
            What identifies it, such as a URL. Only its hash is written.
        suffix
            With the dot.

        Returns
        -------
        Path
            A file in the folder of the source.

        Raises
        ------
        RasterWriteError
            If the folder cannot be made.
        """
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder(source) / f"{name[:32]}{suffix}"

    def lock_path(self, path: Path) -> Path:
        """Return the file that stands for the lock of another file.

        It is never deleted, which would break the lock for those who wait; so it does not lie beside the other.
        """
        return self._folder(_LOCKS) / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.lock"

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark = self.root / _MARK
            if not mark.exists():
                mark.write_text(_MARK_TEXT, encoding="utf-8")
        except OSError as error:
            msg = f"cannot use the cache {self.root} ({error.strerror}); set LANDPRIOR_CACHE to another folder"
            raise RasterWriteError(msg) from error
        return folder

    def put(self, path: Path, content: bytes) -> Path:
        """Write a file of the cache, whole or not at all."""
        with self.writing(path), replacing(path, overwrite=True) as temporary:
            temporary.write_bytes(content)
        return path

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turn what the disk says within the block into an error with a remedy.

        Parameters
        ----------
        path
            What is being written.

        Yields
        ------
        None
            What is raised inside is looked at.

        Raises
        ------
        RasterWriteError
            Where the block raises an OSError that is not ours.
        """
        here = path.is_relative_to(self.root)
        remedy = "make room there" + (", or set LANDPRIOR_CACHE to a folder on another disk" if here else "")
        try:
            yield
        except OSError as error:
            if isinstance(error, RasterWriteError):
                msg = f"{error}; {remedy}"
            elif isinstance(error, LandpriorError):  # some are OSErrors, and say enough
                raise
            else:
                msg = f"cannot write {path} ({error.strerror or type(error).__name__}); {remedy}"
            raise RasterWriteError(msg) from error

    def usage(self) -> list[Usage]:
        """Return what each source takes."""
        found = []
        for folder in self._sources():
            sizes = [status.st_size for _, status in _files(folder)]
            found.append(Usage(source=folder.name, entries=len(sizes), size=sum(sizes)))
        return found

    def clear(self, sources: tuple[str, ...] = (), *, older_than_days: float = 0.0) -> int:
        """Delete what is cached.

        Parameters
        ----------
        sources
            Only of these sources; none: of all.
        older_than_days
            Only what was written so long ago.

        Returns
        -------
        int
            Bytes freed.

        Raises
        ------
        InputError
            If a source is not in the cache, or the folder is not a cache of landprior.
        RasterWriteError
            If something cannot be deleted.
        """
        if not self.root.is_dir() or not any(self.root.iterdir()):
            return 0
        if not (self.root / _MARK).is_file():
            msg = f"{self.root} is no cache of landprior (it has no {_MARK}); nothing was deleted"
            raise InputError(msg)
        folders = {folder.name: folder for folder in self._sources()}
        unknown = sorted(set(sources) - set(folders))
        if unknown:
            msg = f"the cache has nothing of {', '.join(unknown)}; it has: {', '.join(sorted(folders)) or 'nothing'}"
            raise InputError(msg)
        before = time.time() - older_than_days * 86_400
        freed = 0
        try:
            for name in sources or tuple(folders):
                for path, status in list(_files(folders[name])):
                    if older_than_days <= 0 or status.st_mtime < before:
                        path.unlink(missing_ok=True)
                        freed += status.st_size
                inner = sorted((p for p in folders[name].rglob("*") if p.is_dir()), reverse=True)
                for folder in (*inner, folders[name]):
                    if not any(folder.iterdir()):
                        folder.rmdir()
        except OSError as error:
            msg = f"cannot delete {error.filename} ({error.strerror})"
            raise RasterWriteError(msg) from error
        return freed

    def discard(self, path: Path) -> None:
        """Delete one file or folder of the cache."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)

    def _sources(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and path.name != _LOCKS)


def read_kept(path: Path, check: Callable[[bytes], None] | None) -> tuple[bytes, float] | None:
    """Return an answer of the cache, if it is there and good.

    Parameters
    ----------
    path
        Where it lies.
    check
        Raises if it is damaged.

    Returns
    -------
    tuple of bytes and float, or None
        The answer, and when it was kept.
    """
    try:
        content, when = path.read_bytes(), path.stat().st_mtime
        if check is not None:
            check(content)
    except (OSError, LandpriorError):
        return None
    return content, when


@contextmanager
def writing_features(path: Path) -> Iterator[None]:
    """Turn what pyogrio raises while it writes into one error; it has no class for a full disk.

    Parameters
    ----------
    path
        What is being written.

    Yields
    ------
    None
        What is raised inside is looked at.

    Raises
    ------
    RasterWriteError
        Where the block raises one of pyogrio's.
    """
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    try:
        yield
    except (DataLayerError, DataSourceError, FeatureError) as error:
        reason = " ".join(str(error).split())[-160:]
        msg = f"cannot write {path} ({reason}); is the disk full?"
        raise RasterWriteError(msg) from error


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Return what is there; a fetch may be writing and deleting meanwhile."""
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                yield path, path.stat()


def file_size(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
