"""Former module of names now in :mod:`reading`, :mod:`codes` and :mod:`outputs`, for scripts of version 0.1.

The package does not use it; it will be removed in version 0.3.
"""

from __future__ import annotations

from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.outputs import check_output, replacing
from landprior.raster.pixels import read_window
from landprior.raster.reading import GDAL_CACHE_BYTES, gdal_cores, open_raster

__all__ = [
    "GDAL_CACHE_BYTES",
    "check_output",
    "gdal_cores",
    "open_on_grid",
    "open_raster",
    "read_classes",
    "read_window",
    "replacing",
]
