"""The network client: retries, timeouts, resumed downloads, checks and offline mode.

Every failure becomes a :class:`~landprior.errors.SourceError` that names the source and the remedy.
Query strings (signatures, keys) and user names in URLs never appear in a message, a log or a file name.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import requests
import urllib3

import landprior
from landprior.addresses import redact
from landprior.errors import (
    FetchInterruptedError,
    OfflineError,
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.cache import read_kept
from landprior.sources.http.responses import (
    ANSWER_LIMIT,
    DENIED,
    FILE_LIMIT,
    TooLongError,
    check_status,
    length_of,
    require_web,
    translate,
)
from landprior.sources.http.sessions import Adapter, Session, UrlAuth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from requests import Response

    from landprior.sources.http.cache import Cache
    from landprior.sources.http.origins import Origin, Remote

logger = logging.getLogger(__name__)

T = TypeVar("T")

USER_AGENT = f"landprior/{landprior.__version__}"
DAY = 86_400.0
_PIECE = 64 * 1024
_PROGRESS = 1024 * 1024
"""Bytes received since the last failure after which a request's attempts are reset."""
_REDIRECTS = 10


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Settings of retries and timeouts.

    Parameters
    ----------
    attempts
        Maximum number of attempts.
    first_wait, longest_wait
        Waiting times in seconds; the wait doubles from the first to the longest, times a random factor of 0.5 to 1. If
        a source asks for a longer wait (Retry-After) than the longest, the request fails at once.
    connect_timeout, read_timeout
        Timeouts in seconds for connecting, and between two pieces of a response.
    least_speed, grace
        Minimum speed in bytes per second; a slower response is aborted once it has lasted ``grace`` seconds.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    least_speed: float = 1024.0
    grace: float = 30.0

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt, counted from 1."""
        longest = min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _hide_queries(record: logging.LogRecord) -> bool:
    """Remove queries, which may contain signatures, from urllib3's log messages."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_hide_queries)


