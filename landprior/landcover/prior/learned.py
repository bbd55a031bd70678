"""Learned priors: a small network that fuses coarse layers into a belief over classes [R E.1.2].

Its input is the blurred, remapped NLCD (one channel per class) and the presence of roads, buildings, waterways and
water bodies; its target, 1 m labels of a few tiles. It sees no image, so what it learns (how wide a road is, what
surrounds a house, which codes are unreliable) can be used where there are no labels. Never score a map on the
tiles its prior was learned on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import ValidationError

from landprior.errors import InputError, ModelError, PriorError
from landprior.implicit.devices import choose_device
from landprior.landcover.prior.coarse import LAYERS, CoarseLayers
from landprior.landcover.prior.fusion import PriorModel
from landprior.landcover.prior.settings import PriorSettings, prior_settings
from landprior.landcover.training.ensemble import clear_checkpoint
from landprior.landcover.training.image_kind import ImageKind, compare_sizes, kind_of
from landprior.landcover.training.model import save_model
from landprior.landcover.training.tiles import Tile, label_tile
from landprior.landcover.training.trainer import train_model
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.endings import check_named_output
from landprior.raster.locks import claiming
from landprior.raster.outputs import checkpoint_path
from landprior.raster.scheme import explain
from landprior.raster.windows import Block, grow_window, iter_blocks
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings
    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class LabelledPlace:
    """The files of one tile to learn a prior on.

    Parameters
    ----------
    nlcd, labels
        Rasters; the labels define the grid.
    layers
        Rasters of ``roads``, ``buildings``, ``waterways``, ``waterbodies``; the same layers for every tile.
    cooccurrence
        P(class | code) of the place.
    label_map
        Codes of the labels -> codes of the scheme.
    name
        Name used in messages and for the seed; by default the path of the labels.
    """

    nlcd: Path
    labels: Path
    cooccurrence: Cooccurrence
    layers: Mapping[str, Path] = field(default_factory=dict)
    label_map: Mapping[int, int] = field(default_factory=dict)
    name: str = ""


def learn_prior(
    places: Sequence[LabelledPlace],
    output: str | Path,
    settings: TileSettings | None = None,
    *,
    prior: PriorSettings | None = None,
    pixel_size: float | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Learn a prior on labelled tiles and write it.

    Parameters
    ----------
    places
        At least one; never tiles that are scored.
    output
        The model to write, a .safetensors file.
    settings
        See :func:`prior_settings`.
    prior
        Widths of the blur, stored in the model.
    pixel_size
        Metres per pixel, for files that are not georeferenced.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        A model without image bands; use it with :func:`landprior.landcover.prior.build.build_prior`.

    Raises
    ------
    InputError
        If there is no tile, tiles have different layers, or a tile has no labelled pixel with NLCD.
    LandpriorError
        See :func:`landprior.landcover.prior.build.build_prior` and
        :func:`landprior.landcover.training.trainer.train_model`.
    """
    target = check_named_output(
        output,
        "model",
        overwrite=run.overwrite,
        inputs=[path for place in places for path in (place.nlcd, place.labels, *place.layers.values())],
    )
    prior = prior or PriorSettings()
    if not places:
        msg = "no labelled tiles to learn a prior on"
        raise InputError(msg)
    tiles = [read_place(place, prior, pixel_size=pixel_size, progress=run.progress) for place in places]
    checkpoint = checkpoint_path(target)
    with claiming(target):
        model = train_model(tiles, settings or prior_settings(), checkpoint=checkpoint, run=run)
        model.record["prior"] = prior.model_dump()
        model.record["cooccurrence"] = sorted({place.cooccurrence.source for place in places})
        save_model(model, target, overwrite=run.overwrite)
        clear_checkpoint(checkpoint)
    return model


