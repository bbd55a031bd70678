"""The one way to the network: retries, time limits, resume, checks, offline mode.

Whatever fails becomes a :class:`~landprior.errors.SourceError` that names the source and the remedy.
Query strings (signatures, keys) and user names in URLs never reach a message, a log or a file name.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import json
import logging
import random
import re
import socket
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

import rasterio
import requests
import urllib3
from filelock import FileLock, Timeout
from rasterio.errors import RasterioError

import landprior
from landprior.errors import (
    FetchInterruptedError,
    LandpriorError,
    OfflineError,
    RasterReadError,
    SourceBusyError,
    SourceError,
)
from landprior.raster.files import GDAL_CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from rasterio.io import DatasetReader
    from requests import PreparedRequest, Response

    from landprior.sources.cache import Cache

logger = logging.getLogger(__name__)

T = TypeVar("T")

USER_AGENT = f"landprior/{landprior.__version__}"
DAY = 86_400.0
CHUNK = 512 * 1024
"""Bytes of a remote file that are read and cached at once."""

_READ_AHEAD = 16
"""At most so many chunks in one request, when a file is read on and on."""
_PIECE = 64 * 1024
_PROGRESS = 1024 * 1024
"""Bytes received since the last failure after which a request has all its attempts again."""
_BUSY = {408, 425, 429}
_NEVER = {501, 505}
"""Server errors that the next attempt will meet too."""
_DENIED = {401, 403}
_REDIRECTS = 10
_HARMLESS = {
    "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "cookie", "if-range",
    "proxy-authorization", "range", "user-agent",
}  # fmt: skip
"""Headers that may go on when a server leads to another host (requests sees to the secret ones); keys may not."""
_IDENTITY = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whom data comes from, for messages and for the cache.

    Parameters
    ----------
    name
        As a user calls it: "NAIP".
    folder
        Its folder in the cache.
    remedy
        What a user can do when it fails; completes "; ".
    """

    name: str
    folder: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patiently a source is asked.

    Parameters
    ----------
    attempts
        How often in all.
    first_wait, longest_wait
        Seconds; the wait doubles from the first to the longest, times a random 0.5 to 1. A source that
        asks for a longer one (Retry-After) than the longest is given up at once.
    connect_timeout, read_timeout
        Seconds until a connection stands, and between two pieces of an answer.
    least_speed, grace
        Bytes per second below which an answer is given up, once it has lasted ``grace`` seconds.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    least_speed: float = 1024.0
    grace: float = 30.0

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after the attempt of this number, from 1."""
        longest = min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


class Signer(Protocol):
    """Gives URLs the signature they need for a while."""

    def sign(self, href: str) -> str:
        """Return the URL to read now."""

    def forget(self, href: str) -> None:
        """Sign this one anew the next time."""


@dataclass(frozen=True)
class Remote:
    """A file of a source: its lasting address, and how it is signed, if it is."""

    href: str
    signer: Signer | None = None

    @property
    def url(self) -> str:
        """The address to read now."""
        return self.href if self.signer is None else self.signer.sign(self.href)


def redact(url: str) -> str:
    """Return a URL without what may be secret: user, password, query, fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is none"
    if parts.netloc:
        return f"{parts.scheme}://{host}{parts.path}"
    return url.partition("?")[0].partition("#")[0].rpartition("@")[2]


