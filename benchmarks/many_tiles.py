"""Overhead of a plan, and speed-up from a second worker: ``python -m benchmarks.many_tiles``.

Overhead: a thousand tiles without any work are planned, run, and run again (all done). Speed: a dozen tiles of a
synthetic scene, the whole chain, on Ray with one worker and with two, one torch thread each, alternately.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from landprior.batch.cluster import run_on_ray
from landprior.batch.plans import plan_workspace, read_plan, write_plan
from landprior.batch.states import find_tile
from landprior.batch.tile_runner import run_plan
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.settings import make_settings
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.item import TileFolder
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme

if TYPE_CHECKING:
    from landprior.batch.plans import BatchPlan

TILES, SIDE = 1000, 16


def write_nothing(tile: TileFolder) -> dict[str, Any]:
    """Write only what marks a tile as done."""
    tile.file("prediction").touch()
    (tile.path / "item.json").touch()
    return {}


def make_plan(root: Path, count: int, side: int, training: dict[str, Any]) -> BatchPlan:
    """Write tiles of one scene to a workspace and plan them."""
    scene = make_scene(max(side, 128), seed=0)
    part = (slice(None), slice(0, side), slice(0, side))
    grid = Grid(width=side, height=side, transform=scene.grid.transform, crs=scene.grid.crs)
    arrays = {"naip": scene.image, "nlcd": scene.nlcd[None]} | {k: v[None] for k, v in scene.layers.items()}
    first = TileFolder(path=root / "town" / "0000", city="town")
    for name, values in arrays.items():
        first.path.mkdir(parents=True, exist_ok=True)
        write_raster(first.file(name), np.asarray(values)[part], grid, overviews="nearest")
    for number in range(1, count):
        other = TileFolder(path=root / "town" / f"{number:04d}", city="town")
        other.path.mkdir()
        for name in ("naip", "nlcd", *LAYERS):
            if first.file(name).is_file():
                other.file(name).hardlink_to(first.file(name))
    settings = PipelineSettings.for_city(
        "town", scheme=load_scheme("enviroatlas-5"), training=make_settings(**training)
    )
    return plan_workspace(Workspace(root), "town", settings)


def measure_overhead(folder: Path) -> None:
    """Print milliseconds a tile of planning, running and running again."""
    start = time.perf_counter()
    planned = make_plan(folder / "many", TILES, SIDE, {})
    made = time.perf_counter() - start
    start = time.perf_counter()
    plan_workspace(Workspace(folder / "many"), "town", PipelineSettings.for_city("town", scheme=planned.recipe.scheme))
    plan = read_plan(write_plan(planned, folder / "plan.json"))
    planning = time.perf_counter() - start
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run_plan(plan, work=write_nothing)
        seconds.append(time.perf_counter() - start)
    figures = [1000 * value / TILES for value in (planning, *seconds)]
    click.echo(f"{TILES} tiles of {SIDE} px (made in {made:.0f} s): milliseconds a tile")
    click.echo(f"planning {figures[0]:.1f}, running {figures[1]:.1f}, running again {figures[2]:.1f}")
    click.echo(f"together {sum(figures[:2]):.1f} (bar: less than 50)")


def measure_workers(folder: Path, count: int, rounds: int) -> None:
    """Print how much faster two workers of Ray are than one."""
    import ray

    plan = make_plan(folder / "few", count, 256, {"filters": 16, "steps": 200})
    made = ("prior.tif", "model.safetensors", "prediction.tif", "item.json", "run.json")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, times in seconds.items():
            for tile in plan.tiles:
                for name in made:
                    (find_tile(plan, tile.name).path / name).unlink(missing_ok=True)
            # the cluster is up and its workers have imported the libraries: a start happens once for many tiles
            ray.init(num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
            warm = [ray.remote(_import).remote() for _ in range(4 * workers)]
            ray.get(warm)
            start = time.perf_counter()
            states = run_on_ray(plan)
            times.append(time.perf_counter() - start)
            ray.shutdown()
            assert {state.state for state in states} == {"done"}, states
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    click.echo(f"{count} tiles of 256 px, whole chain, one torch thread a worker, medians of {rounds}:")
    click.echo(
        f"1 worker {medians[1]:.1f} s, 2 workers {medians[2]:.1f} s: {medians[1] / medians[2]:.2f} times (bar: 1.8)"
    )


def _import() -> None:
    import landprior.landcover.mapping.predict
    import landprior.landcover.training.trainer  # noqa: F401

    time.sleep(1)


@click.command()
@click.option("--tiles", default=12, show_default=True, help="Tiles for the comparison of workers.")
@click.option("--rounds", default=3, show_default=True, help="Timed runs of each.")
def main(tiles: int, rounds: int) -> None:
    """Measure the overhead and the speed-up from workers."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        measure_overhead(Path(work))
        measure_workers(Path(work), tiles, rounds)


if __name__ == "__main__":
    main()
