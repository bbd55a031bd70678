"""Options and parameter types that several commands share; each is defined once, here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
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
    text = help or "Class scheme: enviroatlas-5, chesapeake-4, or your own YAML file."
    return click.option("--scheme", type=SchemeType(), help=text)


label_map_option = click.option(
    "--label-map",
    type=LabelMapType(),
    help='Codes of the labels to codes of the scheme, for example "10:1,20:4"; unnamed codes keep their meaning.',
)


def band_option(what: str, *names: str) -> Callable[[F], F]:
    """Return an option that chooses the band of codes of a raster; the last of its names is the parameter's."""
    text = f"Which band of {what} holds the codes, if it has several; or write FILE|band=N for a single file."
    return click.option(*names, names[-1].strip("-").replace("-", "_"), type=click.IntRange(min=1), help=text)


layer_option = click.option("--layer", help="Layer of a vector file that has several (or write FILE|layername=NAME).")
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
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    show_default=True,
    help="auto: on a CPU OpenVINO, if it is installed (pip install 'landprior[cpu]') and the image is large.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="auto: bf16 on CUDA, int8 with OpenVINO (measured on the image itself), else fp32.",
)
memory_option = click.option(
    "--memory",
    type=click.IntRange(min=1),
    help="Megabytes to take at most.  [default: what is needed, and up to 1,024 more]",
)
starts_option = click.option(
    "--starts",
    type=click.IntRange(1, 32),
    help="Train so many times from different random weights, keep the likeliest model.  [default: 1]",
)
marginal_option = click.option(
    "--marginal",
    type=click.Choice(["batch", "running"]),
    help="What qr and rq compare an item with: its batch, or a running mean, for small batches.  [default: batch]",
)
recipe_option = click.option(
    "--recipe",
    type=click.Choice(["default", "best", "paper"]),
    default="default",
    show_default=True,
    help="best: three networks and mirrored images, averaged, classes that look made up left out; paper: the "
    "published schedule.",
)
learned_option = click.option(
    "--learned", type=INPUT, metavar="MODEL", help="A prior from learn-prior, which fuses the layers in place of sums."
)
members_option = click.option(
    "--members",
    type=click.IntRange(1, 32),
    help="Train so many times from different random weights, average their predictions.  [default: 1; best: 3]",
)
pixel_size_option = click.option(
    "--pixel-size",
    type=click.FloatRange(min=0, min_open=True),
    help="Metres per pixel on the ground, for files without it.",
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
    type=OUTPUT_FOLDER,
    envvar="LANDPRIOR_DATA",
    default=Path("landprior-data"),
    show_default=True,
    show_envvar=True,
    help="Workspace: <city>/<tile>/ with one file per layer.",
)
city_option = click.option(
    "--city",
    help="A preset (pittsburgh, durham, austin, phoenix), your own preset file (.yaml), or a folder of the workspace.",
)
tile_option = click.option("--tile", "tiles", multiple=True, help="Only these tiles of the city; may repeat.")


class BoundsType(click.ParamType):  # type: ignore[type-arg]
    """Four numbers, ``west,south,east,north``."""

    name = "west,south,east,north"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, float, float, float]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        from landprior.errors import LandpriorError
        from landprior.sources.areas import parse_bounds

        try:
            return parse_bounds(value)
        except LandpriorError as error:
            self.fail(str(error), param, ctx)


YEARS = click.IntRange(1985, 2100)

_AREA_OPTIONS = (
    click.option("--bbox", type=BoundsType(), help="A box in degrees: west,south,east,north (longitude first)."),
    click.option("--place", help='A place by name, such as "Ithaca, NY" (asks Nominatim).'),
    click.option("--aoi", type=INPUT, help="A file with the outline: GeoJSON, GeoPackage, ... in any CRS."),
    click.option("--name", help="Folder of the place in the workspace.  [default: from the place, the file, the box]"),
)
_SOURCE_OPTIONS = (
    click.option(
        "--year", type=YEARS, help="NAIP year; the nearest there is taken.  [default: the preset's, or the latest]"
    ),
    click.option("--nlcd-year", type=YEARS, help="NLCD year.  [default: the preset's, or NAIP's]"),
    click.option("--naip", type=INPUT, help="A folder of NAIP files, instead of the catalogue."),
    click.option("--stac-url", help="Another STAC API with a collection naip.  [default: Planetary Computer]"),
    click.option("--sign-url", help="What signs the catalogue's URLs.  [default: Planetary Computer's, for its own]"),
    click.option("--nlcd", help="A raster of NLCD, file or URL, instead of the coverage service; may hold {year}."),
    click.option("--nlcd-wcs", help="Another coverage service (WCS 1.0.0).  [default: USGS, Annual NLCD]"),
    click.option("--nlcd-coverage", help="Name of its coverage."),
    click.option("--osm", help="An extract (.osm.pbf, .gpkg) instead of Overpass; 'none': no roads and water."),
    click.option("--overpass-url", help="Another Overpass server.  [default: overpass-api.de]"),
    click.option("--nominatim-url", help="Another Nominatim server, for --place."),
    click.option("--buildings", help="Footprints (GeoJSON, FlatGeobuf, GeoParquet, ...); 'none': no buildings."),
    click.option("--buildings-index", help="Another copy of Microsoft's index of footprints."),
    click.option("--labels", type=INPUT, multiple=True, help="Your labels, raster or vector, for scores; may repeat."),
    click.option("--label-field", help="Attribute of vector labels with the class.  [default: class]"),
    click.option(
        "--road-width",
        type=click.Choice(["fixed", "tags"]),
        help="Roads 3 px wide, or by their tags.  [default: fixed]",
    ),
    click.option(
        "--jobs", type=click.IntRange(1, 16), help="Tiles at a time; be kind to public servers.  [default: 2]"
    ),
)
_NETWORK_OPTIONS = (
    click.option("--offline", is_flag=True, help="Use the cache only; say what is missing."),
    click.option("--refresh", is_flag=True, help="Fetch anew what is in the cache."),
    click.option("--retries", type=click.IntRange(0, 20), default=5, show_default=True, help="Of each request."),
)


def area_options(command: F) -> F:
    """Add the options that say where: ``--bbox``, ``--place``, ``--aoi``, ``--name`` (``--city`` is its own)."""
    return stack_options(command, _AREA_OPTIONS)


def source_options(command: F) -> F:
    """Add the options that say from where; their names are the fields of ``FetchSettings``."""
    return stack_options(command, _SOURCE_OPTIONS + _NETWORK_OPTIONS)


def stack_options(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


SOURCE_NAMES = (
    "year", "nlcd_year", "naip", "stac_url", "sign_url", "nlcd", "nlcd_wcs", "nlcd_coverage", "osm", "overpass_url",
    "nominatim_url", "buildings", "buildings_index", "labels", "label_field", "road_width", "jobs",
)  # fmt: skip


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
