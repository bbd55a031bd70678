"""Removing secrets from addresses shown in messages and records."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()\[\]{}]+")
_USER = re.compile(r"(?<=/)[^/?#]*@")


def redact(url: str) -> str:
    """Return an address or a path without user, password, query and fragment, so that it is safe to show."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an invalid URL"
    if parts.netloc:
        return f"{parts.scheme}://{host}{parts.path}"
    return url.partition("?")[0].partition("#")[0].rpartition("@")[2]


def hide_addresses(text: str) -> str:
    """Return a text, such as a server's message, with every URL in it redacted."""
    return _ADDRESS.sub(lambda found: redact(found[0]), text)
