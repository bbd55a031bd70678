"""Signing NAIP addresses with an endpoint like Planetary Computer's."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from landprior.addresses import redact
from landprior.sources.http.responses import parse_json
from landprior.sources.naip.images import NAIP

if TYPE_CHECKING:
    from landprior.sources.http.client import Network

logger = logging.getLogger(__name__)

SIGN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/sign"
KEY_VARIABLE = "PC_SDK_SUBSCRIPTION_KEY"
"""Environment variable with the user's Planetary Computer key; optional, raises the rate limits."""


class TokenSigner:
    """Sign URLs on demand with an endpoint like Planetary Computer's ``sas/v1/sign?href=``.

    A signature is valid for a whole container, so one is requested per container, kept until shortly before it expires,
    and dropped when a read is denied. Signatures are kept in memory only.
    """

    def __init__(self, network: Network, url: str) -> None:
        self._network = network
        self._url = url
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def sign(self, href: str) -> str:
        """Return the URL with a valid signature."""
        with self._lock:
            container = _container(href)
            query, until = self._tokens.get(container, ("", 0.0))
            if time.time() > until - 60:
                query, until = self._ask(href)
                self._tokens[container] = (query, until)
        return f"{href}{'&' if urlsplit(href).query else '?'}{query}" if query else href

    def forget(self, href: str) -> None:
        """Drop the signature of the container of this URL."""
        with self._lock:
            self._tokens.pop(_container(href), None)

    def _ask(self, href: str) -> tuple[str, float]:
        answer = self._network.get(
            self._url, NAIP, params={"href": href}, headers=key_headers(self._url), check=_check_json
        )
        try:
            signed = json.loads(answer)
            query = urlsplit(str(signed["href"])).query.removeprefix(urlsplit(href).query).lstrip("&")
            text = str(signed.get("msft:expiry") or "")
            until = datetime.fromisoformat(text) if text else None
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{redact(self._url)} returned no signature"
            raise NAIP.error(problem) from error
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        return query, time.time() + 1800 if until is None else until.timestamp()


def key_headers(url: str) -> dict[str, str]:
    """Return the header with the user's key for Planetary Computer; none for any other address.

    A catalogue, a plan or an option may name any signer, so the key is sent only to its issuer. Its scheme,
    host and port are compared as text, because two parsers may disagree about the host of a crafted address.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return {}
    own, asked = SIGN_URL.split("/")[:3], url.split("/")[:3]
    if asked != own:
        logger.info("NAIP: the key of %s is only for %s and is not sent to %s", KEY_VARIABLE, own[2], redact(url))
        return {}
    return {"Ocp-Apim-Subscription-Key": key}


def _container(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return (parts.netloc, parts.path.lstrip("/").partition("/")[0])


def _check_json(content: bytes) -> None:
    parse_json(content, "the catalogue")
