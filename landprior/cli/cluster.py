"""``landprior cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_option, field_options, pick_given
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.domains.clustering.settings import ClusterSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


FIELDS = (
    "steps",
    "learning_rate",
    "filters",
    "near",
    "far",
    "alpha",
    "beta",
    "gamma",
    "every",
    "jitter",
    "tint",
    "restarts",
    "seed",
)
"""Fields of the settings, and of the settings of the loop in them, that are options."""


LOSSES = ("rq", "qr", "qr-kl")
"""Losses suitable for clustering."""


@click.command(name="cluster", cls=Command)
@click.argument("image", type=INPUT)
@field_option(ClusterSettings, "clusters", "-k")
@click.option("-o", "--output", type=OUTPUT, required=True, help="Map of clusters to write, a Cloud-Optimized GeoTIFF.")
@click.option("--model", type=OUTPUT, help="Model to write.  [default: the map's name with .safetensors]")
@grouped("Training", field_option(ClusterSettings, "loss", choices=LOSSES), *field_options(ClusterSettings, *FIELDS))
@grouped(
    "Map",
    click.option(
        "--blur",
        type=click.IntRange(min=1),
        help="Side of the blur that sharpens the map, pixels; an odd number.  [default: 11]",
    ),
)
@map_options(without=("probabilities",))
@shared.run_options("nodata", "device", "overwrite")
@shared.json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    image: Path,
    output: Path,
    model: Path | None,
    blur: int | None,
    run: Run,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the fields of the settings, and the files of the map
) -> None:
    """Cluster the pixels of IMAGE without any label.

    \b
    landprior cluster naip.tif -k 12 -o clusters.tif
    landprior cluster naip.tif -k 20 --steps 2000 --filters 32 --seed 1 -o clusters.tif
    landprior assign clusters.tif --points labels.csv --scheme enviroatlas-5 -o map.tif

    A network is trained from random weights against its own predictions: pixels should be like those near them, even in
    other light, and all clusters should be used. The probabilities of the clusters (..._probabilities.tif), which
    landprior assign turns into classes, and the model are written beside the map. If interrupted, rerun the same
    command to resume.
    """  # noqa: D301
    import json

    from landprior.domains.clustering.mapping import cluster_image
    from landprior.landcover.mapping.blur import BLUR
    from landprior.raster.scheme import explain

    products = make_map_options(ctx, options)
    loop = {name: options[name] for name in ("loss", "steps", "learning_rate", "seed")}
    own = [name for name in ("clusters", *FIELDS) if name not in loop]
    try:
        settings = ClusterSettings.of(loop, **pick_given({name: options[name] for name in own}))
    except ValidationError as error:
        raise click.UsageError(explain(error, "the clustering")) from error
    found = cluster_image(
        image,
        output,
        settings,
        model=model,
        side=blur or BLUR,
        options=products,
        run=run,
    )
    about = found.record["clustering"]
    if as_json:
        click.echo(json.dumps({"map": str(output), **about}))
        return
    click.echo(str(output))
    share = f"the largest for {about['largest']:.0%} of the pixels"
    click.echo(f"{about['effective']:.1f} of {settings.clusters} clusters are used, {share}")
