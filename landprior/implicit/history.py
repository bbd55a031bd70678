"""History of a training: metrics of each epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Epoch:
    """Metrics of one epoch.

    ``loss`` is the mean over the epoch's steps. The others are of its last batch: mean entropy of q
    in nats, share of items where q and the prior have the same most probable class, and the share of
    the class q predicts most. ``extra`` is what the monitor returned.
    """

    step: int
    loss: float
    entropy: float
    agreement: float
    top_share: float
    learning_rate: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class History:
    """The history of a run."""

    epochs: list[Epoch] = field(default_factory=list)
    stopped: str = "all steps done"

    def summary(self) -> dict[str, Any]:
        """Return a short record for a model's metadata."""
        last = self.epochs[-1] if self.epochs else None
        return {"steps": last.step if last else 0, "stopped": self.stopped} | (
            {"loss": last.loss, "entropy": last.entropy, "agreement": last.agreement} if last else {}
        )
