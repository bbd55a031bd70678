"""Reading rasters of codes as classes of a scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from landprior.raster.codes import CodeRaster
from landprior.raster.scheme import IGNORED_INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from landprior.raster.scheme import ClassScheme


def read_classes(
    raster: CodeRaster | DatasetReader,
    window: Window | None,
    scheme: ClassScheme,
    *,
    codes: Mapping[int, int] | None,
    where: str | Path,
) -> NDArray[np.int16]:
    """Read a raster of class codes as class positions, -1 where there is no data.

    Parameters
    ----------
    raster, window
        An open raster of codes, or any open raster with one band of them, and the window to read; None for all.
    scheme
        The classes.
    codes
        Codes of the raster -> codes of the scheme, see :meth:`ClassScheme.encode`. No data is recognised before,
        by the file's own values.
    where
        Name of the raster in error messages.

    Returns
    -------
    ndarray of int16
        Positions 0..C-1, shape (H, W), and -1 where there is no data.

    Raises
    ------
    InputError
        If the raster does not contain whole numbers.
    SchemeError
        If the raster has codes that are not in the scheme, or its nodata value is the code of a class.
    """
    if not isinstance(raster, CodeRaster):
        raster = CodeRaster.of(raster, where)
    raster.require_free_nodata(scheme, codes)
    values, valid = raster.read_codes(window)
    return scheme.encode(values, label_map=codes, valid=valid, where=str(where))


def read_classes_at(
    raster: CodeRaster,
    places: NDArray[np.floating],
    scheme: ClassScheme,
    *,
    codes: Mapping[int, int] | None,
    where: str | Path,
) -> NDArray[np.int16]:
    """Read class positions at points, -1 where there is no data and outside the raster; see :func:`read_classes`.

    Parameters
    ----------
    raster
        An open raster of codes.
    places
        x and y in its CRS, shape (n, 2).
    scheme, codes, where
        See :func:`read_classes`.

    Returns
    -------
    ndarray of int16
        Positions 0..C-1, shape (n,), or -1.

    Raises
    ------
    InputError, SchemeError
        See :func:`read_classes`.
    """
    columns, rows = (np.floor(at) for at in ~raster.grid.transform @ (places[:, 0], places[:, 1]))
    inside = (rows >= 0) & (columns >= 0) & (rows < raster.grid.height) & (columns < raster.grid.width)
    found = np.full(len(places), IGNORED_INDEX, dtype=np.int16)
    for number in np.flatnonzero(inside).tolist():
        window = Window(int(columns[number]), int(rows[number]), 1, 1)
        found[number] = read_classes(raster, window, scheme, codes=codes, where=where)[0, 0]
    return found
