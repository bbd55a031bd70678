"""Documents with coarse labels, and the tree of fine classes below each.

A tree is a JSON or YAML file in one of two forms::

    {"sports": ["hockey", "tennis"], "arts": {"dance": "ballet and dance", "music": "music"}}
    {"coarse_of": {"hockey": "sports", ...}, "name_of": {"hockey": "ice hockey", ...}}

The names, by default the labels themselves, are scored by a language model.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from landprior.errors import ConfigError, InputError
from landprior.inputs import check_file, decode_text, read_text
from landprior.sources.tables import parse_table
from landprior.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

DEFAULT_TEXT, DEFAULT_COARSE, DEFAULT_FINE, DEFAULT_ID = "text", "coarse", "fine", "id"
"""Default names of the columns."""

UNKNOWN = -1
"""Position of a missing fine label."""


@dataclass(frozen=True)
class Tree:
    """The fine classes below each coarse label.

    Parameters
    ----------
    coarse
        The coarse labels.
    fine
        The fine classes; probabilities have them along axis 1, in this order.
    parent
        Position of the coarse label of each fine class, shape (fine,).
    names
        Name of each fine class for a language model.
    """

    coarse: tuple[str, ...]
    fine: tuple[str, ...]
    parent: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def children(self) -> NDArray[np.bool_]:
        """Whether a fine class lies below a coarse label, shape (coarse, fine)."""
        return np.asarray(np.arange(len(self.coarse))[:, None] == self.parent[None])


@dataclass(frozen=True)
class Documents:
    """Documents in the order of their file.

    Parameters
    ----------
    texts
        The texts.
    coarse
        Position of the coarse label in the tree, shape (N,).
    fine
        Position of the fine label, :data:`UNKNOWN` if missing, shape (N,); None if there are none.
    ids
        Names of the documents; None if the file has none.
    where
        The file, for messages.
    """

    texts: tuple[str, ...]
    coarse: NDArray[np.int64]
    fine: NDArray[np.int64] | None = None
    ids: tuple[str, ...] | None = None
    where: str = "the documents"

    def __len__(self) -> int:
        return len(self.texts)

    def allowed(self, tree: Tree) -> NDArray[np.bool_]:
        """Return which fine classes each document may have, shape (N, fine)."""
        return tree.children[self.coarse]

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Documents:
        """Return some of the documents, by position."""
        rows = np.asarray(rows, dtype=np.int64)
        return Documents(
            texts=tuple(self.texts[row] for row in rows),
            coarse=self.coarse[rows],
            fine=None if self.fine is None else self.fine[rows],
            ids=None if self.ids is None else tuple(self.ids[row] for row in rows),
            where=self.where,
        )


def make_tree(coarse_of: Mapping[str, str], name_of: Mapping[str, str] | None = None) -> Tree:
    """Make a tree from the coarse label of every fine class, in the given order."""
    coarse = tuple(dict.fromkeys(coarse_of.values()))
    names = name_of or {}
    return Tree(
        coarse=coarse,
        fine=tuple(coarse_of),
        parent=np.array([coarse.index(label) for label in coarse_of.values()], dtype=np.int64),
        names=tuple(names.get(fine, fine) for fine in coarse_of),
    )


def read_tree(path: str | Path) -> Tree:
    """Read a tree from a JSON or YAML file.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    ConfigError
        If it has neither of the two forms, or a fine class lies below two coarse labels.
    """
    path = Path(path)
    content = _parse(path)
    if not isinstance(content, dict) or not content:
        msg = f"{path} is not a tree; write {{coarse: [fine, ...], ...}}"
        raise ConfigError(msg)
    if "coarse_of" in content:
        coarse_of = _texts(content["coarse_of"], path, "coarse_of")
        name_of = _texts(content.get("name_of") or {}, path, "name_of")
    else:
        coarse_of, name_of = _invert(content, path)
    strange = [fine for fine in name_of if fine not in coarse_of]
    if strange:
        msg = f"{path}: name_of has {strange[0]!r}, which is not in coarse_of"
        raise ConfigError(msg)
    if len(coarse_of) < 2:
        msg = f"{path}: a tree needs at least two fine classes, this one has {len(coarse_of)}"
        raise ConfigError(msg)
    return make_tree(coarse_of, name_of)


def _parse(path: Path) -> object:
    text = read_text(path, error=ConfigError)
    if path.suffix != ".json":
        return parse_yaml(text, path)
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be parsed ({reason})"
        raise ConfigError(msg) from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object after checking that no key occurs twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            msg = f"{key!r} occurs twice"
            raise ValueError(msg)
        found[key] = value
    return found


def _texts(content: object, path: Path, what: str) -> dict[str, str]:
    if not isinstance(content, dict):
        msg = f"{path}: {what} must map texts to texts"
        raise ConfigError(msg)
    for key, value in content.items():
        for part in (key, value):
            if not isinstance(part, str) or not part.strip():
                msg = f"{path}: {part!r} in {what} is not text; put it in quotes"
                raise ConfigError(msg)
    return dict(content)


def _invert(content: dict[Any, Any], path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the coarse label and the name of every fine class of ``{coarse: [fine, ...]}``."""
    coarse_of: dict[str, str] = {}
    name_of: dict[str, str] = {}
    for coarse, below in content.items():
        if not isinstance(below, list | dict) or not below:
            msg = f"{path}: below {coarse!r} there must be a list of fine classes, or a mapping of them to names"
            raise ConfigError(msg)
        named = below if isinstance(below, dict) else {fine: fine for fine in below if isinstance(fine, str)}
        if len(named) != len(below):
            strange = [fine for fine in below if not isinstance(fine, str)] or ["the same class"]
            msg = f"{path}: below {coarse!r}, {strange[0]!r} is not text or is twice there; quote numbers and yes/no"
            raise ConfigError(msg)
        for fine, name in _texts(named, path, str(coarse)).items():
            if fine in coarse_of:
                msg = f"{path}: {fine!r} lies below both {coarse_of[fine]!r} and {coarse!r}"
                raise ConfigError(msg)
            coarse_of[fine], name_of[fine] = coarse, name
    _texts(coarse_of, path, "the tree")
    return coarse_of, name_of


