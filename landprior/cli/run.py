"""``landprior run``."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.fetch import make_network
from landprior.cli.options import (
    INPUT,
    area_options,
    device_option,
    json_option,
    label_map_option,
    learned_option,
    marginal_option,
    overwrite_option,
    recipe_option,
    refuse_options,
    scheme_option,
    show_progress,
    source_options,
    starts_option,
    tile_option,
    training_settings,
    workspace_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.sources.network import Network


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """``INDEX/COUNT``, ``auto`` or ``auto/COUNT``."""

    name = "index/count"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int | None, int | None]:
        """Parse the text; None is what the batch system is to say."""
        if isinstance(value, tuple):
            return value
        index, slash, count = value.partition("/")
        try:
            found = (None if index == "auto" else int(index), int(count) if slash else None)
        except ValueError:
            self.fail(f"{value!r} is neither INDEX/COUNT, such as 0/16, nor auto", param, ctx)
        if found[0] is not None and found[1] is None:
            self.fail(f"{value!r} does not say of how many: INDEX/COUNT, such as 0/16", param, ctx)
        return found


@click.command(name="run")
@click.argument("plan", type=INPUT, required=False)
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
@marginal_option
@click.option(
    "--maps",
    type=click.Choice(["r", "q"]),
    default="r",
    show_default=True,
    help="Map the posterior r or the network's q.",
)
@click.option("--quicklook", is_flag=True, help="Also write prediction.png.")
@label_map_option
@click.option("--shard", type=ShardType(), help="Of a PLAN: INDEX/COUNT, index from 0; or auto, from the batch system.")
@click.option(
    "--ray", is_flag=False, flag_value="here", metavar="[ADDRESS]", help="Run a PLAN on Ray: here, or a cluster."
)
@click.option("--workers", type=click.IntRange(min=1), help="With --ray on this machine: cores.  [default: all]")
@click.option("--gpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="With --ray: GPUs a tile.")
@click.option("--memory", type=click.IntRange(min=1), help="With --ray: megabytes a tile, for placement.")
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
    plan: Path | None,
    city: str | None,
    tiles: tuple[str, ...],
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    learned: Path | None,
    filters: int | None,
    seed: int,
    recipe: str,
    starts: int | None,
    marginal: str | None,
    maps: str,
    quicklook: bool,
    label_map: dict[int, int] | None,
    shard: tuple[int | None, int | None] | None,
    ray: str | None,
    workers: int | None,
    gpus: float,
    memory: int | None,
    device: str,
    as_json: bool,
    workspace: Path,
    overwrite: bool,
    **options: Any,  # noqa: ANN401 - the shared options of places and sources
) -> None:
    """Run the whole chain for a place: fetch, prior, model, map, scores. Or for the tiles of a PLAN.

    \b
    landprior run plan.json
    landprior run plan.json --shard auto
    landprior run plan.json --ray --workers 8
    landprior run plan.json --ray auto --gpus 0.25 --device cuda
    landprior run --city pittsburgh
    landprior run --place "Ithaca, NY" --scheme enviroatlas-5
    landprior run --city mytown --scheme chesapeake-4 --data /data/landprior

    --shard auto is for job arrays of Slurm, Kubernetes or AWS Batch.

    A place that has no tiles in the workspace yet is fetched first (see 'landprior fetch --help' for the
    options of places and sources). A tile is a folder <workspace>/<city>/<tile>/ with naip.tif and nlcd.tif,
    and, where there are, roads.tif, buildings.tif, waterways.tif, waterbodies.tif and labels.tif (for scores
    only); it may be filled by hand. What is done and current is skipped; item.json in each folder says what
    was made from what. With a PLAN (landprior plan) a tile that fails stops no other; the exit status is 1 then, and
    landprior status says why.
    """  # noqa: D301
    if plan is not None:
        _refuse_with_plan(ctx)
        connect = partial(make_network, {name: options[name] for name in ("offline", "refresh", "retries")})
        _run_plan(
            ctx,
            plan,
            connect,
            shard=shard,
            ray=ray,
            workers=workers,
            gpus=gpus,
            memory=memory,
            device=device,
            as_json=as_json,
        )
        return
    refuse_options(ctx, "a place; make a plan of it first (landprior plan)", *OF_PLANS)
    from landprior.cli.fetch import make_plan
    from landprior.landcover.acquisition import fetch
    from landprior.landcover.pipeline import PipelineSettings, Workspace, run_workspace
    from landprior.landcover.prediction import Products

    training = training_settings(recipe, seed=seed, filters=filters, starts=starts, marginal=marginal)
    model = None
    if learned is not None:
        from landprior.landcover.model import load_model

        model = load_model(learned)
    network = make_network(options)
    if city is None or to_be_fetched(workspace, city):
        found, fetch_settings, place = make_plan(
            network, workspace, city=city, scheme=scheme, label_map=label_map, options=options
        )
        fetch(found, place, fetch_settings, network, progress=show_progress(ctx))
        city = city or found.area.name
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


OF_PLANS = ("shard", "ray", "workers", "gpus", "memory")
"""Options that are for plans only."""


def _refuse_with_plan(ctx: click.Context) -> None:
    """Refuse options that a plan has settled."""
    allowed = {"plan", "device", "as_json", "offline", "refresh", "retries", *OF_PLANS}
    names = [p.name for p in ctx.command.params if p.name is not None and p.name not in allowed]
    refuse_options(ctx, "a plan, which says what is done; make another with landprior plan", *names)


def _run_plan(
    ctx: click.Context,
    path: Path,
    network: Callable[[], Network],
    *,
    shard: tuple[int | None, int | None] | None,
    ray: str | None,
    workers: int | None,
    gpus: float,
    memory: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Run a plan, or a shard of it; exit 1 if a tile failed."""
    import os

    from landprior.batch.plans import choose_shard, read_plan, shard_of_environment
    from landprior.batch.tile_runner import run_plan

    plan = read_plan(path)
    if shard is not None:
        index, count = shard
        if index is None:
            index, count = shard_of_environment(os.environ, count)
        plan = choose_shard(plan, index, count or 1)
    progress = show_progress(ctx)
    if ray is None:
        refuse_options(ctx, "a run without --ray", "workers", "gpus", "memory")
        states = run_plan(plan, device=device, network=network() if plan.fetch else None, progress=progress)
    else:
        from landprior.batch.cluster import run_on_ray

        states = run_on_ray(
            plan,
            address=None if ray == "here" else ray,
            workers=workers,
            gpus=gpus,
            memory=memory,
            device=device,
            network=network if plan.fetch else None,
            progress=progress,
        )
    done = sum(state.state == "done" for state in states)
    if as_json:
        click.echo(json.dumps([vars(state) for state in states], indent=1))
    else:
        click.echo(f"{done} of {len(states)} tiles are done")
    if done < len(states):
        hint = "" if as_json else f"; why: landprior status {path}"
        click.echo(f"{len(states) - done} are not{hint}", err=True)
        ctx.exit(1)


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
