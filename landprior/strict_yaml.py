"""Reader of all YAML files: ambiguous values are errors that name their line.

PyYAML follows YAML 1.1, where ``no`` is false, ``010`` is 8, ``1:30`` is 90, ``1_000`` is 1000 and ``2019-01-01`` a
date, and keeps the last of two equal keys. None of this is what the author of a class scheme intended.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from landprior.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import yaml

LARGEST = 100_000
"""Maximum number of values in a file with all aliases expanded; a few nested aliases can expand to billions."""

MOST_DIGITS = 15
"""Maximum digits of a whole number; more are never intended, and loops over them would not end."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_PLAIN_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def parse_yaml(text: str, where: str | Path) -> Any:  # noqa: ANN401 - any content
    """Read a YAML document.

    Parameters
    ----------
    text
        The document.
    where
        The file, named in error messages.

    Returns
    -------
    object
        Mappings, lists, texts, numbers, truth values and None; None for an empty document.

    Raises
    ------
    ConfigError
        If it is not valid YAML, has a duplicate key, or an ambiguous value of YAML 1.1; the message names the
        line.
    """
    import yaml

    try:
        loader = _loader()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        raise ConfigError(_explain(error, where)) from error
    except (ValueError, RecursionError) as error:
        msg = f"{where} is not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError(msg) from error


def find_line(text: str, place: Sequence[int | str]) -> int | None:
    """Return the line, from 1, of a value of a document, given by keys and positions; None if it does not exist.

    It is the line of the last existing part of the place, so that a missing key gets its mapping's line.
    """
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line = None
    for part in place:
        below = None
        if isinstance(node, yaml.MappingNode):
            below = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            below = node.value[part]
        if below is None:
            break
        node = below
        line = node.start_mark.line + 1
    return line


@cache
def _loader() -> type[yaml.SafeLoader]:
    """Return the loader, a separate class in case others change PyYAML's."""
    import yaml

    return type("StrictLoader", (yaml.SafeLoader,), {})


def _check(root: yaml.Node, where: str | Path) -> None:
    """Raise an error for duplicate keys, ambiguous values of YAML 1.1, and recursive or excessive aliases."""
    import yaml

    sizes: dict[int, int] = {}

    def visit(node: yaml.Node, above: frozenset[int]) -> int:
        line = node.start_mark.line + 1
        if id(node) in above:
            msg = f"{where}, line {line}: an alias refers to something that contains it; write the values out"
            raise ConfigError(msg)
        if id(node) in sizes:
            return sizes[id(node)]
        size, inside = 1, above | {id(node)}
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node, where)
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            size += sum(visit(key, inside) + visit(value, inside) for key, value in node.value)
        else:
            size += sum(visit(value, inside) for value in node.value)
        if size > LARGEST:
            msg = f"{where}, line {line}: with all aliases expanded this is more than {LARGEST:,} values"
            raise ConfigError(msg)
        sizes[id(node)] = size
        return size

    visit(root, frozenset())


def _check_keys(node: yaml.MappingNode, where: str | Path) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = (str(key.tag), str(key.value))
        if name in seen:
            msg = f"{where}, line {line}: the key {key.value!r} already occurs on line {seen[name]}; keep one"
            raise ConfigError(msg)
        seen[name] = line


def _check_scalar(node: yaml.ScalarNode, where: str | Path) -> None:
    """Raise an error for an unquoted value with an unexpected meaning."""
    if node.style is not None:
        return
    text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
    meant = None
    if kind == "bool" and text.lower() not in ("true", "false"):
        meant = "reads as true or false in YAML; write true or false, or put it in quotes if it is text"
    elif kind == "timestamp":
        meant = "reads as a date in YAML; put it in quotes"
    elif kind == "int" and not _PLAIN_INTEGER.fullmatch(text):
        meant = "reads as another number in YAML (octal, base 60 or with _); write a plain number, or put it in quotes"
    elif kind == "int" and len(text) > MOST_DIGITS:
        meant = f"has more than {MOST_DIGITS} digits; put it in quotes if it is text"
    elif kind == "float" and not _PLAIN_FLOAT.fullmatch(text):
        meant = "reads as another number in YAML (base 60 or with _); write a plain number, or put it in quotes"
    if meant is not None:
        msg = f"{where}, line {node.start_mark.line + 1}: {text} {meant}"
        raise ConfigError(msg)


def _explain(error: yaml.YAMLError, where: str | Path) -> str:
    """Return the error in one line, with its line number."""
    import yaml

    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark is not None else ""
        reason = " ".join(part for part in (error.context, error.problem) if part)
        return f"{where}{place} is not valid YAML: {' '.join(reason.split())}"
    return f"{where} is not valid YAML: {' '.join(str(error).split())}"
