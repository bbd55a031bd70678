"""``landprior compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.experiment import run_experiment
from landprior.cli.parameters import INPUT, OUTPUT_FOLDER
from landprior.cli.training import smaller_options

if TYPE_CHECKING:
    from landprior.run import Run


@click.command(name="compare", cls=Command)
@click.argument("config", metavar="CONFIG.yaml", type=INPUT)
@click.option("--root", type=INPUT, help="Folder that paths in CONFIG.yaml are relative to.  [default: its own folder]")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Folder for priors, models, maps, results and report.  [default: CONFIG's name without .yaml]",
)
@grouped(
    "Selection",
    click.option(
        "--method",
        "methods",
        multiple=True,
        help="Method to run, by its name in the table; may be repeated.  [default: all]",
    ),
    click.option("--place", "places", multiple=True, help="Place to run; may be repeated.  [default: all]"),
    click.option(
        "--seeds", type=click.IntRange(min=1), help="Number of trainings of each method.  [default: CONFIG's, or 3]"
    ),
    *smaller_options("steps", "filters"),
    click.option("--dry-run", is_flag=True, help="List finished and unfinished runs without running anything."),
)
@shared.run_options("device")
@shared.json_option
def command(
    *,
    config: Path,
    root: Path | None,
    output: Path | None,
    methods: tuple[str, ...],
    places: tuple[str, ...],
    seeds: int | None,
    steps: int | None,
    filters: int | None,
    dry_run: bool,
    run: Run,
    as_json: bool,
) -> None:
    """Compare methods on your own labelled tiles: a table, a figure, maps side by side.

    \b
    landprior compare mine.yaml
    landprior compare mine.yaml --method qr --method sr --seeds 1

    mine.yaml:

    \b
    scheme: chesapeake-4
    files: {image: "{tile}_naip.tif", nlcd: "{tile}_nlcd.tif", labels: "{tile}_lc.tif"}
    places: {north: [a, b], south: [c]}
    methods: [prior, qr, rq, sr, soft-naive, hard-naive, em, epitome, self-epitome]
    seeds: 3

    All methods get the same images and priors, and are scored by the same function. Labels are
    used for scores only. If interrupted, rerun the same command to resume.
    """  # noqa: D301
    from landprior.superres.comparison import load_comparison
    from landprior.superres.rivals import RIVALS

    if root is None and config.suffix != ".yaml":
        msg = f"--root is missing: give the folder of the data of the shipped comparison {config}"
        raise click.UsageError(msg)
    experiment = load_comparison(config).to_experiment(seeds=seeds, steps=steps, filters=filters)
    experiment = experiment.select(rows=methods, regions=places)
    run_experiment(
        experiment,
        root or config.parent,
        output or (config.with_suffix("") if config.suffix else Path("landprior-experiments") / config),
        rivals=RIVALS,
        run=run,
        dry_run=dry_run,
        as_json=as_json,
    )
