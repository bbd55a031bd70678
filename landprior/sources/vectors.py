"""Reading vector data of any format on a grid, and burning it into a raster."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_bounds
from shapely.errors import ShapelyError

from landprior.errors import InputError
from landprior.inputs import check_file
from landprior.sources import tables
from landprior.sources.local_files import refuse_zip_bomb
from landprior.sources.places import read_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    import geopandas

    from landprior.raster.grid import Grid

logger = logging.getLogger(__name__)

PARQUET = {".parquet", ".geoparquet", ".pq"}
"""Extensions of GeoParquet, in lower case."""


@dataclass(frozen=True)
class VectorSource:
    """A vector file and the layer to read.

    Parameters
    ----------
    path
        The file, or a folder of files.
    layer
        Name of the layer, or its position from 0; None if the file has only one.
    geometry
        Only features of this kind, as QGIS writes it (``Point``, ``LineString``, ``Polygon``); None for all.
    """

    path: Path
    layer: str | int | None = None
    geometry: str | None = None

    def __str__(self) -> str:
        """Return the source in QGIS notation."""
        return str(self.path) if self.layer is None else f"{self.path}|layername={self.layer}"


def parse_source(path: str | Path, layer: str | None = None) -> VectorSource:
    """Parse a vector source such as ``file.gpkg|layername=x``, in QGIS notation.

    Parameters
    ----------
    path
        The file, optionally with ``|layername=``, ``|layerid=`` or ``|geometrytype=``.
    layer
        The layer given by an option; must not contradict the path.

    Returns
    -------
    VectorSource
        Path, layer and kind of geometry, each None if not given.

    Raises
    ------
    InputError
        If the path has another part (``|subset=``), or a different layer than the option.
    """
    text = str(path)
    if "|" not in text:
        return VectorSource(Path(text), layer)
    with contextlib.suppress(OSError, ValueError):  # for example a name that is too long; reported where it is opened
        if Path(text).exists():
            return VectorSource(Path(text), layer)
    file, *parts = text.split("|")
    name: str | int | None = None
    geometry = None
    for part in parts:
        key, equals, value = part.partition("=")
        kind = key.strip().lower()
        if kind == "layername" and value:
            name = value
        elif kind == "layerid" and value.strip().isdecimal():
            name = int(value) if name is None else name
        elif kind == "geometrytype" and value:
            geometry = value.strip()
        elif kind == "uniquegeometrytype" and equals:
            pass  # internal to QGIS
        elif kind == "subset":
            msg = f"{text}: a filter (subset) cannot be used here; export the layer with the filter on in QGIS first"
            raise InputError(msg)
        else:
            msg = f"{text}: {part!r} is not supported; write FILE|layername=NAME"
            raise InputError(msg)
    if layer is not None and name not in {None, layer}:
        msg = f"{text} names the layer {name!r} and --layer {layer!r}; give one of them"
        raise InputError(msg)
    return VectorSource(Path(file), layer if name is None else name, geometry)


def read_vectors(path: str | Path, *, layer: str | None = None, grid: Grid | None = None) -> geopandas.GeoDataFrame:
    """Read features, from any format GDAL reads (including zipped shapefiles), GeoParquet, or a CSV with coordinates.

    Parameters
    ----------
    path
        The file; ``file.gpkg|layername=x`` names one of its layers.
    layer
        Layer to read; None for the only one with features.
    grid
        Read only features near this grid, in its CRS (without a CRS: all, unchanged). None: all, in the file's CRS.

    Returns
    -------
    GeoDataFrame
        Features with a geometry; the number without one is logged.

    Raises
    ------
    MissingInputError, InputError
        If it is missing, cannot be read, has no CRS, or has several layers and none is given.
    """
    frame = read_everything(path, layer=layer, grid=grid, near=True)
    if grid is None or grid.crs is None:
        return frame
    left, bottom, right, top = grid.bounds
    return frame.cx[left:right, bottom:top]


def read_everything(
    path: str | Path, *, layer: str | None = None, grid: Grid | None = None, near: bool = False
) -> geopandas.GeoDataFrame:
    """Read features as :func:`read_vectors` does, including those outside the grid.

    Parameters
    ----------
    path, layer
        See :func:`parse_source`.
    grid
        Grid whose CRS the features are converted to; None: they keep their own.
    near
        Leave out features far from the grid.

    Returns
    -------
    GeoDataFrame
        Features with geometry.

    Raises
    ------
    LandpriorError
        See :func:`read_vectors`.
    """
    source = parse_source(path, layer)
    check_file(source.path, folder=True)  # a .gdb is a folder
    refuse_zip_bomb(source.path)
    suffix = source.path.suffix.lower()
    if suffix in tables.SUFFIXES:
        frame = read_places(source.path, grid)
    elif suffix in PARQUET:
        frame = _read_parquet(source.path, grid if near else None)
    else:
        frame = _read_gdal(source, grid if near else None)
    if suffix not in tables.SUFFIXES:
        _check_coordinates(frame, source.path)
    if source.geometry is not None:
        kind = _plain_kind(source.geometry)
        frame = frame[[_plain_kind(name or "") == kind for name in frame.geom_type]]
    frame = _with_geometry(frame, source)
    if grid is not None and grid.crs is None:
        return frame  # local coordinates, those of the grid
    if frame.crs is None:
        msg = f"{path} has no CRS; set it (ogr2ogr -a_srs EPSG:4326), or give GeoJSON in degrees"
        raise InputError(msg)
    return frame if grid is None or grid.crs is None else _project(frame, grid.crs, source.path)


def _plain_kind(name: str) -> str:
    """Return a kind of geometry without Multi, Z and M: ``MultiPolygonZ`` is ``polygon``."""
    return re.sub(r"(25d|zm|z|m)$", "", name.strip().lower().removeprefix("multi"))


def _with_geometry(frame: geopandas.GeoDataFrame, source: VectorSource) -> geopandas.GeoDataFrame:
    """Return the features with a usable geometry, and log the number without."""
    shapes = frame.geometry.to_numpy()
    bounds = shapely.bounds(shapes)  # NaN where there is no geometry, or an empty one
    good = np.isfinite(bounds).all(axis=1)
    if not good.all():
        logger.warning(
            "%s: %d of %d features have no usable geometry and are left out", source, int((~good).sum()), len(good)
        )
    return frame[good]


def _read_gdal(source: VectorSource, grid: Grid | None) -> geopandas.GeoDataFrame:
    import pyogrio

    path = source.path
    with explaining_damage(path):
        layer = choose_layer(source)
        bounds = None if grid is None else _bounds_in(grid, pyogrio.read_info(path, layer=layer)["crs"])
        return pyogrio.read_dataframe(path, layer=layer, bbox=bounds)


@contextlib.contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn the errors of reading a vector file with GDAL within the block into one that says what to do.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    from pyproj.exceptions import ProjError

    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        msg = f"{path} has text that is not UTF-8 ({error.reason}); save it as UTF-8, a GeoPackage for example"
        raise InputError(msg) from error
    except (RuntimeError, ValueError, CRSError, ProjError, ShapelyError) as error:  # pyogrio's are RuntimeErrors
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be read as vector data ({reason}); GeoPackage, FlatGeobuf and GeoJSON work"
        raise InputError(msg) from error


def _check_coordinates(frame: geopandas.GeoDataFrame, path: Path) -> None:
    """Raise an error for features with coordinates that are not numbers."""
    coordinates, owner = shapely.get_coordinates(frame.geometry.to_numpy(), return_index=True)
    wrong = owner[~np.isfinite(coordinates).all(axis=1)]
    if wrong.size:
        msg = f"{path}: feature {int(wrong[0]) + 1} has a coordinate that is not a finite number; correct or delete it"
        raise InputError(msg)


def _project(frame: geopandas.GeoDataFrame, crs: CRS, path: Path) -> geopandas.GeoDataFrame:
    """Convert features to another CRS, without those outside its domain."""
    from pyproj.exceptions import ProjError

    try:
        found = frame.to_crs(crs.to_wkt())
    except (ProjError, ShapelyError, ValueError) as error:
        msg = f"{path} cannot be converted to another CRS ({' '.join(str(error).split())}); check its own CRS"
        raise InputError(msg) from error
    coordinates, owner = shapely.get_coordinates(found.geometry.to_numpy(), return_index=True)
    lost = np.unique(owner[~np.isfinite(coordinates).all(axis=1)])
    south, north = frame.total_bounds[[1, 3]]
    if lost.size and lost.size == len(frame) and frame.crs.is_geographic and max(abs(south), abs(north)) > 90:
        msg = f"{path} has latitudes from {south:.6g} to {north:.6g} degrees, which must be within 90"
        if max(abs(south), abs(north)) > 360:  # GeoJSON without a CRS is read as degrees
            msg = f"{msg}: these are map coordinates; set their CRS (ogr2ogr -a_srs EPSG:CODE)"
        else:
            msg = f"{msg}; are longitude and latitude swapped?"
        raise InputError(msg)
    if lost.size:
        logger.warning(
            "%d feature(s) of %s are outside the domain of the raster's CRS and are left out", lost.size, path
        )
        found = found.drop(index=found.index[lost])
    return found


def list_layers(path: Path, *, points: bool = True) -> list[str]:
    """Return the names of the layers of a file that have geometries, in its order; point layers only if ``points``.

    Raises
    ------
    InputError
        If it cannot be read, or has no such layers.
    """
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        kinds = {str(name): kind for name, kind in pyogrio.list_layers(path) if kind is not None}
    except (DataSourceError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be read as vector data ({reason}); GeoPackage, FlatGeobuf and GeoJSON work"
        raise InputError(msg) from error
    if not kinds:
        msg = f"{path} has no geometries; give GeoPackage, FlatGeobuf or GeoJSON"
        raise InputError(msg)
    return [name for name, kind in kinds.items() if points or "point" not in kind.lower()]


def with_layer(path: Path, layer: str | None) -> Path:
    """Name a layer of a vector file, as :func:`parse_source` reads it.

    Raises
    ------
    InputError
        If the path names another layer already.
    """
    if layer is None:
        return path
    parse_source(path, layer)
    return path if parse_source(path).layer is not None else Path(f"{path}|layername={layer}")


def choose_layer(source: VectorSource) -> str:
    """Return the name of the layer to read: the given one, otherwise the only one with features.

    Raises
    ------
    InputError
        If the file has no such layer, or none is given and several have features; the message lists them.
    """
    import pyogrio

    names = list_layers(source.path)
    listed = ", ".join(repr(name) for name in names)
    if isinstance(source.layer, int):
        every = [str(name) for name, _ in pyogrio.list_layers(source.path)]
        if source.layer < len(every) and every[source.layer] in names:
            return every[source.layer]
    elif source.layer is not None:
        alike = [name for name in names if name.casefold() == source.layer.casefold()]
        if source.layer in names or len(alike) == 1:
            return source.layer if source.layer in names else alike[0]
    elif len(names) == 1:
        return names[0]
    else:
        counts = [pyogrio.read_info(source.path, layer=name, force_feature_count=True)["features"] for name in names]
        filled = [name for name, count in zip(names, counts, strict=True) if count]
        if len(filled) < 2:
            return (filled or names)[0]
        each = ", ".join(f"{name!r} ({count} features)" for name, count in zip(names, counts, strict=True))
        msg = (
            f"{source.path} has {len(names)} layers: {each}; choose one with --layer NAME, if the command has it, "
            f'or as "{source.path}|layername={filled[0]}"'
        )
        raise InputError(msg)
    msg = f"{source.path} has no layer {source.layer!r}; it has {listed}"
    raise InputError(msg)


def _read_parquet(path: Path, grid: Grid | None) -> geopandas.GeoDataFrame:
    import geopandas

    try:
        bounds = None if grid is None else _bounds_in(grid, read_parquet_crs(path))
        try:
            return geopandas.read_parquet(path, bbox=bounds)
        except ValueError:
            if bounds is None:
                raise
            return geopandas.read_parquet(path)  # it has no bounding boxes of its features
    except ImportError as error:
        msg = f"{path} is GeoParquet, which needs pyarrow: pip install 'landprior[parquet]'"
        raise InputError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError, ShapelyError) as error:
        msg = f"{path} cannot be read as GeoParquet ({' '.join(str(error).split())})"
        raise InputError(msg) from error


def read_parquet_crs(path: Path) -> str | None:
    """Return the CRS of a GeoParquet file, which also applies to its features' boxes; None if not stored."""
    import geopandas
    from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

    text = (read_schema(path).metadata or {}).get(b"geo")
    if text is None:
        return None
    about = json.loads(text)
    crs = about["columns"][about["primary_column"]].get("crs", "OGC:CRS84")
    return None if crs is None else str(geopandas.GeoSeries([], crs=crs).crs.to_wkt())


def _bounds_in(grid: Grid, crs: str | None) -> tuple[float, float, float, float] | None:
    """Return a grid's bounds in another CRS; None if either is unknown."""
    if crs is None or grid.crs is None:
        return None
    left, bottom, right, top = transform_bounds(grid.crs, CRS.from_user_input(crs), *grid.bounds, densify_pts=21)
    return (left, bottom, right, top)
