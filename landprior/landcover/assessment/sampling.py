"""Drawing points to interpret: a stratified random sample of a map, to assess it without wall-to-wall truth.

The strata are the map's classes. Within a stratum every pixel has the same chance and none is drawn twice, so this is
a probability sample. :mod:`landprior.landcover.assessment.estimation` estimates the map's accuracy from it, with
confidence intervals (Olofsson et al., "Good practices for estimating area and assessing accuracy of land change",
Remote Sensing of Environment 148, 2014).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np

from landprior.errors import InputError
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes
from landprior.raster.outputs import check_outputs, replacing
from landprior.raster.pixel_areas import PixelAreas
from landprior.raster.windows import Block, stream
from landprior.sources.sample_design import COLUMNS, HECTARES, PIXELS, REFERENCE, STRATUM

if TYPE_CHECKING:
    from collections.abc import Mapping

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

Allocation = Literal["balanced", "proportional", "equal"]
"""How points are allocated to classes: by area but at least :data:`LEAST` each, by area alone, or equally."""

LEAST = 50
"""Minimum points of a rare class in a balanced sample (Olofsson et al. 2014, section 5.1.2, suggest 50 to 100)."""


def measure_classes(
    path: str | Path, scheme: ClassScheme, *, map_map: Mapping[int, int] | None = None, progress: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count a map's pixels by class and measure the area of each class on the ground, window by window.

    Parameters
    ----------
    path
        The map.
    scheme
        The classes.
    map_map
        Codes of the map -> codes of the scheme.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    pixels : ndarray of int64, shape (C,)
    hectares : ndarray of float64, shape (C,)
        NaN for a map that is not georeferenced. If pixel area varies over the map (degrees, EPSG:3857), each pixel
        counts with its own area.

    Raises
    ------
    InputError
        If the map has no classified pixel.
    """
    counts = np.zeros(len(scheme), dtype=np.int64)
    squares = np.zeros(len(scheme))
    with open_codes(path) as src:
        grid = src.grid
        try:
            areas = PixelAreas(grid, where=path)
        except InputError as error:
            logger.debug("%s", error)
            areas = None

        def count(block: Block) -> dict[str, NDArray[np.generic]]:
            found = read_classes(src, block.core, scheme, codes=map_map or {}, where=path)
            counts[:] += np.bincount(found[found >= 0], minlength=len(scheme))
            if areas is not None and not areas.constant:
                squares[:] += areas.sums(found, block.core, len(scheme))
            return {}

        stream(count, grid=grid, sinks={}, label="counting classes", progress=progress)
    if not counts.any():
        msg = f"{path} has no classified pixel"
        raise InputError(msg)
    if areas is None:
        return counts, np.full(len(scheme), np.nan)
    return counts, np.asarray((counts * areas.mean if areas.constant else squares) / 1e4, dtype=np.float64)


