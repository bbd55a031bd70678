"""``landprior learn-prior``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_with_city, refuse_without_city, require_as_many
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_options, pick_given
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.landcover.prior.settings import PriorSettings, prior_settings
from landprior.landcover.training.settings import TileSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.prior.learned import LabelledPlace
    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="learn-prior", cls=Command)
@grouped(
    "Files of labelled tiles",
    click.option("--nlcd", "nlcds", type=INPUT, multiple=True, help="NLCD raster of a labelled tile; may be repeated."),
    click.option("--labels", type=INPUT, multiple=True, help="1 m labels of the tile, which define the grid."),
    click.option(
        "--roads",
        type=INPUT,
        multiple=True,
        help="Roads raster of the tile; give a layer for every tile or for none.",
    ),
    click.option("--buildings", type=INPUT, multiple=True, help="Building footprints raster of the tile."),
    click.option("--waterways", type=INPUT, multiple=True, help="Waterways raster of the tile."),
    click.option("--waterbodies", type=INPUT, multiple=True, help="Water bodies raster of the tile."),
    shared.band_option("NLCD", "--band", "--nlcd-band"),
    shared.band_option("the labels", "--labels-band"),
    shared.label_map_option,
    shared.pixel_size_option,
    click.option("-o", "--output", type=OUTPUT, required=True, help="Learned prior to write, a .safetensors file."),
)
@grouped(
    "Prior",
    shared.scheme_option(),
    shared.cooccurrence_option(of=" of the place"),
    *field_options(PriorSettings, "blur_sigma", "blur_radius"),
)
@grouped(
    "Training",
    *field_options(TileSettings, "steps", "learning_rate", "filters", "seed", usual=prior_settings()),
)
@grouped("Workspace", shared.city_option, shared.tile_option, shared.workspace_option)
@shared.run_options("device", "overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    nlcds: tuple[Path, ...],
    nlcd_band: int | None,
    labels_band: int | None,
    labels: tuple[Path, ...],
    roads: tuple[Path, ...],
    buildings: tuple[Path, ...],
    waterways: tuple[Path, ...],
    waterbodies: tuple[Path, ...],
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    cooccurrence: Path | None,
    output: Path,
    steps: int | None,
    learning_rate: float | None,
    filters: int | None,
    seed: int | None,
    blur_sigma: float | None,
    blur_radius: float | None,
    pixel_size: float | None,
    run: Run,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
) -> None:
    """Learn how the layers map to classes, on a few labelled tiles.

    \b
    landprior learn-prior --nlcd nlcd.tif --roads roads.tif --buildings buildings.tif --labels labels.tif \\
        --scheme enviroatlas-5 -o learned.safetensors
    landprior learn-prior --city pittsburgh --tile a --tile b -o learned.safetensors
    landprior build-prior --nlcd there.tif --roads there_roads.tif --buildings there_buildings.tif \\
        --scheme enviroatlas-5 --learned learned.safetensors -o prior.tif

    A network (kernels 11, 7, 5) sees the blurred NLCD, roads, buildings and water, and no image. For several
    tiles, repeat the options in the same order. Never score a map on tiles that its prior was learned on.
    """  # noqa: D301
    from pydantic import ValidationError

    from landprior.landcover.prior.learned import learn_prior
    from landprior.raster.names import with_band
    from landprior.raster.scheme import explain

    try:
        widths = PriorSettings(**pick_given({"blur_sigma": blur_sigma, "blur_radius": blur_radius}))
        loop = pick_given({"steps": steps, "learning_rate": learning_rate, "seed": seed})
        settings = prior_settings(training=loop, **pick_given({"filters": filters}))
    except ValidationError as error:
        raise click.UsageError(explain(error, "the settings")) from error
    given = {"roads": roads, "buildings": buildings, "waterways": waterways, "waterbodies": waterbodies}
    if nlcds or labels:
        if city is not None:
            refuse_with_city(ctx, "nlcds", "nlcd_band", "labels", "labels_band")
        refuse_without_city(ctx)
        nlcds = tuple(with_band(path, nlcd_band) for path in nlcds)
        labels = tuple(with_band(path, labels_band) for path in labels)
        places = _places_of_files(nlcds, labels, given, scheme, cooccurrence, label_map)
    elif city is not None:
        refuse_with_city(ctx, *given, "pixel_size")
        places = _places_of_city(workspace, city, tiles, scheme, cooccurrence, label_map)
    else:
        msg = "give --nlcd and --labels for plain files, or --city NAME for a workspace"
        raise click.UsageError(msg)
    learn_prior(
        places,
        output,
        settings,
        prior=widths,
        pixel_size=pixel_size,
        run=run,
    )
    click.echo(str(output))


def _places_of_files(
    nlcds: tuple[Path, ...],
    labels: tuple[Path, ...],
    given: dict[str, tuple[Path, ...]],
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    label_map: dict[int, int] | None,
) -> list[LabelledPlace]:
    """Combine the repeated options into tiles."""
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.prior.learned import LabelledPlace

    if scheme is None:
        msg = "plain files need --scheme"
        raise click.UsageError(msg)
    require_as_many(
        "nlcd", nlcds, {"labels": labels, **{name: paths for name, paths in given.items() if paths}}, of="tile"
    )
    matrix = load_cooccurrence(cooccurrence, scheme)
    return [
        LabelledPlace(
            nlcd=nlcd,
            labels=truth,
            layers={name: paths[index] for name, paths in given.items() if paths},
            cooccurrence=matrix,
            label_map=label_map or {},
        )
        for index, (nlcd, truth) in enumerate(zip(nlcds, labels, strict=True))
    ]


def _places_of_city(
    workspace: Path,
    city: str,
    only: tuple[str, ...],
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    label_map: dict[int, int] | None,
) -> list[LabelledPlace]:
    """Return the tiles of a workspace that have labels."""
    from landprior.landcover.prior.coarse import LAYERS
    from landprior.landcover.prior.learned import LabelledPlace
    from landprior.landcover.workspace.city import find_city
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.settings import PipelineSettings

    ref = find_city(city, workspace)
    pipeline = PipelineSettings.for_city(ref, scheme=scheme, cooccurrence=cooccurrence)
    found = Workspace(workspace).tiles(ref, only=only)
    return [
        LabelledPlace(
            nlcd=tile.require("nlcd", hint="a labelled tile needs its NLCD"),
            labels=tile.require("labels", hint="name labelled tiles with --tile"),
            layers=tile.present(tuple(LAYERS)),
            cooccurrence=pipeline.cooccurrence,
            label_map={} if tile.is_recorded("labels") else label_map or {},  # already in the scheme's codes
            name=tile.id,
        )
        for tile in found
        if only or tile.file("labels").is_file()
    ]
