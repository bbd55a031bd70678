"""``landprior sample``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)


@click.command(name="sample", cls=Command)
@click.argument("map_path", metavar="MAP", type=INPUT)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Points to write, a .gpkg file.")
@shared.choice_option(
    "--for",
    "purpose",
    choices=["evaluate", "adapt"],
    default="evaluate",
    help="What the points are for: a random sample to evaluate the map, or those that help to adapt the model most.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=4),
    help="Total number of points.  [default: 300, with --for adapt 20]",
)
@click.option(
    "--known",
    type=INPUT,
    multiple=True,
    help="Points that are labelled already, from which those of --for adapt lie away; may be repeated.",
)
@shared.choice_option(
    "--allocation",
    choices=["balanced", "proportional", "equal"],
    default="balanced",
    help="Points per class: in proportion to its area but at least --least, in proportion only, or equal.",
)
@click.option(
    "--least",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Minimum number of points per class, for the balanced allocation.",
)
@shared.seed_option(help="Random seed; the same seed gives the same points.")
@shared.scheme_option(help="Classes of the map, if its tags do not have them.")
@shared.band_option("the map", "--band", "--map-band")
@shared.overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    map_path: Path,
    output: Path,
    purpose: str,
    count: int | None,
    known: tuple[Path, ...],
    allocation: str,
    least: int,
    seed: int,
    scheme: ClassScheme | None,
    map_band: int | None,
    overwrite: bool,
) -> None:
    """Draw points of MAP to interpret, for an unbiased accuracy without complete labels.

    \b
    landprior sample map.tif -o points.gpkg
    landprior sample map.tif --count 640 --allocation balanced -o points.gpkg
    (look at each point in QGIS, over imagery, and choose its class in the column "reference")
    landprior evaluate map.tif points.gpkg
    landprior sample map.tif --for adapt --count 20 --known points.gpkg -o more.gpkg

    The points are a stratified random sample with the map's classes as strata. A QGIS style beside the file has
    a list of the classes to choose from; the map's own class is hidden. Leave points empty if you cannot tell their
    class.

    With --for adapt they are proposed where the probabilities of the map (predict --probabilities) are closest to a
    tie, over all its classes. Such points are no random sample, and evaluate refuses them.
    """  # noqa: D301
    from landprior.landcover.assessment.sampling import draw_sample, write_sample
    from landprior.landcover.assessment.scores import scheme_of_map
    from landprior.raster.names import with_band
    from landprior.raster.outputs import check_apart, check_output

    inputs = [map_path, *known]
    check_output(output, overwrite=overwrite, inputs=inputs, kind="vector")
    check_apart([output, output.with_suffix(".qml")], inputs)
    scheme = scheme or scheme_of_map(map_path)
    if purpose == "adapt":
        from landprior.landcover.adaptation.proposals import propose_points

        refuse_options(ctx, "--for adapt", "allocation", "least", "map_band")
        progress = shared.show_progress(ctx)
        found = propose_points(map_path, scheme, count=count or 20, known=known, seed=seed, progress=progress)
        write_sample(found, output, scheme, overwrite=overwrite)
        click.echo(str(output))
        return
    refuse_options(ctx, "a random sample, only with --for adapt", "known")
    map_path = with_band(map_path, map_band)
    sample = draw_sample(
        map_path,
        scheme,
        count=count or 300,
        allocation=allocation,  # type: ignore[arg-type]  # click.Choice gave one of them
        least=least,
        seed=seed,
        progress=shared.show_progress(ctx),
    )
    write_sample(sample, output, scheme, overwrite=overwrite)
    drawn = sample["stratum"].value_counts()
    width = max(len(name) for name in scheme.names)
    for c in scheme.classes:
        logger.info("%-*s %5d points", width, c.name, drawn.get(c.code, 0))
    click.echo(str(output))
