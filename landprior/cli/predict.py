"""``landprior predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli.options import (
    INPUT,
    OUTPUT,
    city_option,
    device_option,
    engine_option,
    memory_option,
    nodata_option,
    overwrite_option,
    precision_option,
    refuse_options,
    refuse_with_city,
    refuse_without_city,
    show_progress,
    tile_option,
    workspace_option,
)
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path


@click.command(name="predict")
@click.argument("image", type=INPUT, required=False)
@click.option("--model", type=INPUT, help="A model written by train.")
@click.option("-o", "--output", type=OUTPUT, help="The map to write.  [default: <image>_landcover.tif]")
@click.option(
    "--posterior", type=INPUT, metavar="PRIOR", help="A prior: map the posterior r instead of the network's q."
)
@click.option("--prior", type=INPUT, help="The prior as input, for a model trained on image and prior.")
@click.option(
    "--maps",
    type=click.Choice(["r", "q"]),
    default="r",
    show_default=True,
    help="With --city: map the posterior r or the network's q.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Map in spite of the checks: r with all classes of a model judged worse than its prior, and an image of "
    "another kind (data type, values, bands, pixel size) than the model was trained on.",
)
@click.option("--probabilities", is_flag=True, help="Also write class probabilities, <map>_probabilities.tif.")
@click.option("--confidence", is_flag=True, help="Also write largest probability and entropy, <map>_confidence.tif.")
@click.option(
    "--encoding",
    type=click.Choice(["float16", "uint8", "float32"]),
    default="float16",
    show_default=True,
    help="How probabilities lie on disk.",
)
@click.option("--style", is_flag=True, help="Also write a QGIS style, <map>.qml.")
@click.option("--quicklook", is_flag=True, help="Also write a picture, <map>.png.")
@nodata_option
@device_option
@engine_option
@precision_option
@memory_option
@city_option
@tile_option
@workspace_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    image: Path | None,
    model: Path | None,
    output: Path | None,
    posterior: Path | None,
    prior: Path | None,
    maps: str,
    force: bool,
    probabilities: bool,
    confidence: bool,
    encoding: str,
    style: bool,
    quicklook: bool,
    nodata: float | None,
    device: str,
    engine: str,
    precision: str,
    memory: int | None,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
    overwrite: bool,
) -> None:
    """Map IMAGE with a trained model, in windows: any size of raster in bounded memory.

    \b
    landprior predict naip.tif --model model.safetensors -o map.tif
    landprior predict naip.tif --model model.safetensors --posterior prior.tif --probabilities -o map.tif
    landprior predict --city pittsburgh --quicklook
    landprior predict --city pittsburgh --maps q --model joint.safetensors

    The map is a Cloud-Optimized GeoTIFF of class codes with colours and names, 255 where there is no data.
    """  # noqa: D301
    from landprior.landcover.mapping.predict import predict
    from landprior.landcover.mapping.products import Products

    products = Products(
        probabilities=probabilities,
        confidence=confidence,
        encoding=encoding,  # type: ignore[arg-type]  # click.Choice gave one of them
        style=style,
        quicklook=quicklook,
    )
    if not probabilities:
        refuse_options(ctx, "a map alone; it sets how --probabilities are stored", "encoding")
    if city is not None and image is not None:
        msg = "give IMAGE for plain files, or --city for a workspace, not both"
        raise click.UsageError(msg)
    if image is None:
        if city is None:
            msg = "give IMAGE and --model for plain files, or --city NAME for a workspace"
            raise click.UsageError(msg)
        refuse_with_city(ctx, "posterior", "prior", "output", "nodata")
        from landprior.landcover.workspace.pipeline import Workspace, map_of_tile

        for tile in Workspace(workspace).tiles(city, only=tiles):
            path = map_of_tile(
                tile,
                posterior=maps == "r",
                force=force,
                model=model,
                products=products,
                engine=engine,
                precision=precision,
                memory=memory,
                run=Run(device=device, overwrite=overwrite, progress=show_progress(ctx)),
            )
            click.echo(str(path))
        return
    refuse_without_city(ctx)
    if ctx.get_parameter_source("maps") is click.core.ParameterSource.COMMANDLINE:
        msg = "--maps is for --city; for plain files give --posterior PRIOR to map r, and leave it out to map q"
        raise click.UsageError(msg)
    if model is None:
        msg = "--model is missing; train one with: landprior train --image IMAGE --prior PRIOR -o model.safetensors"
        raise click.UsageError(msg)
    from landprior.landcover.training.model import load_model

    output = output or image.with_name(f"{image.stem}_landcover.tif")
    predict(
        image,
        output,
        load_model(model),
        posterior=posterior,
        prior=prior,
        products=products,
        force=force,
        engine=engine,
        precision=precision,
        memory=memory,
        run=Run(nodata=nodata, device=device, overwrite=overwrite, progress=show_progress(ctx)),
    )
    click.echo(str(output))
