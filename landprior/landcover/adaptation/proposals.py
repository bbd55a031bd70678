"""Proposing points to label next, where they help an adaptation most: where the map is unsure, over all its classes.

A pixel's unsureness is 1 - (largest - second largest probability). Points are drawn in proportion to its square, each
class of the map has points in proportion to the square root of its unsure area, and no two lie close together. Such
points are no probability sample: accuracy and areas must not be estimated from them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from landprior.errors import InputError, MissingInputError
from landprior.landcover.mapping.products import companion_path
from landprior.landcover.training.layers import PriorLayer
from landprior.raster.windows import Block, stream
from landprior.sources.points import require_points
from landprior.sources.sample_design import ADAPT, PURPOSE, REFERENCE
from landprior.sources.vectors import read_everything

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

APART = 10.0
"""Least distance between points, metres: closer ones tell the same."""

_SPARE = 20
"""Candidates kept for each point of a class, as some lie too close to others."""


@dataclass
class _Candidates:
    """The pixels of a class with the smallest keys.

    A key is an exponential variate divided by the pixel's weight, which draws in proportion to the weights, without
    replacement.
    """

    most: int
    weight: float = 0.0
    keys: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))

    def add(self, keys: NDArray[np.float64], places: NDArray[np.int64], weight: float) -> None:
        self.weight += weight
        keys, places = np.concatenate([self.keys, keys]), np.concatenate([self.places, places])
        order = np.lexsort((places[:, 1], places[:, 0], keys))[: self.most]
        self.keys, self.places = keys[order], places[order]


def propose_points(
    map_path: str | Path,
    scheme: ClassScheme,
    *,
    count: int = 20,
    known: Sequence[str | Path] = (),
    seed: int = 0,
    progress: bool = False,
) -> geopandas.GeoDataFrame:
    """Propose points to label, by a map's class probabilities.

    Parameters
    ----------
    map_path
        A map that was written with its probabilities (``predict --probabilities``).
    scheme
        Its classes.
    count
        Number of points; fewer if there is no room for so many.
    known
        Files of points that are labelled already; new ones lie away from them.
    seed
        Random seed; the same seed gives the same points.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    GeoDataFrame
        Pixel centres in the map's CRS, in random order, with ``id``, ``reference`` and ``notes`` (to be filled in), and
        ``purpose``, ``"adapt"``.

    Raises
    ------
    MissingInputError
        If the map has no probabilities.
    InputError
        If it has no classified pixel, or there is no room for any point.
    """
    import geopandas

    shares_path = companion_path(Path(map_path), "probabilities")
    if not shares_path.is_file():
        msg = (
            f"{shares_path} is missing: the map's probabilities say where it is unsure; map again with: "
            "landprior predict ... --probabilities"
        )
        raise MissingInputError(msg)
    found = [_Candidates(_SPARE * count) for _ in scheme.names]
    with PriorLayer(shares_path, scheme=scheme) as layer:
        grid = layer.grid

        def visit(block: Block) -> dict[str, NDArray[np.generic]]:
            shares, valid = layer.read(block.core)
            top, left = int(block.core.row_off), int(block.core.col_off)
            rng = np.random.default_rng([seed, top, left])
            ranked = np.partition(shares, -2, axis=0) if len(shares) > 1 else np.stack([shares[0] * 0, shares[0]])
            weight = (1 - (ranked[-1] - ranked[-2]).astype(np.float64)).clip(1e-3, 1) ** 2
            keys = rng.exponential(size=weight.shape) / weight
            best = np.where(valid, shares.argmax(0), -1)
            for index, some in enumerate(found):
                rows, columns = np.nonzero(best == index)
                places = np.stack([rows + top, columns + left], axis=1)
                some.add(keys[rows, columns], places, float(weight[rows, columns].sum()))
            return {}

        stream(visit, grid=grid, sinks={}, label="unsure pixels", progress=progress)
    if not any(some.weight for some in found):
        msg = f"{shares_path} has no pixel with data"
        raise InputError(msg)
    places = _choose(found, count, grid, _locate(known, grid))
    if not len(places):
        msg = f"no pixel of {map_path} lies {APART:g} m or more from the points that are labelled already"
        raise InputError(msg)
    if len(places) < count:
        logger.warning("there is room for %d points only, %g m apart", len(places), APART)
    places = places[np.random.default_rng([seed, count]).permutation(len(places))]
    x, y = grid.transform @ (places[:, 1] + 0.5, places[:, 0] + 0.5)
    return geopandas.GeoDataFrame(
        {
            "id": np.arange(1, len(places) + 1),
            REFERENCE: np.full(len(places), None, dtype=object),
            "notes": np.full(len(places), None, dtype=object),
            PURPOSE: ADAPT,
        },
        geometry=geopandas.points_from_xy(x, y),
        crs=None if grid.crs is None else grid.crs.to_wkt(),
    )


def _locate(known: Sequence[str | Path], grid: Grid) -> NDArray[np.float64]:
    """Return rows and columns, in fractions of pixels, of points that are labelled already, (n, 2)."""
    found = [np.empty((0, 2))]
    for path in known:
        frame = require_points(read_everything(path, grid=grid), path)
        columns, rows = ~grid.transform @ (frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy())
        found.append(np.stack([rows - 0.5, columns - 0.5], axis=1))
    return np.concatenate(found)


def _choose(candidates: Sequence[_Candidates], count: int, grid: Grid, known: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose candidates class by class, always of the class that lacks most, away from each other and known points."""
    try:
        size = np.array(grid.pixel_size(where="the map"))[::-1]
    except InputError:
        size = np.ones(2)
    wanted = np.sqrt([some.weight for some in candidates])
    chosen: list[NDArray[np.int64]] = []
    taken = [0] * len(candidates)
    waiting = [list(some.places) for some in candidates]
    tree = cKDTree(known * size) if len(known) else None
    while len(chosen) < count and any(waiting):
        lack = [(t + 0.5) / w if left else np.inf for t, w, left in zip(taken, wanted, waiting, strict=True)]
        index = int(np.argmin(lack))
        place = waiting[index].pop(0)
        at = place * size
        if tree is not None and tree.query(at)[0] < APART:
            continue
        if any(np.hypot(*(at - other * size)) < APART for other in chosen):
            continue
        chosen.append(place)
        taken[index] += 1
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)