def read_place(
    place: LabelledPlace, settings: PriorSettings, *, pixel_size: float | None = None, progress: bool = False
) -> Tile:
    """Read the coarse layers and the labels of a place into memory, to fit the labels.

    Parameters
    ----------
    place
        The files.
    settings
        Widths of the blur.
    pixel_size
        Metres per pixel, for files without georeferencing.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    Tile
        Its inputs are the blurred layers; it has no image.

    Raises
    ------
    LandpriorError
        See :class:`landprior.landcover.prior.coarse.CoarseLayers` and
        :func:`landprior.landcover.training.tiles.label_tile`.
    """
    scheme = place.cooccurrence.scheme
    names = tuple(name for name in LAYERS if name in place.layers)
    with CoarseLayers(place.nlcd, place.layers, like=place.labels, progress=progress) as coarse:
        base = PriorModel.of(coarse, place.cooccurrence, settings=settings, pixel_size=pixel_size)
        shape = coarse.grid.shape
        stacked = np.empty((len(scheme) + len(names), *shape), dtype=np.float16)
        seen, classes = np.empty(shape, dtype=bool), np.empty(shape, dtype=np.int16)
        with open_on_grid(place.labels, coarse.grid, like=place.labels) as truth:
            for block in iter_blocks(coarse.grid, halo=base.halo):
                at = block.core.toslices()
                stacked[(slice(None), *at)], seen[at] = stack_layers(base, names, block, *coarse.read(block.outer))
                classes[at] = read_classes(truth, block.core, scheme, codes=place.label_map, where=place.labels)
    return label_tile(
        place.name or place.labels.name,
        torch.zeros((0, *shape)),
        classes,
        scheme=scheme,
        seen=seen,
        extra=stacked,
        extras=("nlcd", *names),
        where=place.labels,
        kind=ImageKind(pixel_size=_size(coarse.grid, pixel_size, place.labels)),
    )


def stack_layers(
    base: PriorModel,
    names: Sequence[str],
    block: Block,
    nlcd: NDArray[np.integer],
    presence: Mapping[str, NDArray[np.bool_]],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stack the inputs of a learned prior for a block's core.

    Parameters
    ----------
    base
        Model that blurs and remaps NLCD.
    names
        The layers, in the order of the network's channels.
    block, nlcd, presence
        See :meth:`landprior.landcover.prior.fusion.PriorModel.window`.

    Returns
    -------
    values : ndarray of float32, shape (C + K, h, w)
        0 where there is no NLCD.
    seen : ndarray of bool, shape (h, w)
        Where there is NLCD.
    """
    blurred = base.window(block, nlcd)
    rows, columns = block.crop
    layers = [presence[name][rows, columns].astype(np.float32)[None] for name in names]
    values = np.concatenate([blurred, *layers])
    seen = ~np.isnan(blurred[0])
    return np.where(seen, values, np.float32(0)), seen


class LearnedPrior:
    """Compute the learned prior of any window of a grid; replaces :class:`PriorModel`.

    Parameters
    ----------
    model
        See :func:`learn_prior`.
    base
        Model that blurs and remaps NLCD.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, model: LandcoverModel, base: PriorModel, *, device: str = "auto") -> None:
        self._device = choose_device(device)
        self._network = model.network.to(self._device).to(memory_format=torch.channels_last).eval()
        self._statistics, self._names, self._base = model.statistics, model.extras[1:], base

    @property
    def scheme(self) -> ClassScheme:
        """The classes."""
        return self._base.scheme

    @property
    def halo(self) -> int:
        """Pixels around a pixel that its prior depends on: the blur's reach and the network's."""
        return self._base.halo + self._network.halo

    @torch.inference_mode()
    def window(
        self, block: Block, nlcd: NDArray[np.integer], layers: Mapping[str, NDArray[np.bool_]] | None = None
    ) -> NDArray[np.float32]:
        """Compute the prior of a block's core.

        Parameters
        ----------
        block
            The window with its surroundings.
        nlcd
            Codes of the outer window, (H, W).
        layers
            Name -> presence in the outer window, (H, W).

        Returns
        -------
        ndarray of float32
            Shape (C, h, w) of the core; NaN where there is no NLCD.
        """
        near = Block(core=grow_window(block.core, self._network.halo, block.outer), outer=block.outer)
        values, seen = stack_layers(self._base, self._names, near, nlcd, layers or {})
        rows, columns = Block(core=block.core, outer=near.core).crop
        if not seen[rows, columns].any():
            return np.full((len(self._base.scheme), *seen[rows, columns].shape), np.nan, dtype=np.float32)
        inputs = self._statistics.standardise(
            torch.zeros((0, *seen.shape), device=self._device),
            torch.from_numpy(seen).to(self._device),
            torch.from_numpy(values).to(self._device),
        )[None].contiguous(memory_format=torch.channels_last)
        prior = self._network(inputs)[0, :, rows, columns].exp().cpu().numpy()
        return np.where(seen[rows, columns], prior, np.float32(np.nan))


