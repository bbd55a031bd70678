"""``landprior polygons``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="polygons", cls=Command)
@click.argument("map_path", metavar="MAP", type=INPUT)
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    required=True,
    help="Polygons to write: .gpkg (coloured in QGIS), .fgb, .geojson (in degrees) or .parquet.",
)
@click.option(
    "--minimum-area",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M2",
    help="Merge patches smaller than this, in square metres on the ground, as landprior sieve does.",
)
@click.option(
    "--simplify",
    type=click.FloatRange(min=0, min_open=True),
    metavar="METRES",
    help="Smooth away the steps of pixels: corners go whose triangle is smaller than the square of this. "
    "Neighbours still meet. All polygons are then in memory.",
)
@shared.scheme_option(help="Classes of the map, if its tags do not have them.")
@shared.band_option("the map", "--band", "--map-band")
@shared.run_options("overwrite")
def command(
    *,
    map_path: Path,
    output: Path,
    minimum_area: float | None,
    simplify: float | None,
    scheme: ClassScheme | None,
    map_band: int | None,
    run: Run,
) -> None:
    """Turn MAP into polygons: one for each patch of a class, with its name, colour and area.

    \b
    landprior polygons map.tif -o map.gpkg
    landprior polygons map.tif --minimum-area 100 --simplify 2 -o map.gpkg

    Columns: code, name, colour and hectares (on the ground, before simplification). Polygons follow the pixels exactly,
    unless --simplify is given, and pixels that only touch at a corner are apart. Maps of any size are read strip by
    strip, and the polygons have no seams.
    """  # noqa: D301
    from landprior.landcover.assessment.scores import scheme_of_map
    from landprior.landcover.vectors.polygons import write_polygons
    from landprior.raster.names import with_band

    write_polygons(
        with_band(map_path, map_band),
        output,
        scheme or scheme_of_map(map_path),
        minimum_area=minimum_area,
        simplify=simplify,
        run=run,
    )
    click.echo(str(output))
