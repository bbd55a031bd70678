"""Finding parts of pictures from drawn priors: one model each or one for all, maps of q and r, and figures."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from landprior.domains.painting.drawing import SOFTNESS, read_drawing, write_prior
from landprior.domains.painting.pictures import draw_legend, draw_overlay, draw_probabilities
from landprior.errors import HarmWarning, InputError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.mapping.products import check_products, companion_path, list_products
from landprior.landcover.training.ensemble import clear_checkpoint, train_best
from landprior.landcover.training.layers import ImageLayer, PositionLayer
from landprior.landcover.training.model import load_model, save_model
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.raster.locks import claiming
from landprior.raster.outputs import check_apart, check_output, checkpoint_path, make_folder
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from landprior.domains.painting.drawing import Palette
    from landprior.implicit.settings import Warmup
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.training.tiles import Tile

MODEL, CLASSES = "model.safetensors", "classes.tif"
LOSS = "rq"
"""Loss of the paper's pictures."""

WARMUP: Warmup = "ce"
"""Warm-up without expectation-maximisation, which makes classes equally large if a drawing is vague in most places."""


@dataclass(frozen=True)
class Picture:
    """A picture to map.

    Parameters
    ----------
    image
        Any format rasterio reads: PNG, JPEG, GeoTIFF.
    prior
        Its drawn prior; None if an existing model is applied.
    """

    image: Path
    prior: Path | None = None

    @property
    def name(self) -> str:
        """Name of its results."""
        return self.image.stem


@dataclass(frozen=True)
class Painted:
    """Paths of the results of a picture; r and prior are None without a prior."""

    folder: Path
    classes: Path
    q: Path
    overlay: Path
    r: Path | None = None
    prior: Path | None = None
    model: Path | None = None


