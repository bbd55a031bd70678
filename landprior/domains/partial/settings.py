"""Settings of training from candidate sets. Imports no torch, so that help is fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from landprior.domains.imagery.settings import ImageSettings
from landprior.implicit.settings import IMPLICIT, TrainingSettings

PartialLoss = Literal["rq", "qr-kl", "nll-union", "ce"]

Denominator = Literal["batch", "running", "uniform"]
"""Denominator of the posterior: the mean of q over the batch, a running mean, or a constant."""


class PartialSettings(ImageSettings):
    """Settings of a training from candidate sets."""

    loss: PartialLoss = "rq"
    marginal: Denominator = "batch"

    def loop_for(self, epoch_steps: int) -> TrainingSettings:
        """Return the settings of the loop."""
        running = self.marginal == "running" and self.loss in IMPLICIT
        return self.loop(epoch_steps, self.loss, "running" if running else "batch")


AtLeastOne = Annotated[int, Field(ge=1)]


class Sweep(BaseModel):
    """The trainings of a sweep. Only rq and qr-kl use marginals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    losses: tuple[PartialLoss, ...] = Field(("rq",), min_length=1, description="Objective that the training minimises.")
    marginals: tuple[Denominator, ...] = Field(
        ("batch",),
        min_length=1,
        description="Mean prediction that rq and qr-kl divide by: that of the batch, a running mean, or a constant.",
    )
    negatives: tuple[AtLeastOne, ...] = Field(
        (1,), description="Number of wrong classes drawn for each image from its true label, instead of --candidates."
    )
    batch_sizes: tuple[AtLeastOne, ...] = Field((256,), min_length=1, description="Number of images per step.")
    seeds: int = Field(1, ge=1, le=1000, description="Number of trainings of each kind, with different seeds.")
    thin: dict[str, float] = Field({}, description="class -> share of its training items to keep")
    training: PartialSettings = PartialSettings()

    @model_validator(mode="after")
    def _shares(self) -> Sweep:
        for name, share in self.thin.items():
            if not 0 < share <= 1:
                msg = f"the share of {name} to keep must be above 0 and at most 1, not {share:g}"
                raise ValueError(msg)
        return self
