"""Fetching a place: from a plan to tiles of a workspace with one file per layer, on one grid."""

from __future__ import annotations

import logging
import threading
import warnings
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.warp import transform_bounds

from landprior.errors import (
    GridMismatchError,
    InputError,
    LandpriorError,
    OfflineError,
    SourceError,
    SourceWarning,
)
from landprior.landcover.coarse import read_nlcd
from landprior.landcover.workspace import TileFolder, Workspace, make_key
from landprior.progress import Progress
from landprior.raster.cog import CogWriter
from landprior.raster.files import open_on_grid, split_band
from landprior.raster.grid import Grid
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.raster.windows import stream
from landprior.sources import buildings, naip, nlcd, osm
from landprior.sources.answers import redact
from landprior.sources.labels import write_labels
from landprior.sources.nlcd import WCS_URL
from landprior.sources.vectors import burn, read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from landprior.landcover.plan import FetchPlan, FetchSettings, Layer, TilePlan
    from landprior.raster.windows import Block
    from landprior.sources.network import Network

logger = logging.getLogger(__name__)


def fetch(
    plan: FetchPlan,
    workspace: Workspace,
    settings: FetchSettings,
    network: Network,
    *,
    overwrite: bool = False,
    collection: bool = True,
    progress: bool = False,
) -> list[TileFolder]:
    """Fetch the layers of all tiles; what is there and current is left alone.

    Parameters
    ----------
    plan
        Of :func:`landprior.landcover.plan.plan_fetch`.
    workspace
        Gets ``<area>/<tile>/`` with one file per layer and ``item.json``, and ``collection.json``.
    settings
        As for the plan.
    network
        Retries, cache, offline.
    overwrite
        Fetch anew what is there, also files that were put there by hand.
    collection
        Write ``collection.json`` of the workspace in the end, which reads every tile's item.
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
        if whole and collection:
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
        failures: list[LandpriorError] = []
        tile.folder.path.mkdir(parents=True, exist_ok=True)
        bar = Progress(None, tile.folder.name, "B", show=self.progress, leave=True)

        def count(size: int) -> None:
            bar.update(size)

        with bar, self.network.listening(count):
            for layer in self.settings.wanted:
                bar.note(layer)
                try:
                    self._fetch_layer(layer, tile)
                except (SourceError, InputError) as error:
                    failures.append(error)
                    if not self.network.offline:
                        break  # the rest of the tile is of no use without, and a rerun goes on here
            bar.note("incomplete" if failures else "done")
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
            return {"nlcd": read_nlcd(src, block.core).astype(np.uint8)}

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
        status = Path(split_band(path)[0]).stat()
    except OSError:
        return None
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
