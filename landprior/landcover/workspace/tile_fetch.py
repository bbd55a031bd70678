"""Fetching one tile: a file per layer on one grid, the image last."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.warp import transform_bounds

from landprior.addresses import redact
from landprior.errors import (
    GridMismatchError,
    InputError,
    LandpriorError,
    MissingInputError,
    RasterReadError,
    SourceError,
    SourceWarning,
)
from landprior.landcover.workspace.fetch_settings import NONE
from landprior.landcover.workspace.nlcd_layer import write_nlcd
from landprior.landcover.workspace.provenance import make_key
from landprior.progress import Progress
from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.raster.sidecars import sidecars_of
from landprior.raster.windows import stream
from landprior.sources import buildings, nlcd, osm
from landprior.sources.burning import burn
from landprior.sources.extents import NEAR, check_extent, find_box, find_extent, list_spatial_layers
from landprior.sources.http.responses import fingerprint
from landprior.sources.labels import is_raster, write_labels
from landprior.sources.local_files import absolute_source, identify, plain_path
from landprior.sources.naip.warp import write_image
from landprior.sources.public import WCS_URL
from landprior.sources.vectors import read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from landprior.landcover.workspace.fetch_settings import FetchSettings, Layer
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan, TilePlan
    from landprior.raster.windows import Block
    from landprior.run import Run
    from landprior.sources.http.client import Network
logger = logging.getLogger(__name__)


_CHANGES = {
    "grid": "the place or the image",
    "origin": "the source",
    "file": "the content of the file",
    "url": "the address",
    "year": "the year",
    "coverage": "--nlcd-coverage",
    "road_width": "--road-width",
    "label_map": "--label-map",
    "field": "--class-column",
    "scheme": "--scheme",
}
"""Names, for messages, of the values that a layer's content depends on."""


