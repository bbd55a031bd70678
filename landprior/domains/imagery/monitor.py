"""Monitoring every epoch: scores without labels, accuracies with labels, and the best network so far."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from landprior.domains.imagery.network import predict_images
from landprior.domains.imagery.records import EpochScores
from landprior.errors import ModelError
from landprior.implicit.seeds import derive_seed
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from landprior.domains.imagery.feeding import Standardiser
    from landprior.domains.imagery.images import LabelledImages
    from landprior.implicit.history import History

logger = logging.getLogger(__name__)

CHOICE = "choice"
"""The score on held-out items, without true labels, by which the epoch is chosen."""

SHOWN = 5_000
"""Number of randomly drawn items on which the training accuracy is measured."""

_CONFUSION = "confusion"
"""The matrix among what a monitor returns, as lists, which checkpoints can hold."""


@dataclass(frozen=True)
class Confusion:
    """Numbers of items by true class (rows) and predicted class.

    Parameters
    ----------
    counts
        Shape (C, C), int64.
    """

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Tensor, predicted: Tensor, classes: int) -> Confusion:
        """Count items.

        Parameters
        ----------
        labels, predicted
            Class positions, shape (N,).
        classes
            C.

        Returns
        -------
        Confusion
        """
        counts = torch.bincount(labels * classes + predicted, minlength=classes**2)
        return cls(counts.reshape(classes, classes).cpu().numpy())

    def to_lists(self) -> list[list[int]]:
        """Return the rows, for files."""
        rows: list[list[int]] = self.counts.tolist()
        return rows


class EpochMonitor:
    """The monitor of a training, for :func:`landprior.implicit.training.fit`; it keeps the weights of the best epoch.

    Parameters
    ----------
    network
        The network being trained, whose weights are kept.
    standardise
        See :class:`Standardiser`.
    train, test
        Images with labels, on the device; a split with unknown labels has no accuracy.
    judge
        Function that scores a network on held-out items without true labels; includes :data:`CHOICE`, larger is better.
    confusion
        Also count the test items by true and predicted class.
    seed
        Seed of the choice of training items measured.
    path
        A ``.safetensors`` file for the best weights; None to keep them only in memory.
    identity
        Identifier of the training, so that a file of another training is ignored.
    """

    def __init__(
        self,
        network: nn.Module,
        standardise: Standardiser,
        *,
        train: LabelledImages,
        test: LabelledImages | None,
        judge: Callable[[nn.Module], Mapping[str, float]],
        confusion: bool = False,
        seed: int = 0,
        path: Path | None = None,
        identity: str = "",
    ) -> None:
        self._network, self._standardise, self._judge = network, standardise, judge
        generator = torch.Generator().manual_seed(derive_seed(seed, "looked at"))
        some = torch.randperm(len(train), generator=generator)[:SHOWN].sort().values
        self._splits = {
            name: images
            for name, images in (("train", train.take(some) if len(train) > SHOWN else train), ("test", test))
            if images is not None and images.known
        }
        self._confusion, self._path, self._identity = confusion, path, identity
        self._best = -float("inf")
        self._weights: dict[str, Tensor] = {}

    def __call__(self, network: nn.Module) -> dict[str, Any]:
        """Measure a network during training."""
        found: dict[str, Any] = dict(self._judge(network))
        for name, images in self._splits.items():
            predicted = predict_images(network, images.images, self._standardise).argmax(1)
            found[name] = 100 * float((predicted == images.labels).double().mean())
            if name == "test" and self._confusion:
                found[_CONFUSION] = Confusion.of(images.labels, predicted, len(images.classes)).to_lists()
        if found[CHOICE] > self._best:
            self._best = found[CHOICE]
            self._keep()
        return found

    def _keep(self) -> None:
        plain = torch.contiguous_format  # safetensors supports no other layout
        state = self._network.state_dict()
        self._weights = {name: values.detach().cpu().clone(memory_format=plain) for name, values in state.items()}
        if self._path is None:
            return
        from safetensors.torch import save_file

        with replacing(self._path, overwrite=True) as temporary:
            save_file(self._weights, temporary, {"identity": self._identity, CHOICE: repr(self._best)})

    def resume(self) -> None:
        """Load the best weights kept by an interrupted run of the same training.

        Raises
        ------
        ModelError
            If they are damaged.
        """
        if self._path is None or not self._path.is_file():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, "pt") as kept:
                about = kept.metadata() or {}
                if about.get("identity") != self._identity:
                    return
                self._weights = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - no mapping
                self._best = float(about[CHOICE])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            msg = f"{self._path} is damaged ({error}); delete it and the checkpoint beside it"
            raise ModelError(msg) from error

    def restore(self) -> None:
        """Restore the weights of the best epoch in the network."""
        if self._weights:
            self._network.load_state_dict(self._weights)


def read_epochs(history: History) -> tuple[list[EpochScores], int]:
    """Return the scores of each epoch, and the chosen epoch, from 1: the first with the largest choice score."""
    epochs = [
        EpochScores(
            epoch=number,
            loss=epoch.loss,
            scores={  # an older version's checkpoint has an entry for each cell of the matrix
                name: value
                for name, value in epoch.extra.items()
                if name not in ("train", "test") and not name.startswith(_CONFUSION)
            },
            train=epoch.extra.get("train"),
            test=epoch.extra.get("test"),
            confusion=epoch.extra.get(_CONFUSION),
        )
        for number, epoch in enumerate(history.epochs, 1)
    ]
    scores = [one.scores[CHOICE] for one in epochs]
    return epochs, 1 + scores.index(max(scores))
