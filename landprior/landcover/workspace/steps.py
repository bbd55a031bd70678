"""The steps of the chain for a tile of a workspace: prior, model, map and scores, each run only where needed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.prior.build import build_prior, find_reach
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.provenance import Basis, Judgement, RecordFile, make_key, refuse_foreign
from landprior.landcover.workspace.recipes import adapted_basis, map_basis, model_basis, prior_basis
from landprior.raster.grid import Grid
from landprior.raster.locks import clear_leftovers
from landprior.raster.reading import open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.landcover.assessment.scores import Scores
    from landprior.landcover.training.methods import Method
    from landprior.landcover.workspace.groups import Group
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.settings import PipelineSettings
logger = logging.getLogger(__name__)


def ensure_prior(
    tile: TileFolder,
    settings: PipelineSettings,
    *,
    group: Group | None = None,
    command: str = "build-prior",
    run: Run = Run(),
) -> Path:
    """Build a tile's prior from the layers that exist, unless it is current.

    Parameters
    ----------
    tile, settings
        The tile and the settings.
    group
        Its group, whose layers are also read around the tile.
    command
        Command that is running, for the record: results of another command with other settings are kept.
    run
        Whether to replace a current prior, and to show progress.

    Returns
    -------
    Path
        Path of the prior.

    Raises
    ------
    OutputExistsError
        If there is a prior by another recipe, or one not made by landprior.
    """
    image = tile.require("naip", hint="every tile needs its image")
    nlcd = tile.require("nlcd", hint="put the NLCD raster of the place there")
    layers = tile.present(tuple(LAYERS))
    near = [] if group is None else group.find_neighbours(tile, find_reach(settings.prior))
    around = {other.name: other.present(("nlcd", *layers)) for other in near}
    inputs = {"nlcd": nlcd, **layers}
    inputs |= {f"{name} of {tile.city}/{other}": path for other in around for name, path in around[other].items()}
    basis = prior_basis(settings, command, inputs, {"grid": _describe_grid(image)})
    if not must_make(tile, "prior", basis, overwrite=run.overwrite):
        return tile.file("prior")
    with tile.making("prior", basis) as note:
        build_prior(
            nlcd,
            tile.file("prior"),
            cooccurrence=settings.cooccurrence,
            layers=layers,
            like=image,
            settings=settings.prior,
            learned=settings.learned,
            around=list(around.values()),
            run=with_overwrite(run),
        )
        note.update(cooccurrence=settings.cooccurrence.source, layers=sorted(layers))
    return tile.file("prior")


def ensure_model(
    tile: TileFolder,
    training: TileSettings | None = None,
    *,
    method: Method | None = None,
    command: str = "train",
    run: Run = Run(),
) -> Path:
    """Train a tile's own model, by the loss of the settings or by another method, unless it is current.

    Parameters
    ----------
    tile
        The tile.
    training
        Training settings; by default the recipe ``default``.
    method
        Training method other than the loss of the settings.
    command, run
        See :func:`ensure_prior`.

    Returns
    -------
    Path
        Path of the model.

    Raises
    ------
    OutputExistsError
        See :func:`ensure_prior`.
    MissingInputError
        If the tile lacks its image or prior, or NLCD where the method needs it.
    """
    from landprior.landcover.training.files import TrainingTile, train_files

    image = tile.require("naip", hint="every tile needs its image")
    prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
    training = training or TileSettings()
    files = {"image": image, "prior": prior}
    nlcd = None
    if method is not None and method.counts_cells:
        nlcd = files["nlcd"] = tile.require("nlcd", hint="this method counts classes in NLCD's cells")
    basis = model_basis(training, method, command, files)
    if not must_make(tile, "model", basis, overwrite=run.overwrite):
        return tile.file("model")
    target = tile.file("model")
    run = with_overwrite(run)
    with tile.making("model", basis) as note:
        if method is None:
            model = train_files([(image, prior)], target, settings=training, names=[tile.id], run=run)
        else:
            one = TrainingTile(image=image, prior=prior, nlcd=nlcd, name=tile.id)
            model = method.train([one], target, training, run=run)
        history = {name: value for name, value in model.record["history"].items() if name != "looks"}
        note.update(loss=model.loss, history=history, verdict=model.record.get("verdict"))
    return target


def train_city(
    tiles: Sequence[TileFolder],
    output: Path,
    training: TileSettings | None = None,
    *,
    run: Run = Run(),
) -> Path:
    """Train one joint model over tiles and write it to a file.

    Parameters
    ----------
    tiles
        Tiles, each with image and prior.
    output
        The model to write.
    training, run
        Training settings; by default with the recipe ``default``.

    Returns
    -------
    Path
        The model's path.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    """
    from landprior.landcover.training.files import train_files

    files = joint_files(tiles)
    pairs = [(files[f"{tile.id} image"], files[f"{tile.id} prior"]) for tile in tiles]
    names = [tile.id for tile in tiles]
    train_files(pairs, output, settings=training, names=names, run=run)
    return output


