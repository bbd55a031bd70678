"""Polygons of a layer, batch by batch: valid, and in pixel coordinates of a raster's grid."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from landprior.errors import InputError
from landprior.inputs import check_file
from landprior.raster.ground import metres_per_unit
from landprior.sources import tables
from landprior.sources.labels import is_raster
from landprior.sources.local_files import refuse_zip_bomb
from landprior.sources.points import find_column, is_blank
from landprior.sources.vectors import PARQUET, choose_layer, explaining_damage, parse_source, read_everything

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

BATCH = 10_000
"""Number of polygons that are held in memory at a time."""

_EDGE = 1_000.0
"""Length in metres above which an edge is divided before it is projected, as its image is not straight."""

_DEGREE = 111_320.0
_POLYGON, _MULTIPOLYGON, _COLLECTION = 3, 6, 7


@dataclass(frozen=True, kw_only=True)
class PolygonBatch:
    """Some polygons of a layer.

    Parameters
    ----------
    frame
        Columns and geometries as in the file, in its CRS.
    shapes
        Valid polygons in pixel coordinates (column, row) of the grid, shape (n,); empty for a feature without one.
    first
        Position of the first feature in the layer.
    """

    frame: geopandas.GeoDataFrame
    shapes: NDArray[np.object_]
    first: int

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.shapes)


class PolygonLayer:
    """A layer of polygons, read in batches if its format can be (GeoPackage, Shapefile), otherwise at once.

    Parameters
    ----------
    polygons
        A vector file, see :func:`landprior.sources.vectors.read_everything`, or features in memory.
    grid
        Grid of the raster.
    layer
        Layer of the file, if it has several.
    identity
        The only column to keep, whose values must differ; None to keep all.

    Raises
    ------
    InputError
        If it cannot be read, has no features, no CRS, or no such column, or if ids are missing or repeat.
    """

    def __init__(
        self,
        polygons: str | Path | geopandas.GeoDataFrame,
        grid: Grid,
        *,
        layer: str | None = None,
        identity: str | None = None,
    ) -> None:
        self.grid = grid
        self.counts: Counter[str] = Counter()
        self.firsts: dict[str, int] = {}
        self._frame: geopandas.GeoDataFrame | None = None
        self._integers: list[str] = []
        self._kind: str | None = None
        self._key = ""
        if isinstance(polygons, geopandas.GeoDataFrame):
            self.where = "the polygons"
            self._frame = polygons.reset_index(drop=True)
            own: Any = polygons.crs
        else:
            own = self._open(polygons, layer)
        if self.count == 0:
            msg = f"{self.where} has no features; is it the right layer?"
            raise InputError(msg)
        if own is None and grid.crs is not None:
            msg = f"{self.where} has no CRS; set it (ogr2ogr -a_srs EPSG:4326), or give GeoJSON in degrees"
            raise InputError(msg)
        self.output_crs = None if own is None else CRS.from_user_input(own)
        self.crs = None if grid.crs is None else self.output_crs
        self._target = None if self.crs is None or grid.crs is None else CRS.from_wkt(grid.crs.to_wkt())
        self.projects = self.crs is not None and self.crs != self._target
        self.identity = None if identity is None else self._find_identity(identity)
        if self.projects and self.crs is not None and self._target is not None:
            logger.debug("%s is in %s; its polygons are projected to %s of the map for the overlap, and kept in their "
                         "own CRS", self.where, self.crs.name, self._target.name)  # fmt: skip

    def _open(self, path: str | Path, layer: str | None) -> Any:  # noqa: ANN401 - a CRS in any form
        """Open a file; return its CRS."""
        import pyogrio

        self._source = parse_source(path, layer)
        self.where = str(self._source)
        file, suffix = self._source.path, self._source.path.suffix.lower()
        check_file(file, folder=True)
        refuse_zip_bomb(file)
        if suffix not in tables.SUFFIXES | PARQUET:
            if is_raster(path):
                msg = f"{path} is a raster, but a layer of polygons is needed"
                raise InputError(msg)
            with explaining_damage(file):
                self._layer = choose_layer(self._source)
                info = pyogrio.read_info(file, layer=self._layer, force_feature_count=True)
            self._count = int(info["features"])
            self._names = [str(name) for name in info["fields"]]
            if info["capabilities"].get("fast_set_next_by_index"):
                kinds = [str(kind) for kind in info["dtypes"]]
                self._integers = [n for n, kind in zip(self._names, kinds, strict=True) if "int" in kind]
                self._kind = self._source.geometry
                self._key = info["fid_column"]
                return info["crs"]
            with explaining_damage(file):
                self._frame = pyogrio.read_dataframe(file, layer=self._layer)
        else:
            # without the grid, features keep their own CRS; a table of coordinates needs it
            self._frame = read_everything(path, layer=layer, grid=self.grid if suffix in tables.SUFFIXES else None)
        self._frame = self._frame.reset_index(drop=True)
        return self._frame.crs

    @property
    def count(self) -> int:
        """Number of features."""
        return self._count if self._frame is None else len(self._frame)

    @property
    def columns(self) -> list[str]:
        """Names of the columns to keep."""
        if self.identity is not None:
            return [self.identity]
        if self._frame is None:
            return self._names
        return [str(name) for name in self._frame.columns if name != self._frame.geometry.name]

    def batches(self, size: int | None = None) -> Iterator[PolygonBatch]:
        """Read the polygons.

        Parameters
        ----------
        size
            Maximum number of features of a batch; None: :data:`BATCH`.

        Yields
        ------
        PolygonBatch
            Features in the layer's order. Repaired and empty ones are counted in :attr:`counts`.

        Raises
        ------
        InputError
            If a feature is not a polygon, has coordinates that are not finite, or cannot be read.
        """
        size = size or BATCH
        self.counts.clear()
        self.firsts.clear()
        for first in range(0, self.count, size):
            frame = self._read(first, size)
            frame.index = range(first, first + len(frame))
            yield PolygonBatch(frame=frame, shapes=self._prepare(frame, first), first=first)

    def _read(self, first: int, size: int) -> geopandas.GeoDataFrame:
        if self._frame is not None:
            return self._frame.iloc[first : first + size][[*self.columns, self._frame.geometry.name]]
        import pyogrio

        with explaining_damage(self._source.path):
            frame = self._with_key(
                pyogrio.read_dataframe(
                    self._source.path,
                    layer=self._layer,
                    skip_features=first,
                    max_features=size,
                    columns=[name for name in self.columns if name != self._key],
                    fid_as_index=bool(self._key),
                )
            )
        for name in self._integers:  # with gaps they are read as float
            if name in frame and frame[name].dtype.kind == "f":
                frame[name] = frame[name].astype("Int64")
        return frame

    def _with_key(self, frame: Any) -> Any:  # noqa: ANN401 - with or without geometries
        """Return features with the key of a GeoPackage as a column, if it is the one to keep."""
        if self._key and self.identity == self._key:
            frame.insert(0, self._key, frame.index.to_numpy())
        return frame

    def _find_identity(self, wanted: str) -> str:
        """Return the column of ids, whose values must differ."""
        self.identity = None
        name = find_column(self.columns, wanted, self.where)
        if name is None and self._key and wanted.casefold() == self._key.casefold():
            return self._key  # a key is never empty and never repeats
        if name is None:
            msg = f"{self.where} has no column {wanted!r}; it has {', '.join(self.columns) or 'none'}"
            raise InputError(msg)
        if self._frame is not None:
            values = self._frame[name].tolist()
        else:
            import pyogrio

            with explaining_damage(self._source.path):
                found = pyogrio.read_dataframe(
                    self._source.path, layer=self._layer, columns=[name], read_geometry=False
                )
            values = found[name].tolist()
        seen: dict[object, int] = {}
        for position, value in enumerate(values):
            if is_blank(value):
                msg = f"{self.where}, feature {position + 1}: {name} is empty; fill it in, or leave out --id"
                raise InputError(msg)
            if seen.setdefault(value, position) != position:
                msg = (
                    f"{self.where}: features {seen[value] + 1} and {position + 1} have the same {name}, {value!r}; "
                    "dissolve them first (Dissolve in QGIS), or leave out --id to keep all features and columns"
                )
                raise InputError(msg)
        return name

    def _prepare(self, frame: geopandas.GeoDataFrame, first: int) -> NDArray[np.object_]:
        """Return valid polygons in pixel coordinates."""
        shapes = shapely.force_2d(frame.geometry.to_numpy())
        if self._kind is not None and "polygon" not in self._kind.lower():
            msg = f"{self.where} names {self._kind} features; polygons are needed"
            raise InputError(msg)
        shapes = self._take_polygons(shapes, first)
        empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
        self._note("without a geometry", empty, first)
        shapes = np.where(empty, shapely.Polygon(), shapes)
        coordinates, owner = shapely.get_coordinates(shapes, return_index=True)
        wrong = owner[~np.isfinite(coordinates).all(axis=1)]
        if wrong.size:
            msg = (
                f"{self.where}: feature {first + int(wrong[0]) + 1} has a coordinate that is not a finite number; "
                "correct or delete it"
            )
            raise InputError(msg)
        shapes = self._project(shapes, first)
        inverse = ~self.grid.transform
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(inverse @ (xy[:, 0], xy[:, 1])))
        broken = ~shapely.is_valid(shapes)
        if broken.any():
            self._note("invalid", broken, first)
            shapes[broken] = [
                _polygons_of(shape)
                for shape in shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
            ]
        return np.asarray(shapes, dtype=object)

    def _take_polygons(self, shapes: NDArray[np.object_], first: int) -> NDArray[np.object_]:
        """Return the polygons of collections, and raise an error for points and lines."""
        kinds = shapely.get_type_id(shapes)
        collections = np.flatnonzero(kinds == _COLLECTION)
        if collections.size:
            shapes = shapes.copy()
            for at in collections:
                if not shapely.is_empty(shapes[at]):
                    found = _polygons_of(shapes[at])
                    shapes[at] = shapes[at] if found.is_empty else found
            kinds = shapely.get_type_id(shapes)
        other = ~np.isin(kinds, (-1, _POLYGON, _MULTIPOLYGON)) & ~shapely.is_empty(shapes)
        if other.any():
            names = ", ".join(sorted({str(shape.geom_type) for shape in shapes[other]}))
            msg = (
                f"{self.where} has {names} (the first is feature {first + int(np.flatnonzero(other)[0]) + 1}); "
                "polygons are needed"
            )
            raise InputError(msg)
        return shapes

    def _project(self, shapes: NDArray[np.object_], first: int) -> NDArray[np.object_]:
        """Convert polygons to the CRS of the grid, without those outside its domain."""
        if not self.projects or self.crs is None or self._target is None:
            return shapes
        unit = _DEGREE if self.crs.is_geographic else _metres_per_unit(self.crs)
        try:
            series = geopandas.GeoSeries(shapely.segmentize(shapes, _EDGE / unit), crs=self.crs).to_crs(self._target)
        except (ProjError, ShapelyError, ValueError) as error:
            reason = " ".join(str(error).split())
            msg = f"{self.where} cannot be converted to the CRS of the map ({reason}); check its own CRS"
            raise InputError(msg) from error
        found = np.array(series.to_numpy(), dtype=object)
        coordinates, owner = shapely.get_coordinates(found, return_index=True)
        lost = np.zeros(len(found), dtype=bool)
        lost[owner[~np.isfinite(coordinates).all(axis=1)]] = True
        self._note("beyond the map's CRS", lost, first)
        found[lost] = shapely.Polygon()
        return found

    def _note(self, what: str, which: NDArray[np.bool_], first: int) -> None:
        """Count features, and remember the first."""
        if which.any():
            self.counts[what] += int(which.sum())
            self.firsts.setdefault(what, first + int(np.flatnonzero(which)[0]) + 1)

    def report(self) -> None:
        """Log how many features of the last pass were repaired, or have no polygon on the map."""
        ends = {
            "invalid": "were invalid and have been repaired for the overlap",
            "without a geometry": "have no geometry; their areas are empty",
            "beyond the map's CRS": "lie outside the domain of the map's CRS; their areas are empty",
        }
        for what, end in ends.items():
            if self.counts[what]:
                logger.warning(
                    "%s: %d of %d features %s (the first is feature %d)",
                    self.where, self.counts[what], self.count, end, self.firsts[what],
                )  # fmt: skip


def _metres_per_unit(crs: CRS) -> float:
    from rasterio.crs import CRS as RASTER_CRS

    return metres_per_unit(RASTER_CRS.from_wkt(crs.to_wkt()))


def _polygons_of(shape: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of a geometry as one."""
    if shapely.get_type_id(shape) in (_POLYGON, _MULTIPOLYGON):
        return shape
    parts = [part for part in shapely.get_parts(shape) if shapely.get_dimensions(part) == 2]
    flat = [one for part in parts for one in shapely.get_parts(_polygons_of(part))]
    return shapely.union_all(flat) if flat else shapely.Polygon()
