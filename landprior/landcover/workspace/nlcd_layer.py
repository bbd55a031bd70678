"""Writing the NLCD of a tile, from any raster of codes, on the tile's grid."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import (
    GridMismatchError,
    SourceWarning,
)
from landprior.landcover.prior.coarse import read_nlcd
from landprior.raster.codes import open_on_grid
from landprior.raster.cog import CogWriter
from landprior.raster.scheme import load_scheme
from landprior.raster.windows import stream

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.windows import Block
logger = logging.getLogger(__name__)


def write_nlcd(source: str | Path, grid: Grid, path: Path) -> Path:
    """Warp NLCD onto the grid of a tile by nearest neighbour and write its original codes.

    Parameters
    ----------
    source, path
        The raster, on any grid, and the file to write.
    grid
        Grid of the tile.

    Returns
    -------
    Path
        The layer's path.

    Raises
    ------
    GridMismatchError
        If the raster does not overlap the tile, or has no data there.
    InputError
        If the raster does not contain codes.
    """
    scheme = load_scheme("nlcd")
    known: list[int] = []
    with (
        open_on_grid(source, grid, like="the tile") as src,
        CogWriter(
            path, grid, nodata=0, overviews="mode", scheme=scheme, tags={"kind": "nlcd"}, overwrite=True
        ) as writer,
    ):

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            codes = read_nlcd(src, block.core).astype(np.uint8)
            known.append(int(np.count_nonzero(codes)))
            return {"nlcd": codes}

        stream(compute, grid=grid, sinks={"nlcd": writer}, label="nlcd")
        share = sum(known) / (grid.width * grid.height)
        if not share:
            msg = f"{source} has no data (no codes, or 0) anywhere in the tile of {path}; give NLCD of this place"
            raise GridMismatchError(msg)
    if share < _WHOLE:
        msg = f"{source} has codes for {share:.0%} of the tile of {path}; the rest will have no prior"
        if share < _ENOUGH:
            warnings.warn(msg, SourceWarning, stacklevel=2)
        else:
            logger.info("%s", msg)
    return path


_WHOLE, _ENOUGH = 0.999, 0.5
"""Share of a tile with NLCD codes below which it is logged, and below which there is a warning.

At a coast or border, part of a tile has no data.
"""
