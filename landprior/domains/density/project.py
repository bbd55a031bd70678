"""Density on files: a model, maps and scores in a folder, for ``landprior density``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.domains.density.blocks import UNKNOWN, block_shape
from landprior.domains.density.mapping import map_density, posterior_odds, predict_points, read_darkness
from landprior.domains.density.points import PointScores, score_points
from landprior.domains.density.priors import write_prior
from landprior.domains.density.settings import DensitySettings
from landprior.domains.density.training import make_scheme, read_tiles, train_density
from landprior.errors import ModelError
from landprior.landcover.mapping.blur import BLUR
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import add_style, companion_path, list_products
from landprior.landcover.training.model import load_model, save_model
from landprior.progress import Progress, track
from landprior.raster.endings import check_named_output
from landprior.raster.locks import claiming
from landprior.raster.outputs import check_apart, checkpoint_path, make_folder, replacing
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.domains.density.blocks import BlockLabels
    from landprior.domains.density.images import Images
    from landprior.domains.density.points import Points
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

MODEL, REPORT = "model.safetensors", "report.json"


def train_images(
    images: Images,
    labels: BlockLabels,
    priors: NDArray[np.float64],
    output: Path,
    settings: DensitySettings | None = None,
    *,
    scheme: ClassScheme | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train on the images that have density classes and write the model, resuming an interrupted training.

    Parameters
    ----------
    images, labels, priors
        Images, classes of their blocks, and the probability of the target by class.
    output
        The model file; the state is kept beside it during training.
    settings
        See :class:`DensitySettings`.
    scheme
        Scheme of background and target, from :func:`landprior.domains.density.training.make_scheme`.
    run
        As for :func:`landprior.landcover.training.files.train_files`.

    Returns
    -------
    LandcoverModel
        The model as written to the file.

    Raises
    ------
    LandpriorError
        See :func:`read_tiles` and :func:`train_density`.
    """
    settings = settings or DensitySettings()
    target = check_named_output(output, "model", overwrite=run.overwrite, inputs=images.paths.values())
    checkpoint = checkpoint_path(target)
    paths = [images.paths[name] for name in images.names]
    tiles = read_tiles(
        paths, images.grids, labels, priors, scheme=scheme or make_scheme(), settings=settings, nodata=run.nodata
    )
    with claiming(target):
        model = train_density(tiles, labels.block, settings, checkpoint=checkpoint, run=run)
        model.record["density"] |= {
            "priors": priors.tolist(),
            "settings": settings.model_dump(mode="json"),
            "identity": _identify(images, labels, priors, settings),
        }
        save_model(model, target, overwrite=run.overwrite)
        for leftover in (
            checkpoint,
            *(target.with_name(f"{checkpoint.name}-{i}") for i in range(1, settings.restarts + 1)),
        ):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
    return model


def train_or_load(
    images: Images,
    labels: BlockLabels,
    priors: NDArray[np.float64],
    output: Path,
    settings: DensitySettings | None = None,
    *,
    run: Run = Run(),
    **options: Any,  # noqa: ANN401 - those of train_images
) -> LandcoverModel:
    """Return the model if an earlier identical run finished it, otherwise train it (:func:`train_images`).

    Parameters
    ----------
    images, labels, priors, output, settings, run
        See :func:`train_images`.
    **options
        Other arguments of :func:`train_images`.

    Returns
    -------
    LandcoverModel
        See :func:`train_images`.

    Raises
    ------
    OutputExistsError
        If there is a model of other settings, labels or images, that may not be replaced.
    LandpriorError
        See :func:`train_images`.
    """
    settings = settings or DensitySettings()
    if not run.overwrite and output.is_file():
        with contextlib.suppress(ModelError):
            model = load_density_model(output)
            if model.record["density"].get("identity") == _identify(images, labels, priors, settings):
                logger.info("%s already exists", output)
                return model
    return train_images(images, labels, priors, output, settings, run=run, **options)


def _identify(images: Images, labels: BlockLabels, priors: NDArray[np.float64], settings: DensitySettings) -> str:
    """Return a hash of a model's training data, with images by name, size and time, as they may be large."""
    sha = hashlib.sha256(settings.model_dump_json().encode() + priors.tobytes() + str(labels.block).encode())
    for name, classes in sorted(labels.classes.items()):
        stat = images.paths[name].stat()
        sha.update(f"{name}:{stat.st_size}:{stat.st_mtime_ns}".encode() + classes.tobytes())
    return sha.hexdigest()


