"""Areas of a raster's pixels on the ground, anywhere on the earth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.raster.ground import NEAR, measure_steps, metres_per_unit

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from landprior.raster.grid import Grid


_NODES = 33
"""Points per side at which areas are measured; between them they are interpolated, to within a millionth."""


class PixelAreas:
    """The areas of a raster's pixels on the ground.

    Parameters
    ----------
    grid
        Grid of the raster.
    where
        Name of the raster in error messages.
    pixel_size
        Side of a pixel in metres, instead of what the file says.

    Raises
    ------
    InputError
        If the size of its pixels is unknown (:meth:`landprior.raster.grid.Grid.pixel_size`).
    """

    def __init__(self, grid: Grid, *, where: str | Path = "the raster", pixel_size: float | None = None) -> None:
        width, height = grid.pixel_size(pixel_size, where=where)
        self.mean = self.least = self.most = width * height
        self._spline: Any = None
        if grid.crs is None or pixel_size is not None:
            return
        rows, columns = (np.linspace(0, size, _NODES) for size in grid.shape)
        steps = measure_steps(grid.crs, grid.transform, np.tile(columns, _NODES), np.repeat(rows, _NODES))
        if steps is None:
            return
        areas = _without_gaps(steps.area.reshape(_NODES, _NODES))
        if areas is None:
            return
        if not grid.crs.is_geographic:
            nominal = abs(grid.transform.determinant) * metres_per_unit(grid.crs) ** 2
            if (np.abs(areas / nominal - 1) < 2 * NEAR).all():  # UTM in its zone, or an equal-area projection
                self.mean = self.least = self.most = nominal
                return
        from scipy.interpolate import RectBivariateSpline

        self.mean, self.least, self.most = float(areas.mean()), float(areas.min()), float(areas.max())
        self._spline = RectBivariateSpline(rows, columns, areas)

    @property
    def constant(self) -> bool:
        """Whether all pixels count as equally large."""
        return self._spline is None

    def sums(self, groups: NDArray[np.integer], window: Window, count: int) -> NDArray[np.float64]:
        """Sum the areas of a window's pixels by group.

        Parameters
        ----------
        groups
            The group of each pixel, shape (h, w); below 0 for none.
        window
            Window of the raster.
        count
            Number of groups.

        Returns
        -------
        ndarray of float64, shape (count,)
            Areas in square metres.
        """
        known = groups >= 0
        if self._spline is None:
            return np.asarray(np.bincount(groups[known], minlength=count) * self.mean, dtype=np.float64)
        weights = self.read(window)[known]
        return np.asarray(np.bincount(groups[known], weights=weights, minlength=count), dtype=np.float64)

    def read(self, window: Window) -> NDArray[np.float64]:
        """Return the areas of a window's pixels in square metres, shape (h, w)."""
        rows = np.arange(int(window.height)) + window.row_off + 0.5
        columns = np.arange(int(window.width)) + window.col_off + 0.5
        if self._spline is None:
            return np.full((len(rows), len(columns)), self.mean)
        return np.asarray(self._spline(rows, columns), dtype=np.float64)


def _without_gaps(areas: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return areas with gaps (corners outside the domain) filled by the nearest one; None if there are none."""
    gaps = ~np.isfinite(areas)
    if gaps.all():
        return None
    if not gaps.any():
        return areas
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return np.asarray(areas[tuple(nearest)])
