"""The workspace: ``<root>/<city>/<tile>/`` with one file per layer and ``item.json``, a STAC Item.

``item.json`` lists the files with their checksums, and for every result what it was made from, so that a rerun skips
results that are current and remakes those that a changed input or setting has made stale.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError, MissingInputError, RasterReadError
from landprior.inputs import checksum
from landprior.landcover.workspace.provenance import Basis, Judgement, explain_foreign, judge, refuse_foreign
from landprior.raster.grid import Bounds, Grid
from landprior.raster.outputs import announcing
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.raster.scheme import parse_scheme
from landprior.records import changing
from landprior.sources.folder_names import check_component

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

INPUTS = ("naip", "nlcd", "roads", "waterways", "waterbodies", "buildings", "labels")
RESULTS = ("prior", "model", "adapted", "prediction")
MODELS = ("model", "adapted")
ITEM = "item.json"
COLLECTION = "collection.json"
COLLECTION_ID = "landprior-workspace"
_STEPS = "landprior:steps"
_BEGUN = "landprior:begun"
"""Results being written: if the process is killed meanwhile, the file it leaves is still recognised as ours."""
_CORE = "landprior:core_bounds"
_DESCRIBED = ("bands", "classification:classes")
"""Fields of an asset that describe its file's content."""
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)


