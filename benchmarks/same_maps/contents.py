"""The compared content of a file: pixels, weights, figures, records without versions, dates, durations and paths."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOLATILE = re.compile(
    r"^(version|torch|created|updated|datetime|when|date|started|ended|finished|seconds|duration|took|host|hostname|pid|"
    r"worker|key|sha256|recipe_key|multihash|file:checksum|file:size|fingerprint|stamp)$|_seconds$|_at$|_time$|time_s$"
)
"""Names of values that may differ between two runs of the same program."""
CHECKSUM = re.compile(r"^(sha256:)?[0-9a-f]{12,}$")
"""Values that are checksums of files: the file has its own line."""
VERSION = re.compile(r"^\d+\.\d+\.\d+\S*$")
"""Values that are versions of a program."""


def settle(value: object, folder: Path) -> object:
    """Return a record without versions, dates, durations, checksums and paths."""
    if isinstance(value, dict):
        return {name: settle(part, folder) for name, part in value.items() if not VOLATILE.search(str(name))}
    if isinstance(value, list | tuple):
        return [settle(part, folder) for part in value]
    if isinstance(value, str):
        return settle_string(value, folder)
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN is no JSON


def settle_string(text: str, folder: Path) -> object:
    """Do the same for a string, which may hold a record as JSON."""
    if CHECKSUM.match(text):
        return "a checksum"
    if VERSION.match(text):
        return "a version"
    with contextlib.suppress(ValueError):
        if text[:1] in {"{", "["}:
            return settle(json.loads(text), folder)
    return settle_text(text, folder)


def settle_text(text: str, folder: Path) -> str:
    """Return a text without paths and durations."""
    if "| seconds |\n" in text:  # the last column of a table
        text = re.sub(r"\| *\d+ \|$", "| ... |", text, flags=re.MULTILINE)
    text = text.replace(f"{folder.resolve()}{os.sep}", "").replace(str(folder.resolve()), "")
    return re.sub(r"took \d[\d.: ]*s?|\b\d+(\.\d+)? (s|seconds)\b|\d{4}-\d\d-\d\dT[\d:.]+Z?", "...", text)


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of all parts, each preceded by its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def encode(record: object) -> bytes:
    """Return a record as bytes, the same for equal ones."""
    return json.dumps(record, sort_keys=True).encode()


def _array(values: np.ndarray) -> bytes:
    return f"{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()


def _raster(path: Path, folder: Path) -> tuple[list[bytes], object]:
    import rasterio

    with rasterio.open(path) as src:
        about = {
            "transform": list(src.transform)[:6],
            "crs": src.crs and src.crs.to_string(),
            "nodata": str(src.nodata),
            "descriptions": src.descriptions,
            "block": [src.block_shapes, src.overviews(1)],
            "colours": str(src.colormap(1)) if src.colorinterp[0].name == "palette" else None,
            "tags": src.tags(ns="landprior"),
        }
        return [_array(src.read())], settle(about, folder)


def _model(path: Path, folder: Path) -> tuple[list[bytes], object]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as weights:
        names = sorted(weights.keys())
        values = [name.encode() + _array(weights.get_tensor(name)) for name in names]
        return values, settle(dict(weights.metadata() or {}), folder)


def _points(path: Path) -> list[bytes]:
    import geopandas

    frame = geopandas.read_file(path)
    return [frame.geometry.to_wkt().to_csv().encode(), frame.drop(columns="geometry").to_csv().encode()]


def _picture(path: Path) -> list[bytes]:
    from matplotlib.image import imread

    return [_array(imread(path))]


def _arrays(path: Path) -> list[bytes]:
    with np.load(path) as arrays:
        return [name.encode() + _array(arrays[name]) for name in sorted(arrays)]


def read_content(path: Path, folder: Path) -> tuple[list[bytes], object]:
    """Return the compared content of a file: values as bytes, and its record for JSON."""
    if path.suffix in (readers := {".tif": _raster, ".safetensors": _model}):
        return readers[path.suffix](path, folder)
    if path.suffix in (plain := {".gpkg": _points, ".png": _picture, ".npz": _arrays}):
        return plain[path.suffix](path), None
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return [], settle(json.loads(text), folder)
    if path.suffix == ".jsonl":
        return [], settle([json.loads(line) for line in text.splitlines()], folder)
    return [settle_text(text, folder).encode()], None


def flatten(record: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and text of each value of a record."""
    if isinstance(record, dict | list) and record:
        parts = record.items() if isinstance(record, dict) else enumerate(record)
        for key, part in parts:
            yield from flatten(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(record)
