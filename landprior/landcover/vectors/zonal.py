"""Areas of a map's classes per polygon, batch by batch, optionally corrected with interpreted points."""

from __future__ import annotations

import logging
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import geopandas
import numpy as np
import pandas as pd
import shapely

from landprior.errors import InputError, NoOverlapError
from landprior.landcover.assessment.estimation import require_strata
from landprior.landcover.assessment.interpreted import InterpretedPoints, read_interpreted
from landprior.landcover.assessment.scores import scheme_of_map
from landprior.landcover.training.layers import PriorLayer
from landprior.landcover.vectors.area_files import check_area_file, writing_areas
from landprior.landcover.vectors.correction import ASSISTED, NONE, SYNTHETIC, AreaCorrection, Members
from landprior.landcover.vectors.overlap import ClassAreas, MapAreas, ProbabilityAreas
from landprior.progress import Progress
from landprior.raster.bands import find_bands
from landprior.raster.codes import open_codes
from landprior.raster.names import split_band
from landprior.raster.pixel_areas import PixelAreas
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.raster.scheme import plain_name
from landprior.run import Run
from landprior.sources.labels import is_raster
from landprior.sources.points import explain_outside
from landprior.sources.polygons import PolygonBatch, PolygonLayer
from landprior.sources.sample_design import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

_HECTARE = 1e4

_DECIMALS = 9
"""Of hectares: finer is the noise of sums."""

_PARTLY = 1e-6
"""Share of a polygon from which it counts as partly outside: reprojection moves edges by less than that."""


@dataclass(frozen=True, kw_only=True)
class AreaOptions:
    """What to measure per polygon, and how the files are to be read.

    Parameters
    ----------
    scheme
        Classes of the map; by default those in its tags.
    layer
        Layer of the polygons, if their file has several.
    identity
        The only column of the polygons to keep, whose values must differ; by default all columns are kept.
    map_map
        Codes of the map -> codes of the scheme.
    points
        Points drawn by ``landprior sample`` and interpreted, to correct the areas for the map's errors.
    class_column, points_layer, label_map
        Column of the points with the interpreted class, their layer, and their codes -> codes of the scheme.
    pixel_size
        Metres per pixel, for a map that is not georeferenced.
    """

    scheme: ClassScheme | None = None
    layer: str | None = None
    identity: str | None = None
    map_map: Mapping[int, int] | None = None
    points: str | Path | None = None
    class_column: str = REFERENCE
    points_layer: str | None = None
    label_map: Mapping[int, int] | None = None
    pixel_size: float | None = None


def measure_areas(
    map_path: str | Path,
    polygons: str | Path | geopandas.GeoDataFrame,
    *,
    options: AreaOptions = AreaOptions(),
    run: Run = Run(),
) -> geopandas.GeoDataFrame:
    """Measure the area of each class of a map in each polygon, by exact overlap.

    Parameters
    ----------
    map_path
        A map of classes, or a raster with their probabilities (``predict --probabilities``), in which each pixel counts
        for each class with its probability.
    polygons
        A vector file, or features in memory, in any CRS.
    options
        What to measure.
    run
        Whether to show progress.

    Returns
    -------
    GeoDataFrame
        The polygons with their columns and, in hectares on the ground, ``area_ha``, ``unmapped_ha`` (without data, or
        off the map) and ``<class>_ha``; ``<class>_share`` of the mapped area. With points also ``points`` (in the
        polygon), ``estimator`` (``assisted``, ``synthetic``, ``none``; see
        :mod:`landprior.landcover.vectors.correction`), ``<class>_corrected_ha``, and its 95 % interval,
        ``<class>_low_ha`` and ``<class>_high_ha``. What is unknown is empty (NaN).

    Raises
    ------
    InputError
        If a file cannot be read, features are not polygons, ids repeat or columns have the same name.
    NoOverlapError
        If no polygon overlaps the map.
    SchemeError
        If the map has no scheme in its tags and none is given, or has other codes.
    """
    with _Measurement(map_path, polygons, options, run) as measurement:
        return pd.concat(list(measurement.batches()), ignore_index=True)


