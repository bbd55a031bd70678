"""How a model of density classes is trained. Imports no torch, so that help is quick."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import Precision  # noqa: TC001 - pydantic reads it
from landprior.landcover.training.settings import TileSettings, make_settings

Normalise = Literal["image", "all"]


class DensitySettings(BaseModel):
    """How a model of density classes is trained. The defaults are the recipe of ``docs/weak-labels/density.md``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["rq", "qr", "qr-kl", "nll-union", "ce"] = "rq"
    steps: int = Field(4000, ge=1)
    warmup: Literal["ce", "ce-em", "none"] = "ce"
    warmup_steps: int | None = Field(None, ge=0, description="19 of 20 steps by default")
    learning_rate: float = Field(1e-3, gt=0)
    filters: int = Field(64, ge=1, description="the paper's")
    patch_size: int = Field(12, ge=11, description="side of the patches, pixels")
    batch_size: int = Field(128, ge=1, description="patches a step")
    relative: bool = Field(default=True, description="compare a block's density with its own image's")
    share: float | None = Field(
        0.1,
        gt=0,
        lt=1,
        description="of the target in an average block, where densities are related; None: as the prior",
    )
    jitter: float = Field(0.2, ge=0, le=1, description="how much brightness and colour of patches are varied")
    normalise: Normalise = Field(
        "image", description="standardise the bands of each image by its own mean and deviation, or all by common ones"
    )
    most_pixels: int = Field(64 * 2**20, ge=1, description="of all images, that lie in memory while training")
    restarts: int = Field(2, ge=0, le=8, description="trainings anew if the model is inverted")
    seed: int = Field(0, ge=0)
    precision: Precision = Field("auto", description="bf16 is several times as fast on CPUs that have it in hardware")

    def tile_settings(self, attempt: int = 0) -> TileSettings:
        """Return the settings of the core's training; each further attempt halves the steps after the warm-up."""
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
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=derive_seed(self.seed, f"attempt {attempt}") if attempt else self.seed,
            epoch_steps=max(1, min(100, self.steps)),
            settled=0.0,
        )
