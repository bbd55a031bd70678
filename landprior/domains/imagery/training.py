"""Training on images with :func:`landprior.implicit.training.fit`, choosing the epoch without true labels."""

from __future__ import annotations

import hashlib
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from landprior.domains.imagery.monitor import EpochMonitor, read_epochs
from landprior.domains.imagery.network import build_image_network
from landprior.errors import CollapseWarning
from landprior.implicit.seeds import derive_seed
from landprior.implicit.training import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lightning.fabric import Fabric
    from torch import Tensor, nn

    from landprior.domains.imagery.feeding import ShuffledOrder, Standardiser
    from landprior.domains.imagery.images import ImageSplits, LabelledImages
    from landprior.domains.imagery.records import EpochScores
    from landprior.implicit.networks import SmoothedNetwork
    from landprior.implicit.objectives import Batch, Objective
    from landprior.implicit.settings import (
        TrainingSettings,
    )


COLLAPSED = 99.5
"""Percent of the held-out items in one class above which a network has collapsed."""

TEMPERATURES = tuple(10 ** (step / 16 - 2.5) for step in range(57))
"""Temperatures from 0.003 to 10 (predictions of cross-entropy are nearly flat) that are applied to predictions before
epochs are compared."""


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Parameters
    ----------
    network
        Network at the chosen epoch.
    standardise
        Standardisation of its input.
    looks
        Metrics after every epoch.
    chosen
        The chosen epoch, from 1.
    items
        Number of items fitted.
    seconds
        Duration since the (last) start.
    """

    network: nn.Module
    standardise: Standardiser
    looks: list[EpochScores]
    chosen: int
    items: int
    seconds: float

    @property
    def top_share(self) -> float:
        """Percent of the held-out items in the most frequent class, at the chosen epoch."""
        return self.looks[self.chosen - 1].scores["top_share"]


class OrderedFeed(Protocol):
    """A feed in epochs."""

    order: ShuffledOrder

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""


def train_monitored(
    network: nn.Module,
    feed: OrderedFeed,
    loop: TrainingSettings,
    standardise: Standardiser,
    *,
    fabric: Fabric,
    judge: Callable[[nn.Module], Mapping[str, float]],
    train: LabelledImages,
    test: LabelledImages | None,
    items: int,
    objective: Objective | None = None,
    confusion: bool = False,
    work: Path | None = None,
    identity: str = "",
    progress: bool = False,
) -> Trained:
    """Train a network in place, and restore the weights of the epoch with the judge's best score.

    Parameters
    ----------
    network, feed, loop, objective, fabric, progress
        See :func:`landprior.implicit.training.fit`.
    standardise
        Standardisation of the network's input.
    judge, train, test, confusion
        See :class:`EpochMonitor`.
    items
        Number of items fitted.
    work
        A path without suffix for the state of an interrupted training: ``.checkpoint``, and ``.safetensors``, which
        is kept, with the weights at the chosen epoch. None: nothing is kept.
    identity
        Identifier of the training.

    Returns
    -------
    Trained
        The trained network, its metrics and the chosen epoch.

    Raises
    ------
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    start = time.perf_counter()
    monitor = EpochMonitor(
        network,
        standardise,
        train=train,
        test=test,
        judge=judge,
        confusion=confusion,
        seed=loop.seed,
        path=None if work is None else work.with_name(f"{work.name}.safetensors"),
        identity=identity,
    )
    checkpoint = None if work is None else work.with_name(f"{work.name}.checkpoint")
    if checkpoint is not None and checkpoint.is_file():
        monitor.resume()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the loop checks one batch, which may have few items
        history = fit(
            network,
            feed,
            loop,
            objective=objective,
            fabric=fabric,
            monitor=monitor,
            checkpoint=checkpoint,
            identity=identity,
            progress=progress,
        )
    looks, chosen = read_epochs(history)
    monitor.restore()
    return Trained(network, standardise, looks, chosen, items, time.perf_counter() - start)


def split_off(count: int, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split items at random into those to fit and those for choosing the epoch.

    Parameters
    ----------
    count
        Total number of items.
    share
        Share for choosing the epoch, from 0 to below 1; at least one item if above 0.
    seed
        Seed of the draw.

    Returns
    -------
    tuple of Tensor
        Positions of both parts, int64, ascending.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "held out"))
    order = torch.randperm(count, generator=generator)
    held = max(1, round(share * count)) if share > 0 and count > 1 else 0
    return order[held:].sort().values, order[:held].sort().values


def build_for(data: ImageSplits, *, filters: int, seed: int) -> SmoothedNetwork:
    """Build the network for images.

    Parameters
    ----------
    data
        Images, for their size and classes.
    filters
        Width of the network.
    seed
        Seed of its weights.

    Returns
    -------
    SmoothedNetwork
        Network that predicts log q, (N, C).
    """
    _, bands, rows, columns = data.train.images.shape
    return build_image_network(
        bands,
        len(data.train.classes),
        (rows, columns),
        filters=filters,
        seed=derive_seed(seed, "weights"),
    )


def identify(data: ImageSplits, prior: Tensor | None = None) -> str:
    """Return a hash of images, labels and candidate sets."""
    digest = hashlib.sha256()
    for images in (data.train, data.test):
        if images is not None:
            digest.update(f"{tuple(images.images.shape)}{images.classes}".encode())
            digest.update(images.images.cpu().numpy().tobytes())
            digest.update(images.labels.numpy().tobytes())
    if prior is not None:
        digest.update(prior.numpy().tobytes())
    return digest.hexdigest()[:16]
