"""Warping NAIP images to the grid of a tile."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from landprior.errors import DiscardedError, RasterReadError
from landprior.raster.bands import Bands, find_bands
from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.windows import stream
from landprior.sources.naip.images import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from landprior.raster.windows import Block
    from landprior.sources.http.client import Network
    from landprior.sources.naip.images import NaipImage

logger = logging.getLogger(__name__)

NODATA = 0
_SHRINKING = 0.95
"""Source pixels smaller than this, in metres, are averaged."""
_WINDOW = 1024
_THREADS = 2
"""Threads for warping a tile; tiles are also fetched in parallel."""
_REACH = 8
"""Source pixels to read around a window, more than any resampling needs."""


def write_image(image: NaipImage, grid: Grid, path: Path, network: Network, *, overwrite: bool = False) -> Path:
    """Warp an image to the grid of a tile, window by window, and write it as a COG.

    Pixels below 1 m are averaged; pixels that match the grid are copied; others are interpolated.
    Pixels without data (the file's nodata value or mask; if it has neither, zero in all bands) become zero
    in all bands. A fourth band is near infrared, whatever its tag.

    Parameters
    ----------
    image
        A local file, or a remote one read by ranges.
    grid
        Grid of the tile, at 1 m.
    path
        The file to write.
    network
        Client for a remote image.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        ``path``: a COG of four bands of uint8.

    Raises
    ------
    SourceError, RasterReadError
        If it cannot be read; a damaged download is fetched again once.
    """
    for last in (False, True):
        try:
            with open_image(image, network) as src:
                return _write_image(src, image, grid, path, overwrite=overwrite)
        except DiscardedError as error:
            if last:
                raise
            logger.warning("%s; fetching it again", error)
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _write_image(src: DatasetReader, image: NaipImage, grid: Grid, path: Path, *, overwrite: bool) -> Path:
    if src.crs is None:
        msg = f"{image.origin} has no CRS, so it cannot be warped to the tile's grid"
        raise RasterReadError(msg)
    if src.dtypes[0] != "uint8":
        msg = f"{image.origin} has type {src.dtypes[0]}; NAIP has uint8"
        raise RasterReadError(msg)
    # all bands of a remote NAIP file are data, however they are tagged
    found = find_bands(src, due=None if isinstance(image.source, Path) else src.count)
    bands = replace(found, data=found.data[:4], nodata=found.nodata[:4])
    resampling = _resampling(src, grid)
    with CogWriter(
        path,
        grid,
        count=len(bands.data),
        dtype="uint8",
        nodata=NODATA,
        overviews="average",
        descriptions=("red", "green", "blue", "near infrared")[: len(bands.data)],
        tags={"kind": "image", "origin": image.origin, "date": image.date, "resampling": resampling.name},
        overwrite=overwrite,
    ) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            window = grid.window(block.core)
            values = np.full((len(bands.data), *window.shape), NODATA, dtype=np.uint8)
            try:
                part = _read_around(src, bands, window)
            except RasterioError as error:  # for a remote file, open_remote gives a better message
                reason = " ".join(str(error.__cause__ or error).split())
                msg = f"{image.origin} is damaged or truncated ({reason}); copy or download it again"
                raise RasterReadError(msg) from error
            if part is not None:
                _resample(*part, values, window, resampling)
            return {"naip": values}

        stream(compute, grid=grid, sinks={"naip": writer}, size=_WINDOW, label="naip")
    return path


def _read_around(src: DatasetReader, bands: Bands, target: Grid) -> tuple[NDArray[np.uint8], Grid] | None:
    """Read the source pixels of a window of the tile's grid; None if the image does not reach it.

    Zero in all bands means no data, and nothing else does.
    """
    own = Grid.of(src)
    along, ones = np.linspace(0, 1, 21), np.ones(21)
    columns = target.width * np.concatenate([along, along, 0 * ones, ones])
    rows = target.height * np.concatenate([0 * ones, ones, along, along])
    x, y = transform(target.crs, own.crs, *(target.transform @ (columns, rows)))
    columns, rows = ~own.transform @ (np.asarray(x), np.asarray(y))
    left, right = np.clip([columns.min() - _REACH, columns.max() + _REACH + 1], 0, own.width).astype(int)
    top, bottom = np.clip([rows.min() - _REACH, rows.max() + _REACH + 1], 0, own.height).astype(int)
    if left >= right or top >= bottom:
        return None
    window = Window(left, top, right - left, bottom - top)
    values = np.asarray(src.read(list(bands.data), window=window), dtype=np.uint8)
    if not bands.masked and not bands.alpha and bands.nodata[0] is None:
        bands = replace(bands, nodata=(NODATA,) * len(bands.data))
    empty = ~bands.find_valid(src, values, window)
    values[0, ~empty & (values == NODATA).all(axis=0)] = 1
    values[:, empty] = NODATA
    return values, own.window(window)


def _resample(
    values: NDArray[np.uint8], own: Grid, result: NDArray[np.uint8], target: Grid, resampling: Resampling
) -> None:
    """Resample pixels to a window of the tile's grid."""
    if resampling is Resampling.nearest:
        column, row = (round(value) for value in ~target.transform @ own.transform @ (0, 0))
        top, bottom = np.clip([row, row + own.height], 0, target.height)
        left, right = np.clip([column, column + own.width], 0, target.width)
        result[:, top:bottom, left:right] = values[:, top - row : bottom - row, left - column : right - column]
        return
    reproject(
        values,
        result,
        src_transform=own.transform,
        src_crs=own.crs,
        dst_transform=target.transform,
        dst_crs=target.crs,
        src_nodata=NODATA,
        dst_nodata=NODATA,
        resampling=resampling,
        num_threads=_THREADS,
        UNIFIED_SRC_NODATA="YES",
    )


def _resampling(src: DatasetReader, grid: Grid) -> Resampling:
    """Return the resampling method; nearest neighbour if the image's pixels match the tile's."""
    if min(Grid.of(src).pixel_size(where=src.name)) < _SHRINKING:
        return Resampling.average
    if src.crs == grid.crs:
        moved = ~grid.transform @ src.transform
        same_size = np.allclose((moved.a, moved.b, moved.d, moved.e), (1, 0, 0, 1), rtol=0, atol=1e-6)
        if same_size and all(abs(value - round(value)) < 0.01 for value in (moved.c, moved.f)):
            return Resampling.nearest
    return Resampling.bilinear
