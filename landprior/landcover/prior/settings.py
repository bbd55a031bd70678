"""Settings of the prior: the widths of its filters."""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)


WIDEST = 5000.0
"""Metres that a filter may be wide; NLCD's cells are 30 m, and wider ones would take gigabytes."""


class PriorSettings(BaseModel):
    """Widths of the prior's filters, in metres on the ground; the defaults are the paper's pixels at 1 m."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blur_sigma: float = Field(31.0, gt=0, le=WIDEST, description="Standard deviation of the blur of NLCD, metres.")
    blur_radius: float = Field(50.0, ge=0, le=WIDEST, description="Distance at which the blur is cut off, metres.")
    roads_width: float = Field(9.0, ge=0, le=WIDEST)
    buildings_width: float = Field(9.0, ge=0, le=WIDEST)
    water_width: float = Field(5.0, ge=0, le=WIDEST)
    waterways_widening: float = Field(5.0, ge=0, le=WIDEST)
