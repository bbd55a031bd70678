"""Files of polygons by class: GeoPackage with a style, and other vector formats."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from landprior.errors import InputError
from landprior.raster.outputs import check_output, replacing
from landprior.sources.vectors import PARQUET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import geopandas

    from landprior.raster.scheme import ClassScheme

PACKAGE = ".gpkg"
DRIVERS = {PACKAGE: "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
"""Drivers by extension, besides those of :data:`landprior.sources.vectors.PARQUET`."""

_DEGREES = "EPSG:4326"
"""The CRS that GeoJSON prescribes."""

_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), update_time DATETIME
)
"""


def check_polygon_file(output: str | Path, *, overwrite: bool, inputs: Iterable[object]) -> Path:
    """Check, before any work, that polygons can be written.

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
    require_format(target, (".gpkg", ".geojson", ".fgb", ".parquet"), "polygons")
    return check_output(target, overwrite=overwrite, inputs=inputs, kind="vector")


def require_format(target: Path, endings: Sequence[str], what: str) -> None:
    """Raise an error if a file cannot be written in the format of its extension.

    Parameters
    ----------
    target
        The file.
    endings
        Extensions in lower case; ``.parquet`` stands for all of :data:`landprior.sources.vectors.PARQUET`.
    what
        What is written, for the message.

    Raises
    ------
    InputError
        If the extension is another, or its format needs a package that is not installed.
    """
    suffix = target.suffix.lower()
    if suffix not in endings and suffix not in PARQUET:
        listed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        msg = f"-o {target}: {what} are written as {listed}; use a name that ends so"
        raise InputError(msg)
    if suffix in PARQUET:
        try:
            import pyarrow as pa  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as error:
            msg = f"-o {target}: GeoParquet needs pyarrow: pip install 'landprior[parquet]'"
            raise InputError(msg) from error


@contextmanager
def writing_polygons(
    target: Path, scheme: ClassScheme, *, overwrite: bool
) -> Iterator[tuple[Path, Callable[[geopandas.GeoDataFrame], None]]]:
    """Write polygons; the file appears whole at the end of the block.

    A GeoPackage is written as batches come; the polygons of other formats are gathered first.

    Parameters
    ----------
    target
        The file.
    scheme
        The classes, for the style of a GeoPackage.
    overwrite
        Replace an existing file.

    Yields
    ------
    tuple
        A folder for temporary files, and the function that writes a batch. All batches have the same columns.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.outputs.replacing`.
    """
    suffix = target.suffix.lower()
    with replacing(target, overwrite=overwrite, kind="vector") as temporary:
        temporary.unlink()  # or GDAL would open the empty file
        if suffix == PACKAGE:
            yield temporary.parent, _Package(temporary, target.stem).write
            store_style(temporary, target.stem, style_polygons(scheme))
            return
        frames: list[geopandas.GeoDataFrame] = []
        yield temporary.parent, frames.append
        _write_whole(temporary, frames, target.stem)


class _Package:
    """A GeoPackage, written batch by batch."""

    def __init__(self, path: Path, layer: str) -> None:
        self._path, self._layer = path, layer

    def write(self, frame: geopandas.GeoDataFrame) -> None:
        """Append polygons."""
        more = self._path.exists()
        options: dict[str, Any] = {} if more else {"geometry_type": "Polygon"}
        _write(frame, self._path, layer=self._layer, driver="GPKG", append=more, **options)


def _write_whole(path: Path, frames: list[geopandas.GeoDataFrame], layer: str) -> None:
    import geopandas
    import pandas as pd

    frame = geopandas.GeoDataFrame(pd.concat(frames, ignore_index=True), crs=frames[0].crs)
    frames.clear()
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        frame.to_parquet(path)
        return
    if DRIVERS[suffix] == "GeoJSON" and frame.crs is not None:
        frame = frame.to_crs(_DEGREES)
    _write(frame, path, layer=layer, driver=DRIVERS[suffix], geometry_type="Polygon")


def _write(frame: geopandas.GeoDataFrame, path: Path, **options: Any) -> None:  # noqa: ANN401 - of pyogrio
    import pyogrio

    with warnings.catch_warnings():  # a map without a CRS has polygons without one
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_dataframe(frame, path, **options)


def store_style(path: Path, layer: str, style: str) -> None:
    """Store a QGIS style in a GeoPackage, as the default of a layer.

    Parameters
    ----------
    path
        The GeoPackage.
    layer
        Name of the layer.
    style
        The style, QML.
    """
    with closing(sqlite3.connect(path)) as database, database:
        column, now = database.execute(
            "SELECT column_name, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') FROM gpkg_geometry_columns WHERE table_name = ?",
            (layer,),
        ).fetchone()
        database.execute(_STYLES)
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?)",
            (now,),
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner, ui, update_time) "
            "VALUES ('', '', ?, ?, 'classes', ?, '', 1, 'by landprior', '', NULL, ?)",
            (layer, column, style, now),
        )


def style_polygons(scheme: ClassScheme) -> str:
    """Return a QGIS style, QML, for polygons with the column ``code``: a fill for each class."""
    categories, symbols = "", ""
    for number, c in enumerate(scheme.classes):
        label = quoteattr(c.name)
        categories += f'      <category value="{c.code}" type="long" label={label} symbol="{number}" render="true"/>\n'
        colour = ",".join(map(str, (*c.rgb, 255)))
        # a thin outline of the same colour: without any, gaps show between neighbours
        look = {"color": colour, "outline_color": colour, "outline_style": "solid", "outline_width": "0.05"}
        options = "".join(f'<Option name="{name}" value="{value}" type="QString"/>' for name, value in look.items())
        older = "".join(f'<prop k="{name}" v="{value}"/>' for name, value in look.items())  # QGIS before 3.22
        symbols += (
            f'      <symbol type="fill" name="{number}" alpha="1"><layer class="SimpleFill" enabled="1">'
            f'<Option type="Map">{options}</Option>{older}</layer></symbol>\n'
        )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis styleCategories="Symbology">\n  <renderer-v2 type="categorizedSymbol" attr="code">\n'
        f"    <categories>\n{categories}    </categories>\n    <symbols>\n{symbols}    </symbols>\n"
        "  </renderer-v2>\n</qgis>\n"
    )
