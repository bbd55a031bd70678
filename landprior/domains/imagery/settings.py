"""Settings of training on small images. Imports no torch, so that help is fast."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from landprior.implicit.settings import LossName, Marginal, Precision, Schedule, TrainingSettings

FILTERS = 34
"""Channels of each convolution: 33,024 parameters for digits of 28 x 28 px, 33,636 for photographs of 32 x 32."""

REMEMBERED = 256.0
"""Memory of a running marginal in images: as many as in a batch that does not need one. A longer memory lags behind a
fast-changing network, and RQ then diverges (``docs/weak-labels/partial-labels.md``)."""

RATE = 2e-3
"""Learning rate for batches of :data:`RATED` images; for smaller ones it scales with the square root of their size, as
their gradients are noisier."""

RATED = 256


class ImageSettings(BaseModel):
    """Settings common to all trainings on images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(256, ge=1, description="Number of images per step.")
    epochs: int = Field(16, ge=1, description="Number of passes over the images.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the optimiser.  [default: 0.002 for 256 images per step, less for fewer by the "
        "square root]",
    )
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Schedule = Field("cosine", description="Schedule of the learning rate.")
    memory: float = Field(REMEMBERED, gt=0, description="Approximate number of items remembered by a running mean.")
    filters: int = Field(FILTERS, ge=1, description="Channels of the network's layers; fewer are faster.")
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the training items that is held out to choose the epoch."
    )
    seed: int = Field(0, ge=0)
    precision: Precision = "auto"

    @property
    def images(self) -> int:
        """Images per step."""
        return self.batch_size

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or RATE * min(1.0, math.sqrt(self.images / RATED))

    def loop(self, epoch_steps: int, loss: LossName, marginal: Marginal = "batch") -> TrainingSettings:
        """Return the settings of the loop.

        Parameters
        ----------
        epoch_steps
            Steps per epoch.
        loss
            Loss to minimise.
        marginal
            Marginal: of the batch, or running.

        Returns
        -------
        TrainingSettings
            Settings without a warm-up.
        """
        return TrainingSettings(
            loss=loss,
            steps=self.epochs * epoch_steps,
            warmup="none",
            learning_rate=self.rate,
            weight_decay=self.weight_decay,
            marginal=marginal,
            memory=self.memory,
            schedule=self.schedule,
            epoch_steps=epoch_steps,
            seed=self.seed,
            precision=self.precision,
        )
