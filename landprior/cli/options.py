"""Options and parameter types that several commands share; each is defined once, here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.landcover.training.settings import TileSettings
    from landprior.raster.scheme import ClassScheme

F = TypeVar("F", bound=Callable[..., Any])


class InputType(click.Path):
    """An input file or folder; the library checks whether it is there and readable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse what is not a local file before it becomes a Path, which turns s3://b into s3:/b."""
        from landprior.raster.outputs import archive_path, explain_remote_input

        why = explain_remote_input(value)
        if why is not None:
            self.fail(why, param, ctx)
        return super().convert(archive_path(value), param, ctx)


class OutputType(click.Path):
    """A file, or a folder, to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse what is not a local path before it becomes a Path."""
        from landprior.errors import InputError
        from landprior.raster.outputs import refuse_remote

        try:
            refuse_remote(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


INPUT = InputType(path_type=Path)
OUTPUT = OutputType(path_type=Path)
OUTPUT_FOLDER = OutputType(path_type=Path, file_okay=False)
_SOURCES = ("nlcd", "osm", "buildings")
"""Options that name a file or something else, such as a URL or ``none``."""

_READ = "landprior.read"
"""Key under which the context lists files that were read while the options were parsed."""


def check_places(ctx: click.Context) -> list[Path]:
    """Refuse a command whose output is one of its inputs, before it reads anything; return the inputs.

    Raises
    ------
    InputError
        See :func:`landprior.raster.outputs.check_apart`; also if results would go into a folder of inputs.
    """
    from landprior.raster.outputs import check_apart, check_folder

    inputs, outputs, folders = [], list[Path](), list[Path]()
    for param in ctx.command.params:
        kinds = param.type.types if isinstance(param.type, click.Tuple) else [param.type]
        values = [value for value in _flatten(ctx.params.get(param.name or "")) if isinstance(value, Path)]
        if any(isinstance(kind, InputType) for kind in kinds):
            inputs += values
        elif param.type is OUTPUT:
            outputs += values
        elif param.type is OUTPUT_FOLDER and param.name != "workspace":
            folders += values
    inputs += ctx.meta.get(_READ, [])
    texts = [ctx.params.get(name) for name in _SOURCES if name in ctx.params]
    inputs += [Path(text) for text in texts if isinstance(text, str) and text]
    check_apart(outputs, inputs)
    for folder in folders:
        check_folder(folder, inputs)
    return inputs


def _flatten(value: Any) -> list[Any]:  # noqa: ANN401 - whatever click has parsed
    return [one for part in value for one in _flatten(part)] if isinstance(value, (list, tuple)) else [value]


LARGEST = 2**31 - 1
"""The largest count or seed that an option takes; libraries overflow beyond."""


class FiniteFloat(click.types.FloatParamType):
    """A finite number; NaN and infinity would pass every other check."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Parse the text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class FiniteFloatRange(FiniteFloat, click.FloatRange):
    """The same in a range."""


class BoundedInt(click.types.IntParamType):
    """A whole number that libraries can count to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Parse the text."""
        number = int(super().convert(value, param, ctx))
        if abs(number) > LARGEST:
            self.fail(f"{value} is too large; the largest number here is {LARGEST}.", param, ctx)
        return number


class BoundedIntRange(BoundedInt, click.IntRange):
    """The same in a range."""


def finite(kind: click.types.FloatParamType) -> FiniteFloat:
    """Return the same type for finite numbers only."""
    if isinstance(kind, click.FloatRange):
        return FiniteFloatRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    return FiniteFloat()


def counted(kind: click.types.IntParamType) -> BoundedInt:
    """Return the same type for numbers up to :data:`LARGEST`."""
    if isinstance(kind, click.IntRange):
        return BoundedIntRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    return BoundedInt()


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
            scheme = load_scheme(value)
        except LandpriorError as error:
            self.fail(str(error), param, ctx)
        if ctx is not None:
            ctx.meta.setdefault(_READ, []).append(Path(value))
        return scheme


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
    text = help or "Class scheme: enviroatlas-5, chesapeake-4 or your own YAML file."
    return click.option("--scheme", type=SchemeType(), help=text)


label_map_option = click.option(
    "--label-map",
    type=LabelMapType(),
    help='Codes of the labels and the codes of the scheme they become, such as "10:1,20:4"; other codes stay.',
)


def band_option(what: str, *names: str) -> Callable[[F], F]:
    """Return an option that chooses the band of codes of a raster; the last of its names is the parameter's."""
    text = f"Band of {what} that holds the codes, if there are several (or write FILE|band=N for a single file)."
    return click.option(*names, names[-1].strip("-").replace("-", "_"), type=click.IntRange(min=1), help=text)


def encoding_option() -> Callable[[F], F]:
    """Return the option of how probabilities are stored."""
    return click.option(
        "--encoding",
        type=click.Choice(["float16", "uint8", "float32"]),
        default="float16",
        show_default=True,
        help="Number type of probabilities on disk; uint8 is 255 p, rounded.",
    )


layer_option = click.option(
    "--layer", help="Layer of the vector file, if it has several (or write FILE|layername=NAME)."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that exist already.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, for programs.")
nodata_option = click.option(
    "--nodata",
    type=float,
    help="Value that marks no data in every band of the image, if the file itself names none.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on; auto takes CUDA where there is one.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    show_default=True,
    help="Engine that runs the network; auto is OpenVINO on a CPU if it is installed (pip install 'landprior[cpu]') "
    "and the image is large, else torch.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the network; auto is bf16 on CUDA, int8 with OpenVINO (if it holds on the image itself), else "
    "fp32.",
)
memory_option = click.option(
    "--memory",
    type=click.IntRange(min=1),
    help="Memory limit (MB).  [default: what is needed, and up to 1,024 more]",
)
recipe_option = click.option(
    "--recipe",
    type=click.Choice(["default", "best", "paper"]),
    default="default",
    show_default=True,
    help="Recipe of the training: best averages three networks and mirrored images and drops classes that the image "
    "does not support; paper is the published schedule.",
)
learned_option = click.option(
    "--learned",
    type=INPUT,
    metavar="MODEL",
    help="Model from learn-prior that fuses the layers, instead of adding them up.",
)
pixel_size_option = click.option(
    "--pixel-size",
    type=click.FloatRange(min=0, min_open=True),
    help="Metres per pixel on the ground, for files that do not say.",
)
pair_option = click.option(
    "--pair",
    "pairs",
    type=(INPUT, INPUT),
    multiple=True,
    help="Another pair of files, pooled with the first; may be repeated.",
)
workspace_option = click.option(
    "--data",
    "workspace",
    type=OUTPUT_FOLDER,
    envvar="LANDPRIOR_DATA",
    default=Path("landprior-data"),
    show_default=True,
    show_envvar=True,
    help="Workspace, with a folder <place>/<tile>/ that has one file per layer.",
)
city_option = click.option(
    "--city",
    help="Place: a preset (pittsburgh, durham, austin, phoenix), your own preset file (.yaml), or a folder of the "
    "workspace.",
)
tile_option = click.option(
    "--tile", "tiles", multiple=True, help="Tile of the place to restrict the work to; may be repeated."
)


def stack_options(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def refuse_with_city(ctx: click.Context, *names: str) -> None:
    """Refuse options of plain files that were given together with ``--city``.

    Raises
    ------
    click.UsageError
        Names the first of them.
    """
    _refuse(ctx, names, "is for plain files; a workspace (--city) has its own files and names")


def refuse_without_city(ctx: click.Context) -> None:
    """Refuse options of a workspace that were given without ``--city``.

    Raises
    ------
    click.UsageError
        Names the first of them.
    """
    _refuse(ctx, ("tiles", "workspace"), "is for a workspace; name one of its places with --city")


def refuse_options(ctx: click.Context, what: str, *names: str) -> None:
    """Refuse options that have no effect with what was given.

    Raises
    ------
    click.UsageError
        Names the first of them.
    """
    _refuse(ctx, names, f"cannot be used with {what}")


def _refuse(ctx: click.Context, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p for p in ctx.command.params if p.name == name)
            msg = f"{option.opts[0]} {why}"
            raise click.UsageError(msg)


def require_as_many(
    name: str, counted: Sequence[object], given: Mapping[str, Sequence[object]], *, of: str = "", why: str = ""
) -> None:
    """Refuse repeated options of which there are not as many as of the one that they belong to.

    Parameters
    ----------
    name, counted
        The option that counts, and what it gave.
    given
        Other options, and what they gave.
    of
        What needs one of each; by default what the option is named after.
    why
        Ends the message.

    Raises
    ------
    click.UsageError
        Names the first that differs.
    """
    for other, paths in given.items():
        if len(paths) != len(counted):
            msg = f"{len(counted)} --{name} and {len(paths)} --{other} were given; each {of or name} needs its own{why}"
            raise click.UsageError(msg)


def training_settings(recipe: str, *, labelled: bool = False, **changes: Any) -> TileSettings:  # noqa: ANN401
    """Put what was given over the recipe.

    Raises
    ------
    click.UsageError
        If a value is out of its range, or options contradict each other.
    """
    from pydantic import ValidationError

    from landprior.landcover.training.settings import make_settings
    from landprior.raster.scheme import explain

    try:
        return make_settings(recipe, labelled=labelled, **changes)
    except ValidationError as error:
        raise click.UsageError(explain(error, "the training")) from error


def show_progress(ctx: click.Context) -> bool:
    """Say whether progress bars are wanted (not with --quiet)."""
    return bool((ctx.find_root().obj or {}).get("progress", True))
