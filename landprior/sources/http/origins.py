"""Sources of data and their files: names and remedies for messages, addresses and their signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from landprior.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source of data, for messages and for the cache.

    Parameters
    ----------
    name
        Name for the user, such as "NAIP".
    folder
        Name of its folder in the cache.
    remedy
        What a user can do if it fails; added to messages after "; ".
    """

    name: str
    folder: str
    remedy: str

    def error(self, problem: str, kind: type[SourceError] = SourceError) -> SourceError:
        """Return an error that names the source, the problem and the remedy."""
        return kind(f"{self.name}: {problem}; {self.remedy}", source=self.name)


class Signer(Protocol):
    """Adds temporary signatures to URLs."""

    def sign(self, href: str) -> str:
        """Return the signed URL."""

    def forget(self, href: str) -> None:
        """Forget the signature of a URL, so that the next call renews it."""


@dataclass(frozen=True)
class Remote:
    """A file of a source: its permanent address, and its signer if it needs one."""

    href: str
    signer: Signer | None = None

    @property
    def url(self) -> str:
        """The address to read, signed."""
        return self.href if self.signer is None else self.signer.sign(self.href)
