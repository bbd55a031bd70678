"""Files of areas per polygon, written batch by batch: GeoPackage, GeoParquet and CSV."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from landprior.landcover.vectors.polygon_files import require_format
from landprior.raster.outputs import check_output, replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import geopandas
    from pyproj import CRS

    from landprior.raster.outputs import Kind

_PACKAGE = ".gpkg"
_TABLE = ".csv"


def check_area_file(output: str | Path, *, overwrite: bool, inputs: Iterable[object]) -> Path:
    """Check, before any work, that areas can be written.

    Parameters
    ----------
    output
        The file; its extension chooses the format.
    overwrite, inputs
        See :func:`landprior.raster.outputs.check_output`.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    InputError
        If the format is unknown, or needs a package that is not installed.
    LandpriorError
        See :func:`landprior.raster.outputs.check_output`.
    """
    target = Path(output)
    require_format(target, (_PACKAGE, _TABLE, ".parquet"), "areas")
    return check_output(target, overwrite=overwrite, inputs=inputs, kind=_kind(target))


def _kind(target: Path) -> Kind:
    return "vector" if target.suffix.lower() == _PACKAGE else "file"


@contextmanager
def writing_areas(
    target: Path, crs: CRS | None, *, overwrite: bool
) -> Iterator[Callable[[geopandas.GeoDataFrame], None]]:
    """Write polygons with their areas; the file appears whole at the end of the block.

    Parameters
    ----------
    target
        The file.
    crs
        CRS of the polygons.
    overwrite
        Replace an existing file.

    Yields
    ------
    callable
        Function that writes a batch. All batches have the same columns.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.outputs.replacing`.
    """
    suffix = target.suffix.lower()
    with replacing(target, overwrite=overwrite, kind=_kind(target)) as temporary:
        if suffix == _PACKAGE:
            temporary.unlink()  # or GDAL would open the empty file
            yield _Package(temporary, target.stem).write
        elif suffix == _TABLE:
            yield _Table(temporary).write
        else:
            parquet = _Parquet(temporary, crs)
            try:
                yield parquet.write
            finally:
                parquet.close()


class _Package:
    """A GeoPackage."""

    def __init__(self, path: Path, layer: str) -> None:
        self._path, self._layer = path, layer
        self._options: dict[str, Any] = {}

    def write(self, frame: geopandas.GeoDataFrame) -> None:
        """Append features."""
        import pyogrio

        shapes = frame.geometry.to_numpy()
        first = not self._path.exists()
        if first:
            taken = {str(name).casefold() for name in frame.columns if name != "geometry"}
            solid = "MultiPolygon Z" if shapely.has_z(shapes).any() else "MultiPolygon"
            mixed = (shapely.get_type_id(shapes) == shapely.GeometryType.GEOMETRYCOLLECTION).any()
            self._options = {"geometry_type": "Unknown" if mixed else solid, "promote_to_multi": not mixed}
            for option, usual in (("FID", "fid"), ("GEOMETRY_NAME", "geom")):
                if usual in taken:
                    self._options["layer_options"] = {**self._options.get("layer_options", {}), option: f"{usual}_"}
        pyogrio.write_dataframe(frame, self._path, layer=self._layer, driver="GPKG", append=not first, **self._options)


class _Table:
    """A CSV without the polygons."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, False

    def write(self, frame: geopandas.GeoDataFrame) -> None:
        """Append rows."""
        rows = frame.drop(columns="geometry")
        rows.to_csv(self._path, mode="a" if self._begun else "w", header=not self._begun, index=False)
        self._begun = True


class _Parquet:
    """A GeoParquet file, a row group per batch (version 1.0 of the format)."""

    def __init__(self, path: Path, crs: CRS | None) -> None:
        self._path, self._crs = path, crs
        self._writer: Any = None
        self._schema: Any = None

    def write(self, frame: geopandas.GeoDataFrame) -> None:
        """Append rows."""
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet

        table = frame.drop(columns="geometry").assign(geometry=shapely.to_wkb(frame.geometry.to_numpy()))
        if self._writer is None:
            found = pa.Schema.from_pandas(table, preserve_index=False)
            text = [
                pa.field(field.name, pa.string() if pa.types.is_null(field.type) else field.type)
                for field in found
                if field.name != "geometry"
            ]
            about = {
                "version": "1.0.0",
                "primary_column": "geometry",
                "columns": {
                    "geometry": {
                        "encoding": "WKB",
                        "geometry_types": [],
                        "crs": None if self._crs is None else self._crs.to_json_dict(),
                    }
                },
            }
            self._schema = pa.schema([*text, pa.field("geometry", pa.binary())], metadata={"geo": json.dumps(about)})
            self._writer = parquet.ParquetWriter(self._path, self._schema)
        self._writer.write_table(pa.Table.from_pandas(table, schema=self._schema, preserve_index=False))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
