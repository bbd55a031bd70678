"""Fetching a place: from an area to tiles of a workspace with one file per layer, on one grid."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rasterio.warp import transform_bounds

from landprior.errors import (
    GridMismatchError,
    InputError,
    LandpriorError,
    OfflineError,
    SourceError,
    SourceWarning,
)
from landprior.landcover.workspace import TileFolder, Workspace, make_key
from landprior.raster.cog import CogWriter
from landprior.raster.files import open_on_grid, read_valid, read_window
from landprior.raster.grid import Bounds, Grid
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.raster.windows import stream
from landprior.sources import buildings, naip, nlcd, osm
from landprior.sources.answers import redact
from landprior.sources.buildings import INDEX_URL
from landprior.sources.labels import write_labels
from landprior.sources.naip import STAC_URL
from landprior.sources.nlcd import COVERAGE, WCS_URL
from landprior.sources.osm import NOMINATIM_URL, OVERPASS_URL, RoadWidth
from landprior.sources.vectors import burn, read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from landprior.raster.windows import Block
    from landprior.sources.areas import Area
    from landprior.sources.naip import Choice
    from landprior.sources.network import Network

logger = logging.getLogger(__name__)

Layer = Literal["nlcd", "osm", "buildings", "labels", "naip"]
"""What can be fetched, in this order: the image last, so that a folder is a tile once it is whole."""

LAYERS: tuple[Layer, ...] = get_args(Layer)
MARGIN = 64
"""Metres around what was asked for: the reach of the prior's filters (50 m) and of a learned prior (10 m)."""
NONE = "none"