def write_areas(
    map_path: str | Path,
    polygons: str | Path | geopandas.GeoDataFrame,
    output: str | Path,
    *,
    options: AreaOptions = AreaOptions(),
    run: Run = Run(),
) -> Path:
    """Write the area of each class of a map in each polygon, batch by batch, in constant memory.

    Parameters
    ----------
    map_path, polygons, options
        See :func:`measure_areas`.
    output
        The file to write: ``.gpkg`` and ``.parquet`` (GeoParquet) with the polygons as they were, ``.csv`` without.
    run
        Whether to overwrite, and to show progress.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    LandpriorError
        See :func:`measure_areas` and :func:`landprior.raster.outputs.check_output`.
    """
    inputs = (map_path, options.points, *([polygons] if isinstance(polygons, (str, Path)) else []))
    target = check_area_file(output, overwrite=run.overwrite, inputs=inputs)
    with _Measurement(map_path, polygons, options, run) as measurement:
        crs = measurement.layer.output_crs
        with writing_areas(target, crs, overwrite=run.overwrite) as write:
            for frame in measurement.batches():
                write(frame)
    return target


class _Measurement:
    """An open map, a layer of polygons, and points if there are any."""

    def __init__(
        self,
        map_path: str | Path,
        polygons: str | Path | geopandas.GeoDataFrame,
        options: AreaOptions,
        run: Run,
    ) -> None:
        self._path, self._options, self._run = map_path, options, run
        self._counts: Counter[str] = Counter()
        self._first_away = 0
        self._bounds: list[NDArray[np.float64]] = []
        with ExitStack() as stack:
            if not isinstance(polygons, geopandas.GeoDataFrame):
                _refuse_swapped(map_path, polygons)
            self._areas, points = _open_map(stack, map_path, options)
            self._scheme, grid = self._areas.scheme, self._areas.grid
            self.layer = PolygonLayer(polygons, grid, layer=options.layer, identity=options.identity)
            self._names = name_columns(self._scheme)
            self._check_names()
            self._correction = None if points is None else self._correct(points)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _check_names(self) -> None:
        """Raise an error if the polygons have a column that is to be added."""
        added = (
            ["area_ha", "unmapped_ha", "points", "estimator"] if self._options.points else ["area_ha", "unmapped_ha"]
        )
        ends = ["ha", "share", *(("corrected_ha", "low_ha", "high_ha") if self._options.points else ())]
        new = {name.casefold() for name in (*added, *(f"{name}_{end}" for end in ends for name in self._names))}
        taken = [name for name in self.layer.columns if name.casefold() in new]
        if taken:
            msg = (
                f"{self.layer.where} already has a column {taken[0]!r}, which would be written; rename it, or keep "
                "only the column that names the polygons with --id COLUMN"
            )
            raise InputError(msg)

    def _correct(self, points: InterpretedPoints) -> AreaCorrection:
        """Find the points in the polygons."""
        grid = self._areas.grid
        if points.strata is not None:
            require_strata(points.strata, points.sizes)
        else:
            logger.warning(
                "%s has no strata, unlike points drawn by landprior sample; "
                "the estimates assume a simple random sample",
                self._options.points,
            )
        columns, rows = (np.floor(at) for at in ~grid.transform @ (points.places[:, 0], points.places[:, 1]))
        pixels = shapely.box(columns, rows, columns + 1, rows + 1)
        tree = shapely.STRtree(pixels)
        found: list[tuple[NDArray[np.generic], ...]] = []
        with Progress(self.layer.count, "points in polygons", "polygon", show=self._run.progress) as progress:
            for batch in self.layer.batches():
                inside, at = tree.query(batch.shapes, predicate="intersects")
                parts = shapely.area(shapely.intersection(batch.shapes[inside], pixels[at]))
                some = parts > 0
                order = np.argsort(inside[some], kind="stable")
                inside, at, parts = (values[some][order] for values in (inside, at, parts))
                found.append((inside + batch.first, at, parts, shapely.area(batch.shapes[inside])))
                progress.update(len(batch))
        polygons, at, parts, sizes = (np.concatenate(column) for column in zip(*found, strict=True))
        members = Members(
            polygons=polygons.astype(np.int64), points=at.astype(np.int64), parts=parts.astype(np.float64),
            sizes=sizes.astype(np.float64),
        )  # fmt: skip
        correction = AreaCorrection(
            points.mapped, points.reference, points.weights(), len(self._scheme), members=members
        )
        lacking = [name for name, known in zip(self._scheme.names, correction.known, strict=True) if not known]
        if lacking:
            logger.warning(
                "no point of %s lies where the map has %s; polygons with it have no interval",
                self._options.points, ", ".join(lacking),
            )  # fmt: skip
        return correction

    def batches(self) -> Iterator[geopandas.GeoDataFrame]:
        """Yield the polygons with their areas."""
        with Progress(self.layer.count, "areas", "polygon", show=self._run.progress) as progress:
            for batch in self.layer.batches():
                found = self._areas.measure(batch.shapes)
                self._count(batch, found)
                yield self._tabulate(batch, found / _HECTARE)
                progress.update(len(batch))
        self._report()

    def _tabulate(self, batch: PolygonBatch, found: NDArray[np.float64]) -> geopandas.GeoDataFrame:
        """Return a batch with its columns of areas, from hectares by class, without data and off the map."""
        mapped = found[:, : len(self._scheme)]
        whole = mapped.sum(axis=1)
        seen = np.where(whole > 0, whole, np.nan)
        there = np.where(shapely.is_empty(batch.shapes), np.nan, 1.0)
        columns: dict[str, NDArray[np.generic]] = {
            "area_ha": found.sum(axis=1) * there,
            "unmapped_ha": found[:, -2:].sum(axis=1) * there,
        }
        classes = np.where(whole[:, None] > 0, mapped, np.nan)
        columns |= {f"{name}_ha": classes[:, i] for i, name in enumerate(self._names)}
        columns |= {f"{name}_share": classes[:, i] / seen for i, name in enumerate(self._names)}
        if self._correction is not None:
            corrected = self._correction.estimate(batch.first, mapped)
            self._counts.update(corrected.estimators.tolist())
            self._counts["no interval"] += int((np.isnan(corrected.low[:, 0]) & (corrected.estimators != NONE)).sum())
            columns |= {"points": corrected.points, "estimator": corrected.estimators}
            for i, name in enumerate(self._names):
                columns[f"{name}_corrected_ha"] = corrected.values[:, i]
                columns[f"{name}_low_ha"] = corrected.low[:, i]
                columns[f"{name}_high_ha"] = corrected.high[:, i]
        frame = batch.frame
        if not self.layer.columns:
            columns = {"feature": np.arange(batch.first, batch.first + len(batch)) + 1, **columns}
        shape = frame.geometry.name
        attributes = frame.drop(columns=shape)
        added = pd.DataFrame(columns, index=frame.index).round(_DECIMALS)
        joined = pd.concat([pd.DataFrame(attributes), added], axis=1)
        return geopandas.GeoDataFrame(joined, geometry=frame.geometry.rename("geometry"), crs=frame.crs)

    def _count(self, batch: PolygonBatch, found: NDArray[np.float64]) -> None:
        """Count polygons off the map and tiny ones."""
        whole = found.sum(axis=1)
        away = (whole > 0) & (found[:, :-1].sum(axis=1) == 0)
        if away.any() and not self._counts["away"]:
            self._first_away = batch.first + int(np.flatnonzero(away)[0]) + 1
        self._counts["away"] += int(away.sum())
        self._counts["partly"] += int(((found[:, -1] > _PARTLY * whole) & ~away).sum())
        self._counts["there"] += int((whole > 0).sum())
        self._counts["tiny"] += int(((whole > 0) & (whole < self._areas.areas.least)).sum())
        bounds = shapely.bounds(batch.shapes)
        bounds = bounds[~np.isnan(bounds).any(axis=1)]
        if len(bounds):
            self._bounds = [np.concatenate([*self._bounds, bounds])]
            low, high = self._bounds[0][:, :2].min(axis=0), self._bounds[0][:, 2:].max(axis=0)
            self._bounds = [np.concatenate([low, high])[None]]

    def _report(self) -> None:
        """Log what is to be known of the polygons, or raise an error if none is on the map."""
        self.layer.report()
        counts, total = self._counts, self.layer.count
        if counts["there"] == counts["away"]:
            raise NoOverlapError(self._explain_away())
        if counts["away"]:
            logger.warning(
                "%s: %d of %d polygons lie outside the map (the first is feature %d); they have no areas by class",
                self.layer.where, counts["away"], total, self._first_away,
            )  # fmt: skip
        if counts["partly"]:
            logger.info(
                "%d of %d polygons lie partly outside the map; unmapped_ha includes that part", counts["partly"], total
            )
        if counts["tiny"]:
            logger.info(
                "%d of %d polygons are smaller than a pixel; they have the classes of the pixels they lie in",
                counts["tiny"], total,
            )  # fmt: skip
        if self._correction is not None:
            logger.info(
                "areas corrected by the polygon's own points (assisted): %d polygons; by those of the whole map "
                "(synthetic): %d, of which without an interval: %d",
                counts[ASSISTED], counts[SYNTHETIC], counts["no interval"],
            )  # fmt: skip

    def _explain_away(self) -> str:
        where = f"no polygon of {self.layer.where} overlaps {self._path}"
        if not self._bounds:
            return f"{self.layer.where} has no polygon that can be placed on {self._path}; check its geometries and CRS"
        left, top, right, bottom = self._bounds[0][0]
        grid = self._areas.grid
        x, y = grid.transform @ (np.array([left, right, left, right]), np.array([top, top, bottom, bottom]))
        box = shapely.box(np.min(x), np.min(y), np.max(x), np.max(y))
        frame = geopandas.GeoDataFrame(geometry=[box], crs=None if grid.crs is None else grid.crs.to_wkt())
        return f"{where}: {explain_outside(frame, grid)}"


