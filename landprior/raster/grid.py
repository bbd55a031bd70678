"""The grid of a raster: CRS, transform and size in one value, and comparisons between grids."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from affine import Affine

from landprior.errors import GridMismatchError, InputError
from landprior.raster.advice import advise_crs, advise_extent
from landprior.raster.ground import NEAR, measure_steps, metres_per_unit, require_degrees
from landprior.raster.names import quote

if TYPE_CHECKING:
    from pathlib import Path

    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

logger = logging.getLogger(__name__)

_CONTRADICTION = 1.1
"""Ratio between a given pixel size and the file's own above which there is a warning."""

_TOLERANCE = 0.01
"""Maximum distance, in pixels, between corners of grids that count as equal."""


class Bounds(NamedTuple):
    """Left, bottom, right, top, in map units."""

    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The position and size of a raster's pixels.

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
        """Return the grid of an open rasterio dataset.

        Raises
        ------
        InputError
            If the pixels have no area, so that no place on the map is in a pixel: a size of 0, or one that is not a
            number.
        """
        area = src.transform.determinant
        if area == 0 or not math.isfinite(area):
            numbers = ", ".join(f"{number:.6g}" for number in src.transform[:6])
            msg = (
                f"{src.name}: its georeferencing is damaged, its pixels have no area (transform {numbers}); "
                f"give a copy the right extent: {advise_extent(src.name)}"
            )
            raise InputError(msg)
        return cls(width=src.width, height=src.height, transform=src.transform, crs=src.crs)

    @property
    def ungeoreferenced(self) -> bool:
        """Whether there is no georeferencing at all: no CRS, and pixels as coordinates."""
        return self.crs is None and self.transform in (Affine.identity(), Affine.scale(1, -1))

    @property
    def local(self) -> bool:
        """Whether the CRS has no known place on Earth (LOCAL_CS, an engineering CRS), so that it cannot be warped."""
        return self.crs is not None and not (self.crs.is_geographic or self.crs.is_projected or self.crs.is_epsg_code)

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
        """Return whether both grids have the same CRS, size and corners (to a hundredth of a pixel)."""
        return not self.differences(other)

    def differences(self, other: Grid) -> list[str]:
        """Return the differences between two grids as texts; empty if they are equal."""
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
        """Return the size of a pixel on the ground in metres, (x, y), at the centre of the raster.

        A projection that keeps lengths within 0.2 % (:data:`landprior.raster.ground.NEAR`; UTM in its zone) is used as
        it is; in any other CRS, degrees included, the size is measured along the ellipsoid.

        Parameters
        ----------
        override
            The size to use whatever the file says (``--pixel-size``), in metres on the ground. A size that differs by
            more than a tenth from the file's own is used with a warning.
        where
            Name of the raster in error messages.

        Returns
        -------
        tuple of float
            Metres along x and along y.

        Raises
        ------
        InputError
            If it is unknown: no georeferencing, or coordinates outside the domain of the CRS.
        """
        if override is not None:
            if not (override > 0 and math.isfinite(override)):
                msg = f"the pixel size must be a positive number of metres, not {override}"
                raise InputError(msg)
            own = None if self.ungeoreferenced else self._ground_size(where, strict=False)
            if own is not None and max(max(own) / override, override / min(own)) > _CONTRADICTION:
                logger.warning(
                    "%s has pixels of %.4g x %.4g m by its own georeferencing; using %g m from --pixel-size",
                    where, *own, override,
                )  # fmt: skip
            return (override, override)
        if self.ungeoreferenced:
            msg = f"{where} has no georeferencing, so its pixel size is unknown; give --pixel-size METRES"
            raise InputError(msg)
        found = self._ground_size(where, strict=True)
        if found is None:
            msg = (
                f"{where} is in {_name(self.crs)}, in which its pixels have no size on the ground; "
                "warp it to a projected CRS (UTM), or give --pixel-size METRES"
            )
            raise InputError(msg)
        return found

    def _ground_size(self, where: str | Path, *, strict: bool) -> tuple[float, float] | None:
        """Return the size of the middle pixel on the ground; None if there is none."""
        t = self.transform
        sides = (math.hypot(t.a, t.d), math.hypot(t.b, t.e))
        if self.crs is None:
            return sides
        degrees = bool(self.crs.is_geographic)
        if degrees and strict:
            require_degrees(self.bounds, where)
        factor = metres_per_unit(self.crs)
        nominal = (sides[0] * factor, sides[1] * factor)
        steps = measure_steps(self.crs, t, np.array([self.width / 2]), np.array([self.height / 2]))
        found = None if steps is None else (float(steps.across[0]), float(steps.down[0]))
        if found is None or not all(math.isfinite(size) and size > 0 for size in found):
            return None if degrees else nominal
        if not degrees and all(abs(size / own - 1) < NEAR for size, own in zip(found, nominal, strict=True)):
            return nominal
        return found

    def unevenness(self) -> float:
        """Return the relative variation of lengths on the ground over the raster: 0 if there is none, or if unknown.

        The widths of filters, measured at the centre, are wrong by up to this share at the edges.
        """
        if self.crs is None:
            return 0.0
        at = np.array([(c, r) for c in (0, 0.5, 1) for r in (0, 0.5, 1)]) * (self.width, self.height)
        steps = measure_steps(self.crs, self.transform, at[:, 0], at[:, 1])
        sides = [] if steps is None else [side[np.isfinite(side)] for side in (steps.across, steps.down)]
        ratios = [side.max() / max(side.min(), 1e-9 * side.max()) for side in sides if side.size]
        return float(max(ratios, default=1.0)) - 1


