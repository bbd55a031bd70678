"""Rejecting incompatible options, and outputs that would replace inputs, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.parameters import OUTPUT, OUTPUT_FOLDER, READ, InputType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_SOURCES = ("nlcd", "osm", "buildings")
"""Options whose value may be a file or something else, such as a URL or ``none``."""


def check_places(ctx: click.Context) -> list[Path]:
    """Raise an error if an output of a command is one of its inputs; return the inputs.

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
    inputs += ctx.meta.get(READ, [])
    texts = [ctx.params.get(name) for name in _SOURCES if name in ctx.params]
    inputs += [Path(text) for text in texts if isinstance(text, str) and text]
    check_apart(outputs, inputs)
    for folder in folders:
        check_folder(folder, inputs)
    return inputs


def _flatten(value: Any) -> list[Any]:  # noqa: ANN401 - any value parsed by click
    return [one for part in value for one in _flatten(part)] if isinstance(value, (list, tuple)) else [value]


def refuse_with_city(ctx: click.Context, *names: str) -> None:
    """Refuse options of plain files that were given together with ``--city``.

    Raises
    ------
    click.UsageError
        If there are any; names the first.
    """
    _refuse(ctx, names, "is for plain files; a workspace (--city) has its own files and names")


def refuse_without_city(ctx: click.Context) -> None:
    """Refuse options of a workspace that were given without ``--city``.

    Raises
    ------
    click.UsageError
        If there are any; names the first.
    """
    _refuse(ctx, ("tiles", "workspace"), "is for a workspace; name one of its places with --city")


def refuse_options(ctx: click.Context, what: str, *names: str) -> None:
    """Refuse options that have no effect with what was given.

    Raises
    ------
    click.UsageError
        If there are any; names the first.
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
    """Raise an error for repeated options that do not match the number of the option they belong to.

    Parameters
    ----------
    name, counted
        The reference option, and its values.
    given
        Other options, and their values.
    of
        The thing that needs one of each; by default the option's name.
    why
        End of the message.

    Raises
    ------
    click.UsageError
        If a number differs; names the first option.
    """
    for other, paths in given.items():
        if len(paths) != len(counted):
            msg = f"{len(counted)} --{name} and {len(paths)} --{other} were given; each {of or name} needs its own{why}"
            raise click.UsageError(msg)
