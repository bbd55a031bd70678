"""Training a network to cluster an image without labels.

Network and training loop are the same as for other maps; the prior is made from the network's own predictions
(:mod:`landprior.domains.clustering.neighbourhood`), and the loss is the implicit-posterior loss in the settings.
"""

from __future__ import annotations

import colorsys
import hashlib
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from landprior.domains.clustering.neighbourhood import NeighbourhoodPrior
from landprior.domains.clustering.settings import ClusterSettings
from landprior.errors import CollapseWarning, InputError
from landprior.implicit.devices import make_fabric
from landprior.implicit.losses import IMPLICIT_LOSSES
from landprior.implicit.posterior import log_class_marginal
from landprior.implicit.seeds import derive_seed
from landprior.implicit.training import fit
from landprior.landcover.training.image_kind import ImageKind, require_one_kind
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.model import BandStatistics, LandcoverModel, build_network
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.tiles import Tile, measure_bands, measure_colours
from landprior.raster.scheme import ClassScheme, LandClass
from landprior.raster.windows import iter_blocks
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from landprior.implicit.history import History
    from landprior.implicit.objectives import Batch

logger = logging.getLogger(__name__)


LEAST_EFFECTIVE = 0.5
"""Share of k below which the effective number of clusters is degenerate."""

MOST_SHARE = 0.8
"""Share of the pixels above which the largest cluster is degenerate."""

LOOKS = 8
"""Number of batches on which the use of clusters is measured."""


def make_scheme(clusters: int) -> ClassScheme:
    """Return the scheme of clusters 1, 2, ... with distinct colours."""
    classes = []
    for index in range(clusters):
        hue, light = (index * 0.618034) % 1.0, (0.5, 0.35, 0.68)[index % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.75))
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        classes.append(LandClass(code=index + 1, name=f"cluster {index + 1}", colour=colour))
    return ClassScheme(name=f"clusters-{clusters}", title="Clusters of an image", classes=tuple(classes))


def read_image_tile(image: str | Path, scheme: ClassScheme, *, nodata: float | None = None) -> Tile:
    """Read an image into memory for clustering; its uniform prior uses no memory.

    Parameters
    ----------
    image
        Raster with any bands.
    scheme
        The clusters.
    nodata
        See :class:`landprior.landcover.training.layers.ImageLayer`.

    Returns
    -------
    Tile
        See :func:`image_tile`.

    Raises
    ------
    InputError
        If the image cannot be read, or has no pixel with data.
    """
    with ImageLayer(image, nodata=nodata) as pixels:
        kind = ImageKind.of(pixels)
        values = np.empty((pixels.bands, *pixels.grid.shape), dtype=pixels.dtype)
        valid = np.empty(pixels.grid.shape, dtype=bool)
        for block in iter_blocks(pixels.grid, size=2048):
            at = block.core.toslices()
            values[(slice(None), *at)], valid[at] = pixels.read(block.core)
    return replace(image_tile(Path(image).name, values, valid, scheme), kind=kind)


def image_tile(name: str, values: NDArray[np.generic], valid: NDArray[np.bool_], scheme: ClassScheme) -> Tile:
    """Make a tile of an image in memory, with a uniform prior.

    Parameters
    ----------
    name
        Name used in messages and for the seed.
    values
        The image, shape (B, H, W).
    valid
        Mask of valid pixels, shape (H, W).
    scheme
        The clusters.

    Returns
    -------
    Tile
        The tile; pixels with data are used.

    Raises
    ------
    InputError
        If no pixel has data.
    """
    if not valid.any():
        msg = f"{name} has no valid pixel; is its nodata value correct?"
        raise InputError(msg)
    uniform = torch.full((len(scheme), 1, 1), 1 / len(scheme), dtype=torch.float16)
    return Tile(
        name=name,
        image=torch.from_numpy(values),
        prior=uniform.expand(len(scheme), *valid.shape),
        valid=torch.from_numpy(valid),
        scheme=scheme,
    )


@torch.no_grad()
def spread_weights(network: nn.Module, colours: Tensor, gain: float) -> None:
    """Scale up random weights, and make the first layer act on decorrelated bands.

    The bands of an image mostly vary in brightness; otherwise random weights and the resulting clusters would too.

    Parameters
    ----------
    network
        Changed in place; its first convolution receives the bands.
    colours
        See :func:`landprior.landcover.training.tiles.measure_colours`.
    gain
        Scale of all convolutions' weights.
    """
    white = torch.linalg.inv(colours)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.weight.mul_(gain)
    first = layers[0].weight
    first.copy_(torch.einsum("oihw,ij->ojhw", first.double().cpu(), white).to(first))


