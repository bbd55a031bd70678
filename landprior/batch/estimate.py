"""What a plan will take: hours, bytes and money, from the measured rates of ``docs/results/scale.md``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from landprior.batch.plans import parse_training

if TYPE_CHECKING:
    from landprior.batch.plans import BatchPlan

TRAINING_SECONDS = 2.95e-6
"""Of one CPU core, for one pixel of a patch in one step, with 32 filters in single precision."""

MAPPING_SECONDS = 0.96e-6
"""Of one CPU core, for one pixel of prior and map of r with 32 filters in int8, reading and writing included."""

INPUT_BYTES = 3.2
"""On disk per pixel: image and coarse layers, compressed."""

OUTPUT_BYTES = 0.7
"""On disk per pixel: prior (float16), map with overviews, model."""

CORE_HOUR_DOLLARS = 0.04
"""A virtual core on the large clouds, without discounts."""


@dataclass(frozen=True)
class Work:
    """An estimate."""

    tiles: int
    megapixels: float
    core_hours: float
    gigabytes_in: float
    gigabytes_out: float
    dollars: float

    def to_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)

    def to_text(self) -> str:
        """Return it in words."""
        return (
            f"{self.tiles} tiles, {self.megapixels:,.0f} megapixels: about {self.core_hours:,.1f} CPU core hours "
            f"(${self.dollars:,.2f}), {self.gigabytes_in:,.1f} GB in, {self.gigabytes_out:,.1f} GB out "
            "(docs/results/scale.md)"
        )


def estimate_work(plan: BatchPlan) -> Work:
    """Estimate what the tiles of a plan take."""
    settings = parse_training(plan)
    networks = settings.members * settings.starts
    width = (settings.filters / 32) ** 2
    patches = settings.batch_size * settings.patch_size**2
    training = len(plan.tiles) * networks * settings.training.steps * patches * TRAINING_SECONDS * width
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
