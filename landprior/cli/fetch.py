"""``landprior fetch``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT
from landprior.cli.places import FORMER_SOURCES, fetch_place_options, make_network, make_plan, source_options

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run

DATASETS = ("enviroatlas", "chesapeake")


@click.command(name="fetch", cls=Command, former=FORMER_SOURCES)
@fetch_place_options
@source_options
@grouped(
    "Reference labels",
    shared.scheme_option(help="Classes of --reference, if the place is not a preset."),
    shared.label_map_option,
)
@grouped(
    "Published data sets",
    click.option(
        "--dataset",
        type=click.Choice(DATASETS),
        help="Published data set to fetch, in torchgeo's layout, instead of a place.",
    ),
    click.option("--root", type=INPUT, help="Folder of the published data set.  [default: <workspace>/<dataset>]"),
)
@click.option("--dry-run", is_flag=True, help="Show tiles, years, sizes and sources; queries only the catalogue.")
@shared.json_option
@shared.run_options("overwrite")
def command(
    *,
    city: str | None,
    dry_run: bool,
    dataset: str | None,
    root: Path | None,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    as_json: bool,
    workspace: Path,
    run: Run,
    **options: Any,  # noqa: ANN401 - the shared options of places and sources
) -> None:
    """Fetch imagery, NLCD, OpenStreetMap and buildings of a place in the United States.

    \b
    landprior fetch --city pittsburgh --year 2010
    landprior fetch --bbox -76.52,42.42,-76.46,42.46 --name ithaca --dry-run
    landprior fetch --place "Ithaca, NY" --osm new-york.osm.pbf
    landprior fetch --aoi parcels.geojson --naip ~/naip --nlcd nlcd_2021.tif --buildings footprints.fgb

    Fills <workspace>/<place>/<tile>/ with naip.tif, nlcd.tif, roads.tif, waterways.tif, waterbodies.tif and
    buildings.tif on one grid (the image's UTM zone, 1 m), one folder per NAIP quarter quad, ready for
    'landprior run --city PLACE'. Layers that are current are skipped: after an interruption or an error, rerun the
    same command to resume. Downloads are kept in a cache (landprior cache info).
    """  # noqa: D301
    from landprior.landcover.workspace.acquisition import fetch
    from landprior.landcover.workspace.city import find_city

    network = make_network(options)
    if dataset is not None:
        from landprior.sources.datasets import fetch_dataset

        folder = fetch_dataset(dataset, root or workspace / dataset, network)
        click.echo(json.dumps({"root": str(folder)}) if as_json else str(folder))
        return
    ref = None if city is None else find_city(city, workspace)
    plan, settings, place = make_plan(network, workspace, city=ref, scheme=scheme, label_map=label_map, options=options)
    if dry_run:
        click.echo(json.dumps(plan.to_dict(), indent=2) if as_json else plan.to_text())
        return
    tiles = fetch(plan, place, settings, network, run=run)
    _report(tiles, plan, as_json=as_json)


def _report(tiles: list[TileFolder], plan: FetchPlan, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"tiles": [str(tile.path) for tile in tiles], "plan": plan.to_dict()}, indent=2))
        return
    for tile in tiles:
        click.echo(str(tile.path))
