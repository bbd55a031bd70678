"""``landprior paint``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT
from landprior.cli.training import training_options

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.domains.painting.drawing import Palette
    from landprior.run import Run

FIELDS = ("steps", "learning_rate", "filters", "seed")
"""Fields of the training settings that are options, besides the loss."""


@click.command(name="paint", cls=Command)
@click.argument("images", type=INPUT, nargs=-1, required=True)
@grouped(
    "Drawn prior",
    click.option(
        "--prior",
        "priors",
        type=INPUT,
        multiple=True,
        help="Prior of each image, in order: a picture of the same size whose colours mark allowed classes, or "
        "polygons.",
    ),
    shared.layer_option,
    click.option(
        "--class",
        "classes",
        multiple=True,
        metavar="NAME[=COLOUR]",
        help="Class and its colour (#rrggbb or a name such as red); repeat it for each. Colours add up like light: red "
        "and green together are yellow, which allows both.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="COLOUR=NAME|NAME",
        help="Classes allowed by an additional colour of the prior; may be repeated.",
    ),
    click.option(
        "--soften",
        type=click.FloatRange(min=0),
        default=0.2,
        show_default=True,
        help="Number added to the weight, 0 or 1, of every class; 0 makes excluded classes impossible.",
    ),
    click.option(
        "--pixels", is_flag=True, help="Read polygons as pixels, x right and y down, even if the image has a CRS."
    ),
)
@grouped(
    "Training",
    click.option(
        "--loss",
        type=click.Choice(["rq", "qr", "qr-kl", "ce"]),
        help="Objective that the training minimises.  [default: rq]",
    ),
    click.option(
        "--position/--no-position",
        default=False,
        show_default=True,
        help="Give the network the position of each pixel, for parts that look alike.",
    ),
    click.option("--jointly", is_flag=True, help="Train one model for all images, instead of one for each."),
    click.option("--model", type=INPUT, help="Model of an earlier run to apply, instead of training one."),
    *training_options(*FIELDS),
)
@map_options(without=("probabilities", "quicklook"))
@shared.folder_option("landprior-paint", help="Folder for the results, with a folder for each image.")
@shared.run_options("device", "overwrite")
@shared.json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    layer: str | None,
    classes: tuple[str, ...],
    sets: tuple[str, ...],
    soften: float,
    pixels: bool,
    loss: str | None,
    position: bool,
    jointly: bool,
    model: Path | None,
    recipe: str,
    output: Path,
    run: Run,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the other fields of the training, and the files of the map
) -> None:
    """Find the parts of IMAGES from priors drawn by hand: any picture, photograph or raster.

    \b
    landprior paint wave.jpg --prior wave-prior.png --class sea=blue --class sky=red --class boat=lime -o out
    landprior paint field.tif --prior field.geojson --class crop=gold --class weeds=green -o out
    landprior paint a.jpg b.jpg --prior a.png --prior b.png --class sky=red --class sea=blue --jointly -o out
    landprior paint other.jpg --model out/wave/model.safetensors -o more

    A rough drawing is enough: it shows which classes are possible at each place. White (the sum of all colours),
    transparent pixels and places without a polygon allow all classes. A polygon has the attribute class and optionally
    weight, or a weight under the name of each class. The results are the classes (COG and PNG), q, r, the classes over
    the image, a legend, and the model.
    """  # noqa: D301
    from landprior.domains.painting.painting import LOSS, WARMUP, Picture, paint

    if layer is not None:
        from landprior.domains.painting.drawing import is_vector
        from landprior.sources.vectors import with_layer

        priors = tuple(with_layer(prior, layer) if is_vector(prior) else prior for prior in priors)
        if not any(is_vector(prior) for prior in priors):
            msg = "--layer names a layer of polygons, but no --prior is a file of polygons"
            raise click.UsageError(msg)
    if priors and len(priors) != len(images):
        msg = f"there are {len(images)} images and {len(priors)} priors; give --prior once for each image, in order"
        raise click.UsageError(msg)
    if not priors and model is None:
        msg = "give the drawn prior of each image (--prior), or the model of an earlier run (--model)"
        raise click.UsageError(msg)
    found = paint(
        list(map(Picture, images, priors or (None,) * len(images))),
        output,
        palette=find_palette(classes, sets, priors[0] if priors else None, model),
        model=model,
        settings=shared.training_settings(
            recipe,
            loss=loss or LOSS,
            warmup=None if recipe == "paper" else WARMUP,
            **{name: options[name] for name in FIELDS},
        ),
        jointly=jointly,
        position=position,
        softness=soften,
        pixels=pixels,
        options=make_map_options(ctx, options),
        run=run,
    )
    for one in found:
        paths = {name: str(path) for name, path in vars(one).items() if path is not None}
        click.echo(json.dumps(paths) if as_json else paths["classes"])


def find_palette(
    classes: tuple[str, ...], sets: tuple[str, ...], prior: Path | None, model: Path | None
) -> Palette | None:
    """Return the classes of the colours; for polygons without ``--class``, the classes they name.

    Raises
    ------
    click.UsageError
        If the classes of a picture are missing, or given although there is a model.
    """
    from landprior.domains.painting.drawing import Palette, is_vector, list_classes, list_colours, make_palette

    if model is not None:
        if classes:
            msg = "--class cannot be used with --model: a model has its classes"
            raise click.UsageError(msg)
        from landprior.landcover.training.model import load_model

        scheme = load_model(model).scheme
        return Palette(scheme, make_palette([f"{c.name}={c.colour}" for c in scheme.classes], sets).sets)
    if classes or prior is None:
        return make_palette(classes, sets)
    if is_vector(prior):
        return make_palette(list_classes(prior), sets)
    msg = f"name the classes and their colours, --class NAME=COLOUR; {prior} has {', '.join(list_colours(prior))}"
    raise click.UsageError(msg)
