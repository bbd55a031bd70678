"""Estimating the hours, bytes and money of a plan, from the rates measured in ``docs/results/scale.md``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from landprior.batch.plans import parse_training

if TYPE_CHECKING:
    from landprior.batch.plans import BatchPlan

TRAINING_SECONDS = 2.95e-6
"""Seconds of one CPU core per pixel of a patch and step, with 32 filters in single precision."""

MAPPING_SECONDS = 0.96e-6
"""Seconds of one CPU core per pixel of prior and map of r, with 32 filters in int8, including input and output."""

INPUT_BYTES = 3.2
"""Bytes on disk per pixel of image and coarse layers, compressed."""

OUTPUT_BYTES = 0.7
"""Bytes on disk per pixel of prior (float16), map with overviews, and model."""

CORE_HOUR_DOLLARS = 0.04
"""Dollars per hour of a virtual core on the large clouds, without discounts."""


@dataclass(frozen=True)
class Work:
    """The estimated work of a plan."""

    tiles: int
    megapixels: float
    core_hours: float
    gigabytes_in: float
    gigabytes_out: float
    dollars: float

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as a dictionary."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the estimate as a sentence."""
        return (
            f"{self.tiles} tiles, {self.megapixels:,.0f} megapixels: about {self.core_hours:,.1f} CPU core hours "
            f"(${self.dollars:,.2f}), {self.gigabytes_in:,.1f} GB in, {self.gigabytes_out:,.1f} GB out "
            "(docs/results/scale.md)"
        )


def estimate_work(plan: BatchPlan) -> Work:
    """Estimate the work of the tiles of a plan."""
    settings = parse_training(plan)
    networks = settings.members * settings.starts
    width = (settings.filters / 32) ** 2
    patches = settings.batch_size * settings.patch_size**2
    models = len(plan.find_groups()) or len(plan.tiles)
    training = models * networks * settings.training.steps * patches * TRAINING_SECONDS * width
    mapping = plan.pixels * MAPPING_SECONDS * settings.members * (4 if settings.flips else 1) * width
    hours = (training + mapping) / 3600
    return Work(
        tiles=len(plan.tiles),
        megapixels=plan.pixels / 1e6,
        core_hours=hours,
        gigabytes_in=plan.pixels * INPUT_BYTES / 1e9,
        gigabytes_out=plan.pixels * OUTPUT_BYTES / 1e9,
        dollars=hours * CORE_HOUR_DOLLARS,
    )
