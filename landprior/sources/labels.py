"""The user's own labels, raster or vector, on the grid of a tile, in the codes of a class scheme."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.features import rasterize

from landprior.errors import InputError, LandpriorError, NoOverlapError, SchemeError
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.cog import CogWriter
from landprior.raster.names import split_band
from landprior.raster.reading import open_raster
from landprior.raster.scheme import IGNORED_INDEX, MAP_NODATA, read_code
from landprior.raster.windows import stream
from landprior.sources import tables
from landprior.sources.points import blanks, find_column
from landprior.sources.vectors import list_layers, parse_source, read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme
    from landprior.raster.windows import Block

logger = logging.getLogger(__name__)

_RASTERS = {
    *(".tif", ".tiff", ".img", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"),
    *(".asc", ".bil", ".bip", ".bsq", ".dat", ".hdr", ".grd", ".rst", ".hdf", ".nc"),
}
"""File endings taken as rasters if the file cannot be read."""
_BOTH = {"GPKG", "MBTiles", "PDF", "SQLite", "netCDF", "OpenFileGDB"}
"""GDAL's drivers whose files may contain rasters, vectors or both."""


def is_raster(path: str | Path) -> bool:
    """Return whether a file is a raster rather than vector data, by its content and not its name.

    A file that cannot be read as either is judged by its name, so that the error fits.
    """
    if split_band(path)[1] is not None:
        return True  # file.tif|band=2
    source = parse_source(path)
    suffix = source.path.suffix.lower()
    if source.layer is not None or suffix in tables.SUFFIXES:
        return False
    if not source.path.is_file():
        return suffix in _RASTERS
    try:
        with open_raster(source.path) as src:
            return src.driver not in _BOTH or not _has_layers(source.path)
    except LandpriorError:
        return suffix in _RASTERS and not _has_layers(source.path)


def _has_layers(path: Path) -> bool:
    try:
        return bool(list_layers(path))
    except InputError:
        return False


def write_labels(
    sources: Sequence[str | Path],
    grid: Grid,
    path: Path,
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    field: str = "class",
    overwrite: bool = False,
) -> bool:
    """Write labels on the grid of a tile, converted to the scheme's classes.

    Parameters
    ----------
    sources
        Rasters (resampled by nearest neighbour) or vector files; where several have labels, the first wins.
    grid
        Grid of the tile.
    path
        The file to write.
    scheme
        The classes.
    label_map
        Codes of the labels -> codes of the scheme.
    field
        Column of vector files with the class, by name or code.
    overwrite
        Replace an existing file.

    Returns
    -------
    bool
        Whether any source overlaps the grid; if none does, nothing is written.

    Raises
    ------
    InputError, SchemeError
        If a source cannot be read, or has an unknown class.
    """
    parts = [part for source in sources if (part := _read(Path(source), grid, scheme, label_map, field)) is not None]
    if not parts:
        return False
    classes = parts[0]
    for part in parts[1:]:
        classes = np.where(classes < 0, part, classes)
    if not (classes >= 0).any():
        return False
    with CogWriter(
        path, grid, nodata=MAP_NODATA, overviews="mode", scheme=scheme, tags={"kind": "labels"}, overwrite=overwrite
    ) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            part = classes[block.core.toslices()]
            return {"labels": scheme.decode(np.maximum(part, 0), part >= 0)}

        stream(compute, grid=grid, sinks={"labels": writer}, label="labels")
    return True


def _read(
    source: Path, grid: Grid, scheme: ClassScheme, label_map: Mapping[int, int] | None, field: str
) -> NDArray[np.int16] | None:
    """Return class positions on the grid, -1 where there are none; None if the source is elsewhere."""
    if is_raster(source):
        try:
            with open_on_grid(source, grid, like="the tile") as src:
                return read_classes(src, None, scheme, codes=label_map, where=source)
        except NoOverlapError:
            return None
    frame = read_vectors(source, grid=grid)
    found = find_column(frame.columns, field, source)
    if found is None:
        names = ", ".join(str(c) for c in frame.columns if c != "geometry")
        msg = f"{source} has no column {field!r} with the class (it has {names or 'none'}); name it with --class-column"
        raise InputError(msg)
    empty = blanks(frame, found)
    if empty.any():
        logger.info("  %s: %d of %d features on the tile have no class", source, int(empty.sum()), len(frame))
    frame, field = frame[~empty], found
    if frame.empty:
        return None
    positions = {value: class_position(value, scheme, label_map, source) for value in frame[field].unique()}
    shapes = [
        (geometry, positions[value])
        for geometry, value in zip(frame.geometry, frame[field], strict=True)
        if positions[value] >= 0
    ]
    if not shapes:
        return None
    burnt = rasterize(shapes[::-1], grid.shape, fill=IGNORED_INDEX, transform=grid.transform, dtype="int16")
    return np.asarray(burnt, dtype=np.int16)


def class_position(value: object, scheme: ClassScheme, label_map: Mapping[int, int] | None, source: str | Path) -> int:
    """Return the position of a class given by code or name.

    Parameters
    ----------
    value
        A cell of a table: a code, or a name of the scheme.
    scheme
        The classes.
    label_map
        Codes of the labels -> codes of the scheme.
    source
        Name of the labels in error messages.

    Returns
    -------
    int
        0..C-1, and -1 for an ignored code.

    Raises
    ------
    SchemeError
        If the scheme has no such class.
    """
    text = str(value).strip()
    code = read_code(text)
    if code is not None:
        return int(scheme.encode(np.array([code]), label_map=label_map, where=str(source))[0])
    try:
        return scheme.index(text)
    except SchemeError as error:
        msg = f"{source}: {error}"
        raise SchemeError(msg) from error
