"""How much of a device's matrix rate training and prediction reach: ``python -m benchmarks.gpu``.

The matrix rate is that of one large product in bf16 on the same device in the same run (fp32 on a CPU, where the
code can be tried with ``--width 600 --height 500``). Operations counted are those of the network's convolutions; a
training step counts three times its forward pass.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path

import click
import torch

from benchmarks.feed import make_tile
from benchmarks.whole_path import enlarge, time_network
from landprior.implicit.devices import choose_device, count_operations
from landprior.implicit.networks import build_fcn
from landprior.implicit.settings import TrainingSettings
from landprior.implicit.training import fit
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.memory import choose_window
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import measure_bands, read_tile
from landprior.landcover.training.trainer import train_model
from landprior.raster.windows import iter_blocks
from landprior.run import Run

ROUNDS = 3


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_matrix_rate(device: torch.device, side: int) -> float:
    """Return the median operations a second of products of square matrices."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    first, second = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    rates = []
    for _ in range(3 * ROUNDS):
        start = time.perf_counter()
        for _ in range(10):
            first @ second
        wait_for(device)
        rates.append(10 * 2 * side**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def measure_training(image: Path, prior: Path, *, filters: int, patch: int, batch: int, steps: int) -> float:
    """Return operations a second of training steps with their feed; preparation and compiling are not timed."""
    device = choose_device()
    tile = read_tile(image, prior).to(device)
    feed = PatchFeed([tile], measure_bands([tile]), patch_size=patch, batch_size=batch)
    inputs = feed(0).inputs
    torch.manual_seed(0)
    network = build_fcn(inputs.shape[1], len(tile.scheme), filters=filters)
    operations = 3 * count_operations(network, inputs.cpu()[:1]) * batch
    network = network.to(memory_format=torch.channels_last)
    begun: list[float] = []

    def watch(_: object) -> dict[str, float]:
        wait_for(device)
        begun.append(time.perf_counter())
        return {}

    wanted = "on" if device.type == "cuda" else "off"
    options = {"epoch_steps": steps, "warmup": "none", "warmup_steps": 0, "compile": wanted}
    fit(network, feed, TrainingSettings(steps=(1 + ROUNDS) * steps, **options), monitor=watch)
    times = [after - before for before, after in pairwise(begun)]
    return operations * steps / statistics.median(times)


@click.command()
@click.option("--filters", default=128, show_default=True, help="Width of the network.")
@click.option("--width", default=7000, show_default=True, help="Width of the tile in pixels.")
@click.option("--height", default=6000, show_default=True)
@click.option("--patch", default=128, show_default=True, help="Side of the training patches, pixels.")
@click.option("--batch", default=128, show_default=True, help="Patches per step.")
@click.option("--steps", default=50, show_default=True, help="Timed steps.")
@click.option("--matrix", default=8192, show_default=True, help="Side of the matrices.")
def main(filters: int, width: int, height: int, patch: int, batch: int, steps: int, matrix: int) -> None:
    """Measure the device."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rate = measure_matrix_rate(device, matrix)
    click.echo(f"{name}: products of {matrix} x {matrix}: {rate / 1e12:.3g} TFLOP/s; {filters} filters")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        small, prior = make_tile(folder, 1000)
        found = measure_training(small, prior, filters=filters, patch=patch, batch=batch, steps=steps)
        click.echo(
            f"training, {batch} patches of {patch} px: {found / 1e12:.3g} TFLOP/s, {found / rate:.0%} (bar: 35 %)"
        )
        model = train_model([read_tile(small, prior)], make_settings(filters=filters, steps=4, warmup_steps=2))
        image = enlarge(small, folder / "image.tif", width, height)
        with ImageLayer(image) as pixels:
            mapper = Mapper(model, pixels, engine="torch")
            blocks = iter_blocks(pixels.grid, halo=mapper.halo, size=choose_window("auto"))
            inputs = [mapper.inputs(mapper.read_for_sums(block)[0]) for block in blocks]
        each = count_operations(model.network.cpu(), inputs[0].cpu()[:, :, :64, :64]) / 64**2
        total = each * sum(x.shape[2] * x.shape[3] for x in inputs)
        model.network.to(device)
        times = []
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            time_network(mapper, inputs)
            wait_for(device)
            times.append(time.perf_counter() - start)
        found = total / statistics.median(times[1:])
        click.echo(f"prediction, {mapper.engine.precision}: {found / 1e12:.3g} TFLOP/s, {found / rate:.0%} (bar: 50 %)")
        del mapper, inputs
        times = []
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            predict(image, folder / "map.tif", model, engine="torch", run=Run(overwrite=True))
            times.append(time.perf_counter() - start)
        click.echo(
            f"{width} x {height} px read, predicted and written: {statistics.median(times[1:]):.2f} s (bar: 3 s); "
            f"{times[0]:.2f} s the first time"
        )


if __name__ == "__main__":
    main()
