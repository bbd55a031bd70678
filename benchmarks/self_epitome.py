"""Self-epitomic super-resolution, speed and accuracy: ``python -m benchmarks.self_epitome``.

1. The posteriors p(s|x) and counts n(s, c) of the paper, and class probabilities from them, ours against the direct
   formulation: a dense 2-D convolution of every sampled patch with the whole tile, a softmax over all positions, and a
   dense convolution of each posterior with the patch's codes. Alternating runs on one core, CPU seconds. The direct
   posteriors are full of subnormal numbers, with which CPUs are slow, so it is timed twice: unchanged, and with such
   numbers flushed to zero, which the method does not require but is the fastest variant we found. The exit status is 1
   if ours takes more than a fifth of either, or a probability differs by more than 1e-4 from the direct one in double
   precision.
2. CPU seconds of the whole of ``resolve_tile``, with its passes and its smoothing, for several tile sizes.
3. Accuracy and mean IoU on epitome-demo, on which nothing was chosen, compared with QR.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.accuracy.__main__ import run_case
from benchmarks.accuracy.cases import data_folder
from benchmarks.accuracy.sets import prepare
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.training.layers import ImageLayer
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run
from landprior.superres.embedding import resolve_labels
from landprior.superres.posteriors import Dense, Posteriors
from landprior.superres.self_epitome import (
    Spreader,
    draw_corners,
    find_usable,
    map_by_self_epitome,
    resolve_tile,
    scale_image,
)
from landprior.superres.settings import SelfEpitomeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

BAR, TOLERANCE = 5.0, 1e-4
ACCURACY, MEAN_IOU = 0.80, 0.55
PATCHES = 128
"""Patches of a convolution of the direct formulation: more do not make it faster, and take memory."""


class Task:
    """One tile with codes, and both ways of counting."""

    def __init__(self, name: str, image: np.ndarray, codes: np.ndarray, settings: SelfEpitomeSettings) -> None:
        self.name, self.settings = name, settings
        valid = np.ones(image.shape[1:], dtype=bool)
        self.image = torch.from_numpy(scale_image(image, valid))
        self.index = np.unique(codes, return_inverse=True)[1].reshape(codes.shape).astype(np.int64)
        self.codes = int(self.index.max()) + 1
        self.usable = find_usable(torch.from_numpy(valid), settings.patch)
        self.corners = draw_corners(self.usable, round(settings.samples * valid.size), settings.seed)
        # class shares of each code; their values do not matter for time or agreement
        self.matrix = np.random.default_rng(0).dirichlet(np.ones(4), size=self.codes)

    def labels(self, counts: np.ndarray) -> np.ndarray:
        """Return class probabilities from counts."""
        return resolve_labels(counts.reshape(-1, self.codes), self.matrix, iterations=self.settings.iterations).labels

    def ours(self) -> np.ndarray:
        """Return n(s, c), (H, W, codes), as the library computes it."""
        spreader = Spreader(self.image, self.usable, self.corners, self.index, self.settings)
        return spreader.count(self.codes).numpy()

    def posteriors(self) -> Posteriors:
        """Return our posteriors."""
        return Posteriors(
            self.image,
            self.usable,
            self.corners,
            patch=self.settings.patch,
            variance=self.settings.variance,
            own=self.settings.own_match,
        )

    def direct(self, dtype: torch.dtype = torch.float32) -> np.ndarray:
        """Return the same, computed by dense convolutions."""
        side = self.settings.patch
        height, width = self.image.shape[1:]
        one_hot = F.one_hot(torch.from_numpy(self.index), self.codes).permute(2, 0, 1).to(dtype)
        counts = self.settings.own_code * one_hot
        for posterior, rows, columns in self.dense(dtype):
            windows = torch.stack([one_hot[:, r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)])
            counts += F.conv_transpose2d(posterior.reshape(1, len(rows), height - side + 1, width - side + 1), windows)[
                0
            ]
        return counts.permute(1, 2, 0).numpy()

    def dense(self, dtype: torch.dtype = torch.float32):  # noqa: ANN201 - a generator of tensors and lists
        """Yield p(s|x), (n, S), of several patches at a time, and their places."""
        side, variance = self.settings.patch, self.settings.variance
        across = self.image.shape[2] - side + 1
        image = (self.image - self.image.mean(dim=(1, 2), keepdim=True)).to(dtype)
        squares = F.avg_pool2d(image.square().sum(0)[None], side, 1)[0] * side**2
        for some in torch.split(self.corners, PATCHES):
            rows, columns = (some // across).tolist(), (some % across).tolist()
            patches = torch.stack([image[:, r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)])
            exponent = (F.conv2d(image[None], patches)[0] - squares / 2) / variance
            exponent = exponent.flatten(1)
            own = self.settings.own_match
            at = torch.arange(len(some)), some
            if own is not None:
                exponent[at] = -torch.inf
            posterior = torch.softmax(exponent, dim=1)
            if own:
                posterior = posterior * (1 - own)
                posterior[at] = own
            yield posterior, rows, columns

    def largest_posterior_difference(self) -> float:
        """Return the largest difference of p(s|x) from double precision, over all patches and positions."""
        direct = torch.empty(len(self.corners), self.posteriors().positions)
        first = 0
        for posterior, rows, _ in self.dense(torch.float64):
            direct[first : first + len(rows)] = posterior
            first += len(rows)
        largest = 0.0
        for block in self.posteriors().blocks():
            wanted = direct[torch.from_numpy(block.rows)]
            if isinstance(block, Dense):
                found = torch.zeros_like(wanted)
                for rows, places, matrix in block.pieces:
                    found[rows[:, None], block.order[places]] = matrix
            else:
                found = torch.from_numpy(block.matrix.toarray())
            largest = max(largest, float((wanted - found).abs().max()))
        return largest


def clock(call: Callable[[], np.ndarray], *, flush: bool = False) -> tuple[float, np.ndarray]:
    """Return CPU seconds and result."""
    torch.set_flush_denormal(flush)
    start = time.process_time()
    found = call()
    seconds = time.process_time() - start
    torch.set_flush_denormal(False)
    return seconds, found


def read_tasks(*, published: bool) -> list[Task]:
    """Read the real tiles of the comparison; codes for those without NLCD are squares of 30 px."""
    settings = SelfEpitomeSettings.published(shrink=1) if published else SelfEpitomeSettings()
    folder = data_folder()
    with ImageLayer(folder / "epitome-demo" / "naip_rgb_214.tif") as layer:
        demo = layer.read()[0]
    with open_raster(folder / "epitome-demo" / "nlcd_214.tif") as src:
        nlcd = src.read(1)
    tasks = [Task("epitome-demo 214", demo, nlcd, settings)]
    with ImageLayer(folder / "naip-samples" / "naip_va_4band_1m.tif") as layer:
        virginia = layer.read()[0]
    tasks.append(Task("Virginia 256", virginia[:, :256, :256], squares(256), settings))
    ohio = sorted((folder / "naip-ohio-6class" / "img").glob("*"))
    for number in (0, 100):
        with ImageLayer(ohio[number]) as layer:
            tasks.append(Task(f"Ohio {ohio[number].stem} 256", layer.read()[0], squares(256), settings))
    return tasks


def squares(side: int, *, cell: int = 30, kinds: int = 8) -> np.ndarray:
    """Return codes in squares."""
    cells = np.random.default_rng(1).integers(0, kinds, (side // cell + 1,) * 2)
    return np.kron(cells, np.ones((cell, cell), dtype=np.int64))[:side, :side]


def compare(rounds: int, *, published: bool) -> bool:
    """Print times and differences of both ways; return whether the limits are met."""
    print(
        f"{'tile':<28} {'patches':>7} {'direct s':>9} {'flushed s':>9} {'ours s':>7} {'ratio':>6} {'flushed':>7} "
        f"{'p(s|x)':>8} {'p(l|s)':>8}"
    )
    good = True
    for task in read_tasks(published=published):
        times: dict[str, list[float]] = {"direct": [], "flushed": [], "ours": []}
        for _ in range(rounds):
            for kind, flush in (("direct", False), ("flushed", True)):
                times[kind].append(clock(task.direct, flush=flush)[0])
            seconds, ours = clock(task.ours)
            times["ours"].append(seconds)
        slow, flushed, fast = (statistics.median(some) for some in times.values())
        _, exact = clock(lambda task=task: task.direct(torch.float64), flush=True)
        label = float(np.abs(task.labels(exact) - task.labels(ours)).max())
        posterior = task.largest_posterior_difference()
        met = flushed / fast >= BAR and not label > TOLERANCE and not posterior > TOLERANCE
        good &= met
        print(
            f"{task.name:<28} {len(task.corners):>7} {slow:9.2f} {flushed:9.2f} {fast:7.2f} {slow / fast:6.1f} "
            f"{flushed / fast:7.1f} {posterior:8.1e} {label:8.1e}{'' if met else '  MISSED'}",
            flush=True,
        )
    return good


def cost_curve(sides: list[int], shrink: int) -> None:
    """Print CPU seconds of a whole tile for each size, with Virginia's image wrapped."""
    with ImageLayer(data_folder() / "naip-samples" / "naip_va_4band_1m.tif") as layer:
        virginia = layer.read()[0]
    table = np.random.default_rng(0).dirichlet(np.ones(4), size=8).astype(np.float32)
    settings = SelfEpitomeSettings(shrink=shrink)
    print(f"shrunk by {shrink}\n{'side px':>8} {'patches':>8} {'seconds':>8} {'us/px':>7}")
    for side in sides:
        rows, columns = (mirror(side, length) for length in virginia.shape[1:])
        image = virginia[:, rows][:, :, columns]
        seconds, _ = clock(
            lambda image=image, side=side: resolve_tile(
                image, np.ones((side, side), bool), squares(side), table, settings
            )
        )
        patches = round(settings.samples * (side / shrink) ** 2)
        print(f"{side:>8} {patches:>8} {seconds:8.1f} {seconds / side**2 * 1e6:7.1f}", flush=True)


