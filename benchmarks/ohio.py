"""QR from 30 m class shares against labels, on Ohio: ``python -m benchmarks.ohio``.

The coarse labels are derived: the class shares of the hand-drawn masks in 30 m cells, rotated by 7 degrees against the
image. Unlike NLCD, they have no noise. Blurred (sigma 31 m) they are the prior; their argmax, unblurred, is
the 30 m majority map. The 21 spatial clusters are split into three folds. QR is trained on a fold's images and priors
and scored there. The supervised network of the same shape is trained twice: on the labels of the other two folds, so
that no scored label is used in training; and, as an upper bound, on the labels of the
scored tiles themselves.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from scipy import ndimage

from benchmarks.accuracy.cases import REPOSITORY, count_cells, list_clusters, make_mosaic
from landprior.errors import CollapseWarning, HarmWarning
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.training.ensemble import train_best
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_labelled_tile, read_tile
from landprior.raster.classes import read_classes
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run

if TYPE_CHECKING:
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.scheme import ClassScheme

FOLDS = 3
SIGMA = 31.0
"""Sigma of the blur in metres."""
OTHERS = "labels of others"
SAME = "its own labels"


@dataclass(frozen=True)
class Cluster:
    """A mosaic of neighbouring tiles."""

    number: int
    image: Path
    labels: Path
    prior: Path
    majority: Path

    @property
    def fold(self) -> int:
        """Number of its fold."""
        return self.number % FOLDS


def make_cluster(folder: Path, number: int, ids: list[str], scheme: ClassScheme) -> Cluster:
    """Write a cluster's image, labels, prior and majority map."""
    image, _, labels = make_mosaic(folder, number, ids)
    with open_raster(labels) as src:
        mask, grid = src.read(1), Grid.of(src)
        positions = read_classes(src, None, scheme, codes=None, where=labels)
    cell, _ = count_cells(mask, grid)
    counts = np.zeros((cell.max() + 1, len(scheme)))
    known = positions >= 0
    np.add.at(counts, (cell[known], positions[known]), 1)
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1))[cell].transpose(2, 0, 1) * known
    blurred = np.stack([ndimage.gaussian_filter(share, SIGMA / grid.transform.a, truncate=1.6) for share in shares])
    mass = blurred.sum(0)
    prior = np.where(known, blurred / np.where(mass > 0, mass, 1), np.nan).astype(np.float32)
    tags = {"scheme": scheme.model_dump_json(exclude_defaults=True)}
    majority = np.where(known, scheme.codes[shares.argmax(0)], 255).astype(np.uint8)
    return Cluster(
        number,
        image,
        labels,
        write_raster(folder / f"shares-{number}.tif", prior, grid, nodata=float("nan"), tags=tags, overwrite=True),
        write_raster(folder / f"majority-{number}.tif", majority, grid, nodata=255, scheme=scheme, overwrite=True),
    )


def train_fold(
    clusters: list[Cluster], fold: int, seed: int, filters: int, scheme: ClassScheme
) -> dict[str, LandcoverModel]:
    """Train QR on a fold's priors, and the same network on the labels of the other folds and of the fold itself."""
    inside = [read_tile(c.image, c.prior, name=f"ohio-{c.number}") for c in clusters if c.fold == fold]
    labelled = {
        c.number: read_labelled_tile(c.image, c.labels, scheme=scheme, name=f"ohio-{c.number}") for c in clusters
    }
    others = [labelled[c.number] for c in clusters if c.fold != fold]
    same = [labelled[c.number] for c in clusters if c.fold == fold]
    supervised = make_settings(labelled=True, filters=filters, seed=seed)
    return {
        "qr": train_best(inside, make_settings(filters=filters, seed=seed)),
        OTHERS: train_best(others, supervised),
        SAME: train_best(same, supervised),
    }


def score_seed(
    clusters: list[Cluster], seed: int, filters: int, scheme: ClassScheme, folder: Path
) -> dict[str, list[Scores]]:
    """Return the scores of each cluster, by kind of map."""
    found: dict[str, list[Scores]] = {kind: [] for kind in ("30 m majority", "prior", "QR q", "QR r", OTHERS, SAME)}
    for fold in range(FOLDS):
        models = train_fold(clusters, fold, seed, filters, scheme)
        for c in (c for c in clusters if c.fold == fold):
            target = {kind: folder / f"{kind.replace(' ', '-')}-{c.number}.tif" for kind in found}
            target["30 m majority"] = c.majority
            map_prior(c.prior, target["prior"], run=Run(overwrite=True))
            predict(c.image, target["QR q"], models["qr"], run=Run(overwrite=True))
            predict(c.image, target["QR r"], models["qr"], posterior=c.prior, force=True, run=Run(overwrite=True))
            for kind in (OTHERS, SAME):
                predict(c.image, target[kind], models[kind], run=Run(overwrite=True))
            for kind, path in target.items():
                found[kind].append(evaluate([(path, c.labels)], scheme))
    return found


def report(seeds: list[dict[str, list[Scores]]]) -> str:
    """Return the table: pooled over clusters, mean and half the spread over seeds; and the spread between clusters."""
    lines = [f"{'map':<16} {'accuracy':>14} {'mean IoU':>14}   mean IoU of single clusters: mean, std, lowest, highest"]
    pooled: dict[str, list[float]] = {}
    for kind in seeds[0]:
        total = [sum(found[kind][1:], found[kind][0]) for found in seeds]
        own = [scores.mean_iou for found in seeds for scores in found[kind]]
        pooled[kind] = [scores.mean_iou for scores in total]
        lines.append(
            f"{kind:<16} {_spread([s.accuracy for s in total]):>14} {_spread(pooled[kind]):>14}   "
            f"{statistics.mean(own):.3f} {statistics.stdev(own):.3f} {min(own):.3f} {max(own):.3f}"
        )
    gain = statistics.mean(pooled["QR r"]) - statistics.mean(pooled["30 m majority"])
    lack = {kind: statistics.mean(pooled[kind]) - statistics.mean(pooled["QR r"]) for kind in (OTHERS, SAME)}
    lines += [
        "",
        f"QR r above the 30 m majority map in mean IoU: {100 * gain:+.1f} points (bar: 10)",
        f"QR r below the network trained on labels of others: {100 * lack[OTHERS]:+.1f} points (bar: at most 8)",
        f"QR r below the network trained on the labels of the tiles scored: {100 * lack[SAME]:+.1f} points",
    ]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ±{(max(values) - min(values)) / 2:.3f}"


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Training runs of each fold.")
@click.option("--filters", default=16, show_default=True, help="Width of the networks.")
def main(seeds: int, filters: int) -> None:
    """Score QR, its prior and labels on Ohio."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", HarmWarning)
    warnings.simplefilter("ignore", CollapseWarning)
    scheme = load_scheme(REPOSITORY / "benchmarks" / "accuracy" / "ohio-5.yaml")
    with tempfile.TemporaryDirectory() as work:
        clusters = [make_cluster(Path(work), number, ids, scheme) for number, ids in sorted(list_clusters().items())]
        found = []
        for seed in range(seeds):
            found.append(score_seed(clusters, seed, filters, scheme, Path(work)))
            pooled = {kind: sum(s[1:], s[0]).mean_iou for kind, s in found[-1].items()}
            click.echo(json.dumps({"seed": seed, **pooled}), err=True)
    click.echo(report(found))


if __name__ == "__main__":
    main()
