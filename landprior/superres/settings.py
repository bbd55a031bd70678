"""Settings of the methods of label super-resolution. Imports no torch, so that help is fast."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from landprior.implicit.settings import OUTPUT_SMOOTHING, PATCH, SIZE, VARIANCE_FLOOR, TrainingSettings

CriterionName = Literal["match", "kl", "interval", "l1", "l2"]


class CountSettings(BaseModel):
    """Settings of counting classes in cells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    criterion: CriterionName = Field("match", description="Criterion of --method sr for comparing class counts.")
    least: float = Field(0.25, ge=0, le=1, description="minimum share of a cell inside a patch for it to be used")
    weight: float = Field(
        0.025, gt=0, le=1, description="weight of the cells if there are also labels; the labels have the rest"
    )


class EmSettings(BaseModel):
    """Settings of expectation-maximisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(4, ge=2, description="number of fits, the first to the prior; the steps are divided among them")
    block: int = Field(5, ge=1, description="side in pixels of the blocks over which posteriors are averaged")


class EpitomeSettings(BaseModel):
    """Settings of training an epitome."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(SIZE, ge=1, description="Side of the epitome, pixels, for --method epitome.")
    patch: int = Field(PATCH, ge=1, description="side of the patches, pixels; odd")
    epitomes: int = Field(1, ge=1, le=64, description="number of epitomes in the mixture")
    steps: int = Field(2000, ge=1, description="optimiser steps")
    patches: int = Field(256, ge=1, description="patches per step")
    learning_rate: float = Field(3e-2, gt=0, description="learning rate of Adam, in standard deviations of the image")
    promotion: bool = Field(default=True, description="exclude used positions until most have been used")
    promotion_share: float = Field(0.95, gt=0, le=1, description="share of used positions at which counters reset")
    promotion_window: int | None = Field(
        None, ge=1, description="side of the square counted as used around a position, odd; by default the patch's"
    )
    diversify: bool = Field(default=False, description="learn from the quarter of the patches explained worst")
    variance: float = Field(1.0, gt=0, description="initial variance; the image is standardised")
    variance_floor: float = Field(VARIANCE_FLOOR, ge=0, description="constant added to every variance")
    shrink: int = Field(1, ge=1, description="side of the squares over which the image is averaged first, pixels")
    embedded: int = Field(20_000, ge=1, description="approximate number of patches used to label the epitome")
    iterations: int = Field(2, ge=1, description="iterations of expectation-maximisation from codes to labels")
    smoothing: float = Field(OUTPUT_SMOOTHING, ge=0, description="constant added to every class probability of the map")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> EpitomeSettings:
        if self.patch % 2 == 0 or self.patch > self.size:
            msg = f"patch ({self.patch}) must be odd and at most size ({self.size})"
            raise ValueError(msg)
        if self.window % 2 == 0 or self.window > self.size:
            msg = f"promotion_window ({self.window}) must be odd and at most size ({self.size})"
            raise ValueError(msg)
        if self.variance_floor >= self.variance:
            msg = f"variance ({self.variance}) must be above variance_floor ({self.variance_floor})"
            raise ValueError(msg)
        return self

    @property
    def window(self) -> int:
        """The promotion window in use."""
        return self.promotion_window or self.patch

    @property
    def training(self) -> TrainingSettings:
        """Settings for the training loop."""
        return TrainingSettings(
            loss="epitome",
            steps=self.steps,
            warmup="none",
            learning_rate=self.learning_rate,
            weight_decay=0.0,  # it would pull all means towards the mean
            seed=self.seed,
            precision="fp32",
            compile="off",
        )

    @property
    def shape(self) -> dict[str, Any]:
        """Shape of the epitome."""
        return {
            "size": self.size,
            "patch": self.patch,
            "epitomes": self.epitomes,
            "variance_floor": self.variance_floor,
        }


MethodName = Literal["sr", "em", "epitome"]
"""Names of the methods that need more than a loss."""


class MethodSettings(BaseModel):
    """A method with its own settings, apart from those of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MethodName
    counts: CountSettings = CountSettings()
    rounds: EmSettings = EmSettings()
    epitome: EpitomeSettings = EpitomeSettings()

    @property
    def counts_cells(self) -> bool:
        """Whether the method needs NLCD and a matrix besides the prior."""
        return self.name != "em"


class SelfEpitomeSettings(BaseModel):
    """Settings of super-resolving a tile with its own patches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(PATCH, ge=1, description="side of the patches, pixels; odd")
    variance: float = Field(0.01, gt=0, description="variance of every value of a patch, for images scaled to 0 to 1")
    samples: float = Field(0.05, gt=0, le=1, description="number of patches to match, per pixel of the tile")
    shrink: int = Field(
        1, ge=1, description="Average the image over N x N pixels first, which takes 1/N^4 of the time."
    )
    own_match: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of a patch's match with itself; the others have the rest; none: as in its posterior",
    )
    own_code: float = Field(0.01, ge=0, description="weight of a pixel's own code; a matching patch's is its posterior")
    passes: int = Field(2, ge=0, description="number of times codes are passed on from match to match")
    iterations: int = Field(3, ge=1, description="iterations of the expectation-maximisation")
    smoothing: int = Field(2, ge=0, description="number of times class probabilities are finally averaged over matches")
    seed: int = Field(0, ge=0, description="Random seed; the same seed gives the same map.")

    @model_validator(mode="after")
    def _has_a_centre(self) -> SelfEpitomeSettings:
        if self.patch % 2 == 0:
            msg = f"patch ({self.patch}) must be odd"
            raise ValueError(msg)
        return self

    @classmethod
    def published(cls, **changes: Any) -> SelfEpitomeSettings:  # noqa: ANN401 - the fields
        """Return the paper's own procedure: patches match themselves, EM to convergence, no passing on."""
        fields = {"own_match": None, "passes": 0, "iterations": 200, "smoothing": 0, "shrink": 2}
        return cls(**fields | changes)
