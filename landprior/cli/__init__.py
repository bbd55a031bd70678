"""The command line: ``landprior COMMAND``. One module per command; nothing heavy is imported to show help."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from landprior import __version__

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

SECTIONS = {
    "Map a place": {
        "run": ("landprior.cli.run", "Fetch the layers of a place and map it: the whole chain."),
        "fetch": ("landprior.cli.fetch", "Fetch imagery, NLCD, OpenStreetMap and buildings of a place."),
        "demo": ("landprior.cli.demo", "Show the whole chain on a synthetic scene, offline, in minutes."),
    },
    "Your own files": {
        "build-prior": ("landprior.cli.build_prior", "Turn NLCD and optional layers into a prior per pixel."),
        "train": ("landprior.cli.train", "Train a network on an image against its prior."),
        "predict": ("landprior.cli.predict", "Map an image with a trained model."),
        "adapt": ("landprior.cli.adapt", "Adapt a model to a place with a few labelled points."),
        "learn-prior": ("landprior.cli.learn_prior", "Learn to fuse the layers, from labelled tiles."),
        "cooccurrence": ("landprior.cli.cooccurrence", "Measure P(class | NLCD code) where labels exist."),
        "tune": ("landprior.cli.tune", "Choose the learning rate on a labelled validation tile."),
    },
    "From a map to numbers": {
        "zonal": ("landprior.cli.zonal", "Measure the area of each class in each polygon of a layer."),
        "polygons": ("landprior.cli.polygons", "Turn a map into polygons, coloured by class."),
        "sieve": ("landprior.cli.sieve", "Remove small patches of a map (minimum mapping unit)."),
    },
    "How good is it": {
        "evaluate": ("landprior.cli.evaluate", "Score maps on reference labels, or areas from points."),
        "sample": ("landprior.cli.sample", "Draw points of a map to interpret, for an unbiased accuracy."),
    },
    "Many tiles": {
        "plan": ("landprior.cli.plan", "Plan many tiles, to be run by any number of workers."),
        "status": ("landprior.cli.status", "Show which tiles of a plan are done, running or failed."),
        "mosaic": ("landprior.cli.mosaic", "Join the maps of a plan into one."),
    },
    "Other weak labels": {
        "partial-labels": ("landprior.cli.partial_labels", "Learn classes from candidate sets or negative labels."),
        "rank": ("landprior.cli.rank", "Learn ordered classes from pairwise comparisons."),
        "text": ("landprior.cli.text", "Sort documents with coarse labels into fine classes."),
        "paint": ("landprior.cli.paint", "Find the parts of pictures from a prior drawn by hand."),
        "density": ("landprior.cli.density", "Find a target from density classes of blocks."),
        "cluster": ("landprior.cli.cluster", "Cluster the pixels of an image without any label."),
        "assign": ("landprior.cli.assign", "Turn clusters into classes with a few labelled points."),
    },
    "Research": {
        "experiment": ("landprior.cli.experiment", "Run a whole table of the paper, or your own, with a report."),
        "compare": ("landprior.cli.compare", "Compare methods on labelled tiles: a table and maps."),
        "self-epitome": ("landprior.cli.self_epitome", "Map a small tile by its own self-similarity."),
        "epitome": ("landprior.cli.epitome", "Draw a model that is an epitome."),
    },
    "This installation": {
        "doctor": ("landprior.cli.doctor", "Check the installation, and explain how to fix problems."),
        "cache": ("landprior.cli.cache", "Show or clear what was downloaded."),
    },
}
"""Section of the help -> command -> its module and one-line help."""

_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

_FOREIGN: list[str] = []
"""Warnings about settings of another GDAL or PROJ in the environment, to be logged later."""


class _Commands(click.Group):
    """A group that imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[name][0]).command
        if not isinstance(command, click.Command):  # pragma: no cover - a mistake of ours
            msg = f"{_COMMANDS[name][0]} has no command"
            raise TypeError(msg)
        _adjust_types(command)
        if isinstance(command, click.Group) or command.callback is None:
            return command
        checked = copy.copy(command)
        checked.callback = _check_first(command.callback)
        return checked

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run the command line, independently of the terminal and the environment."""
        from landprior.cli.terminal import explain_failure, give_up_stdout, prepare_streams, quiet_libraries
        from landprior.environment import drop_foreign_settings

        prepare_streams()
        quiet_libraries()
        _FOREIGN[:] = drop_foreign_settings()  # before anything imports GDAL
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # for an error while --help is printed
            message = explain_failure(error)
            if message is None:
                raise
            give_up_stdout()
            _print_line(f"Error: {message}")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; turn errors into one line and exit code 1, ctrl-C into 130."""
        from landprior.errors import FetchInterruptedError, LandpriorError, TrainingInterruptedError

        try:
            return super().invoke(ctx)
        except (TrainingInterruptedError, FetchInterruptedError) as error:
            click.echo(err=True)
            _print_line(f"Interrupted: {error}")
            ctx.exit(130)
        except LandpriorError as error:
            if ctx.params.get("verbose", 0) > 1:
                raise
            _print_line(f"Error: {error}")
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nInterrupted; nothing was left half-written.", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - the last safety net
            _explain(ctx, error)


