"""The coarse layers a prior is made from: NLCD, roads, buildings, waterways and water bodies, opened on one grid."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np
from rasterio.windows import Window

from landprior.errors import InputError, PriorError, SchemeError
from landprior.landcover.prior.surroundings import grow_grid, open_joined
from landprior.raster.advice import advise_nodata
from landprior.raster.codes import CodeRaster, open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.ground import UNEVEN
from landprior.raster.names import quote, split_band
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.raster.windows import Block, grow_window, stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.scheme import Role

logger = logging.getLogger(__name__)

NLCD_NODATA = (0, 250, 255)
"""NLCD values that mean no data."""

LAYERS: Mapping[str, Role] = {
    "roads": "impervious",
    "buildings": "impervious",
    "waterways": "water",
    "waterbodies": "water",
}
"""The layers of the hand-coded prior and the class role each adds to."""


class CoarseLayers:
    """NLCD and the other layers, opened on one grid.

    :attr:`own` is the grid of the tile; :attr:`grid`, on which everything is read, also has a margin around it if the
    neighbours' layers are given.

    Parameters
    ----------
    nlcd, layers, like, around
        See :func:`landprior.landcover.prior.build.build_prior`.
    margin
        Pixels around the tile that are read from ``around``, if there are any.
    progress
        Show a progress bar on stderr while NLCD codes are counted.

    Raises
    ------
    InputError
        If a layer is not one of :data:`LAYERS`.
    GridMismatchError, RasterReadError
        If a raster cannot be brought to the grid, or read.
    """

    def __init__(
        self,
        nlcd: str | Path,
        layers: Mapping[str, str | Path] | None = None,
        *,
        like: str | Path | None = None,
        around: Sequence[Mapping[str, Path]] = (),
        margin: int = 0,
        progress: bool = False,
    ) -> None:
        layers = layers or {}
        unknown = set(layers) - set(LAYERS)
        if unknown:
            msg = f"unknown layer(s) {', '.join(sorted(unknown))}; a prior takes {', '.join(LAYERS)}"
            raise InputError(msg)
        self._path, self._reference, self._progress = nlcd, like or nlcd, progress
        with ExitStack() as stack:
            self.own = Grid.of(stack.enter_context(open_raster(self._reference)))
            self.grid, self._inner = grow_grid(self.own, margin if around else 0)

            def enter(name: str, path: str | Path) -> CodeRaster:
                raster = stack.enter_context(open_on_grid(path, self.own, like=self._reference))
                if not around:
                    return raster
                others = [files[name] for files in around if name in files]
                joined = open_joined(raster, self.grid, self._inner, others, like=self._reference)
                return stack.enter_context(joined)

            self._nlcd = enter("nlcd", nlcd)
            self._layers = {name: enter(name, path) for name, path in layers.items()}
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def locate(self, window: Window, halo: int) -> Block:
        """Return a window of the tile on :attr:`grid`, with its surroundings.

        Parameters
        ----------
        window
            Rows and columns of the tile.
        halo
            Pixels around it that are needed.

        Returns
        -------
        Block
            The window and its surroundings, as far as :attr:`grid` reaches.
        """
        left, top = window.col_off + self._inner.col_off, window.row_off + self._inner.row_off
        core = Window(left, top, window.width, window.height)
        return Block(core=core, outer=grow_window(core, halo, self.grid))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers besides NLCD."""
        return tuple(self._layers)

    def codes(self) -> dict[int, int]:
        """Count the codes of the NLCD raster, window by window, and check the other layers in the same pass.

        Returns
        -------
        dict
            Code -> pixels; including the code for no data.

        Raises
        ------
        PriorError
            If NLCD has invalid codes or only no data, or a layer's values cannot mean presence and absence.
        """
        found: dict[int, int] = {}
        seen = {name: _Presence(name, raster) for name, raster in self._layers.items()}

        def gather(block: Block) -> dict[str, NDArray[np.generic]]:
            codes, counts = np.unique(read_nlcd(self._nlcd, block.core), return_counts=True)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
                found[code] = found.get(code, 0) + count
            for presence in seen.values():
                presence.add(block.core)
            return {}

        stream(gather, grid=self.grid, sinks={}, label="NLCD codes", progress=self._progress)
        if not set(found) - set(NLCD_NODATA):
            msg = f"{self._path} has no NLCD code here (only no data: {sorted(found)}), so the prior would have no mass"
            raise PriorError(msg)
        for presence in seen.values():
            presence.check()
        return found

    def pixel_size(self, override: float | None = None) -> tuple[float, float]:
        """Return the size of a pixel in metres; see :meth:`landprior.raster.grid.Grid.pixel_size`.

        Warns if the size varies so much over the raster that widths in metres hold only at its centre.
        """
        size = self.grid.pixel_size(override, where=self._reference)
        if override is None and self.grid.unevenness() > UNEVEN:
            logger.warning(
                "the ground size of a pixel of %s varies by %.0f %% over the raster, and widths in metres hold only at "
                "its centre; cut it into tiles, or warp it to UTM",
                self._reference,
                100 * self.grid.unevenness(),
            )
        return size

    def read(self, window: Window) -> tuple[NDArray[np.integer], dict[str, NDArray[np.bool_]]]:
        """Read NLCD codes and the presence of each layer, each of shape (H, W)."""
        presence = {}
        for name, raster in self._layers.items():
            values, valid = raster.read_values(window)
            presence[name] = (values != 0) & valid
        return read_nlcd(self._nlcd, window), presence


