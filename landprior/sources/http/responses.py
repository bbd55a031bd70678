"""Interpreting HTTP responses: errors, waiting times, ranges and versions."""

from __future__ import annotations

import email.utils
import hashlib
import json
import re
import ssl
import time
from datetime import UTC
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
import urllib3

from landprior.addresses import redact
from landprior.errors import SourceBusyError, SourceError

if TYPE_CHECKING:
    from requests import Response

DENIED = {401, 403}
IDENTITY = {"Accept-Encoding": "identity"}
"""Header that requests a file without content encoding."""

MEGABYTE = 2**20
_WEB = ("http", "https")
_DIGITS = "[0-9]{1,18}"
"""Maximum digits of a length in a header; Python rejects numbers with thousands of digits."""
_BUSY = {408, 425, 429}
_NEVER = {501, 505}
"""Server errors that a retry will not fix."""

ANSWER_LIMIT = 32 * MEGABYTE
"""Default maximum size in bytes, decompressed, of a response held in memory."""
FILE_LIMIT = 64 * 1024 * MEGABYTE
"""Maximum size of a download in bytes."""


class TooLongError(SourceError):
    """A response is longer than expected of its kind."""

    @classmethod
    def of(cls, response: Response, limit: int) -> TooLongError:
        """Return the error for a response longer than the limit."""
        size = f"{limit / MEGABYTE:,.0f} MB"
        return cls(f"{redact(response.url)} sends more than {size}, far more than expected; it was not kept")


def fingerprint(url: str) -> str:
    """Return a hash of a whole URL, to tell apart URLs that :func:`redact` makes equal, without their secrets."""
    return hashlib.sha256(url.encode()).hexdigest()


def require_web(url: str) -> str:
    """Return a URL that begins with http:// or https://.

    Raises
    ------
    SourceError
        If it does not: a catalogue, an index or a redirect must not make us read local files or use other protocols.
    """
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError:
        scheme = ""
    if scheme not in _WEB:
        msg = f"{redact(url)} cannot be queried (it does not begin with http:// or https://)"
        raise SourceError(msg)
    return url


def parse_json(content: bytes | str, where: str) -> object:
    """Return the JSON of a response.

    Parameters
    ----------
    content
        Body of the response.
    where
        Its sender, for the message.

    Returns
    -------
    object
        The result of :func:`json.loads`.

    Raises
    ------
    SourceBusyError
        If it is not JSON; an overloaded server may send an HTML page instead.
    SourceError
        If it is nested so deeply that parsing would overflow the stack.
    """
    try:
        return json.loads(content)
    except RecursionError:
        msg = f"{where} sent JSON that is nested too deeply to be read"
        raise SourceError(msg) from None
    except ValueError as error:
        msg = f"{where} did not send JSON ({len(content)} bytes)"
        raise SourceBusyError(msg) from error


def check_status(response: Response) -> None:
    """Raise an error for an unsuccessful response.

    Raises
    ------
    SourceBusyError
        If a retry may help; includes the wait the server asks for.
    SourceError
        Otherwise.
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    summary = f"{redact(response.url)} answered {status} {response.reason or ''}".rstrip()
    if status in _BUSY or (status >= 500 and status not in _NEVER):
        raise SourceBusyError(summary, wait=retry_after(response))
    if status in DENIED:
        msg = f"{summary}: access was denied"
        raise SourceError(msg)
    raise SourceError(summary)


def retry_after(response: Response) -> float | None:
    """Return the seconds a server asks to wait, as a number or a date; None if it does not."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    return max(when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time(), 0.0)


def translate(error: Exception, url: str | None = None) -> SourceError:
    """Return an error in our own words for an exception of requests, whose message has the whole URL."""
    request = getattr(error, "request", None)
    where = redact(getattr(request, "url", None) or url or "the server")
    if isinstance(error, requests.TooManyRedirects):
        return SourceBusyError(f"{where} redirects in a loop")
    if _is_certificate_error(error):
        return SourceError(f"the certificate of {where} cannot be verified")
    if isinstance(error, requests.Timeout):
        return SourceBusyError(f"{where} did not answer in time")
    if isinstance(error, requests.exceptions.ProxyError):
        return SourceBusyError(f"{where} cannot be reached through the proxy")
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
    if isinstance(error, broken) and not isinstance(error, requests.exceptions.InvalidURL):
        return SourceBusyError(f"{where} cannot be reached, or closed the connection")
    return SourceError(f"{where} cannot be queried ({type(error).__name__})")


def _is_certificate_error(error: BaseException) -> bool:
    """Say whether a certificate was refused; requests and urllib3 wrap the TLS error as a reason or an argument."""
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError):  # its reason is an OpenSSL name, such as TLSV13_ALERT_CERTIFICATE_REQUIRED
        return isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE" in (reason or "")
    within = reason or next(iter(error.args), None)
    return isinstance(within, BaseException) and _is_certificate_error(within)


def range_of(response: Response) -> tuple[int, int]:
    """Return the first byte and the total size of a partial response.

    Raises
    ------
    SourceBusyError
        If the response does not give them.
    """
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(rf"bytes ({_DIGITS})-{_DIGITS}/({_DIGITS})", text.strip())
    if found is None:
        msg = f"{redact(response.url)} sent part of a file without saying which ({text[:40]!r})"
        raise SourceBusyError(msg)
    return int(found[1]), int(found[2])


def length_of(response: Response) -> int | None:
    """Return the declared length of a response's body; None if it is not declared."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(_DIGITS, text) else None


def validator_of(response: Response) -> str:
    """Return the identifier of a file's version: a strong ETag, or the time of its last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def version_of(response: Response) -> str:
    """Return the validator, or a weak ETag, which is enough to detect a change but not to resume."""
    return validator_of(response) or response.headers.get("ETag", "")
