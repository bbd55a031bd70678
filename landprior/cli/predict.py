"""``landprior predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_with_city, refuse_without_city
from landprior.cli.command import Command, grouped
from landprior.cli.maps import finish_options, force_option, make_map_options, map_options, maps_option
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.cli.workspace import print_steps

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.run import Run


@click.command(name="predict", cls=Command)
@click.argument("image", type=INPUT, required=False)
@grouped(
    "Files",
    click.option("--model", type=INPUT, help="Model written by train."),
    click.option(
        "--posterior",
        type=INPUT,
        metavar="PRIOR",
        help="Prior with which to map the posterior r instead of the network's q.",
    ),
    click.option("--prior", type=INPUT, help="Prior as an input, for a model trained on image and prior."),
    shared.nodata_option,
    click.option("-o", "--output", type=OUTPUT, help="Map to write.  [default: <image>_landcover.tif]"),
)
@map_options()
@grouped("Map", *finish_options, force_option)
@grouped("Computing", shared.device_option, shared.engine_option, shared.precision_option, shared.memory_option)
@grouped(
    "Workspace (the same as landprior run --only map)",
    shared.city_option,
    shared.tile_option,
    maps_option,
    shared.workspace_option,
)
@shared.run_options("overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    image: Path | None,
    model: Path | None,
    output: Path | None,
    posterior: Path | None,
    prior: Path | None,
    maps: str,
    run: Run,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
    **options: Any,  # noqa: ANN401 - the files of the map, and how it is computed
) -> None:
    """Map IMAGE with a trained model, window by window: rasters of any size in bounded memory.

    \b
    landprior predict naip.tif --model model.safetensors -o map.tif
    landprior predict naip.tif --model model.safetensors --posterior prior.tif --probabilities -o map.tif
    landprior predict --city pittsburgh --quicklook
    landprior predict --city pittsburgh --maps q --model joint.safetensors

    The map is a Cloud-Optimized GeoTIFF of class codes with colours and names, and 255 for no data.
    """  # noqa: D301
    from landprior.landcover.mapping.predict import predict

    how: dict[str, Any] = {name: options[name] for name in ("force", "engine", "precision", "memory")}
    how["options"] = make_map_options(ctx, options)
    if city is not None and image is not None:
        msg = "give IMAGE for plain files, or --city for a workspace, not both"
        raise click.UsageError(msg)
    if image is None:
        if city is None:
            msg = "give IMAGE and --model for plain files, or --city NAME for a workspace"
            raise click.UsageError(msg)
        refuse_with_city(ctx, "posterior", "prior", "output", "nodata")
        from landprior.landcover.workspace.collection import Workspace

        found = Workspace(workspace).tiles(city, only=tiles)
        mapping = {"posterior": maps == "r", "model": model, **how}
        print_steps(found, ("map",), mapping=mapping, command="predict", run=run)
        return
    refuse_without_city(ctx)
    if ctx.get_parameter_source("maps") is click.core.ParameterSource.COMMANDLINE:
        msg = "--maps is for --city; for plain files give --posterior PRIOR to map r; without it q is mapped"
        raise click.UsageError(msg)
    if model is None:
        msg = "--model is missing; train one with: landprior train --image IMAGE --prior PRIOR -o model.safetensors"
        raise click.UsageError(msg)
    from landprior.landcover.training.model import load_model

    output = output or image.with_name(f"{image.stem}_landcover.tif")
    predict(image, output, load_model(model), posterior=posterior, prior=prior, **how, run=run)
    click.echo(str(output))
