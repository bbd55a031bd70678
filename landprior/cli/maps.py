"""Options of the files of a map; :func:`make_map_options` reads their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import grouped
from landprior.landcover.mapping.options import FINISH_WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from landprior.landcover.mapping.options import MapOptions

maps_option = shared.choice_option(
    "--maps",
    choices=["r", "q"],
    default="r",
    help="Probabilities to map in a workspace: the posterior r, or the network's q.",
)
force_option = click.option(
    "--force",
    is_flag=True,
    help="Map despite the checks: r with all classes of a model judged worse than its prior, and an image of "
    "another kind (data type, values, bands, pixel size) than the model was trained on.",
)
finish_options = (
    shared.choice_option(
        "--finish",
        choices=["edge", "none"],
        default="edge",
        help="How to finish the map. edge: r leaves out classes that the training gave up, and probabilities are "
        "smoothed along the edges of the image. none: each pixel stays as the network sees it.",
    ),
    click.option(
        "--finish-width",
        type=click.FloatRange(min=0, min_open=True),
        default=FINISH_WIDTH,
        show_default=True,
        metavar="METRES",
        help="Side of the square over which --finish edge smooths.",
    ),
)
_PRODUCTS = {
    "probabilities": click.option(
        "--probabilities", is_flag=True, help="Also write class probabilities, <map>_probabilities.tif."
    ),
    "encoding": shared.encoding_option(),
    "confidence": click.option(
        "--confidence", is_flag=True, help="Also write the largest probability and the entropy, <map>_confidence.tif."
    ),
    "style": click.option(
        "--style/--no-style",
        default=True,
        show_default=True,
        help="Also write a QGIS style, <map>.qml, with which QGIS lists the classes only.",
    ),
    "quicklook": click.option("--quicklook", is_flag=True, help="Also write a picture, <map>.png."),
}


def map_options(*, without: Collection[str] = ()) -> Callable[[Any], Any]:
    """Return the options of the files of a map; ``without`` names those that a command always or never writes."""
    return grouped("Map", *(option for name, option in _PRODUCTS.items() if name not in without))


def make_map_options(ctx: click.Context, options: Mapping[str, Any]) -> MapOptions:
    """Return the files to write with a map; ``--encoding`` is refused where there are no probabilities to encode."""
    from landprior.landcover.mapping.options import MapOptions

    if options.get("probabilities") is False:
        refuse_options(ctx, "a map only; it sets how --probabilities are stored", "encoding")
    if options.get("finish") == "none":
        refuse_options(ctx, "--finish none", "finish_width")
    return MapOptions(**{name: options[name] for name in MapOptions.__dataclass_fields__ if name in options})
