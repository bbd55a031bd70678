"""Methods of label super-resolution on the command line (``train --method``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import grouped
from landprior.cli.fields import field_option
from landprior.cli.parameters import INPUT
from landprior.superres.settings import CountSettings, EpitomeSettings, MethodSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.raster.scheme import ClassScheme

METHOD_LOSSES = {"qr": "qr", "rq": "rq", "soft-naive": "ce", "hard-naive": "ce-argmax"}
"""Methods that are a loss against the prior."""

METHODS = [*METHOD_LOSSES, "sr", "em", "epitome"]

_SIZE = EpitomeSettings.model_fields["size"]

method_options = grouped(
    "Methods for comparison",
    click.option(
        "--method",
        type=click.Choice(METHODS),
        help="Method instead of a loss. sr: label super-resolution, which counts classes in NLCD's cells; soft-naive, "
        "hard-naive: fit the prior, or its best class; em: expectation-maximisation on the prior; epitome: learn "
        "patches.  [default: qr]",
    ),
    click.option(
        "--nlcd", "nlcds", type=INPUT, multiple=True, help="NLCD of the image, on any grid, for sr and epitome."
    ),
    shared.band_option("NLCD", "--nlcd-band"),
    shared.cooccurrence_option(of=", for sr and epitome"),
    field_option(CountSettings, "criterion"),
    click.option("--epitome-size", type=click.IntRange(min=8), help=f"{_SIZE.description}  [default: {_SIZE.default}]"),
)
"""Options that select a method; :func:`make_method` reads their values."""


def make_method(name: str, options: Mapping[str, Any]) -> MethodSettings:
    """Return a method with the settings that were given."""
    chosen: dict[str, Any] = {"name": name}
    chosen |= {"counts": {"criterion": options["criterion"]}} if options["criterion"] else {}
    epitome = {"size": options["epitome_size"], "steps": options["steps"]}
    chosen["epitome"] = {field: value for field, value in epitome.items() if value is not None}
    return MethodSettings.model_validate(chosen)


def refuse_for_method(ctx: click.Context, name: str | None) -> None:
    """Raise an error for options that a method, or a loss (None), does not use."""
    if name is None:
        refuse_options(ctx, "a loss; it is for --method", "nlcds", "cooccurrence", "criterion", "epitome_size")
        return
    unused = {"sr": ("epitome_size",), "em": ("nlcds", "cooccurrence", "criterion", "epitome_size", "labels")}
    rest = ("criterion", "labels", "filters", "network")
    refuse_options(ctx, f"--method {name}", "starts", "members", "init", "joint", *unused.get(name, rest))


def read_matrix(
    method: MethodSettings, path: Path | None, *, like: Path | None, scheme: ClassScheme | None
) -> Cooccurrence | None:
    """Return the matrix for the classes of a prior, if the method needs one and there is a prior."""
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.training.layers import PriorLayer

    if not method.counts_cells or like is None:
        return None
    with PriorLayer(like, scheme=scheme) as belief:
        return load_cooccurrence(path, belief.scheme)
