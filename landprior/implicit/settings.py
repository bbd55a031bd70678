"""Settings of the training loop, and the names they use. Imports no torch, so that help is fast."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LossName = Literal["qr", "qr-kl", "rq", "ce", "ce-argmax", "squared-error", "nll-union"]
"""Names of the losses, as on the command line."""

OwnName = Literal["sr", "em", "epitome"]
"""Names of objectives that need more than log q and log prior; they are passed to :func:`fit`."""

IMPLICIT = frozenset[str]({"qr", "qr-kl", "rq"})
"""Names of the losses based on the implicit posterior; for these, r is the natural map."""

Warmup = Literal["ce-em", "ce", "em", "none"]
"""Kind of warm-up: fit the prior (plain cross-entropy), the current posterior (EM), or each for half of the
warm-up."""

Schedule = Literal["cosine", "plateau", "constant"]

Marginal = Literal["batch", "running"]

MEMORY = 4096.0
"""Default memory of a running marginal, in items: larger batches are their own marginal."""

WARMED = frozenset[str]({*IMPLICIT, "sr"})
"""Objectives that use a warm-up."""

Precision = Literal["auto", "fp32", "bf16"]

Compile = Literal["auto", "on", "off"]

WIDEST_FIELD = 11
"""Side of the paper's receptive field in pixels, the largest that the FCN can have [R E.1.3]."""

OUTPUT_SMOOTHING = 1e-4
"""Constant added to every class probability of the land-cover network before normalising [R E.1.3]."""

SUPERVISED_SMOOTHING = 1e-8
"""The same for supervised runs."""

PATCH = 7
"""Side of a patch, pixels, as in the paper."""

SIZE = 199
"""Side of the torus, as in the paper."""

VARIANCE_FLOOR = 1e-2
"""Constant added to every variance, in units of the data: otherwise a component with one patch shrinks to a spike."""


class TrainingSettings(BaseModel):
    """Settings of the training loop. The defaults are the recipe of ``docs/results/accuracy.md``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossName | OwnName = Field("qr", description="Objective that the training minimises.")
    steps: int = Field(600, ge=1, description="Number of optimiser steps.")
    warmup: Warmup = Field("ce-em", description="Kind of warm-up before qr, qr-kl, rq or sr.")
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps of the warm-up before qr, qr-kl, rq or sr; included in the steps.  "
        "[default: a third; paper: none]",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate of the optimiser.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of the optimiser.")
    marginal: Marginal = Field(
        "batch",
        description="Mean prediction that qr and rq divide by: that of the batch, or a running one, for small batches.",
    )
    memory: float = Field(MEMORY, gt=0, description="Approximate number of items remembered by a running mean.")
    schedule: Schedule = "cosine"
    ramp_steps: int = Field(50, ge=0, description="steps over which the learning rate rises (cosine)")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    epoch_steps: int = Field(25, ge=1, description="steps between two looks at the metrics")
    plateau_epochs: int = Field(4, ge=1, description="epochs without progress before the rate is cut (plateau)")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without progress of the loss")
    seed: int = Field(0, ge=0, description="Random seed; the same seed gives the same result.")
    precision: Precision = Field(
        "auto",
        description="Arithmetic of the training; auto is bf16 on CUDA, fp32 on a CPU; some CPUs also have fast bf16.",
    )
    compile: Compile = Field(
        "auto", description="compile the network before training: auto does on CUDA, if the run is long enough"
    )

    @model_validator(mode="after")
    def _leaves_steps_for_the_loss(self) -> TrainingSettings:
        if self.warm_end >= self.steps:
            msg = f"warmup_steps ({self.warm_end}) must be fewer than steps ({self.steps}), or the loss is never used"
            raise ValueError(msg)
        return self

    @property
    def warm_end(self) -> int:
        """The step at which the warm-up ends; 0 without a warm-up."""
        if self.loss not in WARMED or self.warmup == "none":
            return 0
        return self.steps // 3 if self.warmup_steps is None else self.warmup_steps