def _hide_queries(record: logging.LogRecord) -> bool:
    """Take queries, which may hold signatures, out of what urllib3 logs for those who turn it on."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_hide_queries)


class Network:
    """Fetches, with everything that may go wrong on the way.

    Parameters
    ----------
    cache
        Where good answers are kept.
    offline
        Never touch the network; what is not cached raises :class:`OfflineError`.
    refresh
        Take nothing from the cache (but resume what was begun).
    policy
        Patience.
    """

    def __init__(
        self, cache: Cache, *, offline: bool = False, refresh: bool = False, policy: RetryPolicy | None = None
    ) -> None:
        self.cache = cache
        self.offline = offline
        self.refresh = refresh
        self.policy = policy or RetryPolicy()
        self._stopped = threading.Event()
        self._local = threading.local()
        self._locks: dict[str, threading.Lock] = {}
        self._refreshed: set[str] = set()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._guard = threading.Lock()

    # -- asking, again and again -------------------------------------------------------------------

    def call(self, origin: Origin, action: Callable[[], T], *, gained: Callable[[], int] | None = None) -> T:
        """Run an action until it succeeds, fails for good, or patience ends.

        Parameters
        ----------
        origin
            Whom it asks.
        action
            Raises :class:`SourceBusyError`, or what requests raises, if trying again may help.
        gained
            Returns the bytes that came and are kept; while they grow, patience does not end.

        Raises
        ------
        SourceError
            Names the source, what happened, and the remedy.
        FetchInterruptedError
            After :meth:`stop`.
        """
        attempt, before = 0, 0 if gained is None else gained()
        while True:
            attempt += 1
            self._check_running()
            try:
                return action()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                failure = _translate(error)
            except SourceError as error:
                failure = error
            self._check_running()  # it may have failed because of stop()
            if str(failure).startswith(f"{origin.name}: "):
                raise failure  # asked within an asking, and said in full
            if not isinstance(failure, SourceBusyError):
                msg = f"{origin.name}: {failure}; {origin.remedy}"
                raise type(failure)(msg) from None
            if gained is not None and gained() - before >= _PROGRESS:
                attempt, before = 1, gained()
            asked = failure.wait or 0.0
            if attempt >= self.policy.attempts or asked > self.policy.longest_wait:
                tried = "tried once" if attempt == 1 else f"tried {attempt} times"
                later = f"it asks to wait {asked:.0f} s" if asked > self.policy.longest_wait else tried
                msg = f"{origin.name}: {failure} ({later}); run the same command again later, or {origin.remedy}"
                raise SourceBusyError(msg) from None
            # what is asked for is the least; all who were told the same should not come back at once
            wait = self.policy.wait(attempt) if failure.wait is None else asked + self.policy.wait(1)
            logger.info(
                "%s: %s; trying again in %.1f s (%d of %d)",
                origin.name, failure, wait, attempt, self.policy.attempts - 1,
            )  # fmt: skip
            self.pause(wait)

    def stop(self) -> None:
        """Make every request and wait in progress end soon, with :class:`FetchInterruptedError`."""
        self._stopped.set()
        with self._guard:
            for connection in list(self._sockets):
                with suppress(OSError):  # closed already
                    connection.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Wait, unless stopped."""
        self._stopped.wait(seconds)
        self._check_running()

    def require_online(self, origin: Origin, what: str) -> None:
        """Refuse, with :class:`OfflineError`, what would need the network."""
        if self.offline:
            msg = f"{origin.name}: {what} is not in the cache, and --offline was given; run once without it"
            raise OfflineError(msg)

    def _check_running(self) -> None:
        if self._stopped.is_set():
            msg = "stopped; what is whole was kept, and the same command goes on from there"
            raise FetchInterruptedError(msg)

    @contextmanager
    def listening(self, count: Callable[[int], None]) -> Iterator[None]:
        """Tell ``count`` the bytes that this thread receives."""
        before = getattr(self._local, "count", None)
        self._local.count = count
        try:
            yield
        finally:
            self._local.count = before

    @property
    def listener(self) -> Callable[[int], None] | None:
        """Whoever counts this thread's bytes."""
        found: Callable[[int], None] | None = getattr(self._local, "count", None)
        return found

    # -- small answers -----------------------------------------------------------------------------

    def get(
        self,
        url: str,
        origin: Origin,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        keep: float = 0.0,
        suffix: str = "",
        check: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Return an answer, from the cache if it may come from there.

        Parameters
        ----------
        url, params, headers
            What to ask; GET, or POST of ``body`` as JSON.
        origin
            Whom.
        keep
            Seconds for which a cached answer will do; 0: not cached. If asking fails and an older answer
            is there, that is taken, with a remark.
        suffix
            Of the cached file.
        check
            Raises :class:`SourceError` if the answer is none; such an answer is not kept.
        """

        def ask() -> bytes:
            method = "GET" if body is None else "POST"
            with self._request(method, url, params=params, json=body, headers=dict(headers or {})) as response:
                check_status(response)
                content = self.read_body(response)
            if check is not None:
                check(content)
            return content

        if not keep:
            self.require_online(origin, redact(url))
            return self.call(origin, ask)
        key = json.dumps([url, sorted((params or {}).items()), body], sort_keys=True)
        path = self.cache.path(origin.folder, key, suffix)
        with self.lock(str(path)):  # threads that ask the same wait for the one answer
            kept = _read_kept(path, check)
            if kept is not None and not self._wants_anew(path) and (time.time() - kept[1] < keep or self.offline):
                return kept[0]
            self.require_online(origin, redact(url))
            try:
                content = self.call(origin, ask)
            except SourceError as error:
                if kept is None:
                    raise
                day = datetime.fromtimestamp(kept[1], UTC).strftime("%Y-%m-%d")
                logger.warning("%s; using the answer of %s", error, day)
                return kept[0]
            self.cache.put(path, content)
            self._refreshed.add(str(path))
        return content

    def read_body(
        self, response: Response, sink: Callable[[bytes], object] | None = None, *, decode: bool = True
    ) -> bytes:
        """Read an answer's body in pieces, with the time limits, and check its length.

        Parameters
        ----------
        response
            Opened with ``stream=True``.
        sink
            Takes the pieces; without, they are returned.
        decode
            Unpack what was packed for the way. Not for files: they are kept as they lie there.

        Raises
        ------
        SourceBusyError
            If it is cut short, or too slow.
        """
        pieces: list[bytes] = []
        take, count = sink or pieces.append, self.listener
        total, began = 0, time.monotonic()
        try:
            while piece := response.raw.read1(_PIECE, decode_content=decode):
                self._check_running()
                take(piece)
                total += len(piece)
                if count is not None:
                    count(len(piece))
                spent = time.monotonic() - began
                if spent > self.policy.grace and total < self.policy.least_speed * spent:
                    msg = f"{redact(response.url)} sends too slowly ({total} bytes in {spent:.0f} s)"
                    raise SourceBusyError(msg)
        except urllib3.exceptions.HTTPError as error:
            msg = f"{redact(response.url)} broke off after {total} bytes ({type(error).__name__})"
            raise SourceBusyError(msg) from error
        packed = decode and response.headers.get("Content-Encoding", "identity") != "identity"
        declared = _length_of(response)
        if declared is not None and not packed and declared != total:
            msg = f"{redact(response.url)} broke off after {total} of {declared} bytes"
            raise SourceBusyError(msg)
        return b"".join(pieces)

    def _request(self, method: str, url: str, **options: Any) -> Response:  # noqa: ANN401 - those of requests
        """Ask; the body is not read yet."""
        timeout = (self.policy.connect_timeout, self.policy.read_timeout)
        try:
            return self.session.request(method, url, stream=True, timeout=timeout, **options)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise _translate(error, url) from None  # their texts have the whole URL

    @property
    def session(self) -> requests.Session:
        """The session of this thread; what is asked by it ends with :meth:`stop`."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
            session.headers["User-Agent"] = USER_AGENT
            session.max_redirects = _REDIRECTS
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Adapter(self._watch))
        return session

    def _watch(self, connection: socket.socket) -> None:
        """Remember an open connection, so that :meth:`stop` can end what waits for it."""
        with self._guard:
            self._sockets.add(connection)
        self._check_running()

    def _wants_anew(self, path: Path) -> bool:
        """Say whether what is cached must not be taken: it is to be fetched anew, and was not yet."""
        return self.refresh and str(path) not in self._refreshed

    # -- whole files -------------------------------------------------------------------------------

    def download(
        self,
        remote: Remote,
        origin: Origin,
        *,
        suffix: str = "",
        path: Path | None = None,
        md5: str | None = None,
        check: Callable[[Path], None] | None = None,
    ) -> Path:
        """Return a whole file in the cache, fetched if need be; an interrupted download is gone on with.

        Parameters
        ----------
        remote, origin
            What, from whom.
        suffix
            Of the cached file.
        path
            Put it here instead of into the cache.
        md5
            What its MD5 sum must be.
        check
            Raises :class:`SourceError` if the content is wrong; then nothing is kept.
        """
        path = path or self.cache.path(origin.folder, remote.href, suffix)
        if path.is_file() and not self._wants_anew(path):
            return path
        self.require_online(origin, redact(remote.href))
        with self._alone(path, origin):
            if path.is_file() and not self._wants_anew(path):
                return path  # another process was faster
            part = path.with_name(f"{path.name}.part")
            for last in (False, True):
                self.call(origin, lambda: self._download_on(remote, part), gained=lambda: _size(part))
                try:
                    _check_file(part, remote, md5, check)
                    break
                except SourceError as error:
                    _drop_part(part)
                    if last:
                        msg = f"{origin.name}: {error}; {origin.remedy}"
                        raise SourceError(msg) from error
                    logger.info("%s: %s; fetching it again", origin.name, error)
            with self.cache.writing(path):
                part.replace(path)
            _drop_part(part)
            self._refreshed.add(str(path))
        return path

    def _download_on(self, remote: Remote, part: Path) -> None:
        """Fetch what is missing of a file begun, if it is still the same file."""
        mark = _mark_of(part)
        version = mark.read_text(encoding="utf-8") if mark.is_file() else ""
        start = _size(part) if version else 0
        headers = _IDENTITY | ({"Range": f"bytes={start}-", "If-Range": version} if start else {})
        with self._open(remote, headers) as response:
            due = _due_of(response, part, start, version)
            if due == start:
                return  # nothing is missing
            resumed, now = response.status_code == requests.codes.partial_content, _validator(response)
            with self.cache.writing(part):
                if not resumed:
                    mark.unlink(missing_ok=True)  # first: it says what is in the part
                with part.open("ab" if resumed else "wb") as stream:
                    if not resumed and now:
                        mark.write_text(now, encoding="utf-8")

                    def write(piece: bytes) -> None:
                        stream.write(piece)
                        stream.flush()  # what has come is there even if this process is killed now

                    self.read_body(response, write, decode=False)
        size = _size(part)
        if size == 0 or (due is not None and size > due):
            _drop_part(part)
        if size == 0 or (due is not None and size != due):
            msg = f"{redact(remote.href)} gave {size} of {due or 'unknown'} bytes"
            raise SourceBusyError(msg)

    @contextmanager
    def _alone(self, path: Path, origin: Origin) -> Iterator[None]:
        """Keep other processes and threads from fetching the same file."""
        said = False
        with self.cache.writing(path):
            lock = FileLock(self.cache.lock_path(path))
            while True:
                self._check_running()
                try:
                    lock.acquire(timeout=0.2)
                    break
                except Timeout:
                    if not said:
                        logger.info("%s: %s is being fetched by another process; waiting", origin.name, path.name)
                    said = True
        try:
            yield
        finally:
            lock.release()

    def _open(self, remote: Remote, headers: Mapping[str, str]) -> Response:
        """Ask for a file; if the signature has run out, sign anew, once."""
        for renewed in (False, True):
            url = remote.url
            response = self._request("GET", url, headers=dict(headers))
            if response.status_code not in _DENIED or remote.signer is None or renewed:
                return response
            response.close()
            logger.debug("%s: the signature has run out; signing anew", redact(remote.href))
            with self.lock("signatures"):
                if remote.url == url:  # else another thread has signed anew meanwhile
                    remote.signer.forget(remote.href)
        raise AssertionError  # pragma: no cover - the loop returns

    # -- parts of files ----------------------------------------------------------------------------

    @contextmanager
    def open_raster(self, remote: Remote, origin: Origin) -> Iterator[DatasetReader]:
        """Open a remote raster; what is read of it comes by ranges and stays in the cache.

        Raises
        ------
        SourceError
            If it cannot be read, now or later within the block.
        """
        chunks = _Chunks(self, remote, origin)
        name = re.sub(r"[^\w.-]", "_", urlsplit(remote.href).path.rpartition("/")[2]) or "raster"

        def opener(path: str, mode: str = "rb") -> RangeFile:
            if mode != "rb" or path.rpartition("/")[2] != name:
                raise FileNotFoundError(path)  # GDAL looks for side files
            return RangeFile(chunks)

        try:
            with (
                rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
                rasterio.open(f"landprior/{name}", opener=opener) as src,
            ):
                yield src
        except (RasterioError, RasterReadError) as error:
            chunks.raise_failure()
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if cause is error and isinstance(error, RasterReadError):
                raise  # whoever reads it does not like what it is
            chunks.discard()
            reason = re.sub(r"\S*/vsi\S*", name, " ".join(str(cause).split())).rstrip(".")
            msg = f"{origin.name}: {redact(remote.href)} is damaged ({reason}) and was deleted; {origin.remedy}"
            raise SourceError(msg) from error
        except Exception:
            chunks.raise_failure()  # whatever went wrong, this was first
            raise
        else:
            chunks.raise_failure()

    def lock(self, name: str) -> threading.Lock:
        """Return the lock of this name, of this process."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())


class _Session(requests.Session):
    """Tells another host nothing but what it needs, when a server leads there."""

    def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        old, new = response.request.url or "", prepared_request.url or ""
        if self.should_strip_auth(old, new):  # type: ignore[no-untyped-call]
            for name in set(prepared_request.headers) - {n for n in prepared_request.headers if n.lower() in _HARMLESS}:
                del prepared_request.headers[name]


class _Adapter(requests.adapters.HTTPAdapter):
    """Shows every connection that it opens."""

    def __init__(self, show: Callable[[socket.socket], None]) -> None:
        self._show = show
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - urllib3's
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        base, show = pool.ConnectionCls, self._show
        if not hasattr(base, "shown"):

            def connect(connection: Any) -> None:  # noqa: ANN401
                base.connect(connection)
                show(connection.sock)

            pool.ConnectionCls = type(base.__name__, (base,), {"connect": connect, "shown": True})
        return pool


@dataclass
class _Chunks:
    """A remote file as chunks in the cache, fetched as they are asked for.

    ``meta.json`` in its folder says the size and the version; the chunks of a version have a folder of their
    own, so that two versions cannot be mixed, whoever else writes there.
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
    _doubt: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        self.folder = self.network.cache.path(self.origin.folder, self.remote.href, ".chunks")
        self._count = self.network.listener
        self._lock = self.network.lock(str(self.folder))

    def raise_failure(self) -> None:
        """Raise what a read failed with: GDAL reports only that it did."""
        if self.failure is not None:
            raise self.failure

    def discard(self) -> None:
        """Delete all of the file."""
        with self._lock:
            self.network.cache.discard(self.folder)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range, cut at the file's end."""
        with self._lock:  # of all who read this file, so that nothing is fetched twice
            if self.size < 0:
                self._begin()
            stop = min(stop, self.size)
            if stop <= start:
                return b""
            parts = [self._chunk(i) for i in range(start // CHUNK, (stop - 1) // CHUNK + 1)]
        offset = start // CHUNK * CHUNK
        return b"".join(parts)[start - offset : stop - offset]

    def _begin(self) -> None:
        """Learn the file's size and version, from the cache or by asking."""
        if not self.network._wants_anew(self.folder):  # noqa: SLF001 - the same module
            with suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
                self.size, self._validator = int(known["size"]), str(known["validator"])
                return
        self._fetch(0, 1)

    def _path(self, index: int) -> Path:
        version = hashlib.sha256(f"{self.size} {self._validator}".encode()).hexdigest()[:16]
        return self.folder / version / f"{index:06d}"

    def _due(self, index: int) -> int:
        return min(CHUNK, self.size - index * CHUNK)

    def _is_kept(self, index: int) -> bool:
        return _size(self._path(index)) == self._due(index)

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
        if len(content) == self._due(index):
            self._recent[index] = content
        return index in self._recent

    def _fetch(self, index: int, count: int) -> None:
        """Fetch chunks; each is kept as soon as it is whole, and then not asked for again."""
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
            headers = _IDENTITY | {"Range": f"bytes={start}-{stop - 1}"}
            with network._open(self.remote, headers) as response:  # noqa: SLF001
                begin, end, total = self._look(response, start, stop)
                if total is None:
                    content = self._receive(response)
                    total = end = len(content)
                    self._settle(total, _version(response))
                    _Cutter(begin, total, keep).take(content)
                    return
                self._settle(total, _version(response))
                cutter = _Cutter(begin, total, keep)
                self._receive(response, cutter.take)
            if cutter.at != end:
                msg = f"{redact(self.remote.href)} broke off at byte {cutter.at} of {end}"
                raise SourceBusyError(msg)

        network.call(self.origin, ask, gained=lambda: len(kept) * CHUNK)

    def _look(self, response: Response, start: int, stop: int) -> tuple[int, int | None, int | None]:
        """Return from where to where an answer goes, and the size of the file; None: it does not say."""
        where = redact(self.remote.href)
        check_status(response)
        length = _length_of(response)
        if response.status_code != requests.codes.partial_content:  # without ranges, all is sent
            begin, end, total = 0, length, length
        else:
            begin, total = _range_of(response)
            end = min(stop, total)
            if length is not None and begin + length != end:
                if (total, _version(response)) == (self.size, self._validator):
                    self._give_up()
                msg = (
                    f"{where} contradicts itself: {length} bytes from {begin} of {total}, where {end - begin} were due"
                )
                raise SourceBusyError(msg)
            if begin != start:
                msg = f"{where} sent another part of the file than was asked for"
                raise SourceBusyError(msg)
        if end == 0:
            msg = f"{where} gave an empty file"
            raise SourceBusyError(msg)
        return begin, end, total

    def _receive(self, response: Response, sink: Callable[[bytes], object] | None = None) -> bytes:
        if self._count is None:
            return self.network.read_body(response, sink, decode=False)
        with self.network.listening(self._count):  # GDAL may read in a thread of its own
            return self.network.read_body(response, sink, decode=False)

    def _settle(self, total: int, validator: str) -> None:
        """Note the file's size and version; refuse to mix two versions."""
        network, meta = self.network, self.folder / "meta.json"
        if self.size < 0:
            if network._wants_anew(self.folder):  # noqa: SLF001
                network.cache.discard(self.folder)
                network._refreshed.add(str(self.folder))  # noqa: SLF001
            self.size, self._validator = total, validator
            known = {"size": total, "validator": validator, "href": redact(self.remote.href)}
            network.cache.put(meta, json.dumps(known).encode())
        elif (total, validator) == (self.size, self._validator):
            self._doubt = None
        elif (total, validator) == self._doubt or network.policy.attempts == 1:
            self._give_up()
        else:  # a slip of the server? What it says twice is taken for true
            self._doubt = (total, validator)
            msg = f"{redact(self.remote.href)} is said to have another length or version than before"
            raise SourceBusyError(msg)

    def _give_up(self) -> NoReturn:
        self.network.cache.discard(self.folder)
        msg = (
            f"{redact(self.remote.href)} has changed since it was begun, or its length was wrong then; "
            "what was kept of it may be damaged and was deleted; run the same command again"
        )
        raise SourceError(msg)


@dataclass
class _Cutter:
    """Cuts what comes into chunks."""

    at: int
    total: int
    keep: Callable[[int, bytes], None]
    _rest: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes) -> None:
        """Take the next bytes; give every chunk that is whole to ``keep``."""
        self._rest += piece
        self.at += len(piece)
        begin = self.at - len(self._rest)
        while (size := min(CHUNK, self.total - begin)) and len(self._rest) >= size:
            self.keep(begin // CHUNK, bytes(self._rest[:size]))
            del self._rest[:size]
            begin += size


class RangeFile(io.RawIOBase):
    """A remote file for GDAL: reads ranges. A failure ends the read short and is kept for the caller."""

    def __init__(self, chunks: _Chunks) -> None:
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
        # An exception would be lost in GDAL, and noisily.
        if self._chunks.failure is not None:
            return b""
        try:
            return action()
        except BaseException as error:  # noqa: BLE001 - raised again by _Chunks.raise_failure
            self._chunks.failure = error
            return b""


def check_status(response: Response) -> None:
    """Raise for an answer that is none.

    Raises
    ------
    SourceBusyError
        If asking again may help; has the wait the server asks for.
    SourceError
        If not.
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    said = f"{redact(response.url)} answered {status} {response.reason or ''}".rstrip()
    if status in _BUSY or (status >= 500 and status not in _NEVER):
        raise SourceBusyError(said, wait=_retry_after(response))
    if status in _DENIED:
        msg = f"{said}: access was denied"
        raise SourceError(msg)
    raise SourceError(said)


def _due_of(response: Response, part: Path, start: int, version: str) -> int | None:
    """Return the length of the file whose rest was asked for, if the answer says it.

    Raises
    ------
    SourceError
        If the answer is none, or belongs to another version than the part; that is deleted then.
    """
    now, where = _validator(response), redact(response.url)
    if response.status_code == requests.codes.requested_range_not_satisfiable:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if start and total == str(start) and now in {"", version}:
            return start
        _drop_part(part)
        msg = f"{where} has changed"
        raise SourceBusyError(msg)
    check_status(response)
    if response.status_code == requests.codes.partial_content:
        first, due = _range_of(response)
        if first != start or now not in {"", version}:
            _drop_part(part)
            msg = f"{where} sent another part, or another version, than was asked for"
            raise SourceBusyError(msg)
        return due
    length = _length_of(response)
    if length == 0:
        msg = f"{where} gave an empty file"
        raise SourceBusyError(msg)
    return length


def _retry_after(response: Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    return max(when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time(), 0.0)


def _translate(error: Exception, url: str | None = None) -> SourceError:
    """Say in our words what requests' say with the whole URL."""
    request = getattr(error, "request", None)
    where = redact(getattr(request, "url", None) or url or "the server")
    if isinstance(error, requests.TooManyRedirects):
        return SourceBusyError(f"{where} redirects in a loop")
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error).upper():
        return SourceError(f"the certificate of {where} cannot be verified")
    if isinstance(error, requests.Timeout):
        return SourceBusyError(f"{where} did not answer in time")
    if isinstance(error, requests.exceptions.ProxyError):
        return SourceBusyError(f"{where} cannot be reached through the proxy")
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
    if isinstance(error, broken) and not isinstance(error, requests.exceptions.InvalidURL):
        return SourceBusyError(f"{where} cannot be reached, or broke off the connection")
    return SourceError(f"{where} cannot be asked ({type(error).__name__})")


def _range_of(response: Response) -> tuple[int, int]:
    """Return the first byte and the total of a partial answer."""
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", text.strip())
    if found is None:
        msg = f"{redact(response.url)} sent a part of a file and does not say which ({text[:40]!r})"
        raise SourceBusyError(msg)
    return int(found[1]), int(found[2])


def _length_of(response: Response) -> int | None:
    """Return the declared length of an answer's body, None if it is not said."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch("[0-9]+", text) else None


def _validator(response: Response) -> str:
    """Return what tells one version of a file from another: a strong ETag, or when it was changed."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _version(response: Response) -> str:
    """Return the validator, or a weak ETag: good enough to see a change, not to go on with a part."""
    return _validator(response) or response.headers.get("ETag", "")


def _read_kept(path: Path, check: Callable[[bytes], None] | None) -> tuple[bytes, float] | None:
    """Return a cached answer and its time; None if there is none, or it is damaged."""
    try:
        content, when = path.read_bytes(), path.stat().st_mtime
        if check is not None:
            check(content)
    except (OSError, LandpriorError):
        return None
    return content, when


def _check_file(path: Path, remote: Remote, md5: str | None, check: Callable[[Path], None] | None) -> None:
    """Raise unless a downloaded file is what it should be."""
    if md5 is not None and _md5(path) != md5:
        msg = f"{redact(remote.href)} has another checksum than it should and was deleted"
        raise SourceError(msg)
    if check is not None:
        check(path)


def _mark_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _drop_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark_of(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
