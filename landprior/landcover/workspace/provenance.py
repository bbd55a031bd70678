"""Provenance of results: their inputs and the command that made them, and so whether a rerun may replace them.

A result made by the same recipe is remade if its inputs or settings have changed. A result made by anything else, such
as another command with other settings, another model, or by hand, is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from landprior.errors import OutputExistsError
from landprior.inputs import checksum
from landprior.raster.outputs import announcing
from landprior.records import changing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

State = Literal["missing", "current", "stale", "foreign"]

_SHORT = 40
"""Maximum length of a setting that is recorded in full; longer ones are recorded as a hash."""

_NAMED = 3
"""Maximum number of changed settings named in a message."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Everything a result is made from.

    Parameters
    ----------
    command
        Command that makes it, such as ``"run"`` or ``"train"``.
    recipe
        Recipe, such as ``"train --recipe best"``: results of one recipe are not replaced by another.
    settings
        Settings the result depends on; plain JSON.
    inputs
        Files it depends on, by their names in messages.
    values
        Other values it depends on, such as the grid of a file.
    replaces
        Other recipes whose results it may replace, because it goes on from where they ended.
    """

    command: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A hash of settings and inputs."""
        return make_key({**self.settings, **self.values}, self.inputs)

    def hash_inputs(self) -> dict[str, str]:
        """Return hashes of the inputs."""
        files = {name: checksum(path) for name, path in self.inputs.items()}
        values = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in self.values.items()}
        return dict(sorted((files | values).items()))

    def flatten_settings(self) -> dict[str, Any]:
        """Return the settings as a flat dictionary, with long values as hashes, to find changes later."""
        return _flatten(self.settings)

    def record(self) -> dict[str, Any]:
        """Return the record to be stored with the result."""
        return {
            "key": self.key,
            "command": self.command,
            "recipe": self.recipe,
            "settings": self.flatten_settings(),
            "inputs": self.hash_inputs(),
        }


@dataclass(frozen=True)
class Judgement:
    """Whether a result is up to date, and why."""

    state: State
    why: str = ""


def judge(
    path: Path, basis: Basis, known: Mapping[str, Any] | None, begun: Mapping[str, Any] | None = None
) -> Judgement:
    """Return whether a result is up to date, and why.

    Parameters
    ----------
    path
        Path of the result.
    basis
        Everything it would be made from now.
    known
        Record of the result (:meth:`Basis.record`, and ``sha256``); None if there is none.
    begun
        The same for a result that was being written when its process ended.

    Returns
    -------
    Judgement
        The state and the reason.
    """
    foreign = explain_foreign(path, basis, known, begun)
    if foreign is not None or not os.path.lexists(path):
        return Judgement("missing") if foreign is None else Judgement("foreign", foreign)
    own = checksum(path)
    if known is None or known.get("sha256") != own:
        return Judgement("stale", "the process was stopped before the result was recorded")
    if known.get("key") == basis.key:
        return Judgement("current")
    return Judgement("stale", explain_changes(basis, known))


def explain_foreign(
    path: Path, basis: Basis, known: Mapping[str, Any] | None, begun: Mapping[str, Any] | None = None
) -> str | None:
    """Return why a result may not be replaced without --overwrite.

    Inputs are ignored, so that all results of a chain can be checked before the first is made.

    Parameters
    ----------
    path, basis, known, begun
        See :func:`judge`.

    Returns
    -------
    str or None
        The reason; None if it may be replaced or does not exist.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        return "is not a file"
    own = checksum(path)
    record = next((entry for entry in (known, begun) if entry is not None and entry.get("sha256") == own), None)
    if record is None:
        return "was not made here by landprior" if known is None else "was changed or replaced after landprior made it"
    recipe = record.get("recipe", basis.recipe)
    if recipe not in (basis.recipe, *basis.replaces):
        return f"was made by {recipe}, not by {basis.recipe}"
    command = record.get("command", basis.command)
    if command != basis.command and record.get("settings") != basis.flatten_settings():
        return f"was made by landprior {command} ({_differences(basis, record)})"
    return None


def refuse_foreign(path: Path, why: str) -> NoReturn:
    """Raise an error for a result that may not be replaced.

    Raises
    ------
    OutputExistsError
        Always; the message gives the path, the reason and the remedy.
    """
    msg = f"{path} {why}; it is kept. Give --overwrite to replace it, or move it away"
    raise OutputExistsError(msg)


def explain_changes(basis: Basis, known: Mapping[str, Any]) -> str:
    """Return the inputs and settings that have changed since a result was recorded."""
    parts = []
    before = known.get("inputs")
    if isinstance(before, dict):
        now = basis.hash_inputs()
        parts = [f"{name} was removed" for name in sorted(set(before) - set(now))]
        parts += [f"{name} is new" for name in sorted(set(now) - set(before))]
        parts += [f"{name} has changed" for name in sorted(now) if before.get(name, now[name]) != now[name]]
    settings = _differences(basis, known)
    return "; ".join(parts + ([settings] if settings else [])) or "its inputs or settings have changed"


def _differences(basis: Basis, known: Mapping[str, Any]) -> str:
    """Return the settings that differ from those recorded."""
    before = known.get("settings")
    if not isinstance(before, dict):
        return ""
    now = basis.flatten_settings()
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    texts = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        if _plain(before.get(name)) and _plain(now.get(name))
        else name
        for name in names[:_NAMED]
    ]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ("other settings: " if names else "") + ", ".join(texts + more)


def _plain(value: object) -> bool:
    return not (isinstance(value, str) and value.startswith("sha256:"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(isinstance(inner, str) for inner in value):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, (bool, int, float, str)) and len(str(value)) <= _SHORT):
            flat[f"{prefix}{name}"] = value
        else:
            text = json.dumps(value, sort_keys=True, default=str)
            flat[f"{prefix}{name}"] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return flat


@dataclass(frozen=True)
class RecordFile:
    """A JSON file with the record of a single result, where there is no ``item.json``."""

    path: Path

    def judge(self, result: Path, basis: Basis) -> Judgement:
        """See :func:`judge`."""
        content = self._read()
        return judge(result, basis, content.get("made"), content.get("begun"))

    @contextmanager
    def making(self, result: Path, basis: Basis) -> Iterator[None]:
        """Record a result made in the ``with`` block, as ``TileFolder.making`` does."""
        made = basis.record()

        def tell(temporary: Path) -> None:
            with changing(self.path) as write:
                write({**self._read(), "begun": {**made, "sha256": checksum(temporary)}})

        with announcing(result, tell):
            yield
        with changing(self.path) as write:
            write({"made": {**made, "sha256": checksum(result)}})

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


# -- contents of files -----------------------------------------------------------------------------


def make_key(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Return a hash of a configuration and of the contents of the files it is applied to."""
    text = json.dumps(
        {"settings": settings, "inputs": {name: checksum(path) for name, path in sorted(inputs.items())}},
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()
