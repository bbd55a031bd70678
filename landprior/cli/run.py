"""``landprior run``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import (
    INPUT,
    area_options,
    device_option,
    json_option,
    label_map_option,
    learned_option,
    overwrite_option,
    recipe_option,
    scheme_option,
    show_progress,
    source_options,
    starts_option,
    tile_option,
    training_settings,
    workspace_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme


@click.command(name="run")
@click.option("--city", help="A preset (pittsburgh, durham, austin, phoenix) or a folder of the workspace.")
@area_options
@tile_option
@scheme_option(help="Classes, if the city is no preset.")
@click.option("--cooccurrence", type=INPUT, help="P(class | NLCD code), instead of the shipped default.")
@learned_option
@click.option("--filters", type=click.IntRange(min=1), help="Width of the network; fewer is faster.  [default: 32]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same maps.")
@recipe_option
@starts_option
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
@source_options
@json_option
@workspace_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    city: str | None,
    tiles: tuple[str, ...],
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    learned: Path | None,
    filters: int | None,
    seed: int,
    recipe: str,
    starts: int | None,
    maps: str,
    quicklook: bool,
    label_map: dict[int, int] | None,
    device: str,
    as_json: bool,
    workspace: Path,
    overwrite: bool,
    **options: Any,  # noqa: ANN401 - the shared options of places and sources
) -> None:
    """Run the whole chain for a place: fetch, prior, model, map, scores.

    \b
    landprior run --city pittsburgh
    landprior run --place "Ithaca, NY" --scheme enviroatlas-5
    landprior run --city mytown --scheme chesapeake-4 --data /data/landprior

    A place that has no tiles in the workspace yet is fetched first (see 'landprior fetch --help' for the
    options of places and sources). A tile is a folder <workspace>/<city>/<tile>/ with naip.tif and nlcd.tif,
    and, where there are, roads.tif, buildings.tif, waterways.tif, waterbodies.tif and labels.tif (for scores
    only); it may be filled by hand. What is done and current is skipped; item.json in each folder says what
    was made from what.
    """  # noqa: D301
    from landprior.cli.fetch import make_network, make_plan
    from landprior.landcover.acquisition import fetch
    from landprior.landcover.pipeline import PipelineSettings, Workspace, run_workspace
    from landprior.landcover.prediction import Products

    training = training_settings(recipe, seed=seed, filters=filters, starts=starts)
    model = None
    if learned is not None:
        from landprior.landcover.model import load_model

        model = load_model(learned)
    network = make_network(options)
    if city is None or to_be_fetched(workspace, city):
        plan, fetch_settings, place = make_plan(
            network, workspace, city=city, scheme=scheme, label_map=label_map, options=options
        )
        fetch(plan, place, fetch_settings, network, progress=show_progress(ctx))
        city = city or plan.area.name
    settings = PipelineSettings.for_city(
        city,
        scheme=scheme,
        cooccurrence=cooccurrence,
        training=training,
        learned=model,
        device=device,
        posterior=maps == "r",
        # fetch has put the labels into the scheme's own codes already
        label_map={} if options["labels"] else label_map or {},
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


def to_be_fetched(workspace: Path, city: str) -> bool:
    """Say whether a city is a preset that was not filled by hand: not there yet, or made by fetch (which resumes)."""
    from pathlib import Path

    from landprior.landcover.workspace import TileFolder
    from landprior.sources.areas import list_cities

    name = Path(city).stem if city.endswith((".yaml", ".yml")) else city
    if name == city and name not in list_cities():
        return False
    images = list((workspace / name).glob("*/naip.tif"))
    return not images or any("naip" in TileFolder(path=path.parent, city=name).steps() for path in images)
