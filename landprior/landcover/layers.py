"""Reading images and priors by windows, with their checks, for training and prediction alike."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from landprior.errors import InputError, LandpriorError, PriorError, RasterReadError, SchemeError
from landprior.raster.cog import TAG_DOMAIN
from landprior.raster.files import open_raster, read_valid, read_window
from landprior.raster.grid import Grid
from landprior.raster.scheme import ClassScheme, parse_scheme

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray


logger = logging.getLogger(__name__)

_TORCH_TYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype(np.int32),
    "uint32": np.dtype(np.int64),
    "float64": np.dtype(np.float32),
    "int8": np.dtype(np.int16),
}
"""Types torch does not compute with, and what holds their values."""


class _Layer:
    """An open raster."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.src = open_raster(path)
        self.grid = Grid.of(self.src)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.src.close()


class ImageLayer(_Layer):
    """An image: any number of bands, any numeric type.

    Many 4-band NAIP files say that their near infrared is an alpha band (GDAL's default for four bands of
    bytes). A band called alpha counts as a mask only if it looks like one: 0 and full, nothing between.

    Parameters
    ----------
    path
        The raster.
    nodata
        A value that marks no data when the file has no nodata of its own: a pixel with this value in
        every band. A file's own nodata, alpha or mask always counts.
    """

    def __init__(self, path: str | Path, *, nodata: float | None = None) -> None:
        super().__init__(path)
        self._nodata = nodata
        tagged = [i for i, kind in enumerate(self.src.colorinterp, start=1) if kind == ColorInterp.alpha]
        try:
            masks = [i for i in tagged if self._looks_like_a_mask(i)]
        except RasterReadError:
            self.src.close()
            raise
        self._indexes = [i for i in range(1, self.src.count + 1) if i not in masks] or [1]
        self._mistagged = bool(tagged) and not masks
        if self._mistagged:
            logger.info("%s: band %d is called alpha but holds data; using it as a band", path, tagged[0])

    @property
    def bands(self) -> int:
        """Number of bands (an alpha band is the mask, not data)."""
        return len(self._indexes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What :meth:`read` gives: the file's type where torch computes with it, else one that holds its values."""
        own: np.dtype[Any] = np.dtype(self.src.dtypes[0])
        return _TORCH_TYPES.get(own.name, own)

    def _looks_like_a_mask(self, index: int) -> bool:
        """Say whether a band is 0 and full only, in sixteen places."""
        height, width = self.grid.shape
        full = np.iinfo(self.src.dtypes[index - 1]).max if self.src.dtypes[index - 1].startswith(("u", "i")) else 1
        side = 64
        for row in np.linspace(0, max(height - side, 0), 4):
            for column in np.linspace(0, max(width - side, 0), 4):
                window = Window(int(column), int(row), min(side, width), min(side, height))
                if not np.isin(read_window(self.src, window, index), (0, full)).all():
                    return False
        return True

    def _valid(self, values: NDArray[np.generic], window: Window | None) -> NDArray[np.bool_]:
        if not self._mistagged:
            return read_valid(self.src, window)
        if self.src.nodata is None:
            return np.ones(values.shape[-2:], dtype=bool)
        return np.asarray(~(values == self.src.nodata).all(axis=0))

    def read(self, window: Window | None = None) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read pixels.

        Returns
        -------
        values : ndarray, shape (B, H, W)
            Of :attr:`dtype`; invalid pixels are 0.
        valid : ndarray of bool, shape (H, W)

        Raises
        ------
        InputError
            If there is NaN or infinity where the file says there is data.
        """
        values = read_window(self.src, window, self._indexes)
        valid = self._valid(values, window)
        if self._nodata is not None:
            valid &= ~(values == self._nodata).all(axis=0)
        if values.dtype.kind == "f":
            broken = valid & ~np.isfinite(values).all(axis=0)
            if broken.any():
                row, col = np.argwhere(broken)[0]
                at = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
                msg = (
                    f"{self.path} has NaN or infinity at row {row + at[0]}, column {col + at[1]} but no NaN nodata; "
                    f"mark it with: rio edit-info --nodata nan {self.path}"
                )
                raise InputError(msg)
        if not valid.all():
            values = np.where(valid, values, np.zeros((), values.dtype))
        return values.astype(self.dtype, copy=False), valid


class PositionLayer:
    """Where each pixel is: row and column, from -1 to 1 over the image; read by windows like any layer."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def read(self, window: Window | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return positions, float32, (2, H, W), and that all are valid, (H, W)."""
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
        Its classes; None to take them from the file's own tags.

    Raises
    ------
    SchemeError
        If no scheme is given and the file names none, or it names another.
    PriorError
        If the number of bands is not the number of classes.
    """

    def __init__(self, path: str | Path, *, scheme: ClassScheme | None = None) -> None:
        super().__init__(path)
        self.tags: dict[str, str] = self.src.tags(ns=TAG_DOMAIN)
        # no data as NaN is seen in the values; asking GDAL for its mask reads every band once more
        self._masked = not (self.src.nodata is not None and np.isnan(self.src.nodata))
        try:
            self.scheme = self._find_scheme(scheme)
            self._require_one_band_per_class()
        except LandpriorError:
            self.src.close()
            raise

    def _require_one_band_per_class(self) -> None:
        if self.src.count != len(self.scheme):
            msg = (
                f"{self.path} has {self.src.count} bands and scheme {self.scheme.name!r} has {len(self.scheme)} "
                "classes; a prior has one band per class"
            )
            raise PriorError(msg)

    def _find_scheme(self, given: ClassScheme | None) -> ClassScheme:
        text = self.tags.get("scheme")
        if text is None:
            if given is None:
                msg = f"{self.path} does not say its classes; give --scheme (a shipped name or a YAML file)"
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
            If some bands of a pixel are NaN and others not, or a value is negative.
        """
        values = read_window(self.src, window).astype(np.float32, copy=False)
        mass = values.sum(axis=0)
        missing = np.isnan(mass)
        gaps = bool(missing.any())
        wrong = (values < 0).any(axis=0)
        if gaps:
            wrong |= missing & ~np.isnan(values).all(axis=0)
            values[:, missing] = 0
        if wrong.any():
            row, col = np.argwhere(wrong)[0]
            at = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
            msg = (
                f"{self.path} is no prior: NaN in some bands or a negative value at row {row + at[0]}, "
                f"column {col + at[1]}; build it with: landprior build-prior"
            )
            raise PriorError(msg)
        valid = mass > 0
        if self._masked:
            valid &= read_valid(self.src, window)
        np.divide(values, mass, out=values, where=valid)
        if not valid.all():
            values[:, ~valid] = 0
        return values, valid
