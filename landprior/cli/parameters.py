"""Types of parameters: files to read and to write, numbers, class schemes, label maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from landprior.raster.scheme import ClassScheme


class InputType(click.Path):
    """An input file or folder; the library checks that it exists and is readable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Reject remote paths before conversion to a Path, which turns s3://b into s3:/b."""
        from landprior.raster.remote import archive_path, explain_remote_input

        why = explain_remote_input(value)
        if why is not None:
            self.fail(why, param, ctx)
        return super().convert(archive_path(value), param, ctx)


class OutputType(click.Path):
    """A file, or a folder, to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Reject remote paths before conversion to a Path."""
        from landprior.errors import InputError
        from landprior.raster.remote import refuse_remote

        try:
            refuse_remote(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


INPUT = InputType(path_type=Path)


OUTPUT = OutputType(path_type=Path)


OUTPUT_FOLDER = OutputType(path_type=Path, file_okay=False)


READ = "landprior.read"
"""Key of the context's list of files read while the options were parsed."""


LARGEST = 2**31 - 1
"""Largest count or seed accepted; libraries overflow beyond it."""


class FiniteFloat(click.types.FloatParamType):
    """A finite number; NaN and infinity would pass every other check."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Parse the text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class FiniteFloatRange(FiniteFloat, click.FloatRange):
    """A finite number in a range."""


class BoundedInt(click.types.IntParamType):
    """A whole number small enough for the libraries."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Parse the text."""
        number = int(super().convert(value, param, ctx))
        if abs(number) > LARGEST:
            self.fail(f"{value} is too large; the maximum is {LARGEST}.", param, ctx)
        return number


class BoundedIntRange(BoundedInt, click.IntRange):
    """A bounded whole number in a range."""


def make_finite(kind: click.types.FloatParamType) -> FiniteFloat:
    """Return the corresponding type for finite numbers."""
    if isinstance(kind, click.FloatRange):
        return FiniteFloatRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    return FiniteFloat()


def make_bounded(kind: click.types.IntParamType) -> BoundedInt:
    """Return the corresponding type for numbers up to :data:`LARGEST`."""
    if isinstance(kind, click.IntRange):
        return BoundedIntRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    return BoundedInt()


class SchemeType(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions of click
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
            ctx.meta.setdefault(READ, []).append(Path(value))
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
