"""Tiles in memory with the cells of their coarse classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from landprior.landcover.prior.cells import Cells, read_cells
from landprior.landcover.training.tiles import Tile, read_tile
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme


@dataclass(frozen=True, kw_only=True)
class CoarseTile:
    """A tile with the cells of its coarse classes.

    Parameters
    ----------
    tile
        Image and prior.
    cells
        Cells on the tile's grid.
    labels
        Positions of known classes, shape (H, W), -1 where there are none; None without labels.
    """

    tile: Tile
    cells: Cells
    labels: NDArray[np.int16] | None = None


def read_coarse_tile(
    image: str | Path,
    prior: str | Path,
    nlcd: str | Path,
    *,
    labels: str | Path | None = None,
    label_map: Mapping[int, int] | None = None,
    name: str | None = None,
    scheme: ClassScheme | None = None,
    nodata: float | None = None,
) -> CoarseTile:
    """Read image, prior and NLCD of one place into memory.

    Parameters
    ----------
    image, prior, name, scheme, nodata
        See :func:`landprior.landcover.training.tiles.read_tile`.
    nlcd
        NLCD codes, on their own grid or the image's.
    labels, label_map
        Fine labels of some pixels, to be fitted as well, and the meaning of their codes.

    Returns
    -------
    CoarseTile
        The tile with the cells of NLCD.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.training.tiles.read_tile` and :func:`landprior.landcover.prior.cells.read_cells`.
    """
    tile = read_tile(image, prior, name=name, scheme=scheme, nodata=nodata)
    cells, _ = read_cells(nlcd, image)
    known = None
    if labels is not None:
        with open_raster(image) as src:
            grid = Grid.of(src)
        with open_on_grid(labels, grid, like=image) as truth:
            known = read_classes(truth, None, tile.scheme, codes=label_map or {}, where=labels)
    return CoarseTile(tile=tile, cells=cells, labels=known)
