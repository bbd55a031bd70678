"""One network from candidate sets: by :func:`landprior.implicit.training.fit`, the epoch chosen without labels."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from landprior.domains.images import ShuffledOrder, Standardiser, derive_seed
from landprior.domains.partial.candidates import split_off
from landprior.domains.partial.network import FILTERS, build_image_network, denormals_flushed, predict_images
from landprior.domains.partial.watching import CHOICE, Watcher, looks_of
from landprior.errors import CollapseWarning, InputError
from landprior.implicit.devices import Precision, make_fabric
from landprior.implicit.losses import IMPLICIT, IMPLICIT_LOSSES
from landprior.implicit.posterior import EPS, log_class_marginal
from landprior.implicit.training import Batch, Schedule, TrainingSettings, fit

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from landprior.domains.images import ImageSplits
    from landprior.domains.partial.records import Look
    from landprior.implicit.networks import SmoothedNetwork
    from landprior.implicit.training import Objective

PartialLoss = Literal["rq", "qr-kl", "nll-union", "ce"]

Denominator = Literal["batch", "running", "uniform"]
"""What q is divided by in the posterior: the mean of q over the batch, a running mean, or nothing but a constant."""

REMEMBERED = 256.0
"""Items that a running marginal remembers: as many as a batch has that needs none. A longer memory lags behind a
network that changes fast, and RQ then runs away from it (``docs/partial-labels.md``)."""

TEMPERATURES = tuple(10 ** (step / 16 - 2.5) for step in range(57))
"""From 0.003 to 10 (cross-entropy's predictions are nearly flat), by which predictions are softened or sharpened before
epochs are compared."""

COLLAPSED = 99.5
"""Percent of the held-out items in one class from which a network has collapsed."""


class PartialSettings(BaseModel):
    """How a network is trained from candidate sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: PartialLoss = "rq"
    marginal: Denominator = "batch"
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Schedule = "cosine"
    memory: float = Field(REMEMBERED, gt=0, description="items that a running marginal remembers, roughly")
    filters: int = Field(FILTERS, ge=1)
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the items that chooses the epoch")
    seed: int = Field(0, ge=0)
    precision: Precision = "auto"

    def loop(self, epoch_steps: int) -> TrainingSettings:
        """Return the settings of the loop."""
        return TrainingSettings(
            loss=self.loss,
            steps=self.epochs * epoch_steps,
            warmup="none",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            marginal="running" if self.marginal == "running" and self.loss in IMPLICIT else "batch",
            memory=self.memory,
            schedule=self.schedule,
            epoch_steps=epoch_steps,
            seed=self.seed,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Parameters
    ----------
    network
        Of the epoch chosen.
    standardise
        What its input goes through.
    looks
        After every epoch.
    chosen
        The epoch, from 1.
    items
        How many items were fitted.
    seconds
        Since the (last) start.
    """

    network: nn.Module
    standardise: Standardiser
    looks: list[Look]
    chosen: int
    items: int
    seconds: float


class CandidateFeed:
    """Gives images and priors of a step; a pure function of it.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W), on the device.
    log_prior
        (N, C), on the device.
    items
        Which of them are fitted.
    standardise, batch_size, seed
        See :class:`ShuffledOrder`.
    """

    def __init__(
        self,
        images: Tensor,
        log_prior: Tensor,
        items: Tensor,
        standardise: Standardiser,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._images, self._log_prior, self._items = images, log_prior, items
        self._standardise = standardise
        self.order = ShuffledOrder(len(items), batch_size, seed)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        index = self._items[self.order(step)].to(self._images.device)
        return Batch(self._standardise(self._images[index]), self._log_prior[index])


class FixedDenominator:
    """An implicit loss whose denominator is the same for all classes, whatever the network says: for comparison.

    With candidates of equal weight RQ is then the likelihood of the union: r is q on the set, KL(r || q) = -log q(set).
    """

    def __init__(self, loss: PartialLoss) -> None:
        self._loss = IMPLICIT_LOSSES[loss]

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        if batch.log_prior is None:  # pragma: no cover - the feed gives one
            msg = "candidate sets are missing"
            raise ValueError(msg)
        flat = output.new_zeros(output.shape[1])
        return self._loss(output, batch.log_prior, batch.mask, log_marginal=flat)


class CandidateJudge:
    """Scores a network on items held out, by their candidate sets alone.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W), on the device.
    log_prior
        (N, C), on the CPU.
    standardise
        See :class:`Standardiser`.
    """

    def __init__(self, images: Tensor, log_prior: Tensor, standardise: Standardiser) -> None:
        self._images, self._log_prior, self._standardise = images, log_prior, standardise

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the scores, see :func:`judge_candidates`."""
        return judge_candidates(predict_images(network, self._images, self._standardise), self._log_prior)