def settings_of(model: LandcoverModel) -> PriorSettings:
    """Return the filter widths a prior was learned with.

    Raises
    ------
    ModelError
        If the model file has invalid widths.
    """
    try:
        return PriorSettings.model_validate(model.record.get("prior", {}))
    except ValidationError as error:
        raise ModelError(explain(error, "the learned prior's record")) from error


def _size(grid: Grid, given: float | None, where: str | Path) -> float:
    return math.sqrt(math.prod(grid.pixel_size(given, where=where)))


def require_size(model: LandcoverModel, grid: Grid, given: float | None, where: str | Path) -> None:
    """Raise an error if pixels differ in size from those a prior was learned on, as it learned widths in pixels.

    Parameters
    ----------
    model
        The learned prior.
    grid, given
        Grid on which the prior is built, and metres per pixel, if given by the user.
    where
        File with that grid, named in the message.

    Raises
    ------
    PriorError
        If pixels are more than 1.5 times larger or smaller on the ground.
    """
    trained = kind_of(model)
    found = compare_sizes(None if trained is None else trained.pixel_size, _size(grid, given, where))
    if found:
        msg = (
            f"the prior was learned on pixels of a different size than {where}: {found[0]}; build it on a grid of "
            "that size (--like), or give the correct size with --pixel-size"
        )
        raise PriorError(msg)


def require_match(
    model: LandcoverModel, scheme: ClassScheme, layers: Sequence[str], settings: PriorSettings | None = None
) -> None:
    """Raise an error if a learned prior was made for other classes, layers or filter widths.

    Parameters
    ----------
    model
        The learned prior.
    scheme
        The classes requested.
    layers
        Names of the layers given besides NLCD.
    settings
        Widths of the filters requested; None: those of the model.

    Raises
    ------
    ModelError
        If the model is not a learned prior.
    PriorError
        If it does not fit; the message lists what to give.
    """
    if model.bands or model.extras[:1] != ("nlcd",):
        msg = "this model maps images; a learned prior is made with: landprior learn-prior"
        raise ModelError(msg)
    if (scheme.names, scheme.codes.tolist()) != (model.scheme.names, model.scheme.codes.tolist()):
        msg = f"the prior was learned for scheme {model.scheme.name!r}, not {scheme.name!r}; give --scheme accordingly"
        raise PriorError(msg)
    wanted = model.extras[1:]
    if set(wanted) != set(layers):
        missing = [f"--{name}" for name in wanted if name not in layers]
        surplus = [f"--{name}" for name in layers if name not in wanted]
        parts = [f"give {', '.join(missing)}"] if missing else []
        parts += [f"drop {', '.join(surplus)}"] if surplus else []
        msg = f"the prior was learned with NLCD and {', '.join(wanted) or 'nothing else'}: {' and '.join(parts)}"
        raise PriorError(msg)
    if settings is not None and settings.fusion == "conserving":
        msg = "a learned prior joins the layers by what it learned; leave --fusion conserving out, or --learned"
        raise PriorError(msg)
    own = settings_of(model)
    if settings is not None and (settings.blur_sigma, settings.blur_radius) != (own.blur_sigma, own.blur_radius):
        msg = (
            f"the prior was learned with a blur of sigma {own.blur_sigma:g} m and radius {own.blur_radius:g} m; "
            "give those, or leave them out"
        )
        raise PriorError(msg)
