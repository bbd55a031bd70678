"""Settings of the prior: the widths of its filters, and how a learned one is trained. Imports no torch."""

from __future__ import annotations

import logging
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from landprior.implicit.settings import SUPERVISED_SMOOTHING, TrainingSettings
from landprior.landcover.training.settings import TileSettings

logger = logging.getLogger(__name__)


WIDEST = 5000.0
"""Maximum width of a filter in metres; NLCD's cells are 30 m, and wider ones would take gigabytes."""


Fusion: TypeAlias = Literal["added", "conserving"]


class PriorSettings(BaseModel):
    """How layers join NLCD, and the widths of the filters in metres; the defaults are the paper's pixels at 1 m."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blur_sigma: float = Field(31.0, gt=0, le=WIDEST, description="Standard deviation of the blur of NLCD, metres.")
    blur_radius: float = Field(50.0, ge=0, le=WIDEST, description="Distance at which the blur is cut off, metres.")
    roads_width: float = Field(9.0, ge=0, le=WIDEST)
    buildings_width: float = Field(9.0, ge=0, le=WIDEST)
    water_width: float = Field(5.0, ge=0, le=WIDEST)
    waterways_widening: float = Field(5.0, ge=0, le=WIDEST)
    fusion: Fusion = Field(
        "added",
        description="Roads, buildings and water are added to NLCD's shares, or placed within them (conserving), "
        "which keeps the areas of whole places.",
    )
    conserving_roads_width: float = Field(6.0, ge=0, le=WIDEST)
    conserving_buildings_width: float = Field(4.0, ge=0, le=WIDEST)

    def describe(self) -> dict[str, Any]:
        """Return what the values of a prior depend on: what is added is described as version 0.1 did."""
        conserving = {"fusion", "conserving_roads_width", "conserving_buildings_width"}
        return self.model_dump(exclude=conserving if self.fusion == "added" else {"roads_width", "buildings_width"})


def prior_settings(**changes: Any) -> TileSettings:  # noqa: ANN401 - the fields
    """Return the settings a prior is learned with: 128 filters, cross-entropy, a short run.

    The layers hold little information, so a few hundred steps are enough; more would overfit the tiles.
    """
    training = TrainingSettings(**({"loss": "ce", "steps": 300, "learning_rate": 1e-3} | changes.pop("training", {})))
    return TileSettings(
        **{"training": training, "filters": 128, "smoothing": SUPERVISED_SMOOTHING, "settled": 0.0} | changes
    )
