"""``landprior zonal``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT, OUTPUT, LabelMapType

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="zonal", cls=Command)
@click.argument("map_path", metavar="MAP", type=INPUT)
@click.argument("polygons", metavar="POLYGONS", type=INPUT)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, help="Areas to write: .gpkg or .parquet with the polygons, or .csv."
)
@grouped(
    "Polygons",
    click.option(
        "--id",
        "identity",
        metavar="COLUMN",
        help="Column that names the polygons, the only one to keep; its values must differ.  [default: all columns]",
    ),
    shared.layer_option,
)
@grouped(
    "Map",
    shared.scheme_option(help="Classes of the map, if its tags do not have them."),
    shared.band_option("the map", "--map-band"),
    click.option(
        "--map-map",
        type=LabelMapType(),
        help='Codes of the map and the codes of the scheme they become, such as "1:10", if it has another scheme.',
    ),
    shared.pixel_size_option,
)
@grouped(
    "Correction",
    click.option(
        "--points",
        type=INPUT,
        help="Points drawn by landprior sample and interpreted: areas are corrected for the map's errors.",
    ),
    click.option(
        "--class-column", default="reference", show_default=True, help="Column of the points with their class."
    ),
    click.option("--points-layer", help="Layer of the points, if their file has several."),
    click.option(
        "--label-map",
        type=LabelMapType(),
        help='Codes of the points and the codes of the scheme they become, such as "10:1,20:4".',
    ),
)
@shared.run_options("overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    map_path: Path,
    polygons: Path,
    output: Path,
    identity: str | None,
    layer: str | None,
    scheme: ClassScheme | None,
    map_band: int | None,
    map_map: dict[int, int] | None,
    pixel_size: float | None,
    points: Path | None,
    class_column: str,
    points_layer: str | None,
    label_map: dict[int, int] | None,
    run: Run,
) -> None:
    """Measure the area of each class of MAP in each of the POLYGONS, by exact overlap.

    \b
    landprior zonal map.tif parcels.gpkg -o areas.gpkg
    landprior zonal map.tif parcels.gpkg --id parcel_id -o areas.csv
    landprior zonal map_probabilities.tif parcels.gpkg -o expected.csv
    landprior zonal map.tif parcels.gpkg --points points.gpkg -o areas.gpkg

    A pixel counts with the part of it that lies in a polygon, and with its true area on the ground. Columns:
    <class>_ha (hectares), <class>_share (of the mapped area), area_ha, and unmapped_ha, the part without data or off
    the map. A raster of probabilities gives expected areas. Polygons may be in any CRS.

    With --points, also <class>_corrected_ha with the 95 % interval <class>_low_ha to <class>_high_ha, and in
    estimator how it was made: assisted, by the polygon's own points (20 or more), or synthetic, by the points of the
    whole map, which assumes that the map errs there as elsewhere. The interval is empty if the points are too few.
    """  # noqa: D301
    from landprior.landcover.vectors.zonal import AreaOptions, write_areas
    from landprior.raster.names import with_band

    if points is None:
        refuse_options(ctx, "areas as mapped; give --points FILE", "class_column", "points_layer", "label_map")
    options = AreaOptions(
        scheme=scheme,
        layer=layer,
        identity=identity,
        map_map=map_map,
        points=points,
        class_column=class_column,
        points_layer=points_layer,
        label_map=label_map,
        pixel_size=pixel_size,
    )
    write_areas(with_band(map_path, map_band), polygons, output, options=options, run=run)
    click.echo(str(output))
