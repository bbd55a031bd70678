"""Prediction: from a model and an image of any size to a map, window by window.

Windows are read with the network's halo and cut at the edges of the raster, where the network pads as
it does for a whole image, so the result does not depend on the windows. The posterior r needs the
network's class sums over the whole tile [R eq. 3], so it takes a first pass that only sums.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp

from landprior.errors import HarmWarning, InputError, ModelError
from landprior.landcover.mapping.finish import Finish
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.memory import choose_window, compute_budget
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import map_writer, starting_map, writing_map
from landprior.landcover.training.image_kind import kind_of, require_kind
from landprior.landcover.training.layers import ImageLayer, PositionLayer, PriorLayer
from landprior.landcover.training.verdict import LEAST_PIXELS
from landprior.raster.grid import require_same_grid
from landprior.raster.windows import Block, Found, Sink, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from landprior.landcover.mapping.mapper import Belief, Pixels
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)


def predict(
    image: str | Path,
    output: str | Path,
    model: LandcoverModel,
    *,
    posterior: str | Path | None = None,
    prior: str | Path | None = None,
    marginal: Sequence[float] | Sequence[Sequence[float]] | None = None,
    options: MapOptions = MapOptions(),
    force: bool = False,
    engine: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    window_size: int | None = None,
    run: Run = Run(),
) -> Path:
    """Map an image.

    Parameters
    ----------
    image
        Raster with the bands the model was trained on.
    output
        The map: a COG of class codes, 255 for no data.
    model
        See :func:`landprior.landcover.training.model.load_model`.
    posterior
        A prior on the image's grid. The map and probabilities are then those of the posterior r [R eq. 3] instead of
        the network's q; pixels without a prior keep q. If the model's verdict was that r is worse than its prior
        (:mod:`landprior.landcover.training.verdict`), the prior itself is mapped, with a warning and the tag
        ``decision=abstained``. A model of the recipe ``best`` leaves out of r the classes that its verdict found
        unsupported on its training tiles (tag ``dropped``). An adapted model maps its head's probabilities (tag
        ``adapted``); its points have decided about all this. Where there is no prior, they use the mean prior.
    prior
        The prior on the image's grid, for a model that takes it as input (``train --labels --prior``). Pixels without
        it have no data in the map.
    marginal
        The mean prediction used for r, shape (C,), if it is not that of the image itself but, for example, that of all
        training images. This saves a pass. Which classes were given up is not known then; with shape (3, C) it is: the
        mean prediction, the shares of the classes that q names, and the mean prior
        (:func:`landprior.landcover.training.shares.find_shares`).
    options, run
        Other files to write, and how this is carried out.
    force
        Map r with all classes whatever the verdict, and accept images of another kind than the training images.
    engine, precision
        Engine and number format used to compute q; see :func:`landprior.landcover.mapping.engines.make_engine`.
    memory
        Memory limit in megabytes. Log q from the pass that sums the classes is kept for the map as far as this allows
        (by default up to a gigabyte, if that is free); the rest is computed again.
    window_size
        Side of the windows, by default 512 on a CPU and 2,048 on a GPU; changes memory and time, not the result.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    ModelError
        If the image has other bands than the model, or is of another kind than the training images: another data
        type, values tens of times larger or smaller, another order of bands, pixels of more than 1.5 times or less than
        two thirds the size (:mod:`landprior.landcover.training.image_kind`).
    GridMismatchError
        If the prior is on another grid.
    SchemeError
        If the prior has different classes.
    InputError
        If no pixel of the image is valid, there is too little memory, the engine is not available, or a mean prediction
        is given for an adapted model.
    """
    _require_inputs(model, prior)
    if marginal is not None and model.head is not None:
        msg = "an adapted model has its own mean prediction; give no other one"
        raise InputError(msg)
    opening = partial(ImageLayer, image, nodata=run.nodata)
    starting = starting_map(output, options, opening, overwrite=run.overwrite, inputs=(image, posterior, prior))
    with ExitStack() as stack:
        target, pixels = stack.enter_context(starting)
        check_image(model, pixels, force=force)
        belief = None
        if posterior is not None:
            belief = stack.enter_context(PriorLayer(posterior, scheme=model.scheme))
            require_same_grid(pixels.grid, belief.grid, names=(str(image), str(posterior)))
        extra_input = open_extra_input(stack, model, pixels, prior)
        decision = None if model.head is not None else _decide(model, belief, force=force)
        keeps_all = belief is None or force or decision == "abstained" or model.head is not None
        dropped = [] if keeps_all else _find_dropped(model)
        window = -(-(window_size or choose_window(run.device)) // model.network.stride) * model.network.stride
        finish = make_finish(model, pixels, options)
        mapper = Mapper(
            model,
            pixels,
            belief,
            extra_input,
            abstain=decision == "abstained",
            dropped=dropped,
            finish=finish,
            device=run.device,
            engine=engine,
            precision=precision,
            memory=compute_budget(memory, model, window, finish),
        )
        stream_options: dict[str, Any] = {"halo": mapper.halo, "size": window, "progress": run.progress}
        if marginal is not None:
            mapper.sums.write(np.asarray(marginal))
        elif belief is not None and decision != "abstained" and model.head is None:
            sums: dict[str, Sink] = {"sums": mapper.sums}
            stream(
                mapper.gather,
                read=mapper.read_for_sums,
                grid=pixels.grid,
                sinks=sums,
                label="class sums",
                **stream_options,
            )

        tags = {
            "engine": mapper.engine.name,
            "precision": mapper.engine.precision,
            "model": model.digest(),
            "loss": model.loss,
            "maps": "q" if belief is None else "r",
            **({} if decision is None else {"decision": decision}),
            **_name_classes(model, dropped=dropped, given_up=mapper.given_up),
            **({"finish": mapper.finish.name} if mapper.finish else {}),
            **({} if model.head is None else _describe_points(model.record["adaptation"])),
        }
        writing = writing_map(target, model.scheme, pixels.grid, options, tags, overwrite=run.overwrite)
        sinks = stack.enter_context(writing)

        def compute(block: Block, data: tuple[Pixels | None, Belief | None]) -> dict[str, Found]:
            return mapper.compute(block, data, sinks, encoding=options.encoding)

        stream(compute, read=mapper.read, grid=pixels.grid, sinks=sinks, label="map", **stream_options)
        if not mapper.seen:
            msg = f"{image} has no valid pixel; is its nodata value correct?"
            raise InputError(msg)
    return target


def _describe_points(adaptation: dict[str, Any]) -> dict[str, str]:
    """Return the tags that say how many points a model was adapted to, and which."""
    marks = adaptation.get("marks")
    return {"adapted": f"{adaptation['points']} points"} | ({"adapted_to": marks} if marks else {})


def check_image(model: LandcoverModel, pixels: ImageLayer, *, force: bool) -> None:
    """Raise an error if the model does not fit the image, and log which products the map will lack.

    Parameters
    ----------
    model, pixels
        The model and the image.
    force
        Accept images of another kind than the training images.

    Raises
    ------
    ModelError
        If they do not fit.
    """
    if pixels.grid.crs is None:
        lack = "georeference" if pixels.grid.ungeoreferenced else "CRS"
        logger.info("%s has no %s, so its map will have none", pixels.path, lack)
    if pixels.bands != model.bands:
        alpha = [number for number, kind in enumerate(pixels.src.colorinterp, 1) if kind == ColorInterp.alpha]
        hidden = [number for number in alpha if number not in pixels.indexes]
        msg = f"{pixels.path} has {pixels.bands} bands and the model was trained on {model.bands}; give the same bands"
        if hidden:
            msg += f" (its band {hidden[0]} is named alpha and looks like a mask, so it is not read as data)"
        raise ModelError(msg)
    require_kind(model, pixels, force=force)


def make_finish(model: LandcoverModel, pixels: ImageLayer, options: MapOptions) -> Finish | None:
    """Return how a map is finished: its width is in metres, so the size of the pixels must be known.

    Parameters
    ----------
    model
        Its training images stand in for an image without a size of pixels.
    pixels
        The image.
    options
        The finish, and its width.

    Returns
    -------
    Finish or None
        None if it is not finished.
    """
    if options.finish == "none":
        return None
    try:
        size = pixels.grid.pixel_size(where=pixels.path)
    except InputError:
        trained = kind_of(model)
        side = None if trained is None else trained.pixel_size
        if side is None:
            logger.warning("the size of a pixel of %s is not known; the map is finished as if it were 1 m", pixels.path)
        size = (side or 1.0, side or 1.0)
    return Finish.of(size, options.finish_width)


def open_extra_input(
    stack: ExitStack, model: LandcoverModel, pixels: ImageLayer, prior: str | Path | None
) -> PriorLayer | PositionLayer | None:
    """Open the model's input besides the image, if it has one.

    Parameters
    ----------
    stack
        Closes it.
    model, pixels
        The model and the image.
    prior
        The prior, for a model that takes it as input.

    Returns
    -------
    PriorLayer, PositionLayer or None
        The input.

    Raises
    ------
    GridMismatchError, SchemeError
        If the prior is on another grid, or has other classes.
    """
    if "position" in model.extras:
        return PositionLayer(pixels.grid)
    if prior is None:
        return None
    extra_input = stack.enter_context(PriorLayer(prior, scheme=model.scheme))
    require_same_grid(pixels.grid, extra_input.grid, names=(str(pixels.path), str(prior)))
    return extra_input


def _require_inputs(model: LandcoverModel, prior: str | Path | None) -> None:
    """Raise an error if a prior is given to a model without that input, or missing for a model with it."""
    if model.bands == 0:
        msg = "this model is a learned prior and does not map images; use it with: landprior build-prior --learned"
        raise ModelError(msg)
    wanted = "prior" in model.extras
    if wanted and prior is None:
        msg = "this model was trained on image and prior; give the prior of this image with --prior PRIOR"
        raise ModelError(msg)
    if prior is not None and not wanted:
        msg = "this model takes only the image; drop --prior (for the posterior r, use --posterior PRIOR)"
        raise ModelError(msg)


def _decide(model: LandcoverModel, belief: PriorLayer | None, *, force: bool) -> str | None:
    """Return ``"kept"``, ``"abstained"`` or ``"forced"`` by the model's verdict; None if there is no verdict."""
    verdict = model.record.get("verdict")
    if verdict is None or verdict["decision"] == "kept":
        return None if verdict is None else "kept"
    # older models did not count pixels, and were judged by some
    judged = verdict.get("pixels", LEAST_PIXELS) >= LEAST_PIXELS
    lead = "this model was judged worse than its prior" if judged else "this model could not be judged"
    if belief is None or force:
        warnings.warn(f"{lead} ({verdict['why']})", HarmWarning, stacklevel=3)
        return "forced"
    warnings.warn(
        f"{lead} ({verdict['why']}), so the prior's own classes are mapped; --force maps the posterior anyway",
        HarmWarning,
        stacklevel=3,
    )
    return "abstained"


