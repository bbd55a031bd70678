"""Training a network from candidate sets."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch

from landprior.domains.imagery.feeding import ShuffledOrder, Standardiser
from landprior.domains.imagery.monitor import CHOICE
from landprior.domains.imagery.network import predict_images
from landprior.domains.imagery.training import COLLAPSED, TEMPERATURES, build_for, split_off, train_monitored
from landprior.errors import CollapseWarning, InputError
from landprior.implicit.devices import make_fabric
from landprior.implicit.losses import IMPLICIT_LOSSES
from landprior.implicit.objectives import Batch
from landprior.implicit.posterior import EPS, log_class_marginal
from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import IMPLICIT
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.imagery.training import Trained
    from landprior.domains.partial.settings import PartialLoss, PartialSettings
    from landprior.implicit.objectives import Objective


class CandidateFeed:
    """Return the images and priors of a step; a pure function of the step.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W), on the device.
    log_prior
        (N, C), on the device.
    items
        Positions of the items to fit.
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
    """An implicit loss with the same constant denominator for all classes, for comparison.

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
        return self._loss(output, batch.log_prior, batch.mask, log_marginal=flat, check=False)


class CandidateJudge:
    """Score a network on held-out items by their candidate sets only.

    Parameters
    ----------
    images, log_prior, standardise
        As for :class:`CandidateFeed`, with the prior on the CPU.
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
        nats. ``ruled_out``: percent of items whose most probable class is not a candidate. ``top_share``: percent of
        items in the most frequent class. ``choice``: the score for choosing the epoch, the evidence of normalised
        q^(1/T) at the T of :data:`TEMPERATURES` that maximises it. With longer training a network becomes
        overconfident, which lowers the evidence although more classes are correct; T compensates for this.
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
    marginal = log_class_marginal(log_q, check=False).clamp_min(math.log(EPS))
    return float(torch.logsumexp(log_q + log_prior - marginal, 1).mean())


def train_partial(
    data: ImageSplits,
    prior: Tensor,
    settings: PartialSettings,
    *,
    items: Tensor | None = None,
    work: Path | None = None,
    identity: str = "",
    run: Run = Run(),
) -> Trained:
    """Train a network from candidate sets.

    Parameters
    ----------
    data
        Images. True labels are used only for scores, never fitted.
    prior
        Prior of each training image, float32, (N, C); zeros exclude a class.
    settings
        See :class:`PartialSettings`.
    items
        Positions of the training images to use, int64; None for all.
    work, identity
        See :func:`landprior.domains.imagery.training.train_monitored`.
    run
        On which device, and whether progress is shown.

    Returns
    -------
    Trained
        The network and its metrics.

    Raises
    ------
    InputError
        If there are too few items.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    if prior.shape != (len(data.train), len(data.train.classes)):
        wanted = (len(data.train), len(data.train.classes))
        msg = f"the candidate sets have shape {tuple(prior.shape)}, not {wanted} (images, classes)"
        raise InputError(msg)
    items = torch.arange(len(data.train)) if items is None else items
    if len(items) < 2:
        msg = f"{len(items)} images are too few to train on and to choose an epoch with"
        raise InputError(msg)
    fabric = make_fabric(settings.precision, run.device)
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
    objective: Objective | None = None
    if settings.marginal == "uniform" and settings.loss in IMPLICIT:
        objective = FixedDenominator(settings.loss)
    trained = train_monitored(
        build_for(data, filters=settings.filters, seed=settings.seed).to(fabric.device),
        feed,
        settings.loop_for(feed.order.epoch_steps),
        standardise,
        fabric=fabric,
        judge=CandidateJudge(train.images[held.to(fabric.device)], log_prior[held], standardise),
        train=train.take(fitted),
        test=test,
        items=len(fitted),
        objective=objective,
        work=work,
        identity=f"{identity}|{settings.model_dump_json()}",
        progress=run.progress,
    )
    if trained.top_share > COLLAPSED and float(prior[items].mean(0).max()) < COLLAPSED / 100:
        msg = (
            f"one class has {trained.top_share:.1f} % of the held-out items: a collapsed solution; "
            "try --loss rq, another --seed"
        )
        warnings.warn(msg, CollapseWarning, stacklevel=2)
    return trained