def _explain(ctx: click.Context, error: Exception) -> None:
    """Print an error of another library, or a bug in landprior, as one line; with -vv raise it."""
    import os

    from landprior.cli.terminal import DEBUG, explain_failure, first_line, give_up_stdout, is_stdout_failure

    message = explain_failure(error)
    if ctx.params.get("verbose", 0) > 1 or (message is None and os.environ.get(DEBUG)):
        raise error
    if message is None:
        message = (
            f"unexpected error ({type(error).__name__}: {first_line(error)}); "
            "please report it with the output of landprior -vv COMMAND"
        )
    elif is_stdout_failure(error):
        give_up_stdout()
    _print_line(f"Error: {message}")
    ctx.exit(1)


def _print_line(text: str) -> None:
    """Print a line on stderr."""
    from landprior.cli.terminal import one_line

    click.echo(one_line(text), err=True)


def _adjust_types(command: click.Command) -> None:
    """Accept choices in upper or lower case (QR, Best), and reject NaN, infinity and huge numbers.

    Only ``--nodata`` may be NaN or infinite.
    """
    from landprior.cli.parameters import make_bounded, make_finite

    for parameter in command.params:
        if isinstance(parameter.type, click.Choice):
            parameter.type.case_sensitive = False
        elif isinstance(parameter.type, click.types.FloatParamType) and parameter.name != "nodata":
            parameter.type = make_finite(parameter.type)
        elif isinstance(parameter.type, click.types.IntParamType):
            parameter.type = make_bounded(parameter.type)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                _adjust_types(below)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: landprior demo. Each command has its own --help with examples.",
)
@click.option("-v", "--verbose", count=True, help="Show more messages; repeat it for debugging, with tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Show only warnings, and no progress bars.")
@click.version_option(__version__, prog_name="landprior")
@click.pass_context
def main(ctx: click.Context, *, verbose: int, quiet: bool) -> None:
    """Land-cover maps at 1 m without 1 m labels.

    Coarse layers (NLCD, roads, buildings, water) become a prior; a small network is trained on the
    place itself; its map is written as a Cloud-Optimized GeoTIFF.
    """
    import logging

    from landprior.cli.terminal import LineFormatter, StderrHandler, quiet_warnings

    level = logging.WARNING if quiet else (logging.DEBUG if verbose else logging.INFO)

    handler = StderrHandler()
    handler.setFormatter(LineFormatter("%(message)s" if verbose < 2 else "%(name)s: %(message)s"))
    logger = logging.getLogger("landprior")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    quiet_warnings()
    _show_warnings(logger)
    for sentence in _FOREIGN:
        logger.warning("Warning: %s", sentence)
    ctx.obj = {"progress": not quiet}


def _check_first(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command check its outputs against its inputs before it does anything."""

    @functools.wraps(callback)
    def checked(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - the command's return value
        from landprior.cli.checks import check_places
        from landprior.raster.outputs import protecting

        with protecting(check_places(click.get_current_context())):
            return callback(*args, **options)

    return checked


def _show_warnings(logger: logging.Logger) -> None:
    """Show our warnings as one line each, and drop warnings of other libraries."""
    import warnings

    from landprior.errors import LandpriorWarning

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, LandpriorWarning):
            logger.warning("Warning: %s", message)
        else:
            logger.debug("%s: %s", category.__name__, message)

    warnings.simplefilter("always", LandpriorWarning)
    warnings.showwarning = show
