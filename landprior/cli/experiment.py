"""``landprior experiment``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT, OUTPUT_FOLDER
from landprior.cli.training import smaller_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landprior.landcover.experiments.config import Experiment
    from landprior.landcover.experiments.runner import MapMethod
    from landprior.run import Run


@click.command(name="experiment", cls=Command)
@click.argument("name", type=INPUT, required=False)
@click.option("--root", type=INPUT, help="Folder of the data: torchgeo's root of the data set, or that of the files.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Folder for priors, models, maps, results and report.  [default: landprior-experiments/NAME]",
)
@click.option("--list", "listed", is_flag=True, help="List the experiments that ship with landprior.")
@grouped(
    "Selection",
    click.option("--joint", is_flag=True, help="Train only one model for all tiles of a region, as in the paper."),
    click.option("--per-tile", is_flag=True, help="Train only one model for each tile."),
    click.option(
        "--row",
        "rows",
        multiple=True,
        help="Row to run, with those it starts from; may be repeated.  [default: all]",
    ),
    click.option("--region", "regions", multiple=True, help="Region to run; may be repeated.  [default: all]"),
    click.option(
        "--map",
        "maps",
        type=(str, str),
        multiple=True,
        metavar="NAME PATTERN",
        help="Other maps to score: a name, and their files under --root with {region}, {split}, {tile}.",
    ),
    click.option("--dry-run", is_flag=True, help="List the finished and unfinished cells without running anything."),
)
@grouped(
    "Training",
    click.option(
        "--seeds", type=click.IntRange(min=1), help="Number of trainings of each cell.  [default: the experiment's]"
    ),
    click.option(
        "--recipe",
        type=click.Choice(["paper", "default", "best"]),
        help="Recipe of the training.  [default: the experiment's]",
    ),
    *smaller_options("steps", "filters", "patch_size", "batch_size"),
)
@shared.run_options("device")
@shared.json_option
def command(
    *,
    name: Path | None,
    root: Path | None,
    output: Path | None,
    listed: bool,
    joint: bool,
    per_tile: bool,
    rows: tuple[str, ...],
    regions: tuple[str, ...],
    seeds: int | None,
    recipe: str | None,
    steps: int | None,
    filters: int | None,
    patch_size: int | None,
    batch_size: int | None,
    maps: tuple[tuple[str, str], ...],
    dry_run: bool,
    run: Run,
    as_json: bool,
) -> None:
    """Run the experiment NAME, or your own YAML file: a table of rows and regions, with a report.

    \b
    landprior experiment --list
    landprior fetch --dataset enviroatlas --root enviroatlas
    landprior experiment table-2 --root enviroatlas
    landprior experiment table-2 --root enviroatlas --filters 32 --steps 2000 --region durham --joint
    landprior experiment table-e2 --root enviroatlas --map "Robinson 2019" "maps/{tile}.tif"

    Each finished cell is one line of results.jsonl. If interrupted, rerun the same command to resume; the results
    are the same. Another configuration needs another folder. The report (Markdown, JSON, PNG) has the
    published figures, ours and the differences.
    """  # noqa: D301
    from landprior.landcover.experiments.config import list_experiments, load_experiment

    if listed or name is None:
        for known in list_experiments():
            click.echo(f"{known:<16} {load_experiment(known).title}")
        if not listed:
            click.echo("\nrun one with: landprior experiment NAME --root DATA", err=True)
        return
    if root is None:
        msg = "--root is missing: give the data folder (landprior fetch --dataset enviroatlas|chesapeake --root DIR)"
        raise click.UsageError(msg)
    if joint and per_tile:
        msg = "--joint and --per-tile are mutually exclusive; leave both out to run both"
        raise click.UsageError(msg)
    small = {"recipe": recipe, "steps": steps, "filters": filters, "patch_size": patch_size, "batch_size": batch_size}
    changes: dict[str, Any] = {"settings": {key: value for key, value in small.items() if value is not None}}
    if joint or per_tile:
        changes["modes"] = ("joint",) if joint else ("tile",)
    if seeds is not None:
        changes["seeds"] = seeds
    experiment = load_experiment(name, **changes).select(rows=rows, regions=regions, external=dict(maps))
    from landprior.superres.rivals import RIVALS

    folder = output or Path("landprior-experiments") / name.stem
    run_experiment(experiment, root, folder, rivals=RIVALS, run=run, dry_run=dry_run, as_json=as_json)


def run_experiment(
    experiment: Experiment,
    root: Path,
    folder: Path,
    *,
    rivals: Mapping[str, MapMethod],
    run: Run,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run or list the cells, write the report, print it."""
    from landprior.landcover.experiments.report import summarise, to_dict, to_markdown, write_report
    from landprior.landcover.experiments.runner import Runner
    from landprior.raster.outputs import protecting

    runner = Runner(experiment, root, folder, rivals=rivals, run=run)
    if dry_run:
        done = {result.key for result in runner.results()}
        for cell in runner.cells():
            state = "done" if cell.key in done else "to do"
            click.echo(f"{state:<6} {cell.row}, {cell.region}, {cell.mode}, seed {cell.seed}")
        return
    try:
        runner.run()
    finally:  # write a report even after a failure or ctrl-C
        found = runner.results()
        missing = len({cell.key for cell in runner.cells()} - {result.key for result in found})
        if found:
            with protecting(runner.inputs()):
                write_report(folder, experiment, found, missing=missing)
    runner.draw_panels(found)
    lines = summarise(experiment, found)
    click.echo(json.dumps(to_dict(experiment, lines), indent=2) if as_json else to_markdown(experiment, lines))
    click.echo(f"report: {folder / 'report.md'}", err=True)