def ensure_joint_model(
    group: Group,
    training: TileSettings | None = None,
    *,
    command: str = "train --joint",
    run: Run = Run(),
) -> Path:
    """Train the model of a group of tiles, unless it is current.

    Its record is kept beside it, in a JSON file of the same name.

    Parameters
    ----------
    group
        Tiles of one city, and the path of the model.
    training, command, run
        See :func:`ensure_model`.

    Returns
    -------
    Path
        Path of the model.

    Raises
    ------
    OutputExistsError
        See :func:`ensure_prior`.
    """
    training = training or TileSettings()
    record = RecordFile(group.model.with_suffix(".json"))
    basis = model_basis(training, None, command, joint_files(group.tiles))
    clear_leftovers(group.model.parent)
    if must_write(group.model, record.judge(group.model, basis), overwrite=run.overwrite):
        with record.making(group.model, basis):
            train_city(group.tiles, group.model, training, run=with_overwrite(run))
    return group.model


def joint_files(tiles: Sequence[TileFolder]) -> dict[str, Path]:
    """Return image and prior of each tile, by their names in the record of a joint model."""
    files = {}
    for tile in tiles:
        files[f"{tile.id} image"] = tile.require("naip", hint="every tile needs its image")
        files[f"{tile.id} prior"] = tile.require(
            "prior", hint=f"build it with: landprior build-prior --city {tile.city}"
        )
    return files


def ensure_map(
    tile: TileFolder,
    *,
    posterior: bool = True,
    force: bool = False,
    options: MapOptions = MapOptions(),
    model: Path | None = None,
    adapted: bool = False,
    command: str = "predict",
    engine: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    run: Run = Run(),
) -> Path:
    """Map a tile with its model, unless its map is current.

    Parameters
    ----------
    tile
        The tile.
    posterior, force, options, engine, precision, memory
        See :func:`landprior.landcover.mapping.predict.predict`; ``posterior`` maps r.
    model
        Model to use instead of the tile's own. If it was trained on this tile with others, r is computed with the
        shares of the classes over all of them.
    adapted
        Whether it is that of the tile, or of its group, adapted to the points of the place; its map may replace the one
        without points.
    command, run
        See :func:`ensure_prior`.

    Returns
    -------
    Path
        Path of the map.

    Raises
    ------
    OutputExistsError
        If there is a map by another model or recipe, or one not made by landprior.
    """
    from landprior.landcover.mapping.predict import predict
    from landprior.landcover.mapping.products import add_style
    from landprior.landcover.training.model import load_model
    from landprior.landcover.training.shares import find_shares

    image = tile.require("naip", hint="every tile needs its image")
    model_file = model or tile.require("model", hint=f"train it with: landprior train --city {tile.city}")
    inputs = {"image": image, "model": model_file}
    trained = load_model(model_file)
    takes_prior = "prior" in trained.extras
    prior = None
    if posterior or takes_prior:
        prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
        inputs["prior"] = prior
    computing = {name: value for name, value in (("engine", engine), ("precision", precision)) if value != "auto"}
    how: dict[str, Any] = {"posterior": posterior, "force": force, "options": options, "computing": computing}
    basis = map_basis(tile, model, command, adapted=adapted, inputs=inputs, **how)
    if not must_make(tile, "prediction", basis, overwrite=run.overwrite):
        add_style(tile.file("prediction"), trained.scheme, options)
        return tile.file("prediction")
    with tile.making("prediction", basis) as note:
        predict(
            image,
            tile.file("prediction"),
            trained,
            posterior=prior if posterior else None,
            prior=prior if takes_prior else None,
            marginal=find_shares(trained.record, tile.id) if posterior and trained.head is None else None,
            force=force,
            options=options,
            engine=engine,
            precision=precision,
            memory=memory,
            run=with_overwrite(run),
        )
        note.update(maps="r" if posterior else "q")
    return tile.file("prediction")


