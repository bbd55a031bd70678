"""Options that the commands on labelled images share, and what they do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import INPUT, OUTPUT_FOLDER, stack_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from landprior.domains.imagery.images import ImageSplits

_DATA_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("data", type=INPUT, required=False),
    click.option("--table", type=INPUT, help="Of a folder of images: a CSV file,label[,split].  [default: labels.csv]"),
    click.option("--classes", help="Names of the classes, in order, with commas.  [default: those found, sorted]"),
    click.option("--download", type=click.Choice(["mnist", "cifar10"]), help="Download a set into DATA instead."),
)


def data_options(command: Any) -> Any:  # noqa: ANN401 - a decorator
    """Add the argument and the options that say which images; :func:`read_data` takes them."""
    return stack_options(command, _DATA_OPTIONS)


def read_data(data: Path | None, table: Path | None, classes: str | None, download: str | None) -> ImageSplits:
    """Read or download the images.

    Raises
    ------
    click.UsageError
        If it is not said which, or options contradict each other.
    """
    from landprior.domains.imagery.downloads import download_images
    from landprior.domains.imagery.images import read_images

    if data is None:
        msg = "DATA is missing: a .npz, or a folder of IDX or CIFAR files or of images with a CSV"
        raise click.UsageError(msg)
    if download is None:
        names = None if classes is None else [name.strip() for name in classes.split(",")]
        return read_images(data, table=table, classes=names)
    if table is not None or classes is not None:
        msg = "--download cannot be used with --table and --classes; the set has its own labels"
        raise click.UsageError(msg)
    from landprior.sources.http.cache import Cache
    from landprior.sources.http.client import Network

    return download_images(download, data, Network(Cache()))  # type: ignore[arg-type]  # click has checked it


def training_options(*, epochs: int, paper: str = "") -> Callable[[Any], Any]:
    """Return a decorator that adds the options of a training; :func:`pick_settings` takes what they give.

    Parameters
    ----------
    epochs
        The default, for the help.
    paper
        What the help says of the paper's.
    """
    rate = "; paper 1e-4" if paper else ""
    options = (
        click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each."),
        click.option("--epochs", type=click.IntRange(min=1), help=f"[default: {epochs}{paper}]"),
        click.option(
            "--learning-rate",
            type=click.FloatRange(min=0, min_open=True),
            help=f"[default: 0.002 for 256 images a step, for fewer less by the square root{rate}]",
        ),
        click.option(
            "--schedule", type=click.Choice(["cosine", "constant"]), help="Of the learning rate.  [default: cosine]"
        ),
        click.option("--memory", type=click.FloatRange(min=1), help="Items a running mean remembers.  [default: 256]"),
        click.option("--filters", type=click.IntRange(min=1), help="Width of the network.  [default: 34]"),
        click.option(
            "--held-out",
            type=click.FloatRange(0, 0.9, min_open=True),
            help="Share that chooses the epoch.  [default: 0.1]",
        ),
    )
    return lambda command: stack_options(command, options)


def pick_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the settings that were given."""
    return {name: value for name, value in given.items() if value is not None}


def output_options(folder: str) -> Callable[[Any], Any]:
    """Return a decorator that adds ``--predictions`` and ``--output``, with a default folder."""
    options = (
        click.option("--predictions", is_flag=True, help="Also write the probabilities of every image, as CSV."),
        click.option(
            "-o",
            "--output",
            type=OUTPUT_FOLDER,
            default=Path(folder),
            show_default=True,
            help="Folder of results, models, report, pictures.",
        ),
    )
    return lambda command: stack_options(command, options)


def run_sweep(runner: Any, folder: Path, *, as_json: bool) -> None:  # noqa: ANN401 - SweepRunner, of either domain
    """Train what is missing, write the report, print it."""
    from dataclasses import asdict

    from landprior.domains.imagery.report import summarise, to_markdown, write_report

    try:
        runner.run()
    finally:  # after a failure or ctrl-C there is a report of what is done
        found = runner.done()
        if found:
            write_report(folder, found, missing=len(runner.cells()) - len(found))
    lines = summarise(found)
    click.echo(json.dumps([asdict(line) for line in lines], indent=2) if as_json else to_markdown(lines), nl=as_json)
    click.echo(f"report: {folder / 'report.md'}", err=True)
