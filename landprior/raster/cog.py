"""The writer of all rasters: Cloud-Optimized GeoTIFFs, written window by window and atomically."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.shutil import copy as gdal_copy

from landprior.errors import RasterWriteError
from landprior.raster.outputs import prepare_place, replacing
from landprior.raster.reading import GDAL_CACHE_BYTES, TAG_DOMAIN, gdal_cores
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.sidecars import NAMES, NAMES_HEAD
from landprior.raster.windows import BLOCK

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from rasterio.io import DatasetWriter
    from rasterio.windows import Window

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

Encoding = Literal["float16", "uint8", "float32"]
"""How probabilities are stored: rounded to half precision (default), as uint8 of 255 p, or in single precision."""


class CogWriter(AbstractContextManager["CogWriter"]):
    """Write a Cloud-Optimized GeoTIFF window by window.

    Windows are written to a temporary tiled GeoTIFF beside the target. When the block ends without an error, overviews
    are added, GDAL's COG driver writes the final layout, and the file is moved into place. After an error or
    interruption nothing is left behind and an existing file is unchanged. Temporarily needs about twice the disk space
    of the result; memory does not depend on its size.

    Parameters
    ----------
    path
        The file to write.
    grid
        Grid of the raster.
    count
        Number of bands.
    dtype
        ``"uint8"``, ``"int16"``, ``"uint16"``, ``"float32"``, or ``"float16"`` (rounded to half floats and
        stored as float32, whose empty lower bits compress away).
    nodata
        The nodata value, or None.
    overviews
        ``"mode"`` for classes, ``"average"`` for quantities.
    scale
        Factor for stored integers, written as the bands' scale.
    descriptions
        Band names.
    tags
        Tags for the metadata domain ``landprior``.
    scheme
        Scheme of a class map: it is written to the tags, with a colour table, and ``<path>.aux.xml`` has
        class names and, if ``dtype`` is ``uint8``, an attribute table (:func:`write_class_table`).
    overwrite
        Replace an existing file and the files beside it (:func:`landprior.raster.sidecars.sidecars_of`).
    keep
        New files beside it that are kept.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        If the result cannot be written there, or the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        *,
        count: int = 1,
        dtype: str = "uint8",
        nodata: float | None = None,
        overviews: Literal["mode", "average", "nearest"] = "average",
        scale: float | None = None,
        descriptions: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        scheme: ClassScheme | None = None,
        overwrite: bool = False,
        keep: Collection[Path] = (),
    ) -> None:
        self.path = prepare_place(path, overwrite=overwrite, kind="raster")
        self._keep = keep
        self.grid = grid
        self._overviews = overviews
        self._half = dtype == "float16"
        self._profile = {
            "driver": "GTiff",
            "height": grid.height,
            "width": grid.width,
            "transform": grid.transform,
            "crs": grid.crs,
            "count": count,
            "dtype": "float32" if dtype == "float16" else dtype,
            "nodata": nodata,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "zstd",
            "zstd_level": 1,
            "num_threads": 1,  # GDAL's other threads do not report a full disk
            "bigtiff": "IF_SAFER",
            "sparse_ok": True,
            "interleave": "band",
            # GDAL would declare the fourth of four bands as alpha, but near infrared is not
            **({} if count in (1, 3) else {"photometric": "MINISBLACK"}),
        }
        self._scale = scale
        self._descriptions = tuple(descriptions)
        own = {} if scheme is None else {"scheme": scheme.model_dump_json(exclude_defaults=True)}
        self.tags = own | dict(tags or {})
        self._scheme = scheme
        self._counts = np.zeros(256, dtype=np.int64) if scheme is not None and dtype == "uint8" else None
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._dst: DatasetWriter | None = None

    def __enter__(self) -> Self:
        """Open the temporary file."""
        stack = ExitStack()
        try:
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
            names = () if self._scheme is None else (NAMES,)
            self._final = stack.enter_context(
                replacing(self.path, overwrite=self._overwrite, kind="raster", companions=names, keep=self._keep)
            )
            self._draft = self._final.with_name("draft.tif" if self._final.name != "draft.tif" else "draft.draft.tif")
            self._dst = rasterio.open(self._draft, "w", **self._profile)
            if self._scale is not None:
                self._dst.scales = (self._scale,) * self._dst.count
            if self._descriptions:
                self._dst.descriptions = self._descriptions
            if self._scheme is not None:
                table = {int(c.code): (*c.rgb, 255) for c in self._scheme.classes}
                self._dst.write_colormap(1, {**table, MAP_NODATA: (0, 0, 0, 0)})
        except BaseException:
            stack.close()
            raise
        self._stack = stack
        return self

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:
        """Write a window, shape (H, W) or (bands, H, W)."""
        if self._dst is None:
            msg = "the writer is not open; use it in a with block"
            raise RuntimeError(msg)
        array = values[None] if values.ndim == 2 else values
        if (
            self._half
        ):  # not GDAL's NBITS=16: its COG driver leaves uninitialised memory in the edge blocks of such files
            array = array.astype(np.float16).astype(np.float32)
        if self._counts is not None:
            for row in array[0]:  # by rows, as bincount needs eight times the memory of bytes
                self._counts += np.bincount(row.astype(np.uint8, copy=False), minlength=256)
        try:
            self._dst.write(array, window=window)
        except (RasterioError, CPLE_BaseError) as error:
            raise self._failure(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the COG and move it into place; after an error leave everything unchanged."""
        dst, self._dst = self._dst, None
        try:
            if dst is not None and kind is None:
                if self.tags:
                    dst.update_tags(ns=TAG_DOMAIN, **self.tags)
                self._finish(dst)
            elif dst is not None:
                dst.close()
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)

    def _finish(self, dst: DatasetWriter) -> None:
        try:
            dst.close()
            # The COG driver could make them too, but its memory would grow with the width, as it joins the bands first.
            with rasterio.Env(GDAL_NUM_THREADS="1"), rasterio.open(self._draft, "r+") as draft:  # as above
                draft.build_overviews(overview_factors(self.grid), Resampling[self._overviews])
            gdal_copy(
                str(self._draft),
                str(self._final),
                driver="COG",
                compress="DEFLATE",
                # differences of neighbours compress quantities; for class codes they only add symbols
                predictor="YES" if self._overviews == "average" else "NO",
                blocksize=BLOCK,
                bigtiff="IF_SAFER",
                overviews="FORCE_USE_EXISTING",
                copy_src_mdd="YES",
                sparse_ok="YES",
                num_threads=gdal_cores(),
            )
            # GDAL reports a write that fails at the very end (full disk) as a success, so check.
            with rasterio.open(self._final) as check:
                check.read(1, window=((check.height - 1, check.height), (check.width - 1, check.width)))
        except (RasterioError, CPLE_BaseError) as error:
            raise self._failure(error) from error
        self._draft.unlink(missing_ok=True)
        if self._scheme is not None:
            write_class_table(self._final, self._scheme, self._counts)

    def _failure(self, error: Exception) -> RasterWriteError:
        cause = " ".join(str(error.__cause__ or error).split())
        msg = f"cannot write {self.path} ({cause}); is the disk full?"
        return RasterWriteError(msg)


def overview_factors(grid: Grid) -> list[int]:
    """Return the powers of two by which a raster is reduced until it fits into one block."""
    longest, factors = max(grid.height, grid.width), list[int]()
    while longest > BLOCK:
        factors.append(2 ** (len(factors) + 1))
        longest = -(-longest // 2)
    return factors


def write_raster(path: str | Path, values: NDArray[np.generic], grid: Grid, **options: object) -> Path:
    """Write an array to a raster.

    Parameters
    ----------
    path
        The file to write.
    values, grid
        Pixels, shape (H, W) or (bands, H, W), and the grid of H rows and W columns.
    **options
        Options of :class:`CogWriter`; ``dtype`` is by default that of ``values``.

    Returns
    -------
    Path
        The raster's path.

    Raises
    ------
    LandpriorError
        See :class:`CogWriter`.
    """
    count = 1 if values.ndim == 2 else values.shape[0]
    dtype = str(options.pop("dtype", values.dtype.name))
    with CogWriter(path, grid, count=count, dtype=dtype, **options) as writer:  # type: ignore[arg-type]
        writer.write(values)
    return writer.path


_COLUMNS = (
    ("Value", 0, 5), ("Count", 1, 1), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9),
)  # fmt: skip
"""Columns of the attribute table: name, GDAL's code of the type (whole, real, text), GDAL's code of the use."""


def write_class_table(path: Path, scheme: ClassScheme, counts: NDArray[np.int64] | None) -> None:
    """Write class names and an attribute table to the side file of a class map: ``<path>.aux.xml``.

    TIFF has no place for either, and its colour table always has 256 entries. The side file has the classes only. GDAL
    and ArcGIS read it, and QGIS too.

    Parameters
    ----------
    path
        The map.
    scheme
        Its classes.
    counts
        Number of pixels by code, shape (256,); None for no attribute table.
    """
    names = {int(c.code): c.name for c in scheme.classes}
    labels = "".join(f"      <Category>{escape(names.get(i, ''))}</Category>\n" for i in range(max(names) + 1))
    table = "" if counts is None else _attribute_table(scheme, counts)
    text = f"{NAMES_HEAD}{labels}    </CategoryNames>\n{table}  </PAMRasterBand>\n</PAMDataset>\n"
    path.with_name(f"{path.name}{NAMES}").write_text(text, encoding="utf-8")


def _attribute_table(scheme: ClassScheme, counts: NDArray[np.int64]) -> str:
    fields = "".join(
        f'      <FieldDefn index="{number}"><Name>{name}</Name><Type>{kind}</Type><Usage>{use}</Usage></FieldDefn>\n'
        for number, (name, kind, use) in enumerate(_COLUMNS)
    )
    rows = ""
    for number, c in enumerate(sorted(scheme.classes, key=lambda c: c.code)):
        cells = "".join(f"<F>{cell}</F>" for cell in (c.code, counts[c.code], escape(c.name), *c.rgb, 255))
        rows += f'      <Row index="{number}">{cells}</Row>\n'
    return f'    <GDALRasterAttributeTable tableType="thematic">\n{fields}{rows}    </GDALRasterAttributeTable>\n'


def encode_probabilities(values: NDArray[np.floating], encoding: Encoding) -> NDArray[np.generic]:
    """Turn probabilities in 0..1 (NaN: no data) into their stored form.

    ``uint8`` rounds 255 p; no data becomes zero in every band, which cannot occur otherwise.
    """
    if encoding == "uint8":
        return np.asarray(np.rint(np.nan_to_num(values, nan=0.0) * 255), dtype=np.uint8)
    return values.astype(np.float32)


def encoding_options(encoding: Encoding) -> dict[str, Any]:
    """Return the :class:`CogWriter` options of an encoding."""
    if encoding == "uint8":
        return {"dtype": "uint8", "scale": 1 / 255, "nodata": None}
    return {"dtype": encoding, "nodata": float("nan")}
