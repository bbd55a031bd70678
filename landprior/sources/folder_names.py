"""Names of folders in a workspace: made from texts, and checked wherever they come from."""

from __future__ import annotations

import re
import unicodedata

from landprior.errors import InputError


def slug(text: str) -> str:
    """Return a text as the name of a folder."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "area"


MOST_BYTES = 200
"""Of a name: file systems take 255, and temporary files add some."""


def check_name(name: str) -> str:
    """Return the name of an area if it can be a new folder of the workspace.

    Raises
    ------
    InputError
        If not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name.lower().endswith((".yaml", ".yml")):
        msg = f"{_shown(name)} cannot be the name of a folder; use letters, digits, '-', '_' and '.'"
        raise InputError(msg)
    return check_component(name, "an area")


def check_component(name: str, what: str = "a tile") -> str:
    """Return the name of a folder, wherever it comes from, if it stays in the folder it is put into.

    Parameters
    ----------
    name
        Such as of a tile that a plan or a catalogue lists.
    what
        What has the name, for the message.

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
        msg = f"{_shown(name)} cannot be the name of {what}: {reason}; a name is that of one folder"
        raise InputError(msg)
    return name


def _shown(name: str) -> str:
    """Return a name as it is shown in a message, shortened."""
    return repr(name if len(name) <= 60 else f"{name[:60]}...")
