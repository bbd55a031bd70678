"""Options shared by the commands on labelled images, and their handling."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import grouped
from landprior.cli.fields import field_option, field_options
from landprior.cli.parameters import INPUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.imagery.settings import ImageSettings

_DATA_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("data", type=INPUT, required=False),
    grouped(
        "Images",
        click.option(
            "--table",
            type=INPUT,
            help="CSV file,label[,split] that describes a folder of images.  [default: labels.csv in the folder]",
        ),
        click.option(
            "--classes", help="Names of the classes, in order, separated by commas.  [default: those found, sorted]"
        ),
        click.option(
            "--download", type=click.Choice(["mnist", "cifar10"]), help="Data set to download into DATA first."
        ),
    ),
)


def data_options(command: Any) -> Any:  # noqa: ANN401 - a decorator
    """Add the argument and options that select images; :func:`read_data` reads their values."""
    return shared.stack_options(command, _DATA_OPTIONS)


def read_data(data: Path | None, table: Path | None, classes: str | None, download: str | None) -> ImageSplits:
    """Read or download the images.

    Raises
    ------
    click.UsageError
        If no images are selected, or options contradict each other.
    """
    from landprior.domains.imagery.downloads import download_images
    from landprior.domains.imagery.formats import read_images

    if data is None:
        msg = "DATA is missing: a .npz, or a folder of IDX or CIFAR files or of images with a CSV"
        raise click.UsageError(msg)
    if download is None:
        names = None if classes is None else [name.strip() for name in classes.split(",")]
        return read_images(data, table=table, classes=names)
    if table is not None or classes is not None:
        msg = "--download cannot be used with --table and --classes; the data set has its own labels"
        raise click.UsageError(msg)
    from landprior.sources.http.cache import Cache
    from landprior.sources.http.client import Network

    return download_images(download, data, Network(Cache()))  # type: ignore[arg-type]  # click has checked it


def training_options(model: type[ImageSettings], *, paper: bool = False) -> tuple[Callable[[Any], Any], ...]:
    """Return the options shared by trainings on images, with a model's defaults and the paper's for comparison."""
    others = {"paper": model(epochs=300)} if paper else {}
    seeds = click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Number of trainings of each kind, with different seeds.",
    )
    schedule = field_option(model, "schedule", choices=("cosine", "constant"))
    fields = ("epochs", "learning_rate", "memory", "filters", "held_out")
    return (seeds, *field_options(model, *fields, others=others), schedule)


def output_options(folder: str) -> Callable[[Any], Any]:
    """Return a decorator that adds ``--predictions`` and ``--output``, with a default folder."""
    options = (
        click.option("--predictions", is_flag=True, help="Also write the class probabilities of every image, as CSV."),
        shared.folder_option(folder, help="Folder for results, models, report and pictures."),
    )
    return lambda command: shared.stack_options(command, options)


def run_sweep(runner: Any, folder: Path, *, as_json: bool) -> None:  # noqa: ANN401 - SweepRunner, of either domain
    """Run the missing trainings, then write and print the report."""
    from dataclasses import asdict

    from landprior.domains.imagery.report import summarise, to_markdown, write_report

    try:
        runner.run()
    finally:  # write a report even after a failure or ctrl-C
        found = runner.done()
        if found:
            write_report(folder, found, missing=len(runner.cells()) - len(found))
    lines = summarise(found)
    click.echo(json.dumps([asdict(line) for line in lines], indent=2) if as_json else to_markdown(lines), nl=as_json)
    click.echo(f"report: {folder / 'report.md'}", err=True)
