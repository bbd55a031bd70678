"""Engines for prediction: OpenVINO against torch on the same cores, ``python -m benchmarks.engines``.

A network of the default width is trained on a real tile. Its forward pass over windows of 522 x 522 px of the tile
(as ``predict`` cuts them, edges wrapped) is timed alternately: as torch computes it, fp32 and channels last; with our
torch engine, strip by strip; with OpenVINO. The maps that ``predict`` makes with each are compared pixel by pixel.
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
import numpy as np
import torch

from benchmarks.accuracy.sets import prepare
from landprior.errors import CollapseWarning, HarmWarning
from landprior.landcover.mapping.engines import Engine, OpenVinoEngine, TorchEngine
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.ensemble import train_best
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.raster.reading import open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from landprior.landcover.training.model import LandcoverModel


class PlainEngine(TorchEngine):
    """The baseline: torch's own forward pass of the whole window."""

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)


SETS = ("ohio", "durham", "chesapeake-wv")
SIDE = 522


def cut_windows(image: Path, model: LandcoverModel, count: int) -> list[torch.Tensor]:
    """Return standardised windows of the image, wrapped where it is smaller."""
    with ImageLayer(image) as layer:
        values, valid = layer.read()
    rows, columns = valid.shape
    found = []
    for number in range(count):
        at = np.ix_((np.arange(SIDE) + 97 * number) % rows, (np.arange(SIDE) + 61 * number) % columns)
        part = torch.from_numpy(np.ascontiguousarray(values[:, at[0], at[1]]))
        found.append(model.statistics.standardise(part, torch.from_numpy(valid[at]))[None])
    return found


def time_engines(engines: dict[str, Engine], windows: list[torch.Tensor], rounds: int) -> dict[str, float]:
    """Return the median seconds of a window for each engine, timed alternately."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    with torch.inference_mode():
        for engine in engines.values():
            engine.start(windows[0])()
        for number in range(rounds):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.start(windows[number % len(windows)])()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in seconds.items()}


@click.command()
@click.option("--sets", default=",".join(SETS), show_default=True, help="Comma-separated.")
@click.option("--filters", default=32, show_default=True, help="Width of the network.")
@click.option("--rounds", default=15, show_default=True, help="Timed runs of each engine.")
def main(sets: str, filters: int, rounds: int) -> None:
    """Compare the engines."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", HarmWarning)
    warnings.simplefilter("ignore", CollapseWarning)
    click.echo(
        f"{filters} filters, {torch.get_num_threads()} threads; speed as a multiple of torch fp32, channels last"
    )
    click.echo("set              torch, ms strips   fp32   bf16   int8   equal q: bf16     int8   equal r: int8")
    with tempfile.TemporaryDirectory() as work:
        folder, seen = Path(work), set()
        for case in prepare(folder, sets.split(",")):
            if case.name in seen:
                continue
            seen.add(case.name)
            image, prior, _ = case.tiles[0]
            model = train_best([read_tile(image, prior, scheme=case.scheme)], make_settings(filters=filters))
            windows = cut_windows(image, model, 6)
            samples = [window[:, :, :128, :128].contiguous().numpy() for window in windows]
            cpu = torch.device("cpu")
            engines: dict[str, Engine] = {
                "torch": PlainEngine(model.network, cpu, "fp32"),
                "strips": TorchEngine(model.network, cpu, "fp32"),
            }
            engines |= {kind: OpenVinoEngine(model.network, samples, kind) for kind in ("fp32", "bf16", "int8")}
            seconds = time_engines(engines, windows, rounds)
            equal = {}
            for which, posterior in (("q", None), ("r", prior)):
                maps = {}
                for kind in ("torch", "bf16", "int8"):
                    options = {"engine": "torch"} if kind == "torch" else {"engine": "openvino", "precision": kind}
                    target = folder / "map.tif"
                    predict(image, target, model, posterior=posterior, force=True, run=Run(overwrite=True), **options)
                    with open_raster(target) as src:
                        maps[kind] = src.read(1)
                equal |= {f"{which} {kind}": (maps[kind] == maps["torch"]).mean() for kind in ("bf16", "int8")}
            ratios = [f"{seconds['torch'] / seconds[kind]:6.2f}" for kind in ("strips", "fp32", "bf16", "int8")]
            click.echo(
                f"{case.name:<16} {1000 * seconds['torch']:>9.1f} {' '.join(ratios)}   "
                f"{equal['q bf16']:>13.4%} {equal['q int8']:>8.4%}   {equal['r int8']:>13.4%}"
            )


if __name__ == "__main__":
    main()
