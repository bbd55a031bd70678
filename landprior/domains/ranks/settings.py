"""How a network is trained from pairs. Imports no torch, so that help is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from landprior.domains.imagery.settings import ImageSettings
from landprior.implicit.settings import Marginal  # noqa: TC001 - pydantic reads it

Ties = Literal["included", "half", "excluded"]
"""Of a pair whose first is said to be the greater or equal: items of one class are as likely as any pair of classes,
half as likely (as they are if pairs are drawn at random and ties put in either order), or none."""

Fit = Literal["marginals", "joint"]
"""What is fitted: each q to its marginal of r, or their product to r (which is seen to stick)."""

Denominators = Literal["common", "own"]
"""Of the posterior: the mean of q over first and second items together, or over each by itself.

Both are fair for a network that is right: what items of a class look like does not depend on where in a pair they
stand. But with their own the two halves of a batch need not agree on how frequent a class is, and digits stuck at 20
to 40 %.
"""


class RankSettings(ImageSettings):
    """How a network is trained from pairs."""

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
        description="Images that this mean is taken over: all of the batch, or first and second ones apart (for "
        "comparison).",
    )
    pairs: int | None = Field(
        None, ge=1, description="Number of pairs to draw from true ranks.  [default: one for each image]"
    )
    batch_size: int = Field(128, ge=1, description="Number of pairs in a step.")
    epochs: int = Field(12, ge=1, description="Number of times that every pair is seen.")

    @property
    def images(self) -> int:
        """Images a step."""
        return 2 * self.batch_size
