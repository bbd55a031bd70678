"""Detecting and removing environment settings of another GDAL or PROJ before they do harm.

Desktop packages (QGIS, PostGIS, an old conda environment) set ``PROJ_LIB``, ``PROJ_DATA`` or ``GDAL_DATA`` for
themselves. rasterio and pyogrio would use them and then find no coordinate reference systems. They include their own
data, so unsuitable settings are removed. This must happen before they are imported; this module imports neither.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_OWN_PROJ = (("rasterio", "proj_data"), ("pyogrio", "proj_data"), ("pyproj", "proj_dir/share/proj"))
_dropped: list[str] = []
_ON = {"ON", "YES", "TRUE", "1"}


def drop_foreign_settings(environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Remove settings that do not suit our GDAL and PROJ from the environment.

    Parameters
    ----------
    environment
        Environment to check and change; None: ``os.environ``.

    Returns
    -------
    list of str
        A sentence for each removed setting, with its name, value and the reason.
    """
    environment = os.environ if environment is None else environment
    messages = []
    for name, check in _CHECKS.items():
        value = environment.get(name)
        if value is None:
            continue
        why = check(value)
        if why:
            del environment[name]
            messages.append(f"{name}={value} is ignored: {why}")
    _dropped[:] = (
        [*(one for one in _dropped if one not in messages), *messages] if environment is os.environ else _dropped
    )
    return messages


def list_dropped() -> list[str]:
    """Return the result of :func:`drop_foreign_settings` for this process."""
    return list(_dropped)


def list_settings() -> dict[str, str]:
    """Return the settings of GDAL and PROJ checked by :func:`drop_foreign_settings` that are set."""
    return {name: os.environ[name] for name in _CHECKS if name in os.environ}


def _check_proj(value: str) -> str:
    """Return why a search path of PROJ (folders, joined as in PATH) is unsuitable; empty if it is suitable."""
    if not value.strip():
        return "it is empty"
    file = next((f for f in (Path(part) / "proj.db" for part in value.split(os.pathsep)) if _is_file(f)), None)
    if file is None:
        return "there is no proj.db; our libraries use their own data (unset it to lose this warning)"
    layout = _read_layout(file)
    if layout is None:
        return f"{file} is damaged; our libraries use their own data (unset it to lose this warning)"
    wanted = max(filter(None, map(_read_layout, _list_own_databases())), default=None)
    if wanted and (layout[0] != wanted[0] or layout[1] < wanted[1]):
        ours, theirs = (".".join(map(str, one)) for one in (wanted, layout))
        return (
            f"its proj.db belongs to another PROJ (layout {theirs}, required is {ours}); "
            "our libraries use their own data (unset it to lose this warning)"
        )
    return ""


def _check_gdal(value: str) -> str:
    """Return why a folder of GDAL's data is unsuitable; empty if it is suitable."""
    if _is_file(Path(value) / "gdalvrt.xsd"):
        return ""
    return "it is not a folder with GDAL's data; our libraries use their own (unset it to lose this warning)"


def _check_drivers(value: str) -> str:
    """Return why a folder of GDAL's plugins is unsuitable; empty if it is suitable."""
    if value.lower() == "disable" or not _has_folder("rasterio", "gdal_data"):
        return ""  # a system or conda GDAL has its plugins there
    return "plugins of another GDAL do not work with rasterio's own (unset it to lose this warning)"


def _check_network(value: str) -> str:
    if value.strip().upper() not in _ON:
        return ""
    return "grids that PROJ downloads would make a map depend on the network"


def _check_files(value: str) -> str:
    missing = [part for part in value.split(os.pathsep) if not _is_file(Path(part))]
    return f"no such file: {missing[0]}" if missing else ""


_CHECKS: dict[str, Callable[[str], str]] = {
    "PROJ_DATA": _check_proj,
    "PROJ_LIB": _check_proj,
    "PROJ_AUX_DB": _check_files,
    "PROJ_NETWORK": _check_network,
    "GDAL_DATA": _check_gdal,
    "GDAL_DRIVER_PATH": _check_drivers,
    "OGR_DRIVER_PATH": _check_drivers,
}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_layout(file: Path) -> tuple[int, int] | None:
    """Return the layout of a PROJ database; None if it is damaged or lacks EPSG:4326."""
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            keys = dict(database.execute("SELECT key, value FROM metadata WHERE key LIKE 'DATABASE.LAYOUT.VERSION.%'"))
            layout = int(keys["DATABASE.LAYOUT.VERSION.MAJOR"]), int(keys["DATABASE.LAYOUT.VERSION.MINOR"])
            if layout < (1, 2):
                return layout  # too old, whatever its content
            known = database.execute("SELECT 1 FROM crs_view WHERE auth_name = 'EPSG' AND code = '4326'").fetchone()
            return layout if known else None
    except (sqlite3.Error, KeyError, ValueError, TypeError, OSError):
        return None


def _list_own_databases() -> list[Path]:
    """Return the databases included with our libraries or this Python environment."""
    folders = [path / inside for package, inside in _OWN_PROJ for path in _list_folders(package)]
    folders += [Path(sys.prefix) / "share" / "proj", Path(sys.prefix) / "Library" / "share" / "proj"]
    return [folder / "proj.db" for folder in folders if _is_file(folder / "proj.db")]


def _has_folder(package: str, inside: str) -> bool:
    return any((folder / inside).is_dir() for folder in _list_folders(package))


def _list_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)  # without importing it
    return [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
