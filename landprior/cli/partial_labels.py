"""``landprior partial-labels``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import INPUT, device_option, json_option, show_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from landprior.domains.imagery.images import ImageSplits

LOSSES = ["rq", "qr-kl", "nll-union", "ce"]
MARGINALS = ["batch", "running", "uniform"]


class SharesType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Classes with shares, ``"0:0.1,1:0.1"``."""

    name = "class:share,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:  # noqa: ANN401
        """Parse the text."""
        if isinstance(value, dict):
            return value
        shares: dict[str, float] = {}
        for part in value.split(","):
            name, colon, share = part.rpartition(":")
            try:
                shares[name.strip()] = float(share)
            except ValueError:
                colon = ""
            if not colon:
                self.fail(f"{part!r} is no CLASS:SHARE, as in 0:0.1,1:0.1", param, ctx)
        return shares


_DATA_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("data", type=INPUT, required=False),
    click.option("--table", type=INPUT, help="Of a folder of images: a CSV file,label[,split].  [default: labels.csv]"),
    click.option("--classes", help="Names of the classes, in order, with commas.  [default: those found, sorted]"),
    click.option("--download", type=click.Choice(["mnist", "cifar10"]), help="Download a set into DATA instead."),
)


def data_options(command: Any) -> Any:  # noqa: ANN401 - a decorator
    """Add the argument and the options that say which images; :func:`read_data` takes them."""
    for option in reversed(_DATA_OPTIONS):
        command = option(command)
    return command


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
        msg = "--download does not go with --table and --classes; the set has its own labels"
        raise click.UsageError(msg)
    from landprior.sources.cache import Cache
    from landprior.sources.network import Network

    return download_images(download, data, Network(Cache()))  # type: ignore[arg-type]  # click has checked it


@click.command(name="partial-labels")
@data_options
@click.option(
    "--candidates",
    type=INPUT,
    help="Candidate sets of the training images: a CSV (file or item, and candidates 'cat|dog' or a column a class) or "
    "a .npz (candidates, items by classes).",
)
@click.option(
    "--negatives",
    type=click.IntRange(min=1),
    multiple=True,
    help="Instead of them, draw so many wrong classes an image, from true labels; may repeat.  [default: 1]",
)
@click.option("--loss", "losses", type=click.Choice(LOSSES), multiple=True, help="May repeat.  [default: rq]")
@click.option(
    "--marginal",
    "marginals",
    type=click.Choice(MARGINALS),
    multiple=True,
    help="What rq and qr-kl divide q by: its mean over the batch, a running mean, a constant; may repeat.  "
    "[default: batch]",
)
@click.option(
    "--batch-size", "batch_sizes", type=click.IntRange(min=1), multiple=True, help="May repeat.  [default: 256]"
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: 16; paper 300]")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="[default: 0.002 for 256 images a step, for fewer less by the square root; paper 1e-4]",
)
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), help="Of the learning rate.  [default: cosine]")
@click.option("--memory", type=click.FloatRange(min=1), help="Items a running mean remembers.  [default: 256]")
@click.option("--filters", type=click.IntRange(min=1), help="Width of the network.  [default: 34]")
@click.option(
    "--held-out", type=click.FloatRange(0, 0.9, min_open=True), help="Share that chooses the epoch.  [default: 0.1]"
)
@click.option("--thin", type=SharesType(), help="Shares of classes to train with, as 0:0.1,1:0.1; tests have all.")
@click.option("--predictions", is_flag=True, help="Also write the probabilities of every image, as CSV.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("landprior-partial-labels"),
    show_default=True,
    help="Folder of results, models, report, pictures.",
)
@device_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    data: Path | None,
    table: Path | None,
    classes: str | None,
    download: str | None,
    candidates: Path | None,
    negatives: tuple[int, ...],
    losses: tuple[str, ...],
    marginals: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    seeds: int,
    epochs: int | None,
    learning_rate: float | None,
    schedule: str | None,
    memory: float | None,
    filters: int | None,
    held_out: float | None,
    thin: dict[str, float] | None,
    predictions: bool,
    output: Path,
    device: str,
    as_json: bool,
) -> None:
    """Learn classes of images of which only candidate sets, or classes they are not, are known.

    \b
    landprior partial-labels photos/ --candidates sets.csv --classes cat,dog,fox --predictions -o out
    landprior partial-labels mnist.npz --loss rq --loss ce --loss nll-union --loss qr-kl --seeds 3 -o out
    landprior partial-labels mnist.npz --batch-size 256 --batch-size 8 --marginal batch --marginal running -o out
    landprior partial-labels cifar/ --download cifar10 --negatives 1 --negatives 5 -o out
    landprior partial-labels mnist.npz --thin 0:0.1,1:0.1 --batch-size 8 -o out

    Every loss is trained with every marginal, batch size and number of negative labels. Finished trainings are
    lines of results.jsonl, and the same command after an interruption goes on. The epoch is chosen on a tenth of
    the training images by their candidate sets, never by true labels.
    """  # noqa: D301
    from pydantic import ValidationError

    from landprior.domains.partial.candidates import read_candidates
    from landprior.domains.partial.sweep import Sweep, SweepRunner
    from landprior.domains.partial.training import PartialSettings
    from landprior.raster.scheme import explain

    if candidates is not None and negatives:
        msg = "--candidates and --negatives exclude each other: sets are given or drawn"
        raise click.UsageError(msg)
    changes = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "memory": memory,
        "filters": filters,
        "held_out": held_out,
    }
    chosen: dict[str, Any] = {"losses": losses, "marginals": marginals, "batch_sizes": batch_sizes, "thin": thin}
    try:
        sweep = Sweep(
            **{name: value for name, value in chosen.items() if value},
            negatives=() if candidates is not None else negatives or (1,),
            seeds=seeds,
            training=PartialSettings(**{name: value for name, value in changes.items() if value is not None}),
        )
    except ValidationError as error:
        raise click.UsageError(explain(error, "the sweep")) from error
    images = read_data(data, table, classes, download)
    sets = None if candidates is None else read_candidates(candidates, images.train)
    runner = SweepRunner(
        images,
        sweep,
        output,
        candidates=sets,
        device=device,
        progress=show_progress(ctx),
        predictions=predictions,
    )
    run_sweep(runner, output, as_json=as_json)


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
