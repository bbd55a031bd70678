"""The whole chain over a workspace: build-prior, train, predict, evaluate, each done only where needed."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from landprior.errors import ConfigError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.prior.cooccurrence import Cooccurrence, load_cooccurrence
from landprior.landcover.workspace.city import CityRef, find_city
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.provenance import Basis, Judgement, RecordFile, make_key, refuse_stranger
from landprior.landcover.workspace.recipes import map_basis, model_basis, prior_basis
from landprior.raster.grid import Grid
from landprior.raster.locks import clear_leftovers
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.run import Run
from landprior.sources.cities import list_cities

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.assessment.scores import Scores
    from landprior.landcover.prior.settings import PriorSettings
    from landprior.landcover.training.files import TrainingTile
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.workspace.item import TileFolder

logger = logging.getLogger(__name__)

__all__ = [
    "STEPS",
    "PipelineSettings",
    "Step",
    "StepResult",
    "Workspace",
    "joint_model_of_city",
    "map_of_tile",
    "model_of_tile",
    "prior_of_tile",
    "require_own_results",
    "run_steps",
    "run_workspace",
    "scores_of_tile",
    "train_city",
]


class Trainer(Protocol):
    """What trains a tile's model in another way than by a loss against its prior (:mod:`landprior.superres`)."""

    @property
    def description(self) -> dict[str, Any]:
        """All that its models hang on besides files and the settings of the training."""

    @property
    def counts_cells(self) -> bool:
        """Whether it needs NLCD."""

    def train(self, tiles: Sequence[TrainingTile], output: Path, settings: TileSettings, *, run: Run) -> LandcoverModel:
        """Train and write a model.

        Parameters
        ----------
        tiles
            Files to train on.
        output
            The model to write.
        settings
            Schedule and network.
        run
            See :class:`landprior.run.Run`.

        Returns
        -------
        LandcoverModel
            As it is in the file.
        """


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What the chain is run with.

    Parameters
    ----------
    scheme
        The classes.
    cooccurrence
        P(class | NLCD code).
    prior
        Filter widths; None for the paper's, or those of the learned prior.
    learned
        A learned prior that fuses the layers.
    training
        Settings of :func:`landprior.landcover.training.trainer.train_model`; None for its defaults.
    posterior
        Map r (the default) or the network's q.
    label_map
        Codes of ``labels.tif`` -> codes of the scheme.
    """

    scheme: ClassScheme
    cooccurrence: Cooccurrence
    prior: PriorSettings | None = None
    learned: LandcoverModel | None = None
    training: TileSettings | None = None
    posterior: bool = True
    label_map: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def for_city(
        cls,
        city: str | CityRef,
        *,
        scheme: ClassScheme | None = None,
        cooccurrence: str | Path | None = None,
        **changes: Any,  # noqa: ANN401 - the other fields
    ) -> PipelineSettings:
        """Return the settings of a preset, with what the user gave in its place.

        Parameters
        ----------
        city
            A preset, a preset file, or the name of a folder of the workspace.
        scheme
            Instead of the preset's.
        cooccurrence
            A matrix instead of the preset's, as of :func:`landprior.landcover.prior.cooccurrence.load_cooccurrence`.
        **changes
            The other fields.

        Returns
        -------
        PipelineSettings
            Checked.

        Raises
        ------
        ConfigError
            If the city is no preset and no scheme is given.
        """
        found = find_city(city)
        preset = found.preset
        if scheme is None:
            if preset is None:
                near = difflib.get_close_matches(found.name.lower(), list_cities(), n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                msg = (
                    f"{found.name!r} is not a preset ({', '.join(list_cities())}), so its classes are not known; {hint}"
                    "give --scheme (enviroatlas-5, chesapeake-4 or a YAML file)"
                )
                raise ConfigError(msg)
            scheme = load_scheme(preset.scheme)
        matrix = cooccurrence or (preset.cooccurrence if preset is not None else None)
        return cls(scheme=scheme, cooccurrence=load_cooccurrence(matrix, scheme), **changes)


def prior_of_tile(
    tile: TileFolder,
    settings: PipelineSettings,
    *,
    command: str = "build-prior",
    run: Run = Run(),
) -> Path:
    """Build a tile's prior from the layers that are there, unless it is current.

    Parameters
    ----------
    tile, settings
        Which, and how.
    command
        On whose behalf, for the record: what another command made with other settings is kept.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Path
        Of the prior.

    Raises
    ------
    OutputExistsError
        If there is one of another recipe, or that landprior did not make.
    """
    image = tile.require("naip", hint="every tile needs its image")
    nlcd = tile.require("nlcd", hint="put the NLCD raster of the place there")
    layers = tile.present(tuple(LAYERS))
    basis = prior_basis(settings, command, {"nlcd": nlcd, **layers}, {"grid": _grid_of(image)})
    if not _needed(tile, "prior", basis, overwrite=run.overwrite):
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
            run=_anew(run),
        )
        note.update(cooccurrence=settings.cooccurrence.source, layers=sorted(layers))
    return tile.file("prior")


def model_of_tile(
    tile: TileFolder,
    training: TileSettings | None = None,
    *,
    trainer: Trainer | None = None,
    command: str = "train",
    run: Run = Run(),
) -> Path:
    """Train a tile's own model, by the loss of the settings or by another method, unless it is current.

    Parameters
    ----------
    tile
        Which.
    training
        How; by default the recipe ``default``.
    trainer
        Another method.
    command, run
        See :func:`prior_of_tile`.

    Returns
    -------
    Path
        Of the model.

    Raises
    ------
    OutputExistsError
        See :func:`prior_of_tile`.
    MissingInputError
        If the tile lacks its image or prior, or NLCD where the method needs it.
    """
    from landprior.landcover.training.files import TrainingTile, train_files
    from landprior.landcover.training.settings import TileSettings

    image = tile.require("naip", hint="every tile needs its image")
    prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
    training = training or TileSettings()
    files = {"image": image, "prior": prior}
    nlcd = None
    if trainer is not None and trainer.counts_cells:
        nlcd = files["nlcd"] = tile.require("nlcd", hint="this method counts in NLCD's cells")
    basis = model_basis(training, trainer, command, files)
    if not _needed(tile, "model", basis, overwrite=run.overwrite):
        return tile.file("model")
    target = tile.file("model")
    run = _anew(run)
    with tile.making("model", basis) as note:
        if trainer is None:
            model = train_files([(image, prior)], target, settings=training, names=[tile.id], run=run)
        else:
            one = TrainingTile(image=image, prior=prior, nlcd=nlcd, name=tile.id)
            model = trainer.train([one], target, training, run=run)
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
        Which; each with image and prior.
    output
        The model to write.
    training
        How; by default the recipe ``default``.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    OutputExistsError
        If the file is there and is not to be replaced.
    """
    from landprior.landcover.training.files import train_files

    files = _joint_files(tiles)
    pairs = [(files[f"{tile.id} image"], files[f"{tile.id} prior"]) for tile in tiles]
    names = [tile.id for tile in tiles]
    train_files(pairs, output, settings=training, names=names, run=run)
    return output


