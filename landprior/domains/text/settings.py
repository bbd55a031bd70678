"""Settings of classifying documents. Imports no torch, so that help is fast."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from landprior.errors import InputError
from landprior.implicit.settings import IMPLICIT, MEMORY, LossName, Marginal, TrainingSettings

WEAK_WARMUP = 3
"""Epochs of warm-up, out of ten, for a weak prior."""


class TextSettings(BaseModel):
    """Settings of classifying documents; ``docs/weak-labels/text.md`` explains the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossName = Field("rq", description="Objective that the training minimises.")
    epochs: int = Field(10, ge=1, description="Number of passes over the documents.")
    warmup_epochs: int | None = Field(
        None,
        ge=0,
        description="Epochs of cross-entropy with the prior before qr, qr-kl or rq; included in the epochs."
        "  [default: 3 of 10 if the prior is weak, else 0]",
    )
    batch_size: int = Field(256, ge=1, description="Number of documents per step.")
    learning_rate: float = Field(2e-2, gt=0, description="Learning rate of the optimiser (AdamW).")
    weight_decay: float = Field(1e-2, ge=0)
    marginal: Marginal = Field(
        "batch",
        description="Mean prediction that qr and rq divide by: that of the batch, or a running one, for small batches.",
    )
    memory: float = Field(MEMORY, gt=0, description="number of documents remembered by a running marginal")
    seed: int = Field(0, ge=0, description="Random seed; the same seed gives the same result.")

    def warm(self, *, weak: bool) -> int:
        """Return the epochs of warm-up for a weak or other prior."""
        if self.loss not in IMPLICIT:
            return 0
        if self.warmup_epochs is None:
            return WEAK_WARMUP * self.epochs // 10 if weak else 0
        return self.warmup_epochs

    def training(self, epoch_steps: int, *, weak: bool = False) -> TrainingSettings:
        """Return the settings of the loop.

        Parameters
        ----------
        epoch_steps
            Steps per epoch.
        weak
            Whether the prior is weak (:attr:`Judgement.weak`).

        Returns
        -------
        TrainingSettings
            Settings with the warm-up that the prior needs.

        Raises
        ------
        InputError
            If the warm-up leaves no epoch for the loss.
        """
        warm = self.warm(weak=weak)
        if warm >= self.epochs:
            msg = f"{warm} epochs of warm-up leave no epochs of {self.epochs} for {self.loss}"
            raise InputError(msg)
        return TrainingSettings(
            loss=self.loss,
            steps=self.epochs * epoch_steps,
            warmup="ce" if warm else "none",
            warmup_steps=warm * epoch_steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            marginal=self.marginal,
            memory=self.memory,
            ramp_steps=0,
            epoch_steps=epoch_steps,
            seed=self.seed,
            precision="fp32",  # sparse products support no other
            compile="off",
        )