def read_nlcd(raster: CodeRaster, window: Window | None = None) -> NDArray[np.int64]:
    """Read NLCD codes, 0 where there is no data, shape (H, W).

    Raises
    ------
    InputError
        If a value is not a whole number.
    PriorError
        If a value cannot be an NLCD code.
    SchemeError
        If the raster's nodata value is an NLCD code.
    """
    _require_free_nodata(raster)
    codes, valid = raster.read_codes(window)
    wrong = (codes < 0) | (codes > 255)
    if wrong.any():
        index = np.argwhere(wrong)[0]
        value = codes[tuple(index)]
        msg = (
            f"{raster.path} has values such as {value} (at {raster.place(index, window)}), which are not NLCD codes "
            f"(0-255); if {value} means no data, set it in the file: "
            f"{advise_nodata(raster.path, int(value))}; or is it another layer?"
        )
        raise PriorError(msg)
    return np.where(valid, codes, NLCD_NODATA[0])


def _require_free_nodata(raster: CodeRaster) -> None:
    """Raise an error if the nodata value is also an NLCD code, since the class would be lost."""
    value = raster.nodata
    name = None if value is None else _nlcd_names().get(value)
    if name is None:
        return
    msg = (
        f"{raster.path} uses {value:g} for no data, which is also the NLCD code of {name}. If {value:g} is the class "
        f"there, unset the nodata value: {advise_nodata(raster.path, None)}. If it is no data, write 0 in its place: "
        f"gdalwarp -srcnodata {value:g} -dstnodata 0 {quote(split_band(raster.path)[0])} fixed.tif"
    )
    raise SchemeError(msg)


@cache
def _nlcd_names() -> Mapping[float, str]:
    return {c.code: c.name for c in load_scheme("nlcd").classes}


_EVERYWHERE = 0.98
"""Above this share of present pixels a layer has no absence: its value for absence was misread."""

_LARGEST = (255, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_HUGE = 1e20
"""Upper bound of counts and measurements; floats that mean no data are larger."""

_SMALL = 100
"""Upper bound of class codes; next to them, the largest number of a data type means no data."""


@dataclass
class _Presence:
    """Statistics of a presence layer's values, over all blocks."""

    name: str
    raster: CodeRaster
    values: set[float] = field(default_factory=set)
    present: int = 0
    absent: int = 0
    covered: int = 0
    hidden: int = 0
    broken: int = 0
    lowest: float = 0.0

    @property
    def _marks_presence(self) -> bool:
        """Whether the nodata value is one that masks use for presence: 1, 100 or 255, say."""
        return self.raster.nodata is not None and 0 < self.raster.nodata <= _LARGEST[0]

    def add(self, window: Window) -> None:
        """Count a window."""
        values, valid = self.raster.read_values(window)
        if values.dtype.kind == "f" and not np.isnan(self.raster.nodata if self.raster.nodata is not None else 0.0):
            self.broken += int((~np.isfinite(values)).sum())
        there = values[valid & (values != 0)]
        self.covered += int(self.raster.covers(window).sum())
        self.present += there.size
        self.absent += int(valid.sum()) - there.size
        if self._marks_presence:
            self.hidden += int((values == self.raster.nodata).sum())
        if there.size and len(self.values) <= _SMALL:
            self.values.update(np.unique(there)[: _SMALL + 1].tolist())
        if there.size:
            self.lowest = min(self.lowest, float(there.min()))

    def check(self) -> None:
        """Raise an error for values that cannot mean presence, and log how many were not numbers.

        Raises
        ------
        PriorError
            If the values cannot mean presence; the message explains how to mark no data.
        """
        path = self.raster.path
        if self.broken:
            logger.info("%s: pixels that are NaN or infinite: %d; they count as no data", path, self.broken)
        largest = max(self.values, default=0.0)
        others = self.values - {largest}
        if self.absent and self.hidden and not self.present:
            logger.warning(
                "%s has no %s here: it has 0 and, in %d pixels, %g, which is its nodata value; if %g marks "
                "their presence, unset the nodata value: %s",
                path, self.name, self.hidden, self.raster.nodata, self.raster.nodata, advise_nodata(path, None),
            )  # fmt: skip
        elif self.covered and not self.present:
            mark = "" if self.raster.nodata is None else f" (its {self.raster.nodata:g} is no data)"
            logger.info("%s has no %s here%s", path, self.name, mark)
        suspect: float | None = None
        if self.lowest < 0:
            suspect, why = self.lowest, "is negative"
        elif largest >= _HUGE:
            suspect, why = largest, "is too large for a count"
        elif self.raster.nodata is None and largest in _LARGEST and others and max(others) <= _SMALL:
            suspect, why = largest, f"occurs with small values such as {min(others):g}"
        if suspect is not None:
            msg = (
                f"{path} has the value {suspect:g}, which {why}, so it cannot mark {self.name} (nonzero is presence); "
                f"if it means no data, set it in the file: {advise_nodata(path, suspect)}"
            )
            raise PriorError(msg)
        linear = self.name != "waterbodies"  # a tile may be all sea
        if self.covered and self.present > _EVERYWHERE * self.covered and (linear or len(self.values) > 1):
            shown = ", ".join(f"{value:g}" for value in sorted(self.values)[:4])
            msg = (
                f"{path} has {self.name} in {100 * self.present / self.covered:.0f} % of its pixels (values {shown}); "
                "nonzero is presence. Write 0 where there is none, or set the value of absence as nodata: "
                f"{advise_nodata(path, 'VALUE')}"
            )
            raise PriorError(msg)
