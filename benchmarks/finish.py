"""The finish of a map against a naive colour guided filter: ``python -m benchmarks.finish``.

Both smooth five classes along the edges of four bands, alternately, on one core. The naive one is the textbook's: box
means on the full grid in double precision and one system of equations for every pixel.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from scipy.ndimage import uniform_filter

from landprior.landcover.mapping.finish import RIDGE, GuidedFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def smooth_naively(shares: NDArray[np.floating], guide: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """Return the class probabilities, smoothed, not normalised."""

    def mean(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return uniform_filter(values.astype(np.float64), (*[1] * (values.ndim - 2), side, side), mode="nearest")

    middle, centre = mean(guide), mean(shares)
    together = mean(guide[:, None] * shares[None]) - middle[:, None] * centre[None]
    spread = (
        mean(guide[:, None] * guide[None])
        - middle[:, None] * middle[None]
        + RIDGE * np.eye(len(guide))[..., None, None]
    )
    slopes = np.linalg.solve(spread.transpose(2, 3, 0, 1), together.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    offsets = centre - (slopes * middle[:, None]).sum(0)
    return mean(offsets) + (mean(slopes) * guide[:, None]).sum(0)


def time_call(call: Callable[..., object], *arguments: object) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


@click.command()
@click.option("--side", default=1000, show_default=True, help="Side of the tile in pixels.")
@click.option("--bands", default=4, show_default=True)
@click.option("--classes", default=5, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(side: int, bands: int, classes: int, rounds: int) -> None:
    """Time the finish."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    guide = rng.standard_normal((bands, side, side)).astype(np.float32)
    shares = rng.dirichlet(np.ones(classes), (side, side)).transpose(2, 0, 1).astype(np.float32)
    smoothing = GuidedFilter.of((1.0, 1.0))
    seconds: dict[str, list[float]] = {"finish": [], "naive": []}
    for _ in range(rounds):
        seconds["finish"].append(
            time_call(smoothing.apply, torch.from_numpy(shares), None, torch.from_numpy(guide), (0, 0))
        )
        seconds["naive"].append(time_call(smooth_naively, shares, guide, 9))
    finish, naive = (statistics.median(some) * 1e6 / side**2 for some in seconds.values())
    click.echo(
        f"{bands} bands, {classes} classes, one core, medians of {rounds}: finish {finish:.2f} CPU s a megapixel, "
        f"naive {naive:.2f}: {naive / finish:.1f} times as long"
    )


if __name__ == "__main__":
    main()
