"""Windowed reading of images and priors with checks, for both training and prediction."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp

from landprior.errors import InputError, LandpriorError, PriorError, SchemeError
from landprior.raster.advice import advise_nodata
from landprior.raster.bands import find_bands, find_sentinel, match_nodata, usable_nodata
from landprior.raster.grid import Grid
from landprior.raster.names import quote, split_band
from landprior.raster.pixels import place_of, read_window
from landprior.raster.reading import TAG_DOMAIN, OpenDataset, open_raster
from landprior.raster.scheme import ClassScheme, parse_scheme
from landprior.raster.windows import iter_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window


logger = logging.getLogger(__name__)

_TORCH_TYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype(np.int32),
    "uint32": np.dtype(np.int64),
    "float64": np.dtype(np.float32),
    "int8": np.dtype(np.int16),
}
"""Types torch cannot compute with, and types that hold their values."""


class _Layer(OpenDataset):
    """An open raster."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.src = open_raster(path)
        self.grid = Grid.of(self.src)


class ImageLayer(_Layer):
    """An image: any number of bands, any numeric type.

    :mod:`landprior.raster.bands` decides which bands are data and which pixels are valid.

    Parameters
    ----------
    path
        The raster; ``stack.tif|band=2`` reads only that band.
    nodata
        Nodata value for a file that has none of its own: a pixel with this value in
        every band (if negative or huge: in any band). A file's own nodata, alpha or mask always applies.

    Raises
    ------
    InputError
        If the image has a palette, so its values are colour indices, or complex numbers.
    """

    def __init__(self, path: str | Path, *, nodata: float | None = None) -> None:
        super().__init__(path)
        try:
            self._found = find_bands(self.src, band=split_band(path)[1])
            self._require_quantities()
        except LandpriorError:
            self.src.close()
            raise
        own = np.dtype(self.src.dtypes[self._found.data[0] - 1])
        self._nodata = usable_nodata(nodata, own)
        self._noted = False
        if self._found.called_alpha:
            logger.info(
                "%s: band %d is called alpha but holds data; using it as a band", path, self._found.called_alpha[0]
            )

    def _require_quantities(self) -> None:
        first = self._found.data[0]
        if any(self.src.colorinterp[index - 1] == ColorInterp.palette for index in self._found.data):
            msg = (
                f"{self.path} has a palette: its values are colour indices, not brightness; "
                f"convert it to colours first: gdal_translate -expand rgb {quote(split_band(self.path)[0])} rgb.tif"
            )
            raise InputError(msg)
        kind = self.src.dtypes[first - 1]
        if np.dtype(kind).kind not in "iuf":
            msg = f"{self.path} holds {kind} numbers; give an image of real numbers (for example its magnitude)"
            raise InputError(msg)

    @property
    def given_nodata(self) -> float | None:
        """The nodata value given by the user."""
        return self._nodata

    @property
    def bands(self) -> int:
        """Number of bands (an alpha band is the mask, not data)."""
        return len(self._found.data)

    @property
    def indexes(self) -> list[int]:
        """Numbers of the bands in the file, from 1."""
        return list(self._found.data)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of :meth:`read`'s values: the file's if torch can compute with it, otherwise one that holds it."""
        own: np.dtype[Any] = np.dtype(self.src.dtypes[self._found.data[0] - 1])
        return _TORCH_TYPES.get(own.name, own)

    def read(self, window: Window | None = None) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read pixels.

        Returns
        -------
        values : ndarray, shape (B, H, W)
            Values of type :attr:`dtype`; invalid pixels are 0.
        valid : ndarray of bool, shape (H, W)
            False where there is no data, NaN or infinity.

        Raises
        ------
        InputError
            If a pixel has a common nodata value (such as -9999) in every band, and neither the file nor ``nodata``
            declares it.
        """
        values = read_window(self.src, window, self.indexes)
        valid = self._found.find_valid(self.src, values, window)
        if self._nodata is not None:
            valid &= ~match_nodata(values, [self._nodata] * len(values))
        if values.dtype.kind == "f":
            self._note_broken(values)
        odd = find_sentinel(values, valid)
        if odd is not None:
            value, index = odd
            msg = (
                f"{self.path} has {value:.8g} in every band at {place_of(index, window)}, which usually means "
                f"no data, but the file does not declare it; give --nodata={value:.8g}, or set it in the file: "
                f"{advise_nodata(self.path, value)}"
            )
            raise InputError(msg)
        if not valid.all():
            values = np.where(valid, values, np.zeros((), values.dtype))
        return values.astype(self.dtype, copy=False), valid

    def _note_broken(self, values: NDArray[np.generic]) -> None:
        """Log once how many pixels are NaN or infinite, unless NaN is the file's nodata value."""
        if self._noted or not self._count_broken(values):
            return
        self._noted = True
        total = sum(
            self._count_broken(read_window(self.src, block.core, self.indexes))
            for block in iter_blocks(self.grid, size=2048)
        )
        logger.info("%s: pixels that are NaN or infinite in some band: %d; they count as no data", self.path, total)

    def _count_broken(self, values: NDArray[np.generic]) -> int:
        declared = any(value is not None and np.isnan(value) for value in (*self._found.nodata, self._nodata))
        broken = np.isinf(values) if declared else ~np.isfinite(values)
        return int(broken.any(axis=0).sum())


