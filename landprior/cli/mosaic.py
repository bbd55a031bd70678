"""``landprior mosaic``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="mosaic", cls=Command)
@click.argument("plan", type=INPUT)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Map of all tiles to write.")
@click.option("--crs", help="Coordinate reference system of the map, such as EPSG:5070.  [default: that of most tiles]")
@click.option(
    "--pixel-size",
    type=click.FloatRange(min=0, min_open=True),
    help="Metres per pixel on the ground, whatever the units of --crs.  [default: that of the tiles]",
)
@click.option("--partial", is_flag=True, help="Join the finished tiles, even if others are not.")
@map_options(without=("probabilities", "encoding", "confidence"))
@shared.run_options("overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    plan: Path,
    output: Path,
    crs: str | None,
    pixel_size: float | None,
    partial: bool,
    run: Run,
    **options: Any,  # noqa: ANN401 - the files of the map
) -> None:
    """Join the maps of a PLAN into one Cloud-Optimized GeoTIFF.

    \b
    landprior mosaic plan.json -o county.tif
    landprior mosaic plan.json -o conus.tif --crs EPSG:5070 --pixel-size 1 --partial

    Where tiles overlap, a pixel comes from the tile whose own ground contains it, not from the margin of another.
    The result does not depend on which tile was finished first.
    """  # noqa: D301
    from landprior.batch.mosaic import join_maps
    from landprior.batch.plans import read_plan
    from landprior.batch.states import find_tile, read_states
    from landprior.errors import InputError

    found = read_plan(plan)
    states = read_states(found)
    done = [state.name for state in states if state.state == "done"]
    if len(done) < len(states) and not partial:
        msg = (
            f"{len(states) - len(done)} of {len(states)} tiles are not done (landprior status {plan}); "
            "finish them with landprior run, or give --partial"
        )
        raise InputError(msg)
    tiles = [find_tile(found, name) for name in done]
    path = join_maps(
        tiles,
        output,
        found.recipe.scheme,
        crs=crs,
        pixel=pixel_size,
        options=make_map_options(ctx, options),
        run=run,
    )
    click.echo(str(path))
