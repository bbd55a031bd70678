"""Commands with grouped options in their help, which still accept former option names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")

GENERAL = "Options"
"""Title of the options without a group, which come last."""


class Command(click.Command):
    """A command with groups of options.

    Parameters
    ----------
    *args, **kwargs
        Arguments of :class:`click.Command`.
    former
        Former name of an option -> its current name. Former names are hidden from the help but work, with a warning.
    """

    def __init__(self, *args: Any, former: Mapping[str, str] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.former = dict(former or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, translating former option names."""
        return super().parse_args(ctx, self._translate(args))

    def _translate(self, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        translated = []
        for arg in args[:end]:
            option, equals, value = arg.partition("=")
            now = self.former.get(option)
            if now is not None:
                _warn_of_former(f"landprior {self.name}", option, now)
            translated.append(arg if now is None else f"{now}{equals}{value}")
        return translated + args[end:]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group in the order in which they are declared."""
        for title, records in describe_options(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


def describe_options(command: click.Command, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return the options and their help by title of their group, those without a group last."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            groups.setdefault(group_of(param), []).append(record)
    if GENERAL in groups:
        groups[GENERAL] = groups.pop(GENERAL)
    return groups


def _warn_of_former(command: str, option: str, now: str) -> None:
    import warnings

    from landprior.errors import FormerNameWarning

    msg = f"{command}: {option} is now called {now}; the old name will stop working in a later release"
    warnings.warn(msg, FormerNameWarning, stacklevel=2)


def group_of(param: click.Parameter) -> str:
    """Return the title of the group that a parameter is listed in."""
    return str(getattr(param, "group", GENERAL))


def grouped(title: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return a decorator that adds options, in order, and lists them under a title in the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            before = len(vars(function).get("__click_params__", ()))
            function = option(function)
            for param in vars(function)["__click_params__"][before:]:
                param.group = title
        return function

    return decorate