@dataclass(kw_only=True)
class TileFetcher:
    """A fetch in progress."""

    plan: FetchPlan
    settings: FetchSettings
    network: Network
    run: Run

    def __post_init__(self) -> None:
        self._once = threading.Lock()
        self._features: Counter[str] = Counter()
        """Layer -> features found, for the layers that were written."""
        self._shared: dict[str, Path] = {}

    def fetch_tile(self, tile: TilePlan) -> list[LandpriorError]:
        """Fetch the missing layers of a tile; return the errors."""
        failures: list[LandpriorError] = []
        tile.folder.path.mkdir(parents=True, exist_ok=True)
        bar = Progress(None, tile.folder.name, "B", show=self.run.progress, leave=True)

        def count(size: int) -> None:
            bar.update(size)

        with bar, self.network.listening(count):
            self._drop_unwanted(tile)
            for layer in self.settings.layers:
                bar.note(layer)
                try:
                    self._fetch_layer(layer, tile)
                except (SourceError, InputError, MissingInputError) as error:
                    failures.append(error)
                    if not self.network.offline:
                        break  # the rest of the tile is useless without it, and a rerun resumes here
            bar.note("incomplete" if failures else "done")
        return failures

    def report_empty(self) -> None:
        """Report, once each, the sources without any feature; a file with none nearby is probably of another place."""
        tiles = self.plan.tiles
        where = f"tile {tiles[0].folder.name}" if len(tiles) == 1 else f"any of {len(tiles)} tiles"
        boxes = {tile.folder.name: find_box(tile.grid) for tile in tiles}
        for layer, name in (("osm", "road or water"), ("buildings", "building"), ("labels", "label")):
            if layer not in self._features or self._features[layer]:
                continue
            given = getattr(self.settings, layer)
            if not given:
                logger.info("  the server returned no %s for %s; in open country that may be correct", name, where)
            for source in given if isinstance(given, tuple) else (given,) if given else ():
                if is_raster(source):
                    warnings.warn(f"{source} has no {name} on {where}", SourceWarning, stacklevel=3)
                    continue
                known = find_extent(source)
                if known is None and not check_extent(source, boxes, f"--{layer}", strict=False, thorough=True):
                    continue
                known = known or find_extent(source, thorough=True)
                if known is not None and not any(known.box.meets(box, NEAR) for box in boxes.values()):
                    continue  # already reported before fetching
                if known is None or known.covers or not self._has_neighbours(source):
                    reach = "has no features" if known is None else f"lies in {known.box}"
                    msg = (
                        f"{source} has no {name} on {where}{'' if known and known.covers else ' or within 2 km'}: it "
                        f"{reach}, the first tile in {next(iter(boxes.values()))} (west,south,east,north); "
                        f"is it for this place (--{layer})?"
                    )
                    warnings.warn(msg, SourceWarning, stacklevel=3)

    def _has_neighbours(self, source: str | Path) -> bool:
        """Say whether a file has features near a tile."""
        reach = int(NEAR)
        for tile in self.plan.tiles:
            g = tile.grid
            wide = Grid(
                width=g.width + 2 * reach,
                height=g.height + 2 * reach,
                transform=g.transform @ Affine.translation(-reach, -reach),
                crs=g.crs,
            )
            path = plain_path(source)
            for name in [None] if Path(source) != path else list_spatial_layers(path):
                if len(read_vectors(source if name is None else path, layer=name, grid=wide)):
                    return True
        return False

    def _drop_unwanted(self, tile: TilePlan) -> None:
        """Remove layers of an earlier fetch that are now left out; files put there by hand are kept."""
        folder = tile.folder
        for layer in ("osm", "buildings"):
            if getattr(self.settings, layer) != NONE:
                continue
            for name in files_of(layer):
                path = folder.file(name)
                if not path.is_file():
                    continue
                if not folder.is_recorded(name):
                    logger.warning("Warning: --%s none: %s was not fetched and is kept", layer, path)
                    continue
                for file in (path, *(one.path for one in sidecars_of(path, "raster") if not one.product)):
                    file.unlink(missing_ok=True)
                folder.record(name, "", grid=tile.grid, core=tile.core, origin=NONE)
                logger.info("  --%s none: %s, from an earlier fetch, is removed", layer, path)
        if not self.settings.labels and folder.file("labels").is_file() and folder.is_recorded("labels"):
            logger.info("  %s, from an earlier fetch, is kept", folder.file("labels"))

    def _fetch_layer(self, layer: Layer, tile: TilePlan) -> None:
        folder, files = tile.folder, files_of(layer)
        origin, options = self._identity(layer, tile)
        basis = {"grid": repr(tile.grid), "origin": origin, **options}
        key = make_key({"layer": layer, **basis}, {})
        states = {name: folder.state(name, key) for name in files}
        if layer == "labels" and folder.steps().get("labels", {}).get("key") == key and not folder.present(["labels"]):
            states = {"labels": "current"}  # they were checked, and do not reach this tile
        by_hand = [name for name in files if states[name] == "stale" and not folder.is_recorded(name)]
        if by_hand and not self.run.overwrite:
            by_hand = self._check_by_hand(folder, by_hand, tile.grid)
            states = {name: state for name, state in states.items() if name not in by_hand}
        if all(state == "current" for state in states.values()) and not (self.run.overwrite or self.network.refresh):
            return
        if not states:
            return
        prints = {name: make_key({name: value}, {})[:16] for name, value in basis.items()}
        _log_stale(folder, [name for name, state in states.items() if state == "stale"], prints)
        write: Callable[[TilePlan, set[str]], Iterator[tuple[str, dict[str, Any]]]] = getattr(self, f"_write_{layer}")
        with ExitStack() as stack:
            for name in states:
                stack.enter_context(folder.announcing(name, grid=tile.grid, command="fetch"))
            for name, properties in write(tile, set(states)):
                with self._once:
                    self._features[layer] += int(properties.get("features", properties.get("found", 1)))
                folder.record(name, key, grid=tile.grid, core=tile.core, origin=origin, basis=prints, **properties)

    def _check_by_hand(self, folder: TileFolder, names: Sequence[str], grid: Grid) -> list[str]:
        """Return the files that were put there by hand and can be used, and log them.

        Raises
        ------
        InputError
            If a file is on another grid, or cannot be read and was never fetched.
        """
        kept = []
        for name in names:
            path = folder.file(name)
            try:
                with open_raster(path) as src:
                    matches = Grid.of(src).matches(grid)
            except RasterReadError as error:
                if "sha256" in folder.steps().get(name, {}):
                    logger.warning("Warning: %s is damaged; fetching it again", path)
                    continue
                msg = f"{path} was not fetched, and {error}; move it away, or give --overwrite to replace it"
                raise InputError(msg) from error
            if not matches:
                msg = f"{path} was not fetched and is on another grid; move it away, or give --overwrite to replace it"
                raise GridMismatchError(msg)
            logger.info("  %s was not fetched and is kept (--overwrite replaces it)", path)
            kept.append(name)
        return kept

    def _identity(self, layer: Layer, tile: TilePlan) -> tuple[str, dict[str, Any]]:
        """Return the origin of a tile's layer, and the other values its content depends on.

        The origin shows an address without its secrets; the identity includes the whole address, whose query may select
        the year.
        """
        s = self.settings
        if layer == "naip":
            source = tile.choice.image.source
            what = {"file": identify(source)} if isinstance(source, Path) else {"url": fingerprint(source.href)}
            return tile.choice.image.origin, what
        if layer == "nlcd":
            return self._identity_of_nlcd(tile.nlcd_year)
        if layer == "osm":
            origin, what = _identity_of(s.osm, s.overpass_url)
            return origin, what | {"road_width": s.road_width}
        if layer == "buildings":
            return _identity_of(s.buildings, s.buildings_index)
        return ", ".join(map(absolute_source, s.labels)), {
            "file": [identify(path) for path in s.labels],
            "scheme": self._scheme().model_dump(mode="json"),
            "label_map": s.label_map,
            "field": s.label_field,
        }

    def _identity_of_nlcd(self, year: int | None) -> tuple[str, dict[str, Any]]:
        s = self.settings
        if s.nlcd is None:
            return redact(s.nlcd_wcs), {"year": year, "coverage": s.nlcd_coverage, "url": fingerprint(s.nlcd_wcs)}
        if nlcd.is_remote(s.nlcd):
            return redact(s.nlcd), {"year": year, "url": fingerprint(s.nlcd)}
        return absolute_source(s.nlcd), {"year": year, "file": identify(s.nlcd.replace("{year}", str(year)))}

    # One method per layer: write its files, and yield the name of each and its record for item.json.

    def _write_naip(self, tile: TilePlan, _: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        image = tile.choice.image
        write_image(image, tile.grid, tile.folder.file("naip"), self.network, overwrite=True)
        yield "naip", {"date": image.date, "year": image.year, "resolution": image.resolution, "id": image.id}

    def _write_nlcd(self, tile: TilePlan, _: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.nlcd is not None:
            source, year = nlcd.clip_file(s.nlcd, tile.nlcd_year, tile.grid, self.network), tile.nlcd_year
        else:
            year = self._offered_year(tile.nlcd_year)
            source = nlcd.download_nlcd(tile.grid, year, self.network, url=s.nlcd_wcs, coverage=s.nlcd_coverage)
        write_nlcd(source, tile.grid, tile.folder.file("nlcd"))
        yield "nlcd", {"year": year}

    def _offered_year(self, wanted: int | None) -> int | None:
        """Return the year to request from the coverage service; None if it has only one."""
        s = self.settings
        offered = nlcd.describe_coverage(self.network, url=s.nlcd_wcs, coverage=s.nlcd_coverage).years
        if wanted is None or (not offered and s.nlcd_wcs != WCS_URL):
            return None
        year = nlcd.match_year(wanted, offered)
        if year != wanted:
            warnings.warn(f"NLCD {wanted} is not available; using {year}", SourceWarning, stacklevel=2)
        return year

    def _write_osm(self, tile: TilePlan, names: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.osm is None:
            source = osm.download_features(tile.grid, self.network, url=s.overpass_url)
        elif osm.is_extract(Path(s.osm)):
            path = Path(s.osm)
            source = self._once_per_fetch(
                "osm", lambda: osm.convert_extract(path, self.network.cache, self._find_bounds())
            )
        else:
            source = Path(s.osm)
        frames = osm.read_layers(source, tile.grid)
        for name in (layer for layer in osm.LAYERS if layer in names):
            values = osm.burn_layer(name, frames[name], tile.grid, road_width=s.road_width)
            _write_mask(values, tile.grid, tile.folder.file(name))
            yield name, {"features": len(frames[name])}

    def _write_buildings(self, tile: TilePlan, _: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        s = self.settings
        if s.buildings is None:
            source = self._once_per_fetch(
                "buildings",
                lambda: buildings.download_buildings(self._find_bounds(), self.network, index_url=s.buildings_index),
            )
        else:
            source = Path(s.buildings)
        frame = read_vectors(source, grid=tile.grid)
        frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
        _write_mask(burn(frame.geometry, tile.grid), tile.grid, tile.folder.file("buildings"))
        yield "buildings", {"features": len(frame)}

    def _write_labels(self, tile: TilePlan, _: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
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
            logger.info("  no labels on %s", tile.folder.id)
        yield "labels", {"found": found}

    def _scheme(self) -> ClassScheme:
        preset = self.plan.area.preset
        if self.settings.scheme is not None:
            return self.settings.scheme
        if preset is None:
            msg = "labels need a class scheme; give --scheme (enviroatlas-5, chesapeake-4 or a YAML file)"
            raise InputError(msg)
        return load_scheme(preset.scheme)

    def _find_bounds(self) -> tuple[float, float, float, float]:
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


def _write_mask(values: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    with CogWriter(path, grid, overviews="nearest", overwrite=True) as writer:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            return {"mask": values[block.core.toslices()]}

        stream(compute, grid=grid, sinks={"mask": writer})


def files_of(layer: str) -> tuple[str, ...]:
    """Return the names of a layer's files."""
    return osm.LAYERS if layer == "osm" else (layer,)


def _identity_of(file: str | None, url: str) -> tuple[str, dict[str, Any]]:
    """Return the origin and the identity of a file, or of a server if no file is given."""
    if file is None:
        return redact(url), {"url": fingerprint(url)}
    return absolute_source(file), {"file": identify(file)}


def _log_stale(folder: TileFolder, names: Sequence[str], prints: dict[str, str]) -> None:
    """Log which layers are fetched again, and what has changed."""
    if not names:
        return
    before = folder.steps().get(names[0], {}).get("basis")
    before = before if isinstance(before, dict) else {}
    changed = [_CHANGES.get(name, name) for name in sorted(prints) if before.get(name) != prints[name]]
    why = ", ".join(changed) if before and changed else "its source or an option"
    logger.info("  %s: %s is stale; fetching it again (changed: %s)", folder.id, ", ".join(names), why)
