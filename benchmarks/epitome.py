"""A large epitome with and without location promotion: ``python -m benchmarks.epitome``.

One epitome of 199 x 199 is trained on patches of the 1 m and 0.6 m images of naip-samples and of all tiles of
naip-ohio-6class with four bands (10.3 million pixels together; naip-samples alone has 0.9). Printed are the
share of the torus's pixels covered by no patch, during training and by the trained epitome on new patches without
promotion; the mean log-likelihood of those; seconds. The exit status is 1 if promotion leaves more than 1 % unused.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import click
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.accuracy.cases import data_folder
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.tiles import Tile
from landprior.raster.scheme import load_scheme
from landprior.run import Run
from landprior.superres.epitome_training import EpitomeFeed, fit_epitome, measure_use
from landprior.superres.settings import EpitomeSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme

BAR = 0.01


def read_tiles() -> list[Tile]:
    """Read all images; there are no targets."""
    scheme = load_scheme("chesapeake-4")
    paths = [path for path in sorted((data_folder() / "naip-samples").glob("*.tif")) if "downsampled" not in path.name]
    paths += sorted((data_folder() / "naip-ohio-6class" / "img").glob("*"))
    return [tile for tile in (read(path, scheme) for path in paths) if tile.image.shape[0] == 4]


def read(path: Path, scheme: ClassScheme) -> Tile:
    """Read one image."""
    with ImageLayer(path) as layer:
        values, valid = layer.read()
    image, seen = torch.from_numpy(values), torch.from_numpy(valid)
    nothing = torch.zeros(len(scheme), 1, 1, dtype=torch.float16)
    return Tile(name=path.name, image=image, prior=nothing.expand(-1, *seen.shape), valid=seen, scheme=scheme)


def covered(visits: torch.Tensor, patch: int) -> float:
    """Return the share of the torus's pixels covered by a patch at one of these positions."""
    placed = F.pad((visits > 0).float()[:, None], (patch - 1, 0, patch - 1, 0), mode="circular")
    return float(F.max_pool2d(placed, patch, stride=1).mean())


@click.command()
@click.option("--size", default=199, show_default=True)
@click.option("--steps", default=1000, show_default=True)
@click.option("--patches", default=256, show_default=True)
@click.option("--diversify/--no-diversify", default=False)
@click.option("--device", default="auto")
def main(*, size: int, steps: int, patches: int, diversify: bool, device: str) -> None:
    """Train twice and print the table."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    tiles = read_tiles()
    pixels = sum(int(tile.valid.sum()) for tile in tiles)
    seen = steps * patches * 49
    print(f"{len(tiles)} images, {pixels / 1e6:.1f} million pixels; {seen / 1e6:.1f} million patch pixels a training")
    print(
        f"{'promotion':<10} {'never in training':>18} {'positions':>10} {'unused after':>13} {'log p / value':>14} "
        f"{'resets':>7} {'seconds':>8}"
    )
    met = True
    for promotion in (True, False):
        settings = EpitomeSettings(size=size, steps=steps, patches=patches, promotion=promotion, diversify=diversify)
        start = time.perf_counter()
        epitome, statistics, _ = fit_epitome(tiles, settings, run=Run(device=device))
        seconds = time.perf_counter() - start
        feed = EpitomeFeed(tiles, statistics, patch=settings.patch, count=256, seed=12345)
        unused, likelihood = measure_use(epitome.cpu(), feed, batches=200)
        visits = epitome.visits
        never = 1 - covered(visits, settings.patch)
        met &= not promotion or never <= BAR
        print(
            f"{'with' if promotion else 'without':<10} {never:18.2%} {float((visits == 0).float().mean()):10.1%} "
            f"{unused:13.2%} {likelihood:14.3f} {int(epitome.resets):7d} {seconds:8.0f}",
            flush=True,
        )
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
