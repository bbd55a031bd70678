"""``landprior fetch``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import (
    INPUT,
    SOURCE_NAMES,
    area_options,
    json_option,
    label_map_option,
    overwrite_option,
    scheme_option,
    show_progress,
    source_options,
    workspace_option,
)
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.fetch_settings import FetchSettings
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.raster.scheme import ClassScheme
    from landprior.sources.areas import Area
    from landprior.sources.http.client import Network

DATASETS = ("enviroatlas", "chesapeake")


@click.command(name="fetch")
@click.option("--city", help="A preset (pittsburgh, durham, austin, phoenix), or your own preset file (.yaml).")
@area_options
@source_options
@scheme_option(help="Classes of --labels, if the city is no preset.")
@label_map_option
@click.option("--dry-run", is_flag=True, help="Only say which tiles, years, sizes and sources; asks the catalogue.")
@click.option("--dataset", type=click.Choice(DATASETS), help="Instead of a place: a published set, as torchgeo has it.")
@click.option("--root", type=INPUT, help="Folder of the published set.  [default: <workspace>/<dataset>]")
@json_option
@workspace_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    city: str | None,
    dry_run: bool,
    dataset: str | None,
    root: Path | None,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    as_json: bool,
    workspace: Path,
    overwrite: bool,
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
    'landprior build-prior --city PLACE' or 'landprior run --city PLACE'. What is there and current is
    skipped, so after an interruption or an error give the same command again. Downloads are kept in a
    cache (landprior cache info).
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
    tiles = fetch(plan, place, settings, network, run=Run(overwrite=overwrite, progress=show_progress(ctx)))
    _report(tiles, plan, as_json=as_json)


def make_network(options: dict[str, Any]) -> Network:
    """Return the network as the options say; takes them out of ``options``."""
    from landprior.sources.http.cache import Cache
    from landprior.sources.http.client import Network, RetryPolicy

    return Network(
        Cache(),
        offline=options.pop("offline"),
        refresh=options.pop("refresh"),
        policy=RetryPolicy(attempts=options.pop("retries") + 1),
    )


def make_plan(
    network: Network,
    workspace: Path,
    *,
    city: CityRef | None,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    options: dict[str, Any],
) -> tuple[FetchPlan, FetchSettings, Workspace]:
    """Return what the shared options ask for."""
    from pydantic import ValidationError

    from landprior.errors import ConfigError
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.fetch_settings import FetchSettings
    from landprior.landcover.workspace.layout import plan_fetch
    from landprior.raster.scheme import explain

    given = {name: options[name] for name in SOURCE_NAMES if options[name] not in {None, ()}}
    try:
        settings = FetchSettings(scheme=scheme, label_map=label_map or {}, **given)
    except ValidationError as error:
        raise ConfigError(explain(error, "the options")) from error
    area = find_area(network, city=city, nominatim_url=settings.nominatim_url, options=options)
    place = Workspace(workspace)
    return plan_fetch(area, place, settings, network), settings, place


def find_area(network: Network, *, city: CityRef | None, nominatim_url: str, options: dict[str, Any]) -> Area:
    """Return the place that exactly one of ``--city``, ``--bbox``, ``--place``, ``--aoi`` names."""
    from landprior.sources.areas import area_from_bounds, area_from_city, area_from_file, area_from_place, check_name

    bbox, place, aoi = options["bbox"], options["place"], options["aoi"]
    if sum(value is not None for value in (city, bbox, place, aoi)) != 1:
        msg = "say where, by one of --city, --bbox, --place, --aoi"
        raise click.UsageError(msg)
    name = None if options["name"] is None else check_name(options["name"])
    if city is not None:
        if name is not None:
            msg = "--name is for --bbox, --place and --aoi; a preset has its own name"
            raise click.UsageError(msg)
        return area_from_city(city.preset or city.name)
    if bbox is not None:
        return area_from_bounds(bbox, name=name)
    if aoi is not None:
        return area_from_file(aoi, name=name)
    return area_from_place(place, network, url=nominatim_url, name=name)


def _report(tiles: list[TileFolder], plan: FetchPlan, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"tiles": [str(tile.path) for tile in tiles], "plan": plan.to_dict()}, indent=2))
        return
    for tile in tiles:
        click.echo(str(tile.path))
