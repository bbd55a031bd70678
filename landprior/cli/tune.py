"""``landprior tune``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import require_as_many
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT, OUTPUT_FOLDER
from landprior.cli.training import loss_option, training_options

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.training.files import TrainingTile
    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


class RatesType(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions of click
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
            self.fail(f"{value!r} is not a list of positive numbers such as 1e-3,1e-4", param, ctx)
        return rates


@click.command(name="tune", cls=Command, former={"--validation-labels": "--reference"})
@grouped(
    "Files to train on",
    click.option(
        "--image", "images", type=INPUT, multiple=True, required=True, help="Image to train on; may be repeated."
    ),
    click.option("--prior", "priors", type=INPUT, multiple=True, help="Prior of the image."),
    click.option("--labels", type=INPUT, multiple=True, help="1 m labels of the image, fitted instead of the prior."),
    shared.scheme_option(help="Classes of the labels; needed with --labels."),
    shared.label_map_option,
)
@grouped(
    "Files to score on",
    click.option(
        "--validation-image",
        "v_images",
        type=INPUT,
        multiple=True,
        help="Image to score on.  [default: the images trained on; with --labels it must be given]",
    ),
    click.option("--validation-prior", "v_priors", type=INPUT, multiple=True, help="Prior of the image to score on."),
    click.option(
        "--reference", "v_labels", type=INPUT, multiple=True, required=True, help="1 m labels of the image to score on."
    ),
)
@grouped(
    "Training",
    click.option(
        "--rates",
        type=RatesType(),
        help="Learning rates to choose from.  [default: 1e-3,1e-4,1e-5; with --labels also 1e-2]",
    ),
    loss_option("; ce with --labels"),
    *training_options("steps", "filters", "patch_size", "batch_size", "marginal", "seed"),
)
@click.option("-o", "--output", type=OUTPUT_FOLDER, required=True, help="Folder for models and scores.")
@shared.run_options("device")
@shared.json_option
def command(
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
    run: Run,
    as_json: bool,
    **changes: int | str | None,
) -> None:
    """Choose the learning rate on a validation tile, by the paper's grid.

    \b
    landprior tune --image naip.tif --prior prior.tif --reference labels.tif -o tuning
    landprior tune --image a.tif --labels a_lc.tif --validation-image b.tif --reference b_lc.tif \\
        --scheme chesapeake-4 --rates 1e-2,1e-3 -o tuning

    One model per rate is trained and scored (r for a prior, q for labels). The table is printed to stdout; the models
    and tune.json are written to the folder. If interrupted, rerun the same command to resume. Then run landprior train
    --learning-rate RATE on other places. Never score a map on the tile that its rate was chosen on.
    """  # noqa: D301
    from pathlib import Path

    from landprior.landcover.experiments.tuning import best_model, find_best, tune

    settings = shared.training_settings(recipe, labelled=bool(labels), loss=loss, **changes)
    if labels and scheme is None:
        msg = "labels need --scheme to define their codes"
        raise click.UsageError(msg)
    if not labels and not priors:
        msg = "give --prior or --labels for each --image"
        raise click.UsageError(msg)
    trials = tune(
        _tiles("", "labels", images, priors, labels),
        _tiles("validation-", "reference", v_images or images, v_priors if v_images else v_priors or priors, v_labels),
        output,
        settings,
        rates=rates or (),
        scheme=scheme,
        label_map=label_map,
        run=run,
    )
    best = find_best(trials)
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
    kind: str, labels_name: str, images: tuple[Path, ...], priors: tuple[Path, ...], labels: tuple[Path, ...]
) -> list[TrainingTile]:
    """Combine the repeated options into tiles."""
    from landprior.landcover.training.files import TrainingTile

    given = {f"{kind}prior": priors, labels_name: labels}
    require_as_many("image", images, {name: paths for name, paths in given.items() if paths})
    return [
        TrainingTile(image=image, prior=priors[index] if priors else None, labels=labels[index] if labels else None)
        for index, image in enumerate(images)
    ]
