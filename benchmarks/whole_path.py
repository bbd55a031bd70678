"""``predict`` from file to file against the network alone: ``python -m benchmarks.whole_path``.

A synthetic tile is mapped (read, network, COG with overviews) and, alternately, the same engine is run over the same
windows, already in memory. For r, too, the network alone is run once over the tile, as the first pass is kept.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from benchmarks.feed import make_tile
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.landcover.training.trainer import train_model
from landprior.raster.cog import CogWriter
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.windows import AHEAD, iter_blocks
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable


def enlarge(source: Path, target: Path, width: int, height: int) -> Path:
    """Write a raster that repeats another one up to a size, block by block."""
    with open_raster(source) as src:
        values, nodata = src.read(), src.nodata
        small = Grid.of(src)
        tags = src.tags(ns="LANDPRIOR")
    grid = Grid(width=width, height=height, transform=small.transform, crs=small.crs)
    options = {"count": len(values), "dtype": values.dtype.name, "nodata": nodata, "tags": tags}
    with CogWriter(target, grid, **options) as writer:
        for block in iter_blocks(grid):
            rows = np.arange(block.core.row_off, block.core.row_off + block.core.height).astype(int) % small.height
            columns = np.arange(block.core.col_off, block.core.col_off + block.core.width).astype(int) % small.width
            writer.write(values[:, rows[:, None], columns], block.core)
    return target


def time_network(mapper: Mapper, inputs: list[torch.Tensor]) -> float:
    """Return the seconds of the engine over all windows."""
    start = time.perf_counter()
    waiting: deque[Callable[[], torch.Tensor]] = deque()
    with torch.inference_mode():
        for x in inputs:
            waiting.append(mapper.engine.start(x))
            if len(waiting) > AHEAD:
                waiting.popleft()()
        for wait in waiting:
            wait()
    return time.perf_counter() - start


@click.command()
@click.option("--side", default=5000, show_default=True, help="Side of the tile in pixels.")
@click.option("--filters", default=32, show_default=True, help="Width of the network.")
@click.option("--rounds", default=3, show_default=True, help="Pairs: the network, predict, the network again.")
@click.option("--engines", default="torch:fp32,openvino:int8", show_default=True, help="engine:precision, ...")
def main(side: int, filters: int, rounds: int, engines: str) -> None:
    """Time prediction."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        small_image, small_prior = make_tile(folder, 1000)
        settings = make_settings(filters=filters, steps=100)
        model = train_model([read_tile(small_image, small_prior)], settings)
        image = enlarge(small_image, folder / "image.tif", side, side)
        prior = enlarge(small_prior, folder / "prior_large.tif", side, side)
        click.echo(f"{side} x {side} px, {filters} filters, {torch.get_num_threads()} threads; medians of {rounds}")
        for text in engines.split(","):
            name, precision = text.split(":")
            options = {"engine": name, "precision": precision, "run": Run(overwrite=True)}
            with ImageLayer(image) as pixels:
                mapper = Mapper(model, pixels, engine=name, precision=precision)
                inputs = [mapper.inputs(mapper.read_for_sums(b)[0]) for b in iter_blocks(pixels.grid, halo=mapper.halo)]
            kinds: dict[str, dict[str, Any]] = {"q": {}, "r": {"posterior": prior, "force": True}}
            bare: list[float] = []
            for kind, more in kinds.items():
                seconds, ratios = [], []
                for _ in range(rounds):
                    before = time_network(mapper, inputs)
                    start = time.perf_counter()
                    predict(image, folder / "map.tif", model, **options, **more)
                    seconds.append(time.perf_counter() - start)
                    around = (before + time_network(mapper, inputs)) / 2  # the machine's speed varies
                    ratios.append(seconds[-1] / around)
                    bare.append(around)
                click.echo(
                    f"{name} {precision}: network {statistics.median(bare):.1f} s, {kind} "
                    f"{statistics.median(seconds):.1f} s: {statistics.median(ratios):.2f} times, "
                    f"median of {rounds} pairs, {min(ratios):.2f} to {max(ratios):.2f}"
                )
            del inputs, mapper


if __name__ == "__main__":
    main()
