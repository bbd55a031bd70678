"""Speed of the computations of fetch, as ratios to rasterio: ``python -m benchmarks.fetch_speed``.

Burning 50,000 features into a tile of 7,000 x 6,000 px against ``rasterio.features.rasterize`` of the same
geometries, and warping 0.6 m imagery to the tile's grid against ``rio warp``. Both sides run in turn, each in
a separate process where ``rio`` is compared; medians are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window

from landprior.raster.grid import Grid
from landprior.sources.burning import burn
from landprior.sources.osm import burn_layer

if TYPE_CHECKING:
    from collections.abc import Callable

HEIGHT, WIDTH, FEATURES = 6_000, 7_000, 50_000
CODE = """
import sys
from pathlib import Path
from landprior.raster.grid import Grid
from landprior.sources.http.cache import Cache
from landprior.sources.naip.search import list_images
from landprior.sources.naip.warp import write_image
from landprior.sources.http.client import Network
from affine import Affine
from rasterio.crs import CRS
width, height, left, top = map(int, sys.argv[3:])
grid = Grid(width=width, height=height, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(26917))
(image,) = list_images(sys.argv[1])
write_image(image, grid, Path(sys.argv[2]), Network(Cache(Path(sys.argv[2]).parent / "cache")))
"""


def make_features(grid: Grid, rng: np.random.Generator) -> dict[str, geopandas.GeoDataFrame]:
    """Make as many winding roads, waterways, ponds and houses as a dense city has."""
    left, bottom, right, top = grid.bounds

    def lines(count: int, length: float) -> list[shapely.LineString]:
        start = rng.uniform((left, bottom), (right, top), (count, 1, 2))
        steps = rng.normal(0, length / 6, (count, 6, 2)).cumsum(axis=1)
        return list(shapely.linestrings(start + steps))

    def boxes(count: int, side: float) -> list[shapely.Polygon]:
        x, y = rng.uniform((left, bottom), (right, top), (count, 2)).T
        w, h = rng.uniform(side / 2, side, (2, count))
        return [
            shapely.affinity.rotate(b, a)
            for b, a in zip(shapely.box(x, y, x + w, y + h), rng.uniform(0, 90, count), strict=True)
        ]

    crs = grid.crs.to_wkt()
    return {
        "roads": geopandas.GeoDataFrame({"highway": ["residential"] * 18_000}, geometry=lines(18_000, 120.0), crs=crs),
        "waterways": geopandas.GeoDataFrame(geometry=lines(1_500, 300.0), crs=crs),
        "waterbodies": geopandas.GeoDataFrame(geometry=boxes(500, 80.0), crs=crs),
        "buildings": geopandas.GeoDataFrame(geometry=boxes(FEATURES - 20_000, 16.0), crs=crs),
    }


def in_turn(runs: int, *sides: Callable[[], object]) -> list[float]:
    """Run all sides in turn and return the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for kept, side in zip(seconds, sides, strict=True):
            began = time.perf_counter()
            side()
            kept.append(time.perf_counter() - began)
    return [statistics.median(kept) for kept in seconds]


def measure_burning(runs: int) -> None:
    """Print the ratio of burning all layers."""
    grid = Grid(width=WIDTH, height=HEIGHT, transform=Affine(1, 0, 580_000, 0, -1, 4_480_000), crs=CRS.from_epsg(26917))
    features = make_features(grid, np.random.default_rng(0))

    def ours() -> None:
        for name, frame in features.items():
            if name == "buildings":
                burn(frame.geometry, grid)
            else:
                burn_layer(name, frame, grid)

    def theirs() -> None:
        for name, frame in features.items():
            rasterize(
                list(frame.geometry),
                grid.shape,
                transform=grid.transform,
                all_touched=name == "waterways",
                dtype="uint8",
            )

    mine, rasterio_s = in_turn(runs, ours, theirs)
    count = sum(map(len, features.values()))
    print(f"burning {count} features into {WIDTH} x {HEIGHT} px: {mine:.2f} s, rasterize alone {rasterio_s:.2f} s")
    print(f"  ratio {mine / rasterio_s:.2f} (at most 2)")


def measure_warping(runs: int, side: int) -> None:
    """Print the ratio of warping imagery; both sides start Python and write compressed tiles."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_image(folder / "m_3807901_ne_17_060_20180601.tif", side)
        out = int(side * 0.6)
        left, top = 580_000, 4_480_000
        box = (left, top - out, left + out, top)
        rio = ["rio", "warp", str(source), str(folder / "rio.tif"), "--dst-crs", "EPSG:26917", "--res", "1"]
        rio += [
            "--bounds",
            *map(str, box),
            "--resampling",
            "average",
            "--overwrite",
            "--src-nodata",
            "0",
            "--dst-nodata",
            "0",
        ]
        plain = ["--co", "tiled=true", "--co", "blockxsize=512", "--co", "blockysize=512", "--co", "compress=deflate"]
        plain += ["--co", "predictor=2"]
        cog = [
            "rio",
            "cogeo",
            "create",
            str(folder / "rio.tif"),
            str(folder / "rio-cog.tif"),
            "--overview-resampling",
            "average",
            "-q",
        ]

        def ours() -> None:
            (folder / "ours.tif").unlink(missing_ok=True)
            args = [sys.executable, "-c", CODE, str(source), str(folder / "ours.tif"), *map(str, (out, out, left, top))]
            subprocess.run(args, check=True)

        def warp() -> None:
            subprocess.run(rio + plain, check=True)

        def warp_to_cog() -> None:
            subprocess.run(rio + plain, check=True)
            subprocess.run(cog, check=True)

        mine, alone, with_cog = in_turn(runs, ours, warp, warp_to_cog)
        print(f"warping {side} x {side} px of 0.6 m onto a tile: {mine:.1f} s")
        print(f"  rio warp {alone:.1f} s, rio warp and rio cogeo {with_cog:.1f} s (ours is a COG as well)")
        print(f"  speed {alone / mine:.2f} of rio warp, {with_cog / mine:.2f} of rio warp and rio cogeo (at least 0.9)")


def make_image(path: Path, side: int) -> Path:
    """Write noise with some structure, 4 bands, 0.6 m."""
    rng = np.random.default_rng(1)
    tile = rng.integers(40, 200, (4, 256, 256), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 4, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "MINISBLACK"}
    with rasterio.open(
        path, "w", crs="EPSG:26917", transform=Affine(0.6, 0, 580_000, 0, -0.6, 4_480_000), **profile
    ) as dst:
        for row in range(0, side, 512):
            for col in range(0, side, 512):
                h, w = min(512, side - row), min(512, side - col)
                dst.write(np.tile(np.roll(tile, row + col, 2), (1, 2, 2))[:, :h, :w], window=Window(col, row, w, h))
    return path


@click.command()
@click.option("--runs", default=3, show_default=True, help="Runs of each side.")
@click.option("--side", default=8_000, show_default=True, help="Side of the image to warp in pixels.")
def main(runs: int, side: int) -> None:
    """Measure both."""
    measure_burning(runs)
    measure_warping(runs, side)


if __name__ == "__main__":
    main()
