"""Sessions that keep passwords on their host, never redirect to plain http, and ignore ``~/.netrc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests

from landprior.addresses import redact
from landprior.errors import SourceError
from landprior.sources.http.responses import require_web

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from requests import PreparedRequest, Response

_HARMLESS = {
    "accept", "accept-encoding", "connection", "content-length", "content-type", "cookie", "if-range",
    "proxy-authorization", "range", "user-agent",
}  # fmt: skip
"""Headers kept on a redirect to another host (requests handles cookies and proxies); keys are dropped."""


class UrlAuth(requests.auth.AuthBase):
    """Use only the user and password of the URL itself.

    Otherwise requests looks up the host in ``~/.netrc``, whose passwords would then go to whatever host a
    plan, a catalogue or a redirect names, even over http.
    """

    def __call__(self, prepared: PreparedRequest) -> PreparedRequest:
        """Add the header to a request that is about to be sent."""
        user, password = requests.utils.get_auth_from_url(prepared.url or "")
        if user or password:
            prepared = requests.auth.HTTPBasicAuth(user, password)(prepared)
        return prepared


def check_redirect(response: Response, target: str) -> None:
    """Raise an error for a redirect that loses encryption or leaves the web; the response is closed unread.

    Raises
    ------
    SourceError
        If the redirect leads from https to http, or to another kind of address.
    """
    response.close()  # requests would decompress it into memory
    where = require_web(urljoin(response.url, target))
    if urlsplit(response.url).scheme == "https" and urlsplit(where).scheme != "https":
        msg = f"{redact(response.url)} redirects from https to {redact(where)}, which is not encrypted; refused"
        raise SourceError(msg)


class Session(requests.Session):
    """A session that sends another host only what it needs on a redirect."""

    def get_redirect_target(self, resp: Response) -> str | None:
        """Return the target of a redirect, if it is allowed."""
        target: str | None = super().get_redirect_target(resp)
        if target:
            check_redirect(resp, target)
        return target

    def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
        """Drop the headers that another host may not see."""
        # not requests' own, which would add passwords from ~/.netrc
        old, new = response.request.url or "", prepared_request.url or ""
        if self.should_strip_auth(old, new):  # type: ignore[no-untyped-call]
            for name in set(prepared_request.headers) - {n for n in prepared_request.headers if n.lower() in _HARMLESS}:
                del prepared_request.headers[name]


class Adapter(requests.adapters.HTTPAdapter):
    """Report every connection that is opened."""

    def __init__(self, show: Callable[[socket.socket], None]) -> None:
        self._show = show
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - urllib3's
        """Return the pool of a host, whose connections are reported."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        base, show = pool.ConnectionCls, self._show
        if not hasattr(base, "shown"):

            def connect(connection: Any) -> None:  # noqa: ANN401
                base.connect(connection)
                show(connection.sock)

            pool.ConnectionCls = type(base.__name__, (base,), {"connect": connect, "shown": True})
        return pool
