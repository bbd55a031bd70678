"""Maps of a target, and its probability at points, computed window by window."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.domains.density.points import PointSink
from landprior.domains.density.training import NORMALISED, TARGET, adapt_model, measure_image
from landprior.errors import ModelError
from landprior.landcover.mapping.blur import BLUR, BlurredNetwork, blur_model, box_mean
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.memory import choose_window
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.image_kind import require_kind
from landprior.landcover.training.layers import ImageLayer
from landprior.raster.windows import stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.domains.density.points import Points
    from landprior.landcover.mapping.mapper import Belief, Pixels
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.windows import Block, Found

_DARK_SIDE = 5
"""Side in pixels of the square over which :func:`read_darkness` averages."""


def ready_model(
    model: LandcoverModel, image: str | Path, *, blur: int = BLUR, nodata: float | None = None
) -> LandcoverModel:
    """Return a model for one image: with its band statistics, if the model standardises each, and the blur.

    Parameters
    ----------
    model
        Model trained by ``landprior density``.
    image
        The raster to be mapped.
    blur
        Side of the square over which log-likelihoods are averaged, pixels, odd; 1 for none.
    nodata
        Nodata value of every band.

    Returns
    -------
    LandcoverModel
        A copy.

    Raises
    ------
    ModelError
        If it is not a model of ``landprior density``.
    InputError
        If the image has other bands or no valid pixel, or the blur is not odd.
    """
    record = model.record.get("density")
    if record is None:
        msg = "this model was not trained on density classes; train one with: landprior density IMAGES --coarse CSV"
        raise ModelError(msg)
    blurred = blur_model(model, blur)
    return adapt_model(blurred, measure_image(image, nodata=nodata)) if record[NORMALISED] == "image" else blurred


def map_density(
    image: str | Path,
    output: str | Path,
    model: LandcoverModel,
    *,
    posterior: str | Path | None = None,
    blur: int = BLUR,
    options: MapOptions = MapOptions(),
    window_size: int | None = None,
    run: Run = Run(),
) -> Path:
    """Map an image: classes, and the probability of each beside it (``<stem>_probabilities.tif``).

    Parameters
    ----------
    image, output
        Any raster, of any size, and the map to write.
    model
        See :func:`landprior.domains.density.training.train_density`.
    posterior
        A prior on the image's grid (:func:`landprior.domains.density.priors.write_prior`): the map is then of r. The
        mean prediction used for r is that over the training images, which share one prior.
    blur
        Side of the square over which log-likelihoods are averaged, pixels; 1 for none.
    options, window_size, run
        See :func:`landprior.landcover.mapping.predict.predict`; probabilities are always written.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    LandpriorError
        See :func:`ready_model` and :func:`landprior.landcover.mapping.predict.predict`.
    """
    return predict(
        image,
        output,
        ready_model(model, image, blur=blur, nodata=run.nodata),
        posterior=posterior,
        marginal=model.record["density"]["marginal"] if posterior is not None else None,
        options=replace(options, probabilities=True, finish="none").tagged(blur=str(blur)),
        window_size=window_size,
        run=run,
    )


def predict_points(
    image: str | Path,
    points: Points,
    model: LandcoverModel,
    *,
    blurs: Sequence[int] = (BLUR,),
    precision: str = "auto",
    window_size: int | None = None,
    run: Run = Run(),
) -> NDArray[np.float64]:
    """Return the target's log odds by q at points, shape (blurs, N); NaN where the image has no data.

    Nothing is written; the image is read window by window. The log odds of r differ by a constant per block, so they
    are derived from these (:func:`posterior_odds`).

    Parameters
    ----------
    image, model, window_size
        See :func:`map_density`.
    points
        Points to predict.
    blurs
        Sides of the blur; the network runs only once.
    precision
        ``"fp32"`` or ``"bf16"``; by default bf16 on CUDA.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    ndarray of float64
        Shape (blurs, N).

    Raises
    ------
    LandpriorError
        See :func:`ready_model`.
    """
    sink = PointSink(points, [len(model.scheme) * number + TARGET for number in range(len(blurs))])
    ready = ready_model(model, image, blur=1, nodata=run.nodata)
    ready = replace(ready, network=BlurredNetwork(ready.network, *blurs).eval())
    with ExitStack() as stack:
        pixels = stack.enter_context(ImageLayer(image, nodata=run.nodata))
        require_kind(ready, pixels)
        mapper = Mapper(ready, pixels, device=run.device, engine="torch", precision=precision)

        def compute(block: Block, data: tuple[Pixels | None, Belief | None]) -> dict[str, Found]:
            return mapper.compute(block, data, ("probabilities",))

        stream(
            compute,
            read=mapper.read,
            grid=pixels.grid,
            sinks={"probabilities": sink},
            halo=mapper.halo,
            size=window_size or choose_window(run.device),
            label="points",
            progress=run.progress,
        )
    target = np.clip(sink.values, 1e-12, 1 - 1e-7)
    return np.asarray(np.log(target) - np.log1p(-target))


def read_darkness(image: str | Path, points: Points, *, nodata: float | None = None) -> NDArray[np.float64]:
    """Measure the darkness of an image at points.

    Parameters
    ----------
    image
        The raster.
    points
        Points to measure.
    nodata
        Nodata value of every band.

    Returns
    -------
    ndarray of float64
        Minus the mean of all bands over a small square, shape (N,).
    """
    sink = PointSink(points, [0])
    with ImageLayer(image, nodata=nodata) as pixels:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            values, _ = pixels.read(block.outer)
            mean = torch.from_numpy(values).float().mean(dim=0)[None, None]
            rows, columns = block.crop
            return {"darkness": -box_mean(mean, _DARK_SIDE)[0, :, rows, columns].numpy()}

        stream(compute, grid=pixels.grid, sinks={"darkness": sink}, halo=_DARK_SIDE // 2)
    return np.asarray(sink.values[0])


def posterior_odds(
    odds: NDArray[np.float64], priors: NDArray[np.float64], model: LandcoverModel
) -> NDArray[np.float64]:
    """Return the target's log odds by r [R eq. 3] from those by q and the prior's probability at the same pixels.

    Parameters
    ----------
    odds
        Log odds by q, shape (N,).
    priors
        Prior probability of the target at the same pixels, shape (N,).
    model
        Model whose mean prediction is used for r.

    Returns
    -------
    ndarray of float64
        Shape (N,).
    """
    smoothed = np.clip(priors, 1e-4, 1 - 1e-4)
    background, target = model.record["density"]["marginal"]
    return np.asarray(odds + np.log(smoothed / (1 - smoothed)) - np.log(target / background))
