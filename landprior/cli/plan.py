"""``landprior plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_options, make_checked, pick_given
from landprior.cli.maps import maps_option
from landprior.cli.parameters import OUTPUT
from landprior.cli.places import (
    FORMER_SOURCES,
    choose_tiles,
    make_network,
    make_plan,
    place_options,
    refuse_sources,
    require_use_of_label_map,
    source_options_with_points,
    to_be_fetched,
)
from landprior.cli.training import FIELDS, loss_option, points_options, training_options, training_settings
from landprior.cli.workspace import find_point_files, joint_options, joint_settings
from landprior.landcover.prior.settings import PriorSettings

if TYPE_CHECKING:
    from landprior.raster.scheme import ClassScheme


@click.command(name="plan", cls=Command, former=FORMER_SOURCES)
@place_options
@grouped(
    "Prior",
    shared.scheme_option(help="Class scheme, if the place is not a preset."),
    shared.cooccurrence_option(default="the preset's or scheme's"),
    *field_options(PriorSettings, "blur_sigma", "blur_radius", "fusion"),
    shared.learned_option,
)
@grouped("Training", *joint_options, loss_option(), *training_options())
@grouped("Labelled points", *points_options(column=False))
@grouped("Maps", maps_option)
@source_options_with_points
@grouped("Reference labels", shared.label_map_option)
@click.option(
    "-o", "--output", type=OUTPUT, default=Path("plan.json"), show_default=True, help="Plan to write (.json)."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of cores per tile on any machine (maps depend on it); 1 is best with many workers.",
)
@shared.json_option
@shared.overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    city: str | None,
    tiles: tuple[str, ...],
    output: Path,
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    learned: Path | None,
    maps: str,
    threads: int,
    label_map: dict[int, int] | None,
    workspace: Path,
    as_json: bool,
    overwrite: bool,
    **options: Any,  # noqa: ANN401 - the shared options of places, sources and trainings
) -> None:
    """Plan the tiles of a place or a workspace, to be run by any number of workers.

    \b
    landprior plan --city mytown --scheme enviroatlas-5 -o plan.json
    landprior plan --aoi county.geojson --scheme chesapeake-4 --data /shared/landprior -o county.json
    landprior run plan.json
    landprior run plan.json --ray --workers 8
    landprior run plan.json --shard 3/16
    landprior plan --city mytown --scheme enviroatlas-5 --group 16 -o groups.json
    landprior plan --city mytown --scheme enviroatlas-5 --points points.gpkg -o adapted.json
    landprior status plan.json
    landprior mosaic plan.json -o map.tif

    Run the plan here, one tile after the other; on Ray, with the cores and GPUs of this machine or of a cluster; or
    as an array of batch jobs, each with its own shard. The plan is a JSON file with tiles, classes, matrix and
    training, and the sources of a place that is still to be fetched (now only the image catalogue is queried). Every
    worker must see the workspace (--data). With --joint or --group, tiles share models; a group is run as a whole, so
    there may be as many shards as groups. With --points the models are adapted to labelled points before they map: one
    fit for the whole place.
    """  # noqa: D301
    from landprior.batch.estimate import estimate_work
    from landprior.batch.plans import plan_area, plan_workspace, write_plan
    from landprior.landcover.workspace.city import CityRef, find_city
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.settings import PipelineSettings
    from landprior.raster.endings import check_named_output

    if learned is not None:  # fail now, not in every worker
        from landprior.landcover.training.model import load_model

        load_model(learned)
        if options["fusion"] == "conserving":
            msg = "a learned prior joins the layers by what it learned; leave --fusion conserving out, or --learned"
            raise click.UsageError(msg)
    check_named_output(output, "plan", overwrite=overwrite, inputs=[cooccurrence])
    training = training_settings(options["recipe"], **{name: options[name] for name in ("loss", *FIELDS)})
    widths = pick_given({name: options[name] for name in ("blur_sigma", "blur_radius", "fusion")})
    changes: dict[str, Any] = {"training": training, "posterior": maps == "r", "label_map": label_map or {}}
    changes["prior"] = make_checked(PriorSettings, "the blur", **widths) if widths else None
    changes |= joint_settings(options)
    sources: dict[str, Any] = {"learned": learned, "threads": threads, "points": find_point_files(ctx, options)}
    ref = None if city is None else find_city(city, workspace)
    if ref is None or to_be_fetched(workspace, ref):
        found, fetching, place = make_plan(
            make_network(options), workspace, city=ref, scheme=scheme, label_map=label_map, options=options
        )
        found = choose_tiles(found, tiles)
        chosen = ref or CityRef(name=found.area.name)
        settings = PipelineSettings.for_city(chosen, scheme=scheme, cooccurrence=cooccurrence, **changes)
        plan = plan_area(found, place, fetching, settings, **sources)
        folders = [tile.folder for tile in found.tiles]
    else:
        refuse_sources(ctx, ref, workspace)
        settings = PipelineSettings.for_city(ref, scheme=scheme, cooccurrence=cooccurrence, **changes)
        folders = Workspace(workspace).tiles(ref, only=tiles)
        plan = plan_workspace(Workspace(workspace), ref, settings, only=tiles, **sources)
    require_use_of_label_map(folders, label_map, fetched=bool(options["labels"]))
    write_plan(plan, output, overwrite=overwrite)
    work = estimate_work(plan)
    if as_json:
        click.echo(json.dumps({"plan": str(output), "hash": plan.digest, "tiles": len(plan.tiles)} | work.to_dict()))
        return
    click.echo(str(output))
    if shared.show_progress(ctx):
        click.echo(work.to_text(), err=True)
