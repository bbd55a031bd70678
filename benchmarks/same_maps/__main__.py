"""Checksums of the commands' output, to compare two versions: ``python -m benchmarks.same_maps -o before.json``.

    python -m benchmarks.same_maps -o before.json
    git switch other
    python -m benchmarks.same_maps --against before.json

A small run of every command that writes maps, models or scores, on a place made from a seed. Only the command line is
used, so that modules may move between the two runs. The checksum of a file covers only what a user relies on:
pixels, grid and tags of rasters; weights and header of models; figures of tables. Versions, dates, durations and paths
are left out.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.same_maps.commands import STEPS, run_step
from benchmarks.same_maps.contents import digest, encode, flatten, read_content, settle, settle_text
from benchmarks.same_maps.inputs import write_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

LEFT_OUT = {".log", ".lock", ".pt", ".ckpt"}
"""Files that are not results."""


def list_files(folder: Path) -> dict[Path, int]:
    """Return the result files in a folder with their modification times."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in LEFT_OUT)
    return {path: path.stat().st_mtime_ns for path in paths if not path.name.startswith(".")}


def measure(folder: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the steps in an empty folder; return file -> checksum of its content, and the content of records."""
    write_inputs(folder)
    environment = {"LANDPRIOR_DATA": "data", "LANDPRIOR_CACHE": str(folder / ".cache"), "CUDA_VISIBLE_DEVICES": ""}
    found: dict[str, dict[str, Any]] = {}
    with contextlib.chdir(folder):
        for part in parts:
            started = time.perf_counter()
            for line in STEPS[part]:
                before = list_files(folder)
                said = settle_text(run_step(line, environment), folder)
                with contextlib.suppress(ValueError):
                    said = json.dumps(settle(json.loads(said), folder), sort_keys=True)
                name = f"{part}: {line}"
                found[name] = {"sha256": digest(said.encode()), "record": {"said": said}}
                click.echo(f"{found[name]['sha256'][:16]}  {name}")
                for path, changed in list_files(folder).items():
                    if before.get(path) == changed:
                        continue
                    contents, record = read_content(path, folder)
                    name = f"{part}: {path.relative_to(folder).as_posix()}"
                    while name in found:
                        name += " again"
                    found[name] = {"sha256": digest(*contents, encode(record)), "values": digest(*contents)}
                    if record is not None:
                        found[name]["record"] = dict(flatten(record))
                    click.echo(f"{found[name]['sha256'][:16]}  {name}")
            click.echo(f"({part}: {time.perf_counter() - started:.0f} s)", err=True)
    return found


def compare(found: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each difference."""
    lines = [f"only now: {name}" for name in found.keys() - other.keys()]
    lines += [f"only before: {name}" for name in other.keys() - found.keys()]
    for name in found.keys() & other.keys():
        now, was = found[name], other[name]
        if now["sha256"] == was["sha256"]:
            continue
        values = "values differ" if now.get("values") != was.get("values") else "same values, another record"
        lines.append(f"{name}: {values}")
        records = [part.get("record") or {} for part in (was, now)]
        for key in sorted(records[0].keys() | records[1].keys()):
            before, after = (record.get(key) for record in records)
            if before != after:
                lines.append(f"{name}: {key}: {before} -> {after}")
    return sorted(lines)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the checksums, JSON.")
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Checksums of another version.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(STEPS)), help="Part to run; repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the files here (an empty folder).")
def main(output: Path | None, against: Path | None, parts: tuple[str, ...], folder: Path | None) -> None:
    """Print a checksum for each file; exit with 1 if one differs from that of another version."""
    import torch

    torch.set_num_threads(1)
    needed = {*parts} | ({"files"} if {"unet", "rivals"} & {*parts} else set())
    wanted = [name for name in STEPS if not parts or name in needed]
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        found = measure(place, wanted)
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{len(found)} results", err=True)
    if against:
        other = json.loads(against.read_text(encoding="utf-8"))
        if parts:
            other = {name: part for name, part in other.items() if name.partition(":")[0] in wanted}
        lines = compare(found, other)
        click.echo("\n".join([*lines, f"{len(lines)} differences"]))
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
