"""Options and parameter types shared by several commands, each defined once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from landprior.cli.parameters import INPUT, OUTPUT_FOLDER, LabelMapType, SchemeType
from landprior.run import Run

if TYPE_CHECKING:
    from landprior.landcover.training.settings import TileSettings

F = TypeVar("F", bound=Callable[..., Any])


def choice_option(*names: str, choices: Sequence[str], default: str, help: str) -> Callable[[F], F]:  # noqa: A002
    """Return an option that is one of several words, with its default in the help."""
    return click.option(*names, type=click.Choice(choices), default=default, show_default=True, help=help)


def seed_option(*, help: str) -> Callable[[F], F]:  # noqa: A002 - click's word
    """Return the ``--seed`` option of a command whose settings have no field for it."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=help)


def folder_option(default: str, *, help: str) -> Callable[[F], F]:  # noqa: A002 - click's word
    """Return the ``--output`` option of a command that writes a folder of results."""
    return click.option("-o", "--output", type=OUTPUT_FOLDER, default=Path(default), show_default=True, help=help)


def scheme_option(*, help: str = "") -> Callable[[F], F]:  # noqa: A002 - click's word
    """Return the ``--scheme`` option."""
    text = help or "Class scheme: enviroatlas-5, chesapeake-4 or your own YAML file."
    return click.option("--scheme", type=SchemeType(), help=text)


def cooccurrence_option(*, of: str = "", default: str = "the scheme's") -> Callable[[F], F]:
    """Return the ``--cooccurrence`` option; ``of`` ends its first sentence, ``default`` is named in the help."""
    return click.option("--cooccurrence", type=INPUT, help=f"Matrix P(class | NLCD code){of}.  [default: {default}]")


label_map_option = click.option(
    "--label-map",
    type=LabelMapType(),
    help='Codes of the labels and the codes of the scheme they become, such as "10:1,20:4"; other codes stay.',
)


def band_option(what: str, *names: str) -> Callable[[F], F]:
    """Return an option for the band of codes of a raster; the last name is that of the parameter."""
    text = f"Band of {what} with the codes, if there are several (or write FILE|band=N for a single file)."
    return click.option(*names, names[-1].strip("-").replace("-", "_"), type=click.IntRange(min=1), help=text)


def encoding_option() -> Callable[[F], F]:
    """Return the option of how probabilities are stored."""
    return choice_option(
        "--encoding",
        choices=["float16", "uint8", "float32"],
        default="float16",
        help="Number type of probabilities on disk; uint8 is 255 p, rounded.",
    )


layer_option = click.option(
    "--layer", help="Layer of the vector file, if it has several (or write FILE|layername=NAME)."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing results.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, for programs.")
nodata_option = click.option(
    "--nodata",
    type=float,
    help="Nodata value of every band of the image, if the file has none.",
)
device_option = choice_option(
    "--device",
    choices=["auto", "cpu", "cuda"],
    default="auto",
    help="Device to compute on; auto uses CUDA if available.",
)
engine_option = choice_option(
    "--engine",
    choices=["auto", "torch", "openvino"],
    default="auto",
    help="Engine that runs the network; auto is OpenVINO on a CPU if it is installed (pip install 'landprior[cpu]') "
    "and the image is large, else torch.",
)
precision_option = choice_option(
    "--precision",
    choices=["auto", "fp32", "bf16", "int8"],
    default="auto",
    help="Arithmetic of the network; auto is bf16 on CUDA, int8 with OpenVINO (if accurate enough on the image), else "
    "fp32.",
)
memory_option = click.option(
    "--memory",
    type=click.IntRange(min=1),
    help="Memory limit (MB).  [default: what is needed, and up to 1,024 more]",
)
recipe_option = choice_option(
    "--recipe",
    choices=["default", "best", "paper"],
    default="default",
    help="Recipe of the training: best averages three networks and mirrored images and drops classes that the image "
    "does not support; paper is the published schedule.",
)
learned_option = click.option(
    "--learned",
    type=INPUT,
    metavar="MODEL",
    help="Model from learn-prior that fuses the layers, instead of the hand-coded rules.",
)
pixel_size_option = click.option(
    "--pixel-size",
    type=click.FloatRange(min=0, min_open=True),
    help="Metres per pixel on the ground, for files that are not georeferenced.",
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
    """Add options to a command, in order."""
    for option in reversed(options):
        command = option(command)
    return command


_OF_RUN = {"device": device_option, "overwrite": overwrite_option, "nodata": nodata_option}


def run_options(*names: str) -> Callable[[F], F]:
    """Add options of how a command is carried out; it gets them, and whether to show progress, as one ``run``.

    Those that stand in another group of its help, and so are not named here, are taken as well.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def carry_out(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the command takes
            given = {name: options.pop(name) for name in _OF_RUN if name in options}
            run = Run(**given, progress=show_progress(click.get_current_context()))
            return command(*args, run=run, **options)

        return stack_options(cast("F", carry_out), tuple(_OF_RUN[name] for name in names))

    return decorate


def training_settings(recipe: str, *, labelled: bool = False, **changes: Any) -> TileSettings:  # noqa: ANN401
    """Return the settings of a recipe with the given values.

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
    """Return whether to show progress bars (not with --quiet)."""
    return bool((ctx.find_root().obj or {}).get("progress", True))
