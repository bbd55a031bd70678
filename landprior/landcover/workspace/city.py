"""Resolving a city argument: a shipped preset, the user's own preset file, or a folder of a workspace.

Every command and library call resolves its argument here once, so that all use the same folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import InputError
from landprior.sources.cities import list_cities, load_city
from landprior.sources.folder_names import check_component

if TYPE_CHECKING:
    from landprior.sources.cities import CityPreset


@dataclass(frozen=True, kw_only=True)
class CityRef:
    """A city of a workspace.

    Parameters
    ----------
    name
        Name of its folder.
    preset
        The preset, if it is one.
    """

    name: str
    preset: CityPreset | None = None


def find_city(city: str | Path | CityRef, root: Path | None = None) -> CityRef:
    """Resolve a city argument.

    Parameters
    ----------
    city
        Name of a preset or of a folder in the workspace (case does not matter), or path of a preset file (``.yaml``),
        whose ``name`` is the folder.
    root
        The workspace; None if there is none.

    Returns
    -------
    CityRef
        A folder with exactly this name comes before a preset, and a preset before a folder with another case. If
        nothing matches, the name is returned as it is, without a preset.

    Raises
    ------
    MissingInputError, ConfigError
        If a preset file is missing or invalid.
    InputError
        If it is not a valid folder name, or matches several folders.
    """
    if isinstance(city, CityRef):
        return city
    text = str(city)
    separated = "/" in text or "\\" in text
    if text.lower().endswith((".yaml", ".yml")) or (separated and Path(text).is_file()):
        preset = load_city(text if separated or text.endswith((".yaml", ".yml")) else f"./{text}")
        return CityRef(name=preset.name, preset=preset)
    folders = folders_of(root)
    if separated and Path(text).is_dir():
        path = Path(text)
        msg = f"{text!r} is a folder; give its name and its workspace: --city {path.name} --data {path.parent}"
        raise InputError(msg)
    name = check_component(text, "a city")
    cities = list_cities()
    if name in folders or name in cities:
        return CityRef(name=name, preset=load_city(name) if name in cities else None)
    shipped = next((known for known in cities if known.casefold() == name.casefold()), None)
    if shipped is not None:
        return CityRef(name=shipped, preset=load_city(shipped))
    alike = [folder for folder in folders if folder.casefold() == name.casefold()]
    if len(alike) > 1:
        msg = f"{text!r} could be {' or '.join(alike)} in the workspace {root}; use the exact name of the folder"
        raise InputError(msg)
    return CityRef(name=alike[0] if alike else name)


def folders_of(root: Path | None) -> list[str]:
    """Return the names of the cities of a workspace, sorted."""
    if root is None or not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
