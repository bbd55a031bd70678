"""Exact overlap of polygons with a map's pixels: areas on the ground by class.

A pixel counts with the part of it that lies in the polygon. exactextract computes these parts; here it reads the map
through landprior's own readers, in pixel coordinates, so that nodata, masks, codes and rotated grids mean what they do
everywhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from exactextract._exactextract import Feature
from exactextract.feature import FeatureSource
from exactextract.operation import Operation
from exactextract.processor import FeatureSequentialProcessor
from exactextract.raster import RasterSource
from exactextract.writer import Writer
from rasterio.windows import Window

from landprior.raster.classes import read_classes
from landprior.raster.ground import measure_polygon
from landprior.raster.windows import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import DTypeLike, NDArray

    from landprior.landcover.training.layers import PriorLayer
    from landprior.raster.codes import CodeRaster
    from landprior.raster.grid import Grid
    from landprior.raster.pixel_areas import PixelAreas
    from landprior.raster.scheme import ClassScheme

CACHE_BYTES = 64 * 2**20
"""Size of the cache of decoded blocks."""

CELLS = 4_000_000
"""Pixels that exactextract reads at a time; larger polygons are cut."""

_NEGLIGIBLE = 1e-6
"""Relative size of differences that come from single precision, in which exactextract keeps parts of pixels."""


class _Blocks:
    """Windows of a raster of (bands, H, W), through a cache of decoded blocks; large windows pass it by."""

    def __init__(self, read: Callable[[Window], NDArray[Any]], grid: Grid, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._read, self._grid, self._bytes = read, grid, 0
        self._kept: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()

    def read(self, column: int, row: int, width: int, height: int) -> NDArray[Any]:
        """Return the pixels of a window, shape (bands, height, width)."""
        top, left = row // BLOCK, column // BLOCK
        bottom, right = (row + height - 1) // BLOCK, (column + width - 1) // BLOCK
        if top == bottom and left == right:
            at_row, at_column = row - top * BLOCK, column - left * BLOCK
            return self._block(top, left)[:, at_row : at_row + height, at_column : at_column + width]
        if (bottom - top + 1) * (right - left + 1) > 4:
            return self._read(Window(column, row, width, height))
        rows = [[self._block(r, c) for c in range(left, right + 1)] for r in range(top, bottom + 1)]
        whole = np.concatenate([np.concatenate(one, axis=2) for one in rows], axis=1)
        at_row, at_column = row - top * BLOCK, column - left * BLOCK
        return np.asarray(whole[:, at_row : at_row + height, at_column : at_column + width])

    def _block(self, row: int, column: int) -> NDArray[Any]:
        at = (row, column)
        found = self._kept.get(at)
        if found is not None:
            self._kept.move_to_end(at)
            return found
        size = [min(BLOCK, full - BLOCK * i) for full, i in zip(self._grid.shape, at, strict=True)]
        found = self._read(Window(column * BLOCK, row * BLOCK, size[1], size[0]))
        self._kept[at] = found
        self._bytes += found.nbytes
        while self._bytes > CACHE_BYTES and len(self._kept) > 4:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


class ClassAreas(ABC):
    """Measures areas by class under polygons.

    Parameters
    ----------
    grid
        Grid of the map.
    areas
        Areas of its pixels on the ground.
    scheme
        The classes.
    """

    def __init__(self, grid: Grid, areas: PixelAreas, scheme: ClassScheme) -> None:
        self.grid, self.areas, self.scheme = grid, areas, scheme
        self._sources: list[_Source] = []
        self._weights = None if areas.constant else _Blocks(lambda window: areas.read(window)[None], grid, np.float64)

    def _keep(self, source: _Source) -> _Source:
        """Keep a raster alive as long as this object, since exactextract does not."""
        self._sources.append(source)
        return source

    @abstractmethod
    def _operations(self) -> list[Any]:
        """Return exactextract's operations."""

    @abstractmethod
    def _classes(self, found: dict[str, Any], whole: float, into: NDArray[np.float64]) -> None:
        """Write the areas by class and without data (the last element) of a polygon with area ``whole`` on the map."""

    def measure(self, shapes: NDArray[np.object_]) -> NDArray[np.float64]:
        """Measure the overlap of polygons with the map.

        Parameters
        ----------
        shapes
            Valid polygons in pixel coordinates (column, row), shape (n,).

        Returns
        -------
        ndarray of float64, shape (n, C + 2)
            Square metres on the ground: each class, without data on the map, outside the map.
        """
        found = np.zeros((len(shapes), len(self.scheme) + 2))
        bounds = shapely.bounds(shapes)
        height, width = self.grid.shape
        empty = np.isnan(bounds).any(axis=1)
        inside = ~empty & (bounds[:, 0] >= 0) & (bounds[:, 1] >= 0) & (bounds[:, 2] <= width) & (bounds[:, 3] <= height)
        away = empty | (bounds[:, 2] <= 0) | (bounds[:, 3] <= 0) | (bounds[:, 0] >= width) | (bounds[:, 1] >= height)
        on_map = np.flatnonzero(~away)
        # neighbours follow each other, so that a block is decoded once
        blocks = np.floor(bounds[on_map][:, :2] / BLOCK)
        on_map = on_map[np.lexsort((bounds[on_map, 0], blocks[:, 0], blocks[:, 1]))]
        if len(on_map):
            # exactextract counts rows from below
            flipped = shapely.transform(shapes[on_map], lambda xy: np.column_stack([xy[:, 0], height - xy[:, 1]]))
            receiver = _Receiver(lambda at, values: self._put(values, found[on_map[at]]))
            self._sources.clear()
            features, operations = _Features(flipped), self._operations()
            processor = FeatureSequentialProcessor(features, receiver, operations, ["at"])
            processor.set_max_cells_in_memory(CELLS)
            processor.process()
        if not inside.all():
            box = shapely.box(0, 0, width, height)
            for at in np.flatnonzero(~inside & ~empty):
                outside = shapes[at] if away[at] else shapely.difference(shapes[at], box)
                found[at, -1] = self._measure_outside(outside)
        return found

    def _measure_outside(self, shape: shapely.Geometry) -> float:
        """Return the area of a polygon in pixel coordinates off the map, in square metres."""
        if self.areas.constant or self.grid.crs is None:
            return float(shapely.area(shape)) * self.areas.mean
        return measure_polygon(self.grid.crs, self.grid.transform, shape)

    def _put(self, found: dict[str, Any], into: NDArray[np.float64]) -> None:
        """Write the result for a polygon."""
        whole = found["whole"] * (self.areas.mean if self._weights is None else 1.0)
        if whole > 0:
            self._classes(found, float(whole), into)


