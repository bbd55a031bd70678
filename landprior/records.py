"""What finished work has found: a line of JSON each in ``results.jsonl``, so that the same command goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from landprior.errors import InputError
from landprior.inputs import read_text
from landprior.raster.files import replacing
from landprior.raster.scheme import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from _typeshed import DataclassInstance

RESULTS = "results.jsonl"

T = TypeVar("T", bound="DataclassInstance")


def read_records(folder: Path, kind: type[T]) -> list[T]:
    """Read the records of a folder; none where there is no file yet.

    Parameters
    ----------
    folder
        That holds :data:`RESULTS`.
    kind
        The dataclass of a record.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    adapter = TypeAdapter(kind)
    try:
        return [adapter.validate_json(line) for line in read_text(path, empty=True).splitlines() if line]
    except ValidationError as error:
        msg = f"{explain(error, path)}; delete that line and what it is of is done again"
        raise InputError(msg) from error


def write_records(folder: Path, records: Sequence[T], to_dict: Callable[[T], dict[str, Any]] = asdict) -> None:
    """Write all records, whole or not at all; ``to_dict`` says how one becomes JSON."""
    with replacing(folder / RESULTS, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(to_dict(one)) + "\n" for one in records), encoding="utf-8")
