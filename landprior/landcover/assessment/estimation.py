"""Area-weighted accuracy and areas from interpreted points, with their uncertainty.

The estimators are those of Stehman (2014, "Estimating area and map accuracy for stratified random sampling when the
strata are different from the map classes", International Journal of Remote Sensing 35); when the strata are the
classes of the evaluated map, they equal, term by term, those of Olofsson et al. (2014, Remote Sensing of
Environment 148, eq. 1-11).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError
from landprior.landcover.assessment.interpreted import read_interpreted
from landprior.landcover.assessment.sampling import measure_classes
from landprior.raster.codes import open_codes
from landprior.raster.pixel_areas import PixelAreas
from landprior.sources.sample_design import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

Z95 = 1.959963984540054
"""Half width of a 95 % interval of the normal distribution, in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """An estimate and its standard error, in the same units."""

    value: float
    error: float

    @property
    def margin(self) -> float:
        """Half width of the 95 % interval."""
        return Z95 * self.error

    def to_dict(self) -> dict[str, float | None]:
        """Return the value, its standard error and the ends of the 95 % interval; NaN becomes None."""
        low, high = self.value - self.margin, self.value + self.margin
        figures = {"value": self.value, "standard_error": self.error, "low": low, "high": high}
        return {name: None if np.isnan(figure) else float(figure) for name, figure in figures.items()}


