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
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

import rasterio
import requests
import urllib3
from filelock import FileLock
from rasterio.errors import RasterioError

import landprior
from landprior.errors import FetchInterruptedError, OfflineError, RasterWriteError, SourceBusyError, SourceError
from landprior.raster.files import GDAL_CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from rasterio.io import DatasetReader

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
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_DENIED = {401, 403}


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
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else parts.path


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
        self._guard = threading.Lock()

    # -- asking, again and again -------------------------------------------------------------------

    def call(self, origin: Origin, action: Callable[[], T]) -> T:
        """Run an action until it succeeds, fails for good, or patience ends.

        Raises
        ------
        SourceError
            Names the source, what happened, and the remedy.
        FetchInterruptedError
            After :meth:`stop`.
        """
        attempt = 0
        while True:
            attempt += 1
            self._check_running()
            try:
                return action()
            except requests.RequestException as error:
                failure = _translate(error)
            except SourceError as error:
                failure = error
            if str(failure).startswith(f"{origin.name}: "):
                raise failure  # asked within an asking, and said in full
            if not isinstance(failure, SourceBusyError):
                msg = f"{origin.name}: {failure}; {origin.remedy}"
                raise type(failure)(msg) from None
            wait = self.policy.wait(attempt) if failure.wait is None else failure.wait
            if attempt >= self.policy.attempts or wait > self.policy.longest_wait:
                later = f"it asks to wait {wait:.0f} s" if failure.wait is not None else f"tried {attempt} times"
                msg = f"{origin.name}: {failure} ({later}); run the same command again later, or {origin.remedy}"
                raise SourceBusyError(msg) from None
            logger.info(
                "%s: %s; trying again in %.1f s (%d of %d)",
                origin.name, failure, wait, attempt, self.policy.attempts - 1,
            )  # fmt: skip
            self.pause(wait)

    def stop(self) -> None:
        """Make every request and wait in progress end soon, with :class:`FetchInterruptedError`."""
        self._stopped.set()

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
        key = json.dumps([url, sorted((params or {}).items()), body], sort_keys=True)
        path = self.cache.path(origin.folder, key, suffix) if keep else None
        if path is not None and path.is_file() and not self.refresh:
            age = time.time() - path.stat().st_mtime
            if age < keep or self.offline:
                return path.read_bytes()
        self.require_online(origin, redact(url))

        def ask() -> bytes:
            method = "GET" if body is None else "POST"
            with self._session.request(
                method,
                url,
                params=params,
                json=body,
                headers=dict(headers or {}),
                stream=True,
                timeout=(self.policy.connect_timeout, self.policy.read_timeout),
            ) as response:
                check_status(response)
                content = self.read_body(response)
            if check is not None:
                check(content)
            return content

        try:
            content = self.call(origin, ask)
        except SourceError as error:
            if path is None or not path.is_file():
                raise
            logger.warning("%s; using the answer of %s", error, time.strftime("%x", time.gmtime(path.stat().st_mtime)))
            return path.read_bytes()
        if path is not None:
            self.cache.put(path, content)
        return content

    def read_body(self, response: requests.Response, sink: Callable[[bytes], object] | None = None) -> bytes:
        """Read an answer's body in pieces, with the time limits, and check its length.

        Parameters
        ----------
        response
            Opened with ``stream=True``.
        sink
            Takes the pieces; without, they are returned.

        Raises
        ------
        SourceBusyError
            If it is cut short, or too slow.
        """
        pieces: list[bytes] = []
        take, count = sink or pieces.append, self.listener
        total, began = 0, time.monotonic()
        try:
            while piece := response.raw.read1(_PIECE, decode_content=True):
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
        declared = response.headers.get("Content-Length")
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if declared is not None and declared.isdigit() and not encoded and int(declared) != total:
            msg = f"{redact(response.url)} broke off after {total} of {declared} bytes"
            raise SourceBusyError(msg)
        return b"".join(pieces)

    @property
    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.headers["User-Agent"] = USER_AGENT
            session.max_redirects = 10
        return session

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
        if path.is_file() and not self.refresh:
            return path
        self.require_online(origin, redact(remote.href))
        with FileLock(f"{path}.lock"):
            if path.is_file() and not self.refresh:
                return path  # another process was faster
            part = path.with_name(f"{path.name}.part")
            self.call(origin, lambda: self._download_on(remote, part))
            try:
                _check_file(part, remote, md5, check)
            except SourceError as error:
                _drop_part(part)
                msg = f"{origin.name}: {error}; {origin.remedy}"
                raise SourceError(msg) from error
            part.replace(path)
            _mark_of(part).unlink(missing_ok=True)
        return path

    def _download_on(self, remote: Remote, part: Path) -> None:
        """Fetch what is missing of a file begun, if it is still the same file."""
        mark = _mark_of(part)
        start = part.stat().st_size if part.is_file() and mark.is_file() else 0
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": mark.read_text(encoding="utf-8")}
        with self._open(remote, headers) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(start):
                    return
                _drop_part(part)
                msg = f"{redact(remote.href)} has changed"
                raise SourceBusyError(msg)
            check_status(response)
            resumed = response.status_code == requests.codes.partial_content
            if resumed and _range_of(response)[0] != start:
                _drop_part(part)
                msg = f"{redact(remote.href)} sent another part of the file than was asked for"
                raise SourceBusyError(msg)
            validator = _validator(response)
            if validator:
                mark.write_text(validator, encoding="utf-8")
            else:
                mark.unlink(missing_ok=True)
            with _writing(part, "ab" if resumed else "wb") as stream:
                self.read_body(response, stream.write)
        if part.stat().st_size == 0:
            _drop_part(part)
            msg = f"{redact(remote.href)} gave an empty file"
            raise SourceBusyError(msg)

    def _open(self, remote: Remote, headers: Mapping[str, str]) -> requests.Response:
        """Ask for a file; if the signature has run out, sign anew, once."""
        for renewed in (False, True):
            response = self._session.get(
                remote.url,
                headers=dict(headers),
                stream=True,
                timeout=(self.policy.connect_timeout, self.policy.read_timeout),
            )
            if response.status_code not in _DENIED or remote.signer is None or renewed:
                return response
            response.close()
            logger.debug("%s: the signature has run out; signing anew", redact(remote.href))
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
        name = urlsplit(remote.href).path.rpartition("/")[2] or "raster"

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
                chunks.raise_failure()
        except RasterioError as error:
            chunks.raise_failure()
            self.cache.discard(chunks.folder)
            reason = " ".join(str(error.__cause__ or error).split())
            msg = f"{origin.name}: {redact(remote.href)} is damaged ({reason}) and was deleted; {origin.remedy}"
            raise SourceError(msg) from error

    def lock(self, name: str) -> threading.Lock:
        """Return the lock of this name, of this process."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())


@dataclass
class _Chunks:
    """A remote file as chunks in the cache, fetched as they are asked for."""

    network: Network
    remote: Remote
    origin: Origin
    size: int = -1
    failure: BaseException | None = None
    _count: Callable[[int], None] | None = None
    _recent: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _next: int = -1
    _ahead: int = 1

    def __post_init__(self) -> None:
        self.folder = self.network.cache.path(self.origin.folder, self.remote.href, ".chunks")
        self._count = self.network.listener
        self._lock = self.network.lock(str(self.folder))
        self._validator = ""

    def raise_failure(self) -> None:
        """Raise what a read failed with: GDAL reports only that it did."""
        if self.failure is not None:
            raise self.failure

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range, cut at the file's end."""
        if self.size < 0:
            self._begin()
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        parts = [self._chunk(i) for i in range(start // CHUNK, (stop - 1) // CHUNK + 1)]
        offset = start // CHUNK * CHUNK
        return b"".join(parts)[start - offset : stop - offset]

    def _begin(self) -> None:
        meta = self.folder / "meta.json"
        with self._lock:
            if self.network.refresh and str(self.folder) not in _REFRESHED:
                _REFRESHED.add(str(self.folder))
                self.network.cache.discard(self.folder)
            try:
                known = json.loads(meta.read_text(encoding="utf-8"))
                self.size, self._validator = int(known["size"]), str(known["validator"])
            except (OSError, ValueError, KeyError, TypeError):
                self._fetch(0, 1)

    def _chunk(self, index: int) -> bytes:
        if index not in self._recent:
            path = self.folder / f"{index:06d}"
            expected = min(CHUNK, self.size - index * CHUNK)
            with self._lock:
                if not path.is_file() or path.stat().st_size != expected:
                    self._ahead = min(self._ahead * 2, _READ_AHEAD) if index == self._next else 1
                    last, count = (self.size - 1) // CHUNK, 1
                    while count < self._ahead and index + count <= last:
                        if (self.folder / f"{index + count:06d}").is_file():
                            break
                        count += 1
                    self._fetch(index, count)
                    self._next = index + count
                self._recent[index] = path.read_bytes()
        self._recent.move_to_end(index)
        while len(self._recent) > 2 * _READ_AHEAD:
            self._recent.popitem(last=False)
        return self._recent[index]

    def _fetch(self, index: int, count: int) -> None:
        network = self.network
        network.require_online(self.origin, redact(self.remote.href))

        def ask() -> None:
            start = index * CHUNK
            stop = start + count * CHUNK
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
            with network._open(self.remote, headers) as response:  # noqa: SLF001 - the same module
                check_status(response)
                if response.status_code == requests.codes.partial_content:
                    first, total = _range_of(response)
                else:  # a server without ranges sends all
                    first, total = 0, int(response.headers.get("Content-Length") or -1)
                content = self._receive(response)
                total = len(content) if total < 0 else total
                whole = min(stop, total) - start if response.status_code == requests.codes.partial_content else total
                if first not in {0, start} or len(content) != whole or not content:
                    msg = f"{redact(self.remote.href)} sent {len(content)} bytes where {whole} were due"
                    raise SourceBusyError(msg)
                self._settle(total, _validator(response))
            for i in range(first // CHUNK, -(-(first + len(content)) // CHUNK)):
                piece = content[i * CHUNK - first : (i + 1) * CHUNK - first]
                network.cache.put(self.folder / f"{i:06d}", piece)

        network.call(self.origin, ask)

    def _receive(self, response: requests.Response) -> bytes:
        if self._count is None:
            return self.network.read_body(response)
        with self.network.listening(self._count):  # GDAL may read in a thread of its own
            return self.network.read_body(response)

    def _settle(self, total: int, validator: str) -> None:
        """Note the file's size and version; refuse to mix two versions."""
        if self.size >= 0 and (total, validator) != (self.size, self._validator):
            changed = f"{redact(self.remote.href)} has changed while it was read, or its length is wrong"
            if total != self.size:
                raise SourceBusyError(changed)
            self.network.cache.discard(self.folder)
            raise SourceError(changed)
        if self.size < 0:
            meta = json.dumps({"size": total, "validator": validator, "href": redact(self.remote.href)})
            self.folder.mkdir(parents=True, exist_ok=True)
            self.network.cache.put(self.folder / "meta.json", meta.encode())
            self.size, self._validator = total, validator


_REFRESHED: set[str] = set()
"""What this process has fetched anew already."""


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


def check_status(response: requests.Response) -> None:
    """Raise for an answer that is none.

    Raises
    ------
    SourceBusyError
        If asking again may help; has the wait the server asks for.
    SourceError
        If not.
    """
    status = response.status_code
    if status < 400:
        return
    said = f"{redact(response.url)} answered {status} {response.reason or ''}".rstrip()
    if status in _BUSY:
        raise SourceBusyError(said, wait=_retry_after(response))
    if status in _DENIED:
        msg = f"{said}: access was denied"
        raise SourceError(msg)
    raise SourceError(said)


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(when.timestamp() - time.time(), 0.0)


def _translate(error: requests.RequestException) -> SourceError:
    """Say in our words what requests' say with the whole URL."""
    where = redact(error.request.url) if error.request is not None and error.request.url else "it"
    if isinstance(error, requests.TooManyRedirects):
        return SourceError(f"{where} redirects in a loop")
    if isinstance(error, requests.exceptions.SSLError):
        return SourceError(f"the certificate of {where} cannot be verified")
    if isinstance(error, requests.Timeout):
        return SourceBusyError(f"{where} did not answer in time")
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return SourceBusyError(f"{where} cannot be reached, or broke off the connection")
    return SourceError(f"{where} cannot be asked ({type(error).__name__})")


def _range_of(response: requests.Response) -> tuple[int, int]:
    """Return the first byte and the total of a partial answer."""
    text = response.headers.get("Content-Range", "")
    try:
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        first = int(span.partition("-")[0])
        if unit != "bytes":
            _bad_range(response, text)
        return first, int(total)
    except ValueError:
        _bad_range(response, text)


def _bad_range(response: requests.Response, text: str) -> NoReturn:
    msg = f"{redact(response.url)} sent a part of a file and does not say which ({text!r})"
    raise SourceBusyError(msg)


def _validator(response: requests.Response) -> str:
    """Return what tells one version of a file from another: a strong ETag, or when it was changed."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


@contextmanager
def _writing(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """Open a file to write; say what is wrong with the disk."""
    try:
        with path.open(mode) as stream:
            yield stream
    except OSError as error:
        if isinstance(error, SourceError) or error.errno is None:
            raise
        msg = f"cannot write {path} ({error.strerror})"
        raise RasterWriteError(msg) from error


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


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
