"""A minimum mapping unit: small patches of a map take the class of their largest neighbour.

The map is read strip by strip, but the result is that of the whole map: the patches of all strips are joined first
(:mod:`landprior.raster.patches`). Memory depends on the number of patches. GDAL's ``gdal_sieve`` gives the same map
wherever the largest neighbour of a small patch is itself large enough, ties aside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import check_products, writing_map
from landprior.raster.advice import advise_extent
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes
from landprior.raster.patches import Connectivity, Patches, find_patches
from landprior.raster.pixel_areas import PixelAreas
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.raster.scheme import MAP_NODATA
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Block

logger = logging.getLogger(__name__)

_ROUNDING = 1e-9
"""Relative error of an area, up to which it counts as equal to the minimum."""

_OWN_TAGS = ("scheme", "kind", "version")


@dataclass(frozen=True, kw_only=True)
class SieveReport:
    """What a sieve did.

    Parameters
    ----------
    patches
        Number of patches of the map.
    small
        Number of patches smaller than the minimum.
    kept
        Of the small ones, the number that stay, because they touch neither a patch that is large enough nor one that
        was merged into one; such as an island in an area without data.
    """

    patches: int
    small: int
    kept: int


def sieve(
    path: str | Path,
    output: str | Path,
    scheme: ClassScheme,
    *,
    minimum_area: float,
    connectivity: Connectivity = 4,
    options: MapOptions = MapOptions(),
    run: Run = Run(),
) -> SieveReport:
    """Remove the patches of a map that are smaller than a minimum mapping unit.

    Patches next to one that is large enough take the class of the largest such neighbour. Then patches next to those,
    and so on. Where two neighbours are equally large, the one that ends further up in the map wins.

    Parameters
    ----------
    path
        The map.
    output
        The map to write.
    scheme
        The classes of both.
    minimum_area
        The minimum mapping unit, square metres on the ground.
    connectivity
        Whether pixels that only touch at a corner are of one patch, and neighbours (8), or not (4).
    options
        Whether to write a style and a picture beside the map; the rest does not apply.
    run
        Whether to replace an older map, and to show progress.

    Returns
    -------
    SieveReport
        Numbers of patches.

    Raises
    ------
    InputError
        If the map is not georeferenced, has no classified pixel, or no patch is large enough.
    LandpriorError
        If the map cannot be read with this scheme, or the output cannot be written.
    """
    target = check_products(output, options, overwrite=run.overwrite, inputs=[path])
    with open_raster(path) as src:
        tags = {name: text for name, text in src.tags(ns=TAG_DOMAIN).items() if name not in _OWN_TAGS}
    tags |= {**options.tags, "sieve": f"{minimum_area:g} m2, {connectivity}-connected"}
    with open_codes(path) as src:

        def read(window: Window) -> NDArray[np.int16]:
            return read_classes(src, window, scheme, codes={}, where=path)

        patches = find_patches(
            read,
            src.grid,
            areas=measure_pixels(src.grid, path),
            connectivity=connectivity,
            where=path,
            progress=run.progress,
        )
        merged = merge_small(patches, minimum_area, connectivity=connectivity, where=path, progress=run.progress)
        codes = np.append(scheme.codes[patches.classes[merged]], np.uint8(MAP_NODATA))  # -1 is the last
        plain = MapOptions(style=options.style, quicklook=options.quicklook)
        with writing_map(target, scheme, src.grid, plain, tags, overwrite=run.overwrite) as sinks:
            patches.stream(
                lambda _, numbers: {"map": codes[numbers]}, sinks=sinks, label="writing", progress=run.progress
            )
    small = _is_small(patches, minimum_area)
    kept = small & (merged == np.arange(len(patches)))
    report = SieveReport(patches=len(patches), small=int(small.sum()), kept=int(kept.sum()))
    logger.info("%d of %d patches are smaller than %g m2", report.small, report.patches, minimum_area)
    if report.kept:
        logger.info("%d of them stay, as they touch no larger patch", report.kept)
    return report


def measure_pixels(grid: Grid, path: str | Path) -> PixelAreas:
    """Return the areas of a map's pixels on the ground.

    Raises
    ------
    InputError
        If they are unknown.
    """
    if grid.ungeoreferenced:
        msg = (
            f"{path} has no georeferencing, so areas and lengths on the ground are unknown; give a copy its extent: "
            f"{advise_extent(path)}"
        )
        raise InputError(msg)
    return PixelAreas(grid, where=path)


def merge_small(
    patches: Patches,
    minimum_area: float,
    *,
    connectivity: Connectivity = 4,
    where: str | Path = "the map",
    progress: bool = False,
) -> NDArray[np.int64]:
    """Find for each patch the one that it becomes part of.

    Parameters
    ----------
    patches
        The patches, with areas in square metres.
    minimum_area, connectivity
        See :func:`sieve`.
    where
        Name of the map in messages.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    ndarray of int64
        Number of a patch for each, shape (P,): its own for those that are large enough, or that stay as they are.

    Raises
    ------
    InputError
        If no patch is large enough.
    """
    small = _is_small(patches, minimum_area)
    if small.all():
        msg = (
            f"{where}: no patch has {minimum_area:g} m2 (the largest has {patches.areas.max():.6g}); "
            "give a smaller --minimum-area"
        )
        raise InputError(msg)
    target = np.where(small, -1, np.arange(len(patches)))
    pairs = np.empty(0, dtype=np.int64)
    if small.any():
        pairs = _find_neighbours(patches, small, connectivity, progress=progress)
    while True:
        one, other = divmod(pairs, len(patches))
        ready = (target[one] < 0) & (target[other] >= 0)
        if not ready.any():
            break
        one, other = one[ready], target[other[ready]]
        order = np.lexsort((-other, patches.areas[other], one))
        one, other = one[order], other[order]
        best = np.append(one[1:] != one[:-1], True)  # the last of each
        target[one[best]] = other[best]
    return np.where(target < 0, np.arange(len(patches)), target)


def _is_small(patches: Patches, minimum_area: float) -> NDArray[np.bool_]:
    return np.asarray(patches.areas < minimum_area * (1 - _ROUNDING))


def _find_neighbours(
    patches: Patches, small: NDArray[np.bool_], connectivity: Connectivity, *, progress: bool
) -> NDArray[np.int64]:
    """Return the pairs of a small patch and a neighbour, each as ``small * P + neighbour``, in ascending order."""
    found: list[NDArray[np.int64]] = []
    above: NDArray[np.int32] | None = None

    def gather(_: Block, numbers: NDArray[np.int32]) -> dict[str, NDArray[np.generic]]:
        nonlocal above
        full = numbers if above is None else np.concatenate([above, numbers])
        above = numbers[-1:]
        sides = [(full[:, :-1], full[:, 1:]), (full[:-1], full[1:])]
        if connectivity == 8:  # corners too
            sides += [(full[:-1, :-1], full[1:, 1:]), (full[:-1, 1:], full[1:, :-1])]
        new = []
        for first, second in sides:
            meet = (first != second) & (first >= 0) & (second >= 0)
            a, b = first[meet].astype(np.int64), second[meet].astype(np.int64)
            new += [(one * len(patches) + other)[small[one]] for one, other in ((a, b), (b, a))]
        found.append(np.unique(np.concatenate(new)))
        return {}

    patches.stream(gather, label="finding neighbours", progress=progress)
    return np.unique(np.concatenate(found))
