"""Settings of clustering. Imports no torch, so that help is fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from landprior.implicit.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

NEAR, FAR = 5, 50
"""Sides of the neighbourhoods in pixels, the paper's. Similarity on both scales counts: with the small one alone,
clusters follow smoothness."""

START = (0.5, 0.5)
"""Initial alpha and beta."""

BALANCE = 1.0
"""Gamma."""

MOST_CLUSTERS = 64

GAIN = 2.2
"""Factor by which the random weights are larger than usual: predictions then differ between pixels from the start, all
clusters are used, and the result is not determined by brightness alone."""


def _training() -> TrainingSettings:
    return TrainingSettings(loss="qr", steps=1000, warmup="none", learning_rate=1e-3)


class ClusterSettings(BaseModel):
    """Settings of clustering an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: int = Field(12, ge=2, le=MOST_CLUSTERS, description="Number of clusters.")
    training: TrainingSettings = Field(default_factory=_training)
    near: int = Field(NEAR, ge=1, description="Side of the small neighbourhood, pixels.")
    far: int = Field(FAR, ge=1, description="Side of the large neighbourhood, pixels.")
    alpha: float = Field(START[0], description="Weight of similarity to the small neighbourhood.")
    beta: float = Field(
        START[1], description="Weight of similarity to the large neighbourhood; negative values favour contrast."
    )
    gamma: float = Field(BALANCE, ge=0, description="Strength with which rare clusters are favoured.")
    every: int = Field(0, ge=0, description="Steps between two estimates of alpha and beta; 0 keeps them fixed.")
    jitter: float = Field(0.0, ge=0, description="Variation of brightness between two views of a patch.")
    tint: float = Field(
        0.25,
        ge=0,
        description="Variation of colour between two views of a patch, as a share of the image's own.",
    )
    filters: int = Field(16, ge=1, description="Channels of the network's inner layers; fewer are faster.")
    patch_size: int = Field(24, ge=11, description="side of the patches, pixels")
    batch_size: int = Field(128, ge=1, description="patches per step, each twice if views differ")
    restarts: int = Field(2, ge=0, description="Restarts with another seed if the clusters degenerate, at most.")
    gain: float = Field(GAIN, gt=0, description="scale of the random weights")

    @classmethod
    def of(cls, training: Mapping[str, Any], **changes: Any) -> ClusterSettings:  # noqa: ANN401 - the fields
        """Return the defaults with changes to fields of the loop (None for no change) and of these settings."""
        given = {name: value for name, value in training.items() if value is not None}
        return cls(training=TrainingSettings(**(_training().model_dump() | given)), **changes)

    @property
    def views(self) -> int:
        """Number of views of each patch."""
        return 2 if self.jitter or self.tint else 1