class PositionLayer:
    """The position of each pixel: row and column, from -1 to 1 over the image; read by windows like any layer."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def read(self, window: Window | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return positions, float32, (2, H, W), and a mask that is all True, (H, W)."""
        rows, columns = (slice(0, size) for size in self.grid.shape) if window is None else window.toslices()
        axes = [
            (np.arange(span.start, span.stop, dtype=np.float32) + 0.5) * (2 / size) - 1
            for span, size in zip((rows, columns), self.grid.shape, strict=True)
        ]
        places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        return places, np.ones(places.shape[1:], dtype=bool)


class PriorLayer(_Layer):
    """A prior: one band per class, as written by ``build-prior`` or as published (uint8 of 255 p).

    Parameters
    ----------
    path
        The raster.
    scheme
        Its classes; None to read them from the file's tags.

    Raises
    ------
    SchemeError
        If no scheme is given and the file stores none, or if they differ.
    PriorError
        If the number of bands is not the number of classes.
    """

    def __init__(self, path: str | Path, *, scheme: ClassScheme | None = None) -> None:
        super().__init__(path)
        self.tags: dict[str, str] = self.src.tags(ns=TAG_DOMAIN)
        try:
            self.scheme = self._find_scheme(scheme)
            # with a band per class, one declared as alpha (GDAL's default for a fourth byte band) is a class
            self._found = find_bands(self.src, due=len(self.scheme))
            # nodata as NaN shows in the values
            self._marked = bool(
                self._found.alpha
                or self._found.masked
                or any(value is not None and not np.isnan(value) for value in self._found.nodata)
            )
            self._require_one_band_per_class()
        except LandpriorError:
            self.src.close()
            raise

    def _require_one_band_per_class(self) -> None:
        if len(self._found.data) != len(self.scheme):
            msg = (
                f"{self.path} has {len(self._found.data)} bands and scheme {self.scheme.name!r} has {len(self.scheme)} "
                "classes; a prior has one band per class"
            )
            raise PriorError(msg)

    def _find_scheme(self, given: ClassScheme | None) -> ClassScheme:
        text = self.tags.get("scheme")
        if text is None:
            if given is None:
                msg = f"{self.path} has no classes in its tags; give --scheme (a shipped name or a YAML file)"
                raise SchemeError(msg)
            return given
        own = parse_scheme(text, self.path)
        if given is not None and (given.names, given.codes.tolist()) != (own.names, own.codes.tolist()):
            msg = f"{self.path} was built for scheme {own.name!r}, not {given.name!r}; build it again or drop --scheme"
            raise SchemeError(msg)
        return own

    def read(self, window: Window | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read probabilities.

        Returns
        -------
        prior : ndarray of float32, shape (C, H, W)
            Sum 1 where valid, 0 elsewhere.
        valid : ndarray of bool, shape (H, W)
            False where every band is nodata or zero.

        Raises
        ------
        PriorError
            If only some bands of a pixel are NaN, or a value is negative.
        """
        raw = read_window(self.src, window, list(self._found.data))
        values = raw.astype(np.float32, copy=False)
        seen = self._found.find_valid(self.src, raw, window) if self._marked else None
        if seen is not None:
            values = np.where(seen | ~np.isfinite(values), values, np.float32(0))
        wrong = (values < 0).any(axis=0)
        mass = values.sum(axis=0)
        missing = ~np.isfinite(mass)
        if missing.any():
            wrong = (wrong & ~missing) | (missing & np.isfinite(values).any(axis=0))
            values[:, missing] = mass[missing] = 0
        if wrong.any():
            index = np.argwhere(wrong)[0]
            msg = (
                f"{self.path} is not a prior: NaN in some bands or a negative value at {place_of(index, window)}; "
                "build it with: landprior build-prior"
            )
            raise PriorError(msg)
        valid = mass > 0
        np.divide(values, mass, out=values, where=valid)
        if not valid.all():
            values[:, ~valid] = 0
        return values, valid
