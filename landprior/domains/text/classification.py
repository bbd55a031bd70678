"""Logistic regression on trigrams, trained against a prior with an implicit-posterior loss [R, text experiment]."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landprior.domains.text.settings import TextSettings
from landprior.errors import HarmWarning, InputError
from landprior.implicit.devices import make_fabric
from landprior.implicit.networks import SmoothedNetwork
from landprior.implicit.objectives import Batch
from landprior.implicit.posterior import log_posterior
from landprior.implicit.settings import IMPLICIT, LossName
from landprior.implicit.training import fit
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy import sparse

    from landprior.domains.text.documents import Documents, Tree
    from landprior.implicit.history import History


Which = Literal["q", "r"]
"""The network's probabilities, or the posterior's."""

HOLD = 0.75
"""Minimum agreement of the classes found with the prior, relative to that expected and above chance, below which they
have drifted from it."""

LEAST_INFORMATION = 0.25
"""Share of the fine classes' entropy removed by a prior below which it is weak."""


class SparseLinear(nn.Module):
    """A linear layer over sparse rows; starts with zero weights, so that q is uniform and r is the prior.

    Parameters
    ----------
    features, classes
        Input and output columns.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, classes), of a sparse tensor (N, features)."""
        logits: Tensor = torch.sparse.mm(x, self.weight) + self.bias
        return logits


