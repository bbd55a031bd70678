"""The synthetic scene in the form in which sources deliver it: NAIP, NLCD, OpenStreetMap, building footprints."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from landprior.landcover.synthetic.scene import Scene, make_scene
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA, load_scheme

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

SCENE_SIZE = 768
ALBERS = "EPSG:5070"
OVERLAP = 200
"""Overlap of the neighbouring images in pixels."""

TAGS = {
    "roads": {"highway": "residential"},
    "buildings": {"building": "yes"},
    "waterways": {"waterway": "river"},
    "waterbodies": {"natural": "water"},
}


@dataclass(frozen=True)
class SceneFiles:
    """The files of a scene, all in ``folder``.

    Parameters
    ----------
    folder
        The folder to serve.
    scene
        The scene that they were made from.
    image
        One NAIP-like GeoTIFF with 4 bands, in UTM.
    neighbours
        The same image as two overlapping ones, west and east.
    nlcd
        NLCD codes at 30 m in EPSG:5070, on NLCD's grid, with 0 as nodata around the scene.
    labels
        The truth on the image's grid.
    elements
        Nodes, ways and relations as listed by Overpass.
    """

    folder: Path
    scene: Scene
    image: Path
    neighbours: tuple[Path, Path]
    nlcd: Path
    labels: Path
    elements: list[dict[str, Any]]

    @cached_property
    def pbf(self) -> Path:
        """Return the OpenStreetMap data as .osm.pbf; skips the test without pyosmium."""
        return write_pbf(self.folder / "place.osm.pbf", self.elements)

    def overpass(self, _request: object = None) -> tuple[int, dict[str, str], bytes]:
        """Respond like Overpass (``[out:json]``, ways with their nodes); a route of the faulty server."""
        head = {"timestamp_osm_base": "2026-11-01T00:00:00Z", "copyright": "OpenStreetMap contributors, ODbL"}
        answer = {"version": 0.6, "generator": "Overpass API", "osm3s": head, "elements": self.elements}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    @cached_property
    def footprints(self) -> dict[str, Path]:
        """Level-9 quadkey -> its buildings, like Microsoft's .csv.gz of GeoJSON lines; skips without mercantile."""
        mercantile = pytest.importorskip("mercantile", reason="mercantile is not installed; pip install mercantile")
        lines: dict[str, list[str]] = {}
        for shape in in_degrees(self.scene.vectors["buildings"], self.scene.grid.crs.to_wkt()):
            tile = mercantile.tile(shape.centroid.x, shape.centroid.y, 9)
            properties = {"height": -1.0, "confidence": -1.0}
            feature = {"type": "Feature", "properties": properties, "geometry": shape.__geo_interface__}
            lines.setdefault(mercantile.quadkey(tile), []).append(json.dumps(feature))
        paths = {quadkey: self.folder / f"part-{quadkey}.csv.gz" for quadkey in lines}
        for quadkey, path in paths.items():
            path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines[quadkey]).encode()))
        return paths

    def links_csv(self, url: str) -> str:
        """Return dataset-links.csv for the folder served at a URL, with a distant tile whose file does not exist."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["Location", "QuadKey", "Url", "Size", "UploadDate"])
        writer.writerow(["Canada", "030231312", f"{url}/part-030231312.csv.gz", "1.5MB", "2026-02-03"])
        for quadkey, path in self.footprints.items():
            size = f"{path.stat().st_size / 1024:.1f}KB"
            writer.writerow(["UnitedStates", quadkey, self.href(path, url), size, "2026-02-03"])
        return table.getvalue()

    def naip_items(self, url: str, *paths: Path) -> list[dict[str, Any]]:
        """Return STAC items of images (without paths, of the single one) in the folder served at a URL."""
        return [self._naip_item(url, path) for path in paths or (self.image,)]

    def _naip_item(self, url: str, path: Path) -> dict[str, Any]:
        with rasterio.open(path) as src:
            grid, bounds = Grid.of(src), src.bounds
        area = shapely.box(*transform_bounds(grid.crs, "EPSG:4326", *bounds))
        date = path.stem[-8:]
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"va_{path.stem}",
            "collection": "naip",
            "geometry": area.__geo_interface__,
            "bbox": list(area.bounds),
            "properties": {
                "datetime": f"{date[:4]}-{date[4:6]}-{date[6:]}T16:00:00Z",
                "gsd": 1.0,
                "naip:year": date[:4],
                "naip:state": "va",
                "proj:epsg": grid.crs.to_epsg(),
                "proj:bbox": list(bounds),
                "proj:shape": list(grid.shape),
                "proj:transform": list(grid.transform),
            },
            "links": [],
            "assets": {
                "image": {
                    "href": self.href(path, url),
                    "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                    "roles": ["data"],
                    "eo:bands": [
                        {"name": name, "common_name": name.lower()} for name in ("Red", "Green", "Blue", "NIR")
                    ],
                }
            },
        }

    def href(self, path: Path, url: str) -> str:
        """Return the address of a file in the folder served at a URL."""
        return f"{url}/{path.relative_to(self.folder)}"


def write_scene_files(folder: Path) -> SceneFiles:
    """Make the scene and write the files that any test may need; others are written on demand."""
    scene = make_scene(SCENE_SIZE, seed=0)
    width, height, half = scene.grid.width, scene.grid.height, (scene.grid.width + OVERLAP) // 2
    west, east = Window(0, 0, half, height), Window(width - half, 0, half, height)
    truth = {"scheme": load_scheme("enviroatlas-5"), "nodata": MAP_NODATA, "overviews": "mode"}
    codes, nlcd_grid = nlcd_in_albers(scene)
    return SceneFiles(
        folder=folder,
        scene=scene,
        image=write_naip(folder / "naip" / "m_3807857_sw_17_1_20100620.tif", scene, Window(0, 0, width, height)),
        neighbours=(
            write_naip(folder / "naip-split" / "m_3807857_sw_17_1_20100620.tif", scene, west),
            write_naip(folder / "naip-split" / "m_3807857_se_17_1_20100620.tif", scene, east),
        ),
        nlcd=write_tiff(folder / "nlcd.tif", codes[None], nlcd_grid, nodata=0),
        labels=write_raster(folder / "labels.tif", scene.truth, scene.grid, **truth),
        elements=osm_elements(scene.vectors, scene.grid.crs.to_wkt()),
    )


def write_naip(path: Path, scene: Scene, window: Window) -> Path:
    """Write a window of the scene's image; as in NAIP's files, the fourth band has no description."""
    values = scene.image[(slice(None), *window.toslices())]
    return write_tiff(path, values, scene.grid.window(window), photometric="RGB")


def write_tiff(path: Path, values: NDArray[np.uint8], grid: Grid, **options: object) -> Path:
    """Write bands as a tiled, deflated GeoTIFF."""
    path.parent.mkdir(exist_ok=True)
    shape = {"count": len(values), "height": grid.height, "width": grid.width, "dtype": "uint8"}
    options |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=grid.crs, transform=grid.transform, **shape, **options) as out:
        out.write(values)
    return path


def nlcd_in_albers(scene: Scene, *, margin: int = 10) -> tuple[NDArray[np.uint8], Grid]:
    """Sample the scene's NLCD at the centres of NLCD's cells, whose edges are at 15 modulo 30 m."""
    left, bottom, right, top = transform_bounds(scene.grid.crs, ALBERS, *scene.grid.bounds)
    first, low = (int((edge - 15) // 30) - margin for edge in (left, bottom))
    last, high = (int((edge - 15) // 30) + 1 + margin for edge in (right, top))
    to_map = Affine.translation(30 * first + 15, 30 * high + 15) @ Affine.scale(30, -30)
    grid = Grid(width=last - first, height=high - low, transform=to_map, crs=rasterio.CRS.from_string(ALBERS))
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    to_utm = Transformer.from_crs(ALBERS, scene.grid.crs.to_wkt(), always_xy=True)
    column, row = (
        np.floor(v).astype(int) for v in ~scene.grid.transform @ to_utm.transform(*(to_map @ (columns, rows)))
    )
    inside = (row >= 0) & (column >= 0) & (row < scene.grid.height) & (column < scene.grid.width)
    codes = np.zeros(grid.shape, dtype=np.uint8)
    codes[inside] = scene.nlcd[row[inside], column[inside]]
    return codes, grid


def in_degrees(shapes: list[BaseGeometry], crs: str) -> list[BaseGeometry]:
    """Return the parts of geometries in longitude and latitude."""
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    parts = shapely.get_parts(shapes)
    return list(shapely.transform(parts, lambda xy: np.column_stack(to_degrees(*xy.T))))


def osm_elements(vectors: Mapping[str, list[BaseGeometry]], crs: str) -> list[dict[str, Any]]:
    """Return layers of geometries as nodes and ways, and areas with holes as multipolygon relations."""
    ids = count(1)
    nodes: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = []
    relations: list[dict[str, Any]] = []

    def add_way(line: BaseGeometry, tags: dict[str, str]) -> int:
        places = line.coords[:-1] if line.is_ring else line.coords
        new = [{"type": "node", "id": next(ids), "lat": round(lat, 7), "lon": round(lon, 7)} for lon, lat in places]
        refs = [node["id"] for node in new]
        nodes.extend(new)
        ways.append({"type": "way", "id": next(ids), "nodes": refs + refs[: line.is_ring], "tags": tags})
        return int(ways[-1]["id"])

    for name, shapes in vectors.items():
        for shape in in_degrees(shapes, crs):
            if shape.geom_type == "LineString":
                add_way(shape, TAGS[name])
            elif shape.geom_type == "Polygon" and not shape.interiors:
                add_way(shape.exterior, TAGS[name])
            elif shape.geom_type == "Polygon":
                members = [{"type": "way", "ref": add_way(shape.exterior, {}), "role": "outer"}]
                members += [{"type": "way", "ref": add_way(hole, {}), "role": "inner"} for hole in shape.interiors]
                tags = {"type": "multipolygon", **TAGS[name]}
                relations.append({"type": "relation", "id": next(ids), "members": members, "tags": tags})
    return [*nodes, *ways, *relations]


def write_pbf(path: Path, elements: list[dict[str, Any]]) -> Path:
    """Write elements as .osm.pbf; skips the test without pyosmium."""
    osmium = pytest.importorskip("osmium", reason="pyosmium is not installed; pip install osmium")
    mutable = pytest.importorskip("osmium.osm.mutable")
    with osmium.SimpleWriter(str(path), overwrite=True) as writer:
        for element in elements:
            known = {"id": element["id"], "tags": element.get("tags", {}), "version": 1, "visible": True}
            if element["type"] == "node":
                writer.add_node(mutable.Node(location=(element["lon"], element["lat"]), **known))
            elif element["type"] == "way":
                writer.add_way(mutable.Way(nodes=element["nodes"], **known))
            else:
                members = [(member["type"][0], member["ref"], member["role"]) for member in element["members"]]
                writer.add_relation(mutable.Relation(members=members, **known))
    return path
