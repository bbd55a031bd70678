"""Options of the files of a map; :func:`make_map_options` takes what they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli.command import grouped
from landprior.cli.options import encoding_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landprior.landcover.mapping.options import MapOptions

maps_option = click.option(
    "--maps",
    type=click.Choice(["r", "q"]),
    default="r",
    show_default=True,
    help="Probabilities to map in a workspace: the posterior r, or the network's q.",
)
product_options = (
    click.option("--probabilities", is_flag=True, help="Also write class probabilities, <map>_probabilities.tif."),
    encoding_option(),
    click.option(
        "--confidence", is_flag=True, help="Also write the largest probability and the entropy, <map>_confidence.tif."
    ),
    click.option("--style", is_flag=True, help="Also write a QGIS style, <map>.qml."),
    click.option("--quicklook", is_flag=True, help="Also write a picture, <map>.png."),
)
map_options = grouped(
    "Map",
    *product_options,
    click.option(
        "--force",
        is_flag=True,
        help="Map in spite of the checks: r with all classes of a model judged worse than its prior, and an image of "
        "another kind (data type, values, bands, pixel size) than the model was trained on.",
    ),
)


def make_map_options(options: Mapping[str, Any]) -> MapOptions:
    """Return the files to write with a map."""
    from landprior.landcover.mapping.options import MapOptions

    return MapOptions(**{name: options[name] for name in MapOptions.__dataclass_fields__ if name in options})
