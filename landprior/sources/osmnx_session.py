"""osmnx, asked through our own network: every answer passes our checks first, and is no longer than a limit."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from landprior.sources.http.client import USER_AGENT, Network
from landprior.sources.http.responses import MEGABYTE, check_status
from landprior.sources.http.sessions import UrlAuth, check_redirect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requests import Response

_STATUS_LIMIT = MEGABYTE

_OSMNX = threading.Lock()
"""osmnx is configured for the whole process, and Overpass wants one question at a time."""


@contextmanager
def configured_osmnx(
    network: Network, check: Callable[[bytes, str], None], limit: int, **settings: object
) -> Iterator[None]:
    """Configure osmnx for one question.

    Parameters
    ----------
    network
        Reads the answers, with its time limits.
    check
        Raises unless an answer, from an address, is good.
    limit
        Bytes of an answer, unpacked, after which it is given up.
    **settings
        Of osmnx.

    Yields
    ------
    None
        While osmnx is configured; others wait.

    Raises
    ------
    SourceError
        In place of what osmnx would make of a bad answer.
    """
    import osmnx

    def receive(response: Response, **_: object) -> None:
        url = response.request.url or ""
        if response.is_redirect:  # requests follows it
            check_redirect(response, response.headers["location"])
            return
        busy = url.rstrip("/").endswith("/status")  # says how busy Overpass is, and any answer will do
        try:
            if not busy:
                check_status(response)
            body = network.read_body(response, limit=_STATUS_LIMIT if busy else limit)
        except BaseException:
            response.close()  # requests would leave that to the garbage collector
            raise
        response._content = body  # noqa: SLF001 - it was read here, with time limits; requests would read again
        response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
        if not busy:
            check(body, url)

    changes: dict[str, Any] = {
        "use_cache": False,  # ours is written whole or not at all
        "log_console": False,
        "http_user_agent": USER_AGENT,
        "requests_timeout": round(network.policy.read_timeout * 3),  # goes into the question too, as whole seconds
        "requests_kwargs": {"hooks": {"response": receive}, "stream": True, "auth": UrlAuth()},
        "doh_url_template": None,
        **settings,
    }
    with _OSMNX:
        before = {name: getattr(osmnx.settings, name) for name in changes}
        resolver = socket.getaddrinfo  # osmnx pins the server's address for the whole process
        netrc = os.environ.get("NETRC")
        os.environ["NETRC"] = os.devnull  # where requests would look for passwords when a server redirects
        try:
            for name, value in changes.items():
                setattr(osmnx.settings, name, value)
            yield
        finally:
            socket.getaddrinfo = resolver
            if netrc is None:
                os.environ.pop("NETRC", None)
            else:
                os.environ["NETRC"] = netrc
            for name, value in before.items():
                setattr(osmnx.settings, name, value)
