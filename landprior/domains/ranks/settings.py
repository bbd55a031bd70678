"""Settings of training from pairs. Imports no torch, so that help is fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from landprior.domains.imagery.settings import ImageSettings
from landprior.implicit.settings import Marginal  # noqa: TC001 - pydantic reads it

Ties = Literal["included", "half", "excluded"]
"""Ties in pairs with the relation greater or equal: items of the same class are as likely as any pair of classes,
half as likely (as in random pairs with ties in either order), or excluded."""

Fit = Literal["marginals", "joint"]
"""Objective: fit each q to its marginal of r, or their product to r (which tends to get stuck)."""

Denominators = Literal["common", "own"]
"""Denominator of the posterior: the mean of q over first and second items together, or separately.

Both are correct for an accurate network: the appearance of a class does not depend on its place in a pair. But if
separate, the two halves of a batch need not agree on the frequency of a class, and digits got stuck at 20 to 40 %.
"""


class RankSettings(ImageSettings):
    """Settings of a training from pairs."""

    fit: Fit = Field(
        "marginals", description="Fit each q to its marginal of r, or both together to r (for comparison)."
    )
    ties: Ties = Field(
        "included",
        description="Meaning of >= for equal ranks: as likely as other pairs of ranks, half as likely, or never drawn.",
    )
    marginal: Marginal = Field(
        "batch", description="Mean prediction that q is divided by: that of the batch, or a running mean."
    )
    denominators: Denominators = Field(
        "common",
        description="Images over which this mean is taken: all of the batch, or first and second ones separately (for "
        "comparison).",
    )
    pairs: int | None = Field(
        None, ge=1, description="Number of pairs to draw from true ranks.  [default: one per image]"
    )
    batch_size: int = Field(128, ge=1, description="Number of pairs per step.")
    epochs: int = Field(12, ge=1, description="Number of passes over the pairs.")

    @property
    def images(self) -> int:
        """Images per step."""
        return 2 * self.batch_size
