"""Whole places with roads and buildings: Ohio, with layers derived from the masks.

The real windows of cities are denser than the average of their NLCD codes; in a whole place NLCD's shares of
classes are about right, so that roads and buildings added to them count twice. The figure to look at is the area
of impervious on the map relative to the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window
from scipy import ndimage

from benchmarks.accuracy.cases import REPOSITORY, Case, list_clusters, make_mosaic
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import measure_cooccurrence
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.landcover.prior.settings import PriorSettings

PLACES = {3: 4, 11: 1, 15: 1}
"""Clusters and the number of tiles that they are cut into."""

BLOCK = 920.0
"""The part of a cluster, in metres from its left edge, that is the place: further tiles of cluster 3 lie apart."""

OVERLAP = 60.0
"""Overlap of the tiles of a place, metres."""

BUILDING, ROAD = 1, 2
"""Codes of the masks."""

WIDEST_ROAD = 12.0
"""What is wider in the mask is a car park or a yard, which no map of roads shows; metres."""

DRAWN = 3.0
"""Width of a road in the layer, metres."""

OMITTED = 0.2
"""Share of the buildings that have no footprint."""


def prepare_places(folder: Path, *, settings: PriorSettings | None = None) -> Iterator[Case]:
    """Yield the places of Ohio, with derived codes, roads and footprints; the matrix is that of other clusters."""
    scheme = load_scheme(REPOSITORY / "benchmarks" / "accuracy" / "ohio-5.yaml")
    mosaics = {number: make_mosaic(folder, number, ids) for number, ids in list_clusters().items()}
    for number, count in PLACES.items():
        matrix = measure_cooccurrence([mosaics[other][1:] for other in mosaics if other != number], scheme)
        image, codes, labels = mosaics[number]
        with open_raster(labels) as src:
            mask, grid = src.read(1), Grid.of(src)
        layers = derive_layers(mask, grid.transform.a, seed=number)
        with open_raster(image) as src:
            bands = src.read()
        with open_raster(codes) as src:
            nlcd = src.read(1)
        windows = cut(mask, grid, count)
        files = []
        for part, window in enumerate(windows):
            inside, at = window.toslices(), grid.window(window)
            stem = f"place-{number}-{part}"
            written = {
                name: _write(folder / f"{stem}-{name}.tif", values[inside].astype(np.uint8), at, None)
                for name, values in layers.items()
            }
            files.append({"nlcd": _write(folder / f"{stem}-nlcd.tif", nlcd[inside], at, 0), **written})
        tiles = []
        for part, window in enumerate(windows):
            inside, at = window.toslices(), grid.window(window)
            stem = f"place-{number}-{part}"
            built = build_prior(
                files[part]["nlcd"],
                folder / f"{stem}-prior.tif",
                cooccurrence=matrix,
                layers={name: files[part][name] for name in layers},
                settings=settings,
                around=[*files[:part], *files[part + 1 :]],
                run=Run(overwrite=True),
            )
            tiles.append(
                (
                    _write(folder / f"{stem}-image.tif", bands[:, *inside], at, 0),
                    built,
                    _write(folder / f"{stem}-labels.tif", mask[inside], at, 255),
                )
            )
        yield Case(
            name=f"ohio-place-{number}",
            matrix="other clusters",
            scheme=scheme,
            tiles=tuple(tiles),
            chosen_on=True,
            place=True,
        )


def cut(mask: NDArray[np.uint8], grid: Grid, count: int) -> list[Window]:
    """Cut the connected part of a place into tiles that overlap; ``count`` is 1 or 4."""
    pixel = grid.transform.a
    width = min(mask.shape[1], round(BLOCK / pixel)) if count > 1 else mask.shape[1]
    rows = np.flatnonzero((mask[:, :width] != 255).any(axis=1))
    top, height = int(rows[0]), int(rows[-1] - rows[0]) + 1
    if count == 1:
        return [Window(0, top, width, height)]
    more = round(OVERLAP / pixel / 2)
    tall, wide = height // 2 + more, width // 2 + more
    return [Window(left, above, wide, tall) for above in (top, top + height - tall) for left in (0, width - wide)]


def derive_layers(mask: NDArray[np.uint8], pixel: float, *, seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    """Derive what a map would show from a mask.

    Roads are the middle lines of what is mapped as road and not too wide, drawn 3 m wide; footprints are the mapped
    buildings, some left out, the others moved by about a metre.

    Parameters
    ----------
    mask
        Codes, shape (H, W).
    pixel
        Size of a pixel, metres.
    seed
        Seed of what is left out and moved.

    Returns
    -------
    dict
        ``roads``, ``buildings``: where present, each (H, W).
    """
    rng = np.random.default_rng(seed)
    away = ndimage.distance_transform_edt(mask == ROAD) * pixel
    middle = (away > 0) & (away >= ndimage.maximum_filter(away, 3)) & (away > 1.0) & (away < WIDEST_ROAD / 2)
    roads = ndimage.distance_transform_edt(~middle) * pixel <= DRAWN / 2
    found, _ = ndimage.label(mask == BUILDING)
    buildings = np.zeros(mask.shape, dtype=bool)
    for index, at in enumerate(ndimage.find_objects(found), start=1):
        moved = np.rint(rng.normal(0, 1 / pixel, 2)).astype(int)
        if rng.random() < OMITTED:
            continue
        rows, columns = np.nonzero(found[at] == index)
        rows, columns = rows + at[0].start + moved[0], columns + at[1].start + moved[1]
        kept = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        buildings[rows[kept], columns[kept]] = True
    return {"roads": roads, "buildings": buildings}


def _write(path: Path, values: NDArray[np.uint8], grid: Grid, nodata: int | None) -> Path:
    return write_raster(path, values, grid, nodata=nodata, overviews="nearest", overwrite=True)
