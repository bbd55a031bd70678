"""``landprior build-prior``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options, refuse_with_city, refuse_without_city
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_options, make_checked, pick_given
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.cli.workspace import find_settings, print_steps
from landprior.landcover.prior.settings import PriorSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.prior.settings import Fusion
    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


_OF_FILES = ("nlcd_band", "like", "output", "pixel_size", "encoding")
_OF_POINTS = ("points", "points_weight", "class_column", "layer", "recalibrate")


@click.command(
    name="build-prior",
    cls=Command,
    former={"--labels": "--points", "--label-weight": "--points-weight", "--label-column": "--class-column"},
)
@grouped(
    "Files",
    click.option("--nlcd", type=INPUT, help="NLCD raster with the original codes."),
    shared.band_option("NLCD", "--band", "--nlcd-band"),
    click.option("--roads", type=INPUT, help="Raster of roads; nonzero pixels are roads."),
    click.option("--buildings", type=INPUT, help="Raster of building footprints."),
    click.option("--waterways", type=INPUT, help="Raster of waterways (lines)."),
    click.option("--waterbodies", type=INPUT, help="Raster of water bodies."),
    click.option("--like", type=INPUT, help="Raster, such as the image, on whose grid the prior is built."),
    shared.pixel_size_option,
    click.option("-o", "--output", type=OUTPUT, help="Prior to write."),
    shared.encoding_option(),
)
@grouped(
    "Prior",
    shared.scheme_option(),
    shared.cooccurrence_option(of=", .csv or .npy", default="the scheme's own"),
    *field_options(PriorSettings, "blur_sigma", "blur_radius", "fusion"),
    shared.learned_option,
)
@grouped(
    "Labelled points",
    click.option(
        "--points", type=INPUT, help="Your own labelled points or polygons, which sharpen the prior at their pixels."
    ),
    click.option(
        "--points-weight",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="Trust in the points; 1 is certainty.",
    ),
    click.option("--class-column", default="class", show_default=True, help="Column of the points with the label."),
    shared.layer_option,
    click.option(
        "--recalibrate",
        is_flag=True,
        help="Also fit class shares and sharpness of the whole prior to the points, which must be a random sample.",
    ),
)
@grouped(
    "Workspace (the same as landprior run --only prior)",
    shared.city_option,
    shared.tile_option,
    shared.workspace_option,
)
@shared.run_options("device", "overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    nlcd: Path | None,
    nlcd_band: int | None,
    roads: Path | None,
    buildings: Path | None,
    waterways: Path | None,
    waterbodies: Path | None,
    like: Path | None,
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    output: Path | None,
    blur_sigma: float | None,
    blur_radius: float | None,
    fusion: Fusion | None,
    pixel_size: float | None,
    encoding: str,
    points: Path | None,
    points_weight: float,
    class_column: str,
    layer: str | None,
    recalibrate: bool,
    learned: Path | None,
    run: Run,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
) -> None:
    """Turn NLCD and optional layers into a prior: one band per class, a probability per pixel.

    \b
    landprior build-prior --nlcd nlcd.tif --scheme enviroatlas-5 -o prior.tif
    landprior build-prior --nlcd nlcd.tif --roads roads.tif --buildings buildings.tif \\
        --waterways waterways.tif --waterbodies waterbodies.tif --scheme enviroatlas-5 -o prior.tif
    landprior build-prior --nlcd nlcd_30m.tif --like naip.tif --scheme chesapeake-4 -o prior.tif
    landprior build-prior --nlcd nlcd.tif --roads roads.tif --scheme enviroatlas-5 --learned MODEL -o prior.tif
    landprior build-prior --city pittsburgh

    NLCD codes become class probabilities through the cooccurrence matrix and are blurred; roads and buildings
    add to impervious, water layers to water. NLCD's shares already contain them: for the areas of a whole county
    --fusion conserving is better, for dense parts of cities the default. Points (--points) have one class ("trees"),
    several ("trees|grass") or an excluded class ("!water"). With about 100 random points, --recalibrate recalibrates
    the whole prior.
    """  # noqa: D301
    from landprior.landcover.prior.build import build_prior
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.prior.sparse_labels import read_sparse_labels
    from landprior.raster.grid import Grid
    from landprior.raster.names import with_band
    from landprior.raster.reading import open_raster

    given = pick_given({"blur_sigma": blur_sigma, "blur_radius": blur_radius, "fusion": fusion})
    widths = make_checked(PriorSettings, "the blur", **given) if given else None
    model = None
    if learned is not None:
        from landprior.landcover.training.model import load_model

        model = load_model(learned)
    files = {"roads": roads, "buildings": buildings, "waterways": waterways, "waterbodies": waterbodies}
    layers = {name: path for name, path in files.items() if path is not None}

    if city is not None:
        refuse_with_city(ctx, "nlcd")
    if nlcd is None:
        if city is None:
            msg = "give --nlcd FILE for plain files, or --city NAME for a workspace"
            raise click.UsageError(msg)
        refuse_with_city(ctx, *files, *_OF_FILES, *_OF_POINTS)
        from landprior.landcover.workspace.collection import Workspace

        settings = find_settings(city, workspace, scheme, cooccurrence, prior=widths, learned=model)
        found = Workspace(workspace).tiles(city, only=tiles)
        print_steps(found, ("prior",), settings=settings, command="build-prior", run=run)
        return

    refuse_without_city(ctx)
    if scheme is None or output is None:
        msg = "plain files need --scheme and -o OUTPUT"
        raise click.UsageError(msg)
    nlcd = with_band(nlcd, nlcd_band)
    labels = None
    if points is None:
        refuse_options(ctx, "a prior without --points", "points_weight", "class_column", "layer")
    else:
        with open_raster(like or nlcd) as src:
            grid = Grid.of(src)
        labels = read_sparse_labels(points, scheme, grid, weight=points_weight, column=class_column, layer=layer)
    build_prior(
        nlcd,
        output,
        cooccurrence=load_cooccurrence(cooccurrence, scheme),
        layers=layers,
        like=like,
        settings=widths,
        pixel_size=pixel_size,
        encoding=encoding,  # type: ignore[arg-type]  # click.Choice gave one of them
        sparse_labels=labels,
        recalibrate=recalibrate,
        learned=model,
        run=run,
    )
    click.echo(str(output))
