"""How sure a map is of its pixels, as small numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

CONFIDENCE_LEVELS = 250
"""Confidence 0..1 is stored as 0..250 with the scale in the file; 255 is no data."""

CONFIDENCE_NODATA = 255


def measure_confidence(log_p: Tensor) -> Tensor:
    """Return largest probability and normalised entropy as levels, uint8, (2, H, W), from log p, (C, H, W)."""
    shares = log_p.exp().float()
    entropy = -(shares * log_p.clamp_min(-100)).sum(0) / math.log(len(shares))
    return torch.stack([shares.amax(0), entropy.clamp(0, 1)]).mul(CONFIDENCE_LEVELS).round().to(torch.uint8)
