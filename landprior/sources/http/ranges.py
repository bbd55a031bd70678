"""Reading remote rasters by ranges: chunks in the cache, and a file object over them for GDAL."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import rasterio
import requests
from rasterio.errors import RasterioError

from landprior.addresses import redact
from landprior.errors import DiscardedError, RasterReadError, SourceBusyError
from landprior.raster.reading import GDAL_CACHE_BYTES
from landprior.sources.http.cache import file_size
from landprior.sources.http.responses import IDENTITY, MEGABYTE, check_status, length_of, range_of, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rasterio.io import DatasetReader
    from requests import Response

    from landprior.sources.http.client import Network
    from landprior.sources.http.origins import Origin, Remote

CHUNK = 512 * 1024
"""Chunk size: bytes of a remote file read and cached at once."""

_WHOLE_LIMIT = 1024 * MEGABYTE
"""Maximum size of a file that a server sends whole and without its length; it is held in memory once."""
_READ_AHEAD = 16
"""Maximum number of chunks per request, when a file is read sequentially."""


@contextmanager
def open_remote(network: Network, remote: Remote, origin: Origin) -> Iterator[DatasetReader]:
    """Open a remote raster; it is read by ranges, which are cached.

    Parameters
    ----------
    network
        Client for the ranges.
    remote
        Address of the file, and its signer.
    origin
        Source of the file, for messages and the folder in the cache.

    Yields
    ------
    DatasetReader
        The raster, open within the block.

    Raises
    ------
    SourceError
        If it cannot be read, immediately or later in the block.
    """
    chunks = Chunks(network, remote, origin)
    name = re.sub(r"[^\w.-]", "_", urlsplit(remote.href).path.rpartition("/")[2]) or "raster"

    def opener(path: str, mode: str = "rb") -> RangeFile:
        if mode != "rb" or path.rpartition("/")[2] != name:
            raise FileNotFoundError(path)  # GDAL looks for side files
        return RangeFile(chunks)

    try:
        try:
            with (
                rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
                rasterio.open(f"landprior/{name}", opener=opener) as src,
            ):
                yield src
        finally:
            chunks.raise_failure()  # GDAL hides the error of a request, which causes any later ones
    except (RasterioError, RasterReadError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if cause is error and isinstance(error, RasterReadError):
            raise  # an error of the caller about the content
        chunks.discard()
        reason = re.sub(r"\S*/vsi\S*", name, " ".join(str(cause).split())).rstrip(".")
        problem = f"{redact(remote.href)} is damaged ({reason}) and was deleted"
        raise origin.error(problem, DiscardedError) from error


@dataclass
class Chunks:
    """A remote file as chunks in the cache, fetched on demand.

    ``meta.json`` in its folder stores the size and the version; the chunks of a version have their own
    folder, so that two versions cannot be mixed, even with several writers.
    """

    network: Network
    remote: Remote
    origin: Origin
    size: int = -1
    failure: BaseException | None = None
    _count: Callable[[int], None] | None = None
    _recent: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _next: int = -1
    _ahead: int = 1
    _validator: str = ""
    _pending_version: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        self.folder = self.network.cache.path(self.origin.folder, self.remote.href, ".chunks")
        self._count = self.network.listener
        self._lock = self.network.lock(str(self.folder))

    def raise_failure(self) -> None:
        """Raise the error of a failed read, as GDAL reports only that it failed."""
        if self.failure is not None:
            raise self.failure

    def discard(self) -> None:
        """Delete all chunks of the file."""
        with self._lock:
            self.network.cache.discard(self.folder)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range, clipped to the file."""
        with self._lock:  # shared by all readers of this file, so that nothing is fetched twice
            if self.size < 0:
                self._begin()
            stop = min(stop, self.size)
            if stop <= start:
                return b""
            parts = [self._chunk(i) for i in range(start // CHUNK, (stop - 1) // CHUNK + 1)]
        offset = start // CHUNK * CHUNK
        return b"".join(parts)[start - offset : stop - offset]

    def _begin(self) -> None:
        """Set the file's size and version, from the cache or by a request."""
        if not self.network.must_refetch(self.folder):
            with suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
                self.size, self._validator = int(known["size"]), str(known["validator"])
                return
        self._fetch(0, 1)

    def _path(self, index: int) -> Path:
        version = hashlib.sha256(f"{self.size} {self._validator}".encode()).hexdigest()[:16]
        return self.folder / version / f"{index:06d}"

    def _expected_size(self, index: int) -> int:
        return min(CHUNK, self.size - index * CHUNK)

    def _is_kept(self, index: int) -> bool:
        return file_size(self._path(index)) == self._expected_size(index)

    def _chunk(self, index: int) -> bytes:
        if index not in self._recent and not self._load(index):
            self._ahead = min(self._ahead * 2, _READ_AHEAD) if index == self._next else 1
            last, count = (self.size - 1) // CHUNK, 1
            while count < self._ahead and index + count <= last and not self._is_kept(index + count):
                count += 1
            self._fetch(index, count)
            self._next = index + count
        self._recent.move_to_end(index)
        while len(self._recent) > 2 * _READ_AHEAD:
            self._recent.popitem(last=False)
        return self._recent[index]

    def _load(self, index: int) -> bool:
        try:
            content = self._path(index).read_bytes()
        except OSError:
            return False
        if len(content) == self._expected_size(index):
            self._recent[index] = content
        return index in self._recent

    def _fetch(self, index: int, count: int) -> None:
        """Fetch chunks; each is kept once complete, and not requested again."""
        network = self.network
        network.require_online(self.origin, redact(self.remote.href))
        wanted, kept = range(index, index + count), set[int]()

        def keep(number: int, content: bytes) -> None:
            if not self._is_kept(number):
                network.cache.put(self._path(number), content)
            if number == index:
                self._recent[number] = content
            kept.add(number)

        def ask() -> None:
            first = min(set(wanted) - kept, default=None)
            if first is None:
                return
            start, stop = first * CHUNK, wanted.stop * CHUNK
            headers = IDENTITY | {"Range": f"bytes={start}-{stop - 1}"}
            with network.open(self.remote, headers) as response:
                begin, end, total = self._read_span(response, start, stop)
                if total is None:
                    content = self._receive(response, limit=_WHOLE_LIMIT)
                    total = end = len(content)
                    self._confirm_version(total, version_of(response))
                    _Cutter(begin, total, keep).take(content)
                    return
                self._confirm_version(total, version_of(response))
                cutter = _Cutter(begin, total, keep)
                self._receive(response, cutter.take)
            if cutter.at != end:
                msg = f"{redact(self.remote.href)} broke off at byte {cutter.at} of {end}"
                raise SourceBusyError(msg)

        network.call(self.origin, ask, gained=lambda: len(kept) * CHUNK)

    def _read_span(self, response: Response, start: int, stop: int) -> tuple[int, int | None, int | None]:
        """Return the start and end of a response, and the size of the file; None if unknown."""
        where = redact(self.remote.href)
        check_status(response)
        length = length_of(response)
        if response.status_code != requests.codes.partial_content:  # without ranges, the whole file is sent
            begin, end, total = 0, length, length
        else:
            begin, total = range_of(response)
            end = min(stop, total)
            if length is not None and begin + length != end:
                if (total, version_of(response)) == (self.size, self._validator):
                    self._give_up()
                msg = f"{where} contradicts itself: {length} bytes from {begin} of {total}, instead of {end - begin}"
                raise SourceBusyError(msg)
            if begin != start:
                msg = f"{where} sent another part of the file than requested"
                raise SourceBusyError(msg)
        if end == 0:
            msg = f"{where} sent an empty file"
            raise SourceBusyError(msg)
        return begin, end, total

    def _receive(
        self, response: Response, sink: Callable[[bytes], object] | None = None, *, limit: int | None = None
    ) -> bytes:
        if self._count is None:
            return self.network.read_body(response, sink, decode=False, limit=limit)
        with self.network.listening(self._count):  # GDAL may read in a thread of its own
            return self.network.read_body(response, sink, decode=False, limit=limit)

    def _confirm_version(self, total: int, validator: str) -> None:
        """Record the file's size and version; raise an error if two versions would be mixed."""
        network, meta = self.network, self.folder / "meta.json"
        if self.size < 0:
            if network.must_refetch(self.folder):
                network.cache.discard(self.folder)
                network.mark_fetched(self.folder)
            self.size, self._validator = total, validator
            known = {"size": total, "validator": validator, "href": redact(self.remote.href)}
            network.cache.put(meta, json.dumps(known).encode())
        elif (total, validator) == (self.size, self._validator):
            self._pending_version = None
        elif (total, validator) == self._pending_version or network.policy.attempts == 1:
            self._give_up()
        else:  # possibly a server error; if it is repeated, it is believed
            self._pending_version = (total, validator)
            msg = f"{redact(self.remote.href)} was reported with another length or version than before"
            raise SourceBusyError(msg)

    def _give_up(self) -> NoReturn:
        self.network.cache.discard(self.folder)
        msg = (
            f"{redact(self.remote.href)} has changed since the download began, or its length was wrong then; "
            "the cached part may be damaged and was deleted; run the same command again"
        )
        raise DiscardedError(msg)


@dataclass
class _Cutter:
    """Cuts a stream into chunks."""

    at: int
    total: int
    keep: Callable[[int, bytes], None]
    _rest: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes) -> None:
        """Add the next bytes; call ``keep`` with every complete chunk."""
        self._rest += piece
        self.at += len(piece)
        begin = self.at - len(self._rest)
        while (size := min(CHUNK, self.total - begin)) and len(self._rest) >= size:
            self.keep(begin // CHUNK, bytes(self._rest[:size]))
            del self._rest[:size]
            begin += size


class RangeFile(io.RawIOBase):
    """A remote file for GDAL, read by ranges. A failed read returns no bytes, and the error is kept for the caller."""

    def __init__(self, chunks: Chunks) -> None:
        super().__init__()
        self._chunks = chunks
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        if whence == io.SEEK_END:
            self._try(lambda: self._chunks.read(0, 1))
            offset += max(self._chunks.size, 0)
        elif whence == io.SEEK_CUR:
            offset += self._at
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; none if reading failed."""
        stop = 2**62 if size is None or size < 0 else self._at + size
        content = self._try(lambda: self._chunks.read(self._at, stop))
        self._at += len(content)
        return content

    def _try(self, action: Callable[[], bytes]) -> bytes:
        # GDAL would drop an exception, after printing it.
        if self._chunks.failure is not None:
            return b""
        try:
            return action()
        except BaseException as error:  # noqa: BLE001 - raised again by Chunks.raise_failure
            self._chunks.failure = error
            return b""