class ClusterLearner(nn.Module):
    """The network with its own prior, so that checkpoints include the prior's weights."""

    def __init__(self, network: nn.Module, prior: NeighbourhoodPrior) -> None:
        super().__init__()
        self.network, self.prior = network, prior

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log q, (N, C, H, W)."""
        found: Tensor = self.network(inputs)
        return found


class ClusterObjective:
    """An implicit-posterior loss against the prior of the network's own neighbourhoods."""

    def __init__(self, prior: NeighbourhoodPrior, loss: str) -> None:
        self._prior, self._loss = prior, IMPLICIT_LOSSES[loss]

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        mask = torch.ones_like(output[:, 0], dtype=torch.bool) if batch.mask is None else batch.mask
        return self._loss(output, self._prior(output.detach(), mask), mask, check=False)


@dataclass(frozen=True)
class ClusterUse:
    """The use of clusters: the effective number exp(H(qbar)), and the share of the largest."""

    effective: float
    largest: float

    @classmethod
    def of(cls, shares: Tensor) -> ClusterUse:
        """Return the use for mean predictions, shape (C,), sum 1."""
        p = shares.double()
        entropy = -(p * p.clamp_min(1e-30).log()).sum()
        return cls(float(entropy.exp()), float(p.max()))

    def degenerate(self, clusters: int) -> bool:
        """Say whether most clusters are empty, or one has nearly all."""
        return self.effective < max(LEAST_EFFECTIVE * clusters, 1.2) or self.largest > MOST_SHARE


@torch.no_grad()
def measure_use(network: nn.Module, feed: PatchFeed, *, first: int) -> ClusterUse:
    """Measure the use of clusters on batches that were not trained on.

    Parameters
    ----------
    network
        Network that predicts log q.
    feed
        Source of the batches.
    first
        First step whose batch is used.

    Returns
    -------
    ClusterUse
        Use of the clusters over :data:`LOOKS` batches.
    """
    total: Tensor | None = None
    for step in range(first, first + LOOKS):
        batch = feed(step)
        log_q = batch.crop(network(batch.inputs))
        shares = log_class_marginal(log_q, batch.without_border().mask, check=False).exp()
        total = shares if total is None else total + shares
    if total is None:  # pragma: no cover - there are always looks
        msg = "no batches"
        raise ValueError(msg)
    return ClusterUse.of((total / total.sum()).cpu())