def paint(
    pictures: Sequence[Picture],
    output: str | Path,
    *,
    palette: Palette | None = None,
    model: str | Path | None = None,
    settings: TileSettings | None = None,
    jointly: bool = False,
    position: bool = False,
    softness: float = SOFTNESS,
    pixels: bool = False,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> list[Painted]:
    """Find the parts of pictures from priors drawn by hand, or with a model trained in this way.

    Parameters
    ----------
    pictures
        The pictures; each needs a prior unless ``model`` is given.
    output
        A folder, with a subfolder for each picture: ``classes.tif`` (a COG), ``classes.png``, ``q.png``,
        ``overlay.png``, and with a prior ``prior.tif``, ``prior.png``, ``r.png``, with classes from r.
        Also ``legend.png`` and the model.
    palette
        The classes and the meaning of the priors' colours; with a model, its own are used.
    model
        A model file, or None to train.
    settings
        Training settings; by default the usual ones with RQ and a warm-up of cross-entropy only.
    jointly
        Train one model on all pictures instead of one per picture.
    position
        Give the network the position of each pixel besides its colours.
    softness, pixels
        See :func:`landprior.domains.painting.drawing.read_drawing`.
    options
        What else to write with the classes; probabilities and the picture always are.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of Painted
        One per picture, in their order.

    Raises
    ------
    InputError
        If a prior is missing, two pictures have the same name, or neither palette nor model is given.
    GridMismatchError, SchemeError, PriorError, MissingInputError, OutputExistsError
        See :func:`landprior.domains.painting.drawing.read_drawing` and
        :func:`landprior.landcover.mapping.predict.predict`.
    """
    output = Path(output)
    _require_whole(pictures, palette, model)
    options = replace(options, probabilities=True, quicklook=True, finish="none")
    folders = [output / picture.name for picture in pictures]
    check_apart(
        _list_results(output, folders, model, options),
        [model, *(p for one in pictures for p in (one.image, one.prior))],
    )
    for folder in folders:
        make_folder(folder)
        check_products(folder / CLASSES, options, overwrite=run.overwrite)
    if model is None:
        priors = _draw(pictures, folders, palette, softness=softness, pixels=pixels)
        tiles = [_read(*pair, position=position) for pair in zip(pictures, priors, strict=True)]
        groups = (
            [(output / MODEL, tiles)]
            if jointly
            else [(folder / MODEL, [tile]) for folder, tile in zip(folders, tiles, strict=True)]
        )
        if jointly:
            check_output(output / MODEL, overwrite=run.overwrite)
        made = [(_train(group, settings or _usual(), path, run=run), path) for path, group in groups]
    else:
        made = [(load_model(model), Path(model))]
        palette = None if palette is None else replace(palette, scheme=made[0][0].scheme)
        priors = _draw(pictures, folders, palette, softness=softness, pixels=pixels)
    made = made * (len(pictures) if len(made) == 1 else 1)
    found = [
        replace(_map(picture, prior, folder, one, options, run=run), model=path)
        for picture, prior, folder, (one, path) in zip(pictures, priors, folders, made, strict=True)
    ]
    draw_legend(output / "legend.png", made[0][0].scheme)
    return found


def _list_results(output: Path, folders: Sequence[Path], model: str | Path | None, options: MapOptions) -> list[Path]:
    """Return the files that are written; a given model is not."""
    names = (CLASSES, "q.png", "overlay.png", "prior.tif", "prior.png", "r.png")
    trained = () if model is not None else (MODEL,)
    found = [folder / name for folder in folders for name in (*names, *trained)]
    found += [path for folder in folders for path in list_products(folder / CLASSES, options)]
    return found + [output / name for name in ("legend.png", *trained)]


def _usual() -> TileSettings:
    return make_settings(loss=LOSS, warmup=WARMUP)


def _require_whole(pictures: Sequence[Picture], palette: Palette | None, model: str | Path | None) -> None:
    """Raise an error for incomplete calls, before anything is computed."""
    names = [picture.name for picture in pictures]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not pictures or twice is not None:
        msg = (
            "there are no pictures"
            if twice is None
            else f"two pictures are named {twice}; results are stored under that name"
        )
        raise InputError(msg)
    if model is not None:
        return
    if palette is None:
        msg = "the classes are unknown: give a palette or a model"
        raise InputError(msg)
    bare = next((picture.image for picture in pictures if picture.prior is None), None)
    if bare is not None:
        msg = f"{bare} has no prior; give one for each picture, in the same order, or a model"
        raise InputError(msg)


def _draw(
    pictures: Sequence[Picture],
    folders: Sequence[Path],
    palette: Palette | None,
    *,
    softness: float,
    pixels: bool,
) -> list[Path | None]:
    """Turn drawings into rasters; None where there are none."""
    found: list[Path | None] = []
    for picture, folder in zip(pictures, folders, strict=True):
        if picture.prior is None or palette is None:
            found.append(None)
            continue
        with ImageLayer(picture.image) as layer:
            grid = layer.grid
        prior = read_drawing(picture.prior, palette, grid, softness=softness, pixels=pixels)
        found.append(write_prior(folder / "prior.tif", prior, palette, grid, overwrite=True))
    return found


def _read(picture: Picture, prior: Path | None, *, position: bool) -> Tile:
    if prior is None:  # pragma: no cover - a call without is refused
        msg = f"{picture.image} has no prior"
        raise InputError(msg)
    tile = read_tile(picture.image, prior, name=picture.name)
    if not position:
        return tile
    with ImageLayer(picture.image) as layer:
        places, _ = PositionLayer(layer.grid).read()
    return replace(tile, extra=torch.from_numpy(places), extras=("position",))


def _train(tiles: Sequence[Tile], settings: TileSettings, path: Path, *, run: Run) -> LandcoverModel:
    checkpoint = checkpoint_path(path)
    with claiming(path):
        with warnings.catch_warnings():
            # the verdict is for measured priors; maps from drawings are judged by eye
            warnings.simplefilter("ignore", HarmWarning)
            model = train_best(tiles, settings, checkpoint=checkpoint, run=run)
        save_model(model, path, overwrite=True)
        clear_checkpoint(checkpoint)
    return model


def _map(
    picture: Picture, prior: Path | None, folder: Path, model: LandcoverModel, options: MapOptions, *, run: Run
) -> Painted:
    def write(path: Path, posterior: Path | None, options: MapOptions) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HarmWarning)
            predict(
                picture.image,
                path,
                model,
                posterior=posterior,
                options=options,
                force=True,
                run=replace(run, overwrite=True),
            )
        return companion_path(path, "probabilities")

    classes = folder / CLASSES
    with tempfile.TemporaryDirectory(dir=folder) as place:
        shares = write(Path(place) / "q.tif", None, MapOptions(probabilities=True, finish="none"))
        draw_probabilities(folder / "q.png", shares, model.scheme)
    shares = write(classes, prior, options)
    draw_overlay(folder / "overlay.png", picture.image, classes, model.scheme)
    painted = Painted(folder, classes, folder / "q.png", folder / "overlay.png")
    if prior is None:
        return painted
    draw_probabilities(folder / "r.png", shares, model.scheme)
    draw_probabilities(folder / "prior.png", prior, model.scheme)
    return replace(painted, r=folder / "r.png", prior=prior)
