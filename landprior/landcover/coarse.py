"""The coarse layers a prior is made from: NLCD, roads, buildings, waterways and water bodies, open on one grid."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import numpy as np

from landprior.errors import InputError, PriorError
from landprior.landcover.cooccurrence import NLCD_NODATA
from landprior.raster.files import open_on_grid, open_raster, read_valid, read_window
from landprior.raster.grid import Grid
from landprior.raster.ground import UNEVEN
from landprior.raster.windows import Block, stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

    from landprior.raster.scheme import Role

logger = logging.getLogger(__name__)

LAYERS: Mapping[str, Role] = {
    "roads": "impervious",
    "buildings": "impervious",
    "waterways": "water",
    "waterbodies": "water",
}
"""The layers of the hand-coded prior and the class role each adds to."""


class CoarseLayers:
    """NLCD and the layers beside it, open on one grid.

    Parameters
    ----------
    nlcd, layers, like
        See :func:`landprior.landcover.prior.build_prior`.
    progress
        A progress bar on stderr while NLCD's codes are gathered.

    Raises
    ------
    InputError
        If a layer is not one of :data:`LAYERS`.
    GridMismatchError, RasterReadError
        If a raster cannot be brought on the grid, or read.
    """

    def __init__(
        self,
        nlcd: str | Path,
        layers: Mapping[str, str | Path] | None = None,
        *,
        like: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        layers = layers or {}
        unknown = set(layers) - set(LAYERS)
        if unknown:
            msg = f"unknown layer(s) {', '.join(sorted(unknown))}; a prior takes {', '.join(LAYERS)}"
            raise InputError(msg)
        self._path, self._reference, self._progress = nlcd, like or nlcd, progress
        with ExitStack() as stack:
            self.grid = Grid.of(stack.enter_context(open_raster(self._reference)))
            self._nlcd = stack.enter_context(open_on_grid(nlcd, self.grid, like=self._reference))
            self._layers = {
                name: stack.enter_context(open_on_grid(path, self.grid, like=self._reference))
                for name, path in layers.items()
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The layers besides NLCD."""
        return tuple(self._layers)

    def codes(self) -> set[int]:
        """Gather the codes of the NLCD raster, streamed.

        Raises
        ------
        PriorError
            If it holds other numbers, or no data only.
        """
        return _codes(self._nlcd, self._path, self.grid, progress=self._progress)

    def pixel_size(self, override: float | None = None) -> tuple[float, float]:
        """Return the size of a pixel in metres; see :meth:`landprior.raster.grid.Grid.pixel_size`.

        A warning is due where the size differs so much over the raster that widths hold in its middle only.
        """
        size = self.grid.pixel_size(override, where=self._reference)
        if override is None and self.grid.unevenness() > UNEVEN:
            logger.warning(
                "the ground size of a pixel of %s differs by %.0f %% over the raster, and widths in metres hold in its "
                "middle; cut it into tiles, or warp it to UTM",
                self._reference,
                100 * self.grid.unevenness(),
            )
        return size

    def read(self, window: Window) -> tuple[NDArray[np.integer], dict[str, NDArray[np.bool_]]]:
        """Read NLCD codes and the layers' presence, each of shape (H, W)."""
        presence = {
            name: (read_window(src, window, 1) != 0) & read_valid(src, window) for name, src in self._layers.items()
        }
        return _masked_codes(self._nlcd, window), presence


def _masked_codes(src: DatasetReader, window: Window) -> NDArray[np.integer]:
    codes = read_window(src, window, 1)
    return np.where(read_valid(src, window), codes, NLCD_NODATA[0]).astype(np.int64)


def _codes(src: DatasetReader, path: str | Path, grid: Grid, *, progress: bool) -> set[int]:
    """Gather the codes of an NLCD raster, streamed."""
    found: set[int] = set()

    def gather(block: Block) -> dict[str, NDArray[np.generic]]:
        found.update(np.unique(_masked_codes(src, block.core)).tolist())
        return {}

    stream(gather, grid=grid, sinks={}, label="NLCD codes", progress=progress)
    wrong = sorted(code for code in found if not 0 <= code <= 255)
    if wrong:
        msg = f"{path} has values such as {wrong[0]}, which are no NLCD codes (0-255); is it another layer?"
        raise PriorError(msg)
    if not found - set(NLCD_NODATA):
        msg = f"{path} has no NLCD code at all here (only no data: {sorted(found)}), so the prior would have no mass"
        raise PriorError(msg)
    return found