def joint_model_of_city(
    tiles: Sequence[TileFolder],
    training: TileSettings | None = None,
    *,
    run: Run = Run(),
) -> Path:
    """Train the joint model of a city of a workspace, ``<city>/model.safetensors``, unless it is current.

    What it was made from is recorded beside it, in ``model.json``.

    Parameters
    ----------
    tiles
        Of one city.
    training
        How; by default the recipe ``default``.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Path
        Of the model.

    Raises
    ------
    OutputExistsError
        See :func:`prior_of_tile`.
    """
    from landprior.landcover.training.settings import TileSettings

    training = training or TileSettings()
    target = tiles[0].path.parent / "model.safetensors"
    record = RecordFile(target.with_suffix(".json"))
    basis = model_basis(training, None, "train --joint", _joint_files(tiles))
    if _due(target, record.judge(target, basis), overwrite=run.overwrite):
        with record.making(target, basis):
            train_city(tiles, target, training, run=_anew(run))
    return target


def _joint_files(tiles: Sequence[TileFolder]) -> dict[str, Path]:
    files = {}
    for tile in tiles:
        files[f"{tile.id} image"] = tile.require("naip", hint="every tile needs its image")
        files[f"{tile.id} prior"] = tile.require(
            "prior", hint=f"build it with: landprior build-prior --city {tile.city}"
        )
    return files


