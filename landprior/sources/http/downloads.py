"""Downloading whole files into the cache, with checks, and resuming after an interruption."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import requests
from filelock import FileLock, Timeout

from landprior.addresses import redact
from landprior.errors import SourceBusyError, SourceError
from landprior.sources.http.cache import file_size
from landprior.sources.http.responses import (
    FILE_LIMIT,
    IDENTITY,
    TooLongError,
    check_status,
    length_of,
    range_of,
    validator_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from requests import Response

    from landprior.sources.http.client import Network
    from landprior.sources.http.origins import Origin, Remote

logger = logging.getLogger(__name__)


def download(
    network: Network,
    remote: Remote,
    origin: Origin,
    *,
    suffix: str = "",
    path: Path | None = None,
    md5: str | None = None,
    check: Callable[[Path], None] | None = None,
    limit: int = FILE_LIMIT,
) -> Path:
    """Return a whole file in the cache, downloading it or resuming its download if necessary.

    Parameters
    ----------
    network, remote, origin
        The client, the file and its source.
    suffix
        Suffix of the cached file.
    path
        Path to write to instead of the cache.
    md5
        Expected MD5 sum.
    check
        Function that raises :class:`SourceError` for wrong content, which is not kept.
    limit
        Maximum size in bytes.

    Returns
    -------
    Path
        ``path``, or the file in the cache.

    Raises
    ------
    SourceError
        If the download fails, is longer than the limit, or has wrong content twice.
    """
    path = path or network.cache.path(origin.folder, remote.href, suffix)
    if path.is_file() and not network.must_refetch(path):
        return path
    network.require_online(origin, redact(remote.href))
    with _locking(network, path, origin):
        if path.is_file() and not network.must_refetch(path):
            return path  # another process was faster
        part = path.with_name(f"{path.name}.part")
        for last in (False, True):
            try:
                network.call(origin, lambda: _resume(network, remote, part, limit), gained=lambda: file_size(part))
            except TooLongError:
                _drop_part(part)
                raise
            try:
                _check_file(part, remote, md5, check)
                break
            except SourceError as error:
                _drop_part(part)
                if last:
                    raise origin.error(str(error)) from error
                logger.info("%s: %s; fetching it again", origin.name, error)
        with network.cache.writing(path):
            part.replace(path)
        _drop_part(part)
        network.mark_fetched(path)
    return path


def _resume(network: Network, remote: Remote, part: Path, limit: int) -> None:
    """Fetch the missing part of a partial download, if the file has not changed."""
    mark = _version_file(part)
    version = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    start = file_size(part) if version else 0
    headers = IDENTITY | ({"Range": f"bytes={start}-", "If-Range": version} if start else {})
    with network.open(remote, headers) as response:
        due = _expected_length(response, part, start, version)
        if due == start:
            return  # already complete
        if due is not None and due > limit:
            raise TooLongError.of(response, limit)
        resumed, now = response.status_code == requests.codes.partial_content, validator_of(response)
        with network.cache.writing(part):
            if not resumed:
                mark.unlink(missing_ok=True)  # delete first, as it describes the part
            with part.open("ab" if resumed else "wb") as stream:
                if not resumed and now:
                    mark.write_text(now, encoding="utf-8")

                def write(piece: bytes) -> None:
                    stream.write(piece)
                    stream.flush()  # received bytes are kept even if this process is killed now

                network.read_body(response, write, decode=False, limit=limit - (start if resumed else 0))
    size = file_size(part)
    if size == 0 or (due is not None and size > due):
        _drop_part(part)
    if size == 0 or (due is not None and size != due):
        msg = f"{redact(remote.href)} sent {size} of {due or 'unknown'} bytes"
        raise SourceBusyError(msg)


@contextmanager
def _locking(network: Network, path: Path, origin: Origin) -> Iterator[None]:
    """Lock a file against other processes and threads that would fetch it."""
    warned = False
    with network.cache.writing(path):
        lock = FileLock(network.cache.lock_path(path))
        while True:
            network.require_running()
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                if not warned:
                    logger.info("%s: %s is being fetched by another process; waiting", origin.name, path.name)
                warned = True
    try:
        yield
    finally:
        lock.release()


def _expected_length(response: Response, part: Path, start: int, version: str) -> int | None:
    """Return the length of a file whose remainder was requested, if the response gives it.

    Raises
    ------
    SourceError
        If the response is invalid or of another version than the part, which is then deleted.
    """
    now, where = validator_of(response), redact(response.url)
    if response.status_code == requests.codes.requested_range_not_satisfiable:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if start and total == str(start) and now in {"", version}:
            return start
        _drop_part(part)
        msg = f"{where} has changed"
        raise SourceBusyError(msg)
    check_status(response)
    if response.status_code == requests.codes.partial_content:
        first, due = range_of(response)
        if first != start or now not in {"", version}:
            _drop_part(part)
            msg = f"{where} sent another part, or another version, than requested"
            raise SourceBusyError(msg)
        return due
    length = length_of(response)
    if length == 0:
        msg = f"{where} sent an empty file"
        raise SourceBusyError(msg)
    return length


def _check_file(path: Path, remote: Remote, md5: str | None, check: Callable[[Path], None] | None) -> None:
    """Raise an error if a downloaded file is not as expected."""
    if md5 is not None and _md5(path) != md5:
        msg = f"{redact(remote.href)} has the wrong checksum and was deleted"
        raise SourceError(msg)
    if check is not None:
        check(path)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _drop_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