def _refuse_swapped(map_path: str | Path, polygons: str | Path) -> None:
    """Raise an error if the map and the polygons are given in the wrong order."""
    if Path(split_band(map_path)[0]).is_file() and not is_raster(map_path) and is_raster(polygons):
        msg = (
            f"{map_path} is not a raster but {polygons} is, and the map must come first; are the two swapped? "
            f"Try: landprior zonal {polygons} {map_path}"
        )
        raise InputError(msg)


def _open_map(stack: ExitStack, path: str | Path, options: AreaOptions) -> tuple[ClassAreas, InterpretedPoints | None]:
    """Open a map of classes or of probabilities, and read the points on it."""
    scheme = options.scheme or scheme_of_map(path, probabilities=True)
    if _has_probabilities(path, scheme):
        if options.points is not None:
            msg = f"{path} has probabilities; points correct a map of classes: give the map itself with --points"
            raise InputError(msg)
        if options.map_map:
            msg = f"{path} has probabilities, one band per class; codes (--map-map) are for a map of classes"
            raise InputError(msg)
        layer = stack.enter_context(PriorLayer(path, scheme=options.scheme))
        return ProbabilityAreas(layer, PixelAreas(layer.grid, where=path, pixel_size=options.pixel_size)), None
    raster = stack.enter_context(open_codes(path))
    raster.require_free_nodata(scheme, options.map_map)
    areas = PixelAreas(raster.grid, where=path, pixel_size=options.pixel_size)
    points = None
    if options.points is not None:
        points = read_interpreted(
            raster,
            options.points,
            scheme,
            column=options.class_column,
            layer=options.points_layer,
            map_map=options.map_map,
            label_map=options.label_map,
        )
    return MapAreas(raster, areas, scheme, codes=options.map_map), points


def _has_probabilities(path: str | Path, scheme: ClassScheme) -> bool:
    """Say whether a raster has a band of probabilities for each class."""
    if split_band(path)[1] is not None:
        return False
    with open_raster(path) as src:
        if src.tags(ns=TAG_DOMAIN).get("kind") in ("probabilities", "prior"):
            return True
        return src.count > 1 and len(find_bands(src, due=len(scheme)).data) == len(scheme)


def name_columns(scheme: ClassScheme) -> list[str]:
    """Return the stems of the classes' columns: lower case, with ``_`` for all that is not a letter or digit."""
    stems = [re.sub(r"\W+", "_", plain_name(name)).strip("_") for name in scheme.names]
    reserved = {"area", "unmapped", ""}
    return [
        f"{stem}_{code}".strip("_") if stem in reserved or stems.count(stem) > 1 else stem
        for stem, code in zip(stems, scheme.codes.tolist(), strict=True)
    ]
