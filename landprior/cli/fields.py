"""Options made from the fields of settings, the only source of their names, choices, ranges, defaults and help."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import click
from pydantic import BaseModel, ValidationError

from landprior.cli.parameters import INPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic.fields import FieldInfo

F = TypeVar("F", bound="Callable[..., Any]")
Model = TypeVar("Model", bound=BaseModel)


def field_option(
    model: type[BaseModel],
    name: str,
    *spelling: str,
    usual: BaseModel | None = None,
    others: Mapping[str, BaseModel] | None = None,
    choices: Iterable[str] | None = None,
    multiple: bool = False,
    help: str | None = None,  # noqa: A002 - click's word
) -> Callable[[F], F]:
    """Return a decorator that adds the option of a field; if not given, its value is None, or () if it may be repeated.

    Parameters
    ----------
    model
        Settings with the field, or with nested settings that have it.
    name
        Name of the field and of the parameter.
    *spelling
        Spelling of the option, and optionally a parameter name; by default ``--`` and the field's name.
    usual
        Settings whose value is shown as the default; by default those of the model.
    others
        Label -> other settings whose value is also shown, if it differs.
    choices
        Fewer choices than the field allows.
    multiple
        Whether the option may be repeated; tuple fields always can.
    help
        Help to use instead of the field's description, which ends with ``[default: ...]`` to replace the shown default.
    """
    info, get = find_field(model, name)
    kind, is_tuple = _kind_of(info, choices)
    text = help or info.description or ""
    many = multiple or is_tuple
    if many and "repeated" not in text:
        text = re.sub(r"\.(?=\s*(\[default|$))", "; may be repeated.", text)
    if "[default:" not in text:
        text = f"{text}{_show_default(get, usual or model(), others or {})}"
    names = [*(spelling or (f"--{name.replace('_', '-')}",))]
    if all(one.startswith("-") for one in names):
        names.append(name)
    if kind is click.BOOL:
        if not spelling:
            names[0] = f"{names[0]}/--no{names[0][1:]}"
        return click.option(*names, default=None, help=text)
    return click.option(*names, type=kind, multiple=many, help=text)


def field_options(
    model: type[BaseModel],
    *fields: str,
    usual: BaseModel | None = None,
    others: Mapping[str, BaseModel] | None = None,
) -> tuple[Callable[[Any], Any], ...]:
    """Return decorators that add the options of several fields (:func:`field_option`)."""
    return tuple(field_option(model, field, usual=usual, others=others) for field in fields)


def find_field(model: type[BaseModel], name: str) -> tuple[FieldInfo, Callable[[BaseModel], Any]]:
    """Return a field of settings or of nested settings, and a function that gets its value.

    Raises
    ------
    KeyError
        If there is no such field.
    """
    if name in model.model_fields:
        return model.model_fields[name], lambda settings: getattr(settings, name)
    for outer, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return inner.model_fields[name], lambda settings, outer=outer: getattr(getattr(settings, outer), name)
    raise KeyError(name)


def pick_given(options: Mapping[str, Any], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the options that were given; if a model is given, only those that are its fields."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value != () and (model is None or name in model.model_fields)
    }


def make_checked(model: type[Model], what: str, **given: Any) -> Model:  # noqa: ANN401 - any fields
    """Return settings with the given values.

    Raises
    ------
    click.UsageError
        If a value is out of its range, or options contradict each other; ``what`` names the settings in the message.
    """
    from landprior.raster.scheme import explain

    try:
        return model(**given)
    except ValidationError as error:
        raise click.UsageError(explain(error, what)) from error


def _kind_of(info: FieldInfo, choices: Iterable[str] | None) -> tuple[click.ParamType, bool]:  # type: ignore[type-arg,unused-ignore]
    """Return the type of an option for a field, and whether the field is a tuple."""
    found = _unwrap(info.annotation)
    allowed = found.choices if choices is None else [*choices]
    if allowed:
        return click.Choice(allowed), found.is_tuple
    if found.plain is bool:
        return click.BOOL, False
    if issubclass(found.plain, Path):
        return INPUT, found.is_tuple
    if found.plain in (int, float):
        parts = (*info.metadata, *found.metadata)
        limits = {name: getattr(one, name) for one in parts for name in ("ge", "gt", "le", "lt") if hasattr(one, name)}
        if not limits:
            return (click.INT if found.plain is int else click.FLOAT), found.is_tuple
        least, most = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
        range_of = click.IntRange if found.plain is int else click.FloatRange
        return range_of(least, most, min_open="gt" in limits, max_open="lt" in limits), found.is_tuple
    return click.STRING, found.is_tuple


@dataclass(frozen=True)
class _Unwrapped:
    """The parts of an annotation: choices or a plain type, its limits, and whether it is a tuple."""

    plain: type
    choices: list[str] = field(default_factory=list)
    metadata: tuple[Any, ...] = ()
    is_tuple: bool = False


def _unwrap(annotation: Any) -> _Unwrapped:  # noqa: ANN401 - any annotation
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _Unwrapped(str, [str(one) for one in inner])
    if origin is Annotated:
        limits = tuple(limit for one in inner[1:] for limit in getattr(one, "metadata", [one]))
        return replace(_unwrap(inner[0]), metadata=limits)
    if origin in (typing.Union, types.UnionType):
        parts = [_unwrap(one) for one in inner if one is not type(None)]
        return replace(parts[0], choices=[choice for part in parts for choice in part.choices])
    if origin is tuple:
        return replace(_unwrap(inner[0]), is_tuple=True)
    return _Unwrapped(annotation)


def _show_default(get: Callable[[BaseModel], Any], usual: BaseModel, others: Mapping[str, BaseModel]) -> str:
    default = get(usual)
    if isinstance(default, bool) or default is None or default == ():
        return ""
    shown = {default: _text(default)}
    for label, one in others.items():
        shown.setdefault(get(one), f"{label} {_text(get(one))}")
    return f"  [default: {'; '.join(shown.values())}]"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
