"""A map as polygons: every patch of a class with its name, colour and area on the ground.

Without simplification, polygons follow the sides of pixels, and drawn on the map's grid they give the map back.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.sieve import measure_pixels, sieve
from landprior.landcover.vectors.outlines import Edges, build_polygons, find_edges
from landprior.landcover.vectors.polygon_files import check_polygon_file, writing_polygons
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes
from landprior.raster.patches import Patches, find_patches
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray
    from rasterio.windows import Window

    from landprior.raster.grid import Grid
    from landprior.raster.pixel_areas import PixelAreas
    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Block

logger = logging.getLogger(__name__)

_BATCH_EDGES = 2**21
"""Number of edges from which the polygons of finished patches are built in several batches."""


def write_polygons(
    path: str | Path,
    output: str | Path,
    scheme: ClassScheme,
    *,
    minimum_area: float | None = None,
    simplify: float | None = None,
    rows: int | None = None,
    run: Run = Run(),
) -> int:
    """Write the patches of a map as polygons, strip by strip.

    Patches are 4-connected: pixels that only touch at a corner are different polygons. Polygons are in the order of
    their last pixels, from the top down. Neighbours have the same points along their common boundary. Memory depends
    on the number of patches and on the outlines of those that are not finished, not on the number of pixels.

    Parameters
    ----------
    path
        The map.
    output
        The file to write: ``.gpkg`` with a style for QGIS, ``.fgb``, ``.geojson`` (in degrees) or ``.parquet``.
    scheme
        The map's classes.
    minimum_area
        Smallest patch to keep, square metres on the ground; see :func:`landprior.landcover.mapping.sieve.sieve`.
    simplify
        Simplify boundaries: corners that form triangles of less than the square of this many metres go, so that
        neighbours still meet (:func:`shapely.coverage_simplify`). All polygons are then in memory.
    rows
        Number of rows of a strip; see :func:`landprior.raster.patches.find_patches`.
    run
        Whether to replace an older file, and to show progress.

    Returns
    -------
    int
        Number of polygons.

    Raises
    ------
    InputError
        If the map has no classified pixel, or is not georeferenced but has to be for these options.
    LandpriorError
        If the map cannot be read with this scheme, or the output cannot be written.
    """
    target = check_polygon_file(output, overwrite=run.overwrite, inputs=[path])
    with writing_polygons(target, scheme, overwrite=run.overwrite) as (folder, write):
        source = path
        if minimum_area is not None:
            source = folder / "sieved.tif"
            sieve(
                path,
                source,
                scheme,
                minimum_area=minimum_area,
                options=MapOptions(style=False),
                run=Run(progress=run.progress),
            )
        with open_codes(source) as src:
            grid, areas = src.grid, _measure(src.grid, path, needed=simplify is not None)

            def read(window: Window) -> NDArray[np.int16]:
                return read_classes(src, window, scheme, codes={}, where=path)

            patches = find_patches(read, grid, areas=areas, rows=rows, where=path, progress=run.progress)
            layer = _Layer(patches, scheme, measured=areas is not None)
            if simplify is None:
                _outline(patches, lambda numbers, shapes: write(layer.describe(numbers, shapes)), run=run)
            else:
                unit = math.sqrt(measure_pixels(grid, path).mean / abs(grid.transform.determinant))
                write(layer.describe(*_simplify(patches, simplify / unit, run=run)))
    logger.info("%d polygons", len(patches))
    return len(patches)


def _measure(grid: Grid, path: str | Path, *, needed: bool) -> PixelAreas | None:
    """Return the areas of pixels; None for a map that is not georeferenced."""
    if needed or not grid.ungeoreferenced:
        return measure_pixels(grid, path)
    logger.warning("%s has no georeferencing: polygons are in pixels, and have no area in hectares", path)
    return None


class _Layer:
    """The columns of polygons."""

    def __init__(self, patches: Patches, scheme: ClassScheme, *, measured: bool) -> None:
        self._patches, self._measured = patches, measured
        self._codes = scheme.codes.astype(np.int32)
        self._names = np.array(scheme.names, dtype=object)
        self._colours = np.array([c.colour.lower() for c in scheme.classes], dtype=object)
        self._crs = None if patches.grid.crs is None else patches.grid.crs.to_wkt()

    def describe(self, numbers: NDArray[np.integer], shapes: NDArray[np.object_]) -> geopandas.GeoDataFrame:
        """Return the polygons of some patches with their columns."""
        import geopandas

        kind = self._patches.classes[numbers]
        columns: dict[str, Any] = {
            "code": self._codes[kind],
            "name": self._names[kind],
            "colour": self._colours[kind],
            "hectares": self._patches.areas[numbers] / 1e4 if self._measured else np.full(numbers.size, np.nan),
        }
        return geopandas.GeoDataFrame(columns, geometry=shapes, crs=self._crs)


def _outline(patches: Patches, emit: Callable[[NDArray[np.int32], NDArray[np.object_]], None], *, run: Run) -> None:
    """Build the polygons of all patches and pass them on in batches, as patches are finished."""
    height, width = patches.grid.shape
    above: NDArray[np.int32] | None = None
    waiting: list[Edges] = []

    def gather(block: Block, numbers: NDArray[np.int32]) -> dict[str, NDArray[np.generic]]:
        nonlocal above
        row, end = int(block.core.row_off), int(block.core.row_off + block.core.height)
        waiting.append(find_edges(numbers, above, row=row, last=end == height))
        above = numbers[-1].copy()
        # the lower side of a strip's last row is only known with the next
        first = len(patches) if end == height else int(np.searchsorted(patches.last, (end - 1) * width))
        finished = [part.take(part.patch < first) for part in waiting]
        waiting[:] = [part.take(part.patch >= first) for part in waiting]
        for edges in _split(Edges.join(finished)):
            emit(*build_polygons(edges, width, patches.grid.transform))
        return {}

    patches.stream(gather, label="polygons", progress=run.progress)


def _split(edges: Edges) -> Iterator[Edges]:
    """Yield edges in batches of whole patches, in their order."""
    if len(edges) <= _BATCH_EDGES:
        if len(edges):
            yield edges
        return
    order = np.argsort(edges.patch, kind="stable")
    starts = np.flatnonzero(np.diff(edges.patch[order], prepend=-1))
    cuts = starts[np.unique(np.searchsorted(starts, np.arange(0, order.size, _BATCH_EDGES)).clip(max=starts.size - 1))]
    for part in np.split(order, cuts[1:]):
        yield edges.take(part)


def _simplify(patches: Patches, tolerance: float, *, run: Run) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    import shapely

    numbers: list[NDArray[np.int32]] = []
    shapes: list[NDArray[np.object_]] = []

    def keep(some: NDArray[np.int32], polygons: NDArray[np.object_]) -> None:
        numbers.append(some)
        shapes.append(polygons)

    _outline(patches, keep, run=run)
    return np.concatenate(numbers), shapely.coverage_simplify(np.concatenate(shapes), tolerance)
