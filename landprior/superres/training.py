"""Training by label super-resolution on files, for ``landprior train --method sr|em|epitome``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError
from landprior.landcover.prior.cells import read_cells
from landprior.landcover.prior.cooccurrence import Cooccurrence, load_cooccurrence
from landprior.landcover.training.ensemble import clear_checkpoint
from landprior.landcover.training.model import save_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.tile_sets import order_tiles
from landprior.landcover.training.tiles import Tile, read_tile
from landprior.raster.endings import check_named_output
from landprior.raster.locks import claiming
from landprior.raster.outputs import checkpoint_path
from landprior.run import Run
from landprior.superres.counting import train_by_counts
from landprior.superres.epitome_model import train_epitome_model
from landprior.superres.maximisation import train_by_em
from landprior.superres.tiles import read_coarse_tile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.training.files import TrainingTile
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.scheme import ClassScheme
    from landprior.superres.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class SuperresMethod:
    """A method with its matrix, for the pipeline of a workspace."""

    method: MethodSettings
    matrix: Cooccurrence | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Everything its models depend on, apart from the files and training settings."""
        known = self.matrix
        shares = {} if known is None else {int(code): row.tolist() for code, row in known.probabilities.items()}
        spread = {} if known is None else {int(code): row.tolist() for code, row in known.spread.items()}
        return {**self.method.model_dump(mode="json"), "shares": shares, "spread": spread}

    @property
    def counts_cells(self) -> bool:
        """Whether the method needs NLCD."""
        return self.method.counts_cells

    def train(self, tiles: Sequence[TrainingTile], output: Path, settings: TileSettings, *, run: Run) -> LandcoverModel:
        """Train and write a model.

        Parameters
        ----------
        tiles, output, settings, run
            See :func:`train_superres`.

        Returns
        -------
        LandcoverModel
            The model as written to the file.
        """
        return train_superres(self.method, tiles, output, settings, matrix=self.matrix, run=run)


def train_superres(
    method: MethodSettings,
    tiles: Sequence[TrainingTile],
    output: str | Path,
    settings: TileSettings | None = None,
    *,
    matrix: Cooccurrence | None = None,
    label_map: Mapping[int, int] | None = None,
    scheme: ClassScheme | None = None,
    run: Run = Run(),
) -> LandcoverModel:
    """Train on files with a method of label super-resolution, and write the model.

    Parameters
    ----------
    method
        The method and its settings.
    tiles
        Image and prior of each tile; NLCD for methods that count classes in its cells; for ``"sr"`` optionally labels
        of some tiles, to be fitted together with the cells.
    output
        The model file. The state is kept beside it during training, and the same call resumes from there.
    settings
        Training settings; for ``"epitome"`` only the seed is used.
    matrix
        Shares, and for ``"sr"`` their spread, by code; by default the matrix that ships with the scheme.
    label_map
        Codes of the labels -> codes of the scheme.
    scheme, run
        As for :func:`landprior.landcover.training.files.train_files`.

    Returns
    -------
    LandcoverModel
        The model as written to the file, including its record.

    Raises
    ------
    InputError
        If a tile lacks a file that the method needs.
    LandpriorError
        See :func:`train_by_counts`, :func:`train_by_em` and :mod:`landprior.superres.epitome_model`.
    """
    sources = [path for one in tiles for path in (one.image, one.prior, one.nlcd, one.labels)]
    target = check_named_output(output, "model", overwrite=run.overwrite, inputs=sources)
    checkpoint = checkpoint_path(target)
    settings = settings or TileSettings()
    with claiming(target):
        if method.name == "sr":
            coarse = [
                read_coarse_tile(
                    one.image,
                    _require_path(one.prior, "prior", one),
                    _require_path(one.nlcd, "NLCD", one),
                    labels=one.labels,
                    label_map=label_map,
                    name=one.name or None,
                    scheme=scheme,
                    nodata=run.nodata,
                )
                for one in tiles
            ]
            known = matrix or load_cooccurrence(None, coarse[0].tile.scheme)
            model = train_by_counts(coarse, known, settings, method.counts, checkpoint=checkpoint, run=run)
        else:
            read = [
                read_tile(
                    one.image,
                    _require_path(one.prior, "prior", one),
                    name=one.name or None,
                    scheme=scheme,
                    nodata=run.nodata,
                )
                for one in tiles
            ]
            order = order_tiles(read)
            tiles, read = [tiles[index] for index in order], [read[index] for index in order]
            if method.name == "em":
                model = train_by_em(read, settings, method.rounds, checkpoint=checkpoint, run=run)
            else:
                model = _train_epitome(method, tiles, read, settings, matrix, checkpoint=checkpoint, run=run)
        save_model(model, target, overwrite=run.overwrite)
        clear_checkpoint(checkpoint)
    return model


def _train_epitome(
    method: MethodSettings,
    tiles: Sequence[TrainingTile],
    read: Sequence[Tile],
    settings: TileSettings,
    matrix: Cooccurrence | None,
    *,
    checkpoint: Path,
    run: Run,
) -> LandcoverModel:
    codes = [read_cells(_require_path(one.nlcd, "NLCD", one), one.image)[1] for one in tiles]
    known = matrix or load_cooccurrence(None, read[0].scheme)
    table = known.table({int(code) for some in codes for code in np.unique(some)})
    chosen = method.epitome.model_copy(update={"seed": settings.training.seed})
    return train_epitome_model(read, codes, table, chosen, checkpoint=checkpoint, run=run)


def _require_path(path: Path | None, what: str, tile: TrainingTile) -> Path:
    if path is None:
        msg = f"{tile.image} has no {what}, which this method needs; give it with --{what.lower()}"
        raise InputError(msg)
    return path