@dataclass(frozen=True, kw_only=True)
class TileFolder:
    """The files of one tile.

    Parameters
    ----------
    path
        Its folder.
    city
        Name of the city it belongs to.
    """

    path: Path
    city: str

    @classmethod
    def of(cls, root: Path, city: str, name: str) -> TileFolder:
        """Return the folder of a tile, whether or not it exists.

        Parameters
        ----------
        root
            Root folder of the workspace.
        city, name
            Names from any source, including plans and catalogues, so they are checked.

        Returns
        -------
        TileFolder
            A folder inside ``root``.

        Raises
        ------
        InputError
            If a name is not a plain folder name, such as one with ``..`` or an absolute path.
        """
        return cls(path=root / check_component(city, "a city") / check_component(name, "a tile"), city=city)

    @property
    def name(self) -> str:
        """Name of the tile."""
        return self.path.name

    @property
    def id(self) -> str:
        """Name of the tile, unique in the workspace; its seed is derived from it."""
        return f"{self.city}/{self.name}"

    def file(self, layer: str) -> Path:
        """Return the path of a layer, whether or not it exists."""
        return self.path / (f"{layer}.safetensors" if layer in MODELS else f"{layer}.tif")

    def require(self, layer: str, *, hint: str) -> Path:
        """Return the path of a layer that must exist.

        Raises
        ------
        MissingInputError
            If it does not exist; the message gives ``hint``.
        """
        path = self.file(layer)
        if not path.is_file():
            msg = f"{path} is missing; {hint}"
            raise MissingInputError(msg)
        return path

    def present(self, layers: Sequence[str]) -> dict[str, Path]:
        """Return those of some layers that exist."""
        return {name: self.file(name) for name in layers if self.file(name).is_file()}

    # -- the record -----------------------------------------------------------------------------

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return the steps recorded in ``item.json``."""
        return dict(self.read_item().get("properties", {}).get(_STEPS, {}))

    def is_recorded(self, step: str) -> bool:
        """Say whether a layer or a result exists as landprior made it, and was not added or changed by hand."""
        path = self.file(step)
        properties = self.read_item().get("properties", {})
        known = [properties.get(name, {}).get(step, {}).get("sha256") for name in (_STEPS, _BEGUN)]
        return any(known) and path.is_file() and checksum(path) in known

    def state(self, step: str, key: str) -> str:
        """Return whether a result is up to date: ``"current"``, ``"missing"`` or ``"stale"``.

        Parameters
        ----------
        step
            The result: ``prior``, ``model``, ``adapted`` or ``prediction``.
        key
            Key from :func:`make_key`.

        Returns
        -------
        str
            The state.
        """
        if not self.file(step).is_file():
            return "missing"
        done = self.steps().get(step)
        if done is None or done.get("key") != key or done.get("sha256") != checksum(self.file(step)):
            return "stale"
        return "current"

    def judge(self, step: str, basis: Basis) -> Judgement:
        """Judge whether a result is up to date; see :func:`landprior.landcover.workspace.provenance.judge`."""
        properties = self.read_item().get("properties", {})
        return judge(self.file(step), basis, properties.get(_STEPS, {}).get(step), properties.get(_BEGUN, {}).get(step))

    def require_ours(self, step: str, basis: Basis) -> None:
        """Raise an error if a result exists that was not made by this recipe.

        Raises
        ------
        OutputExistsError
            See :func:`landprior.landcover.workspace.provenance.explain_foreign`.
        """
        properties = self.read_item().get("properties", {})
        known, begun = (properties.get(name, {}).get(step) for name in (_STEPS, _BEGUN))
        why = explain_foreign(self.file(step), basis, known, begun)
        if why is not None:
            refuse_foreign(self.file(step), why)

    def core(self) -> Bounds | None:
        """Return the bounds of the tile without its margin, in its CRS; None if unknown."""
        found = self.read_item().get("properties", {}).get(_CORE)
        try:
            core = Bounds(*(float(value) for value in found))
        except (TypeError, ValueError):
            return None
        return core if np.isfinite(core).all() else None

    @contextmanager
    def making(self, step: str, basis: Basis) -> Iterator[dict[str, Any]]:
        """Record a result made in the ``with`` block; entries added to the dictionary are recorded with it.

        See :meth:`announcing`.
        """
        properties: dict[str, Any] = {}
        made = basis.record()  # the inputs as they are read now, not as they may be later
        with self.announcing(step, command=basis.command, recipe=basis.recipe, settings=basis.flatten_settings()):
            yield properties
        self.record(step, made.pop("key"), **made, **properties)

    @contextmanager
    def announcing(self, step: str, *, grid: Grid | None = None, **about: object) -> Iterator[None]:
        """Record the checksum of a file written in the ``with`` block just before the file gets its final name.

        The file is then recognised as ours even if the process is killed before it is recorded.

        Parameters
        ----------
        step
            The result: ``prior``, ``model``, ``adapted`` or ``prediction``.
        grid
            Grid of the tile, if its item does not exist yet.
        **about
            Additional entries, for JSON.

        Yields
        ------
        None
            The file is written in the block.
        """

        def tell(temporary: Path) -> None:
            with self._changing_item(grid) as item:
                item["properties"].setdefault(_BEGUN, {})[step] = {"sha256": checksum(temporary), **about}

        with announcing(self.file(step), tell):
            yield

    def record(
        self, step: str, key: str, *, grid: Grid | None = None, core: Bounds | None = None, **properties: object
    ) -> None:
        """Record a result in ``item.json``; several processes may do so at once.

        Parameters
        ----------
        step
            A layer or a result.
        key
            Key from :func:`make_key`.
        grid
            Grid of the tile, if its image does not exist yet.
        core
            Bounds of the requested area, without the margin around it.
        **properties
            Additional entries.
        """
        with self._changing_item(grid) as item:
            if core is not None:
                item["properties"][_CORE] = list(core)
            path = self.file(step)
            steps = item["properties"][_STEPS]
            steps[step] = {"key": key, "when": _now(), **properties}
            if path.is_file():
                steps[step]["sha256"] = checksum(path)
            begun = item["properties"].get(_BEGUN, {})
            begun.pop(step, None)
            if not begun:
                item["properties"].pop(_BEGUN, None)

    @contextmanager
    def _changing_item(self, grid: Grid | None) -> Iterator[dict[str, Any]]:
        """Yield the item for changes and write it, while other processes are locked out."""
        with changing(self.path / ITEM) as write:
            before = self.read_item()
            old, known, item = before.get("properties", {}), before.get("assets", {}), self._new_item(grid)
            for name in ("created", _CORE, _BEGUN):
                if name in old:
                    item["properties"][name] = old[name]
            steps = item["properties"][_STEPS] = dict(old.get(_STEPS, {}))
            yield item
            item["properties"]["updated"] = _now()
            taken = steps.get("naip", {}).get("date")
            if taken:
                item["properties"]["datetime"] = f"{taken}T00:00:00Z"
            item["assets"] = self._assets(steps, known)
            write(item)

    def read_item(self) -> dict[str, Any]:
        """Return the content of ``item.json``; empty if there is none, or if it is damaged, with a warning.

        Raises
        ------
        RasterReadError
            If it cannot be opened.
        """
        path = self.path / ITEM
        if not path.is_file():
            return {}
        try:
            item = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"cannot read {path} ({error.strerror})"
            raise RasterReadError(msg) from error
        except (ValueError, RecursionError):
            logger.warning("%s is damaged; writing a new one", path)
            return {}
        try:
            parts = [dict(item["properties"].get(name, {})) for name in (_STEPS, _BEGUN)]
            whole = all(isinstance(entry, dict) for part in parts for entry in part.values())
        except (TypeError, KeyError, AttributeError, ValueError):
            whole = False
        if not whole:
            logger.warning("%s is damaged; writing a new one", path)
            return {}
        return dict(item)

    def _new_item(self, grid: Grid | None) -> dict[str, Any]:
        import pystac
        from rasterio.warp import transform_bounds
        from shapely.geometry import box, mapping

        if grid is None:
            with open_raster(self.require("naip", hint="every tile needs its image")) as src:
                grid = Grid.of(src)
        bounds = list(transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)) if grid.crs is not None else None
        item = pystac.Item(
            id=f"{self.city}-{self.name}",
            geometry=None if bounds is None else mapping(box(*bounds)),
            bbox=bounds,
            datetime=datetime.now(UTC),
            properties={"proj:shape": list(grid.shape), "proj:transform": list(grid.transform)[:6], "created": _now()}
            | _describe_crs(grid),
            stac_extensions=list(_EXTENSIONS),
        )
        described = item.to_dict(include_self_link=False, transform_hrefs=False)
        if bounds is None:
            described.pop("bbox", None)
        described["links"] = [
            {"rel": rel, "href": f"../../{COLLECTION}", "type": "application/json"}
            for rel in ("root", "parent", "collection")
        ]
        described["collection"] = COLLECTION_ID
        return described

    def _assets(self, steps: Mapping[str, Mapping[str, Any]], known: object) -> dict[str, Any]:
        """Return descriptions of the files; ``known`` files that have not changed are not opened again."""
        assets = {}
        for name, path in self.present([*INPUTS, *RESULTS]).items():
            asset: dict[str, Any] = {
                "href": f"./{path.name}",
                "type": "application/octet-stream",
                "roles": ["data"],
                "file:size": path.stat().st_size,
                "file:checksum": f"1220{checksum(path)}",  # multihash: sha2-256, 32 bytes
            }
            described = known.get(name) if isinstance(known, dict) else None
            same = isinstance(described, dict) and described.get("file:checksum") == asset["file:checksum"]
            if name not in MODELS:
                asset["type"] = "image/tiff; application=geotiff; profile=cloud-optimized"
            if isinstance(described, dict) and same:
                asset |= {key: value for key, value in described.items() if key in _DESCRIBED}
            elif name not in MODELS:
                asset |= _describe_raster(path)
            origin = steps.get(name, {}).get("origin")
            if origin:
                asset["landprior:origin"] = origin
            assets[name] = asset
        return assets


def _describe_raster(path: Path) -> dict[str, Any]:
    """Return the bands of a raster and, for classes, their codes, as in STAC."""
    try:
        src = open_raster(path)
    except RasterReadError:
        return {}  # a damaged file is reported where it is read
    with src:
        try:
            size = {"raster:spatial_resolution": Grid.of(src).pixel_size(where=path)[0]}
        except InputError:
            size = {}  # unknown
        descriptions = src.descriptions
        bands = [
            {"name": descriptions[i] or f"b{i + 1}", "data_type": src.dtypes[i], **size}
            | ({} if src.nodata is None else {"nodata": "nan" if np.isnan(src.nodata) else src.nodata})
            for i in range(src.count)
        ]
        tags = src.tags(ns=TAG_DOMAIN)
    described: dict[str, Any] = {"bands": bands}
    if "scheme" in tags and tags.get("kind") != "prior" and len(bands) == 1:
        scheme = parse_scheme(tags["scheme"], path)
        described["classification:classes"] = [
            {
                "value": int(c.code),
                "name": re.sub(r"[^0-9A-Za-z_-]+", "_", c.name),
                "title": c.name,
                "color_hint": "".join(f"{part:02X}" for part in c.rgb),
            }
            for c in scheme.classes
        ]
    return described


def _describe_crs(grid: Grid) -> dict[str, str]:
    """Return the CRS in the form of the projection extension: its code, or in full."""
    if grid.crs is None:
        return {}
    code = grid.crs.to_epsg()
    return {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")} if code is None else {"proj:code": f"EPSG:{code}"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
