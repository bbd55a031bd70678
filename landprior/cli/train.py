"""``landprior train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli.options import (
    INPUT,
    OUTPUT,
    band_option,
    city_option,
    device_option,
    label_map_option,
    marginal_option,
    members_option,
    nodata_option,
    overwrite_option,
    recipe_option,
    refuse_options,
    refuse_with_city,
    refuse_without_city,
    scheme_option,
    show_progress,
    starts_option,
    tile_option,
    training_settings,
    workspace_option,
)
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.implicit.settings import LossName
    from landprior.landcover.training.settings import TileSettings
    from landprior.raster.scheme import ClassScheme

METHOD_LOSSES = {"qr": "qr", "rq": "rq", "soft-naive": "ce", "hard-naive": "ce-argmax"}
"""Methods that are a loss against the prior."""

METHODS = [*METHOD_LOSSES, "sr", "em", "epitome"]

LOSS_NAMES = ["qr", "qr-kl", "rq", "ce", "ce-argmax", "squared-error", "nll-union"]
"""The names of :data:`landprior.implicit.losses.LossName`, here without importing torch; a test compares them."""


@click.command(name="train")
@click.option(
    "--image", "images", type=INPUT, multiple=True, help="An image; may repeat, with --prior, for one joint model."
)
@click.option("--prior", "priors", type=INPUT, multiple=True, help="Its prior, on the same grid.")
@click.option(
    "--labels", type=INPUT, multiple=True, help="Its 1 m labels: fit them instead of the prior, which becomes an input."
)
@band_option("the labels", "--band", "--labels-band")
@label_map_option
@click.option("-o", "--output", type=OUTPUT, help="The model to write, a .safetensors file.")
@click.option("--loss", type=click.Choice(LOSS_NAMES), help="Training objective.  [default: qr; ce with --labels]")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Instead of a loss, a method to compare: sr counts classes in NLCD's cells (label super-resolution), "
    "soft-naive and hard-naive fit the prior or its best class, em its posterior in turns, epitome learns patches.  "
    "[default: qr]",
)
@click.option("--nlcd", "nlcds", type=INPUT, multiple=True, help="Its NLCD, on any grid, for sr and epitome.")
@band_option("NLCD", "--nlcd-band")
@click.option("--cooccurrence", type=INPUT, help="What NLCD's codes mean, for sr and epitome.  [default: the scheme's]")
@click.option(
    "--criterion",
    type=click.Choice(["match", "kl", "interval", "l1", "l2"]),
    help="For sr, how counts are compared.  [default: match]",
)
@click.option(
    "--epitome-size", type=click.IntRange(min=8), help="For epitome, side of the torus, pixels.  [default: 199]"
)
@click.option(
    "--network", type=click.Choice(["fcn", "unet"]), help="unet: pip install 'landprior[unet]'.  [default: fcn]"
)
@recipe_option
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.  [default: 600; epitome 2000; paper 20000]")
@click.option(
    "--warmup-steps",
    type=click.IntRange(min=0),
    help="Of them, warm-up before qr, qr-kl, rq.  [default: a third; paper: none]",
)
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="[default: 0.002; paper 1e-4, rq 1e-3]"
)
@click.option(
    "--filters", type=click.IntRange(min=1), help="Width of the network; fewer is faster.  [default: 32; paper 128]"
)
@click.option(
    "--patch-size", type=click.IntRange(min=11), help="Side of the patches, pixels.  [default: 64; paper 128]"
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Patches a step.  [default: 16; paper 128]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same map.")
@starts_option
@marginal_option
@members_option
@click.option("--init", type=INPUT, metavar="MODEL", help="Start from this model's weights.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 on CUDA, fp32 on a CPU; bf16 is faster on CPUs that have it.",
)
@scheme_option(help="Classes of the prior, if its file does not say.")
@nodata_option
@device_option
@city_option
@tile_option
@click.option("--joint", is_flag=True, help="One model for all tiles of the city (with -o), not one per tile.")
@workspace_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    labels: tuple[Path, ...],
    labels_band: int | None,
    nlcd_band: int | None,
    label_map: dict[int, int] | None,
    output: Path | None,
    loss: LossName | None,
    method: str | None,
    nlcds: tuple[Path, ...],
    cooccurrence: Path | None,
    criterion: str | None,
    epitome_size: int | None,
    network: str | None,
    recipe: str,
    steps: int | None,
    warmup_steps: int | None,
    learning_rate: float | None,
    filters: int | None,
    patch_size: int | None,
    batch_size: int | None,
    seed: int,
    starts: int | None,
    marginal: str | None,
    members: int | None,
    init: Path | None,
    precision: str,
    scheme: ClassScheme | None,
    nodata: float | None,
    device: str,
    city: str | None,
    tiles: tuple[str, ...],
    joint: bool,
    workspace: Path,
    overwrite: bool,
) -> None:
    """Train a network on a tile against its prior; nothing else is needed. Or, with --labels, on labels.

    \b
    landprior train --image naip.tif --prior prior.tif --loss qr --seed 0 -o model.safetensors
    landprior train --image a.tif --prior a_prior.tif --image b.tif --prior b_prior.tif -o joint.safetensors
    landprior train --city pittsburgh --loss qr
    landprior train --image naip.tif --prior prior.tif --nlcd nlcd.tif --method sr -o sr.safetensors
    landprior train --image naip.tif --labels labels.tif --scheme enviroatlas-5 -o supervised.safetensors
    landprior train --image naip.tif --labels labels.tif --prior prior.tif --scheme enviroatlas-5 -o aux.safetensors
    landprior train --image there.tif --prior there_prior.tif --init supervised.safetensors -o tuned.safetensors

    The tile lies in memory and patches are cut there. An interrupted run goes on when the same command is
    given again. The bar shows the loss, the entropy of q and how often q and the prior agree.
    """  # noqa: D301
    from landprior.raster.reading import with_band

    if method is not None and loss is not None:
        msg = "--method and --loss exclude each other; qr, rq, soft-naive (ce) and hard-naive (ce-argmax) are both"
        raise click.UsageError(msg)
    rival = method if method not in (None, *METHOD_LOSSES) else None
    settings = training_settings(
        recipe,
        labelled=bool(labels) and rival is None,
        loss=METHOD_LOSSES.get(method or "") or loss,
        network=network,
        steps=steps,
        warmup_steps=warmup_steps,
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
        filters=filters,
        patch_size=patch_size,
        batch_size=batch_size,
        starts=starts,
        marginal=marginal,
        members=members,
    )
    run = Run(device=device, overwrite=overwrite, progress=show_progress(ctx), nodata=nodata)
    labels = tuple(with_band(path, labels_band) for path in labels)
    nlcds = tuple(with_band(path, nlcd_band) for path in nlcds)
    _check_options(ctx, labelled=bool(labels), city=city is not None, joint=joint, rival=rival)
    if rival is not None:
        _train_rival(
            rival,
            settings,
            images=images,
            priors=priors,
            nlcds=nlcds,
            labels=labels,
            label_map=label_map,
            cooccurrence=cooccurrence,
            criterion=criterion,
            epitome={"size": epitome_size, "steps": steps},
            output=output,
            scheme=scheme,
            city=city,
            tiles=tiles,
            workspace=workspace,
            run=run,
        )
        return
    if images or priors or labels:
        from landprior.landcover.training.files import train_files

        for name, paths in (("prior", priors), ("labels", labels)):
            wanted = bool(paths) or (name == "prior" and not labels)
            if wanted and len(paths) != len(images):
                msg = f"{len(images)} --image and {len(paths)} --{name} were given; each image needs its own"
                raise click.UsageError(msg)
        if output is None:
            msg = "-o is missing: where to write the model"
            raise click.UsageError(msg)
        train_files(
            list(zip(images, priors or [None] * len(images), strict=True)),
            output,
            settings=settings,
            labels=labels,
            label_map=label_map,
            scheme=scheme,
            init=init,
            run=run,
        )
        click.echo(str(output))
        return
    if city is None:
        msg = "give --image and --prior for plain files, or --city NAME for a workspace"
        raise click.UsageError(msg)
    refuse_with_city(ctx, "scheme", "nodata", "init", *(() if joint else ("output",)))
    _train_city(
        city,
        settings,
        tiles,
        workspace,
        joint=joint,
        output=output,
        run=run,
    )


def _train_city(
    city: str,
    settings: TileSettings,
    only: tuple[str, ...],
    workspace: Path,
    *,
    joint: bool,
    output: Path | None,
    run: Run,
) -> None:
    """Train a model for each tile of a workspace, or one for all."""
    from landprior.landcover.workspace.pipeline import Workspace, joint_model_of_city, model_of_tile, train_city

    found = Workspace(workspace).tiles(city, only=only)
    if joint and output is not None:
        click.echo(str(train_city(found, output, settings, run=run)))
        return
    if joint:
        click.echo(str(joint_model_of_city(found, settings, run=run)))
        return
    for tile in found:
        click.echo(str(model_of_tile(tile, settings, run=run)))


def _train_rival(
    name: str,
    settings: TileSettings,
    *,
    images: tuple[Path, ...],
    priors: tuple[Path, ...],
    nlcds: tuple[Path, ...],
    labels: tuple[Path, ...],
    label_map: dict[int, int] | None,
    cooccurrence: Path | None,
    criterion: str | None,
    epitome: dict[str, int | None],
    output: Path | None,
    scheme: ClassScheme | None,
    city: str | None,
    tiles: tuple[str, ...],
    workspace: Path,
    run: Run,
) -> None:
    """Train by a method that is more than a loss."""
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.training.files import TrainingTile
    from landprior.landcover.training.layers import PriorLayer
    from landprior.landcover.workspace.pipeline import Workspace, model_of_tile
    from landprior.superres.settings import Method
    from landprior.superres.training import MethodTrainer, train_superres

    chosen: dict[str, Any] = {"name": name}
    chosen |= {"counts": {"criterion": criterion}} if criterion else {}
    chosen["epitome"] = {option: value for option, value in epitome.items() if value is not None}
    method = Method.model_validate(chosen)
    found = Workspace(workspace).tiles(city, only=tiles) if city is not None else []
    like = priors[0] if priors else next((tile.file("prior") for tile in found if tile.file("prior").is_file()), None)
    matrix = None
    if method.counts_cells and like is not None:
        with PriorLayer(like, scheme=scheme) as belief:
            matrix = load_cooccurrence(cooccurrence, belief.scheme)
    if city is not None:
        trainer = MethodTrainer(method=method, matrix=matrix)
        for tile in found:
            click.echo(str(model_of_tile(tile, settings, trainer=trainer, run=run)))
        return
    for option, paths in (("prior", priors), ("nlcd", nlcds), ("labels", labels)):
        wanted = bool(paths) or option == "prior" or (option == "nlcd" and method.counts_cells)
        if wanted and len(paths) != len(images):
            msg = f"{len(images)} --image and {len(paths)} --{option} were given; each image needs its own for {name}"
            raise click.UsageError(msg)
    if not images or output is None:
        msg = "give --image, --prior and -o for plain files, or --city NAME for a workspace"
        raise click.UsageError(msg)
    files = [
        TrainingTile(
            image=image,
            prior=priors[index],
            nlcd=nlcds[index] if nlcds else None,
            labels=labels[index] if labels else None,
        )
        for index, image in enumerate(images)
    ]
    train_superres(method, files, output, settings, matrix=matrix, label_map=label_map, scheme=scheme, run=run)
    click.echo(str(output))


def _check_options(ctx: click.Context, *, labelled: bool, city: bool, joint: bool, rival: str | None) -> None:
    """Refuse options that would say nothing."""
    if rival is None:
        refuse_options(ctx, "a loss; it is for --method", "nlcds", "cooccurrence", "criterion", "epitome_size")
    else:
        unused = {"sr": ("epitome_size",), "em": ("nlcds", "cooccurrence", "criterion", "epitome_size", "labels")}
        rest = ("criterion", "labels", "filters", "network")
        refuse_options(ctx, f"--method {rival}", "starts", "members", "init", "joint", *unused.get(rival, rest))
    if labelled and rival is None:
        refuse_options(ctx, "--labels: they give no evidence to choose by", "starts")
    elif not labelled:
        refuse_options(ctx, "a prior, only with --labels", "label_map")
    if city:
        refuse_with_city(ctx, "images", "priors", "labels", "labels_band", "nlcd_band")
        if rival is not None:
            refuse_with_city(ctx, "nlcds", "output", "scheme", "nodata")
        return
    refuse_without_city(ctx)
    if joint:
        msg = "--joint is for --city; for plain files repeat --image and --prior"
        raise click.UsageError(msg)
