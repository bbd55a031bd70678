"""Running steps for the tiles of a place, shared by all commands on a workspace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.checks import refuse_options
from landprior.cli.command import group_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.pipeline import Step
    from landprior.landcover.workspace.place_points import PlacePoints, PointFiles
    from landprior.landcover.workspace.settings import PipelineSettings
    from landprior.raster.scheme import ClassScheme

STEPS = ("fetch", "prior", "model", "map", "scores")
"""Steps of the chain, in their order."""


class StepsType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """One or more of :data:`STEPS`, separated by commas."""

    name = "step,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ANN401
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip().lower() for part in value.split(","))
        for name in names:
            if name not in STEPS:
                self.fail(f"{name!r} is not a step; the steps are {', '.join(STEPS)}", param, ctx)
        return names


only_option = click.option(
    "--only",
    type=StepsType(),
    multiple=True,
    help=f"Step of the chain to run, instead of all: {', '.join(STEPS)}; may be repeated, or list several with commas.",
)


def choose_steps(only: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the steps given by ``--only``, in the chain's order; all if it is not given."""
    named = {step for steps in only for step in steps}
    return tuple(step for step in STEPS if not named or step in named)


_USED_BY = {"Training": {"model"}, "Map": {"map"}, "Labelled points": {"map"}, "Prior": {"prior"}, "Sources": {"fetch"}}
"""Group of options -> the steps that use them."""

_SHARED = {"prior", "model", "map"}
_ELSEWHERE = {"scheme": {*STEPS}, "label_map": {"fetch", "scores"}, "joint": _SHARED, "group": _SHARED}
_ELSEWHERE["label_field"] = {"fetch", "map"}
"""Options used by steps other than those of their group."""

_FILES = {"fetch": "tiles", "prior": "priors", "model": "models", "map": "maps", "scores": "maps"}


def refuse_unused(ctx: click.Context, steps: Sequence[str]) -> None:
    """Raise an error for options of steps that ``--only`` leaves out.

    Raises
    ------
    click.UsageError
        If there are any; names the first.
    """
    for param in ctx.command.params:
        used = _ELSEWHERE.get(param.name or "", _USED_BY.get(group_of(param), {*STEPS}))
        if not used & {*steps}:
            refuse_options(ctx, f"--only {','.join(steps)}; it is for: {', '.join(sorted(used))}", param.name or "")


def find_settings(
    city: str | CityRef,
    workspace: Path,
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    **changes: Any,  # noqa: ANN401 - the other fields
) -> PipelineSettings:
    """Return the settings of a place: those of its preset, with the given values in place of them."""
    from landprior.landcover.workspace.city import find_city
    from landprior.landcover.workspace.settings import PipelineSettings

    return PipelineSettings.for_city(find_city(city, workspace), scheme=scheme, cooccurrence=cooccurrence, **changes)


joint_options = (
    click.option("--joint", is_flag=True, help="Train one model for all tiles of the place, instead of one for each."),
    click.option(
        "--group",
        type=click.IntRange(min=1),
        metavar="N",
        help="Train one model for each N neighbouring tiles or fewer, instead of one for all; implies --joint.",
    ),
)
"""Options of models shared by tiles; :func:`joint_settings` reads their values."""


def joint_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the settings given by :data:`joint_options`."""
    return {"joint": options["joint"] or options["group"] is not None, "group": options["group"]}


def read_points(
    ctx: click.Context, options: Mapping[str, Any], tiles: Sequence[TileFolder], scheme: ClassScheme | None
) -> PlacePoints | None:
    """Return the points of a place; None if none are given.

    Parameters
    ----------
    ctx, options
        The command, and the values of its options.
    tiles
        All tiles of the place.
    scheme
        The classes; None for those of a model of the place.

    Raises
    ------
    InputError
        See :func:`landprior.landcover.workspace.place_points.find_points`.
    """
    from landprior.landcover.training.model import load_model
    from landprior.landcover.workspace.groups import read_grid

    files = find_point_files(ctx, options)
    if files is None:
        return None
    if scheme is None:
        place = tiles[0].path.parent
        known = sorted([*place.glob("model*.safetensors"), *place.glob("*/model.safetensors")])
        scheme = load_model(known[0] if known else tiles[0].file("model")).scheme
    return files.find({tile.name: read_grid(tile) for tile in tiles}, scheme)


def find_point_files(ctx: click.Context, options: Mapping[str, Any]) -> PointFiles | None:
    """Return the files of points that are given; None if there are none."""
    from landprior.landcover.workspace.place_points import PointFiles

    if not options["points"]:
        refuse_options(ctx, "a run without --points", "layer")
        return None
    return PointFiles(files=options["points"], column=options["label_field"], layer=options["layer"])


def print_steps(tiles: Sequence[TileFolder], steps: Sequence[Step], **how: Any) -> None:  # noqa: ANN401
    """Run steps for tiles (:func:`landprior.landcover.workspace.pipeline.run_steps`); print each file at once."""
    from landprior.landcover.workspace.pipeline import run_steps

    for result in run_steps(tiles, steps, **how):
        click.echo(str(result.path))


def report_steps(tiles: Sequence[TileFolder], steps: Sequence[str], *, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Run steps for tiles; then print the files of the last step, and the scores over all tiles that have labels.

    Parameters
    ----------
    tiles
        Tiles of a place.
    steps
        Steps from :data:`STEPS`; the fetch is already done.
    as_json
        Print JSON.
    **how
        See :func:`landprior.landcover.workspace.pipeline.run_steps`.
    """
    from landprior.landcover.workspace.pipeline import STEPS as WHOLE
    from landprior.landcover.workspace.pipeline import run_steps

    paths = {"fetch": [tile.path for tile in tiles]}
    total = report = None
    for result in run_steps(tiles, [step for step in WHOLE if step in steps], **how):
        paths.setdefault(result.step, []).append(result.path)
        report = result.report or report
        if result.scores is not None:
            total = result.scores if total is None else total + result.scores
    last = next(step for step in ("map", "model", "prior", "scores", "fetch") if step in steps)
    if as_json:
        shown = [str(path) for path in paths.get(last, [])]
        found = {_FILES[last]: shown, "scores": total and total.to_dict()}
        click.echo(json.dumps(found | ({"adaptation": report.to_dict()} if report else {}), indent=2))
        return
    if report is not None:
        click.echo(report.to_text())
    for path in paths.get(last, []):
        click.echo(str(path))
    if total is not None:
        click.echo(total.to_text())
