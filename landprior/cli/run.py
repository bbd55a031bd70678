"""``landprior run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_options, make_checked, pick_given
from landprior.cli.maps import finish_options, make_map_options, map_options, maps_option
from landprior.cli.parameters import INPUT
from landprior.cli.places import (
    FORMER_SOURCES,
    fetch_tiles,
    place_options,
    require_use_of_label_map,
    source_options_with_points,
)
from landprior.cli.plan_runs import OF_PLANS, plan_options, refuse_with_plan, run_plan_file
from landprior.cli.training import FIELDS, loss_option, points_options, training_options, training_settings
from landprior.cli.workspace import (
    choose_steps,
    find_settings,
    joint_options,
    joint_settings,
    only_option,
    read_points,
    refuse_unused,
    report_steps,
)
from landprior.landcover.prior.settings import PriorSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="run", cls=Command, former=FORMER_SOURCES)
@click.argument("plan", type=INPUT, required=False)
@place_options
@grouped("Steps", only_option)
@grouped(
    "Prior",
    shared.scheme_option(help="Class scheme, if the place is not a preset."),
    shared.cooccurrence_option(default="the preset's or scheme's"),
    *field_options(PriorSettings, "blur_sigma", "blur_radius", "fusion"),
    shared.learned_option,
)
@grouped("Training", *joint_options, loss_option(), *training_options())
@grouped("Labelled points", *points_options(column=False))
@grouped("Map", maps_option)
@map_options()
@grouped("Map", *finish_options)
@grouped("Reference labels", shared.label_map_option)
@plan_options
@source_options_with_points
@shared.run_options("device", "overwrite")
@shared.json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    plan: Path | None,
    only: tuple[tuple[str, ...], ...],
    as_json: bool,
    run: Run,
    **options: Any,  # noqa: ANN401 - the shared options of places, sources, steps and plans
) -> None:
    """Run the whole chain for a place: fetch, prior, model, map, scores. Or for the tiles of a PLAN.

    \b
    landprior run --city pittsburgh
    landprior run --place "Ithaca, NY" --scheme enviroatlas-5
    landprior run --city mytown --scheme chesapeake-4 --data /data/landprior
    landprior run --city mytown --scheme chesapeake-4 --only prior,model --steps 2000
    landprior run --city mytown --only map --probabilities
    landprior run --place "Ithaca, NY" --scheme enviroatlas-5 --joint
    landprior run --city mytown --scheme chesapeake-4 --points points.gpkg
    landprior run plan.json
    landprior run plan.json --shard auto
    landprior run plan.json --ray --workers 8
    landprior run plan.json --ray auto --gpus 0.25 --device cuda

    A place without tiles in the workspace is fetched first. A tile is a folder <workspace>/<place>/<tile>/ with
    naip.tif and nlcd.tif, and optionally roads.tif, buildings.tif, waterways.tif, waterbodies.tif and labels.tif (for
    scores only); you can also fill it by hand. Results that are current are skipped; item.json in each folder records
    how each was made. --only runs only some of the steps. With --joint the tiles of the place share one model, and
    their maps meet without a seam. With --points the models are adapted to labelled points before they map: one fit
    for the whole place.

    Without --overwrite, the run stops at a prior, model or map that you, another command or another model
    made. With a PLAN (landprior plan) one failed tile does not stop the rest; the exit status is then 1, and landprior
    status shows why. --shard auto is for job arrays of Slurm, Kubernetes or AWS Batch.
    """  # noqa: D301
    if plan is not None:
        refuse_with_plan(ctx)
        run_plan_file(ctx, plan, options, as_json=as_json, run=run)
        return
    refuse_options(ctx, "a place; make a plan of it first (landprior plan)", *OF_PLANS)
    steps = choose_steps(only)
    refuse_unused(ctx, steps)
    products = make_map_options(ctx, options)
    training = training_settings(options["recipe"], **{name: options[name] for name in ("loss", *FIELDS)})
    widths = pick_given({name: options[name] for name in ("blur_sigma", "blur_radius", "fusion")})
    learned = None
    if options["learned"] is not None:
        from landprior.landcover.training.model import load_model

        learned = load_model(options["learned"])
    ref = fetch_tiles(ctx, options, steps)
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.groups import make_groups
    from landprior.landcover.workspace.steps import require_own_results

    joint = joint_settings(options)
    settings = None
    if {"prior", "scores"} & {*steps}:
        settings = find_settings(
            ref,
            options["workspace"],
            options["scheme"],
            options["cooccurrence"],
            training=training,
            prior=make_checked(PriorSettings, "the blur", **widths) if widths else None,
            learned=learned,
            posterior=options["maps"] == "r",
            label_map=options["label_map"] or {},
            **joint,
        )
    tiles = Workspace(options["workspace"]).tiles(ref, only=options["tiles"])
    require_use_of_label_map(tiles, options["label_map"], fetched=bool(options["labels"]))
    place = Workspace(options["workspace"]).tiles(ref)
    points = read_points(ctx, options, place, None if settings is None else settings.scheme)
    groups = make_groups(place, joint["group"]) if joint["joint"] else []
    if settings is not None and {"prior", "model", "map"} <= {*steps} and not run.overwrite:
        require_own_results(tiles, settings, groups=groups, options=products, adapted=points is not None)
    report_steps(
        tiles,
        steps,
        as_json=as_json,
        settings=settings,
        training=training,
        mapping={"posterior": options["maps"] == "r", "options": products},
        groups=groups,
        points=points,
        run=run,
    )
