"""``landprior sieve``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="sieve", cls=Command)
@click.argument("map_path", metavar="MAP", type=INPUT)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Map to write.")
@click.option(
    "--minimum-area",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="M2",
    help="Smallest patch to keep (minimum mapping unit), in square metres on the ground.",
)
@shared.choice_option(
    "--connect",
    choices=["4", "8"],
    default="4",
    help="Whether pixels that only touch at a corner belong to one patch (8) or not (4).",
)
@shared.scheme_option(help="Classes of the map, if its tags do not have them.")
@shared.band_option("the map", "--band", "--map-band")
@map_options(without=("probabilities", "encoding", "confidence"))
@shared.run_options("overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    map_path: Path,
    output: Path,
    minimum_area: float,
    connect: str,
    scheme: ClassScheme | None,
    map_band: int | None,
    run: Run,
    **options: Any,  # noqa: ANN401 - the files of the map
) -> None:
    """Remove small patches of MAP: they take the class of their largest neighbour.

    \b
    landprior sieve map.tif --minimum-area 100 -o clean.tif
    landprior sieve map.tif --minimum-area 400 --connect 8 -o clean.tif

    Patches that touch one that is large enough come first, then those that touch these, and so on. Maps of any size are
    read strip by strip; the result is that of the whole map.
    """  # noqa: D301
    from landprior.landcover.assessment.scores import scheme_of_map
    from landprior.landcover.mapping.sieve import sieve
    from landprior.raster.names import with_band

    sieve(
        with_band(map_path, map_band),
        output,
        scheme or scheme_of_map(map_path),
        minimum_area=minimum_area,
        connectivity=8 if connect == "8" else 4,
        options=make_map_options(ctx, options),
        run=run,
    )
    click.echo(str(output))
