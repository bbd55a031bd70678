"""``landprior run``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from landprior.cli.options import (
    INPUT,
    device_option,
    json_option,
    label_map_option,
    overwrite_option,
    scheme_option,
    show_progress,
    tile_option,
    workspace_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme


@click.command(name="run")
@click.option(
    "--city", required=True, help="A preset (pittsburgh, durham, austin, phoenix) or a folder of the workspace."
)
@tile_option
@scheme_option(help="Classes, if the city is no preset.")
@click.option("--cooccurrence", type=INPUT, help="P(class | NLCD code), instead of the shipped default.")
@click.option("--filters", type=click.IntRange(min=1), help="Width of the network; fewer is faster.  [default: 32]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same maps.")
@click.option(
    "--maps",
    type=click.Choice(["r", "q"]),
    default="r",
    show_default=True,
    help="Map the posterior r or the network's q.",
)
@click.option("--quicklook", is_flag=True, help="Also write prediction.png.")
@label_map_option
@device_option
@json_option
@workspace_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    city: str,
    tiles: tuple[str, ...],
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    filters: int | None,
    seed: int,
    maps: str,
    quicklook: bool,
    label_map: dict[int, int] | None,
    device: str,
    as_json: bool,
    workspace: Path,
    overwrite: bool,
) -> None:
    """Run the whole chain for the tiles of a city: prior, model, map, scores.

    \b
    landprior run --city pittsburgh
    landprior run --city mytown --scheme chesapeake-4 --data /data/landprior

    A tile is a folder <workspace>/<city>/<tile>/ with naip.tif and nlcd.tif, and, where you have them,
    roads.tif, buildings.tif, waterways.tif, waterbodies.tif and labels.tif (for scores only). What is done
    and current is skipped; item.json in each folder says what was made from what.
    """  # noqa: D301
    from landprior.landcover.pipeline import PipelineSettings, Workspace, run_workspace
    from landprior.landcover.prediction import Products
    from landprior.landcover.training import TileSettings

    base = TileSettings()
    training = base.model_copy(
        update={
            "training": base.training.model_copy(update={"seed": seed}),
            "filters": filters or base.filters,
        }
    )
    settings = PipelineSettings.for_city(
        city,
        scheme=scheme,
        cooccurrence=cooccurrence,
        training=training,
        posterior=maps == "r",
        label_map=label_map or {},
    )
    paths, scores = run_workspace(
        Workspace(workspace),
        city,
        settings,
        only=tiles,
        products=Products(quicklook=quicklook),
        device=device,
        overwrite=overwrite,
        progress=show_progress(ctx),
    )
    if as_json:
        click.echo(json.dumps({"maps": [str(path) for path in paths], "scores": scores and scores.to_dict()}, indent=2))
        return
    for path in paths:
        click.echo(str(path))
    if scores is not None:
        click.echo(scores.to_text())