class MapAreas(ClassAreas):
    """Areas of a map of classes.

    Parameters
    ----------
    raster
        The open map.
    areas, scheme
        See :class:`ClassAreas`.
    codes
        Codes of the map -> codes of the scheme.
    """

    def __init__(
        self, raster: CodeRaster, areas: PixelAreas, scheme: ClassScheme, *, codes: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(raster.grid, areas, scheme)
        kind = np.uint8 if len(scheme) < 255 else np.int32

        def read(window: Window) -> NDArray[Any]:
            found = read_classes(raster, window, scheme, codes=codes, where=raster.path)
            return np.where(found < 0, len(scheme), found).astype(kind)[None]

        self._blocks = _Blocks(read, raster.grid, kind)

    def _operations(self) -> list[Any]:
        values = self._keep(_Source("classes", self._blocks, self.grid))
        if self._weights is None:
            return [
                Operation(stat, name, values)
                for stat, name in (("unique", "at_class"), ("frac", "share"), ("count", "whole"))
            ]
        weights = self._keep(_Source("areas", self._weights, self.grid))
        return [
            Operation("unique", "at_class", values),
            Operation("weighted_frac", "share", values, weights),
            Operation("sum", "whole", weights),
        ]

    def _classes(self, found: dict[str, Any], whole: float, into: NDArray[np.float64]) -> None:
        into[found["at_class"]] = found["share"] * whole


class ProbabilityAreas(ClassAreas):
    """Expected areas of a raster of probabilities: each pixel counts for each class with its probability.

    Parameters
    ----------
    layer
        The open raster, one band per class.
    areas
        See :class:`ClassAreas`.
    """

    def __init__(self, layer: PriorLayer, areas: PixelAreas) -> None:
        super().__init__(layer.grid, areas, layer.scheme)
        self._blocks = _Blocks(lambda window: layer.read(window)[0], layer.grid, np.float32)

    def _operations(self) -> list[Any]:
        bands = [self._keep(_Source(f"band {band}", self._blocks, self.grid, band)) for band in range(len(self.scheme))]
        if self._weights is None:
            sums = [Operation("sum", f"class {number}", band) for number, band in enumerate(bands)]
            return [*sums, Operation("count", "whole", bands[0])]
        weights = self._keep(_Source("areas", self._weights, self.grid))
        sums = [Operation("weighted_sum", f"class {number}", band, weights) for number, band in enumerate(bands)]
        return [*sums, Operation("sum", "whole", weights)]

    def _classes(self, found: dict[str, Any], whole: float, into: NDArray[np.float64]) -> None:
        scale = self.areas.mean if self._weights is None else 1.0
        count = len(self.scheme)
        into[:count] = [found[f"class {number}"] * scale for number in range(count)]
        rest = whole - into[:count].sum()
        into[count] = rest if rest > _NEGLIGIBLE * whole else 0.0


class _Source(RasterSource):  # type: ignore[misc]  # exactextract has no types
    """A band in pixel coordinates, without nodata."""

    def __init__(self, name: str, blocks: _Blocks, grid: Grid, band: int = 0) -> None:
        super().__init__()
        self.set_name(name)
        self._blocks, self._band, self._size = blocks, band, (float(grid.width), float(grid.height))

    def res(self) -> tuple[float, float]:
        """Return the size of a pixel."""
        return (1.0, 1.0)

    def extent(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right, top."""
        return (0.0, 0.0, *self._size)

    def nodata_value(self) -> None:
        """Return the nodata value: none."""

    def srs_wkt(self) -> None:
        """Return the CRS: none."""

    def read_window(self, column: int, row: int, width: int, height: int) -> NDArray[Any]:
        """Read pixels."""
        if width == 0 or height == 0:  # how exactextract learns the type
            return np.empty((height, width), dtype=self._blocks.dtype)
        return np.asarray(self._blocks.read(column, row, width, height)[self._band])


class _Row(Feature):  # type: ignore[misc]
    """A polygon as WKB with its position as the column ``at``, or a row of results."""

    def __init__(self, values: dict[str, Any], geometry: bytes = b"") -> None:
        super().__init__()
        self.values, self._geometry = values, geometry

    def geometry(self) -> bytes:
        """Return the polygon."""
        return self._geometry

    def set_geometry(self, geometry: bytes | None) -> None:
        """Leave the polygon as it is; results have none."""

    def set_geometry_format(self) -> str:
        """Return the format of polygons."""
        return "wkb"

    def get(self, name: str) -> Any:  # noqa: ANN401
        """Return a value."""
        return self.values[name]

    def set(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set a value."""
        self.values[name] = value

    def fields(self) -> list[str]:
        """Return the names of the values."""
        return list(self.values)


class _Features(FeatureSource):  # type: ignore[misc]
    """Polygons."""

    def __init__(self, shapes: NDArray[np.object_]) -> None:
        super().__init__()
        self._shapes = shapes

    def count(self) -> int:
        """Return their number."""
        return len(self._shapes)

    def __iter__(self) -> Iterator[_Row]:
        for at, geometry in enumerate(shapely.to_wkb(self._shapes)):
            yield _Row({"at": at}, geometry)

    def srs_wkt(self) -> None:
        """Return the CRS: none."""


class _Receiver(Writer):  # type: ignore[misc]
    """Passes the results of each polygon on."""

    def __init__(self, receive: Callable[[int, dict[str, Any]], None]) -> None:
        super().__init__()
        self._receive = receive

    def add_operation(self, operation: Any) -> None:  # noqa: ANN401
        """Prepare nothing."""

    def add_column(self, name: str) -> None:
        """Prepare nothing."""

    def write(self, feature: Any) -> None:  # noqa: ANN401
        """Receive a polygon's results."""
        row = _Row({})
        feature.copy_to(row)
        self._receive(row.values["at"], row.values)

    def finish(self) -> None:
        """Finish nothing."""
