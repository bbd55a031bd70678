"""Mapping clusters: the network's q, window by window, with blurred log-likelihoods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.domains.clustering.settings import ClusterSettings
from landprior.domains.clustering.training import clear_attempts, make_scheme, read_image_tile, train_clusters
from landprior.errors import InputError
from landprior.landcover.mapping.blur import BLUR, blur_model, check_side
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.mapping.products import check_products, companion_path
from landprior.landcover.training.model import save_model
from landprior.raster.endings import check_named_output
from landprior.raster.locks import claiming
from landprior.raster.outputs import checkpoint_path
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from landprior.landcover.training.model import LandcoverModel


def map_clusters(
    image: str | Path,
    output: str | Path,
    model: LandcoverModel,
    *,
    side: int = BLUR,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> Path:
    """Map the clusters of an image, and their probabilities, window by window.

    Parameters
    ----------
    image, model
        Raster with the bands the model was trained on, and the model
        (:func:`landprior.domains.clustering.training.train_clusters`).
    output
        The map: a COG of cluster numbers 1 to k, 255 where there is no data. The probabilities, one band per cluster,
        go to ``<stem>_probabilities.tif``.
    side
        Side of the averaging window for log-likelihoods, odd
        (:class:`landprior.landcover.mapping.blur.BlurredNetwork`); 1 leaves q unchanged.
    options, run
        Other files to write (probabilities always are), and execution options; see
        :func:`landprior.landcover.mapping.predict.predict`.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    InputError
        If ``side`` is even; else what :func:`landprior.landcover.mapping.predict.predict` raises.
    """
    check_side(side)
    described = model.scheme.model_dump_json(exclude_defaults=True)
    return predict(
        image,
        output,
        blur_model(model, side),
        options=replace(options, probabilities=True, finish="none").tagged(scheme=described, blur=str(side)),
        run=run,
    )


def cluster_image(
    image: str | Path,
    output: str | Path,
    settings: ClusterSettings | None = None,
    *,
    model: str | Path | None = None,
    side: int = BLUR,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> LandcoverModel:
    """Cluster an image: train, write the model, map.

    The state is kept beside the map during training; after an interruption, the same call resumes.

    Parameters
    ----------
    image, output
        See :func:`map_clusters`.
    settings
        See :class:`landprior.domains.clustering.training.ClusterSettings`.
    model
        The model to write; by default ``<stem>.safetensors`` beside the map.
    side, options, run
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
    check_side(side)  # check now, not after minutes of training
    place = Path(model or Path(output).with_suffix(".safetensors"))
    wanted = replace(options, probabilities=True)
    target = check_products(output, wanted, overwrite=run.overwrite, inputs=[image], besides=[place])
    check_named_output(place, "model", overwrite=run.overwrite, inputs=[image])
    tile = read_image_tile(image, make_scheme(settings.clusters), nodata=run.nodata)
    checkpoint = checkpoint_path(target)
    with claiming(target):
        found = train_clusters([tile], settings, checkpoint=checkpoint, run=run)
        map_clusters(
            image,
            target,
            found,
            side=side,
            options=wanted,
            run=run,
        )
        save_model(found, place, overwrite=run.overwrite)
        clear_attempts(checkpoint)
    return found


def find_probabilities(path: str | Path) -> Path:
    """Return the path of a clustering's probabilities, given that path or the map's.

    Raises
    ------
    InputError
        If the file is a one-band map without probabilities beside it.
    """
    with open_raster(path) as src:
        bands = src.count
        kind = src.tags(ns=TAG_DOMAIN).get("kind")
    if bands > 1:
        return Path(path)
    other = companion_path(Path(path), "probabilities")
    if kind == "map" and other.is_file():
        return other
    msg = f"{path} has one band, not one per cluster; give the ..._probabilities.tif that landprior cluster wrote"
    raise InputError(msg)
