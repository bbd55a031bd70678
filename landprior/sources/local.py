"""Local files as sources: what tells one content from another, and what is not a local file at all."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio
from rasterio.errors import RasterioError

if TYPE_CHECKING:
    from collections.abc import Iterable

_WHOLE = 256 * 2**20
"""Bytes up to which a file is hashed whole; of a larger one samples are, and what the file system says of it."""
_SAMPLES, _SAMPLE = 64, 64 * 1024

# What lies beside a file and changes what is read from it. Overviews, indices and styles do not.
_BESIDE = (".aux.xml", ".msk", "-wal")
_SAME_STEM = (".shx", ".dbf", ".prj", ".cpg", ".tfw", ".wld", ".hdr", ".aux")

_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}[^/]|/vsi[a-z0-9_]+/")
_WEB = re.compile(r"https?://[^/]")


def refuse_remote(value: object, option: str, *, web: bool = False) -> None:
    """Refuse what is not a local path, such as ``s3://bucket/x``, also as :class:`~pathlib.Path` writes it (``s3:/``).

    Parameters
    ----------
    value
        A path or a text; anything else is let through.
    option
        How a user names it, for the message.
    web
        Whether ``http://`` and ``https://`` are supported.

    Raises
    ------
    ValueError
        Says what to do instead.
    """
    text = str(value) if isinstance(value, (str, os.PathLike)) else ""
    if not _REMOTE.match(text) or (web and _WEB.match(text)):
        return
    shown = text.partition("?")[0]
    shown = re.sub(r"//?[^/@]*@", "//", shown)
    also = " (or an http address)" if web else ""
    msg = (
        f"{shown} is neither a local file{also} nor can it be read from there; download it and give its path ({option})"
    )
    raise ValueError(msg)


def plain_path(source: str | Path) -> Path:
    """Return the file of a source that may name a layer: ``file.gpkg|layername=x``, as QGIS writes it."""
    path = Path(source)
    return path if path.exists() else Path(str(source).partition("|")[0])


def identify(source: str | Path) -> list[list[str | int]] | None:
    """Return what tells a local file, with all that is read along with it, from any other content.

    Time and size alone do not: a file may be replaced by one of the same size with an older date.

    Returns
    -------
    list or None
        Name, size and hash of each part: the file, a shapefile's others, masks and side files, the rasters of a VRT,
        the files of a folder. None if there is no such file.
    """
    path = plain_path(source)
    if not path.exists():
        return None
    return [_describe(part) for part in sorted(set(_parts(path)))]


def _parts(path: Path) -> Iterable[Path]:
    if path.is_dir():  # a file geodatabase, a partitioned GeoParquet
        return [part for part in path.rglob("*") if part.is_file() and part.suffix != ".lock"]
    beside = [path.with_name(path.name + end) for end in _BESIDE]
    beside += [path.with_suffix(case(end)) for end in _SAME_STEM for case in (str.lower, str.upper)]
    found = [path, *(part for part in beside if part.is_file() and part.stat().st_size)]
    if path.suffix.lower() == ".vrt":
        try:
            with rasterio.open(path) as src:
                found += [Path(name) for name in src.files if Path(name).is_file()]
        except (RasterioError, UnicodeDecodeError):
            pass  # whoever reads it says so
    return found


def _describe(path: Path) -> list[str | int]:
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return [path.name, status.st_size, _digest(str(path.absolute()), status.st_size, times)]


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, times: tuple[int, int, int]) -> str:
    """Return the hash of a file; computed once per run for an unchanged one."""
    with open(path, "rb") as stream:  # noqa: PTH123 - a text, as the key of the cache
        if size <= _WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256(repr((size, times)).encode())
        for number in range(_SAMPLES):
            stream.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            found.update(stream.read(_SAMPLE))
        return found.hexdigest()
