"""Time and memory of ``landprior polygons`` and ``sieve``: ``python -m benchmarks.polygons``.

A synthetic map of irregular patches of five classes, most of them smaller than 100 pixels, some without data. Each run
is a process of its own, from file to file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pyogrio
from affine import Affine
from rasterio.crs import CRS
from scipy.ndimage import gaussian_filter

from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA, load_scheme
from landprior.raster.windows import iter_blocks

RUN = """
import json, sys, time
start = time.perf_counter()
from landprior.cli import main
main(["-q", *sys.argv[1:]], standalone_mode=False)
took = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": took, "peak": peak / 1024}))
"""
PATTERN = 2000
"""Side of the pattern that is repeated, in pixels."""


def write_map(path: Path, side: int, sigma: float) -> Path:
    """Write a map of patches: of five fields of smoothed noise the largest."""
    scheme = load_scheme("enviroatlas-5")
    rng = np.random.default_rng(0)
    best = np.full((PATTERN, PATTERN), -np.inf, dtype=np.float32)
    codes = np.zeros(best.shape, dtype=np.uint8)
    for code in (*scheme.codes, MAP_NODATA):
        noise = rng.standard_normal(best.shape, dtype=np.float32)
        field = gaussian_filter(noise, sigma, mode="wrap") * (0.6 if code == MAP_NODATA else 1)
        codes[field > best], best = code, np.maximum(field, best)
    grid = Grid(width=side, height=side, transform=Affine(1, 0, 6e5, 0, -1, 4.5e6), crs=CRS.from_epsg(26917))
    with CogWriter(path, grid, nodata=MAP_NODATA, overviews="mode", scheme=scheme, tags={"kind": "map"}) as writer:
        for block in iter_blocks(grid):
            rows = (np.arange(block.core.height) + block.core.row_off) % PATTERN
            columns = (np.arange(block.core.width) + block.core.col_off) % PATTERN
            writer.write(codes[np.ix_(rows.astype(int), columns.astype(int))], block.core)
    return path


def measure(*arguments: object) -> tuple[float, float]:
    """Run a command and return its seconds and its peak of memory in MiB."""
    call = [sys.executable, "-c", RUN, *map(str, arguments)]
    found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found["seconds"], found["peak"]


@click.command()
@click.option("--side", default=10_000, show_default=True, help="Side of the map in pixels.")
@click.option("--sigma", default=4.0, show_default=True, help="Size of the patches: width of the blur in pixels.")
@click.option("--simplify", is_flag=True, help="Also simplify, which holds all polygons in memory.")
def main(side: int, sigma: float, *, simplify: bool) -> None:
    """Time polygons and sieve."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = write_map(folder / "map.tif", side, sigma)
        clean, polygons = folder / "clean.tif", folder / "map.gpkg"
        runs: list[tuple[object, ...]] = [("polygons", "polygons", source, "-o", polygons)]
        runs += [("sieve --minimum-area 100", "sieve", source, "--minimum-area", 100, "-o", clean)]
        runs += [("polygons of the result", "polygons", clean, "-o", folder / "clean.gpkg")]
        if simplify:
            runs += [("the same, --simplify 2", "polygons", clean, "--simplify", 2, "-o", folder / "simple.gpkg")]
        click.echo(f"{side} x {side} px")
        for name, *arguments in runs:
            seconds, peak = measure(*arguments)
            text = f"{name:<26} {seconds:6.0f} s, peak {peak:6.0f} MiB"
            output = Path(str(arguments[-1]))
            if output.suffix == ".gpkg":
                count = pyogrio.read_info(output, layer=output.stem)["features"]
                text += f", {count:8,} polygons, {output.stat().st_size / 2**20:6.0f} MiB"
            click.echo(text)


if __name__ == "__main__":
    main()
