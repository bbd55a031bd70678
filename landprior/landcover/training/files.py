"""Training from files: read, train, save."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landprior.errors import InputError
from landprior.landcover.training.ensemble import clear_checkpoint, train_best
from landprior.landcover.training.extracts import FIXED, HELD, SIDE, Extracts, Source, StreamedFeed
from landprior.landcover.training.model import LandcoverModel, load_model, save_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.tiles import (
    Tile,
    read_labelled_tile,
    read_tile,
)
from landprior.raster.endings import check_named_output
from landprior.raster.locks import claiming
from landprior.raster.outputs import checkpoint_path
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.raster.scheme import ClassScheme
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingTile:
    """The files of a tile to train or to validate on.

    Parameters
    ----------
    image
        Raster.
    prior
        The prior to fit; with training labels, an additional input.
    nlcd
        Coarse codes, for methods that count classes in NLCD's cells.
    labels
        Labels to fit, or to score a validation tile against.
    name
        Name used for the seed; by default the image's file name.
    """

    image: Path
    prior: Path | None = None
    nlcd: Path | None = None
    labels: Path | None = None
    name: str = ""


def train_files(
    pairs: Sequence[tuple[str | Path, str | Path | None]],
    output: str | Path,
    *,
    settings: TileSettings | None = None,
    labels: Sequence[str | Path] = (),
    label_map: Mapping[int, int] | None = None,
    names: Sequence[str] | None = None,
    scheme: ClassScheme | None = None,
    init: str | Path | None = None,
    held: int = HELD,
    run: Run = Run(),
) -> LandcoverModel:
    """Train on files and write the model; several images make one joint model.

    Tiles are held in memory whole, unless there are several and they have more than ``held`` pixels together. Then
    windows are read from the files as training needs them (:mod:`landprior.landcover.training.extracts`), and memory
    does not grow with the tiles.

    While it runs, its state is kept beside the output (``.<name>.checkpoint``). After an interruption, the same call
    resumes and ends with the same weights as an uninterrupted run.

    Parameters
    ----------
    pairs
        Image and prior of each tile, on the same grid. With ``labels`` the prior is an additional input, or None.
    output
        The model to write, a .safetensors file.
    settings
        Loss, schedule, network; by default the recipe ``default``.
    labels
        One raster of 1 m labels per image: fitted instead of the prior.
    label_map
        Codes of the labels -> codes of the scheme.
    names
        Names of the tiles, used for their seeds; by default the images' file names.
    scheme
        The classes; required with labels, and for a prior whose file does not store them.
    init
        A model file whose weights the training starts from.
    held
        Pixels of several tiles that are held in memory; labelled tiles always are.
    run
        Device, nodata value of the images, and whether to replace an existing model (:class:`landprior.run.Run`).

    Returns
    -------
    LandcoverModel
        The model as written to the file.

    Raises
    ------
    LandpriorError
        See :func:`train_model`, :func:`landprior.landcover.training.tiles.read_tile` and
        :func:`landprior.landcover.training.model.save_model`.
    """
    sources = [init, *labels, *(path for pair in pairs for path in pair)]
    target = check_named_output(output, "model", overwrite=run.overwrite, inputs=sources)
    start = None if init is None else load_model(init)
    names = names or [Path(image).name for image, _ in pairs]
    truths: Sequence[str | Path | None] = labels or [None] * len(pairs)
    streaming: dict[str, Any] = {}
    extracts = None if labels or len(pairs) == 1 else _find_extracts(pairs, names, scheme, settings, run)
    if extracts is not None and extracts.pixels > held:
        tiles = extracts.take(FIXED, "fixed")
        streaming = {"feed": partial(StreamedFeed, extracts=extracts), "identity": extracts.identify()}
    else:
        tiles = [
            _read(image, prior, truth, name=name, scheme=scheme, label_map=label_map, nodata=run.nodata)
            for name, (image, prior), truth in zip(names, pairs, truths, strict=True)
        ]
    checkpoint = checkpoint_path(target)
    with claiming(target):
        model = train_best(tiles, settings, init=start, checkpoint=checkpoint, run=run, **streaming)
        if streaming:
            model.record["tiles"] = sorted(names)
        save_model(model, target, overwrite=run.overwrite)
        clear_checkpoint(checkpoint)
    return model


def _find_extracts(
    pairs: Sequence[tuple[str | Path, str | Path | None]],
    names: Sequence[str],
    scheme: ClassScheme | None,
    settings: TileSettings | None,
    run: Run,
) -> Extracts | None:
    """Return where windows of tiles come from; None if a tile has no prior."""
    sources = [
        Source(name, image, prior) for name, (image, prior) in zip(names, pairs, strict=True) if prior is not None
    ]
    chosen = settings or TileSettings()
    if len(sources) < len(pairs):
        return None
    side = max(SIDE, 2 * chosen.patch_size)
    return Extracts(sources, scheme=scheme, nodata=run.nodata, side=side, seed=chosen.training.seed)


def _read(
    image: str | Path,
    prior: str | Path | None,
    labels: str | Path | None,
    *,
    name: str,
    scheme: ClassScheme | None,
    label_map: Mapping[int, int] | None,
    nodata: float | None,
) -> Tile:
    """Read a tile to fit its labels if it has any, otherwise its prior."""
    if labels is None:
        if prior is None:
            msg = f"{image} has neither prior nor labels to learn from"
            raise InputError(msg)
        return read_tile(image, prior, name=name, scheme=scheme, nodata=nodata)
    if scheme is None:
        msg = "labels need --scheme to define their codes"
        raise InputError(msg)
    return read_labelled_tile(image, labels, scheme=scheme, prior=prior, label_map=label_map, name=name, nodata=nodata)
