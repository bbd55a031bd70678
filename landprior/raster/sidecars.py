"""Files that belong together: the parts of an input, and the files read with a result."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rasterio
from rasterio.errors import RasterioError

if TYPE_CHECKING:
    from collections.abc import Iterator

_AFTER_NAME = (".aux.xml", ".ovr", ".ovr.aux.xml", ".msk", ".msk.aux.xml", ".msk.ovr", ".aux", ".vat.dbf", ".vat.cpg")
"""Suffixes of the files GDAL and QGIS read with a raster, after its whole name."""

_AFTER_STEM = (".aux", ".rrd", ".tfw", ".tifw", ".tiffw", ".tfwx", ".wld", ".imd", ".rpb", "_rpc.txt", ".pvl")
"""The same, after its name without extension."""

_PRODUCTS = (".qml", ".png", ".png.aux.xml")
_PRODUCT_RASTERS = ("probabilities", "confidence")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
_DATABASE = ("-wal", "-shm", "-journal")
_SHAPEFILE = (
    ".shp",
    ".shx",
    ".dbf",
    ".prj",
    ".qpj",
    ".cpg",
    ".qix",
    ".sbn",
    ".sbx",
    ".idm",
    ".ind",
    ".shp.xml",
    ".cst",
)
_MAPINFO = (".tab", ".dat", ".map", ".id", ".ind", ".mif", ".mid")
_NOT_RASTERS = (".safetensors", ".csv", ".json", ".jsonl", ".npy", ".npz", ".yaml", ".yml", ".txt", ".gpkg", ".shp")

_STYLE_HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis styleCategories=\"Symbology"
"""Head of styles written by landprior; those written by QGIS start with its version."""

NAMES = ".aux.xml"
NAMES_HEAD = '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
"""Head of the side file with class names written by landprior."""

SIGNATURE = "landprior"
"""The ``Software`` of the pictures that landprior writes beside a map."""


@dataclass(frozen=True)
class Sidecar:
    """A file beside a result.

    Parameters
    ----------
    path
        Path of the file.
    product
        Whether it is a product such as a picture or probabilities, not read with the raster by every program.
    """

    path: Path
    product: bool


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths are the same file, allowing for links, ``..``, hard links and case."""
    try:
        return Path(one).samefile(other)
    except OSError:  # at least one does not exist
        return _same_name(Path(one), Path(other))


def _same_name(one: Path, other: Path) -> bool:
    first, second = os.path.realpath(one), os.path.realpath(other)
    if first == second:
        return True
    folders = os.path.dirname(first), os.path.dirname(second)  # noqa: PTH120 - strings
    names = os.path.basename(first), os.path.basename(second)  # noqa: PTH119
    if names[0].casefold() != names[1].casefold():
        return False
    try:
        within = Path(folders[0]).samefile(folders[1])
    except OSError:
        return False
    return within and (names[0] == names[1] or _ignores_case(Path(folders[0])))


def _ignores_case(folder: Path) -> bool:
    """Return whether a folder's file system ignores case."""
    swapped = folder.with_name(folder.name.swapcase())
    try:
        return swapped.name != folder.name and folder.samefile(swapped)
    except OSError:
        return False


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path is inside a folder, at any depth."""
    return Path(folder).is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def files_of(path: str | Path) -> list[Path]:
    """Return the other files that an input consists of: the sources of a VRT, its mask, a shapefile's parts."""
    text, found = os.fspath(path), list[Path]()
    if text.startswith("/vsi"):  # an archive: only the file itself is on the disk
        rest = Path(text.split("/", 2)[2].replace("{", "").replace("}", ""))
        found += [one for one in (rest, *rest.parents) if one.is_file()]
        return found
    place = Path(path)
    if not place.is_file():
        # a band or layer of a file (stack.tif|band=2), a raster inside one (NETCDF:"a.nc":codes)
        names = (text.rpartition("|")[0], *(part.strip('"') for part in text.split(":")))
        owners = [Path(name) for name in names if name]
        return [part for one in owners if one.is_file() and one != place for part in (one, *files_of(one))]
    if place.suffix.lower() not in _NOT_RASTERS:
        found += _files_of_raster(place)
    named = [f"{place.name}{end}" for end in (*_AFTER_NAME, *_DATABASE)]
    for ends in (_SHAPEFILE, _MAPINFO):
        if place.suffix.lower() in ends:
            named += [f"{place.stem}{end}" for end in ends]
    found += _find_listed(place.parent, named)
    return [one for one in dict.fromkeys(found) if one != place]


def _files_of_raster(path: Path, *, depth: int = 8) -> list[Path]:
    """Return the files GDAL reads with a raster, recursively, as the sources of a VRT may be VRTs."""
    log = logging.getLogger("rasterio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with rasterio.Env(), rasterio.open(path) as src:
            found = [Path(name) for name in src.files]
    except (RasterioError, OSError, ValueError):
        return []
    finally:
        log.setLevel(level)
    more = [file for file in found if file.suffix.lower() == ".vrt" and not same_file(file, path)] if depth else []
    return found + [deeper for file in more for deeper in _files_of_raster(file, depth=depth - 1)]


def sidecars_of(path: Path, kind: Literal["raster", "vector"]) -> Iterator[Sidecar]:
    """Return the existing files beside a result that would be read with it or taken for its products."""
    if kind == "vector":
        yield from (
            Sidecar(one, product=False) for one in _find_listed(path.parent, [f"{path.name}{e}" for e in _DATABASE])
        )
        return
    read = [f"{path.name}{end}" for end in _AFTER_NAME] + [f"{path.stem}{end}" for end in _AFTER_STEM]
    if not all(is_ours(one) for one in _find_listed(path.parent, [f"{path.stem}{end}" for end in _PICTURES])):
        read.remove(f"{path.stem}.wld")  # may belong to the picture
    yield from (Sidecar(one, product=False) for one in _find_listed(path.parent, read))
    products = [f"{path.stem}{end}" for end in _PRODUCTS]
    for what in _PRODUCT_RASTERS:
        raster = f"{path.stem}_{what}{path.suffix}"
        products += [raster, *(f"{raster}{end}" for end in _AFTER_NAME)]
    for one in _find_listed(path.parent, products):
        if one != path:
            yield Sidecar(one, product=True)


def _find_listed(folder: Path, names: list[str]) -> list[Path]:
    """Return the files with given names that exist in a folder, in upper or lower case."""
    wanted = {name.casefold() for name in names}
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.casefold() in wanted]
    except OSError:
        return []
    return [folder / name for name in sorted(found)]


def is_names(path: Path) -> bool:
    """Return whether a side file has only class names, and no additions by another program, such as statistics."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return text.startswith(NAMES_HEAD) and "<Metadata" not in text and "<Histograms" not in text


def is_ours(path: Path) -> bool:
    """Return whether landprior wrote a file beside a map: class names, a style, a picture, probabilities."""
    if path.name.endswith(NAMES) and is_names(path):
        return True
    for end in _AFTER_NAME:
        if path.name.endswith(end):
            owner = path.with_name(path.name.removesuffix(end))
            return not owner.exists() or is_ours(owner)
    try:
        if path.suffix.lower() == ".qml":
            return path.read_text(encoding="utf-8").startswith(_STYLE_HEAD)
        if path.suffix.lower() == ".png":
            with path.open("rb") as stream:
                return SIGNATURE.encode() in stream.read(4096)
        with rasterio.open(path) as src:
            return src.tags(ns="landprior").get("kind") in _PRODUCT_RASTERS
    except (OSError, ValueError, RasterioError):
        return False