def mirror(side: int, length: int) -> np.ndarray:
    """Return indices that run to and fro."""
    along = np.arange(side) % (2 * length)
    return np.where(along < length, along, 2 * length - 1 - along)


def accuracy(seeds: int, filters: int, qr_seeds: int) -> bool:
    """Print accuracy and mean IoU on epitome-demo; return whether the required values are met."""
    source = data_folder() / "epitome-demo"
    scheme = load_scheme("chesapeake-4")
    label_map = {0: 1, 1: 2, 2: 3, 3: 4}
    print(f"{'epitome-demo 214':<28} {'seed':>4} {'accuracy':>8} {'mean IoU':>8}  IoU {', '.join(scheme.names)}")
    kinds = {"self-epitome": SelfEpitomeSettings(), "as published": SelfEpitomeSettings.published(shrink=1)}
    met = True
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for kind, settings in kinds.items():
            found = []
            for seed in range(seeds):
                path = map_by_self_epitome(
                    source / "naip_rgb_214.tif",
                    source / "nlcd_214.tif",
                    folder / "map.tif",
                    scheme=scheme,
                    cooccurrence=load_cooccurrence(None, scheme),
                    settings=settings.model_copy(update={"seed": seed}),
                    run=Run(overwrite=True),
                )
                scores = evaluate([(path, source / "lc_214.tif")], scheme, label_map=label_map)
                found.append((scores.accuracy, scores.mean_iou))
                ious = " ".join(f"{value:.3f}" for value in scores.iou)
                print(f"{kind:<28} {seed:>4} {scores.accuracy:8.3f} {scores.mean_iou:8.3f}  {ious}", flush=True)
            means = np.mean(found, axis=0)
            print(f"{kind:<28} mean {means[0]:8.3f} {means[1]:8.3f}")
            if kind == "self-epitome":
                met = bool(means[0] >= ACCURACY and means[1] >= MEAN_IOU)
        case = next(iter(prepare(folder, ["epitome"])))
        for seed in range(qr_seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = run_case(case, "qr", seed, filters=filters, folder=folder)
            for key in ("prior", "q", "r") if seed == 0 else ("q", "r"):
                print(f"{'QR, ' + key:<28} {seed:>4} {row.accuracy[key]:8.3f} {row.mean_iou[key]:8.3f}", flush=True)
    return met


@click.command()
@click.option("--part", type=click.Choice(["all", "speed", "curve", "accuracy"]), default="all")
@click.option("--rounds", default=3, show_default=True, help="Alternating runs; medians are printed.")
@click.option("--shrink", default=2, show_default=True, help="Shrink factor of the cost curve; the paper has 2.")
@click.option("--published", is_flag=True, help="Speed with patches that match themselves, as in the paper.")
@click.option("--side", "sides", multiple=True, type=int, default=[128, 256, 512, 1024], show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--qr-seeds", default=3, show_default=True, help="Training runs of QR for comparison; 0 for none.")
@click.option("--filters", default=16, show_default=True, help="Width of QR's network.")
def main(
    *,
    part: str,
    rounds: int,
    shrink: int,
    published: bool,
    sides: tuple[int, ...],
    seeds: int,
    qr_seeds: int,
    filters: int,
) -> None:
    """Print the tables; exit with 1 if a required value is missed."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    good = True
    torch.set_num_threads(1)  # CPU seconds are those of one core
    if part in ("all", "speed"):
        good &= compare(rounds, published=published)
    if part in ("all", "curve"):
        cost_curve(list(sides), shrink)
    if part in ("all", "accuracy"):
        good &= accuracy(seeds, filters, qr_seeds)
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
