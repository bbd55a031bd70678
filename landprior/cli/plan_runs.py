"""Options and implementation of ``landprior run PLAN``."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.checks import refuse_options
from landprior.cli.command import grouped
from landprior.cli.places import make_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from landprior.run import Run


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions of click
    """``INDEX/COUNT``, ``auto`` or ``auto/COUNT``."""

    name = "index/count"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int | None, int | None]:
        """Parse the text; None means that the batch system gives the value."""
        if isinstance(value, tuple):
            return value
        index, slash, count = value.partition("/")
        try:
            found = (None if index == "auto" else int(index), int(count) if slash else None)
        except ValueError:
            self.fail(f"{value!r} is neither INDEX/COUNT, such as 0/16, nor auto", param, ctx)
        if found[0] is not None and found[1] is None:
            self.fail(f"{value!r} lacks the count: INDEX/COUNT, such as 0/16", param, ctx)
        return found


class RayAddressType(click.ParamType):  # type: ignore[type-arg]
    """``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; ``here`` if the option has no value."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Reject invalid addresses at once, as Ray would try to reach them."""
        host, _, port = str(value).removeprefix("ray://").rpartition(":")
        named = re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]", host)
        if value not in ("here", "auto") and not (
            named and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16
        ):
            self.fail(
                f"{value!r} is not the address of a Ray cluster (auto, HOST:PORT or ray://HOST:PORT). For Ray on this "
                "machine give --ray at the end, without a value.",
                param,
                ctx,
            )
        return str(value)


plan_options = grouped(
    "A plan",
    click.option(
        "--shard",
        type=ShardType(),
        help="Part of the PLAN to run: INDEX/COUNT, index from 0; or auto, from the batch system.",
    ),
    click.option(
        "--ray",
        type=RayAddressType(),
        is_flag=False,
        flag_value="here",
        metavar="[ADDRESS]",
        help="Run the PLAN on Ray, on this machine or on the cluster at ADDRESS.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Number of cores to use, with --ray on this machine.  [default: all]",
    ),
    click.option(
        "--gpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="GPUs per tile, with --ray."
    ),
    click.option("--memory", type=click.IntRange(min=1), help="Memory per tile (MB) that Ray reserves, with --ray."),
)
"""Options of running a plan; :func:`run_plan_file` reads their values."""

OF_PLANS = ("shard", "ray", "workers", "gpus", "memory")
"""Options only for plans."""


def refuse_with_plan(ctx: click.Context) -> None:
    """Raise an error for options that the plan already sets."""
    allowed = {"plan", "device", "as_json", "offline", "refresh", "retries", "overwrite", *OF_PLANS}
    names = [p.name for p in ctx.command.params if p.name is not None and p.name not in allowed]
    refuse_options(ctx, "a plan, which has its own settings; make another with landprior plan", *names)


def run_plan_file(ctx: click.Context, path: Path, options: Mapping[str, Any], *, as_json: bool, run: Run) -> None:
    """Run a plan, or a shard of it; exit 1 if a tile failed."""
    import os

    from landprior.batch.plans import read_plan
    from landprior.batch.shards import choose_shard, find_shard
    from landprior.batch.states import place_of
    from landprior.batch.tile_runner import run_plan

    network = partial(make_network, {name: options[name] for name in ("offline", "refresh", "retries")})
    shard, ray, workers = options["shard"], options["ray"], options["workers"]
    plan = read_plan(path)
    if shard is not None:
        index, count = shard
        if index is None:
            index, count = find_shard(os.environ, count)
        plan = choose_shard(plan, index, count or 1)
    if plan.fetch is None:
        refuse_options(ctx, "a plan of existing tiles; nothing is fetched", "refresh", "retries")
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
            gpus=options["gpus"],
            memory=options["memory"],
            network=network if plan.fetch else None,
            run=run,
        )
    done = sum(state.state == "done" for state in states)
    if as_json:
        click.echo(json.dumps([vars(state) for state in states], indent=1))
    else:
        report = None if plan.points is None else plan.points.find_report(place_of(plan))
        if report is not None:
            click.echo(report.to_text())
        click.echo(f"{done} of {len(states)} tiles are done")
    if done < len(states):
        hint = "" if as_json else f"; why: landprior status {path}"
        click.echo(f"{len(states) - done} are not done{hint}", err=True)
        ctx.exit(1)
