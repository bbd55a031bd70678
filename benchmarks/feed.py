"""The training feed: ``python -m benchmarks.feed``.

A step of the training loop with patches cut by our feed against the same step on one fixed batch in memory; and the
feed alone against torchgeo's random sampler and DataLoader on the same tile file, in patches per second.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from landprior.implicit.devices import choose_device, make_fabric
from landprior.implicit.networks import build_fcn
from landprior.implicit.settings import TrainingSettings
from landprior.implicit.training import fit
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.tiles import measure_bands, read_tile
from landprior.raster.cog import write_raster
from landprior.raster.scheme import load_scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from landprior.implicit.objectives import Batch

PATCH, BATCH = 64, 16


def make_tile(folder: Path, side: int) -> tuple[Path, Path]:
    """Write an image and its prior."""
    scene = make_scene(side, seed=0)
    scheme = load_scheme("enviroatlas-5")
    image = write_raster(folder / "naip.tif", scene.image, scene.grid)
    nlcd = write_raster(folder / "nlcd.tif", scene.nlcd, scene.grid, overviews="nearest")
    prior = build_prior(nlcd, folder / "prior.tif", cooccurrence=load_cooccurrence(None, scheme))
    return image, prior


def time_steps(feed: Callable[[int], Batch], steps: int, filters: int) -> float:
    """Return seconds per step of a training of QR."""
    torch.manual_seed(0)
    settings = TrainingSettings(steps=steps, epoch_steps=steps, warmup="none", warmup_steps=0)
    network = build_fcn(4, 5, filters=filters).to(memory_format=torch.channels_last)
    fabric = make_fabric()
    start = time.perf_counter()
    fit(network, feed, settings, fabric=fabric)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def time_torchgeo(image: Path, seconds: float, *, with_prior: bool) -> float:
    """Return patches per second of torchgeo's sampler and DataLoader: of the image, or of image and prior."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler

    class Naip(RasterDataset):
        filename_glob = "naip.tif"

    class Prior(RasterDataset):
        filename_glob = "prior.tif"
        is_image = False
        dtype = torch.float32

    dataset = Naip(str(image.parent))
    if with_prior:
        dataset = dataset & Prior(str(image.parent))
    sampler = RandomGeoSampler(dataset, size=PATCH, length=100_000)
    loader = iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples))
    next(loader)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(loader)["image"])
    return count / (time.perf_counter() - start)


@click.command()
@click.option("--side", default=2000, show_default=True, help="Side of the tile in pixels.")
@click.option("--filters", default=32, show_default=True, help="Width of the network.")
@click.option("--steps", default=40, show_default=True, help="Steps of each timed run.")
@click.option("--rounds", default=7, show_default=True, help="Timed runs of each, alternating.")
def main(side: int, filters: int, steps: int, rounds: int) -> None:
    """Time the feed."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        image, prior = make_tile(Path(work), side)
        tile = read_tile(image, prior).to(choose_device())
        feed = PatchFeed([tile], measure_bands([tile]), patch_size=PATCH, batch_size=BATCH)
        fixed = feed(0)
        times: dict[str, list[float]] = {"feed": [], "fixed": []}
        for _ in range(rounds):
            times["feed"].append(time_steps(feed, steps, filters))
            times["fixed"].append(time_steps(lambda _: fixed, steps, filters))
        ratios = [one / other for one, other in zip(times["feed"], times["fixed"], strict=True)]
        medians = {name: statistics.median(some) for name, some in times.items()}
        click.echo(
            f"step of {BATCH} patches of {PATCH} px, {filters} filters: {1000 * medians['feed']:.1f} ms with the feed, "
            f"{1000 * medians['fixed']:.1f} ms on a fixed batch: {medians['feed'] / medians['fixed']:.3f} times, "
            f"median of pairs {statistics.median(ratios):.3f} (bar: 1.05)"
        )
        rates: dict[str, list[float]] = {"ours": [], "image": [], "image and prior": []}
        for number in range(3):
            start = time.perf_counter()
            for step in range(200):
                feed(1000 * number + step)
            rates["ours"].append(200 * BATCH / (time.perf_counter() - start))
            rates["image"].append(time_torchgeo(image, 5, with_prior=False))
            rates["image and prior"].append(time_torchgeo(image, 5, with_prior=True))
        ours, *theirs = (statistics.median(some) for some in rates.values())
        click.echo(
            f"feed alone, image and prior, standardised, with logarithms: {ours:,.0f} patches a second (bar: 50 times)"
        )
        for name, rate in zip(("image", "image and prior"), theirs, strict=True):
            click.echo(f"torchgeo's sampler and DataLoader, {name}: {rate:,.0f}, ours {ours / rate:.0f} times")


if __name__ == "__main__":
    main()
