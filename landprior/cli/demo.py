"""``landprior demo``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.command import Command

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="demo", cls=Command)
@shared.folder_option("landprior-demo", help="Folder for the results, a workspace.")
@click.option("--size", type=click.IntRange(min=128), default=768, show_default=True, help="Side of the scene, metres.")
@shared.seed_option(help="Random seed of the scene and the training.")
@click.option(
    "--filters",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Channels of the network's inner layers; fewer are faster.",
)
@shared.run_options("device", "overwrite")
@shared.json_option
def command(
    *,
    output: Path,
    size: int,
    seed: int,
    filters: int,
    run: Run,
    as_json: bool,
) -> None:
    """Show the whole chain on a synthetic scene: no network, no data, a few minutes on two cores.

    \b
    landprior demo
    landprior demo --seed 3 -o /tmp/demo

    It makes a synthetic place with known true classes, turns its NLCD-like codes and OSM-like layers into a prior,
    trains on the prior only, with cross-entropy and with QR, and scores both maps on the truth.
    """  # noqa: D301
    from landprior.landcover.synthetic.demo import run_demo

    started = time.monotonic()
    result = run_demo(
        output,
        size=size,
        seed=seed,
        filters=filters,
        run=run,
    )
    seconds = time.monotonic() - started
    if as_json:
        scores = {name: score.to_dict() for name, score in result.scores.items()}
        click.echo(
            json.dumps(
                {"scores": scores, "map": str(result.map), "figure": str(result.figure), "seconds": seconds}, indent=2
            )
        )
        return
    click.echo(result.to_text())
    click.echo("")
    click.echo(f"map:     {result.map}")
    click.echo(f"picture: {result.figure}")
    click.echo(f"took {seconds:.0f} s; next: landprior build-prior --help")
