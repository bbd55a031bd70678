"""``landprior adapt``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import require_as_many
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.cli.training import points_options

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="adapt", cls=Command)
@grouped(
    "Files",
    click.option("--model", type=INPUT, required=True, help="Model written by train."),
    click.option(
        "--image",
        "images",
        type=INPUT,
        multiple=True,
        required=True,
        help="Image under the points; may be repeated.",
    ),
    click.option(
        "--prior", "priors", type=INPUT, multiple=True, required=True, help="Prior of the image, on the same grid."
    ),
    shared.nodata_option,
    click.option("-o", "--output", type=OUTPUT, required=True, help="Adapted model to write, a .safetensors file."),
)
@grouped("Labelled points", *points_options(required=True))
@shared.json_option
@shared.run_options("device", "overwrite")
def command(
    *,
    model: Path,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    points: tuple[Path, ...],
    class_column: str | None,
    layer: str | None,
    output: Path,
    as_json: bool,
    run: Run,
) -> None:
    """Adapt a model to a place with 30 to a few hundred labelled points.

    \b
    landprior sample map.tif --count 100 -o points.gpkg
    (look at each point in QGIS, over imagery, and choose its class in the column "reference")
    landprior adapt --model model.safetensors --image naip.tif --prior prior.tif --points points.gpkg \\
        -o adapted.safetensors
    landprior predict naip.tif --model adapted.safetensors --posterior prior.tif -o better.tif

    A linear classifier on the network's output, the prior and the image is fitted to the points, which takes seconds.
    It begins as the posterior r, and moves away from it as far as points that it has not seen bear out. Printed is the
    accuracy at such points, without and with adapting, and whether more points would pay. Points drawn by landprior
    sample are weighted by the area they represent.

    Do not score the adapted map on the same points: leave them out with evaluate --exclude, or draw new ones.
    """  # noqa: D301
    from landprior.landcover.adaptation.adapt import adapt

    require_as_many("image", images, {"prior": priors})
    report = adapt(
        model, list(zip(images, priors, strict=True)), points, output, column=class_column, layer=layer, run=run
    )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else f"{report.to_text()}\n{output}")
