"""Opening rasters and putting results in place: what reading.py, codes.py and outputs.py define, under one name."""

from __future__ import annotations

from landprior.raster.codes import CodeRaster, open_codes, open_on_grid, read_classes, read_classes_at
from landprior.raster.outputs import check_output, reason_of, replacing
from landprior.raster.reading import (
    GDAL_CACHE_BYTES,
    gdal_cores,
    open_raster,
    read_window,
    split_band,
    with_band,
)

__all__ = [
    "GDAL_CACHE_BYTES",
    "CodeRaster",
    "check_output",
    "gdal_cores",
    "open_codes",
    "open_on_grid",
    "open_raster",
    "read_classes",
    "read_classes_at",
    "read_window",
    "reason_of",
    "replacing",
    "split_band",
    "with_band",
]