def require_own_results(
    tiles: Sequence[TileFolder],
    settings: PipelineSettings,
    *,
    groups: Sequence[Group] = (),
    options: MapOptions = MapOptions(),
    adapted: bool = False,
) -> None:
    """Raise an error, before any work, if a tile has a result that the chain would not replace.

    Parameters
    ----------
    tiles
        The tiles.
    settings
        Settings of the run.
    groups
        Groups of the tiles, if they share models.
    options
        Other files to write beside the maps.
    adapted
        Whether the maps are those of models adapted to the points of the place.

    Raises
    ------
    OutputExistsError
        If there is such a result; names the first. See :func:`ensure_prior`.
    """
    models = {tile: group.model for group in groups for tile in group.tiles}
    trained = model_basis(settings.training or TileSettings(), None, "run")
    for group in groups:
        found = RecordFile(group.model.with_suffix(".json")).judge(group.model, trained)
        if found.state == "foreign":
            refuse_foreign(group.model, found.why)
        found = RecordFile(group.adapted.with_suffix(".json")).judge(group.adapted, adapted_basis("run"))
        if adapted and found.state == "foreign":
            refuse_foreign(group.adapted, found.why)
    for tile in tiles:
        tile.require_ours("prior", prior_basis(settings, "run"))
        if tile not in models:
            tile.require_ours("model", trained)
            if adapted:
                tile.require_ours("adapted", adapted_basis("run"))
        how: dict[str, Any] = {"posterior": settings.posterior, "force": False, "options": options}
        basis = map_basis(tile, models.get(tile), "run", adapted=adapted, **how)
        tile.require_ours("prediction", basis)


def score_tile(tile: TileFolder, settings: PipelineSettings) -> Scores | None:
    """Score a tile's map if it has ``labels.tif``, and record the scores in its item."""
    labels = tile.present(["labels"]).get("labels")
    if labels is None:
        return None
    # fetch has already converted the labels to the scheme's codes
    codes = {} if tile.is_recorded("labels") else settings.label_map
    scores = evaluate([(tile.file("prediction"), labels)], settings.scheme, label_map=codes)
    tile.record(
        "evaluation",
        make_key({}, {"map": tile.file("prediction"), "labels": labels}),
        accuracy=scores.accuracy,
        mean_iou=scores.mean_iou,
        pixels=scores.pixels,
    )
    return scores


def with_overwrite(run: Run) -> Run:
    """Return the run options of a step that is due: replace the old result, and use the files' own nodata."""
    return replace(run, overwrite=True, nodata=None)


def _describe_grid(path: Path) -> str:
    """Return the part of the image that a prior depends on."""
    with open_raster(path) as src:
        return repr(Grid.of(src))


def must_make(tile: TileFolder, step: str, basis: Basis, *, overwrite: bool) -> bool:
    """Return whether a result of a tile must be made, and log why.

    Parameters
    ----------
    tile, step
        The tile and the result.
    basis
        Everything it would be made from.
    overwrite
        Make it in any case.

    Returns
    -------
    bool
        False if it is current.

    Raises
    ------
    OutputExistsError
        If it is of another recipe, or not of landprior.
    """
    clear_leftovers(tile.path)
    return must_write(tile.file(step), tile.judge(step, basis), overwrite=overwrite)


def must_write(path: Path, found: Judgement, *, overwrite: bool) -> bool:
    """Return whether a result must be made, and log why.

    Parameters
    ----------
    path
        Path of the result.
    found
        Whether it is current.
    overwrite
        Make it in any case.

    Returns
    -------
    bool
        False if it is current.

    Raises
    ------
    OutputExistsError
        If it is of another recipe, or not of landprior.
    """
    if overwrite or found.state == "missing":
        return True
    if found.state == "foreign":
        refuse_foreign(path, found.why)
    if found.state == "current":
        logger.info("  %s is current", path.name)
        return False
    logger.info("  %s is stale (%s); remaking it", path.name, found.why)
    return True
