"""What HTTP answers say: whether they are good, how long to wait, which part of which version they hold."""

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
"""Header that asks for a file as it is."""

MEGABYTE = 2**20
_WEB = ("http", "https")
_DIGITS = "[0-9]{1,18}"
"""Of a length in a header; Python refuses to read numbers of thousands of digits."""
_BUSY = {408, 425, 429}
_NEVER = {501, 505}
"""Server errors that the next attempt will meet too."""

ANSWER_LIMIT = 32 * MEGABYTE
"""Bytes, unpacked, after which an answer that is kept in memory is given up, unless its kind may be longer."""
FILE_LIMIT = 64 * 1024 * MEGABYTE
"""Bytes after which a download is given up."""


class TooLongError(SourceError):
    """An answer is longer than anything of its kind."""

    @classmethod
    def of(cls, response: Response, limit: int) -> TooLongError:
        """Return the error for an answer of more bytes than the limit."""
        size = f"{limit / MEGABYTE:,.0f} MB"
        return cls(f"{redact(response.url)} sends more than {size}, far more than expected; nothing of it was kept")


def fingerprint(url: str) -> str:
    """Return a hash of a whole URL, which tells apart what :func:`redact` makes alike, and shows no secret."""
    return hashlib.sha256(url.encode()).hexdigest()


def require_web(url: str) -> str:
    """Return a URL that begins with http:// or https://.

    Raises
    ------
    SourceError
        If it does not: a catalogue, an index or a redirect must not make us read files or ask other services.
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
    """Return an answer's JSON.

    Parameters
    ----------
    content
        The answer.
    where
        Who sent it, for the message.

    Returns
    -------
    object
        As of :func:`json.loads`.

    Raises
    ------
    SourceBusyError
        If it is no JSON; a server in trouble may send a page instead.
    SourceError
        If it is nested so deeply that reading it would take all of Python's stack.
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
    summary = f"{redact(response.url)} answered {status} {response.reason or ''}".rstrip()
    if status in _BUSY or (status >= 500 and status not in _NEVER):
        raise SourceBusyError(summary, wait=retry_after(response))
    if status in DENIED:
        msg = f"{summary}: access was denied"
        raise SourceError(msg)
    raise SourceError(summary)


def retry_after(response: Response) -> float | None:
    """Return the seconds a server asks to wait, by number or by date; None if it does not."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    return max(when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time(), 0.0)


def translate(error: Exception, url: str | None = None) -> SourceError:
    """Say in our words what requests' say with the whole URL."""
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
        return SourceBusyError(f"{where} cannot be reached, or broke off the connection")
    return SourceError(f"{where} cannot be queried ({type(error).__name__})")


def _is_certificate_error(error: BaseException) -> bool:
    """Say whether a certificate was refused; requests and urllib3 carry the error of TLS as a reason or an argument."""
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError):  # its reason is a name of OpenSSL's, such as TLSV13_ALERT_CERTIFICATE_REQUIRED
        return isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE" in (reason or "")
    within = reason or next(iter(error.args), None)
    return isinstance(within, BaseException) and _is_certificate_error(within)


def range_of(response: Response) -> tuple[int, int]:
    """Return the first byte and the total of a partial answer.

    Raises
    ------
    SourceBusyError
        If the answer does not say.
    """
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(rf"bytes ({_DIGITS})-{_DIGITS}/({_DIGITS})", text.strip())
    if found is None:
        msg = f"{redact(response.url)} sent a part of a file and does not say which ({text[:40]!r})"
        raise SourceBusyError(msg)
    return int(found[1]), int(found[2])


def length_of(response: Response) -> int | None:
    """Return the declared length of an answer's body, None if it is not said."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(_DIGITS, text) else None


def validator_of(response: Response) -> str:
    """Return what tells one version of a file from another: a strong ETag, or when it was changed."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def version_of(response: Response) -> str:
    """Return the validator, or a weak ETag: good enough to see a change, not to go on with a part."""
    return validator_of(response) or response.headers.get("ETag", "")
