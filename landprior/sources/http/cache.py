"""The cache of downloads: one folder shared by all workspaces, with valid responses only."""

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
    """Space used in the cache by a source.

    Parameters
    ----------
    source
        Name of the source.
    entries
        Number of files.
    size
        Size in bytes.
    """

    source: str
    entries: int
    size: int


class Cache:
    """Files by source and key.

    Parameters
    ----------
    root
        The folder, created on first use. None: :func:`default_cache`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_cache()

    def path(self, source: str, key: str, suffix: str = "") -> Path:
        """Return the path of an entry, whether or not it exists; its folder is created.

        Parameters
        ----------
        source
            Name of the source, which is the name of its folder.
        key
            Identifier of the entry, such as a URL. Only its hash is stored.
        suffix
            Suffix of the file, with the dot.

        Returns
        -------
        Path
            A file in the folder of the source.

        Raises
        ------
        RasterWriteError
            If the folder cannot be created.
        """
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder(source) / f"{name[:32]}{suffix}"

    def lock_path(self, path: Path) -> Path:
        """Return the lock file of a file.

        Lock files are never deleted, as that would break the lock for waiting processes, so they have a folder of their
        own.
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
        """Write a file of the cache atomically."""
        with self.writing(path), replacing(path, overwrite=True) as temporary:
            temporary.write_bytes(content)
        return path

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turn disk errors in the ``with`` block into an error with a remedy.

        Raises
        ------
        RasterWriteError
            If the block raises an OSError that is not ours.
        """
        here = path.is_relative_to(self.root)
        remedy = "free some space there" + (", or set LANDPRIOR_CACHE to a folder on another disk" if here else "")
        try:
            yield
        except OSError as error:
            if isinstance(error, RasterWriteError):
                msg = f"{error}; {remedy}"
            elif isinstance(error, LandpriorError):  # some are OSErrors with a sufficient message
                raise
            else:
                msg = f"cannot write {path} ({error.strerror or type(error).__name__}); {remedy}"
            raise RasterWriteError(msg) from error

    def usage(self) -> list[Usage]:
        """Return the space used by each source."""
        found = []
        for folder in self._sources():
            sizes = [status.st_size for _, status in _files(folder)]
            found.append(Usage(source=folder.name, entries=len(sizes), size=sum(sizes)))
        return found

    def clear(self, sources: tuple[str, ...] = (), *, older_than_days: float = 0.0) -> int:
        """Delete cached files.

        Parameters
        ----------
        sources
            Sources to clear; if empty, all.
        older_than_days
            Minimum age of the files to delete.

        Returns
        -------
        int
            Bytes freed.

        Raises
        ------
        InputError
            If a source is not in the cache, or the folder is not a cache of landprior.
        RasterWriteError
            If a file cannot be deleted.
        """
        if not self.root.is_dir() or not any(self.root.iterdir()):
            return 0
        if not (self.root / _MARK).is_file():
            msg = f"{self.root} is not a landprior cache (it has no {_MARK}); nothing was deleted"
            raise InputError(msg)
        folders = {folder.name: folder for folder in self._sources()}
        unknown = sorted(set(sources) - set(folders))
        if unknown:
            msg = f"the cache has nothing from {', '.join(unknown)}; it has: {', '.join(sorted(folders)) or 'nothing'}"
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
        """Delete a file or folder of the cache."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)

    def _sources(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and path.name != _LOCKS)


def read_kept(path: Path, check: Callable[[bytes], None] | None) -> tuple[bytes, float] | None:
    """Return a cached response, if it exists and is valid.

    Parameters
    ----------
    path
        Path of the response.
    check
        Function that raises if the response is damaged.

    Returns
    -------
    tuple of bytes and float, or None
        The response, and the time it was stored.
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
    """Turn exceptions of pyogrio's writer into one error, as pyogrio has no class for a full disk.

    Raises
    ------
    RasterWriteError
        If the block raises one of pyogrio's exceptions.
    """
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    try:
        yield
    except (DataLayerError, DataSourceError, FeatureError) as error:
        reason = " ".join(str(error).split())[-160:]
        msg = f"cannot write {path} ({reason}); is the disk full?"
        raise RasterWriteError(msg) from error


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Return existing files; a fetch may write and delete files meanwhile."""
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
