"""Mapping clusters: the network's q, window by window, sharpened by what is around each pixel."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from landprior.domains.clustering.neighbourhood import mean_boxes
from landprior.domains.clustering.training import (
    ClusterSettings,
    clear_attempts,
    make_scheme,
    read_image_tile,
    train_clusters,
)
from landprior.errors import InputError
from landprior.landcover.layers import PriorLayer
from landprior.landcover.model import save_model
from landprior.landcover.prediction import Products, beside, open_sinks, predict, write_quicklook, write_style
from landprior.raster.cog import TAG_DOMAIN, encode_probabilities
from landprior.raster.files import check_output, open_raster
from landprior.raster.windows import Block, stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from landprior.landcover.model import LandcoverModel
    from landprior.raster.windows import Found

SHARPENING = 9
"""Side in pixels of the box over which q is averaged."""


def sharpen(shares: NDArray[np.float32], valid: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """Replace each pixel's q by the mean over the box around it: labels become locally consistent.

    Parameters
    ----------
    shares
        q, shape (C, H, W).
    valid
        Where there is data, (H, W).
    side
        Of the box, odd, in pixels.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        Sum 1 where valid.
    """
    # sums of many small windows are the same wherever they begin only if they are as good as exact
    q = torch.from_numpy(shares)[None].double()
    return mean_boxes(q, torch.from_numpy(valid)[None], side)[0].float().numpy()


def map_clusters(
    image: str | Path,
    output: str | Path,
    model: LandcoverModel,
    *,
    side: int = SHARPENING,
    products: Products | None = None,
    nodata: float | None = None,
    device: str = "auto",
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Map the clusters of an image, and their probabilities, windowed.

    Parameters
    ----------
    image
        Raster with the bands the model was trained on.
    output
        The map: a COG of cluster numbers 1 to k, 255 where there is no data. The probabilities, one band per cluster,
        go to ``<stem>_probabilities.tif``.
    model
        See :func:`landprior.domains.clustering.training.train_clusters`.
    side
        Of the box of :func:`sharpen`, odd; 1 leaves q as it is.
    products
        What else to write; probabilities always are, confidence is not.
    nodata, device, tags, overwrite, progress
        See :func:`landprior.landcover.prediction.predict`.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.prediction.predict`.
    InputError
        If ``side`` is even.
    """
    if side < 1 or side % 2 == 0:
        msg = f"the box of the sharpening needs an odd side in pixels, not {side}"
        raise InputError(msg)
    products = replace(products or Products(), probabilities=True, confidence=False)
    target = check_output(output, overwrite=overwrite)
    check_output(beside(target, "probabilities"), overwrite=overwrite)
    marks = {"scheme": model.scheme.model_dump_json(exclude_defaults=True), "sharpening": str(side), **(tags or {})}
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as folder:
        own = Products(probabilities=True)
        plain = predict(
            image, Path(folder) / "q.tif", model, products=own, nodata=nodata, device=device, progress=progress
        )
        with ExitStack() as stack:
            belief = stack.enter_context(PriorLayer(beside(plain, "probabilities"), scheme=model.scheme))
            marks |= {"model": model.digest(), "loss": model.loss, "maps": "q"}
            sinks = open_sinks(stack, target, model.scheme, belief.grid, products, marks, overwrite=overwrite)

            def compute(block: Block) -> dict[str, Found]:
                shares, valid = belief.read(block.outer)
                rows, columns = block.crop
                inside = valid[rows, columns]
                if not inside.any():
                    return {}
                found = sharpen(shares, valid, side)[:, rows, columns]
                best = model.scheme.decode(found.argmax(0), inside)
                found[:, ~inside] = float("nan")
                return {"map": best, "probabilities": encode_probabilities(found, products.encoding)}

            stream(compute, grid=belief.grid, sinks=sinks, halo=side // 2, label="sharpening", progress=progress)
    if products.style:
        write_style(target.with_suffix(".qml"), model.scheme)
    if products.quicklook:
        write_quicklook(target, target.with_suffix(".png"), model.scheme)
    return target


def cluster_image(
    image: str | Path,
    output: str | Path,
    settings: ClusterSettings | None = None,
    *,
    model: str | Path | None = None,
    side: int = SHARPENING,
    products: Products | None = None,
    nodata: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> LandcoverModel:
    """Cluster an image: train, write the model, map.

    While it runs its state is kept beside the map; the same call after an interruption goes on from there.

    Parameters
    ----------
    image, output
        See :func:`map_clusters`.
    settings
        See :class:`landprior.domains.clustering.training.ClusterSettings`.
    model
        Where the model goes; by default ``<stem>.safetensors`` beside the map.
    side, products, nodata, device, overwrite, progress
        See :func:`map_clusters`.

    Returns
    -------
    LandcoverModel

    Raises
    ------
    LandpriorError
        See :func:`map_clusters` and :func:`landprior.domains.clustering.training.train_clusters`.
    """
    settings = settings or ClusterSettings()
    target = check_output(output, overwrite=overwrite)
    for path in (beside(target, "probabilities"), model or target.with_suffix(".safetensors")):
        check_output(path, overwrite=overwrite)
    place = Path(model or target.with_suffix(".safetensors"))
    tile = read_image_tile(image, make_scheme(settings.clusters), nodata=nodata)
    checkpoint = target.with_name(f".{target.name}.checkpoint")
    found = train_clusters([tile], settings, device=device, checkpoint=checkpoint, progress=progress)
    map_clusters(
        image,
        target,
        found,
        side=side,
        products=products,
        nodata=nodata,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )
    save_model(found, place, overwrite=overwrite)
    clear_attempts(checkpoint)
    return found


def find_probabilities(path: str | Path) -> Path:
    """Return the probabilities of a clustering, given them or the map beside them.

    Raises
    ------
    InputError
        If the file is a map of one band without probabilities beside it.
    """
    with open_raster(path) as src:
        bands = src.count
        kind = src.tags(ns=TAG_DOMAIN).get("kind")
    if bands > 1:
        return Path(path)
    other = beside(Path(path), "probabilities")
    if kind == "map" and other.is_file():
        return other
    msg = f"{path} has one band, not one per cluster; give the ..._probabilities.tif that landprior cluster wrote"
    raise InputError(msg)
