"""The whole chain over a workspace: build-prior, train, predict, evaluate, each done only where needed."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from landprior.errors import ConfigError, InputError
from landprior.landcover.coarse import LAYERS
from landprior.landcover.cooccurrence import Cooccurrence, load_cooccurrence
from landprior.landcover.prior import PriorSettings, build_prior
from landprior.landcover.workspace import TileFolder, Workspace, make_key
from landprior.raster.files import open_raster
from landprior.raster.grid import Grid
from landprior.raster.outputs import clear_leftovers
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.sources.areas import list_cities, load_city

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.landcover.evaluation import Scores
    from landprior.landcover.model import LandcoverModel
    from landprior.landcover.prediction import Products
    from landprior.landcover.training import TileSettings, TrainingTile

logger = logging.getLogger(__name__)

__all__ = [
    "PipelineSettings",
    "Workspace",
    "map_of_tile",
    "model_of_tile",
    "prior_of_tile",
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

    def train(self, tiles: Sequence[TrainingTile], output: Path, settings: TileSettings, **run: Any) -> LandcoverModel:  # noqa: ANN401
        """Train and write a model."""


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
    device
        Where the learned prior is computed.
    training
        Settings of :func:`landprior.landcover.training.train_model`; None for its defaults.
    posterior
        Map r (the default) or the network's q.
    label_map
        Codes of ``labels.tif`` -> codes of the scheme.
    """

    scheme: ClassScheme
    cooccurrence: Cooccurrence
    prior: PriorSettings | None = None
    learned: LandcoverModel | None = None
    device: str = "auto"
    training: TileSettings | None = None
    posterior: bool = True
    label_map: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def for_city(
        cls,
        city: str,
        *,
        scheme: ClassScheme | None = None,
        cooccurrence: str | Path | None = None,
        **changes: Any,  # noqa: ANN401 - the other fields
    ) -> PipelineSettings:
        """Return the settings of a preset, with what the user gave in its place.

        Raises
        ------
        ConfigError
            If the city is no preset and no scheme is given.
        """
        name = Path(city).stem if city.endswith((".yaml", ".yml")) else city
        preset = load_city(city) if city.endswith((".yaml", ".yml")) or name in list_cities() else None
        if scheme is None:
            if preset is None:
                near = difflib.get_close_matches(city, list_cities(), n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                msg = (
                    f"{city!r} is no preset ({', '.join(list_cities())}), so its classes are not known; {hint}"
                    "give --scheme (enviroatlas-5, chesapeake-4 or a YAML file)"
                )
                raise ConfigError(msg)
            scheme = load_scheme(preset.scheme)
        matrix = cooccurrence or (preset.cooccurrence if preset is not None else None)
        return cls(scheme=scheme, cooccurrence=load_cooccurrence(matrix, scheme), **changes)


def prior_of_tile(
    tile: TileFolder, settings: PipelineSettings, *, overwrite: bool = False, progress: bool = False
) -> Path:
    """Build a tile's prior from the layers that are there, unless it is current."""
    image = tile.require("naip", hint="every tile needs its image")
    nlcd = tile.require("nlcd", hint="put the NLCD raster of the place there")
    layers = tile.present(tuple(LAYERS))
    key = make_key(
        {
            "scheme": settings.scheme.model_dump(mode="json"),
            "cooccurrence": {code: row.tolist() for code, row in settings.cooccurrence.probabilities.items()},
            "prior": (settings.prior or PriorSettings()).model_dump(),
            "grid": _grid_of(image),
        }
        | ({} if settings.learned is None else {"learned": settings.learned.digest()}),
        {"nlcd": nlcd, **layers},
    )
    if not _needed(tile, "prior", key, overwrite=overwrite):
        return tile.file("prior")
    build_prior(
        nlcd,
        tile.file("prior"),
        cooccurrence=settings.cooccurrence,
        layers=layers,
        like=image,
        settings=settings.prior,
        learned=settings.learned,
        device=settings.device,
        overwrite=True,
        progress=progress,
    )
    tile.record("prior", key, cooccurrence=settings.cooccurrence.source, layers=sorted(layers))
    return tile.file("prior")


def model_of_tile(
    tile: TileFolder,
    training: TileSettings | None = None,
    *,
    trainer: Trainer | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Train a tile's own model, by the loss of the settings or by another method, unless it is current."""
    from landprior.landcover.training import TileSettings, TrainingTile, train_files

    image = tile.require("naip", hint="every tile needs its image")
    prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
    training = training or TileSettings()
    description, files = training.model_dump(mode="json"), {"image": image, "prior": prior}
    nlcd = None
    if trainer is not None:
        description["method"] = trainer.description
        if trainer.counts_cells:
            nlcd = files["nlcd"] = tile.require("nlcd", hint="this method counts in NLCD's cells")
    key = make_key(description, files)
    if not _needed(tile, "model", key, overwrite=overwrite):
        return tile.file("model")
    target = tile.file("model")
    run: dict[str, Any] = {"device": device, "overwrite": True, "progress": progress}
    if trainer is None:
        model = train_files([(image, prior)], target, training, names=[tile.id], **run)
    else:
        one = TrainingTile(image=image, prior=prior, nlcd=nlcd, name=tile.id)
        model = trainer.train([one], target, training, **run)
    history = {name: value for name, value in model.record["history"].items() if name != "looks"}
    tile.record("model", key, loss=model.loss, history=history, verdict=model.record.get("verdict"))
    return target


def train_city(
    tiles: Sequence[TileFolder],
    output: Path,
    training: TileSettings | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Train one joint model over tiles."""
    from landprior.landcover.training import train_files

    pairs = [
        (
            tile.require("naip", hint="every tile needs its image"),
            tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}"),
        )
        for tile in tiles
    ]
    names = [tile.id for tile in tiles]
    train_files(pairs, output, training, names=names, device=device, overwrite=overwrite, progress=progress)
    return output


def map_of_tile(
    tile: TileFolder,
    *,
    posterior: bool = True,
    force: bool = False,
    products: Products | None = None,
    model: Path | None = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Map a tile with its model, unless its map is current."""
    from landprior.landcover.model import load_model
    from landprior.landcover.prediction import Products, predict

    products = products or Products()
    image = tile.require("naip", hint="every tile needs its image")
    weights = model or tile.require("model", hint=f"train it with: landprior train --city {tile.city}")
    inputs = {"image": image, "model": weights}
    weighed = load_model(weights)
    takes_prior = "prior" in weighed.extras
    prior = None
    if posterior or takes_prior:
        prior = tile.require("prior", hint=f"build it with: landprior build-prior --city {tile.city}")
        inputs["prior"] = prior
    asked = {"products": vars(products), "force": force} | ({"posterior": posterior} if takes_prior else {})
    asked |= {name: value for name, value in (("engine", engine), ("precision", precision)) if value != "auto"}
    key = make_key(asked, inputs)
    if not _needed(tile, "prediction", key, overwrite=overwrite):
        return tile.file("prediction")
    predict(
        image,
        tile.file("prediction"),
        weighed,
        posterior=prior if posterior else None,
        prior=prior if takes_prior else None,
        force=force,
        products=products,
        device=device,
        engine=engine,
        precision=precision,
        memory=memory,
        overwrite=True,
        progress=progress,
    )
    tile.record("prediction", key, maps="r" if posterior else "q")
    return tile.file("prediction")


def scores_of_tile(tile: TileFolder, settings: PipelineSettings) -> Scores | None:
    """Score a tile's map if it has ``labels.tif``, and note it in its item."""
    from landprior.landcover.evaluation import evaluate

    labels = tile.present(["labels"]).get("labels")
    if labels is None:
        return None
    scores = evaluate([(tile.file("prediction"), labels)], settings.scheme, label_map=settings.label_map)
    tile.record(
        "evaluation",
        make_key({}, {"map": tile.file("prediction"), "labels": labels}),
        accuracy=scores.accuracy,
        mean_iou=scores.mean_iou,
        pixels=scores.pixels,
    )
    return scores


def run_workspace(
    workspace: Workspace,
    city: str,
    settings: PipelineSettings,
    *,
    only: Sequence[str] = (),
    products: Products | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[list[Path], Scores | None]:
    """Run the whole chain for the tiles of a city.

    Returns
    -------
    maps : list of Path
        One per tile.
    scores : Scores or None
        Pooled over the tiles that have labels.

    Raises
    ------
    LandpriorError
        The first failure; what was done before it stays, and a rerun goes on from there.
    """
    maps: list[Path] = []
    total: Scores | None = None
    for tile in workspace.tiles(city, only=only):
        logger.info("%s/%s", tile.city, tile.name)
        prior_of_tile(tile, settings, overwrite=overwrite, progress=progress)
        model_of_tile(tile, settings.training, device=device, overwrite=overwrite, progress=progress)
        maps.append(
            map_of_tile(
                tile,
                posterior=settings.posterior,
                products=products,
                device=device,
                overwrite=overwrite,
                progress=progress,
            )
        )
        scores = scores_of_tile(tile, settings)
        if scores is not None:
            total = scores if total is None else total + scores
    if not maps:
        msg = f"{city} has no tile to run"
        raise InputError(msg)
    return maps, total


def _grid_of(path: Path) -> str:
    """Return what a prior depends on of its image."""
    with open_raster(path) as src:
        return repr(Grid.of(src))


def _needed(tile: TileFolder, step: str, key: str, *, overwrite: bool) -> bool:
    """Say whether a result must be made, and why, in the log; clear what a killed run has left beside it."""
    clear_leftovers(tile.path)
    state = tile.state(step, key)
    if overwrite or state == "missing":
        return True
    if state == "current":
        logger.info("  %s is current", tile.file(step).name)
        return False
    logger.info("  %s was made from other inputs or settings; making it anew", tile.file(step).name)
    return True
