"""Training a network from pairs: each q is fitted to its marginal of the joint posterior [R eq. 6]."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from landprior.domains.imagery.feeding import ShuffledOrder, Standardiser
from landprior.domains.imagery.monitor import CHOICE
from landprior.domains.imagery.network import predict_images
from landprior.domains.imagery.records import RunRecord
from landprior.domains.imagery.runner import Runner, write_predictions
from landprior.domains.imagery.training import (
    COLLAPSED,
    TEMPERATURES,
    Trained,
    build_for,
    identify,
    split_off,
    train_monitored,
)
from landprior.domains.ranks.pairs import Pairs, draw_pairs
from landprior.domains.ranks.posterior import log_pair_joint, pair_priors, rank_loss
from landprior.domains.ranks.settings import Denominators, Fit, Ties  # noqa: TC001 - pydantic reads them
from landprior.errors import CollapseWarning, InputError
from landprior.implicit.devices import make_fabric
from landprior.implicit.objectives import Batch
from landprior.implicit.posterior import RunningMarginal, log_class_marginal
from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import Marginal  # noqa: TC001 - pydantic reads it
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.ranks.settings import RankSettings


LEAST_PAIRS = 1_000
"""Minimum number of pairs drawn from the held-out images, however few these are."""


class PairNetwork(nn.Module):
    """A network with the running marginals of its objective, so that checkpoints include them.

    Parameters
    ----------
    body
        Network that predicts log q.
    classes
        Number of classes.
    memory
        Memory of the running marginals in items; None: no running marginals.
    denominators
        Whether there is one marginal for all items, or one each for first and second items.
    """

    def __init__(
        self, body: nn.Module, classes: int, memory: float | None, denominators: Denominators = "common"
    ) -> None:
        super().__init__()
        self.body = body
        self.denominators: Denominators = denominators
        self.marginals = nn.ModuleList()
        if memory is not None:
            for _ in range({"common": 1, "own": 2}[denominators]):
                self.marginals.append(RunningMarginal(memory, classes=classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log q."""
        found: Tensor = self.body(inputs)
        return found

    def log_marginals(self, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log of Q1 and Q2, (C,), from log q of first items followed by as many second ones."""
        parts = [log_q] if self.denominators == "common" else list(log_q.chunk(2))
        found = [
            self.marginals[i](q, check=False) if self.marginals else log_class_marginal(q, check=False)
            for i, q in enumerate(parts)
        ]
        return found[0], found[-1]


class RankObjective:
    """The loss of a batch of pairs.

    Parameters
    ----------
    network
        Network whose marginals are used.
    log_priors
        Log of the joint prior by relation, (relations, C, C), on the device.
    how
        See :func:`rank_loss`.
    """

    def __init__(self, network: PairNetwork, log_priors: Tensor, how: Fit) -> None:
        self._network, self._log_priors, self._fit = network, log_priors, how

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss; the first half of the output is for the first items."""
        one, two = output.chunk(2)
        log_marginal1, log_marginal2 = self._network.log_marginals(output)
        log_prior = self._log_priors[batch.extra["relation"]]
        return rank_loss(
            one,
            two,
            log_prior,
            log_marginal1=log_marginal1,
            log_marginal2=log_marginal2,
            fit=self._fit,
            check=False,
        )


class PairFeed:
    """Return the images of the pairs of a step, first items before second ones; a pure function of the step.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W), on the device.
    pairs
        Pairs to fit.
    standardise, batch_size, seed
        See :class:`ShuffledOrder`; the batch size is in pairs.
    """

    def __init__(self, images: Tensor, pairs: Pairs, standardise: Standardiser, *, batch_size: int, seed: int) -> None:
        self._images, self._pairs, self._standardise = images, pairs, standardise
        self.order = ShuffledOrder(len(pairs), batch_size, seed)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        some = self._pairs.take(self.order(step))
        index = torch.cat([some.first, some.second]).to(self._images.device)
        relation = some.relation.to(self._images.device)
        return Batch(self._standardise(self._images[index]), extra={"relation": relation})


class PairJudge:
    """Score a network on held-out pairs by their relations only.

    Parameters
    ----------
    images
        uint8, (N, bands, H, W), on the device.
    pairs
        Held-out pairs.
    log_priors
        Log of the joint prior by relation, (relations, C, C), on the CPU.
    standardise
        See :class:`Standardiser`.
    """

    def __init__(self, images: Tensor, pairs: Pairs, log_priors: Tensor, standardise: Standardiser) -> None:
        both, places = torch.unique(torch.cat([pairs.first, pairs.second]), return_inverse=True)
        self._images = images[both.to(images.device)]
        self._first, self._second = places.chunk(2)
        self._relation, self._log_priors, self._standardise = pairs.relation, log_priors, standardise

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the scores.

        ``evidence``: mean log p(x1, x2), nats. ``ruled_out``: percent of pairs whose most probable classes are excluded
        by the relation. ``top_share``: percent of items in the most frequent class. ``choice``: the evidence at the
        temperature that maximises it, see :func:`judge_candidates`.
        """
        log_q = predict_images(network, self._images, self._standardise)
        best = log_q.argmax(1)
        excluded = self._log_priors[self._relation, best[self._first], best[self._second]] == -torch.inf
        return {
            "evidence": self._evidence(log_q),
            "ruled_out": 100 * float(excluded.double().mean()),
            "top_share": 100 * float(torch.bincount(best).max() / len(best)),
            CHOICE: max(self._evidence(torch.log_softmax(log_q / t, 1)) for t in TEMPERATURES[::2]),
        }

    def _evidence(self, log_q: Tensor) -> float:
        one, two = log_q[self._first], log_q[self._second]
        common = log_class_marginal(torch.cat([one, two]), check=False)
        log_prior = self._log_priors[self._relation]
        joint = log_pair_joint(one, two, log_prior, log_marginal1=common, log_marginal2=common, check=False)
        return float(torch.logsumexp(joint.flatten(1), dim=1).mean())


def train_ranks(
    data: ImageSplits,
    settings: RankSettings,
    *,
    pairs: Pairs | None = None,
    work: Path | None = None,
    identity: str = "",
    run: Run = Run(),
) -> Trained:
    """Train a network from pairs.

    Parameters
    ----------
    data
        Images; their classes are ranks, ascending.
    settings
        See :class:`RankSettings`.
    pairs
        Pairs of training images; None: drawn from true ranks, with those for choosing the epoch from held-out images.
    work, identity, run
        See :func:`landprior.domains.partial.training.train_partial`.

    Returns
    -------
    Trained
        The network and its metrics.

    Raises
    ------
    InputError
        If there are too few pairs, or no pairs are given and ranks are unknown.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    classes = len(data.train.classes)
    fabric = make_fabric(settings.precision, run.device)
    fitted, held, looked_at = _split(data, settings, pairs)
    train, test = data.train.to(fabric.device), None if data.test is None else data.test.to(fabric.device)
    log_priors = pair_priors(classes, settings.ties).log()
    standardise = Standardiser.of(train.images)
    feed = PairFeed(
        train.images, fitted, standardise, batch_size=settings.batch_size, seed=derive_seed(settings.seed, "order")
    )
    network = PairNetwork(
        build_for(data, filters=settings.filters, seed=settings.seed),
        classes,
        settings.memory if settings.marginal == "running" else None,
        settings.denominators,
    ).to(fabric.device)
    trained = train_monitored(
        network,
        feed,
        settings.loop(feed.order.epoch_steps, "rq"),
        standardise,
        fabric=fabric,
        judge=PairJudge(train.images, held, log_priors, standardise),
        train=train.take(looked_at),
        test=test,
        items=len(fitted),
        objective=RankObjective(network, log_priors.to(fabric.device), settings.fit),
        confusion=True,
        work=work,
        identity=f"{identity}|{settings.model_dump_json()}",
        progress=run.progress,
    )
    if trained.top_share > COLLAPSED:
        msg = (
            f"one class has {trained.top_share:.1f} % of the held-out images: a collapsed solution; try another --seed"
        )
        warnings.warn(msg, CollapseWarning, stacklevel=2)
    return trained


def _split(data: ImageSplits, settings: RankSettings, pairs: Pairs | None) -> tuple[Pairs, Pairs, Tensor]:
    """Return pairs to fit, pairs to choose the epoch with, and the images whose accuracy is measured."""
    count = len(data.train)
    if pairs is not None:
        if len(pairs) < 2:
            msg = f"{len(pairs)} pairs are too few to train on and to choose an epoch with"
            raise InputError(msg)
        fitted, held = split_off(len(pairs), settings.held_out, seed=settings.seed)
        used = torch.unique(torch.cat([pairs.first[fitted], pairs.second[fitted]]))
        return pairs.take(fitted), pairs.take(held), used
    items, others = split_off(count, settings.held_out, seed=settings.seed)
    wanted = settings.pairs or len(items)
    drawn = [
        draw_pairs(data.train.labels, some, number, ties=settings.ties, seed=derive_seed(settings.seed, name))
        for some, number, name in ((items, wanted, "to fit"), (others, max(len(others), LEAST_PAIRS), "held out"))
    ]
    return drawn[0], drawn[1], items


class RankCell(BaseModel):
    """One training of a sweep over rankings; its fields are the row of its result."""

    model_config = ConfigDict(frozen=True)

    fit: Fit
    marginal: Marginal
    denominators: Denominators
    ties: Ties
    batch_size: int
    pairs: int | None
    seed: int

    def row(self) -> dict[str, str]:
        """Return the configuration of the training, without its seed."""
        return {
            "loss": {"marginals": "ranks", "joint": "joint"}[self.fit],
            "marginal": self.marginal,
            "denominators": "" if self.denominators == "common" else self.denominators,
            "ties": self.ties,
            "batch": str(self.batch_size),
            "pairs": "" if self.pairs is None else str(self.pairs),
        }


class RankRunner(Runner[RankCell]):
    """Run trainings from pairs in a folder.

    Parameters
    ----------
    data
        Images; test images, if any, have true ranks.
    settings
        Settings common to all trainings.
    folder
        See :class:`Runner`.
    fits, marginals, batch_sizes
        Values to vary.
    seeds
        Number of seeds for each.
    pairs
        See :func:`train_ranks`.
    predictions
        Also write ``predictions/``, q of every image, one CSV per training.
    run
        See :class:`landprior.run.Run`.
    """

    def __init__(
        self,
        data: ImageSplits,
        settings: RankSettings,
        folder: Path,
        *,
        fits: tuple[Fit, ...] = ("marginals",),
        marginals: tuple[Marginal, ...] = ("batch",),
        batch_sizes: tuple[int, ...] = (128,),
        seeds: int = 1,
        pairs: Pairs | None = None,
        predictions: bool = False,
        run: Run = Run(),
    ) -> None:
        self._data, self._settings, self._pairs = data, settings, pairs
        self._predictions = predictions
        self._fits, self._marginals, self._batch_sizes, self._seeds = fits, marginals, batch_sizes, seeds
        self._run = run
        digest = hashlib.sha256(identify(data).encode())
        digest.update(settings.model_dump_json(exclude={"fit", "marginal", "batch_size", "seed"}).encode())
        if pairs is not None:
            for values in (pairs.first, pairs.second, pairs.relation):
                digest.update(values.numpy().tobytes())
        super().__init__(folder, digest.hexdigest()[:16])

    def cells(self) -> list[RankCell]:
        """Return the trainings, in the order in which they are run: all with the first seed first."""
        return [
            RankCell(
                fit=how,
                marginal=marginal,
                denominators=self._settings.denominators,
                ties=self._settings.ties,
                batch_size=batch,
                pairs=self._settings.pairs if self._pairs is None else len(self._pairs),
                seed=seed,
            )
            for seed in range(self._seeds)
            for batch in self._batch_sizes
            for how in self._fits
            for marginal in self._marginals
        ]

    def train(self, cell: RankCell, key: str) -> RunRecord:
        """Run one training of the sweep."""
        settings = self._settings.model_copy(
            update={
                "fit": cell.fit,
                "marginal": cell.marginal,
                "batch_size": cell.batch_size,
                "seed": cell.seed,
            }
        )
        trained = train_ranks(
            self._data,
            settings,
            pairs=self._pairs,
            work=self.work(key),
            identity=f"{self.identity}|{key}",
            run=self._run,
        )
        if self._predictions:
            write_predictions(self.folder / "predictions" / f"{key}.csv", trained, self._data)
        return RunRecord(
            row=cell.row(),
            seed=cell.seed,
            identity=self.identity,
            looks=trained.looks,
            chosen=trained.chosen,
            items=trained.items,
            seconds=round(trained.seconds, 1),
        )
