"""The demo: the main job on a synthetic scene, scored against its truth."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landprior.landcover.adaptation.adapt import adapt
from landprior.landcover.assessment.figures import draw_comparison
from landprior.landcover.assessment.sampling import draw_sample, write_sample
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.files import train_files
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.item import TileFolder
from landprior.landcover.workspace.provenance import Basis
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import ensure_prior
from landprior.raster.cog import write_raster
from landprior.raster.outputs import make_folder
from landprior.raster.scheme import MAP_NODATA, load_scheme
from landprior.run import Run
from landprior.sources.sample_design import REFERENCE, STRATUM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from landprior.landcover.synthetic.scene import Climate
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

FILTERS = 16
"""Width of the demo's network: enough for the scene, and quick on two cores."""

POINTS = 100
"""Random pixels whose truth the model is adapted to; they are not scored in its map."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the demo.

    Parameters
    ----------
    scores
        Method -> scores against the truth: prior, CE, QR q, QR r without and with the finish, and adapted to points.
    tile
        The tile's folder.
    map, figure
        The map of r by QR (a COG) and the figure.
    """

    scores: dict[str, Scores]
    tile: TileFolder
    map: Path
    figure: Path

    def to_text(self) -> str:
        """Return the scores as a table."""
        lines = [f"{'':<24} accuracy  mean IoU"]
        lines += [f"{name:<24} {s.accuracy:8.3f}  {s.mean_iou:8.3f}" for name, s in self.scores.items()]
        return "\n".join(lines)


def write_scene(folder: Path, *, size: int = 768, seed: int = 0, overwrite: bool = False) -> TileFolder:
    """Write a scene's layers as a tile of a workspace: ``<folder>/temperate/seed-<seed>/``.

    Parameters
    ----------
    folder
        Folder of the workspace.
    size
        Side in metres (= pixels).
    seed
        See :func:`landprior.landcover.synthetic.scene.make_scene`.
    overwrite
        Replace existing layers.

    Returns
    -------
    TileFolder
        With image, NLCD, layers and labels.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.synthetic.scene.make_scene` and :func:`landprior.raster.cog.write_raster`.
    """
    climate: Climate = "temperate"
    tile = TileFolder(path=folder / climate / f"seed-{seed}", city=climate)
    make_folder(tile.path)
    scene = make_scene(size, seed=seed, climate=climate)
    scheme, nlcd = load_scheme("enviroatlas-5"), load_scheme("nlcd")
    options: dict[str, Any] = {"overwrite": overwrite}
    write_raster(
        tile.file("naip"),
        scene.image,
        scene.grid,
        descriptions=("red", "green", "blue", "near infrared"),
        **options,
    )
    write_raster(tile.file("nlcd"), scene.nlcd, scene.grid, scheme=nlcd, overviews="mode", **options)
    for name, values in scene.layers.items():
        write_raster(tile.file(name), values, scene.grid, overviews="nearest", **options)
    write_raster(
        tile.file("labels"), scene.truth, scene.grid, scheme=scheme, nodata=MAP_NODATA, overviews="mode", **options
    )
    return tile


def run_demo(
    folder: Path,
    *,
    size: int = 768,
    seed: int = 0,
    filters: int = FILTERS,
    run: Run = Run(),
) -> DemoResult:
    """Make a scene, build its prior, train CE and QR, map, adapt to points, score and draw.

    Parameters
    ----------
    folder
        A workspace for the results.
    size, seed
        Size and seed of the scene; the seed is also used for training.
    filters
        Width of the network.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    DemoResult
        Scores and paths of the files.
    """
    scheme = load_scheme("enviroatlas-5")
    logger.info("scene: %d x %d m, seed %d", size, size, seed)
    tile = write_scene(folder, size=size, seed=seed, overwrite=run.overwrite)
    logger.info("prior: NLCD through the shipped matrix, with roads, buildings and water")
    pipeline = PipelineSettings(scheme=scheme, cooccurrence=load_cooccurrence(None, scheme))
    prior = ensure_prior(tile, pipeline, run=run)
    maps = {"prior (most probable)": map_prior(prior, tile.path / "prior_map.tif", run=run)}
    image = tile.file("naip")
    for loss, name in (("ce", "CE"), ("qr", "QR")):
        logger.info("training with %s on the prior only, without labels", name)
        base = TileSettings(filters=filters)
        settings = base.model_copy(update={"training": base.training.model_copy(update={"loss": loss, "seed": seed})})
        weights = tile.file("model") if loss == "qr" else tile.path / "model_ce.safetensors"
        made = {"image": image, "prior": prior}
        with _recording(tile, "model" if loss == "qr" else None, made, settings.model_dump(mode="json")):
            model = train_files([(image, prior)], weights, settings=settings, run=run)
        title = f"{name} q" if loss == "qr" else name
        maps[title] = predict(image, tile.path / f"prediction_{loss}_q.tif", model, run=run)
        if loss == "qr":
            with _recording(tile, "prediction", made | {"model": weights}):
                plain = MapOptions(finish="none")
                target = tile.path / "prediction_qr_r_plain.tif"
                maps["QR r, not finished"] = predict(
                    image, target, model, posterior=prior, force=True, options=plain, run=run
                )
                maps["QR r"] = predict(image, tile.file("prediction"), model, posterior=prior, force=True, run=run)
    scores = {name: evaluate([(path, tile.file("labels"))], scheme) for name, path in maps.items()}
    name = f"QR r, {POINTS} points"
    points = write_points(tile, tile.path / "points.gpkg", scheme, seed=seed, overwrite=run.overwrite)
    logger.info("adapting to %d points whose class is known", POINTS)
    adapt(weights, [(image, prior)], points, tile.path / "adapted.safetensors", run=run)
    adapted = load_model(tile.path / "adapted.safetensors")
    maps[name] = predict(image, tile.path / "prediction_adapted.tif", adapted, posterior=prior, run=run)
    scores[name] = evaluate([(maps[name], tile.file("labels"))], scheme, exclude=points)
    figure = draw_comparison(
        tile.path / "comparison.png",
        scheme,
        maps={name: path for name, path in maps.items() if name not in ("prior (most probable)", "QR r, not finished")},
        labels=tile.file("labels"),
        image=image,
        prior=prior,
        overwrite=run.overwrite,
    )
    return DemoResult(scores=scores, tile=tile, map=tile.file("prediction"), figure=figure)


def write_points(
    tile: TileFolder, path: Path, scheme: ClassScheme, *, count: int = POINTS, seed: int = 0, overwrite: bool = False
) -> Path:
    """Write random pixels of a tile with the class that its labels have there, as if someone had looked at each.

    Parameters
    ----------
    tile
        A tile with labels.
    path
        The GeoPackage to write.
    scheme
        The classes.
    count
        Number of points.
    seed
        Random seed.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.assessment.sampling.draw_sample`.
    """
    sample = draw_sample(tile.file("labels"), scheme, count=count, allocation="proportional", seed=seed)
    codes = dict(zip(scheme.codes.tolist(), scheme.names, strict=True))
    return write_sample(sample.assign(**{REFERENCE: sample[STRATUM].map(codes)}), path, scheme, overwrite=overwrite)


@contextmanager
def _recording(
    tile: TileFolder, step: str | None, inputs: Mapping[str, Path], settings: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Record a result in ``item.json`` as made by the demo, so that other commands recognise and keep it."""
    if step is None:
        yield
        return
    with tile.making(step, Basis(command="demo", recipe="demo", settings=settings or {}, inputs=inputs)):
        yield