class FetchSettings(BaseModel):
    """Years, sources and options of a fetch; every default is a public source.

    Parameters
    ----------
    year, nlcd_year
        Wanted; the nearest there is taken. None: the preset's, else the latest NAIP, and NLCD's nearest to that.
    naip
        A folder (or file) of NAIP images instead of the catalogue.
    stac_url, sign_url
        The catalogue, and what signs its URLs.
    nlcd
        A raster of NLCD, path or URL, instead of the coverage service; ``{year}`` in it is replaced.
    nlcd_wcs, nlcd_coverage
        The coverage service (WCS 1.0.0) and the name of the coverage.
    osm
        An extract (``.osm.pbf``, GeoPackage) instead of Overpass; ``"none"``: no roads and water.
    overpass_url, nominatim_url
        Other servers.
    buildings
        A vector file of footprints instead of Microsoft's; ``"none"``: no buildings.
    buildings_index
        Another copy of Microsoft's index.
    labels, label_field, label_map, scheme
        The user's own labels, the attribute with the class, codes to codes, the classes.
    road_width
        See :data:`landprior.sources.osm.RoadWidth`.
    margin
        Metres around what was asked for.
    jobs
        Tiles at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    year: int | None = Field(None, ge=2003, le=2100)
    nlcd_year: int | None = Field(None, ge=1985, le=2100)
    naip: Path | None = None
    stac_url: str = STAC_URL
    sign_url: str | None = None
    nlcd: str | None = None
    nlcd_wcs: str = WCS_URL
    nlcd_coverage: str = COVERAGE
    osm: str | None = None
    overpass_url: str = OVERPASS_URL
    nominatim_url: str = NOMINATIM_URL
    buildings: str | None = None
    buildings_index: str = INDEX_URL
    labels: tuple[Path, ...] = ()
    label_field: str = "class"
    label_map: dict[int, int] = Field(default_factory=dict)
    scheme: ClassScheme | None = None
    road_width: RoadWidth = "fixed"
    margin: int = Field(MARGIN, ge=0, le=2000)
    jobs: int = Field(2, ge=1, le=16)

    @property
    def wanted(self) -> tuple[Layer, ...]:
        """The layers to fetch."""
        left_out = {name for name in ("osm", "buildings") if getattr(self, name) == NONE}
        return tuple(name for name in LAYERS if name not in left_out and (name != "labels" or self.labels))


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """What is to be fetched for one tile.

    Parameters
    ----------
    folder
        Where it goes.
    choice
        The image and the part of the place it is taken for.
    grid
        UTM, 1 m, with the margin.
    core
        Bounds without the margin, in the grid's CRS.
    nlcd_year
        Year of its NLCD; None for a file of the user's.
    """

    folder: TileFolder
    choice: Choice
    grid: Grid
    core: Bounds
    nlcd_year: int | None

    @property
    def megabytes(self) -> float:
        """A guess at what will lie on disk."""
        return self.grid.width * self.grid.height * 3.2 / 2**20


@dataclass(frozen=True, kw_only=True)
class FetchPlan:
    """What a fetch will do.

    Parameters
    ----------
    area
        The place.
    tiles
        One per image.
    covered
        Share of the place that images cover, 0..1.
    year
        The NAIP year wanted.
    sources
        Layer -> where it comes from.
    """

    area: Area
    tiles: tuple[TilePlan, ...]
    covered: float
    year: int | None
    sources: dict[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return a table of tiles, and the sources."""
        left, bottom, right, top = self.area.bounds
        lines = [f"{self.area.name}: {left:.4f},{bottom:.4f},{right:.4f},{top:.4f}, {len(self.tiles)} tile(s)"]
        lines.append(f"{'tile':<32} {'NAIP':<10} {'pixel':>6} {'NLCD':>5} {'size, px':>13} {'CRS':>11} {'about':>8}")
        for tile in self.tiles:
            image = tile.choice.image
            pixel = "?" if image.resolution is None else f"{image.resolution:g} m"
            size = f"{tile.grid.width} x {tile.grid.height}"
            epsg = tile.grid.crs.to_epsg() if tile.grid.crs else None
            lines.append(
                f"{tile.folder.name:<32} {image.date or image.year or '?':<10} {pixel:>6} {tile.nlcd_year or '':>5} "
                f"{size:>13} {'' if epsg is None else f'EPSG:{epsg}':>11} {tile.megabytes:>5.0f} MB"
            )
        lines += [f"{name:<10} {source}" for name, source in self.sources.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return it for programs."""
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
                }
                for tile in self.tiles
            ],
        }


# -- planning --------------------------------------------------------------------------------------


def plan_fetch(area: Area, workspace: Workspace, settings: FetchSettings, network: Network) -> FetchPlan:
    """Choose images and years for an area and lay out its tiles; fetches only the catalogue.

    Raises
    ------
    InputError
        If there is no image of the place, or an option does not make sense.
    SourceError
        If the catalogue does not answer.
    """
    preset = area.preset
    year = settings.year if settings.year is not None else (None if preset is None else preset.naip_year)
    if settings.naip is not None:
        images = naip.list_images(settings.naip, area.outline)
    else:
        images = naip.search_images(area.outline, network, stac_url=settings.stac_url, sign_url=settings.sign_url)
    choices, covered = naip.choose_images(images, area.outline, year)
    if not choices:
        place = ", ".join(f"{value:.4f}" for value in area.bounds)
        source = settings.naip or redact(settings.stac_url)
        msg = f"no NAIP image of {area.name} ({place}) at {source}; check the place, or give --naip FOLDER"
        raise InputError(msg)
    _say_years(choices, year, covered)
    tiles = []
    for found in sorted(choices, key=lambda c: c.image.id):
        choice = naip.locate(found, network)
        grid = naip.tile_grid(choice, margin=settings.margin)
        left, bottom, right, top = grid.bounds
        m = settings.margin
        tiles.append(
            TilePlan(
                folder=TileFolder(path=workspace.root / area.name / choice.image.id, city=area.name),
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
    return FetchPlan(area=area, tiles=tuple(tiles), covered=covered, year=year, sources=_describe_sources(settings))


def _say_years(choices: Sequence[Choice], year: int | None, covered: float) -> None:
    counts = Counter(choice.image.year for choice in choices)
    text = ", ".join(f"{y or 'unknown'} ({n} tile{'s' if n > 1 else ''})" for y, n in sorted(counts.items(), key=str))
    other = sorted(y for y in counts if y is not None and year is not None and y != year)
    if other:
        warnings.warn(f"NAIP {year} was asked for; the nearest there is: {text}", SourceWarning, stacklevel=3)
    else:
        logger.info("NAIP %s", text)
    if covered < 0.999:
        warnings.warn(f"NAIP images cover {covered:.1%} of the place", SourceWarning, stacklevel=3)


def _nlcd_year(settings: FetchSettings, area: Area, naip_year: int | None) -> int | None:
    """Return the year of NLCD for a tile: the one asked for, the preset's, or that of the image."""
    wanted = settings.nlcd_year
    if wanted is None and area.preset is not None and naip_year in {None, area.preset.naip_year}:
        wanted = area.preset.nlcd_year
    if wanted is None:
        wanted = naip_year or settings.year
    if settings.nlcd is not None and "{year}" not in settings.nlcd:
        return None
    if wanted is None:
        msg = "the image does not say its year; give --nlcd-year"
        raise InputError(msg)
    return nlcd.match_year(wanted)


def _describe_sources(settings: FetchSettings) -> dict[str, str]:
    described = {
        "naip": str(settings.naip) if settings.naip else redact(settings.stac_url),
        "nlcd": redact(settings.nlcd) if settings.nlcd else redact(settings.nlcd_wcs),
        "osm": settings.osm or redact(settings.overpass_url),
        "buildings": settings.buildings or redact(settings.buildings_index),
        "labels": ", ".join(map(str, settings.labels)),
    }
    return {name: described[name] for name in ("naip", "nlcd", "osm", "buildings", "labels") if name in settings.wanted}


# -- fetching --------------------------------------------------------------------------------------


def fetch(
    plan: FetchPlan,
    workspace: Workspace,
    settings: FetchSettings,
    network: Network,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> list[TileFolder]:
    """Fetch the layers of all tiles; what is there and current is left alone.

    Parameters
    ----------
    plan
        Of :func:`plan_fetch`.
    workspace
        Gets ``<area>/<tile>/`` with one file per layer and ``item.json``, and ``collection.json``.
    settings
        As for the plan.
    network
        Retries, cache, offline.
    overwrite
        Fetch anew what is there, also files that were put there by hand.
    progress
        One line per tile with what it received.

    Returns
    -------
    list of TileFolder
        Complete ones, in the plan's order.

    Raises
    ------
    SourceError
        If some tile is incomplete, after all others were done; says how many, which, and the first cause.
    OfflineError
        In offline mode: says all that is missing.
    RasterWriteError
        If the disk is full; at once.
    """
    job = _Job(plan=plan, settings=settings, network=network, overwrite=overwrite, progress=progress)
    failures: dict[str, list[LandpriorError]] = {}
    try:
        with ThreadPoolExecutor(max_workers=min(settings.jobs, len(plan.tiles))) as pool:
            futures = {pool.submit(job.fetch_tile, tile): tile for tile in plan.tiles}
            waiting = set(futures)
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        failures[futures[future].folder.name] = future.result()
            except BaseException:
                network.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        whole = [tile.folder for tile in plan.tiles if failures.get(tile.folder.name) == []]
        if whole:
            workspace.write_collection()
    failed = {name: errors for name, errors in failures.items() if errors}
    if failed:
        _raise_failures(failed, len(plan.tiles))
    return whole


def _raise_failures(failed: dict[str, list[LandpriorError]], total: int) -> None:
    errors = [error for several in failed.values() for error in several]
    if all(isinstance(error, OfflineError) for error in errors):
        texts = [f"{name}: {error}" for name, several in failed.items() for error in several]
        raise OfflineError("\n".join(dict.fromkeys(texts)))
    first = next(error for error in errors if not isinstance(error, OfflineError))
    if total == 1 or (len(failed) == total and len({str(error) for error in errors}) == 1):
        raise first
    msg = f"{len(failed)} of {total} tiles are incomplete ({', '.join(sorted(failed)[:5])}); the first cause: {first}"
    raise SourceError(msg)


@dataclass(kw_only=True)
class _Job:
    """One fetch in progress."""

    plan: FetchPlan
    settings: FetchSettings
    network: Network
    overwrite: bool
    progress: bool

    def __post_init__(self) -> None:
        self._once = threading.Lock()
        self._shared: dict[str, Path] = {}

    def fetch_tile(self, tile: TilePlan) -> list[LandpriorError]:
        """Fetch what is missing of a tile; return what went wrong."""
        from tqdm import tqdm

        failures: list[LandpriorError] = []
        tile.folder.path.mkdir(parents=True, exist_ok=True)
        bar = tqdm(
            desc=tile.folder.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            bar_format="{desc}: {n_fmt}{unit} received in {elapsed}{postfix}",
            disable=not self.progress,
        )

        def count(size: int) -> None:
            bar.update(size)

        with bar, self.network.listening(count):
            for layer in self.settings.wanted:
                bar.set_postfix_str(layer)
                try:
                    self._fetch_layer(layer, tile)
                except (SourceError, InputError) as error:
                    failures.append(error)
                    if not self.network.offline:
                        break  # the rest of the tile is of no use without, and a rerun goes on here
            bar.set_postfix_str("incomplete" if failures else "done")
        return failures

    def _fetch_layer(self, layer: Layer, tile: TilePlan) -> None:
        files: tuple[str, ...] = osm.LAYERS if layer == "osm" else (layer,)
        origin, options = self._identity(layer, tile)
        key = make_key({"layer": layer, "grid": repr(tile.grid), "origin": origin, **options}, {})
        folder = tile.folder
        states = {name: folder.state(name, key) for name in files}
        if layer == "labels" and folder.steps().get("labels", {}).get("key") == key and not folder.present(["labels"]):
            states = {"labels": "current"}  # they were looked at, and do not reach here
        by_hand = [name for name in files if states[name] == "stale" and name not in folder.steps()]
        if by_hand and not self.overwrite:
            self._check_by_hand(folder, by_hand, tile.grid)
            return
        if all(state == "current" for state in states.values()) and not (self.overwrite or self.network.refresh):
            return
        write: Callable[[TilePlan], Iterator[tuple[str, dict[str, Any]]]] = getattr(self, f"_write_{layer}")
        for name, properties in write(tile):
            folder.record(name, key, grid=tile.grid, core=tile.core, origin=origin, **properties)

    def _check_by_hand(self, folder: TileFolder, names: Sequence[str], grid: Grid) -> None:
        from landprior.raster.files import open_raster

        for name in names:
            with open_raster(folder.file(name)) as src:
                if not Grid.of(src).matches(grid):
                    msg = (
                        f"{folder.file(name)} was not made by fetch and lies on another grid; "
                        "move it away, or give --overwrite to replace it"
                    )
                    raise GridMismatchError(msg)
            logger.info("  %s was not made by fetch and is kept", folder.file(name))

    def _identity(self, layer: Layer, tile: TilePlan) -> tuple[str, dict[str, Any]]:
        """Return where a layer of a tile comes from, and what else decides what is in it."""
        s = self.settings
        if layer == "naip":
            source = tile.choice.image.source
            local = _stamp(source) if isinstance(source, Path) else None
            return tile.choice.image.origin, {"file": local}
        if layer == "nlcd":
            if s.nlcd is not None:
                return redact(s.nlcd), {
                    "year": tile.nlcd_year,
                    "file": _stamp(Path(s.nlcd.replace("{year}", str(tile.nlcd_year)))),
                }
            return redact(s.nlcd_wcs), {"year": tile.nlcd_year, "coverage": s.nlcd_coverage}
        if layer == "osm":
            options: dict[str, Any] = {"road_width": s.road_width}
            return s.osm or redact(s.overpass_url), options | {"file": _stamp(Path(s.osm)) if s.osm else None}
        if layer == "buildings":
            return s.buildings or redact(s.buildings_index), {
                "file": _stamp(Path(s.buildings)) if s.buildings else None
            }
        scheme = self._scheme()
        return ", ".join(map(str, s.labels)), {
            "files": [_stamp(path) for path in s.labels],
            "scheme": scheme.model_dump(mode="json"),
            "label_map": s.label_map,
            "field": s.label_field,
        }

    # One per layer: write its files, and give the name and what item.json is to say of each.

    def _write_naip(self, tile: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
        image = tile.choice.image
        naip.write_image(image, tile.grid, tile.folder.file("naip"), self.network, overwrite=True)
        yield "naip", {"date": image.date, "year": image.year, "resolution": image.resolution, "id": image.id}

    def _write_nlcd(self, tile: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.nlcd is not None:
            source, year = nlcd.clip_file(s.nlcd, tile.nlcd_year, tile.grid, self.network), tile.nlcd_year
        else:
            year = self._offered_year(tile.nlcd_year)
            source = nlcd.download_nlcd(tile.grid, year, self.network, url=s.nlcd_wcs, coverage=s.nlcd_coverage)
        write_nlcd(source, tile.grid, tile.folder.file("nlcd"))
        yield "nlcd", {"year": year}

    def _offered_year(self, wanted: int | None) -> int | None:
        """Return the year to ask the coverage service for; None if it has but one."""
        s = self.settings
        offered = nlcd.describe_coverage(self.network, url=s.nlcd_wcs, coverage=s.nlcd_coverage).years
        if wanted is None or (not offered and s.nlcd_wcs != WCS_URL):
            return None
        year = nlcd.match_year(wanted, offered)
        if year != wanted:
            warnings.warn(f"NLCD {wanted} is not there; taking {year}", SourceWarning, stacklevel=2)
        return year

    def _write_osm(self, tile: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.osm is None:
            source = osm.download_features(tile.grid, self.network, url=s.overpass_url)
        elif osm.is_extract(Path(s.osm)):
            path = Path(s.osm)
            source = self._once_per_fetch("osm", lambda: osm.convert_extract(path, self.network.cache, self._reach()))
        else:
            source = Path(s.osm)
        frames = osm.read_layers(source, tile.grid)
        for name in osm.LAYERS:
            values = osm.burn_layer(name, frames[name], tile.grid, road_width=s.road_width)
            _write_mask(values, tile.grid, tile.folder.file(name))
            yield name, {"features": len(frames[name])}

    def _write_buildings(self, tile: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.buildings is None:
            source = self._once_per_fetch(
                "buildings",
                lambda: buildings.download_buildings(self._reach(), self.network, index_url=s.buildings_index),
            )
        else:
            source = Path(s.buildings)
        frame = read_vectors(source, grid=tile.grid)
        frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
        _write_mask(burn(frame.geometry, tile.grid), tile.grid, tile.folder.file("buildings"))
        yield "buildings", {"features": len(frame)}

    def _write_labels(self, tile: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        target = tile.folder.file("labels")
        found = write_labels(
            s.labels,
            tile.grid,
            target,
            self._scheme(),
            label_map=s.label_map or None,
            field=s.label_field,
            overwrite=True,
        )
        if not found:
            target.unlink(missing_ok=True)
            logger.info("  no label lies on %s", tile.folder.id)
        yield "labels", {"found": found}

    def _scheme(self) -> ClassScheme:
        preset = self.plan.area.preset
        if self.settings.scheme is not None:
            return self.settings.scheme
        if preset is None:
            msg = (
                "labels need the classes they are put into; give --scheme (enviroatlas-5, chesapeake-4 or a YAML file)"
            )
            raise InputError(msg)
        return load_scheme(preset.scheme)

    def _reach(self) -> tuple[float, float, float, float]:
        """Return the bounds of all tiles in degrees."""
        boxes = np.array(
            [transform_bounds(t.grid.crs, "EPSG:4326", *t.grid.bounds, densify_pts=21) for t in self.plan.tiles]
        )
        low, high = boxes.min(axis=0), boxes.max(axis=0)
        return (round(low[0], 5), round(low[1], 5), round(high[2], 5), round(high[3], 5))

    def _once_per_fetch(self, name: str, make: Callable[[], Path]) -> Path:
        with self._once:
            if name not in self._shared:
                self._shared[name] = make()
            return self._shared[name]


def write_nlcd(source: str | Path, grid: Grid, path: Path) -> Path:
    """Warp NLCD onto the grid of a tile by nearest neighbour and write its original codes.

    Raises
    ------
    GridMismatchError
        If it does not reach the tile.
    InputError
        If it does not hold codes.
    """
    scheme = load_scheme("nlcd")
    with (
        open_on_grid(source, grid, like="the tile") as src,
        CogWriter(
            path, grid, nodata=0, overviews="mode", scheme=scheme, tags={"kind": "nlcd"}, overwrite=True
        ) as writer,
    ):

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            values = read_window(src, block.core, 1)
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
                msg = f"{source} holds {values.dtype} numbers beyond NLCD's codes (0-255); is it NLCD?"
                raise InputError(msg)
            return {"nlcd": np.where(read_valid(src, block.core), values, 0).astype(np.uint8)}

        stream(compute, grid=grid, sinks={"nlcd": writer}, label="nlcd")
    return path


def _write_mask(values: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    with CogWriter(path, grid, overviews="nearest", overwrite=True) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            return {"mask": values[block.core.toslices()]}

        stream(compute, grid=grid, sinks={"mask": writer})


def _stamp(path: Path) -> list[Any] | None:
    """Return what tells a local file from a later one; None for a URL or what is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
