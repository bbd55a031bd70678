"""Settings of training on density classes. Imports no torch, so that help is fast."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import WIDEST_FIELD, Precision
from landprior.landcover.training.settings import TileSettings, make_settings

Normalise = Literal["image", "all"]


class DensitySettings(BaseModel):
    """Settings of training on density classes. The defaults are the recipe of ``docs/weak-labels/density.md``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["rq", "qr", "qr-kl", "nll-union", "ce"] = Field(
        "rq", description="Objective that the training minimises."
    )
    steps: int = Field(4000, ge=1, description="Number of optimiser steps.")
    warmup: Literal["ce", "ce-em", "none"] = Field("ce", description="Kind of warm-up before rq or qr.")
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps of the warm-up before rq or qr; included in the steps.  [default: 19/20 of the steps]",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of the optimiser.")
    filters: int = Field(64, ge=1, description="Channels of the network's inner layers; fewer are faster.")
    patch_size: int = Field(12, ge=11, description="Side of the training patches, pixels.")
    batch_size: int = Field(128, ge=1, description="Number of patches in a step.")
    relative: bool = Field(
        default=True,
        description="Compare a block's density with that of its own image, or use it as it is.  [default: relative]",
    )
    share: float | None = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the target in an average block, for relative densities.  [default: 0.1; with your own "
        "prior, its mean]",
    )
    jitter: float = Field(
        0.2, ge=0, le=1, description="Variation of brightness and colour of patches, in standard deviations."
    )
    normalise: Normalise = Field(
        "image",
        description="Standardise the bands of each image by its own mean and deviation, or all images by common ones.",
    )
    most_pixels: int = Field(64 * 2**20, ge=1, description="pixels of all images in memory during training")
    restarts: int = Field(2, ge=0, le=8, description="maximum number of restarts if the model is inverted")
    seed: int = Field(0, ge=0, description="Random seed; the same seed gives the same result.")
    precision: Precision = Field(
        "auto",
        description="Arithmetic of the training; auto is bf16 on CUDA, else fp32. Some CPUs also have fast bf16.",
    )

    def tile_settings(self, attempt: int = 0) -> TileSettings:
        """Return the settings of the core's training; each additional attempt halves the steps after the warm-up."""
        warm = self.steps * 19 // 20 if self.warmup_steps is None else self.warmup_steps
        warmup = self.warmup
        if attempt:
            warm, warmup = self.steps - math.ceil((self.steps - warm) / 2**attempt), "ce"
        return make_settings(
            loss=self.loss,
            steps=self.steps,
            warmup=warmup,
            warmup_steps=warm if warmup != "none" else 0,
            learning_rate=self.learning_rate,
            filters=self.filters,
            receptive_field=WIDEST_FIELD,
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=derive_seed(self.seed, f"attempt {attempt}") if attempt else self.seed,
            epoch_steps=max(1, min(100, self.steps)),
            settled=0.0,
        )