def _find_dropped(model: LandcoverModel) -> list[int]:
    """Return the positions of the classes to leave out of r, and warn about them."""
    if model.dropped:
        names = ", ".join(model.scheme.names[index] for index in model.dropped)
        logger.warning("r leaves out %s, which the image did not support in training (--force maps all classes)", names)
    return list(model.dropped)


def _name_classes(model: LandcoverModel, **classes: Sequence[int]) -> dict[str, str]:
    """Return tags of the names of classes, of those that there are."""
    return {tag: ",".join(model.scheme.names[index] for index in found) for tag, found in classes.items() if found}


def map_prior(
    prior: str | Path,
    output: str | Path,
    *,
    scheme: ClassScheme | None = None,
    run: Run = Run(),
) -> Path:
    """Map the most probable class of the prior: the baseline without training.

    Parameters
    ----------
    prior, output
        The raster, and the map to write.
    scheme
        The prior's classes, if its file does not store them.
    run
        Whether to replace an older map, and to show progress.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    LandpriorError
        See :class:`landprior.landcover.training.layers.PriorLayer` and :class:`landprior.raster.cog.CogWriter`.
    """
    with PriorLayer(prior, scheme=scheme) as belief:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            shares, valid = belief.read(block.core)
            return {"map": belief.scheme.decode(shares.argmax(0), valid)}

        with map_writer(Path(output), belief.scheme, belief.grid, {}, overwrite=run.overwrite) as writer:
            stream(compute, grid=belief.grid, sinks={"map": writer}, label="prior's map", progress=run.progress)
    return Path(output)