class Network:
    """A network client with retries, timeouts and a cache.

    Parameters
    ----------
    cache
        Cache for valid responses.
    offline
        Never use the network; anything not cached raises :class:`OfflineError`.
    refresh
        Ignore the cache (but resume downloads that were started).
    policy
        Settings of retries and timeouts.
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
        self._fetched: set[str] = set()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._guard = threading.Lock()

    # -- retries -------------------------------------------------------------------

    def call(self, origin: Origin, action: Callable[[], T], *, gained: Callable[[], int] | None = None) -> T:
        """Run an action until it succeeds, fails permanently, or runs out of attempts.

        Parameters
        ----------
        origin
            Source of the data.
        action
            Function to run; raises :class:`SourceBusyError`, or an exception of requests, if a retry may help.
        gained
            Function that returns the number of bytes received and kept; while it grows, attempts are not used up.

        Returns
        -------
        object
            The result of the action.

        Raises
        ------
        SourceError
            If the action fails; names the source, the problem and the remedy.
        FetchInterruptedError
            After :meth:`stop`.
        """
        attempt, before = 0, 0 if gained is None else gained()
        while True:
            attempt += 1
            self.require_running()
            try:
                return action()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                failure = translate(error)
            except SourceError as error:
                failure = error
            self.require_running()  # it may have failed because of stop()
            if failure.source == origin.name:
                raise failure  # from a nested request; it already names the source and the remedy
            if not isinstance(failure, SourceBusyError):
                raise origin.error(str(failure), type(failure)) from None
            if gained is not None and gained() - before >= _PROGRESS:
                attempt, before = 1, gained()
            asked = failure.wait or 0.0
            if attempt >= self.policy.attempts or asked > self.policy.longest_wait:
                tried = "tried once" if attempt == 1 else f"tried {attempt} times"
                later = f"the server asks to wait {asked:.0f} s" if asked > self.policy.longest_wait else tried
                msg = f"{origin.name}: {failure} ({later}); run the same command again later, or {origin.remedy}"
                raise SourceBusyError(msg, source=origin.name) from None
            # the requested wait is a minimum; clients told the same should not all return at once
            wait = self.policy.wait(attempt) if failure.wait is None else asked + self.policy.wait(1)
            logger.info(
                "%s: %s; trying again in %.1f s (%d of %d)",
                origin.name, failure, wait, attempt, self.policy.attempts - 1,
            )  # fmt: skip
            self.pause(wait)

    def stop(self) -> None:
        """Abort every request and wait in progress with :class:`FetchInterruptedError`."""
        self._stopped.set()
        with self._guard:
            for connection in list(self._sockets):
                with suppress(OSError):  # already closed
                    connection.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Wait, unless stopped."""
        self._stopped.wait(seconds)
        self.require_running()

    def require_online(self, origin: Origin, what: str) -> None:
        """Raise an error in offline mode, for data that would need the network.

        Raises
        ------
        OfflineError
            In offline mode; names the data that is not cached.
        """
        if self.offline:
            msg = f"{origin.name}: {what} is not in the cache, and --offline was given; run once without it"
            raise OfflineError(msg, source=origin.name)

    def require_running(self) -> None:
        """Raise an error after :meth:`stop`.

        Raises
        ------
        FetchInterruptedError
            If :meth:`stop` was called.
        """
        if self._stopped.is_set():
            msg = "stopped; finished downloads were kept, and the same command resumes from there"
            raise FetchInterruptedError(msg)

    @contextmanager
    def listening(self, count: Callable[[int], None]) -> Iterator[None]:
        """Call ``count`` with the bytes that this thread receives."""
        before = getattr(self._local, "count", None)
        self._local.count = count
        try:
            yield
        finally:
            self._local.count = before

    @property
    def listener(self) -> Callable[[int], None] | None:
        """The function that counts this thread's bytes."""
        found: Callable[[int], None] | None = getattr(self._local, "count", None)
        return found

    # -- small responses -----------------------------------------------------------------------------

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
        limit: int = ANSWER_LIMIT,
    ) -> bytes:
        """Return a response, from the cache if that is allowed.

        Parameters
        ----------
        url, params, headers, body
            The request: GET, or POST of ``body`` as JSON.
        origin
            Source of the data.
        keep
            Seconds for which a cached response is valid; 0: not cached. If the request fails and an older response
            exists, that is used, with a warning in the log.
        suffix
            Suffix of the cached file.
        check
            Function that raises :class:`SourceError` for an invalid response, which is not cached.
        limit
            Maximum size in bytes, decompressed.

        Returns
        -------
        bytes
            The body, decompressed.

        Raises
        ------
        SourceError
            If there is no valid response, or it is longer than the limit.
        OfflineError
            In offline mode, if the response is not cached.
        """

        def ask() -> bytes:
            method = "GET" if body is None else "POST"
            with self._request(method, url, params=params, json=body, headers=dict(headers or {})) as response:
                check_status(response)
                content = self.read_body(response, limit=limit)
            if check is not None:
                check(content)
            return content

        if not keep:
            self.require_online(origin, redact(url))
            return self.call(origin, ask)
        key = json.dumps([url, sorted((params or {}).items()), body], sort_keys=True)
        path = self.cache.path(origin.folder, key, suffix)
        with self.lock(str(path)):  # threads with the same request wait for one response
            kept = read_kept(path, check)
            if kept is not None and not self.must_refetch(path) and (time.time() - kept[1] < keep or self.offline):
                return kept[0]
            self.require_online(origin, redact(url))
            try:
                content = self.call(origin, ask)
            except SourceError as error:
                if kept is None:
                    raise
                day = datetime.fromtimestamp(kept[1], UTC).strftime("%Y-%m-%d")
                logger.warning("%s; using the response of %s", error, day)
                return kept[0]
            self.cache.put(path, content)
            self.mark_fetched(path)
        return content

    def read_body(
        self,
        response: Response,
        sink: Callable[[bytes], object] | None = None,
        *,
        decode: bool = True,
        limit: int | None = None,
    ) -> bytes:
        """Read the body of a response in pieces, with timeouts, and check its length.

        Parameters
        ----------
        response
            Response opened with ``stream=True``.
        sink
            Function called with each piece; without it, the body is returned.
        decode
            Undo the content encoding. Not for files, which are stored as they are on the server.
        limit
            Maximum size in bytes. None: 32 MB if the body is returned, otherwise 64 GB.

        Returns
        -------
        bytes
            The body; empty if it went to ``sink``.

        Raises
        ------
        SourceBusyError
            If the response is cut short or too slow.
        SourceError
            If it exceeds the limit. At most the limit plus one chunk is held in memory.
        """
        pieces: list[bytes] = []
        take, count = sink or pieces.append, self.listener
        if limit is None:
            limit = ANSWER_LIMIT if sink is None else FILE_LIMIT
        declared = length_of(response)
        if declared is not None and declared > limit:
            raise TooLongError.of(response, limit)
        total, began = 0, time.monotonic()
        try:
            while piece := response.raw.read1(_PIECE, decode_content=decode):
                self.require_running()
                total += len(piece)
                if total > limit:
                    raise TooLongError.of(response, limit)
                take(piece)
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
        if declared is not None and not packed and declared != total:
            msg = f"{redact(response.url)} broke off after {total} of {declared} bytes"
            raise SourceBusyError(msg)
        return b"".join(pieces)

    def _request(self, method: str, url: str, **options: Any) -> Response:  # noqa: ANN401 - those of requests
        """Send a request; the body is not read yet."""
        require_web(url)
        timeout = (self.policy.connect_timeout, self.policy.read_timeout)
        try:
            return self.session.request(method, url, stream=True, timeout=timeout, **options)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise translate(error, url) from None  # their messages contain the whole URL

    @property
    def session(self) -> requests.Session:
        """The session of this thread; :meth:`stop` aborts its requests."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session()
            session.headers["User-Agent"] = USER_AGENT
            session.max_redirects = _REDIRECTS
            session.auth = UrlAuth()
            for scheme in ("http://", "https://"):
                session.mount(scheme, Adapter(self._watch))
        return session

    def _watch(self, connection: socket.socket) -> None:
        """Remember an open connection, so that :meth:`stop` can abort it."""
        with self._guard:
            self._sockets.add(connection)
        self.require_running()

    def must_refetch(self, path: Path) -> bool:
        """Return whether a cached file must be fetched again and has not been in this run."""
        return self.refresh and str(path) not in self._fetched

    def open(self, remote: Remote, headers: Mapping[str, str]) -> Response:
        """Request a file; if the signature has expired, renew it once."""
        for renewed in (False, True):
            url = remote.url
            response = self._request("GET", url, headers=dict(headers))
            if response.status_code not in DENIED or remote.signer is None or renewed:
                return response
            response.close()
            logger.debug("%s: the signature has expired; renewing it", redact(remote.href))
            with self.lock("signatures"):
                if remote.url == url:  # otherwise another thread has renewed it meanwhile
                    remote.signer.forget(remote.href)
        raise AssertionError  # pragma: no cover - the loop returns

    def mark_fetched(self, path: Path) -> None:
        """Record that a file was fetched again in this run, so that it is not fetched twice."""
        self._fetched.add(str(path))

    def lock(self, name: str) -> threading.Lock:
        """Return this process's lock of a name."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())
