"""Options and parameter types that several commands share; each is defined once, here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from landprior.raster.scheme import ClassScheme

F = TypeVar("F", bound=Callable[..., Any])

INPUT = click.Path(path_type=Path)
"""An input file; whether it is there and readable is said by the library, in its own words."""

OUTPUT = click.Path(path_type=Path)


class SchemeType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """A shipped class scheme by name, or a YAML file."""

    name = "scheme"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ClassScheme:  # noqa: ANN401
        """Load the scheme."""
        from landprior.errors import LandpriorError
        from landprior.raster.scheme import ClassScheme, load_scheme

        if isinstance(value, ClassScheme):
            return value
        try:
            return load_scheme(value)
        except LandpriorError as error:
            self.fail(str(error), param, ctx)


class LabelMapType(click.ParamType):  # type: ignore[type-arg]
    """Codes to codes, ``"10:1,20:2"``."""

    name = "from:to,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[int, int]:  # noqa: ANN401
        """Parse the text."""
        from landprior.errors import LandpriorError
        from landprior.raster.scheme import parse_label_map

        if isinstance(value, dict):
            return value
        try:
            return parse_label_map(value)
        except LandpriorError as error:
            self.fail(str(error), param, ctx)


def scheme_option(*, help: str = "") -> Callable[[F], F]:  # noqa: A002 - click's word
    """Return the ``--scheme`` option."""
    text = help or "Class scheme: enviroatlas-5, chesapeake-4, or your own YAML file."
    return click.option("--scheme", type=SchemeType(), help=text)


label_map_option = click.option(
    "--label-map",
    type=LabelMapType(),
    help='Codes of the labels to codes of the scheme, for example "10:1,20:4"; unnamed codes keep their meaning.',
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that are already there.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")
nodata_option = click.option(
    "--nodata",
    type=float,
    help="Value that marks no data in the image (in every band), if the file does not say so itself.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA if it is there.",
)
pixel_size_option = click.option(
    "--pixel-size", type=click.FloatRange(min=0, min_open=True), help="Metres per pixel, for files that do not say."
)
pair_option = click.option(
    "--pair",
    "pairs",
    type=(INPUT, INPUT),
    multiple=True,
    help="A further pair of files, pooled with the first; may repeat.",
)
workspace_option = click.option(
    "--data",
    "workspace",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="LANDPRIOR_DATA",
    default=Path("landprior-data"),
    show_default=True,
    show_envvar=True,
    help="Workspace: <city>/<tile>/ with one file per layer.",
)
city_option = click.option(
    "--city", help="A preset (pittsburgh, durham, austin, phoenix) or a folder of the workspace."
)
tile_option = click.option("--tile", "tiles", multiple=True, help="Only these tiles of the city; may repeat.")


def refuse_with_city(ctx: click.Context, *names: str) -> None:
    """Refuse options of plain files that were given together with ``--city``.

    Raises
    ------
    click.UsageError
        Names the first of them.
    """
    for name in names:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p for p in ctx.command.params if p.name == name)
            msg = f"{option.opts[0]} is for plain files; a workspace (--city) has its own files and names"
            raise click.UsageError(msg)


def show_progress(ctx: click.Context) -> bool:
    """Say whether progress bars are wanted (not with --quiet)."""
    return bool((ctx.find_root().obj or {}).get("progress", True))