def allocate(
    pixels: NDArray[np.int64], count: int, allocation: Allocation = "balanced", *, least: int = LEAST
) -> NDArray[np.int64]:
    """Allocate points to strata.

    Parameters
    ----------
    pixels
        Size of each stratum, shape (C,).
    count
        Total number of points.
    allocation
        See :data:`Allocation`.
    least
        Minimum points of each class in a balanced sample; fewer if ``count`` is too small.

    Returns
    -------
    ndarray of int64, shape (C,)
        At least 2 per stratum (one point gives no variance), at most the stratum's number of pixels. The sum is
        ``count`` unless these bounds forbid it.

    Raises
    ------
    InputError
        If there are fewer than two points for each class.
    """
    present = pixels > 0
    if count < 2 * present.sum():
        msg = f"{count} points are too few for {present.sum()} classes; each class needs at least two"
        raise InputError(msg)
    floor = np.where(present, 2, 0)
    if allocation == "balanced":
        floor = np.where(present, max(2, min(least, count // int(present.sum()))), 0)
    floor = np.minimum(floor, pixels)
    weights = np.where(present, 1.0, 0.0) if allocation == "equal" else pixels.astype(np.float64)
    points = floor.astype(np.int64)
    while points.sum() < min(count, pixels.sum()):  # next point to the stratum with the fewest for its weight
        full = (points >= pixels) | (weights == 0)
        points[np.argmin(np.where(full, np.inf, (points + 0.5) / np.where(full, 1, weights)))] += 1
    return points


def draw_sample(
    path: str | Path,
    scheme: ClassScheme,
    *,
    count: int = 300,
    allocation: Allocation = "balanced",
    least: int = LEAST,
    seed: int = 0,
    progress: bool = False,
) -> geopandas.GeoDataFrame:
    """Draw a stratified random sample of a map's pixels, window by window.

    Parameters
    ----------
    path, scheme
        The map and its classes, which are the strata.
    count, allocation, least
        See :func:`allocate`.
    seed
        Random seed; the same seed gives the same points.
    progress
        Show progress bars on stderr.

    Returns
    -------
    GeoDataFrame
        Pixel centres in the map's CRS, in random order, with ``id``, ``reference`` and ``notes`` (to be filled in),
        ``stratum`` (the map's class code at the point), ``stratum_pixels`` (the number of pixels with that code) and
        ``stratum_hectares`` (their area on the ground; NaN for a map that is not georeferenced).

    Raises
    ------
    InputError
        If the map has no classified pixel, or ``count`` is too small.
    """
    import geopandas

    pixels, hectares = measure_classes(path, scheme, progress=progress)
    points = allocate(pixels, count, allocation, least=least)
    generators = [np.random.default_rng([seed, code]) for code in scheme.codes.tolist()]
    ranks = [
        np.sort(rng.choice(size, wanted, replace=False)) if wanted else np.empty(0, dtype=np.int64)
        for rng, size, wanted in zip(generators, pixels.tolist(), points.tolist(), strict=True)
    ]
    seen = np.zeros(len(scheme), dtype=np.int64)
    places: list[tuple[int, int, int]] = []
    with open_codes(path) as src:
        grid = src.grid

        def find(block: Block) -> dict[str, NDArray[np.generic]]:
            classes = read_classes(src, block.core, scheme, codes={}, where=path)
            flat = classes.ravel()
            for index, wanted in enumerate(ranks):
                first, last = np.searchsorted(wanted, (seen[index], seen[index] + (flat == index).sum()))
                if last > first:
                    at = np.flatnonzero(flat == index)[wanted[first:last] - seen[index]]
                    rows, columns = np.unravel_index(at, classes.shape)
                    top, left = int(block.core.row_off), int(block.core.col_off)
                    places.extend((index, int(r) + top, int(c) + left) for r, c in zip(rows, columns, strict=True))
            seen[:] += np.bincount(flat[flat >= 0], minlength=len(scheme))
            return {}

        stream(find, grid=grid, sinks={}, label="drawing points", progress=progress)
    order = np.random.default_rng([seed, len(places)]).permutation(len(places))
    index, rows, columns = np.array(sorted(places))[order].T
    x, y = grid.transform @ (columns + 0.5, rows + 0.5)
    return geopandas.GeoDataFrame(
        {
            "id": np.arange(1, len(index) + 1),
            REFERENCE: np.full(len(index), None, dtype=object),
            "notes": np.full(len(index), None, dtype=object),
            STRATUM: scheme.codes[index].astype(np.int64),
            PIXELS: pixels[index],
            HECTARES: hectares[index],
        },
        geometry=geopandas.points_from_xy(x, y),
        crs=None if grid.crs is None else grid.crs.to_wkt(),
    )


def write_sample(
    sample: geopandas.GeoDataFrame, output: str | Path, scheme: ClassScheme, *, overwrite: bool = False
) -> Path:
    """Write a sample as a GeoPackage, with a QGIS style file that offers the classes in a list.

    The style hides the map's class, so that it does not influence the interpreter.

    Parameters
    ----------
    sample
        As :func:`draw_sample` returns it.
    output
        The file to write, ``.gpkg``.
    scheme
        The classes to choose from.
    overwrite
        Replace an existing file and its style.

    Returns
    -------
    Path
        The sample's path.

    Raises
    ------
    InputError
        If the file name does not end in ``.gpkg``.
    OutputExistsError, RasterWriteError
        See :func:`landprior.raster.outputs.replacing`.
    """
    target = Path(output)
    if target.suffix.lower() != ".gpkg":
        msg = f"-o {target}: points are written as a GeoPackage; use a name that ends in .gpkg"
        raise InputError(msg)
    style = target.with_suffix(".qml")
    check_outputs([target], overwrite=overwrite, kind="vector", files=[style])
    text_columns: dict[str, Any] = {name: sample[name].astype("string") for name in (REFERENCE, "notes")}
    with replacing(target, overwrite=overwrite, kind="vector") as temporary:
        temporary.unlink()  # or GDAL would open the empty file
        with warnings.catch_warnings():  # a map without a CRS has points without one
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            sample.assign(**text_columns).to_file(temporary, layer=target.stem, driver="GPKG")
    with replacing(style, overwrite=overwrite) as temporary:
        temporary.write_text(_style(scheme), encoding="utf-8")
    return target


def _style(scheme: ClassScheme) -> str:
    """Return a QGIS style with hollow rings as symbols, a drop-down list for the class and the stratum hidden."""
    choices = "".join(
        f'          <Option type="Map"><Option name={quoteattr(c.name)} value={quoteattr(c.name)} type="QString"/>'
        "</Option>\n"
        for c in scheme.classes
    )
    hidden = "".join(
        f'    <field name="{name}"><editWidget type="Hidden"><config><Option/></config></editWidget></field>\n'
        for name in COLUMNS
    )
    ring = "".join(
        f'<Option name="{name}" value="{value}" type="QString"/>'
        for name, value in {
            "name": "circle", "color": "0,0,0,0", "outline_color": "255,0,0,255", "outline_width": "0.6", "size": "6",
        }.items()
    )  # fmt: skip
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis styleCategories="Symbology|Fields|Forms">\n'
        '  <renderer-v2 type="singleSymbol"><symbols><symbol type="marker" name="0"><layer class="SimpleMarker">'
        f'<Option type="Map">{ring}</Option></layer></symbol></symbols></renderer-v2>\n'
        "  <fieldConfiguration>\n"
        f'    <field name="{REFERENCE}"><editWidget type="ValueMap"><config><Option type="Map">\n'
        f'        <Option name="map" type="List">\n{choices}        </Option>\n'
        "      </Option></config></editWidget></field>\n"
        f"{hidden}  </fieldConfiguration>\n</qgis>\n"
    )