def map_images(
    images: Images,
    names: Sequence[str],
    model: LandcoverModel,
    folder: Path,
    *,
    labels: BlockLabels | None = None,
    blur: int = BLUR,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> list[Path]:
    """Map images one by one; existing maps are kept, so that an interrupted run can resume.

    Parameters
    ----------
    images, names, model
        The images, the names of those to map, and a model (:func:`train_density`).
    folder
        Folder for ``<image>.tif`` and ``<image>_probabilities.tif``, and with ``labels`` also ``<image>_prior.tif``.
    labels
        If given, maps are of r where density classes are known.
    blur, options
        See :func:`landprior.domains.density.mapping.map_density`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of Path
        The maps of classes.
    """
    make_folder(folder)
    options = replace(options, probabilities=True)
    check_apart(_list_results(images, folder, options), images.paths.values())
    found = []
    for name in track(names, "maps", "image", show=run.progress):
        target = folder / f"{Path(name).stem}.tif"
        found.append(target)
        classes = None if labels is None else labels.classes.get(name)
        wanted = {"model": model.digest(), "blur": str(blur), "maps": "q" if classes is None else "r"}
        same = _is_made_alike(target, wanted)
        if same and not run.overwrite and _has_products(target, replace(options, style=False)):
            add_style(target, model.scheme, options)
            logger.info("%s already exists", target)
            continue
        prior = None
        if labels is not None and classes is not None:
            priors = np.array(model.record["density"]["priors"])
            prior = write_prior(
                companion_path(target, "prior"),
                classes,
                priors,
                block=labels.block,
                grid=images.grids[name],
                scheme=model.scheme,
                overwrite=True,
            )
        map_density(
            images.paths[name],
            target,
            model,
            posterior=prior,
            blur=blur,
            options=options.tagged(density_model=wanted["model"]),
            run=replace(
                run, overwrite=run.overwrite or same or not target.exists(), progress=run.progress and len(names) == 1
            ),
        )
    return found


def _list_results(images: Images, folder: Path, options: MapOptions) -> list[Path]:
    """Return the paths of the maps of images in a folder, with the files beside them."""
    maps = [folder / f"{Path(name).stem}.tif" for name in images.names]
    return [path for one in maps for path in (one, companion_path(one, "prior"), *list_products(one, options))]


def prepare_folder(
    images: Images,
    folder: Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    trains: bool = True,
    maps: MapOptions | None = MapOptions(probabilities=True),
) -> None:
    """Create the folder of results, after checking that none of them is an input.

    Parameters
    ----------
    images, folder
        The images, and the folder for their maps, the model and the report.
    inputs
        Other files that are read.
    trains
        Whether a model is written.
    maps
        What is written with each map; None if there are no maps.

    Raises
    ------
    InputError, RasterWriteError
        See :func:`landprior.raster.outputs.check_apart` and :func:`landprior.raster.outputs.make_folder`.
    """
    results = [folder / REPORT, *([folder / MODEL] if trains else [])]
    results += [] if maps is None else _list_results(images, folder, replace(maps, probabilities=True))
    check_apart(results, [*inputs, *images.paths.values()])
    make_folder(folder)


def _is_made_alike(path: Path, wanted: Mapping[str, str]) -> bool:
    """Return whether a map exists and was made by this model in this way."""
    if not path.exists():
        return False
    with open_raster(path) as src:
        tags = src.tags(ns=TAG_DOMAIN)
    return (tags.get("density_model"), tags.get("blur"), tags.get("maps")) == tuple(wanted.values())


def _has_products(path: Path, options: MapOptions) -> bool:
    """Say whether a map has all that is wanted beside it, the probabilities as they are wanted."""
    if not all(product.exists() for product in list_products(path, options)):
        return False
    with open_raster(companion_path(path, "probabilities")) as src:
        return bool(src.tags(ns=TAG_DOMAIN).get("encoding") == options.encoding)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table of scores: the group of images, the kind of values, and the scores."""

    images: str
    what: str
    scores: PointScores


def score_images(
    images: Images,
    points: Mapping[str, Points],
    model: LandcoverModel | None,
    labels: BlockLabels | None,
    *,
    block: int,
    groups: Mapping[str, Sequence[str]],
    blurs: Sequence[int] = (1, BLUR),
    precision: str = "auto",
    run: Run = Run(),
) -> list[Row]:
    """Score predictions and baselines at labelled points.

    Parameters
    ----------
    images, points
        Images, and points by image.
    model
        None to score the baselines only.
    labels
        Density classes, for the prior's own score and for r; by image, as far as known.
    block
        Side of the blocks within which points are compared, pixels.
    groups
        Images to be scored together, by name of the group; images without points are ignored.
    blurs
        Sides of the blur, one row each.
    precision
        See :func:`predict_points`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of Row
        Baselines (the block's class, and the darkness of the pixel, over 5 x 5 px) and predictions of each group.
    """
    rows: list[Row] = []
    mine = {group: [name for name in names if name in points] for group, names in groups.items()}
    bar = Progress(sum(map(len, mine.values())), "points", "image", show=run.progress)
    options: dict[str, Any] = {"blurs": blurs, "run": replace(run, progress=False), "precision": precision}
    with bar:
        for group, names in mine.items():
            parts: list[dict[str, NDArray[np.float64]]] = []
            cells: list[NDArray[np.int64]] = []
            for number, name in enumerate(names):
                at, columns = points[name], block_shape(images.grids[name], block)[1]
                cells.append((np.int64(number) << 40) + at.rows // block * columns + at.columns // block)
                parts.append(_score_values(images.paths[name], at, model, labels, **options))
                bar.update()
            if names:
                positive = np.concatenate([points[name].positive for name in names])
                rows += _score_group(group, parts, positive, np.concatenate(cells))
    return rows


def _score_group(
    group: str,
    parts: Sequence[Mapping[str, NDArray[np.float64]]],
    positive: NDArray[np.bool_],
    cells: NDArray[np.int64],
) -> list[Row]:
    """Score each kind of values available for all images of a group."""
    rows = []
    for what in parts[0]:
        if all(what in part for part in parts):
            values = np.concatenate([part[what] for part in parts])
            there = ~np.isnan(values)
            rows.append(Row(images=group, what=what, scores=score_points(values[there], positive[there], cells[there])))
    return rows


def _score_values(
    path: Path,
    at: Points,
    model: LandcoverModel | None,
    labels: BlockLabels | None,
    *,
    blurs: Sequence[int],
    precision: str,
    run: Run,
) -> dict[str, NDArray[np.float64]]:
    """Return the values by which points of an image are scored, by name: larger for the target, NaN if unknown."""
    found: dict[str, NDArray[np.float64]] = {}
    classes = None
    if labels is not None and path.name in labels.classes:
        classes = labels.classes[path.name][at.rows // labels.block, at.columns // labels.block]
        found["density class"] = np.where(classes == UNKNOWN, np.nan, classes).astype(float)
    found["darkness"] = read_darkness(path, at, nodata=run.nodata)
    if model is None:
        return found
    odds = predict_points(path, at, model, blurs=blurs, run=run, precision=precision)
    for blur, values in zip(blurs, odds, strict=True):
        suffix = f", blur {blur}" if blur > 1 else ""
        found[f"q{suffix}"] = values
        if classes is not None:
            priors = np.array(model.record["density"]["priors"])
            prior = np.where(classes == UNKNOWN, np.nan, priors[classes])
            found[f"r{suffix}"] = posterior_odds(values, prior, model)
    return found


def to_text(rows: Sequence[Row]) -> str:
    """Return the scores as a table for the terminal."""
    names = f"{'overall':>8} {'within':>8} {'points':>8} {'positive':>9} {'blocks':>7} {'pairs':>8}"
    lines = [f"{'images':<10} {'score':<16} {names}"]
    for row in rows:
        s = row.scores
        lines.append(
            f"{row.images:<10} {row.what:<16} {s.overall:8.3f} {s.within:8.3f} {s.points:8d} {s.positives:9d} "
            f"{s.blocks:7d} {s.pairs:8d}".replace("nan", "  -")
        )
    return "\n".join(lines)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, replacing an existing one."""
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def load_density_model(path: Path) -> LandcoverModel:
    """Load a model of density classes.

    Raises
    ------
    MissingInputError, ModelError
        See :func:`landprior.landcover.training.model.load_model`; or if it is of another kind.
    """
    model = load_model(path)
    if "density" not in model.record:
        msg = f"{path} was not trained on density classes; train one with: landprior density IMAGES --coarse CSV"
        raise ModelError(msg)
    return model
