"""Names of folders in a workspace: made from text, and checked whatever their origin."""

from __future__ import annotations

import re
import unicodedata

from landprior.errors import InputError


def slug(text: str) -> str:
    """Return a folder name made from a text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "area"


MOST_BYTES = 200
"""Maximum length of a name in bytes: file systems allow 255, and temporary files add some."""


def check_name(name: str) -> str:
    """Return the name of an area if it is valid for a new folder of the workspace.

    Raises
    ------
    InputError
        If it is not valid.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name.lower().endswith((".yaml", ".yml")):
        msg = f"{_shown(name)} cannot be the name of a folder; use letters, digits, '-', '_' and '.'"
        raise InputError(msg)
    return check_component(name, "an area")


def check_component(name: str, what: str = "a tile") -> str:
    """Return a folder name if it stays inside its parent folder, whatever its origin.

    Parameters
    ----------
    name
        Name, for example of a tile listed in a plan or a catalogue.
    what
        What the name is for, used in the message.

    Returns
    -------
    str
        ``name``.

    Raises
    ------
    InputError
        If it is empty, hidden, ``..`` or a path, has control characters, or is longer than :data:`MOST_BYTES`.
    """
    reason = ""
    if not name.strip():
        reason = "it is empty"
    elif "/" in name or "\\" in name:
        reason = "it is a path"
    elif name.startswith("."):
        reason = "it starts with a dot"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        reason = "it has control characters"
    elif len(name.encode()) > MOST_BYTES:
        reason = f"it is longer than {MOST_BYTES} bytes"
    if reason:
        msg = f"{_shown(name)} cannot be the name of {what}: {reason}; it must be the name of a single folder"
        raise InputError(msg)
    return name


def _shown(name: str) -> str:
    """Return a name shortened, for a message."""
    return repr(name if len(name) <= 60 else f"{name[:60]}...")