def judge_candidates(log_q: Tensor, log_prior: Tensor) -> dict[str, float]:
    """Score predictions by candidate sets.

    Parameters
    ----------
    log_q, log_prior
        (N, C).

    Returns
    -------
    dict of str to float
        ``evidence``: mean log sum_l p(l) q(l) / qbar(l), nats [R eq. 1, 2]. ``likelihood``: mean log sum_l p(l) q(l),
        nats. ``ruled_out``: percent of items whose most probable class is no candidate. ``top_share``: percent of items
        in the most frequent class. ``choice``: what the epoch is chosen by, the evidence of q^(1/T), normalised, at the
        T of :data:`TEMPERATURES` at which it is largest. A network that goes on training becomes too sure of itself,
        which lowers the evidence while more classes are right; T takes that out.
    """
    best = log_q.argmax(1)
    ruled_out = (log_prior.gather(1, best[:, None]) == -torch.inf).double().mean()
    top = torch.bincount(best).max() / len(best)
    return {
        "evidence": _mean_evidence(log_q, log_prior),
        "likelihood": float(torch.logsumexp(log_q + log_prior, 1).mean()),
        "ruled_out": 100 * float(ruled_out),
        "top_share": 100 * float(top),
        CHOICE: max(_mean_evidence(torch.log_softmax(log_q / t, 1), log_prior) for t in TEMPERATURES),
    }


def _mean_evidence(log_q: Tensor, log_prior: Tensor) -> float:
    marginal = log_class_marginal(log_q).clamp_min(math.log(EPS))
    return float(torch.logsumexp(log_q + log_prior - marginal, 1).mean())


def train_partial(
    data: ImageSplits,
    prior: Tensor,
    settings: PartialSettings,
    *,
    items: Tensor | None = None,
    device: str = "auto",
    work: Path | None = None,
    identity: str = "",
    progress: bool = False,
) -> Trained:
    """Train a network from candidate sets.

    Parameters
    ----------
    data
        Images. True labels are only counted, never fitted.
    prior
        Of each training image, float32, (N, C); zeros rule a class out.
    settings
        See :class:`PartialSettings`.
    items
        Which of the training images there are, int64; None for all.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    work
        A path without suffix for what an interrupted training goes on from: ``.checkpoint`` and, which stays,
        ``.safetensors`` with the weights of the epoch chosen. None: nothing is kept.
    identity
        What the training is of.
    progress
        A progress bar.

    Raises
    ------
    InputError
        If there are too few items.
    TrainingError, TrainingInterruptedError
        As :func:`landprior.implicit.training.fit`.
    """
    start = time.perf_counter()
    if prior.shape != (len(data.train), len(data.train.classes)):
        wanted = (len(data.train), len(data.train.classes))
        msg = f"the candidate sets have shape {tuple(prior.shape)}, not {wanted} (images, classes)"
        raise InputError(msg)
    items = torch.arange(len(data.train)) if items is None else items
    if len(items) < 2:
        msg = f"{len(items)} images are too few to train with and to choose an epoch by"
        raise InputError(msg)
    fabric = make_fabric(settings.precision, device)
    fitted, held = split_off(len(items), settings.held_out, seed=settings.seed)
    fitted, held = items[fitted], items[held]
    train, test = data.train.to(fabric.device), None if data.test is None else data.test.to(fabric.device)
    log_prior = prior.log()
    standardise = Standardiser.of(train.images)
    feed = CandidateFeed(
        train.images,
        log_prior.to(fabric.device),
        fitted,
        standardise,
        batch_size=settings.batch_size,
        seed=derive_seed(settings.seed, "order"),
    )
    network = build_for(data, filters=settings.filters, seed=settings.seed).to(fabric.device)
    watcher = Watcher(
        network,
        standardise,
        train=train.take(fitted),
        test=test,
        judge=CandidateJudge(train.images[held.to(fabric.device)], log_prior[held], standardise),
        seed=settings.seed,
        path=None if work is None else work.with_name(f"{work.name}.safetensors"),
        identity=identity,
    )
    objective: Objective | None = None
    if settings.marginal == "uniform" and settings.loss in IMPLICIT:
        objective = FixedDenominator(settings.loss)
    checkpoint = None if work is None else work.with_name(f"{work.name}.checkpoint")
    if checkpoint is not None and checkpoint.is_file():
        watcher.resume()
    with warnings.catch_warnings(), denormals_flushed():
        warnings.simplefilter("ignore", CollapseWarning)  # the loop judges by one batch, which may be of few items
        history = fit(
            network,
            feed,
            settings.loop(feed.order.epoch_steps),
            objective=objective,
            fabric=fabric,
            monitor=watcher,
            checkpoint=checkpoint,
            identity=f"{identity}|{settings.model_dump_json()}",
            progress=progress,
        )
    looks, chosen = looks_of(history)
    watcher.restore()
    share = looks[chosen - 1].scores["top_share"]
    if share > COLLAPSED and float(prior[items].mean(0).max()) < COLLAPSED / 100:
        msg = (
            f"one class has {share:.1f} % of the held-out items: the degenerate solution; try --loss rq, another --seed"
        )
        warnings.warn(msg, CollapseWarning, stacklevel=2)
    return Trained(network, standardise, looks, chosen, len(fitted), time.perf_counter() - start)


def build_for(data: ImageSplits, *, filters: int, seed: int) -> SmoothedNetwork:
    """Build the network for images."""
    _, bands, rows, columns = data.train.images.shape
    return build_image_network(
        bands, len(data.train.classes), (rows, columns), filters=filters, seed=derive_seed(seed, "weights")
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