def map_of_tile(
    tile: TileFolder,
    *,
    posterior: bool = True,
    force: bool = False,
    options: MapOptions = MapOptions(),
    model: Path | None = None,
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
        Which.
    posterior, force, options, engine, precision, memory
        See :func:`landprior.landcover.mapping.predict.predict`; ``posterior`` maps r.
    model
        Another model than the tile's own.
    command
        See :func:`prior_of_tile`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Path
        Of the map.

    Raises
    ------
    OutputExistsError
        If there is a map of another model or recipe, or that landprior did not make.
    """
    from landprior.landcover.mapping.predict import predict
    from landprior.landcover.training.model import load_model

    image = tile.require("naip", hint="every tile needs its image")
    weights = model or tile.require("model", hint=f"train it with: landprior train --city {tile.city}")
    inputs = {"image": image, "model": weights}
    weighed = load_model(weights)
    takes_prior = "prior" in weighed.extras
    prior = None
    if posterior or takes_prior:
        prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
        inputs["prior"] = prior
    computing = {name: value for name, value in (("engine", engine), ("precision", precision)) if value != "auto"}
    basis = map_basis(
        tile, model, command, posterior=posterior, force=force, options=options, computing=computing, inputs=inputs
    )
    if not _needed(tile, "prediction", basis, overwrite=run.overwrite):
        return tile.file("prediction")
    with tile.making("prediction", basis) as note:
        predict(
            image,
            tile.file("prediction"),
            weighed,
            posterior=prior if posterior else None,
            prior=prior if takes_prior else None,
            force=force,
            options=options,
            engine=engine,
            precision=precision,
            memory=memory,
            run=_anew(run),
        )
        note.update(maps="r" if posterior else "q")
    return tile.file("prediction")


def require_own_results(
    tiles: Sequence[TileFolder],
    settings: PipelineSettings,
    *,
    options: MapOptions = MapOptions(),
) -> None:
    """Refuse, before any work, to run the chain over tiles with a result that it would not replace.

    Parameters
    ----------
    tiles
        Which.
    settings
        How they would be run.
    options
        What would be written beside the maps.

    Raises
    ------
    OutputExistsError
        Names the first; see :func:`prior_of_tile`.
    """
    from landprior.landcover.training.settings import TileSettings

    for tile in tiles:
        tile.require_ours("prior", prior_basis(settings, "run"))
        tile.require_ours("model", model_basis(settings.training or TileSettings(), None, "run"))
        asked = map_basis(tile, None, "run", posterior=settings.posterior, force=False, options=options)
        tile.require_ours("prediction", asked)


def scores_of_tile(tile: TileFolder, settings: PipelineSettings) -> Scores | None:
    """Score a tile's map if it has ``labels.tif``, and note it in its item."""
    from landprior.landcover.assessment.scores import evaluate

    labels = tile.present(["labels"]).get("labels")
    if labels is None:
        return None
    # fetch has put its labels into the scheme's own codes already
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


Step = Literal["prior", "model", "joint model", "map", "scores"]

STEPS: tuple[Step, ...] = ("prior", "model", "map", "scores")
"""The whole chain for a tile; ``"joint model"`` is one model for all tiles, made once, before their maps."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Parameters
    ----------
    step
        Which.
    path
        Its file; of scores, the map that was scored.
    scores
        Of the step ``"scores"``.
    """

    step: Step
    path: Path
    scores: Scores | None = None


def run_steps(
    tiles: Sequence[TileFolder],
    steps: Sequence[Step],
    settings: PipelineSettings | None = None,
    *,
    training: TileSettings | None = None,
    trainer: Trainer | None = None,
    mapping: Mapping[str, Any] | None = None,
    command: str = "run",
    run: Run = Run(),
) -> Iterator[StepResult]:
    """Do steps for tiles, each only where it is needed, tile by tile.

    Parameters
    ----------
    tiles
        Those of a place.
    steps
        Which, whatever their order.
    settings
        Of priors and scores; the other steps need none.
    training, trainer
        See :func:`model_of_tile`.
    mapping
        Options of :func:`map_of_tile`.
    command
        On whose behalf (:func:`prior_of_tile`).
    run
        See :class:`landprior.run.Run`.

    Yields
    ------
    StepResult
        As soon as it is there. Tiles without labels have no scores.

    Raises
    ------
    LandpriorError
        The first failure; what was done before it stays.
    """
    if "joint model" in steps:
        yield StepResult("joint model", joint_model_of_city(tiles, training, run=run))
    for tile in tiles:
        if len(steps) > 1:
            logger.info("%s/%s", tile.city, tile.name)
        if "prior" in steps and settings is not None:
            yield StepResult("prior", prior_of_tile(tile, settings, command=command, run=run))
        if "model" in steps:
            yield StepResult("model", model_of_tile(tile, training, trainer=trainer, command=command, run=run))
        if "map" in steps:
            yield StepResult("map", map_of_tile(tile, **(mapping or {}), command=command, run=run))
        if "scores" in steps and settings is not None:
            scores = scores_of_tile(tile, settings)
            if scores is not None:
                yield StepResult("scores", tile.file("prediction"), scores)


def run_workspace(
    workspace: Workspace,
    city: str | CityRef,
    settings: PipelineSettings,
    *,
    only: Sequence[str] = (),
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> tuple[list[Path], Scores | None]:
    """Run the whole chain for the tiles of a city.

    Parameters
    ----------
    workspace
        Where the tiles are.
    city
        Whose.
    settings
        How they are mapped.
    only
        Names of some tiles; none: all.
    options
        What else to write beside the maps.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    maps : list of Path
        One per tile.
    scores : Scores or None
        Pooled over the tiles that have labels.

    Raises
    ------
    OutputExistsError
        If some tile has a result that the chain would not replace; nothing is done then.
    LandpriorError
        The first failure; what was done before it stays, and a rerun goes on from there.
    """
    maps: list[Path] = []
    total: Scores | None = None
    tiles = workspace.tiles(city, only=only)
    if not run.overwrite:
        require_own_results(tiles, settings, options=options)
    mapping = {"posterior": settings.posterior, "options": options}
    for found in run_steps(tiles, STEPS, settings, training=settings.training, mapping=mapping, run=run):
        if found.step == "map":
            maps.append(found.path)
        elif found.scores is not None:
            total = found.scores if total is None else total + found.scores
    return maps, total


def _anew(run: Run) -> Run:
    """Return how a step is done that is due: over what is there; the tile's own files say what is no data."""
    return replace(run, overwrite=True, nodata=None)


def _grid_of(path: Path) -> str:
    """Return what a prior depends on of its image."""
    with open_raster(path) as src:
        return repr(Grid.of(src))


def _needed(tile: TileFolder, step: str, basis: Basis, *, overwrite: bool) -> bool:
    clear_leftovers(tile.path)
    return _due(tile.file(step), tile.judge(step, basis), overwrite=overwrite)


def _due(path: Path, found: Judgement, *, overwrite: bool) -> bool:
    """Say whether a result must be made, and why, in the log; refuse to replace what is not of this recipe."""
    if overwrite or found.state == "missing":
        return True
    if found.state == "foreign":
        refuse_stranger(path, found.why)
    if found.state == "current":
        logger.info("  %s is current", path.name)
        return False
    logger.info("  %s is stale (%s); making it again", path.name, found.why)
    return True
