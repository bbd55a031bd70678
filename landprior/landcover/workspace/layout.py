"""Planning a fetch: the images chosen for a place, and a tile for each."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rasterio.warp import transform_bounds

from landprior.addresses import redact
from landprior.errors import GridMismatchError, InputError, LandpriorError, SourceWarning
from landprior.landcover.workspace.fetch_settings import NONE, FetchSettings
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import Bounds, Grid
from landprior.raster.reading import open_raster
from landprior.sources import nlcd
from landprior.sources.extents import Box, check_extent, find_box
from landprior.sources.labels import is_raster
from landprior.sources.naip.choose import choose_images
from landprior.sources.naip.grid import locate, tile_grid
from landprior.sources.naip.search import list_images, search_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.landcover.workspace.collection import Workspace
    from landprior.sources.areas import Area
    from landprior.sources.http.client import Network
    from landprior.sources.naip.choose import Choice

logger = logging.getLogger(__name__)


_DOUBLE = 0.5
"""Overlap above which a tile shows the same ground as another; neighbouring images overlap by less."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """The plan for one tile.

    Parameters
    ----------
    folder
        Folder of the tile.
    choice
        The image and the part of the place it is used for.
    grid
        UTM, 1 m, with the margin.
    core
        Bounds without the margin, in the grid's CRS.
    nlcd_year
        Year of its NLCD; None for the user's own file.
    doubles
        Tiles of earlier fetches that show the same ground in another image (such as another year's), with that year.
    """

    folder: TileFolder
    choice: Choice
    grid: Grid
    core: Bounds
    nlcd_year: int | None
    doubles: tuple[str, ...] = ()

    @property
    def megabytes(self) -> float:
        """Estimated size on disk."""
        return self.grid.width * self.grid.height * 3.2 / 2**20


@dataclass(frozen=True, kw_only=True)
class FetchPlan:
    """The plan of a fetch.

    Parameters
    ----------
    area
        The place.
    tiles
        One per image.
    covered
        Share of the place that images cover, 0..1.
    year
        The requested NAIP year.
    sources
        Layer -> its source.
    """

    area: Area
    tiles: tuple[TilePlan, ...]
    covered: float
    year: int | None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def doubles(self) -> tuple[str, ...]:
        """Tiles of an earlier fetch that show the same ground as a new tile in another image."""
        return tuple(dict.fromkeys(name for tile in self.tiles for name in tile.doubles))

    def explain_doubles(self) -> str:
        """Return a message that names the doubled tiles, the consequence and the remedies."""
        return (
            f"{self.tiles[0].folder.path.parent} also has {', '.join(self.doubles)} from an earlier fetch, of the same "
            "ground; it is kept, and commands for the whole place use it as well: choose tiles (--tile), remove its "
            "folder, or fetch under another name (--name)"
        )

    def to_text(self) -> str:
        """Return a table of tiles, the sources, and existing tiles of the same ground."""
        left, bottom, right, top = self.area.bounds
        lines = [f"{self.area.name}: {left:.4f},{bottom:.4f},{right:.4f},{top:.4f}, {len(self.tiles)} tile(s)"]
        lines.append(f"{'tile':<32} {'NAIP':<10} {'pixel':>6} {'NLCD':>5} {'size, px':>13} {'CRS':>11} {'about':>8}")
        for tile in self.tiles:
            image = tile.choice.image
            pixel = "?" if image.resolution is None else f"{image.resolution:.3g} m"
            size = f"{tile.grid.width} x {tile.grid.height}"
            epsg = tile.grid.crs.to_epsg() if tile.grid.crs else None
            lines.append(
                f"{tile.folder.name:<32} {image.date or image.year or '?':<10} {pixel:>6} {tile.nlcd_year or '':>5} "
                f"{size:>13} {'' if epsg is None else f'EPSG:{epsg}':>11} {tile.megabytes:>5.0f} MB"
            )
        lines += [f"{name:<10} {source}" for name, source in self.sources.items()]
        if self.doubles:
            lines.append(f"Warning: {self.explain_doubles()}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dictionary."""
        return {
            "area": {"name": self.area.name, "bounds": list(self.area.bounds)},
            "covered": round(self.covered, 6),
            "year": self.year,
            "sources": self.sources,
            "tiles": [
                {
                    "tile": tile.folder.name,
                    "image": tile.choice.image.id,
                    "origin": tile.choice.image.origin,
                    "date": tile.choice.image.date,
                    "naip_year": tile.choice.image.year,
                    "nlcd_year": tile.nlcd_year,
                    "width": tile.grid.width,
                    "height": tile.grid.height,
                    "bounds": list(tile.grid.bounds),
                    "crs": None if tile.grid.crs is None else tile.grid.crs.to_string(),
                    "megabytes": round(tile.megabytes, 1),
                    "doubles": list(tile.doubles),
                }
                for tile in self.tiles
            ],
        }


def plan_fetch(area: Area, workspace: Workspace, settings: FetchSettings, network: Network) -> FetchPlan:
    """Choose images and years for an area and lay out its tiles; only the catalogue is fetched.

    Parameters
    ----------
    area
        The place.
    workspace
        Workspace for its tiles.
    settings
        Sources, years and the margin.
    network
        Client for requests to the catalogue.

    Returns
    -------
    FetchPlan
        The plan, with tiles in the order of their names.

    Raises
    ------
    InputError
        If there is no image of the place, or an option is invalid.
    SourceError
        If the catalogue does not answer.
    """
    preset = area.preset
    year = settings.year if settings.year is not None else (None if preset is None else preset.naip_year)
    if settings.naip is not None:
        images = list_images(settings.naip, area.outline)
    else:
        images = search_images(area.outline, network, stac_url=settings.stac_url, sign_url=settings.sign_url)
    choices, covered = choose_images(images, area.outline, year)
    if not choices:
        place = ", ".join(f"{value:.4f}" for value in area.bounds)
        source = settings.naip or redact(settings.stac_url)
        msg = f"no NAIP image of {area.name} ({place}) at {source}; check the place, or give --naip FOLDER"
        raise InputError(msg)
    _report_years(choices, year, covered)
    tiles = []
    for found in sorted(choices, key=lambda c: c.image.id):
        choice = locate(found, network)
        grid = tile_grid(choice, margin=settings.margin)
        left, bottom, right, top = grid.bounds
        m = settings.margin
        tiles.append(
            TilePlan(
                folder=TileFolder.of(workspace.root, area.name, choice.image.id),
                choice=choice,
                grid=grid,
                core=Bounds(left + m, bottom + m, right - m, top - m),
                nlcd_year=_nlcd_year(settings, area, choice.image.year),
            )
        )
    names = Counter(tile.folder.name for tile in tiles)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        msg = f"two images are called {twice[0]}; rename one, or give a folder with one of them (--naip)"
        raise InputError(msg)
    _check_sources(settings, tiles)
    tiles = _find_doubles(tiles, workspace.root / area.name)
    return FetchPlan(area=area, tiles=tuple(tiles), covered=covered, year=year, sources=_describe_sources(settings))


def _check_sources(settings: FetchSettings, tiles: Sequence[TilePlan]) -> None:
    """Check, before anything is fetched, that local files exist and overlap the tiles.

    Raises
    ------
    LandpriorError
        If a file is missing, has no usable CRS, or is of another place. Footprints and labels of another place only
        cause a warning, as there may be none here.
    """
    boxes = {tile.folder.name: find_box(tile.grid) for tile in tiles}
    if settings.nlcd is not None and not nlcd.is_remote(settings.nlcd):
        for tile in tiles:
            source = settings.nlcd.replace("{year}", str(tile.nlcd_year))
            with open_on_grid(source, tile.grid, like=f"tile {tile.folder.name}"):
                pass
    if settings.osm not in {None, NONE}:
        check_extent(str(settings.osm), boxes, "--osm", strict=True)
    if settings.buildings not in {None, NONE}:
        check_extent(str(settings.buildings), boxes, "--buildings", strict=False)
    for path in settings.labels:
        if is_raster(path):
            _check_labels(path, boxes, alone=len(settings.labels) == 1)
        else:
            check_extent(path, boxes, "--reference", strict=False)


def _find_doubles(tiles: Sequence[TilePlan], folder: Path) -> list[TilePlan]:
    """Add to each tile the earlier tiles in the place's folder that show the same ground in another image."""
    own = {tile.folder.name for tile in tiles}
    doubles: dict[str, list[str]] = {name: [] for name in own}
    for path in sorted(folder.glob("*/naip.tif")):
        other = TileFolder(path=path.parent, city=folder.name)
        core = None if other.name in own else other.core()
        if core is None:
            continue
        try:
            with open_raster(path) as src:
                crs = src.crs
        except LandpriorError:
            continue  # damaged: reported where it is read, and no obstacle to this fetch
        year = other.steps().get("naip", {}).get("year")
        for tile in tiles:
            if tile.grid.crs == crs and _share_ground(core, tile.core):
                doubles[tile.folder.name].append(f"{other.name} (NAIP {year})" if year else other.name)
    return [replace(tile, doubles=tuple(doubles[tile.folder.name])) for tile in tiles]


def _share_ground(one: Bounds, other: Bounds) -> bool:
    """Say whether two tiles show mostly the same ground."""
    wide = max(min(one.right, other.right) - max(one.left, other.left), 0.0)
    tall = max(min(one.top, other.top) - max(one.bottom, other.bottom), 0.0)
    least = min((box.right - box.left) * (box.top - box.bottom) for box in (one, other))
    return wide * tall > _DOUBLE * least


def _check_labels(path: Path, boxes: dict[str, Box], *, alone: bool) -> None:
    """Warn if a raster of labels overlaps no tile; raise an error if there are no others."""
    with open_raster(path) as src:
        own = Grid.of(src)
    if own.crs is None:
        return  # reported where it is read, unless it is on the tile's grid
    whole = Box(*transform_bounds(own.crs, "EPSG:4326", *own.bounds, densify_pts=21))
    if any(whole.meets(box) for box in boxes.values()):
        return
    msg = (
        f"{path} does not overlap any tile: it covers {whole}, the tiles "
        f"{'; '.join(map(str, list(boxes.values())[:3]))} (west,south,east,north); "
        "give labels of this place (--reference)"
    )
    if alone:
        raise GridMismatchError(msg)
    warnings.warn(msg, SourceWarning, stacklevel=4)


def _report_years(choices: Sequence[Choice], year: int | None, covered: float) -> None:
    counts = Counter(choice.image.year for choice in choices)
    text = ", ".join(f"{y or 'unknown'} ({n} tile{'s' if n > 1 else ''})" for y, n in sorted(counts.items(), key=str))
    other = sorted(y for y in counts if y is not None and year is not None and y != year)
    if other:
        warnings.warn(f"NAIP {year} is not available; using the nearest: {text}", SourceWarning, stacklevel=3)
    else:
        logger.info("NAIP %s", text)
    if covered < 0.999:
        warnings.warn(f"NAIP images cover {covered:.1%} of the place", SourceWarning, stacklevel=3)


def _nlcd_year(settings: FetchSettings, area: Area, naip_year: int | None) -> int | None:
    """Return the year of NLCD for a tile: the requested one, the preset's, or that of the image."""
    wanted = settings.nlcd_year
    if wanted is None and area.preset is not None and naip_year in {None, area.preset.naip_year}:
        wanted = area.preset.nlcd_year
    if wanted is None:
        wanted = naip_year or settings.year
    if settings.nlcd is not None and "{year}" not in settings.nlcd:
        return None
    if wanted is None:
        msg = "the year of the image is unknown; give --nlcd-year"
        raise InputError(msg)
    return nlcd.match_year(wanted)


def _describe_sources(settings: FetchSettings) -> dict[str, str]:
    described = {
        "naip": str(settings.naip) if settings.naip else redact(settings.stac_url),
        "nlcd": redact(settings.nlcd_wcs)
        if not settings.nlcd
        else redact(settings.nlcd)
        if nlcd.is_remote(settings.nlcd)
        else settings.nlcd,
        "osm": settings.osm or redact(settings.overpass_url),
        "buildings": settings.buildings or redact(settings.buildings_index),
        "labels": ", ".join(map(str, settings.labels)),
    }
    return {name: described[name] for name in ("naip", "nlcd", "osm", "buildings", "labels") if name in settings.layers}
