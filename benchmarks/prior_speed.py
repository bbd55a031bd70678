"""Building a prior against the published recipe, in one run: ``python -m benchmarks.prior_speed``.

Baseline: the recipe as published (one-hot NLCD, ``torchvision.transforms.GaussianBlur(101, 31)``, cooccurrence matrix,
normalise), in float32 on the same cores. Ours: :func:`landprior.landcover.prior.fusion.prior_from_arrays`. Both work in
memory on 2,000 x 2,000 px with 16 codes; the two are timed alternately and their results compared.
"""

from __future__ import annotations

import statistics
import sys
import time

import click
import numpy as np
import torch
from torchvision.transforms import GaussianBlur

from landprior.landcover.prior.cooccurrence import Cooccurrence
from landprior.landcover.prior.fusion import prior_from_arrays
from landprior.raster.scheme import load_scheme

CODES = (11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95)
TOLERANCE = 1e-5
OURS_PER_ROUND = 5
"""Ours is short, so it is timed several times a round; the first also pays for memory that the other side released."""


def publish(nlcd: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Build the prior by the published recipe; ``matrix`` is (C, 16)."""
    one_hot = torch.from_numpy(nlcd)[None] == torch.tensor(CODES, dtype=torch.uint8)[:, None, None]
    blurred = GaussianBlur(101, 31)(one_hot.float())
    mapped = torch.einsum("ck,khw->chw", torch.from_numpy(matrix).float(), blurred)
    return (mapped / mapped.sum(0)).numpy()


@click.command()
@click.option("--size", default=2000, show_default=True, help="Side in pixels.")
@click.option("--repeats", default=3, show_default=True, help="How often each is timed.")
@click.option("--least", default=40.0, show_default=True, help="Exit 1 below this ratio.")
def main(size: int, repeats: int, least: float) -> None:
    """Time both, print medians, ratio and largest difference."""
    rng = np.random.default_rng(0)
    scheme = load_scheme("enviroatlas-5")
    cells = rng.choice(CODES, (size // 30 + 1, size // 30 + 1))
    nlcd = np.kron(cells, np.ones((30, 30), int))[:size, :size].astype(np.uint8)
    matrix = rng.dirichlet(np.ones(len(scheme)), len(CODES)).T
    ours = Cooccurrence(
        scheme=scheme, probabilities={code: matrix[:, j] for j, code in enumerate(CODES)}, source="random"
    )
    prior_from_arrays(nlcd, ours)  # imports and caches
    times: dict[str, list[float]] = {"published recipe": [], "landprior": []}
    for _ in range(repeats):
        time.sleep(1)  # the threads of one library spin for a while after their work and would slow the other
        started = time.perf_counter()
        expected = publish(nlcd, matrix)
        times["published recipe"].append(time.perf_counter() - started)
        time.sleep(1)
        for _ in range(OURS_PER_ROUND):
            started = time.perf_counter()
            found = prior_from_arrays(nlcd, ours)
            times["landprior"].append(time.perf_counter() - started)
    medians = {name: statistics.median(some) for name, some in times.items()}
    ratio = medians["published recipe"] / medians["landprior"]
    difference = float(np.abs(found - expected).max())
    print(f"{size} x {size} px, {len(CODES)} codes, {torch.get_num_threads()} threads, medians of {repeats} rounds")
    for name, seconds in medians.items():
        print(f"  {name:<17} {seconds:8.2f} s")
    print(f"  ratio {ratio:.0f} (at least {least:.0f}), largest difference {difference:.1e} (at most {TOLERANCE:.0e})")
    sys.exit(0 if ratio >= least and difference <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
