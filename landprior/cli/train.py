"""``landprior train``."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options, refuse_with_city, refuse_without_city, require_as_many
from landprior.cli.command import Command, grouped
from landprior.cli.methods import METHOD_LOSSES, make_method, method_options, read_matrix, refuse_for_method
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.cli.training import FIELDS, loss_option, points_options, training_options, training_settings
from landprior.cli.workspace import print_steps

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.training.settings import TileSettings
    from landprior.run import Run


@click.command(name="train", cls=Command)
@grouped(
    "Files",
    click.option(
        "--image",
        "images",
        type=INPUT,
        multiple=True,
        help="Image to train on; repeat it, with --prior, for a joint model.",
    ),
    click.option("--prior", "priors", type=INPUT, multiple=True, help="Prior of the image, on the same grid."),
    click.option(
        "--labels",
        type=INPUT,
        multiple=True,
        help="1 m labels of the image, which are fitted instead of the prior; the prior is then another input.",
    ),
    shared.band_option("the labels", "--band", "--labels-band"),
    shared.label_map_option,
    shared.scheme_option(help="Classes of the prior, if its tags do not have them."),
    shared.nodata_option,
    click.option("-o", "--output", type=OUTPUT, help="Model to write, a .safetensors file."),
    click.option("--init", type=INPUT, metavar="MODEL", help="Model whose weights are the starting point."),
)
@grouped("Training", loss_option("; ce with --labels"), *training_options())
@method_options
@grouped("Labelled points", *points_options())
@grouped(
    "Workspace (the same as landprior run --only model)",
    shared.city_option,
    shared.tile_option,
    click.option("--joint", is_flag=True, help="Train one model for all tiles of the place, instead of one for each."),
    shared.workspace_option,
)
@shared.run_options("device", "overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    labels: tuple[Path, ...],
    labels_band: int | None,
    nlcds: tuple[Path, ...],
    nlcd_band: int | None,
    output: Path | None,
    points: tuple[Path, ...],
    loss: str | None,
    method: str | None,
    recipe: str,
    city: str | None,
    run: Run,
    **options: Any,  # noqa: ANN401 - the fields of the training, the method's own options, the workspace's
) -> None:
    """Train a network on an image against its prior; nothing else is needed. With --labels, train on labels.

    \b
    landprior train --image naip.tif --prior prior.tif --loss qr --seed 0 -o model.safetensors
    landprior train --image a.tif --prior a_prior.tif --image b.tif --prior b_prior.tif -o joint.safetensors
    landprior train --city pittsburgh --loss qr
    landprior train --image naip.tif --prior prior.tif --nlcd nlcd.tif --method sr -o sr.safetensors
    landprior train --image naip.tif --labels labels.tif --scheme enviroatlas-5 -o supervised.safetensors
    landprior train --image naip.tif --labels labels.tif --prior prior.tif --scheme enviroatlas-5 -o aux.safetensors
    landprior train --image naip.tif --prior prior.tif --points points.gpkg -o adapted.safetensors
    landprior train --image there.tif --prior there_prior.tif --init supervised.safetensors -o tuned.safetensors

    The image is kept in memory and patches are cut from it. If interrupted, rerun the same command to resume. The
    bar shows the loss, the entropy of q and how often q and the prior agree.
    """  # noqa: D301
    from landprior.landcover.adaptation.adapt import adapt_in_place, require_points
    from landprior.landcover.training.files import TrainingTile, train_files
    from landprior.raster.names import with_band

    if method is not None and loss is not None:
        msg = "--method and --loss are mutually exclusive; qr, rq, soft-naive (ce), hard-naive (ce-argmax) are both"
        raise click.UsageError(msg)
    other_method = None if method in (None, *METHOD_LOSSES) else method
    settings = training_settings(
        recipe,
        labelled=bool(labels) and other_method is None,
        loss=METHOD_LOSSES.get(method or "") or loss,
        **{name: options[name] for name in FIELDS},
    )
    _check_options(ctx, labelled=bool(labels), city=city is not None, joint=options["joint"], other_method=other_method)
    if not (images or priors or labels):
        if city is None:
            msg = "give --image and --prior for plain files, or --city NAME for a workspace"
            raise click.UsageError(msg)
        _train_place(ctx, city, settings, other_method, output, options, run)
        return
    given = {"prior": priors} if priors or other_method is not None or not labels else {}
    given |= {"labels": labels} if labels else {}
    given |= {"nlcd": nlcds} if other_method is not None and (nlcds or other_method != "em") else {}
    require_as_many("image", images, given, why="" if other_method is None else f" for {other_method}")
    if output is None:
        msg = "-o is missing: give the model to write"
        raise click.UsageError(msg)
    labels = tuple(with_band(path, labels_band) for path in labels)
    nlcds = tuple(with_band(path, nlcd_band) for path in nlcds)
    known: dict[str, Any] = {"label_map": options["label_map"], "scheme": options["scheme"], "run": run}
    if other_method is None:
        pairs = list(zip(images, priors or [None] * len(images), strict=True))
        of_points = {"column": options["class_column"], "layer": options["layer"]}
        if points:
            require_points(priors, points, scheme=options["scheme"], **of_points)
        train_files(pairs, output, settings=settings, labels=labels, init=options["init"], **known)
        if points:
            report = adapt_in_place(output, list(zip(images, priors, strict=True)), points, **of_points, run=run)
            click.echo(report.to_text())
    else:
        from landprior.superres.training import train_superres

        chosen = make_method(other_method, options)
        files = [
            TrainingTile(image=image, prior=prior, nlcd=nlcd, labels=truth)
            for image, prior, nlcd, truth in zip_longest(images, priors, nlcds, labels)
        ]
        matrix = read_matrix(chosen, options["cooccurrence"], like=priors[0], scheme=options["scheme"])
        train_superres(chosen, files, output, settings, matrix=matrix, **known)
    click.echo(str(output))


def _train_place(
    ctx: click.Context,
    city: str,
    settings: TileSettings,
    other_method: str | None,
    output: Path | None,
    options: dict[str, Any],
    run: Run,
) -> None:
    """Train for the tiles of a place, as ``landprior run --only model`` does."""
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.groups import make_groups
    from landprior.landcover.workspace.steps import train_city
    from landprior.superres.training import SuperresMethod

    if other_method is None:
        refuse_with_city(ctx, "scheme", "nodata", "init", *(() if options["joint"] else ("output",)))
    tiles = Workspace(options["workspace"]).tiles(city, only=options["tiles"])
    if options["joint"] and output is not None:
        click.echo(str(train_city(tiles, output, settings, run=run)))
        return
    trainer = None
    if other_method is not None:
        method = make_method(other_method, options)
        like = next((tile.file("prior") for tile in tiles if tile.file("prior").is_file()), None)
        matrix = read_matrix(method, options["cooccurrence"], like=like, scheme=None)
        trainer = SuperresMethod(method=method, matrix=matrix)
    how: dict[str, Any] = {"method": trainer, "command": "train"}
    if options["joint"]:
        how = {"groups": make_groups(tiles), "command": "train --joint"}
    print_steps(tiles, ("model",), training=settings, **how, run=run)


def _check_options(ctx: click.Context, *, labelled: bool, city: bool, joint: bool, other_method: str | None) -> None:
    """Raise an error for options without effect."""
    refuse_for_method(ctx, other_method)
    if labelled or other_method is not None:
        refuse_options(ctx, "--labels or --method", "points")
    if not ctx.params["points"]:
        refuse_options(ctx, "a training without --points", "class_column", "layer")
    if labelled and other_method is None:
        refuse_options(ctx, "--labels: there is no evidence to choose a model by", "starts")
    elif not labelled:
        refuse_options(ctx, "a prior, only with --labels", "label_map")
    if city:
        refuse_with_city(ctx, "images", "priors", "labels", "labels_band", "nlcd_band", "points")
        if other_method is not None:
            refuse_with_city(ctx, "nlcds", "output", "scheme", "nodata")
        return
    refuse_without_city(ctx)
    if joint:
        msg = "--joint is for --city; for plain files repeat --image and --prior"
        raise click.UsageError(msg)
