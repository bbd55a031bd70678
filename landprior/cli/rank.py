"""``landprior rank``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import imagery
from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_option, pick_given
from landprior.cli.parameters import INPUT
from landprior.domains.ranks.settings import RankSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="rank", cls=Command)
@imagery.data_options
@grouped(
    "Pairs",
    click.option(
        "--pairs",
        type=INPUT,
        help="CSV first,second[,relation] of images to train with, by name or position; relation is >= (by default), "
        ">, =, < or <=.",
    ),
    click.option(
        "--draw",
        type=click.IntRange(min=2),
        help="Number of pairs to draw from true ranks.  [default: one per image]",
    ),
    field_option(RankSettings, "ties"),
)
@grouped(
    "Training",
    field_option(RankSettings, "marginal", "--marginal", "marginals", multiple=True),
    field_option(RankSettings, "denominators"),
    field_option(RankSettings, "fit", "--fit", "fits", multiple=True),
    field_option(RankSettings, "batch_size", "--batch-size", "batch_sizes", multiple=True),
    *imagery.training_options(RankSettings),
)
@imagery.output_options("landprior-rank")
@shared.run_options("device")
@shared.json_option
def command(
    *,
    data: Path | None,
    table: Path | None,
    classes: str | None,
    download: str | None,
    pairs: Path | None,
    draw: int | None,
    ties: str | None,
    marginals: tuple[str, ...],
    denominators: str | None,
    fits: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    seeds: int,
    predictions: bool,
    output: Path,
    run: Run,
    as_json: bool,
    **training: Any,  # noqa: ANN401 - the options of imagery.training_options
) -> None:
    """Learn ordered classes of images from pairwise comparisons: which of two ranks at least as high.

    \b
    landprior rank photos/ --classes young,adult,old --pairs pairs.csv --predictions -o out
    landprior rank mnist.npz --seeds 3 -o out
    landprior rank mnist.npz --fit marginals --fit joint --ties half -o out
    landprior rank mnist/ --download mnist --batch-size 8 --marginal batch --marginal running -o out

    The classes are ranks in ascending order, as --classes lists them. Without --pairs, pairs are drawn from true
    ranks; the same seed gives the same pairs. The epoch is chosen on held-out pairs. Each finished training is a line
    of results.jsonl. If interrupted, rerun the same command to resume. If test images have true ranks, confusion
    matrices over time are drawn.
    """  # noqa: D301
    from landprior.domains.ranks.figures import write_confusions
    from landprior.domains.ranks.pairs import read_pairs
    from landprior.domains.ranks.training import RankRunner

    if pairs is not None and draw is not None:
        msg = "--pairs and --draw are mutually exclusive: pairs are either given or drawn"
        raise click.UsageError(msg)
    changes = {"pairs": draw, "ties": ties, "denominators": denominators, **training}
    images = imagery.read_data(data, table, classes, download)
    varied: dict[str, Any] = {"fits": fits, "marginals": marginals, "batch_sizes": batch_sizes}
    runner = RankRunner(
        images,
        RankSettings(**pick_given(changes)),
        output,
        **{name: value for name, value in varied.items() if value},
        seeds=seeds,
        pairs=None if pairs is None else read_pairs(pairs, images.train),
        run=run,
        predictions=predictions,
    )
    imagery.run_sweep(runner, output, as_json=as_json)
    write_confusions(output, runner.done(), images.train.classes)
