"""The grid of a raster: CRS, transform and size as one value, and the checks between grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from affine import Affine

from landprior.errors import GridMismatchError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

_TOLERANCE = 0.01
"""How far, in pixels, the corners of two grids may lie apart and still count as the same."""


class Bounds(NamedTuple):
    """Left, bottom, right, top, in map units."""

    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Where the pixels of a raster lie.

    Parameters
    ----------
    width, height
        Size in pixels.
    transform
        Affine transform from (column, row) to map coordinates.
    crs
        Coordinate reference system, or None for a local one.
    """

    width: int
    height: int
    transform: Affine
    crs: CRS | None = None

    @classmethod
    def of(cls, src: DatasetReader) -> Grid:
        """Return the grid of an open rasterio dataset."""
        return cls(width=src.width, height=src.height, transform=src.transform, crs=src.crs)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, the order of arrays."""
        return (self.height, self.width)

    @property
    def bounds(self) -> Bounds:
        """Extent in map units; the envelope if the grid is rotated."""
        corners = [self.transform @ corner for corner in self._corners()]
        xs, ys = zip(*corners, strict=True)
        return Bounds(min(xs), min(ys), max(xs), max(ys))

    def _corners(self) -> list[tuple[int, int]]:
        return [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]

    def window(self, window: Window) -> Grid:
        """Return the grid of a window."""
        offset = Affine.translation(window.col_off, window.row_off)
        return Grid(width=int(window.width), height=int(window.height), transform=self.transform @ offset, crs=self.crs)

    def matches(self, other: Grid) -> bool:
        """Say whether both grids have the same CRS, size and corners (to a hundredth of a pixel)."""
        return not self.differences(other)

    def differences(self, other: Grid) -> list[str]:
        """Say, in words, in what two grids differ; empty if they are the same."""
        found = []
        if self.crs != other.crs:
            found.append(f"CRS {_name(self.crs)} and {_name(other.crs)}")
        if self.shape != other.shape:
            found.append(f"{self.width} x {self.height} px and {other.width} x {other.height} px")
        elif self.crs == other.crs:
            to_pixels = ~self.transform @ other.transform
            shift = max(math.dist(to_pixels @ corner, corner) for corner in self._corners())
            if shift > _TOLERANCE:
                found.append(f"corners up to {shift:.3g} px apart")
        return found

    def pixel_size(self, override: float | None = None, *, where: str | Path = "the raster") -> tuple[float, float]:
        """Return the size of a pixel on the ground in metres, (x, y).

        Parameters
        ----------
        override
            The size to use whatever the file says (``--pixel-size``), in metres.
        where
            What the raster is called in an error.

        Raises
        ------
        InputError
            If it cannot be known: no georeferencing, or coordinates in degrees.
        """
        if override is not None:
            if not (override > 0 and math.isfinite(override)):
                msg = f"the pixel size must be a positive number of metres, not {override}"
                raise InputError(msg)
            return (override, override)
        if self.crs is not None and self.crs.is_geographic:
            msg = f"{where} is in degrees ({_name(self.crs)}); warp it to a projected CRS (UTM), or give --pixel-size"
            raise InputError(msg)
        if self.crs is None and self.transform in (Affine.identity(), Affine.scale(1, -1)):
            msg = f"{where} has no georeferencing, so its pixel size is not known; give --pixel-size METRES"
            raise InputError(msg)
        factor = self.crs.linear_units_factor[1] if self.crs is not None else 1.0
        t = self.transform
        return (math.hypot(t.a, t.d) * factor, math.hypot(t.b, t.e) * factor)


def require_same_grid(first: Grid, second: Grid, *, names: tuple[str, str]) -> None:
    """Refuse two grids that differ.

    Raises
    ------
    GridMismatchError
        Names both files, what differs, and the command that mends it.
    """
    found = first.differences(second)
    if found:
        msg = (
            f"{names[0]} and {names[1]} are on different grids ({'; '.join(found)}); "
            f"put the second on the first's grid, for example: rio warp {names[1]} aligned.tif --like {names[0]}"
        )
        raise GridMismatchError(msg)


def _name(crs: CRS | None) -> str:
    if crs is None:
        return "none"
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else (crs.to_wkt().split('"')[1] if '"' in crs.to_wkt() else "unnamed")
