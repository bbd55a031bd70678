"""Other ways to a model than training by a loss against the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.landcover.training.files import TrainingTile
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings
    from landprior.run import Run


class Method(Protocol):
    """What trains a tile's model in another way than by a loss against its prior (:mod:`landprior.superres`)."""

    @property
    def description(self) -> dict[str, Any]:
        """Everything its models depend on besides the files and the training settings."""

    @property
    def counts_cells(self) -> bool:
        """Whether it needs NLCD."""

    def train(self, tiles: Sequence[TrainingTile], output: Path, settings: TileSettings, *, run: Run) -> LandcoverModel:
        """Train and write a model.

        Parameters
        ----------
        tiles
            Files to train on.
        output
            The model to write.
        settings
            Schedule and network.
        run
            See :class:`landprior.run.Run`.

        Returns
        -------
        LandcoverModel
            As it is in the file.
        """
