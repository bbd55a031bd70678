"""Whom data comes from, and the files there: names and remedies for messages, addresses and how they are signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from landprior.errors import SourceError


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

    def error(self, problem: str, kind: type[SourceError] = SourceError) -> SourceError:
        """Return an error that names the source, the problem and the remedy."""
        return kind(f"{self.name}: {problem}; {self.remedy}", source=self.name)


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
