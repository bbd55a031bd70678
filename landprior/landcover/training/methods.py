"""Interface of training methods other than fitting the prior with a loss."""

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
    """A way to train a tile's model other than a loss against its prior (:mod:`landprior.superres`)."""

    @property
    def description(self) -> dict[str, Any]:
        """Everything its models depend on, apart from the files and training settings."""

    @property
    def counts_cells(self) -> bool:
        """Whether the method needs NLCD."""

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
            The model as written to the file.
        """
