"""Rasters of codes: one band of whole numbers, on its own grid or resampled to another by nearest neighbour."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from landprior.errors import GridMismatchError, InputError, NoOverlapError, SchemeError
from landprior.raster.advice import advise_crs, advise_nodata
from landprior.raster.bands import Bands, find_bands, match_nodata
from landprior.raster.grid import Grid, require_same_grid
from landprior.raster.names import split_band
from landprior.raster.pixels import place_of, read_window
from landprior.raster.reading import TAG_DOMAIN, OpenDataset, open_raster

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

_GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip
_PROBES = 33
"""Points per side used to measure how much of a grid a raster covers."""

_LARGEST = 2.0**53
"""Largest float that is still an exact whole number."""


class CodeRaster(OpenDataset):
    """One band of an open raster: class codes, or the presence of something.

    Parameters
    ----------
    src
        The dataset to read.
    path
        Name of the raster in messages.
    band
        The band of ``src`` with the codes.
    bands
        What marks its valid pixels.
    masks
        Additional bands of ``src`` that are 0 where there is no data, if ``src`` is warped.
    origin
        The grid that rows and columns in messages refer to, if not the file's own.
    ours
        Whether landprior wrote the file.
    """

    def __init__(
        self,
        src: DatasetReader,
        path: str | Path,
        *,
        bands: Bands,
        band: int = 1,
        masks: tuple[int, ...] = (),
        origin: str = "",
        ours: bool = False,
    ) -> None:
        self.src, self.path, self.grid = src, path, Grid.of(src)
        self._bands, self._band, self._masks, self._origin, self._ours = bands, band, masks, origin, ours

    @classmethod
    def of(cls, src: DatasetReader, path: str | Path, *, band: int | None = None) -> Self:
        """Return the one band of codes of an open raster.

        Parameters
        ----------
        src, path
            The raster, and the name for messages.
        band
            Number of the band, from 1; by default the only one.

        Returns
        -------
        CodeRaster
            The band, ready to be read by windows.

        Raises
        ------
        InputError
            See :func:`choose_band`.
        """
        bands = choose_band(src, path, band)
        return cls(src, path, bands=bands, band=bands.data[0], ours=bool(src.tags(ns=TAG_DOMAIN)))

    @property
    def nodata(self) -> float | None:
        """The file's own nodata value; None if there is none, or its data type cannot represent it."""
        return self._bands.nodata[0]

    @property
    def bands(self) -> Bands:
        """The band and what marks its valid pixels."""
        return self._bands

    def read(self, band: int = 1, window: Window | None = None) -> NDArray[np.generic]:
        """Read the unchanged band, shape (H, W); there is only one."""
        del band
        return read_window(self.src, window, self._band)

    def read_values(self, window: Window | None = None) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read the unchanged band and the mask of valid pixels, both of shape (H, W)."""
        values = self.read(window=window)
        if not self._masks:
            return values, self._bands.find_valid(self.src, values[None], window)
        valid = ~match_nodata(values[None], self._bands.nodata)
        if values.dtype.kind in "fc":
            valid &= np.isfinite(values)
        for index in self._masks:
            valid &= read_window(self.src, window, index) != 0
        return values, valid

    def covers(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Return which pixels lie within the raster, with or without data, shape (H, W)."""
        if self._masks:  # the last mask is the extent of a warped raster
            return np.asarray(read_window(self.src, window, self._masks[-1]) != 0)
        shape = self.grid.shape if window is None else (int(window.height), int(window.width))
        return np.ones(shape, dtype=bool)

    def read_codes(self, window: Window | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Read codes, 0 where there is no data, and the mask of valid pixels, both of shape (H, W).

        Raises
        ------
        InputError
            If a valid value is not a whole number.
        """
        values, valid = self.read_values(window)
        if values.dtype.kind == "f":
            wrong = valid & ((values != np.trunc(values)) | (np.abs(values) > _LARGEST))
            if wrong.any():
                index = np.argwhere(wrong)[0]
                value = float(values[tuple(index)])
                if abs(value) > _LARGEST:
                    msg = (
                        f"{self.path} has {value:.6g} at {self.place(index, window)}, which is not a class code; if it "
                        f"means no data, set it in the file: {advise_nodata(self.path, value)}"
                    )
                    raise InputError(msg)
                msg = (
                    f"{self.path} has {value:.6g} at {self.place(index, window)}, but class codes are "
                    "whole numbers. Is it a prior or probabilities? If it was resampled by averaging or "
                    "interpolation, use nearest neighbour instead (-r near)"
                )
                raise InputError(msg)
        elif values.dtype.kind not in "iu":
            msg = f"{self.path} has {values.dtype} numbers, not class codes; give a raster of whole numbers"
            raise InputError(msg)
        return np.where(valid, values, 0).astype(np.int64), valid

    def place(self, index: NDArray[np.integer], window: Window | None) -> str:
        """Return the place of a pixel of a window, for messages."""
        return place_of(index, window) + self._origin

    def require_free_nodata(self, scheme: ClassScheme, codes: Mapping[int, int] | None = None) -> None:
        """Raise an error if the nodata value is also the code of a class.

        Raises
        ------
        SchemeError
            If it is; the message explains how to resolve this.
        """
        value = self.nodata
        if self._ours or value is None or not math.isfinite(value) or value != int(value):
            return
        code = int(value)
        try:
            index = scheme.find_class(code, codes)
        except KeyError:
            return
        if index is None:
            return
        msg = (
            f"{self.path} uses {code} for no data, which is also the code of class {scheme.names[index]!r}. If {code} "
            f"is the class there, unset the nodata value: {advise_nodata(self.path, None)}. If it "
            f'means no data, give --label-map "{code}:255" (--map-map for a map), or remove it from the scheme'
        )
        raise SchemeError(msg)


def choose_band(src: DatasetReader, path: str | Path, band: int | None = None) -> Bands:
    """Find the one band of codes of an open raster.

    Parameters
    ----------
    src, path
        The open raster, and its name in error messages.
    band
        The band to read, from 1; None if the file has only one data band.

    Returns
    -------
    Bands
        The band, and what marks its valid pixels.

    Raises
    ------
    InputError
        If there are several and none was chosen, or the chosen one does not exist; the message lists them.
    """
    if band is not None:
        if not 1 <= band <= src.count:
            msg = f"{path} has no band {band}; it has {_list_bands(src, range(1, src.count + 1))}"
            raise InputError(msg)
        return find_bands(src, band=band)
    bands = find_bands(src)
    if len(bands.data) == 1:
        return bands
    kinds = {src.colorinterp[i - 1] for i in bands.data}
    hints = ["choose one with --band N, or by its name: FILE|band=N"]
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= kinds:
        hints.append("if it is a picture, give the raster of codes it was made from")
    if src.tags(ns=TAG_DOMAIN).get("scheme") or src.dtypes[bands.data[0] - 1].startswith("float"):
        hints.append("if it is a prior or probabilities, give the map of class codes")
    msg = (
        f"{path} has {len(bands.data)} bands, but one band of codes is needed: {_list_bands(src, bands.data)}; "
        f"{'; '.join(hints)}"
    )
    raise InputError(msg)


def _list_bands(src: DatasetReader, numbers: range | tuple[int, ...]) -> str:
    names = []
    for number in numbers[:20]:
        description = src.descriptions[number - 1]
        kind = src.colorinterp[number - 1]
        if not description and kind not in (ColorInterp.undefined, ColorInterp.gray):
            description = kind.name
        names.append(f"{number} ({description})" if description else str(number))
    return ", ".join(names) + (" ..." if len(numbers) > 20 else "")


@contextmanager
def open_codes(path: str | Path) -> Iterator[CodeRaster]:
    """Open one band of codes on its own grid.

    Parameters
    ----------
    path
        The raster; ``stack.tif|band=2`` selects one of several bands.

    Yields
    ------
    CodeRaster
        The raster, open within the block.

    Raises
    ------
    InputError
        See :func:`choose_band`.
    """
    _, band = split_band(path)
    with open_raster(path) as src:
        yield CodeRaster.of(src, path, band=band)


@contextmanager
def open_on_grid(path: str | Path, grid: Grid, *, like: str | Path, partly: bool = False) -> Iterator[CodeRaster]:
    """Open one band of codes on a grid, resampled by nearest neighbour on the fly if necessary.

    Parameters
    ----------
    path
        See :func:`open_codes`.
    grid
        The requested grid.
    like
        The file that has this grid, for messages.
    partly
        Whether the raster may cover only part of the grid, or none, because it is one of several to be joined.

    Yields
    ------
    CodeRaster
        The raster on ``grid``, open within the block.

    Raises
    ------
    GridMismatchError
        If the grids differ and a CRS is missing or local, so that the raster cannot be warped, or they do not overlap.
    InputError
        See :func:`choose_band`.
    """
    with ExitStack() as stack:
        raster = stack.enter_context(open_codes(path))
        own = raster.grid
        if own.matches(grid):
            yield raster
            return
        if own.crs is None or grid.crs is None:
            require_same_grid(grid, own, names=(str(like), str(path)))
        if not partly:
            _require_overlap(own, grid, names=(str(path), str(like)))
        yield _warp(stack, raster, grid, like)


def _require_overlap(own: Grid, grid: Grid, *, names: tuple[str, str]) -> None:
    """Raise an error for a raster elsewhere, and log how much of the grid it covers if not all."""
    columns, rows = (
        points.ravel()
        for points in np.meshgrid(np.linspace(0, grid.width, _PROBES), np.linspace(0, grid.height, _PROBES))
    )
    xs, ys = grid.transform @ (columns, rows)
    if own.crs != grid.crs:
        try:
            xs, ys = transform_points(grid.crs, own.crs, xs.tolist(), ys.tolist())
        except (RasterioError, CPLE_BaseError) as error:
            raise GridMismatchError(_unrelated(own, grid, names)) from error
    u, v = ~own.transform @ (np.asarray(xs, dtype=float), np.asarray(ys, dtype=float))
    slack = 1e-6
    inside = (u >= -slack) & (u <= own.width + slack) & (v >= -slack) & (v <= own.height + slack)
    known = np.isfinite(u) & np.isfinite(v)
    apart = not known.any() or (
        u[known].max() <= 0 or v[known].max() <= 0 or u[known].min() >= own.width or v[known].min() >= own.height
    )
    if apart:
        there = "nowhere" if not known.any() else _box(*_extent(np.asarray(xs)[known], np.asarray(ys)[known]))
        msg = (
            f"{names[0]} and {names[1]} do not overlap: {_box(*own.bounds)} and {there} in {names[0]}'s CRS; "
            "give files of the same place"
        )
        raise NoOverlapError(msg)
    share = float(inside.mean())
    if share < 1:
        logger.info("%s covers about %.0f %% of %s; the rest is no data", names[0], 100 * share, names[1])


def _extent(xs: NDArray[np.floating], ys: NDArray[np.floating]) -> tuple[float, float, float, float]:
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _unrelated(own: Grid, grid: Grid, names: tuple[str, str]) -> str:
    """Return a message that two CRSs cannot be related, and which one is the cause."""
    local = [name for name, one in zip(names, (own, grid), strict=True) if one.local]
    which = " and ".join(local) or f"one of {names[0]} and {names[1]}"
    which += " have" if len(local) > 1 else " has"
    return (
        f"{names[0]} cannot be warped to the grid of {names[1]}: {which} a local CRS without a known place on Earth; "
        f"assign its true CRS: {advise_crs(local[0] if local else 'FILE')}"
    )


def _box(left: float, bottom: float, right: float, top: float) -> str:
    return f"({left:.6g}, {bottom:.6g}, {right:.6g}, {top:.6g})"


def _warp(stack: ExitStack, raster: CodeRaster, grid: Grid, like: str | Path) -> CodeRaster:
    """Warp a raster to another grid: its codes, and the bands that mark its valid pixels.

    GDAL's warper has its own rules for nodata, alpha and masks, so these are hidden from it here.
    """
    own, bands = raster.grid, raster.bands
    plain = stack.enter_context(rasterio.open(_describe(raster)))
    left, right = grid.transform @ (0.0, grid.height / 2), grid.transform @ (float(grid.width), grid.height / 2)
    xs, ys = (list(pair) for pair in zip(left, right, strict=True))
    if own.crs != grid.crs:
        xs, ys = transform_points(grid.crs, own.crs, xs, ys)
    span = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
    cell_pixels = grid.width * math.sqrt(abs(own.transform.determinant)) / span if span > 0 else 1.0
    warped = stack.enter_context(
        WarpedVRT(
            plain,
            src_crs=own.crs,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            tolerance=0.125 / max(cell_pixels, 1.0),  # GDAL counts in pixels of the raster, not of the grid
            src_nodata=None,
            nodata=None,
            add_alpha=True,
        )
    )
    return CodeRaster(
        warped,
        raster.path,
        bands=Bands(data=(1,), nodata=bands.nodata),
        masks=tuple(range(2, warped.count + 1)),
        origin=f" on the grid of {like}",
        ours=raster._ours,  # noqa: SLF001 - of the same class
    )


def _describe(raster: CodeRaster) -> str:
    """Return a VRT: the codes, then each alpha band and the mask, all as plain bands."""
    src, bands, grid = raster.src, raster.bands, raster.grid
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    ET.SubElement(root, "SRS").text = "" if grid.crs is None else grid.crs.to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in grid.transform.to_gdal())
    parts = [(str(i), src.dtypes[i - 1]) for i in (*bands.data, *bands.alpha)]
    if bands.masked:
        parts.append((f"mask,{bands.data[0]}", "uint8"))
    for number, (band, kind) in enumerate(parts, start=1):
        if kind not in _GDAL_TYPES:
            msg = f"{raster.path} has {kind} numbers, not class codes; give a raster of whole numbers"
            raise InputError(msg)
        element = ET.SubElement(root, "VRTRasterBand", dataType=_GDAL_TYPES[kind], band=str(number))
        source = ET.SubElement(element, "SimpleSource")
        ET.SubElement(source, "SourceFilename", relativeToVRT="0", shared="0").text = src.name
        ET.SubElement(source, "SourceBand").text = band
    return ET.tostring(root, encoding="unicode")