def read_documents(
    path: str | Path,
    tree: Tree,
    *,
    text: Sequence[str] = (DEFAULT_TEXT,),
    coarse: str = DEFAULT_COARSE,
    fine: str | None = None,
    identity: str | None = None,
) -> Documents:
    """Read documents from a CSV (with a header) or JSONL file, also gzipped.

    Parameters
    ----------
    path
        ``.csv`` (in any form written by Excel: :mod:`landprior.sources.tables`), ``.jsonl`` or ``.ndjson`` in UTF-8,
        each also ``.gz``.
    tree
        The tree of possible labels.
    text
        Columns of the text; several are joined by ". ", without empty ones.
    coarse
        Column of the coarse label.
    fine
        Column of the fine label, empty if unknown; by default ``fine``, if it exists.
    identity
        Column of the document's name; by default ``id``, if it exists.

    Returns
    -------
    Documents
        Documents in the order of the file.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    InputError
        If it cannot be read, or a line is invalid; the message names the line.
    """
    path = Path(path)
    texts: list[str] = []
    coarses: list[int] = []
    fines: list[int] = []
    ids: dict[str, int] = {}
    places = {label: number for number, label in enumerate(tree.coarse)}
    below = {label: number for number, label in enumerate(tree.fine)}
    with_fine = with_ids = False
    for number, row in _rows(path, (*text, coarse, fine or DEFAULT_FINE, identity or DEFAULT_ID)):
        where = f"{path}, line {number}"
        if not texts:
            with_fine, with_ids = fine is not None or DEFAULT_FINE in row, identity is not None or DEFAULT_ID in row
        texts.append(_text(row, text, where))
        label = _value(row, coarse, where)
        if label not in places:
            msg = f"{where}: coarse label {label!r} is not in the tree, which has {_list(tree.coarse)}"
            raise InputError(msg)
        coarses.append(places[label])
        if with_fine:
            fines.append(_fine(_value(row, fine or DEFAULT_FINE, where), label, tree, below, where))
        if with_ids:
            name = _value(row, identity or DEFAULT_ID, where)
            if name in ids:
                msg = f"{where}: {identity or DEFAULT_ID} {name!r} already occurs on line {ids[name]}"
                raise InputError(msg)
            ids[name] = number
    if not texts:
        msg = f"{path} has no documents"
        raise InputError(msg)
    known = with_fine and any(position != UNKNOWN for position in fines)
    return Documents(
        texts=tuple(texts),
        coarse=np.array(coarses, dtype=np.int64),
        fine=np.array(fines, dtype=np.int64) if known else None,
        ids=tuple(ids) if with_ids else None,
        where=str(path),
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _value(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        msg = f"{where}: there is no column {column!r}; it has {_list([str(name) for name in row if name])}"
        raise InputError(msg)
    value = row[column]
    if value is not None and not isinstance(value, str | int | float):
        msg = f"{where}: {column} is not text but {type(value).__name__}"
        raise InputError(msg)
    return "" if value is None else str(value).strip()


def _text(row: Mapping[str, Any], columns: Sequence[str], where: str) -> str:
    parts = [_value(row, column, where) for column in columns]
    joined = ". ".join(part for part in parts if part)
    if not joined:
        msg = f"{where}: the text ({', '.join(columns)}) is empty"
        raise InputError(msg)
    return joined


def _fine(label: str, coarse: str, tree: Tree, below: Mapping[str, int], where: str) -> int:
    if not label:
        return UNKNOWN
    if label not in below:
        msg = f"{where}: fine label {label!r} is not in the tree"
        raise InputError(msg)
    if tree.coarse[tree.parent[below[label]]] != coarse:
        msg = f"{where}: fine label {label!r} lies below {tree.coarse[tree.parent[below[label]]]!r}, not {coarse!r}"
        raise InputError(msg)
    return below[label]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and columns of every record; CSV columns are matched regardless of case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if not kind or kind[0] not in (".csv", ".jsonl", ".ndjson"):
        msg = f"{path}: documents must be .csv, .jsonl or .ndjson, optionally with .gz"
        raise InputError(msg)
    check_file(path)
    try:
        if kind[0] == ".csv":
            with (gzip.open if packed else open)(path, "rb") as stream:
                text = decode_text(stream.read(), path)
            yield from _csv_rows(text, path, columns)
        else:
            with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
                yield from _jsonl_rows(lines, path)
    except UnicodeDecodeError as error:
        line = _find_undecodable_line(path, packed=packed)
        msg = f"{path} cannot be read: line {line} is not UTF-8; save the file as UTF-8"
        raise InputError(msg) from error
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} cannot be read ({error})"
        raise InputError(msg) from error


def _find_undecodable_line(path: Path, *, packed: bool) -> int:
    """Return the first line, from 1, that is not UTF-8."""
    last = 1
    with (gzip.open if packed else open)(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            last = number
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return last


def _csv_rows(text: str, path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    table = parse_table(text, path)
    table.require_whole_rows()
    names = list(table.header)
    for name in columns:
        at = table.find(name)
        if at is not None:
            names[at] = name
    for row in table.rows:
        yield row.line, {name: cell for name, cell in zip(names, row.cells, strict=True) if name}


def _jsonl_rows(stream: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            msg = f"{path}, line {number} is not JSON ({error})"
            raise InputError(msg) from error
        if not isinstance(row, dict):
            msg = f"{path}, line {number} is not a JSON object"
            raise InputError(msg)
        yield number, row
