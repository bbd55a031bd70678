"""The workspace as a whole: its tiles, and their STAC Collection."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import MissingInputError
from landprior.landcover.workspace.city import CityRef, find_city, folders_of
from landprior.landcover.workspace.item import COLLECTION, COLLECTION_ID, ITEM, TileFolder
from landprior.records import changing
from landprior.sources.cities import list_cities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """A folder of cities and tiles."""

    root: Path

    def tiles(self, city: str | CityRef | None = None, *, only: Sequence[str] = ()) -> list[TileFolder]:
        """List tiles: folders that hold ``naip.tif``.

        Parameters
        ----------
        city
            Only tiles of this city (:func:`landprior.landcover.workspace.city.find_city`); None for all.
        only
            Only these tiles.

        Returns
        -------
        list of TileFolder
            In the order of their names.

        Raises
        ------
        MissingInputError
            If the workspace, city or a tile does not exist; lists what exists.
        """
        if city is not None:
            city = find_city(city, self.root).name
        if not self.root.is_dir():
            msg = (
                f"no workspace at {self.root}; name one with --data, or start with: landprior fetch, or landprior demo"
            )
            raise MissingInputError(msg)
        cities = folders_of(self.root)
        if city is not None and city not in cities:
            near = difflib.get_close_matches(city.casefold(), {*cities, *list_cities()}, n=1)
            msg = (
                f"the workspace {self.root} has no city {city!r} (it has: {', '.join(cities) or 'none'}); "
                f"{f'did you mean {near[0]}? ' if near and near[0] != city else ''}"
                f"fetch it (landprior fetch), or put its layers in {self.root / city}/<tile>/naip.tif, nlcd.tif, ..."
            )
            raise MissingInputError(msg)
        chosen = cities if city is None else [city]
        found = [
            TileFolder(path=path.parent, city=name)
            for name in chosen
            for path in sorted((self.root / name).glob("*/naip.tif"))
        ]
        if only:
            missing = sorted(set(only) - {tile.name for tile in found})
            if missing:
                msg = f"there is no tile {', '.join(missing)}; there are: {', '.join(t.name for t in found) or 'none'}"
                raise MissingInputError(msg)
            found = [tile for tile in found if tile.name in only]
        if not found:
            place = self.root if city is None else self.root / city
            msg = (
                f"no tile with a naip.tif in {place}; fetch a place (landprior fetch), "
                f"or put its layers in {place}/<tile>/naip.tif, nlcd.tif, ..."
            )
            raise MissingInputError(msg)
        return found

    def write_collection(self) -> Path:
        """Write ``collection.json``: a STAC Collection of all tiles that have an ``item.json``."""
        path = self.root / COLLECTION
        with changing(path) as write:  # read the items inside the lock, so that the last writer has read the latest
            write(self._describe_collection())
        return path

    def _describe_collection(self) -> dict[str, Any]:
        import pystac

        items = []
        for path in sorted(self.root.glob(f"*/*/{ITEM}")):
            item = TileFolder(path=path.parent, city=path.parent.parent.name).read_item()
            if item.get("bbox") and item.get("properties", {}).get("datetime"):
                items.append((path, item))
        boxes = np.array([item["bbox"] for _, item in items]).reshape(-1, 4)
        times = sorted(datetime.fromisoformat(item["properties"]["datetime"]) for _, item in items)
        around = [-180.0, -90.0, 180.0, 90.0]
        if items:
            around = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
        span: list[datetime | None] = [times[0], times[-1]] if times else [datetime.now(UTC), None]
        collection = pystac.Collection(
            id=COLLECTION_ID,
            title="landprior workspace",
            description="Tiles of 1 m layers (imagery, NLCD, roads, water, buildings) and what was made from them.",
            extent=pystac.Extent(
                spatial=pystac.SpatialExtent([around]),
                temporal=pystac.TemporalExtent([span]),
            ),
            license="other",
        )
        described = collection.to_dict(include_self_link=False, transform_hrefs=False)
        described["links"] = [{"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"}] + [
            {"rel": "item", "href": f"./{path.relative_to(self.root).as_posix()}", "type": "application/geo+json"}
            for path, _ in items
        ]
        return described
