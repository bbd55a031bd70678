"""Running osmnx through our own client, which checks every response and limits its size."""

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
"""osmnx is configured for the whole process, and Overpass wants one request at a time."""


@contextmanager
def configured_osmnx(
    network: Network, check: Callable[[bytes, str], None], limit: int, **settings: object
) -> Iterator[None]:
    """Configure osmnx for one request.

    Parameters
    ----------
    network
        Client that reads the responses, with its timeouts.
    check
        Function that raises if the response of an address is invalid.
    limit
        Maximum size of a response in bytes, decompressed.
    **settings
        Settings of osmnx.

    Yields
    ------
    None
        osmnx is configured within the block; other threads wait.

    Raises
    ------
    SourceError
        For an invalid response, instead of osmnx's own error.
    """
    import osmnx

    def receive(response: Response, **_: object) -> None:
        url = response.request.url or ""
        if response.is_redirect:  # requests follows it
            check_redirect(response, response.headers["location"])
            return
        busy = url.rstrip("/").endswith("/status")  # the load of Overpass; any response is accepted
        try:
            if not busy:
                check_status(response)
            body = network.read_body(response, limit=_STATUS_LIMIT if busy else limit)
        except BaseException:
            response.close()  # requests would leave it to the garbage collector
            raise
        response._content = body  # noqa: SLF001 - it was read here, with time limits; requests would read again
        response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
        if not busy:
            check(body, url)

    changes: dict[str, Any] = {
        "use_cache": False,  # our cache is atomic
        "log_console": False,
        "http_user_agent": USER_AGENT,
        "requests_timeout": round(network.policy.read_timeout * 3),  # also part of the query, in whole seconds
        "requests_kwargs": {"hooks": {"response": receive}, "stream": True, "auth": UrlAuth()},
        "doh_url_template": None,
        **settings,
    }
    with _OSMNX:
        before = {name: getattr(osmnx.settings, name) for name in changes}
        resolver = socket.getaddrinfo  # osmnx pins the server's address for the whole process
        netrc = os.environ.get("NETRC")
        os.environ["NETRC"] = os.devnull  # requests would look for passwords there on a redirect
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
