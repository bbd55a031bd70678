"""Options of a training, made from the fields of its settings; :func:`training_settings` reads their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from landprior.cli.fields import field_option, field_options, find_field
from landprior.cli.options import layer_option, recipe_option, training_settings
from landprior.cli.parameters import INPUT
from landprior.implicit.settings import LossName
from landprior.landcover.training.settings import TileSettings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FIELDS", "loss_option", "points_options", "smaller_options", "training_options", "training_settings"]

FIELDS = (
    "network",
    "steps",
    "warmup_steps",
    "learning_rate",
    "filters",
    "receptive_field",
    "patch_size",
    "batch_size",
    "seed",
    "starts",
    "members",
    "marginal",
    "precision",
)
"""Fields of :class:`TileSettings` and its loop settings that are options."""

_RECIPES = {"best": TileSettings.best(), "paper": TileSettings.paper(), "paper with rq": TileSettings.paper("rq")}


def loss_option(note: str = "") -> Callable[[Any], Any]:
    """Return the option of the loss; ``note`` is added to its default."""
    text = f"Training objective: an implicit-posterior loss (qr, qr-kl, rq) or a baseline.  [default: qr{note}]"
    return field_option(TileSettings, "loss", choices=get_args(LossName), help=text)


def training_options(*fields: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of some fields, by default all of :data:`FIELDS`, and the recipe option."""
    return (recipe_option, *field_options(TileSettings, *(fields or FIELDS), others=_RECIPES))


def smaller_options(*fields: str) -> tuple[Callable[[Any], Any], ...]:
    """Return options that reduce a training described in a file, for a smaller machine."""
    texts = {name: find_field(TileSettings, name)[0].description for name in fields}
    return tuple(
        field_option(TileSettings, name, help=f"{text}  [default: the file's]") for name, text in texts.items()
    )


def points_options(*, required: bool = False, column: bool = True) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of labelled points to adapt a model to; ``column`` adds that of the column of the class."""
    text = "Points with their class to adapt the model to: a vector file or a CSV; may be repeated."
    of_class = "Column with the class.  [default: class, or reference]"
    return (
        click.option("--points", type=INPUT, multiple=True, required=required, help=text),
        *([click.option("--class-column", metavar="TEXT", help=of_class)] if column else []),
        layer_option,
    )
