"""``landprior partial-labels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from landprior.cli import imagery
from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_option, pick_given
from landprior.cli.parameters import INPUT
from landprior.domains.partial.settings import PartialSettings, Sweep

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


class SharesType(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions of click
    """Shares of classes, ``"0:0.1,1:0.1"``."""

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
                self.fail(f"{part!r} is not CLASS:SHARE, as in 0:0.1,1:0.1", param, ctx)
        return shares


@click.command(name="partial-labels", cls=Command)
@imagery.data_options
@grouped(
    "Candidates",
    click.option(
        "--candidates",
        type=INPUT,
        help="Candidate sets of the training images: a CSV (file or item, and candidates 'cat|dog' or a column for "
        "each class) or a .npz (candidates, items by classes).",
    ),
    field_option(Sweep, "negatives"),
    click.option(
        "--thin", type=SharesType(), help="Shares of classes to train on, such as 0:0.1,1:0.1; tests use all."
    ),
)
@grouped(
    "Training",
    field_option(Sweep, "losses", "--loss"),
    field_option(Sweep, "marginals", "--marginal"),
    field_option(Sweep, "batch_sizes", "--batch-size"),
    *imagery.training_options(PartialSettings, paper=True),
)
@imagery.output_options("landprior-partial-labels")
@shared.run_options("device")
@shared.json_option
def command(
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
    thin: dict[str, float] | None,
    predictions: bool,
    output: Path,
    run: Run,
    as_json: bool,
    **training: Any,  # noqa: ANN401 - the options of imagery.training_options
) -> None:
    """Learn the classes of images from candidate sets, or from classes they do not belong to.

    \b
    landprior partial-labels photos/ --candidates sets.csv --classes cat,dog,fox --predictions -o out
    landprior partial-labels mnist.npz --loss rq --loss ce --loss nll-union --loss qr-kl --seeds 3 -o out
    landprior partial-labels mnist.npz --batch-size 256 --batch-size 8 --marginal batch --marginal running -o out
    landprior partial-labels cifar/ --download cifar10 --negatives 1 --negatives 5 -o out
    landprior partial-labels mnist.npz --thin 0:0.1,1:0.1 --batch-size 8 -o out

    Every loss is trained with every marginal, batch size and number of negative labels. Each finished training is a
    line of results.jsonl. If interrupted, rerun the same command to resume. The epoch is chosen on a tenth of the
    training images by their candidate sets, never by true labels.
    """  # noqa: D301
    from landprior.domains.partial.candidates import read_candidates
    from landprior.domains.partial.sweep import SweepRunner
    from landprior.raster.scheme import explain

    if candidates is not None and negatives:
        msg = "--candidates and --negatives are mutually exclusive: sets are either given or drawn"
        raise click.UsageError(msg)
    chosen: dict[str, Any] = {"losses": losses, "marginals": marginals, "batch_sizes": batch_sizes, "thin": thin}
    try:
        sweep = Sweep(
            **{name: value for name, value in chosen.items() if value},
            negatives=() if candidates is not None else negatives or (1,),
            seeds=seeds,
            training=PartialSettings(**pick_given(training)),
        )
    except ValidationError as error:
        raise click.UsageError(explain(error, "the sweep")) from error
    images = imagery.read_data(data, table, classes, download)
    sets = None if candidates is None else read_candidates(candidates, images.train)
    runner = SweepRunner(
        images,
        sweep,
        output,
        candidates=sets,
        run=run,
        predictions=predictions,
    )
    imagery.run_sweep(runner, output, as_json=as_json)
