"""Local files as sources: identifying their content, and rejecting remote paths."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path

from landprior.addresses import redact
from landprior.errors import InputError
from landprior.inputs import checksum
from landprior.raster.remote import explain_remote_input, is_remote
from landprior.raster.sidecars import files_of

_WHOLE = 256 * 2**20
"""Maximum size of a file that is hashed whole; for larger ones, samples and file system data are hashed."""
_ARCHIVES = {".zip", ".kmz", ".shz"}
_UNPACKED = 100
_SAMPLES, _SAMPLE = 64, 64 * 1024

_WEB = re.compile(r"https?://[^/]")


def refuse_remote(value: object, option: str, *, web: bool = False) -> None:
    """Raise an error for a remote path, such as ``s3://bucket/x``, or ``s3:/bucket/x`` as in a :class:`~pathlib.Path`.

    Parameters
    ----------
    value
        A path or a text; anything else is accepted.
    option
        Name of the option, for the message.
    web
        Whether ``http://`` and ``https://`` are supported.

    Raises
    ------
    ValueError
        If the path is not local; the message gives the remedy.
    """
    text = str(value) if isinstance(value, (str, os.PathLike)) else ""
    if explain_remote_input(text) is None or (web and _WEB.match(text)):
        return
    also = " (or an http address)" if web else ""
    msg = (
        f"{redact(text)} is not a local file{also}, and landprior cannot read it remotely; "
        f"download it and give its path ({option})"
    )
    raise ValueError(msg)


def refuse_zip_bomb(path: Path) -> None:
    """Raise an error for an archive that unpacks to an implausible size, which GDAL would read in full.

    Raises
    ------
    InputError
        If it does.
    """
    if path.suffix.lower() not in _ARCHIVES or not path.is_file():
        return
    try:
        with zipfile.ZipFile(path) as archive:
            whole = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):  # damaged, encrypted, or of an unknown version
        return  # reported where it is read
    if whole > max(_UNPACKED * path.stat().st_size, _WHOLE):
        msg = (
            f"{path} unpacks to {whole / 2**20:,.0f} MB, over {_UNPACKED} times its size; unpack it if that is correct"
        )
        raise InputError(msg)


def plain_path(source: str | Path) -> Path:
    """Return the file of a source that may name a layer: ``file.gpkg|layername=x``, as QGIS writes it."""
    path = Path(source)
    return path if path.exists() else Path(str(source).partition("|")[0])


def absolute_source(source: str | Path) -> str:
    """Return a local source with its absolute path; ``none`` and addresses are unchanged."""
    text = str(source)
    local = plain_path(text).exists() or ("{year}" in text and not is_remote(text))
    return str(Path(text).absolute()) if local else text


def identify(source: str | Path) -> list[list[str | int]] | None:
    """Return an identifier of the content of a local file and the files read with it.

    Time and size are not enough: a file may be replaced by one of the same size with an older date.

    Returns
    -------
    list or None
        Kind, size and hash of each part: the file, the other parts of a shapefile, masks and side files, the rasters of
        a VRT, the files of a folder. None if there is no such file.
    """
    text = str(source)
    path = plain_path(source)
    if text.startswith("/vsi"):
        parts = files_of(text)
    elif path.is_dir():  # a file geodatabase, a partitioned GeoParquet
        parts = sorted(part for part in path.rglob("*") if part.is_file() and part.suffix != ".lock")
    elif path.exists():
        parts = [path, *sorted(files_of(path))]
    else:  # a subdataset or a band, which contains the file name
        parts = files_of(text)
    return [_describe(part, path) for part in parts if part.is_file()] or None


def _describe(part: Path, whole: Path) -> list[str | int]:
    size = part.stat().st_size
    kind = part.relative_to(whole).as_posix() if whole.is_dir() else part.suffix.lower()
    return [kind, size, checksum(part) if size <= _WHOLE else _sample(part)]


def _sample(path: Path) -> str:
    """Return a hash of parts of a large file and its file system data."""
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    found = hashlib.sha256(repr((status.st_size, times)).encode())
    with path.open("rb") as stream:
        for number in range(_SAMPLES):
            stream.seek((status.st_size - _SAMPLE) * number // (_SAMPLES - 1))
            found.update(stream.read(_SAMPLE))
    return found.hexdigest()
