"""``landprior assign``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command, grouped
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="assign", cls=Command)
@click.argument("clusters", type=INPUT)
@grouped(
    "Labels",
    click.option(
        "--points", type=INPUT, help="Labelled points: a CSV with x,y,class or row,col,class, or any vector format."
    ),
    click.option("--labels", type=INPUT, help="Raster of 1 m labels, to draw points from and to score the rest on."),
    shared.band_option("the labels", "--band", "--labels-band"),
    shared.layer_option,
    shared.label_map_option,
    shared.scheme_option(help="Classes of the points: a shipped name or your own YAML file.  [default: enviroatlas-5]"),
)
@grouped(
    "Accuracy by repeated draws",
    click.option(
        "--draws",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        help="Number of draws to measure the accuracy with; 0 measures none.",
    ),
    click.option(
        "--train-points",
        type=click.IntRange(min=1),
        help="Number of points in a draw.  [default: 400 of --labels; four fifths of --points]",
    ),
    shared.seed_option(help="Random seed; the same seed gives the same draws."),
)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Map of classes to write, a Cloud-Optimized GeoTIFF.")
@map_options(without=("confidence",))
@shared.json_option
@shared.run_options("overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    clusters: Path,
    points: Path | None,
    labels: Path | None,
    labels_band: int | None,
    layer: str | None,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    output: Path,
    draws: int,
    train_points: int | None,
    seed: int,
    as_json: bool,
    run: Run,
    **options: Any,  # noqa: ANN401 - the files of the map
) -> None:
    """Turn CLUSTERS of landprior cluster into classes, with a few labelled points.

    \b
    landprior assign clusters.tif --points labels.csv --scheme enviroatlas-5 -o map.tif
    landprior assign clusters.tif --labels labels.tif --train-points 400 --draws 50 --scheme chesapeake-4 -o map.tif

    CLUSTERS are the probabilities, or the map beside them. A line of the CSV is a place (x,y in the raster's
    coordinates, or row,col in pixels from 0) and a class, by code or name. The accuracy is measured by repeated draws:
    from --labels, scored on all other pixels, or from the points, scored on the other points.
    """  # noqa: D301
    import json

    from landprior.domains.clustering.classes import assign_classes
    from landprior.raster.names import with_band
    from landprior.raster.scheme import load_scheme
    from landprior.sources.vectors import with_layer

    if points is None and labels is None:
        msg = "give --points with labelled points, or --labels with a labelled raster to draw them from"
        raise click.UsageError(msg)
    if points is None:
        refuse_options(ctx, "points, only with --points", "layer")
    found = assign_classes(
        clusters,
        output,
        scheme=scheme or load_scheme("enviroatlas-5"),
        points=None if points is None else with_layer(points, layer),
        labels=None if labels is None else with_band(labels, labels_band),
        label_map=label_map,
        draws=draws,
        train_points=train_points,
        seed=seed,
        options=make_map_options(ctx, options),
        run=run,
    )
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    click.echo(str(found.path))
    click.echo(found.assignment.to_text())
    if found.accuracy is not None:
        click.echo(found.accuracy.to_text())