def train_clusters(
    tiles: Sequence[Tile],
    settings: ClusterSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train a network that clusters the pixels of images.

    Parameters
    ----------
    tiles
        See :func:`read_image_tile`; several tiles share one model.
    settings
        See :class:`ClusterSettings`.
    checkpoint
        Path of the training state, so that an interrupted run can resume; each restart has its own file
        (:func:`clear_attempts`).
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    LandcoverModel
        The model, whose classes are clusters. ``record["clustering"]`` has the weights of the prior, the use of
        clusters and the seeds tried.

    Warns
    -----
    CollapseWarning
        If the clusters degenerate: training restarts with a derived seed, and after the last restart the model that
        uses most clusters is returned.

    Raises
    ------
    InputError
        If there are no tiles, or the loss is not based on the posterior.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings = settings or ClusterSettings()
    if settings.training.loss not in IMPLICIT_LOSSES:
        msg = f"clustering needs the implicit posterior; choose a loss from {', '.join(IMPLICIT_LOSSES)}"
        raise InputError(msg)
    if not tiles:
        msg = "there are no images to cluster"
        raise InputError(msg)
    best: tuple[LandcoverModel, ClusterUse] | None = None
    tried: list[dict[str, Any]] = []
    for attempt in range(settings.restarts + 1):
        seed = settings.training.seed if not attempt else derive_seed(settings.training.seed, f"restart {attempt}")
        path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{attempt}")
        model, use = _train(tiles, settings, seed, checkpoint=path, run=run)
        tried.append({"seed": seed, "effective": use.effective, "largest": use.largest})
        if best is None or use.effective > best[1].effective:
            best = model, use
        if not use.degenerate(settings.clusters):
            break
        more = attempt < settings.restarts
        warnings.warn(
            f"the clusters degenerate: {use.effective:.1f} of {settings.clusters} are used, the largest for "
            f"{use.largest:.0%} of the pixels; "
            + ("restarting with another seed" if more else "try another --seed or fewer clusters"),
            CollapseWarning,
            stacklevel=2,
        )
    if best is None:  # pragma: no cover - there is always an attempt
        msg = "nothing was trained"
        raise ValueError(msg)
    best[0].record["clustering"]["attempts"] = tried
    return best[0]


def clear_attempts(checkpoint: Path) -> None:
    """Remove the checkpoints of all attempts, once the result is saved."""
    for attempt in range(ClusterSettings.model_fields["restarts"].default + 100):
        checkpoint.with_name(f"{checkpoint.name}-{attempt}").unlink(missing_ok=True)


def _train(
    tiles: Sequence[Tile],
    settings: ClusterSettings,
    run_seed: int,
    *,
    checkpoint: Path | None,
    run: Run,
) -> tuple[LandcoverModel, ClusterUse]:
    require_one_kind([(tile.name, tile.kind) for tile in tiles])
    names = sorted(tile.name for tile in tiles)
    seed = derive_seed(run_seed, "|".join(names))
    fabric = make_fabric(settings.training.precision, run.device)
    on_device = [tile.to(fabric.device) for tile in tiles]
    statistics = measure_bands(on_device)
    scheme = tiles[0].scheme
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(int(tiles[0].image.shape[0]), scheme, filters=settings.filters)
    colours = measure_colours(on_device, statistics)
    spread_weights(network, colours, settings.gain)
    network = network.to(memory_format=torch.channels_last)
    prior = NeighbourhoodPrior(
        near=settings.near,
        far=settings.far,
        every=settings.every,
        start=(settings.alpha, settings.beta),
        balance=settings.gamma,
        views=settings.views,
    )
    feed = PatchFeed(
        on_device,
        statistics,
        patch_size=settings.patch_size,
        batch_size=settings.batch_size,
        seed=seed,
        halo=network.halo,
        jitter=settings.jitter,
        tint=settings.tint * colours if settings.tint else None,
        views=settings.views,
    )
    with warnings.catch_warnings():  # the loop's own check uses the feed's prior, which is uniform here
        warnings.simplefilter("ignore", CollapseWarning)
        history = fit(
            ClusterLearner(network, prior),
            feed,
            settings.training,
            objective=ClusterObjective(prior, settings.training.loss),
            fabric=fabric,
            checkpoint=checkpoint,
            identity="" if checkpoint is None else _identify(tiles, settings, run_seed),
            progress=run.progress,
        )
    network.eval()
    use = measure_use(network, feed, first=settings.training.steps)
    logger.info("%.1f of %d clusters are used, the largest for %.0f %%", use.effective, len(scheme), 100 * use.largest)
    return _finish(network, tiles, statistics, settings, history, prior, use), use


def _finish(
    network: Any,  # noqa: ANN401 - a PixelNetwork
    tiles: Sequence[Tile],
    statistics: BandStatistics,
    settings: ClusterSettings,
    history: History,
    prior: NeighbourhoodPrior,
    use: ClusterUse,
) -> LandcoverModel:
    alpha, beta = prior.weights.tolist()
    kind = require_one_kind([(tile.name, tile.kind) for tile in tiles])
    return LandcoverModel(
        network=network,
        scheme=tiles[0].scheme,
        statistics=statistics,
        filters=settings.filters,
        record={
            "settings": settings.model_dump(mode="json"),
            "tiles": sorted(tile.name for tile in tiles),
            "labelled": False,
            "history": history.summary(),
            "clustering": {
                "alpha": alpha,
                "beta": beta,
                "effective": use.effective,
                "largest": use.largest,
            },
            **({} if kind is None else {"image": kind.model_dump()}),
            "torch": torch.__version__,
        },
    )


def _identify(tiles: Sequence[Tile], settings: ClusterSettings, seed: int) -> str:
    """Return a hash of everything a run depends on."""
    sha = hashlib.sha256(f"{settings.model_dump_json()}{seed}".encode())
    for tile in tiles:
        sha.update(tile.name.encode())
        for values in (tile.image, tile.valid):
            sha.update(values.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
