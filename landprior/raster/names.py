"""Names of rasters: parsing a band in a name, and quoting for a command line."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

from landprior.errors import InputError

_BAND = re.compile(r"(?P<path>.+)\|band=(?P<band>\d{1,6})")
_PLAIN = re.compile(r"[\w@%+=:,./\\-]+")


def split_band(path: str | Path) -> tuple[str, int | None]:
    """Split ``stack.tif|band=2`` into the file and the band; the band is None if not given.

    Returns
    -------
    path : str
    band : int or None
        From 1.
    """
    text = str(path)
    match = _BAND.fullmatch(text)
    if match is None:
        return text, None
    with contextlib.suppress(OSError, ValueError):  # for example a name that is too long; reported where it is opened
        if Path(text).exists():
            return text, None
    return match["path"], int(match["band"])


def with_band(path: str | Path, band: int | None) -> Path:
    """Add a band to the name of a raster, as :func:`split_band` reads it.

    Raises
    ------
    InputError
        If the path already names another band.
    """
    text, own = split_band(path)
    if band is None or band == own:
        return Path(path)
    if own is not None:
        msg = f"{path} names band {own}, but band {band} was requested; give only one of them"
        raise InputError(msg)
    return Path(f"{text}|band={band}")


def quote(path: str | Path) -> str:
    """Return a path as one word of a command line, in double quotes if possible, which work in all shells."""
    text = str(path)
    if _PLAIN.fullmatch(text):
        return text
    return shlex.quote(text) if re.search(r'["$`!]', text) else f'"{text}"'
