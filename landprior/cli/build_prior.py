"""``landprior build-prior``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli.options import (
    INPUT,
    OUTPUT,
    band_option,
    city_option,
    device_option,
    layer_option,
    learned_option,
    overwrite_option,
    pixel_size_option,
    refuse_options,
    refuse_with_city,
    refuse_without_city,
    scheme_option,
    show_progress,
    tile_option,
    workspace_option,
)
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme


@click.command(name="build-prior")
@click.option("--nlcd", type=INPUT, help="NLCD raster, original codes.")
@band_option("NLCD", "--band", "--nlcd-band")
@click.option("--roads", type=INPUT, help="Roads raster: nonzero is road.")
@click.option("--buildings", type=INPUT, help="Building footprints raster.")
@click.option("--waterways", type=INPUT, help="Waterways (lines) raster.")
@click.option("--waterbodies", type=INPUT, help="Water bodies raster.")
@click.option("--like", type=INPUT, help="Put everything on this raster's grid (the image's, say).")
@scheme_option()
@click.option(
    "--cooccurrence", type=INPUT, help="P(class | NLCD code), .csv or .npy; by default the one shipped for the scheme."
)
@click.option("-o", "--output", type=OUTPUT, help="The prior to write.")
@click.option(
    "--blur-sigma", type=float, default=31.0, show_default=True, help="Standard deviation of the blur, metres."
)
@click.option("--blur-radius", type=float, default=50.0, show_default=True, help="Where the blur is cut, metres.")
@pixel_size_option
@click.option(
    "--encoding",
    type=click.Choice(["float16", "uint8", "float32"]),
    default="float16",
    show_default=True,
    help="How probabilities lie on disk; uint8 is rounded 255 p.",
)
@click.option(
    "--labels", type=INPUT, help="Your own labelled points or polygons, which sharpen the prior where they lie."
)
@click.option(
    "--label-weight",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="How far to trust them; 1 is certainty.",
)
@click.option("--label-column", default="class", show_default=True, help="Their attribute with the label.")
@layer_option
@click.option(
    "--recalibrate",
    is_flag=True,
    help="Fit the whole prior's class shares and sharpness to the points too; they should be a random sample.",
)
@learned_option
@device_option
@city_option
@tile_option
@workspace_option
@overwrite_option
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
    blur_sigma: float,
    blur_radius: float,
    pixel_size: float | None,
    encoding: str,
    labels: Path | None,
    label_weight: float,
    label_column: str,
    layer: str | None,
    recalibrate: bool,
    learned: Path | None,
    device: str,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
    overwrite: bool,
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
    add to impervious, water layers to water. Labels (--labels) say one class ("trees"), several ("trees|grass")
    or what a place is not ("!water"). With a hundred random points, --recalibrate mends the whole prior too.
    """  # noqa: D301
    from pydantic import ValidationError

    from landprior.landcover.prior.build import build_prior
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.prior.settings import PriorSettings
    from landprior.landcover.prior.sparse_labels import read_hints
    from landprior.raster.grid import Grid
    from landprior.raster.reading import open_raster, with_band
    from landprior.raster.scheme import explain

    asked = [ctx.get_parameter_source(name) for name in ("blur_sigma", "blur_radius")]
    as_learned = learned is not None and click.core.ParameterSource.COMMANDLINE not in asked
    try:
        settings = None if as_learned else PriorSettings(blur_sigma=blur_sigma, blur_radius=blur_radius)
    except ValidationError as error:
        raise click.UsageError(explain(error, "the blur")) from error
    model = None
    if learned is not None:
        from landprior.landcover.training.model import load_model

        model = load_model(learned)
    given = {"roads": roads, "buildings": buildings, "waterways": waterways, "waterbodies": waterbodies}
    layers = {name: path for name, path in given.items() if path is not None}

    if city is not None:
        refuse_with_city(ctx, "nlcd")
    if nlcd is None:
        if city is None:
            msg = "give --nlcd FILE for plain files, or --city NAME for a workspace"
            raise click.UsageError(msg)
        refuse_with_city(
            ctx,
            *given,
            "nlcd_band",
            "like",
            "output",
            "pixel_size",
            "encoding",
            "labels",
            "label_weight",
            "label_column",
            "layer",
            "recalibrate",
        )
        from landprior.landcover.workspace.city import find_city
        from landprior.landcover.workspace.pipeline import PipelineSettings, Workspace, prior_of_tile

        ref = find_city(city, workspace)
        pipeline = PipelineSettings.for_city(
            ref, scheme=scheme, cooccurrence=cooccurrence, prior=settings, learned=model
        )
        for tile in Workspace(workspace).tiles(ref, only=tiles):
            path = prior_of_tile(
                tile, pipeline, run=Run(device=device, overwrite=overwrite, progress=show_progress(ctx))
            )
            click.echo(str(path))
        return

    refuse_without_city(ctx)
    if scheme is None or output is None:
        msg = "plain files need --scheme and -o OUTPUT"
        raise click.UsageError(msg)
    nlcd = with_band(nlcd, nlcd_band)
    hints = None
    if labels is None:
        refuse_options(ctx, "a prior without --labels", "label_weight", "label_column", "layer")
    else:
        with open_raster(like or nlcd) as src:
            grid = Grid.of(src)
        hints = read_hints(labels, scheme, grid, weight=label_weight, column=label_column, layer=layer)
    build_prior(
        nlcd,
        output,
        cooccurrence=load_cooccurrence(cooccurrence, scheme),
        layers=layers,
        like=like,
        settings=settings,
        pixel_size=pixel_size,
        encoding=encoding,  # type: ignore[arg-type]  # click.Choice gave one of them
        hints=hints,
        recalibrate=recalibrate,
        learned=model,
        run=Run(device=device, overwrite=overwrite, progress=show_progress(ctx)),
    )
    click.echo(str(output))