@dataclass(frozen=True, kw_only=True)
class AreaEstimates:
    """Accuracy and areas of a map, estimated from a sample.

    Parameters
    ----------
    scheme
        The classes.
    counts
        Number of points by (map class, reference class), shape (C, C).
    proportions
        Estimated share of the area by (map class, reference class), shape (C, C).
    overall
        Estimated share of the area that is mapped correctly.
    users, producers
        User's and producer's accuracy of each class, in the order of the scheme; NaN where a class is not mapped or
        does not occur.
    shares
        Estimated share of the area in each class.
    hectares
        Total area; None if the map has no CRS.
    """

    scheme: ClassScheme
    counts: NDArray[np.int64]
    proportions: NDArray[np.float64]
    overall: Estimate
    users: tuple[Estimate, ...]
    producers: tuple[Estimate, ...]
    shares: tuple[Estimate, ...]
    hectares: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all results as a dictionary for JSON."""
        classes = []
        for i, c in enumerate(self.scheme.classes):
            share = self.shares[i].to_dict()
            area = None if self.hectares is None else {k: v and v * self.hectares for k, v in share.items()}
            mapped = float(self.proportions[i].sum())
            classes.append(
                {
                    "code": c.code,
                    "name": c.name,
                    "users_accuracy": self.users[i].to_dict(),
                    "producers_accuracy": self.producers[i].to_dict(),
                    "share": share,
                    "mapped_share": mapped,
                    "hectares": area,
                }
            )
        return {
            "scheme": self.scheme.name,
            "points": int(self.counts.sum()),
            "hectares": self.hectares,
            "overall_accuracy": self.overall.to_dict(),
            "classes": classes,
            "counts": self.counts.tolist(),
            "proportions": self.proportions.tolist(),
        }

    def to_text(self) -> str:
        """Return the results as a table for the terminal."""
        width = max(len("class"), *(len(name) for name in self.scheme.names))
        head = f"{'class':<{width}}  {'user accuracy':>15}  {'producer':>15}  {'share':>17}  {'mapped':>6}"
        head += "" if self.hectares is None else f"  {'hectares':>20}"
        lines = [head]
        for i, name in enumerate(self.scheme.names):
            cells = [_plus_minus(e, 3) for e in (self.users[i], self.producers[i])]
            line = f"{name:<{width}}  {cells[0]:>15}  {cells[1]:>15}  {_plus_minus(self.shares[i], 4):>17}"
            line += f"  {self.proportions[i].sum():6.4f}"
            if self.hectares is not None:
                area = Estimate(self.shares[i].value * self.hectares, self.shares[i].error * self.hectares)
                line += f"  {_plus_minus(area, 2 if self.hectares < 1e4 else 0):>20}"
            lines.append(line)
        lines += [
            "",
            f"overall accuracy {_plus_minus(self.overall, 4)}   {self.counts.sum()} points; ± is the 95 % interval",
            "",
            "points (rows: map, columns: reference)",
        ]
        columns = [max(len(name), 6) for name in self.scheme.names]
        lines.append(" " * width + "".join(f" {n:>{w}}" for n, w in zip(self.scheme.names, columns, strict=True)))
        for name, row in zip(self.scheme.names, self.counts, strict=True):
            lines.append(f"{name:<{width}}" + "".join(f" {v:>{w}d}" for v, w in zip(row, columns, strict=True)))
        return "\n".join(lines)


def _plus_minus(estimate: Estimate, digits: int) -> str:
    if np.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.{digits}f} ±{estimate.margin:.{digits}f}"


def estimate_areas(
    mapped: NDArray[np.integer],
    reference: NDArray[np.integer],
    strata: NDArray[np.integer],
    sizes: Mapping[int, int],
    scheme: ClassScheme,
    *,
    areas: Mapping[int, float] | None = None,
    hectares: float | None = None,
) -> AreaEstimates:
    """Estimate accuracy and areas from points.

    Parameters
    ----------
    mapped, reference
        Class positions of each point on the map and in truth, shape (n,).
    strata
        Stratum of each point, shape (n,).
    sizes
        Number of pixels in each stratum.
    scheme
        The classes.
    areas
        Area of each stratum on the ground, in any unit, used as its weight. By default strata are weighted by their
        number of pixels, which is equivalent if all pixels have the same area (not in degrees or EPSG:3857). All pixels
        of a stratum have the same weight.
    hectares
        Total area.

    Returns
    -------
    AreaEstimates
        Accuracies and areas with 95 % intervals.

    Raises
    ------
    InputError
        If a stratum has no point, or only one and more than one pixel (its variance cannot be estimated).
    """
    require_strata(strata, sizes)
    count = len(scheme)
    weights = _weights(sizes, areas)
    groups = [(strata == name, weights[name]) for name in sizes]
    complete = [int(inside.sum()) >= sizes[name] for (inside, _), name in zip(groups, sizes, strict=True)]

    def mean(values: NDArray[np.float64]) -> float:
        return float(sum(weight * values[inside].mean() for inside, weight in groups))

    def error(residuals: NDArray[np.float64]) -> float:
        # Stehman 2014, eq. 25 and 28, without the correction for a finite population; a fully sampled stratum has none
        parts = [
            0.0 if whole else weight**2 * residuals[inside].var(ddof=1) / inside.sum()
            for (inside, weight), whole in zip(groups, complete, strict=True)
        ]
        return float(np.sqrt(sum(parts)))

    def ratio(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Estimate:
        size = mean(whole.astype(np.float64))
        if size == 0:
            return Estimate(float("nan"), float("nan"))
        value = mean(part.astype(np.float64)) / size
        return Estimate(value, error(part - value * whole) / size)

    right = (mapped == reference).astype(np.float64)
    proportions = np.zeros((count, count))
    counts = np.zeros((count, count), dtype=np.int64)
    for inside, weight in groups:
        here = np.zeros((count, count), dtype=np.int64)
        np.add.at(here, (mapped[inside], reference[inside]), 1)
        counts += here
        proportions += weight * here / inside.sum()
    shares = [(reference == i).astype(np.float64) for i in range(count)]
    return AreaEstimates(
        scheme=scheme,
        counts=counts,
        proportions=proportions,
        overall=Estimate(mean(right), error(right)),
        users=tuple(ratio((mapped == i) & (reference == i), mapped == i) for i in range(count)),
        producers=tuple(ratio((mapped == i) & (reference == i), reference == i) for i in range(count)),
        shares=tuple(Estimate(mean(here), error(here)) for here in shares),
        hectares=hectares,
    )


def _weights(sizes: Mapping[int, int], areas: Mapping[int, float] | None) -> dict[int, float]:
    """Return the share of each stratum: of the area if it is given, otherwise of the pixels."""
    total = sum(sizes.values())
    weights = {name: size / total for name, size in sizes.items()}
    if areas is None:
        return weights
    ground = sum(areas[name] for name in sizes)
    if all(abs(areas[name] / ground - weight) <= 1e-9 for name, weight in weights.items()):
        return weights
    return {name: areas[name] / ground for name in sizes}


def require_strata(strata: NDArray[np.integer], sizes: Mapping[int, int]) -> None:
    """Raise an error if a stratum has too few interpreted points for a variance.

    Raises
    ------
    InputError
        If so; the message lists the strata.
    """
    few = {name: int((strata == name).sum()) for name in sizes}
    lacking = [f"{name} ({n})" for name, n in few.items() if n < min(2, sizes[name])]
    if lacking:
        msg = f"at least two interpreted points are needed in every stratum; too few in: {', '.join(lacking)}"
        raise InputError(msg)


def evaluate_points(
    path: str | Path,
    points: str | Path,
    scheme: ClassScheme,
    *,
    column: str = REFERENCE,
    layer: str | None = None,
    map_map: Mapping[int, int] | None = None,
    label_map: Mapping[int, int] | None = None,
    pixel_size: float | None = None,
    progress: bool = False,
) -> AreaEstimates:
    """Estimate a map's accuracy and class areas from interpreted points.

    Parameters
    ----------
    path
        The map. It may differ from the map the points were drawn on if the points carry their strata.
    points
        A vector file with points, as written by ``landprior sample`` and filled in by an interpreter, or a CSV. The
        strata are recognised even if another format shortened or changed the column names
        (:mod:`landprior.sources.sample_design`). Points without strata are treated as a simple random sample, with a
        warning, and post-stratified by the map's classes.
    scheme
        The classes.
    column
        The column with the interpreted class (name or code); points without one are left out.
    layer
        Layer of the file, if it has several.
    map_map, label_map
        Codes of the map and of the points -> codes of the scheme.
    pixel_size
        Metres per pixel, for a map that is not georeferenced.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    AreaEstimates
        Accuracies and areas with 95 % intervals.

    Raises
    ------
    InputError
        If the file has no such column or no interpreted point, if points lie outside the map, if the sample design is
        damaged, or if a stratum has too few points.
    SchemeError
        If a class is unknown.
    """
    with open_codes(path) as src:
        grid = src.grid
        found = read_interpreted(src, points, scheme, column=column, layer=layer, map_map=map_map, label_map=label_map)
    mapped, reference = found.mapped, found.reference
    areas: Mapping[int, float] | None
    if found.strata is not None:
        # the sample records the sizes of its strata, which do not depend on the evaluated map
        strata, sizes, areas = found.strata, dict(found.sizes), found.areas
    else:
        logger.warning(
            "%s has no strata, unlike points drawn by landprior sample; the estimates assume a simple random sample",
            points,
        )
        pixels, measured = measure_classes(path, scheme, map_map=map_map, progress=progress)
        strata = scheme.codes[mapped].astype(np.int64)
        sizes = {int(c): int(n) for c, n in zip(scheme.codes, pixels, strict=True) if n}
        areas = None if grid.crs is None else {int(c): float(a) for c, a in zip(scheme.codes, measured, strict=True)}
        strata, sizes, areas = _join_small(strata, sizes, areas)
    if pixel_size is not None:
        width, height = grid.pixel_size(pixel_size, where=path)
        hectares: float | None = sum(sizes.values()) * width * height / 1e4
    elif areas is not None:
        hectares = sum(areas.values())
    else:
        hectares = None if grid.crs is None else sum(sizes.values()) * PixelAreas(grid, where=path).mean / 1e4
    return estimate_areas(mapped, reference, strata, sizes, scheme, areas=areas, hectares=hectares)


def _join_small(
    strata: NDArray[np.int64], sizes: Mapping[int, int], areas: Mapping[int, float] | None
) -> tuple[NDArray[np.int64], dict[int, int], dict[int, float] | None]:
    """Merge strata of a simple random sample, smallest first, until each has two points."""
    strata, left = strata.copy(), dict(sizes)
    ground = None if areas is None else {name: areas[name] for name in sizes}
    while len(left) > 1:
        few = [name for name, size in left.items() if (strata == name).sum() < min(2, size)]
        if not few:
            break
        name = min(few, key=lambda few: left[few])
        into = min((other for other in left if other != name), key=lambda other: left[other])
        strata[strata == name] = into
        left[into] += left.pop(name)
        if ground is not None:
            ground[into] += ground.pop(name)
    if len(left) < len(sizes):
        gone = ", ".join(str(name) for name in sizes if name not in left)
        logger.warning("too few points in class %s of the map; its area is merged with another class", gone)
    return strata, left, ground