def require_same_grid(first: Grid, second: Grid, *, names: tuple[str, str]) -> None:
    """Raise an error if two grids differ.

    Parameters
    ----------
    first, second
        The grids.
    names
        Names of the two files in error messages.

    Raises
    ------
    GridMismatchError
        If they differ; the message names both files, the differences and the command that fixes it.
    """
    found = first.differences(second)
    if found:
        remedy = _suggest_remedy(first, second, names)
        msg = f"{names[0]} and {names[1]} are on different grids ({'; '.join(found)}); {remedy}"
        raise GridMismatchError(msg)


def _suggest_remedy(first: Grid, second: Grid, names: tuple[str, str]) -> str:
    """Return how to align two grids. A missing CRS comes first, as warping a file without one gives zeros."""
    if first.crs is None and second.crs is None:
        return "neither has a CRS, so they cannot be warped: give files of the same size and place"
    if first.crs is not None and second.crs is not None and not (first.local or second.local):
        name, like = quote(names[1]), quote(names[0])
        return f"warp the second to the grid of the first, for example: rio warp {name} aligned.tif --like {like}"
    poor, rich = (second, first) if second.crs is None or second.local else (first, second)
    name = names[1] if poor is second else names[0]
    kind = "no CRS" if poor.crs is None else "a local CRS without a known place on Earth"
    own, other = poor.bounds, rich.bounds
    fits = own.left < other.right and other.left < own.right and own.bottom < other.top and other.bottom < own.top
    if rich.crs is None or rich.local:
        return f"{name} has {kind}: first assign both their true CRS: gdal_translate -a_srs EPSG:CODE FILE placed.tif"
    if fits and not poor.ungeoreferenced:
        return (
            f"{name} has {kind}. Its coordinates would fit {_name(rich.crs)}; if that is its CRS, assign it: "
            f"{advise_crs(name, _name(rich.crs))}"
        )
    if poor.ungeoreferenced:
        return (
            f"{name} has {kind} and no coordinates, so its place is unknown; assign both: gdal_translate -a_srs "
            f"EPSG:CODE -a_ullr LEFT TOP RIGHT BOTTOM {quote(name)} placed.tif"
        )
    return (
        f"{name} has {kind}, and its coordinates ({own.left:.6g}, {own.bottom:.6g}, {own.right:.6g}, {own.top:.6g}) "
        f"are not those of {_name(rich.crs)} here; first assign its true CRS (EPSG:5070 for NLCD): "
        f"{advise_crs(name)}"
    )


def _name(crs: CRS | None) -> str:
    if crs is None:
        return "none"
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else (crs.to_wkt().split('"')[1] if '"' in crs.to_wkt() else "unnamed")
