"""An HTTP server that serves files and recorded responses, and fails on demand."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from email.message import Message
    from pathlib import Path
    from types import TracebackType

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

KINDS = ("reset", "truncate", "wrong-length", "empty", "redirect-loop", "drip", "garbage", "ignore-range")
LOOP = "/.loop"


@dataclass
class Fault:
    """A failure of requests whose path and query contain ``path`` and whose method is ``method`` (or any).

    - ``reset``: the connection is reset (TCP RST) instead of a response.
    - ``403``, ``503`` or any status from 300: this status and a line of text, with ``retry_after`` as Retry-After.
    - ``truncate``: the full length is announced, but only half is sent.
    - ``wrong-length``: for a range, a Content-Range with another total; otherwise the first half as if it were all.
    - ``empty``: 200 and no body.
    - ``redirect-loop``: a redirect to an address that redirects to itself for ever.
    - ``drip``: the full length is announced, and one byte is sent every ``seconds``.
    - ``garbage``: the right length, but every byte is wrong.
    - ``ignore-range``: 200 and the whole file.

    It happens ``times`` times, or for ever if None.
    """

    kind: str
    path: str = ""
    method: str = ""
    times: int | None = 1
    retry_after: int | str | None = None
    seconds: float = 0.2

    def __post_init__(self) -> None:
        if not (self.kind in KINDS or re.fullmatch("[345][0-9]{2}", self.kind)):
            msg = f"no such fault: {self.kind!r}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Received:
    """A received request: ``path`` without the query, and the kind of its fault or ''."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)
    fault: str

    @property
    def form(self) -> dict[str, str]:
        """Return the fields of a posted form."""
        return dict(parse_qsl(self.body.decode()))


class FaultyServer(ThreadingHTTPServer):
    """The server, a context manager.

    Parameters
    ----------
    folder
        Its files, with ranges and ETags.
    routes
        Path -> function of the request that returns status, headers and body; can be changed later.

    Attributes
    ----------
    url
        Without a slash at the end.
    faults
        :class:`Fault` or only its kind, in the order of the requests; faults that have happened are removed.
    requests
        The received requests.
    """

    daemon_threads = False  # closing waits for them

    def __init__(self, folder: Path | None, routes: Mapping[str, Callable[[Received], Answer]] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder and folder.resolve()
        self.routes = dict(routes or {})
        self.faults: list[Fault | str] = []
        self.requests: list[Received] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException | None] = []
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def fail(self, kind: str, **options: Any) -> None:
        """Append a fault with the options of :class:`Fault`."""
        self.faults.append(Fault(kind, **options))

    def take_fault(self, method: str, target: str) -> Fault | None:
        """Return the first fault that matches this request, if any, and count it down."""
        with self._lock:
            for position, entry in enumerate(self.faults):
                fault = Fault(entry) if isinstance(entry, str) else entry
                if fault.path in target and fault.method in ("", method):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times < 1:
                            del self.faults[position]
                    return fault
        return None

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # clients are expected to give up
            self._errors.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.server_close()
        if self._errors and error is None:
            msg = "the faulty server or one of its routes failed unasked"
            raise RuntimeError(msg) from self._errors[0]


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        fault = None if parts.path == LOOP else self.server.take_fault(self.command, self.path)
        kind = fault.kind if fault else ""
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Received(self.command, unquote(parts.path), query, self.headers, body, kind)
        self.server.requests.append(request)
        if kind == "reset":
            self._reset()
        elif kind == "redirect-loop" or parts.path == LOOP:
            self._send(302, {"Location": LOOP}, b"")
        elif fault and kind.isdigit():
            after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._send(int(kind), {"Content-Type": "text/plain", **after}, f"fault {kind}\n".encode())
        else:
            route = self.server.routes.get(request.path)
            self._spoil(*(route(request) if route else self._file(request)), fault)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _file(self, request: Received) -> Answer:
        """Return a file, or the requested range of it."""
        root = self.server.folder
        path = root and (root / request.path.lstrip("/")).resolve()
        if not (root and path and path.is_relative_to(root) and path.is_file()):
            return 404, {"Content-Type": "text/plain"}, b"no such file\n"
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        changed = request.headers.get("If-Range", etag) != etag
        if not wanted or wanted[0] == "bytes=-" or changed or request.fault == "ignore-range":
            return 200, headers, data
        first, last = wanted.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= stop:
            return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    def _spoil(self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None) -> None:
        """Send a response with its fault, if any."""
        kind = fault.kind if fault else ""
        span, _, total = headers.get("Content-Range", "").partition("/")
        if kind == "empty":
            status, data = 200, b""
            headers.pop("Content-Range", None)
        elif kind == "garbage":
            data = bytes(255 - value for value in data)
        elif kind == "wrong-length" and status == 206:
            headers["Content-Range"] = f"{span}/{int(total) + 1}"
        elif kind == "wrong-length":
            data = data[: len(data) // 2]
        if kind not in ("truncate", "drip"):
            self._send(status, headers, data)
            return
        self.close_connection = True
        self._send(status, headers, data, sent=len(data) // 2 if kind == "truncate" else 0)
        if fault and kind == "drip" and self.command != "HEAD":
            for position in range(len(data)):
                self.wfile.write(data[position : position + 1])
                if self.server.stopping.wait(fault.seconds):
                    return

    def _send(self, status: int, headers: Mapping[str, str], data: bytes, *, sent: int | None = None) -> None:
        """Send a response that announces all of the data, but only the given number of bytes."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())  # immediately, although rfile and wfile still hold it

    def log_message(self, *_: object) -> None:
        """Log nothing."""
