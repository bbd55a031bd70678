"""The fusion of coarse layers into a prior, window by window [Rolf et al. 2022, E.1.2].

NLCD codes become probabilities through the cooccurrence matrix and are blurred (both steps are
linear, so remapping first and blurring C classes instead of 16 codes is equivalent); roads and
buildings add to impervious, water layers to water. All widths are metres on the ground.

NLCD's share of impervious already contains roads and buildings, so in whole places adding them counts them twice. The
*conserving* fusion places them within the share: near them impervious is likely, away from them NLCD's own share is
lowered, so that the local mean stays that of NLCD.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.windows import Window

from landprior.errors import PriorError
from landprior.landcover.prior.coarse import LAYERS, CoarseLayers
from landprior.landcover.prior.settings import PriorSettings
from landprior.raster.filters import axis_matrix, box_taps, filter_window, gaussian_taps
from landprior.raster.grid import Grid
from landprior.raster.windows import BLOCK, Block, iter_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.raster.scheme import ClassScheme
logger = logging.getLogger(__name__)


_NO_MASS = 1e-6
"""Sums below this are rounding errors, not data."""


ROAD_TRUST, BUILDING_TRUST, WATER_TRUST = 0.8, 0.9, 0.9
"""Probability of the class where a layer shows it all around; conserving fusion only."""

LEAST_LEFT = 0.15
"""What is left of NLCD's share, at least, where layers alone exceed it: they do not show everything."""

MOST_TAPS = 20_000
"""Maximum reach of a filter in pixels, since damaged georeferencing may give absurdly small pixels."""


