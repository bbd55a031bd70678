"""How the methods of label super-resolution are run. Imports no torch, so that help is quick."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from landprior.implicit.settings import OUTPUT_SMOOTHING, PATCH, SIZE, VARIANCE_FLOOR, TrainingSettings

CriterionName = Literal["match", "kl", "interval", "l1", "l2"]


class CountSettings(BaseModel):
    """How classes are counted in cells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    criterion: CriterionName = Field(
        "match", description="Criterion of --method sr, by which counts of classes are compared."
    )
    least: float = Field(0.25, ge=0, le=1, description="share of a cell that must lie in a patch for it to count")
    weight: float = Field(
        0.025, gt=0, le=1, description="of the cells where there are labels too; the labels have the rest"
    )


class EmSettings(BaseModel):
    """How expectation-maximisation goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(4, ge=2, description="fits, the first to the prior; the steps are shared among them")
    block: int = Field(5, ge=1, description="side in pixels of the blocks over which posteriors are averaged")


class EpitomeSettings(BaseModel):
    """How an epitome is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(SIZE, ge=1, description="Side of the epitome, pixels, for --method epitome.")
    patch: int = Field(PATCH, ge=1, description="side of the patches, pixels; odd")
    epitomes: int = Field(1, ge=1, le=64, description="epitomes that are mixed")
    steps: int = Field(2000, ge=1, description="optimiser steps")
    patches: int = Field(256, ge=1, description="patches that a step learns from")
    learning_rate: float = Field(3e-2, gt=0, description="of Adam, in standard deviations of the image")
    promotion: bool = Field(default=True, description="take used positions out of the mixture until most were used")
    promotion_share: float = Field(0.95, gt=0, le=1, description="share of used positions at which counters reset")
    promotion_window: int | None = Field(
        None, ge=1, description="side of the square of positions used with a position, odd; by default the patch's"
    )
    diversify: bool = Field(default=False, description="learn from the quarter of the patches explained worst")
    variance: float = Field(1.0, gt=0, description="that all start with; the image is standardised")
    variance_floor: float = Field(VARIANCE_FLOOR, ge=0, description="added to every variance")
    shrink: int = Field(1, ge=1, description="average the image over squares of so many pixels a side first")
    embedded: int = Field(20_000, ge=1, description="patches whose codes or labels are put on the epitome, about")
    iterations: int = Field(2, ge=1, description="of the expectation-maximisation that makes labels of codes")
    smoothing: float = Field(OUTPUT_SMOOTHING, ge=0, description="added to every class probability of the map")
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
        """What the loop is given."""
        return TrainingSettings(
            loss="epitome",
            steps=self.steps,
            warmup="none",
            learning_rate=self.learning_rate,
            weight_decay=0.0,  # it would pull all means to the mean
            seed=self.seed,
            precision="fp32",
            compile="off",
        )

    @property
    def shape(self) -> dict[str, Any]:
        """What the epitome is built from."""
        return {
            "size": self.size,
            "patch": self.patch,
            "epitomes": self.epitomes,
            "variance_floor": self.variance_floor,
        }


MethodName = Literal["sr", "em", "epitome"]
"""Methods that are more than a loss."""


class MethodSettings(BaseModel):
    """A method with its own settings, those of the training aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MethodName
    counts: CountSettings = CountSettings()
    rounds: EmSettings = EmSettings()
    epitome: EpitomeSettings = EpitomeSettings()

    @property
    def counts_cells(self) -> bool:
        """Whether it needs NLCD and what its codes mean, besides the prior."""
        return self.name != "em"


class SelfEpitomeSettings(BaseModel):
    """How one tile is super-resolved by its own patches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(PATCH, ge=1, description="side of the patches, pixels; odd")
    variance: float = Field(0.01, gt=0, description="of every value of a patch, where the image's range is 0 to 1")
    samples: float = Field(0.05, gt=0, le=1, description="patches that are matched, per pixel of the tile")
    shrink: int = Field(
        1, ge=1, description="Average the image over N x N pixels first, which takes 1/N^4 of the time."
    )
    own_match: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of a patch's match with itself, the others have the rest; none: what its posterior says",
    )
    own_code: float = Field(0.01, ge=0, description="weight of a pixel's own code; a matching patch's is its posterior")
    passes: int = Field(2, ge=0, description="times that codes travel on from match to match")
    iterations: int = Field(3, ge=1, description="of the expectation-maximisation")
    smoothing: int = Field(2, ge=0, description="times that class probabilities are averaged over matches at the end")
    seed: int = Field(0, ge=0, description="Random seed; the same seed gives the same map.")

    @model_validator(mode="after")
    def _has_a_centre(self) -> SelfEpitomeSettings:
        if self.patch % 2 == 0:
            msg = f"patch ({self.patch}) must be odd"
            raise ValueError(msg)
        return self

    @classmethod
    def published(cls, **changes: Any) -> SelfEpitomeSettings:  # noqa: ANN401 - the fields
        """Return the paper's own procedure: patches match themselves, EM to its optimum, codes do not travel."""
        fields = {"own_match": None, "passes": 0, "iterations": 200, "smoothing": 0, "shrink": 2}
        return cls(**fields | changes)
