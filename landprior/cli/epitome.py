"""``landprior epitome``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path


@click.command(name="epitome", cls=Command)
@click.argument("model", type=INPUT)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Picture to write (.png, .pdf).")
@shared.overwrite_option
def command(*, model: Path, output: Path, overwrite: bool) -> None:
    """Draw the epitome of MODEL: its means, its classes, and how often each position was used.

    \b
    landprior train --image naip.tif --prior prior.tif --method epitome --nlcd nlcd.tif -o model.safetensors
    landprior epitome model.safetensors -o epitome.png
    """  # noqa: D301
    from landprior.landcover.training.model import load_model
    from landprior.superres.epitome_figure import draw_epitome

    click.echo(str(draw_epitome(load_model(model), output, overwrite=overwrite)))
