"""``landprior tune``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import (
    INPUT,
    OUTPUT_FOLDER,
    device_option,
    json_option,
    label_map_option,
    marginal_option,
    recipe_option,
    scheme_option,
    show_progress,
    training_settings,
)
from landprior.cli.train import LOSS_NAMES
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.training.files import TrainingTile
    from landprior.raster.scheme import ClassScheme


class RatesType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Positive numbers, ``1e-3,1e-4``."""

    name = "rate,rate,..."

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, ...]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        try:
            rates = tuple(float(part) for part in value.split(","))
        except ValueError:
            rates = ()
        if not rates or min(rates) <= 0:
            self.fail(f"{value!r} is no list of positive numbers such as 1e-3,1e-4", param, ctx)
        return rates


@click.command(name="tune")
@click.option("--image", "images", type=INPUT, multiple=True, required=True, help="An image to train on; may repeat.")
@click.option("--prior", "priors", type=INPUT, multiple=True, help="Its prior.")
@click.option("--labels", type=INPUT, multiple=True, help="Its labels: fit them instead of the prior.")
@click.option(
    "--validation-image",
    "v_images",
    type=INPUT,
    multiple=True,
    help="To score on.  [default: the images themselves; with --labels it must be given]",
)
@click.option("--validation-prior", "v_priors", type=INPUT, multiple=True, help="Their priors.")
@click.option("--validation-labels", "v_labels", type=INPUT, multiple=True, required=True, help="Their 1 m labels.")
@click.option("-o", "--output", type=OUTPUT_FOLDER, required=True, help="Folder of models and scores.")
@click.option("--rates", type=RatesType(), help="Learning rates.  [default: 1e-3,1e-4,1e-5; 1e-2 too for labels]")
@click.option("--loss", type=click.Choice(LOSS_NAMES), help="Training objective.  [default: qr; ce with --labels]")
@recipe_option
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.")
@click.option("--filters", type=click.IntRange(min=1), help="Width of the network.")
@click.option("--patch-size", type=click.IntRange(min=11), help="Side of the patches, pixels.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Patches a step.")
@marginal_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same models.")
@scheme_option(help="Classes; needed with --labels.")
@label_map_option
@device_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    labels: tuple[Path, ...],
    v_images: tuple[Path, ...],
    v_priors: tuple[Path, ...],
    v_labels: tuple[Path, ...],
    output: str,
    rates: tuple[float, ...] | None,
    loss: str | None,
    recipe: str,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    device: str,
    as_json: bool,
    **changes: int | str | None,
) -> None:
    """Choose the learning rate on a validation tile, by the paper's grid.

    \b
    landprior tune --image naip.tif --prior prior.tif --validation-labels labels.tif -o tuning
    landprior tune --image a.tif --labels a_lc.tif --validation-image b.tif --validation-labels b_lc.tif \\
        --scheme chesapeake-4 --rates 1e-2,1e-3 -o tuning

    One model per rate is trained and scored (r for a prior, q for labels). The table goes to stdout, the models
    and tune.json to the folder; the same command after an interruption goes on. Then: landprior train
    --learning-rate RATE on other places. Never score a map on the tile its rate was chosen on.
    """  # noqa: D301
    from pathlib import Path

    from landprior.landcover.experiments.tuning import best_model, best_of, tune

    settings = training_settings(recipe, labelled=bool(labels), loss=loss, **changes)
    if labels and scheme is None:
        msg = "labels need --scheme, which says what their codes are"
        raise click.UsageError(msg)
    if not labels and not priors:
        msg = "give --prior or --labels for each --image"
        raise click.UsageError(msg)
    trials = tune(
        _tiles("", images, priors, labels),
        _tiles("validation-", v_images or images, v_priors if v_images else v_priors or priors, v_labels),
        output,
        settings,
        rates=rates or (),
        scheme=scheme,
        label_map=label_map,
        run=Run(device=device, progress=show_progress(ctx)),
    )
    best = best_of(trials)
    if as_json:
        rows = [vars(trial) for trial in trials]
        model = str(best_model(Path(output), trials))
        click.echo(json.dumps({"trials": rows, "learning_rate": best.learning_rate, "model": model}, indent=2))
        return
    click.echo("learning rate  accuracy  mean IoU")
    for trial in trials:
        mark = "  <- best" if trial is best else ""
        click.echo(f"{trial.learning_rate:>13g} {trial.accuracy:9.4f} {trial.mean_iou:9.4f}{mark}")
    click.echo(f"its model: {best_model(Path(output), trials)}")


def _tiles(
    kind: str, images: tuple[Path, ...], priors: tuple[Path, ...], labels: tuple[Path, ...]
) -> list[TrainingTile]:
    """Put repeated options together."""
    from landprior.landcover.training.files import TrainingTile

    for name, paths in (("prior", priors), ("labels", labels)):
        if paths and len(paths) != len(images):
            msg = f"{len(images)} images and {len(paths)} --{kind}{name} were given; each image needs its own"
            raise click.UsageError(msg)
    return [
        TrainingTile(image=image, prior=priors[index] if priors else None, labels=labels[index] if labels else None)
        for index, image in enumerate(images)
    ]
