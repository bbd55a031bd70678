"""Density classes on histology: ``python -m benchmarks.density -o FOLDER``.

67 images of 500 x 500 px with marked nuclei (``pathology`` among the data sets). The inflammatory nuclei of
each block of 100 x 100 px are counted; training uses only a density class by quantiles of the count. Images are split
by a hash of their names: ``develop``, on whose nuclei settings were chosen, ``train``, whose density classes are
fitted, and ``test``, which the network never sees. Scores are areas under the ROC curve at classified nuclei,
inflammatory against the rest, over all and within blocks that hold both; means over seeds.

Every training writes a model to FOLDER, every score a line to ``scores.jsonl``; the same command resumes. The exit
status is 1 if a required value is missed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks.accuracy.cases import data_folder
from landprior.domains.density import project
from landprior.domains.density.blocks import BlockLabels, read_blocks
from landprior.domains.density.images import Images, find_images
from landprior.domains.density.points import Points, read_points
from landprior.domains.density.priors import spread_priors
from landprior.domains.density.settings import DensitySettings

BLOCK, CLASSES, BLUR = 100, 10, 11
LOSSES = ("rq", "ce", "qr", "nll-union")
IMPLICIT = ("rq", "qr")
WITHIN_BAR = 0.75
SIDE = 500


def count_blocks(table: Path, kind: str = "inflammatory") -> pd.DataFrame:
    """Count points of a kind in every block of the images: image, row, col, count."""
    points = pd.read_csv(table)
    across = SIDE // BLOCK
    rows = []
    for image, some in points.groupby("image"):
        mine = some[some["type"] == kind]
        row, col = (np.minimum((mine[axis] // BLOCK).astype(int), across - 1) for axis in ("y", "x"))
        counts = np.zeros((across, across), dtype=int)
        np.add.at(counts, (row, col), 1)
        rows += [(image, r, c, counts[r, c]) for r in range(across) for c in range(across)]
    return pd.DataFrame(rows, columns=["image", "row", "col", "count"])


def part_of(name: str) -> str:
    """Return the part of an image, by a hash of its name."""
    digit = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
    return "develop" if digit < 3 else "train" if digit < 7 else "test"


def settings_of(loss: str, seed: int) -> DensitySettings:
    """Return the recipe of a loss: the command's own defaults, in bf16 to save time on a CPU.

    NLL is trained once: its result has no direction, so restarting does not help.
    """
    restarts = {"restarts": 0} if loss == "nll-union" else {}
    return DensitySettings(loss=loss, seed=seed, precision="bf16", **restarts)  # type: ignore[arg-type]


def load(folder: Path, root: Path) -> tuple[Images, BlockLabels, dict[str, Points]]:
    """Read images, density classes and nuclei."""
    images = find_images([root / "images"])
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "blocks.csv"
    count_blocks(root / "nuclei.csv").to_csv(table, index=False)
    labels = read_blocks(table, images.grids, block=BLOCK, count=CLASSES)
    nuclei = read_points(root / "nuclei.csv", images.grids, positive=["inflammatory"], ignored=["unlabelled"])
    return images, labels, nuclei


def find_scores(folder: Path) -> list[dict[str, object]]:
    """Return the scores found so far."""
    path = folder / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, losses: tuple[str, ...], seeds: int, parts: tuple[str, ...]) -> None:
    """Train and score the missing runs."""
    images, labels, nuclei = load(folder, data_folder().parent / "pathology")
    groups = {part: [name for name in images.names if part_of(Path(name).stem) == part] for part in parts}
    fitted = BlockLabels(
        classes={n: c for n, c in labels.classes.items() if part_of(Path(n).stem) == "train"},
        count=labels.count,
        block=labels.block,
    )

    def keep(loss: str, seed: int, rows: list[project.Row], attempts: int) -> None:
        with (folder / "scores.jsonl").open("a") as stream:
            for row in rows:
                line = {"loss": loss, "seed": seed, "attempts": attempts, "part": row.images, "score": row.what}
                stream.write(json.dumps(line | row.scores.to_dict()) + "\n")

    done = {(line["loss"], line["seed"]) for line in find_scores(folder)}
    if ("none", 0) not in done:
        keep("none", 0, project.score_images(images, nuclei, None, labels, block=BLOCK, groups=groups), 0)
    for seed in range(seeds):
        for loss in losses:
            if (loss, seed) in done:
                continue
            model = project.train_or_load(
                images, fitted, spread_priors(CLASSES), folder / f"{loss}-{seed}.safetensors", settings_of(loss, seed)
            )
            options = {"block": BLOCK, "groups": groups, "blurs": (1, BLUR), "precision": "bf16"}
            rows = project.score_images(images, nuclei, model, labels, **options)
            shown = [row for row in rows if row.what[0] in "qr"]
            keep(loss, seed, shown, model.record["density"]["attempts"])
            print(f"{loss}, seed {seed}\n{project.to_text(shown)}\n", flush=True)


def show(folder: Path) -> bool:
    """Print means over seeds and the required values; return whether all are reached."""
    frame = pd.DataFrame(find_scores(folder))
    frame = frame[frame["part"] != "develop"]
    print("| images | loss | score | seeds | overall | within blocks |\n| --- | --- | --- | ---: | ---: | ---: |")
    for (part, loss, score), some in frame.groupby(["part", "loss", "score"], sort=False):
        figures = [
            f"{statistics.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")
            for values in (some["overall"].tolist(), some["within"].tolist())
        ]
        print(f"| {part} | {loss} | {score} | {len(some)} | {figures[0]} | {figures[1]} |")
    for part, some in frame[frame["loss"] == "none"].groupby("part"):
        first = some.iloc[0]
        print(
            f"\n{part}: {first['points']} nuclei, {first['positives']} inflammatory; "
            f"{first['blocks']} blocks hold both, {first['pairs']} pairs"
        )
    test = frame[(frame["part"] == "test") & (frame["loss"] != "none")]
    shared = set.intersection(*(set(test[test["loss"] == loss]["seed"]) for loss in ("rq", "ce")))
    print(f"\nbars: seeds {sorted(shared)}, those that RQ and CE both have")
    test = test[test["seed"].isin(shared)].groupby(["loss", "score"])["within"].mean()
    good = True
    best = {loss: max(test[loss, "q"], test[loss, f"q, blur {BLUR}"]) for loss in LOSSES if (loss, "q") in test}
    mine = max((best[loss] for loss in IMPLICIT if loss in best), default=float("nan"))
    other = best.get("ce", float("nan"))
    for text, fine, shown in (
        (f"within blocks at least {WITHIN_BAR}", mine >= WITHIN_BAR, f"{mine:.3f}"),
        ("not below CE", mine >= other, f"{mine:.3f} against {other:.3f}"),
    ):
        good &= bool(fine)
        print(f"best implicit posterior on test images, {text}: {shown}, {'met' if fine else 'MISSED'}")
    return good


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("density-results"))
@click.option("--loss", "losses", type=click.Choice(LOSSES), multiple=True, help="Losses to run.  [default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--develop", is_flag=True, help="Also score the images on which settings were chosen.")
@click.option("--show", "only_show", is_flag=True, help="Train nothing; print the results so far.")
def main(*, output: Path, losses: tuple[str, ...], seeds: int, develop: bool, only_show: bool) -> None:
    """Train and score the missing runs and print the table."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    chosen = losses or LOSSES
    parts = ("test", "train", "develop") if develop else ("test", "train")
    if not only_show:
        run(output, chosen, seeds, parts)
    if not show(output):
        sys.exit(1)


if __name__ == "__main__":
    main()
