"""``landprior run``."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.fetch import make_network
from landprior.cli.options import (
    INPUT,
    SOURCE_NAMES,
    area_options,
    city_option,
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
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.raster.scheme import ClassScheme
    from landprior.sources.http.client import Network


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


class RayAddressType(click.ParamType):  # type: ignore[type-arg]
    """``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; ``here`` where the option has no value."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Refuse at once what cannot be an address; Ray would try to reach it."""
        host, _, port = str(value).removeprefix("ray://").rpartition(":")
        named = re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]", host)
        if value not in ("here", "auto") and not (
            named and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16
        ):
            self.fail(
                f"{value!r} is not the address of a Ray cluster (auto, HOST:PORT or ray://HOST:PORT). For Ray on this "
                "machine give --ray last, without a value.",
                param,
                ctx,
            )
        return str(value)


@click.command(name="run")
@click.argument("plan", type=INPUT, required=False)
@city_option
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
    "--ray",
    type=RayAddressType(),
    is_flag=False,
    flag_value="here",
    metavar="[ADDRESS]",
    help="Run a PLAN on Ray, here or on a cluster.",
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
    and, if there are any, roads.tif, buildings.tif, waterways.tif, waterbodies.tif and labels.tif (for scores
    only); it may be filled by hand. What is done and current is skipped; item.json in each folder says what
    was made from what. A prior, model or map that you, another command or another model made is kept, and the
    run stops, unless --overwrite is given. With a PLAN (landprior plan) a tile that fails stops no other; the
    exit status is 1 then, and landprior status says why.
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
            overwrite=overwrite,
        )
        return
    refuse_options(ctx, "a place; make a plan of it first (landprior plan)", *OF_PLANS)
    from landprior.cli.fetch import make_plan
    from landprior.landcover.mapping.products import Products
    from landprior.landcover.workspace.acquisition import fetch
    from landprior.landcover.workspace.city import CityRef, find_city
    from landprior.landcover.workspace.pipeline import PipelineSettings, Workspace, run_workspace

    training = training_settings(recipe, seed=seed, filters=filters, starts=starts, marginal=marginal)
    model = None
    if learned is not None:
        from landprior.landcover.training.model import load_model

        model = load_model(learned)
    ref = None if city is None else find_city(city, workspace)
    if ref is None or to_be_fetched(workspace, ref):
        network = make_network(options)
        found, fetch_settings, place = make_plan(
            network, workspace, city=ref, scheme=scheme, label_map=label_map, options=options
        )
        found = choose_tiles(found, tiles)
        ref = ref or CityRef(name=found.area.name)
        fetch(found, place, fetch_settings, network, run=Run(progress=show_progress(ctx)))
    else:
        refuse_sources(ctx, ref, workspace)
    settings = PipelineSettings.for_city(
        ref,
        scheme=scheme,
        cooccurrence=cooccurrence,
        training=training,
        learned=model,
        posterior=maps == "r",
        label_map=label_map or {},
    )
    require_use_of_label_map(Workspace(workspace).tiles(ref, only=tiles), label_map, fetched=bool(options["labels"]))
    paths, scores = run_workspace(
        Workspace(workspace),
        ref,
        settings,
        only=tiles,
        products=Products(quicklook=quicklook),
        run=Run(device=device, overwrite=overwrite, progress=show_progress(ctx)),
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
    allowed = {"plan", "device", "as_json", "offline", "refresh", "retries", "overwrite", *OF_PLANS}
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
    overwrite: bool,
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
    if plan.fetch is None:
        refuse_options(ctx, "a plan whose tiles are there; nothing is fetched", "refresh", "retries")
    run = Run(device=device, overwrite=overwrite, progress=show_progress(ctx))
    if ray is None:
        refuse_options(ctx, "a run without --ray", "workers", "gpus", "memory")
        states = run_plan(plan, network=network() if plan.fetch else None, run=run)
    else:
        if ray != "here":
            refuse_options(ctx, "a cluster, which has its own cores", "workers")
        from landprior.batch.cluster import run_on_ray

        states = run_on_ray(
            plan,
            address=None if ray == "here" else ray,
            workers=workers,
            gpus=gpus,
            memory=memory,
            network=network if plan.fetch else None,
            run=run,
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


def to_be_fetched(workspace: Path, city: CityRef) -> bool:
    """Say whether a city is a preset that was not filled by hand: not there yet, or made by fetch (which resumes)."""
    from landprior.landcover.workspace.item import TileFolder

    if city.preset is None:
        return False
    images = list((workspace / city.name).glob("*/naip.tif"))
    return not images or any("naip" in TileFolder(path=path.parent, city=city.name).steps() for path in images)


def refuse_sources(ctx: click.Context, city: CityRef, workspace: Path) -> None:
    """Refuse options of places and sources for a place that is not fetched, where they would be ignored.

    Raises
    ------
    click.UsageError
        Names the first of them, and says what to do.
    """
    from landprior.landcover.workspace.item import TileFolder

    refuse_options(ctx, "--city; give one of them", "bbox", "place", "aoi", "name")
    images = list((workspace / city.name).glob("*/naip.tif"))
    if any("naip" in TileFolder(path=path.parent, city=city.name).steps() for path in images):
        how = f"say where it is, as when it was fetched (--bbox, --place or --aoi, and --name {city.name})"
    else:
        how = f"it was not fetched, so put your layers into {workspace / city.name}/<tile>/ (labels.tif, nlcd.tif, ...)"
    refuse_options(ctx, f"the place {city.name} of the workspace: {how}", *SOURCE_NAMES, "refresh", "retries")


def choose_tiles(found: FetchPlan, names: tuple[str, ...]) -> FetchPlan:
    """Return the plan of a fetch for some of its tiles only; for all if none is named.

    Raises
    ------
    MissingInputError
        If there is no such tile; lists those there are.
    """
    from dataclasses import replace

    from landprior.errors import MissingInputError

    there = [tile.folder.name for tile in found.tiles]
    missing = sorted(set(names) - set(there))
    if missing:
        msg = f"no tile {', '.join(missing)} there; the tiles are: {', '.join(there)}"
        raise MissingInputError(msg)
    return replace(found, tiles=tuple(tile for tile in found.tiles if not names or tile.folder.name in names))


def require_use_of_label_map(tiles: Sequence[TileFolder], label_map: dict[int, int] | None, *, fetched: bool) -> None:
    """Refuse a label map that no tile needs.

    Parameters
    ----------
    tiles
        Those that will be run.
    label_map
        As it was given.
    fetched
        Whether labels are given too, so that the fetch uses the map.

    Raises
    ------
    InputError
        If no tile has labels, or fetch has converted the labels of all tiles to the scheme's codes.
    """
    from landprior.errors import InputError

    if not label_map or fetched:
        return
    there = [tile for tile in tiles if tile.file("labels").is_file()]
    if not there:
        msg = (
            f"--label-map would have no effect: no tile has labels (there is no {tiles[0].file('labels')}, for example)"
        )
        raise InputError(msg)
    if all(tile.is_recorded("labels") for tile in there):
        msg = (
            f"--label-map would have no effect: fetch has converted {there[0].file('labels')} to the scheme's codes "
            "already; give it with --labels, or leave it out"
        )
        raise InputError(msg)
