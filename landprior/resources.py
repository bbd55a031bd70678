"""Locating the shipped configuration (presets, schemes, matrices).

The files are in ``configs/`` at the top of the repository; a wheel includes the same folder inside
the package. Both locations are handled here.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landprior.errors import ConfigError, MissingInputError
from landprior.inputs import check_file, read_text
from landprior.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable


def configs_dir() -> Path:
    """Return the folder with the shipped configuration.

    Raises
    ------
    MissingInputError
        If the installation lacks it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "schemes").is_dir():
            return folder
    msg = f"the shipped configuration is missing beside {package}; reinstall landprior"
    raise MissingInputError(msg)


def config_file(name: str) -> Path:
    """Return the path of a shipped file outside the subfolders, for example ``osm.ini``."""
    return configs_dir() / name


def shipped_names(kind: str, suffix: str = ".yaml") -> list[str]:
    """Return the shipped names of a kind, for example ``shipped_names("schemes")``."""
    return sorted(path.name.removesuffix(suffix) for path in (configs_dir() / kind).glob(f"*{suffix}"))


def find_config(name: str | Path, kind: str, suffixes: Iterable[str] = (".yaml",)) -> Path:
    """Find a shipped configuration by name, or a user's own by path.

    Parameters
    ----------
    name
        A shipped name (``"enviroatlas-5"``), in upper or lower case, or the path of a file.
    kind
        The folder under ``configs/``: ``"schemes"``, ``"cities"`` or ``"cooccurrence"``.
    suffixes
        Extensions of the shipped files.

    Returns
    -------
    Path
        Path of an existing file.

    Raises
    ------
    MissingInputError
        If a path is given and there is no such file.
    ConfigError
        If the name is not shipped; the message lists the shipped ones.
    """
    text = str(name)
    suffixes = tuple(suffixes)
    if any(text.endswith(suffix) for suffix in suffixes) or "/" in text or "\\" in text:
        return check_file(text, empty=True, error=ConfigError)
    for suffix in suffixes:
        for shipped in shipped_names(kind, suffix):
            if shipped.casefold() == text.strip().casefold():
                return configs_dir() / kind / f"{shipped}{suffix}"
    known = sorted({n for suffix in suffixes for n in shipped_names(kind, suffix)})
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    msg = f"{text!r} is not one of the shipped {kind} ({', '.join(known)}), nor the path of a {suffixes[0]} file{hint}"
    raise ConfigError(msg)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises
    ------
    ConfigError
        If the file is not valid YAML, is not a mapping, or is ambiguous (see
        :mod:`landprior.strict_yaml`); the message names the line.
    """
    data = parse_yaml(read_text(path, empty=True, error=ConfigError), path)
    if not isinstance(data, dict):
        msg = f"{path} must be a mapping of names to values, not {type(data).__name__}"
        raise ConfigError(msg)
    return data