@dataclass(frozen=True)
class _Filters:
    """The filters of one axis, as taps at a given pixel size."""

    blur: NDArray[np.float64]
    roads: NDArray[np.float64]
    buildings: NDArray[np.float64]
    water: NDArray[np.float64]
    widening: NDArray[np.float64]

    @classmethod
    def at(cls, settings: PriorSettings, pixel: float) -> _Filters:
        conserving = settings.fusion == "conserving"
        roads = settings.conserving_roads_width if conserving else settings.roads_width
        buildings = settings.conserving_buildings_width if conserving else settings.buildings_width
        widest = max(settings.blur_radius, roads, buildings, settings.water_width, settings.waterways_widening)
        if widest / pixel > MOST_TAPS:
            msg = (
                f"pixels of {pixel:.3g} m are too small for filters {widest:g} m wide; is the file's pixel size "
                "correct? Give the right one with --pixel-size METRES"
            )
            raise PriorError(msg)
        return cls(
            blur=gaussian_taps(settings.blur_sigma, settings.blur_radius, pixel),
            roads=box_taps(roads, pixel),
            buildings=box_taps(buildings, pixel),
            water=box_taps(settings.water_width, pixel),
            widening=box_taps(settings.waterways_widening, pixel),
        )

    def halo(self, *, conserving: bool) -> int:
        """Return the reach of all filters; to conserve, what the layers show is blurred too."""
        blur, roads, buildings = (taps.size // 2 for taps in (self.blur, self.roads, self.buildings))
        layers = max(roads, buildings, self.water.size // 2 + self.widening.size // 2)
        return blur + layers if conserving else max(blur, layers)


class PriorModel:
    """Compute the prior of any window of a grid; the values do not depend on the windows.

    Parameters
    ----------
    scheme
        The classes.
    table
        P(class | code) by code, shape (256, C), zeros for no data (:meth:`Cooccurrence.table`).
    grid
        The grid of the layers.
    settings
        Filter widths.
    pixel_size
        (x, y) size of a pixel in metres.

    Raises
    ------
    PriorError
        If a layer is used and the scheme has no class with the role it adds to.
    """

    def __init__(
        self,
        scheme: ClassScheme,
        table: NDArray[np.float32],
        grid: Grid,
        *,
        settings: PriorSettings | None = None,
        pixel_size: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        settings = settings or PriorSettings()
        self.scheme = scheme
        self._table = np.ascontiguousarray(table.T)
        self._known = (self._table.sum(axis=0) > 0).astype(np.float32)
        self._grid = grid
        self._conserving = settings.fusion == "conserving"
        self._columns, self._rows = (_Filters.at(settings, size) for size in pixel_size)

    @classmethod
    def of(
        cls,
        coarse: CoarseLayers,
        cooccurrence: Cooccurrence,
        *,
        settings: PriorSettings | None = None,
        pixel_size: float | None = None,
    ) -> PriorModel:
        """Make the model for open layers.

        Parameters
        ----------
        coarse
            NLCD and the other layers.
        cooccurrence
            P(class | code) and the class scheme.
        settings
            Widths of the filters, metres.
        pixel_size
            Metres per pixel, for files that are not georeferenced.

        Returns
        -------
        PriorModel
            For the codes that occur.

        Raises
        ------
        PriorError
            If a code is not an NLCD code.
        InputError
            If the size of a pixel is unknown.
        """
        table = cooccurrence.table(coarse.codes())
        size = coarse.pixel_size(pixel_size)
        return cls(cooccurrence.scheme, table, coarse.grid, settings=settings, pixel_size=size)

    @property
    def halo(self) -> int:
        """Pixels around a pixel that its prior depends on."""
        return max(axis.halo(conserving=self._conserving) for axis in (self._columns, self._rows))

    def window(
        self, block: Block, nlcd: NDArray[np.integer], layers: Mapping[str, NDArray[np.bool_]] | None = None
    ) -> NDArray[np.float32]:
        """Compute the prior of a block's core.

        Parameters
        ----------
        block
            The window; its outer part must reach :attr:`halo` pixels around the core (or the edge).
        nlcd
            NLCD codes of the outer window, shape (H, W).
        layers
            Presence of roads, buildings, waterways, waterbodies in the outer window, each (H, W).

        Returns
        -------
        ndarray of float32, shape (C, h, w)
            Probabilities of the core, sum 1; NaN where there is no NLCD within reach of the blur.
        """
        layers = layers or {}
        core, outer = block.core, block.outer
        if self._conserving and layers:
            return self._conserve(block, nlcd, layers)
        prior, empty = self._blur(nlcd, outer, core)
        for name in ("roads", "buildings"):
            if name in layers:
                prior[self.require(name)] += self._filter(name, _floats(layers[name]), outer, core)
        if "waterways" in layers or "waterbodies" in layers:
            prior[self.require("waterbodies")] += self._find_water(layers, outer, core)
        if layers:
            prior /= prior.sum(axis=0) + empty
        if empty.any():
            prior[:, empty] = np.nan
        return prior

    def _conserve(
        self, block: Block, nlcd: NDArray[np.integer], layers: Mapping[str, NDArray[np.bool_]]
    ) -> NDArray[np.float32]:
        """Compute the prior of a block's core so that local means of impervious and water stay those of NLCD.

        With u NLCD's blurred share of a class, s what the layers say of it and f what they leave open, its probability
        is s + f g u, where g in [0.15, 1] makes the mean around the pixel, with the blur's weights, that of u. The
        other classes share the rest.
        """
        core, outer = block.core, block.outer
        near = self._grow("blur", core, outer)
        prior, empty = self._blur(nlcd, outer, core)
        shown, left = self._find_shown(layers, outer, near)
        rows, columns = Block(core=near, outer=outer).crop
        known = np.take(self._known, nlcd[rows, columns], mode="clip")
        means = self._filter(
            "blur", np.stack([known, known * left, *(known * mask for mask in shown.values())]), near, core
        )
        means[1:] /= np.maximum(means[0], _NO_MASS)
        unsaid = np.maximum(means[1], _NO_MASS)
        others = prior.sum(axis=0)
        rest = np.ones_like(others)
        inside = Block(core=core, outer=near).crop
        for (index, mask), mean in zip(shown.items(), means[2:], strict=True):
            share = prior[index].copy()
            others -= share
            prior[index] = mask[inside] + left[inside] * np.clip((share - mean) / unsaid, LEAST_LEFT * share, share)
            rest -= prior[index]
        scale = np.maximum(rest, 0) / np.maximum(others, _NO_MASS)
        for index in range(len(prior)):
            if index not in shown:
                prior[index] *= scale
        prior /= np.maximum(prior.sum(axis=0), _NO_MASS)
        prior[:, empty] = np.nan
        return prior

    def _find_shown(
        self, layers: Mapping[str, NDArray[np.bool_]], outer: Window, near: Window
    ) -> tuple[dict[int, NDArray[np.float32]], NDArray[np.float32]]:
        """Return what the layers say of each class that they add to, and what they leave open."""
        shown: dict[int, NDArray[np.float32]] = {}
        left = np.ones((int(near.height), int(near.width)), dtype=np.float32)
        if "roads" in layers or "buildings" in layers:
            for name, trust in (("roads", ROAD_TRUST), ("buildings", BUILDING_TRUST)):
                if name in layers:
                    left *= 1 - np.float32(trust) * self._filter(name, _floats(layers[name]), outer, near)
            shown[self.require("roads" if "roads" in layers else "buildings")] = 1 - left
        if "waterways" in layers or "waterbodies" in layers:
            wet = np.float32(WATER_TRUST) * self._find_water(layers, outer, near) * left  # bridges lie over water
            shown[self.require("waterbodies")] = wet
            left = left - wet
        return shown, left

    def _blur(
        self, nlcd: NDArray[np.integer], outer: Window, core: Window
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return NLCD's blurred shares of the classes, and where there is no NLCD within reach."""
        prior = self._filter("blur", np.take(self._table, nlcd, axis=1, mode="clip"), outer, core)
        mass = prior.sum(axis=0)
        empty = mass < _NO_MASS
        prior *= np.reciprocal(mass, out=np.zeros_like(mass), where=~empty)
        return prior, empty

    def _find_water(self, layers: Mapping[str, NDArray[np.bool_]], outer: Window, core: Window) -> NDArray[np.float32]:
        """Return the mean of the water layers around each pixel, with waterways widened."""
        near = self._grow("water", core, outer)
        rows, columns = Block(core=near, outer=outer).crop
        water = np.zeros((int(near.height), int(near.width)), dtype=bool)
        if "waterways" in layers:
            water |= self._filter("widening", _floats(layers["waterways"]), outer, near) > _NO_MASS
        if "waterbodies" in layers:
            water |= layers["waterbodies"][rows, columns]
        return self._filter("water", _floats(water), near, core)

    def _grow(self, name: str, core: Window, outer: Window) -> Window:
        """Return the window that a filter of a core needs."""
        right, bottom = outer.col_off + outer.width, outer.row_off + outer.height
        across, down = getattr(self._columns, name).size // 2, getattr(self._rows, name).size // 2
        left, top = max(core.col_off - across, outer.col_off), max(core.row_off - down, outer.row_off)
        right = min(core.col_off + core.width + across, right)
        bottom = min(core.row_off + core.height + down, bottom)
        return Window(left, top, right - left, bottom - top)

    def require(self, layer: str) -> int:
        """Return the position of the class a layer adds to.

        Raises
        ------
        PriorError
            If the scheme has no class with that role.
        """
        return require_role(self.scheme, layer)

    def _filter(self, name: str, values: NDArray[np.float32], source: Window, out: Window) -> NDArray[np.float32]:
        rows = axis_matrix(
            getattr(self._rows, name),
            size=self._grid.height,
            out=_span(out.row_off, out.height),
            source=_span(source.row_off, source.height),
        )
        columns = axis_matrix(
            getattr(self._columns, name),
            size=self._grid.width,
            out=_span(out.col_off, out.width),
            source=_span(source.col_off, source.width),
        )
        return filter_window(values, rows, columns)


def require_role(scheme: ClassScheme, layer: str) -> int:
    """Return the position of the class that a layer adds to.

    Raises
    ------
    PriorError
        If the scheme has none.
    """
    role = LAYERS[layer]
    index = scheme.role_index(role)
    if index is None:
        msg = f"scheme {scheme.name!r} has no class with 'role: {role}', which {layer} add to; add that role to a class"
        raise PriorError(msg)
    return index


def _span(offset: float, length: float) -> tuple[int, int]:
    return (int(offset), int(offset + length))


def _floats(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return mask.astype(np.float32)


def prior_from_arrays(
    nlcd: NDArray[np.integer],
    cooccurrence: Cooccurrence,
    *,
    pixel_size: float = 1.0,
    settings: PriorSettings | None = None,
    size: int = BLOCK,
    **layers: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Compute a prior in memory.

    Parameters
    ----------
    nlcd
        NLCD codes, shape (H, W).
    cooccurrence
        P(class | code).
    pixel_size
        Metres per pixel.
    settings
        Filter widths in metres.
    size
        Side of the windows; affects only the time.
    **layers
        ``roads``, ``buildings``, ``waterways``, ``waterbodies``, each (H, W), True where present.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        See :meth:`PriorModel.window`.
    """
    grid = Grid(width=nlcd.shape[1], height=nlcd.shape[0], transform=Affine.scale(pixel_size, -pixel_size))
    codes = np.bincount(nlcd.ravel()).nonzero()[0].tolist() if nlcd.dtype == np.uint8 else np.unique(nlcd).tolist()
    table = cooccurrence.table(codes)
    model = PriorModel(cooccurrence.scheme, table, grid, settings=settings, pixel_size=(pixel_size, pixel_size))
    prior = np.empty((len(cooccurrence.scheme), *nlcd.shape), dtype=np.float32)
    for block in iter_blocks(grid, size=size, halo=model.halo):
        inside = block.outer.toslices()
        window = {name: mask[inside] for name, mask in layers.items()}
        prior[(slice(None), *block.core.toslices())] = model.window(block, nlcd[inside], window)
    return prior
