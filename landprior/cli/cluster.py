"""``landprior cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli.options import (
    INPUT,
    OUTPUT,
    device_option,
    json_option,
    nodata_option,
    overwrite_option,
    show_progress,
)
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path


@click.command(name="cluster")
@click.argument("image", type=INPUT)
@click.option("-k", "clusters", type=click.IntRange(2, 64), default=12, show_default=True, help="Number of clusters.")
@click.option("-o", "--output", type=OUTPUT, required=True, help="The map of clusters to write (COG).")
@click.option("--model", type=OUTPUT, help="Where the model goes.  [default: beside the map, .safetensors]")
@click.option(
    "--loss", type=click.Choice(["rq", "qr", "qr-kl"]), default="qr", show_default=True, help="What is minimised."
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.  [default: 1000]")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="[default: 0.001]")
@click.option("--filters", type=click.IntRange(min=1), help="Width of the network.  [default: 16]")
@click.option("--near", type=click.IntRange(min=1), help="Side of the small neighbourhood, px.  [default: 5]")
@click.option("--far", type=click.IntRange(min=1), help="Side of the large neighbourhood, px.  [default: 50]")
@click.option("--alpha", type=float, help="How much a pixel is like the small neighbourhood.  [default: 0.5]")
@click.option("--beta", type=float, help="The same for the large one; below 0: unlike it.  [default: 0.5]")
@click.option("--gamma", type=click.FloatRange(min=0), help="How much rare clusters are favoured.  [default: 1]")
@click.option("--every", type=click.IntRange(min=0), help="Steps between estimates of alpha, beta.  [default: never]")
@click.option("--jitter", type=click.FloatRange(min=0), help="Brightness to overlook besides.  [default: 0]")
@click.option("--tint", type=click.FloatRange(min=0), help="Share of the colours to overlook.  [default: 0.25]")
@click.option("--blur", type=click.IntRange(min=1), help="Side of the sharpening blur, px, odd.  [default: 11]")
@click.option("--restarts", type=click.IntRange(min=0), help="If clusters degenerate.  [default: 2]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same clusters.")
@nodata_option
@device_option
@json_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    image: Path,
    clusters: int,
    output: Path,
    model: Path | None,
    loss: str,
    steps: int | None,
    learning_rate: float | None,
    filters: int | None,
    near: int | None,
    far: int | None,
    alpha: float | None,
    beta: float | None,
    gamma: float | None,
    every: int | None,
    jitter: float | None,
    tint: float | None,
    blur: int | None,
    restarts: int | None,
    seed: int,
    nodata: float | None,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Cluster the pixels of IMAGE without any label.

    \b
    landprior cluster naip.tif -k 12 -o clusters.tif
    landprior cluster naip.tif -k 20 --steps 2000 --filters 32 --seed 1 -o clusters.tif
    landprior assign clusters.tif --points labels.csv --scheme enviroatlas-5 -o map.tif

    A network is trained from random weights against its own predictions: pixels are like those near them, seen in other
    light, and all clusters are used. Beside the map come the probabilities of the clusters (..._probabilities.tif),
    which landprior assign turns into classes, and the model. Give the same command again after an interruption.
    """  # noqa: D301
    import json

    from pydantic import ValidationError

    from landprior.domains.clustering.mapping import cluster_image
    from landprior.domains.clustering.settings import ClusterSettings
    from landprior.landcover.mapping.blur import BLUR
    from landprior.raster.scheme import explain

    own = {
        "clusters": clusters,
        "filters": filters,
        "near": near,
        "far": far,
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "every": every,
        "jitter": jitter,
        "tint": tint,
        "restarts": restarts,
    }
    loop = {"loss": loss, "steps": steps, "learning_rate": learning_rate, "seed": seed}
    try:
        settings = ClusterSettings.of(loop, **{name: value for name, value in own.items() if value is not None})
    except ValidationError as error:
        raise click.UsageError(explain(error, "the clustering")) from error
    found = cluster_image(
        image,
        output,
        settings,
        model=model,
        side=blur or BLUR,
        run=Run(nodata=nodata, device=device, overwrite=overwrite, progress=show_progress(ctx)),
    )
    about = found.record["clustering"]
    if as_json:
        click.echo(json.dumps({"map": str(output), **about}))
        return
    click.echo(str(output))
    share = f"the largest for {about['largest']:.0%} of the pixels"
    click.echo(f"{about['effective']:.1f} of {clusters} clusters are used, {share}")