class SparseRows:
    """A sparse matrix on a device, whose rows are returned as sparse tensors.

    Parameters
    ----------
    matrix
        Matrix with sorted rows without duplicates.
    device
        Device of the matrix.
    """

    def __init__(self, matrix: sparse.csr_matrix, device: torch.device | str = "cpu") -> None:
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        self._starts = torch.from_numpy(matrix.indptr.astype(np.int64)).to(device)
        self._columns = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
        self._values = torch.from_numpy(matrix.data.astype(np.float32)).to(device)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows, by position, as a sparse tensor (COO), shape (len(rows), columns)."""
        lengths = self._starts[rows + 1] - self._starts[rows]
        ends = lengths.cumsum(0)
        owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
        at = torch.arange(len(owner), device=rows.device) + (self._starts[rows] - ends + lengths)[owner]
        return torch.sparse_coo_tensor(
            torch.stack([owner, self._columns[at]]),
            self._values[at],
            (len(rows), self.shape[1]),
            is_coalesced=True,
            check_invariants=False,
        )


class DocumentFeed:
    """Return the documents in a different order every epoch; depends only on (seed, step).

    Parameters
    ----------
    rows
        The features, N rows.
    log_prior
        Log prior on the same device, (N, C).
    batch_size
        Maximum size; the batches of an epoch are as equal as possible, so that the last is not small.
    seed
        Seed of the orders.
    """

    def __init__(self, rows: SparseRows, log_prior: Tensor, *, batch_size: int, seed: int) -> None:
        self._rows, self._log_prior, self._seed = rows, log_prior, seed
        self.epoch_steps = -(-rows.shape[0] // batch_size)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        count = self._rows.shape[0]
        epoch, part = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(count)
            self._epoch, self._order = epoch, torch.from_numpy(order).to(self._log_prior.device)
        ends = [(part + more) * count // self.epoch_steps for more in (0, 1)]
        chosen = self._order[ends[0] : ends[1]]
        return Batch(inputs=self._rows.take(chosen), log_prior=self._log_prior[chosen])


@dataclass(frozen=True)
class Judgement:
    """Judgement of a training by its prior, without labels, over documents with several possible classes.

    Parameters
    ----------
    information
        See :func:`measure_information`.
    mean_prior
        Mean probability of the predicted classes in the prior.
    expected
        The same for classes drawn from the prior.
    chance
        The same for the prior's rows shuffled within each coarse label.
    """

    information: float
    mean_prior: float
    expected: float
    chance: float

    @property
    def weak(self) -> bool:
        """Whether the prior carries little information."""
        return self.information < LEAST_INFORMATION

    @property
    def loose(self) -> bool:
        """Whether the predicted classes have little relation to the prior."""
        return self.mean_prior - self.chance < HOLD * (self.expected - self.chance)


@dataclass(frozen=True)
class Classification:
    """Result of classifying documents.

    Parameters
    ----------
    log_q
        The network's log-probabilities among the classes below each document's coarse label, (N, C); minus infinity
        elsewhere.
    log_r
        Log-probabilities of the posterior of network and prior [R eq. 3], with the class marginal over all documents.
    loss
        Loss used in training.
    network
        Network that predicts log q of all classes, from the rows of :meth:`SparseRows.take`.
    history, judgement
        History and judgement of the training.
    """

    log_q: NDArray[np.float32]
    log_r: NDArray[np.float32]
    loss: LossName
    network: nn.Module
    history: History
    judgement: Judgement

    def labels(self, which: Which = "q") -> NDArray[np.int64]:
        """Return the most probable fine class of every document, (N,)."""
        return np.asarray((self.log_r if which == "r" else self.log_q).argmax(axis=1))


def classify(
    features: sparse.csr_matrix,
    prior: NDArray[np.float64],
    documents: Documents,
    tree: Tree,
    settings: TextSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> Classification:
    """Train on documents against their prior and classify them.

    Parameters
    ----------
    features
        Result of :func:`landprior.domains.text.features.trigram_features`, (N, F).
    prior
        Prior from :mod:`landprior.domains.text.prior`, (N, C); zeros stay zeros.
    documents, tree
        Coarse labels and the fine classes below them; fine labels are not used.
    settings
        See :class:`TextSettings`.
    checkpoint
        Path of the training state; the caller removes it.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    Classification
        q, r, the classes found and the judgement.

    Raises
    ------
    InputError
        If shapes or settings do not match.

    Warns
    -----
    HarmWarning
        If the prior is weak, or the network has drifted from it.
    CollapseWarning
        If (nearly) all documents get one class.
    """
    settings = settings or TextSettings()
    expected = (len(documents), len(tree.fine))
    if prior.shape != expected or features.shape[0] != len(documents):
        msg = f"features {features.shape} and prior {prior.shape} do not match {expected} (documents, fine classes)"
        raise InputError(msg)
    fabric = make_fabric("fp32", run.device)
    rows = SparseRows(features, fabric.device)
    log_prior = torch.from_numpy(prior).log().float().to(fabric.device)
    feed = DocumentFeed(rows, log_prior, batch_size=settings.batch_size, seed=settings.seed)
    network = SmoothedNetwork(SparseLinear(features.shape[1], len(tree.fine)), smoothing=0.0)
    history = fit(
        network,
        feed,
        settings.training(feed.epoch_steps, weak=measure_information(prior, documents, tree) < LEAST_INFORMATION),
        fabric=fabric,
        checkpoint=checkpoint,
        identity=_identify(features, prior, settings) if checkpoint is not None else "",
        progress=run.progress,
    )
    network.eval()
    everything = torch.arange(len(documents), device=fabric.device)
    with torch.no_grad():
        log_q = torch.cat([network(rows.take(some)) for some in torch.split(everything, 4096)])
        log_r = log_posterior(log_q, log_prior)
        allowed = torch.from_numpy(documents.allowed(tree)).to(fabric.device)
        within = torch.log_softmax(log_q.masked_fill(~allowed, -torch.inf), dim=1)
    judgement = judge(prior, within.argmax(dim=1).cpu().numpy(), documents, tree)
    _warn(judgement, settings)
    return Classification(
        log_q=within.cpu().numpy(),
        log_r=log_r.cpu().numpy(),
        loss=settings.loss,
        network=network,
        history=history,
        judgement=judgement,
    )


def judge(prior: NDArray[np.float64], found: NDArray[np.int64], documents: Documents, tree: Tree) -> Judgement:
    """Judge predicted classes by their probability in the prior.

    Parameters
    ----------
    prior
        Shape (N, C); rows sum to one.
    found
        Class positions, shape (N,).
    documents, tree
        Coarse labels and the fine classes below them.

    Returns
    -------
    Judgement
        Judgement over the documents whose coarse label has several classes.
    """
    own, means, rows = _select_ambiguous(prior, documents, tree)
    if not len(rows):
        return Judgement(information=1.0, mean_prior=1.0, expected=1.0, chance=1.0)
    each = np.arange(len(rows))
    return Judgement(
        information=measure_information(prior, documents, tree),
        mean_prior=float(own[each, found[rows]].mean()),
        expected=float((own**2).sum(axis=1).mean()),
        chance=float(means[each, found[rows]].mean()),
    )


def measure_information(prior: NDArray[np.float64], documents: Documents, tree: Tree) -> float:
    """Measure the share of the fine classes' entropy, given the coarse label, that a prior removes.

    Parameters
    ----------
    prior
        Shape (N, C); rows sum to one.
    documents, tree
        Coarse labels and the fine classes below them.

    Returns
    -------
    float
        0 for a prior that is equal for all documents of a coarse label, 1 for a certain one.
    """
    own, means, rows = _select_ambiguous(prior, documents, tree)
    if not len(rows):
        return 1.0
    left, before = (-(table * np.log(np.maximum(table, 1e-300))).sum(axis=1).mean() for table in (own, means))
    return float(1 - left / max(before, 1e-12))


def _select_ambiguous(
    prior: NDArray[np.float64], documents: Documents, tree: Tree
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the prior and its mean per coarse label, for labels with several classes, and the rows of these."""
    means = np.zeros_like(prior)
    for label in np.unique(documents.coarse):
        mine = documents.coarse == label
        means[mine] = prior[mine].mean(axis=0)
    rows = np.flatnonzero(tree.children[documents.coarse].sum(axis=1) > 1)
    return prior[rows], means[rows], rows


def _warn(judgement: Judgement, settings: TextSettings) -> None:
    if judgement.loose:
        more = "" if settings.loss not in IMPLICIT else "; try more --warmup-epochs, or --loss ce"
        warnings.warn(
            f"the network has drifted from the prior, which gives its classes {judgement.mean_prior:.2f} on average "
            f"(expected {judgement.expected:.2f}, by chance {judgement.chance:.2f}): classes may have "
            f"changed places{more}",
            HarmWarning,
            stacklevel=3,
        )
    if judgement.weak:
        warnings.warn(
            f"the prior is weak: it removes {judgement.information:.0%} of the fine classes' entropy; without a "
            "warm-up rq can fail with such priors. Compare with --loss ce, and check some documents",
            HarmWarning,
            stacklevel=3,
        )


def _identify(features: sparse.csr_matrix, prior: NDArray[np.float64], settings: TextSettings) -> str:
    content = hashlib.sha256(settings.model_dump_json().encode())
    for values in (features.indptr, features.indices, features.data, prior):
        content.update(np.ascontiguousarray(values).tobytes())
    return content.hexdigest()
