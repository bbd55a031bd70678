"""Time and memory of ``landprior zonal`` against exactextract's own: ``python -m benchmarks.zonal``.

A synthetic map of classes, and as many polygons as asked for that tile it: squares with shaken corners, about 32 pixels
wide on a map of 10,000 pixels with 100,000 polygons. Each run is a process of its own. Ours is the whole command, from
the files to a GeoPackage; exactextract's is its call alone (unique, frac and count, by features, into a data frame),
with map and polygons opened before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import geopandas
import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA, load_scheme

OURS = """
import json, sys, time
start, cpu = time.perf_counter(), time.process_time()
from landprior.cli import main
main(["-q", "zonal", sys.argv[1], sys.argv[2], "-o", sys.argv[3], "--overwrite"], standalone_mode=False)
"""
THEIRS = """
import json, sys, time
import geopandas, rasterio
from exactextract import exact_extract
frame = geopandas.read_file(sys.argv[2], engine="pyogrio")
start, cpu = time.perf_counter(), time.process_time()
with rasterio.open(sys.argv[1]) as src:
    found = exact_extract(src, frame, ["unique", "frac", "count"], include_cols=["number"], output="pandas")
"""
PEAK = """
took, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": took, "cpu": cpu, "peak": peak / 1024}))
"""


def write_map(path: Path, side: int) -> Path:
    """Write a map of patches of classes, some of them without data."""
    scheme = load_scheme("enviroatlas-5")
    grid = Grid(width=side, height=side, transform=Affine(1, 0, 6e5, 0, -1, 4.5e6), crs=CRS.from_epsg(26917))
    codes = np.append(scheme.codes, MAP_NODATA)
    with CogWriter(path, grid, nodata=MAP_NODATA, overviews="mode", scheme=scheme, tags={"kind": "map"}) as writer:
        for top in range(0, side, 512):
            height = min(512, side - top)
            rng = np.random.default_rng(top)
            cells = rng.choice(codes, (height // 8 + 1, side // 8 + 1), p=[0.1, 0.2, 0.1, 0.3, 0.29, 0.01])
            strip = np.kron(cells, np.ones((8, 8), dtype=np.uint8))[:height, :side]
            writer.write(strip.astype(np.uint8), Window(0, top, side, height))
    return path


def write_polygons(path: Path, side: int, count: int) -> Path:
    """Write squares with shaken corners that tile the map."""
    across = round(count**0.5)
    rng = np.random.default_rng(1)
    step = side / across
    corners = np.stack(np.meshgrid(np.arange(across + 1), np.arange(across + 1)), axis=-1) * step
    corners[1:-1, 1:-1] += rng.uniform(-0.2, 0.2, (across - 1, across - 1, 2)) * step
    corners = corners * (1, -1) + (6e5, 4.5e6)
    rings = np.stack(
        [corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1], corners[:-1, :-1]], axis=2
    )
    shapes = shapely.polygons(rings.reshape(-1, 5, 2))
    frame = geopandas.GeoDataFrame({"number": np.arange(len(shapes))}, geometry=shapes, crs=26917)
    frame.to_file(path, engine="pyogrio")
    return path


def measure(program: str, *paths: Path) -> dict[str, float]:
    """Run a program in a process of its own; return its seconds and its peak memory in MiB."""
    command = [sys.executable, "-c", program + PEAK, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--side", default=10_000, show_default=True, help="Width and height of the map in pixels.")
@click.option("--count", default=100_000, show_default=True, help="Number of polygons.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each, alternately; medians are printed.")
def main(side: int, count: int, rounds: int) -> None:
    """Compare the time of zonal with exactextract's own, and its memory with that on a quarter of the polygons."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raster = write_map(folder / "map.tif", side)
        polygons = write_polygons(folder / "polygons.gpkg", side, count)
        few = write_polygons(folder / "few.gpkg", side, count // 4)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(measure(OURS, raster, polygons, folder / "areas.gpkg"))
            theirs.append(measure(THEIRS, raster, polygons))
        quarter = measure(OURS, raster, few, folder / "few_areas.gpkg")
    first, second = (statistics.median(one["seconds"] for one in some) for some in (ours, theirs))
    work, other_work = (statistics.median(one["cpu"] for one in some) for some in (ours, theirs))
    peak, other = (statistics.median(one["peak"] for one in some) for some in (ours, theirs))
    print(f"{count:,} polygons, {side:,} x {side:,} px")
    print(f"landprior zonal: {first:.1f} s, exactextract alone: {second:.1f} s, ratio {first / second:.2f} (bar: 3)")
    print(f"in seconds of a core: {work:.1f} and {other_work:.1f}, ratio {work / other_work:.2f}")
    print(
        f"peak memory: {peak:.0f} MiB, exactextract {other:.0f} MiB; with a quarter of the polygons "
        f"{quarter['peak']:.0f} MiB, ratio {peak / quarter['peak']:.2f}"
    )


if __name__ == "__main__":
    main()
