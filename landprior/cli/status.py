"""``landprior status``."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.parameters import INPUT

if TYPE_CHECKING:
    from pathlib import Path


@click.command(name="status", cls=Command)
@click.argument("plan", type=INPUT)
@click.option("--all", "everything", is_flag=True, help="List every tile, including finished and waiting ones.")
@shared.json_option
def command(*, plan: Path, everything: bool, as_json: bool) -> None:
    """Show which tiles of a PLAN are done, running or failed, and why.

    \b
    landprior status plan.json
    landprior status plan.json --json

    A failed tile is retried by the next run of the plan.
    """  # noqa: D301
    from landprior.batch.plans import read_plan
    from landprior.batch.states import place_of, read_states

    planned = read_plan(plan)
    states, points = read_states(planned), planned.points
    report = None if points is None else points.find_report(place_of(planned))
    counts = Counter(state.state for state in states)
    if as_json:
        found: dict[str, Any] = {"counts": counts, "tiles": [vars(state) for state in states]}
        if points is not None:
            found["points"] = {"count": points.count, "adaptation": report and report.to_dict()}
        click.echo(json.dumps(found, indent=1))
        return
    for state in states:
        if everything or state.state not in ("done", "waiting"):
            click.echo(f"{state.state:<12} {state.name}  {state.detail}".rstrip())
    text = ", ".join(f"{counts[name]} {name}" for name in ("done", "running", "failed", "interrupted", "waiting"))
    click.echo(f"{len(states)} tiles: {text}")
    if report is not None:
        gain = report.adapted
        click.echo(f"adapted to {report.points} points: accuracy {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f})")
    elif points is not None:
        click.echo(f"not yet adapted to the plan's {points.count} points")
