"""All methods on real sets, with the code of ``landprior compare``: ``python -m benchmarks.methods -o FOLDER``.

West Virginia and the city windows are shipped comparisons. Ohio has no NLCD: its coarse codes are derived from the
hand-drawn masks, as the k-means codes of the class shares of 30 m cells, rotated by 7 degrees against the image. The
codes, their class shares and the spread of their cells are learned on the other clusters of the set; unlike NLCD, they
have no noise.

West Virginia also has rows of sr with other criteria and with a U-Net.
"""

from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from scipy.cluster.vq import kmeans2, vq

from benchmarks.accuracy.cases import REPOSITORY, count_cells, data_folder, list_clusters, make_mosaic
from landprior.errors import LandpriorWarning
from landprior.landcover.assessment.scores import Scores
from landprior.landcover.experiments.report import summarise, to_markdown, write_report
from landprior.landcover.experiments.runner import Runner
from landprior.landcover.prior.cells import measure_spread
from landprior.landcover.prior.cooccurrence import write_cooccurrence
from landprior.raster.classes import read_classes
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run
from landprior.superres.comparison import ComparedMethod, ComparedPlace, Comparison, load_comparison
from landprior.superres.rivals import RIVALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from landprior.landcover.experiments.config import Experiment
    from landprior.landcover.experiments.report import Line
    from landprior.landcover.experiments.results import Result

EPITOME = {"size": 64, "steps": 1000}
"""Smaller than the 199 x 199 and 2,000 steps of the tool: these windows are small, and many are trained."""

CODES = 16
"""Coarse codes of Ohio."""

PLACES = (3, 15)
"""Clusters of Ohio that are mapped."""

VARIANTS = (
    *(
        ComparedMethod(method="sr", name=f"sr, {name}", options={"criterion": name})
        for name in ("kl", "interval", "l1", "l2")
    ),
    ComparedMethod(method="sr", name="sr, U-Net", network="unet"),
)
DEVELOPED = (21, 22, 23, 24)
"""NLCD's developed codes; Ohio has different ones."""


def derive_ohio(folder: Path) -> Comparison:
    """Write images, masks, k-means codes and their class shares for the clusters that are mapped."""
    scheme = load_scheme(REPOSITORY / "benchmarks" / "accuracy" / "ohio-5.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    cells = {}
    for number, ids in sorted(list_clusters().items()):
        _, _, labels = make_mosaic(folder, number, ids)
        with open_raster(labels) as src:
            mask, grid = src.read(1), Grid.of(src)
        index, counts = count_cells(mask, grid)
        cells[number] = (mask, grid, index, counts / np.maximum(counts.sum(1, keepdims=True), 1), counts.sum(1))
    places = {}
    for number in PLACES:
        others = [other for other in cells if other != number]
        full = np.concatenate([cells[other][3][cells[other][4] > 0] for other in others])
        centres, _ = kmeans2(full, CODES, minit="++", seed=0)
        pairs = []
        for other, (mask, grid, index, shares, _) in cells.items():
            codes = np.where(mask != 255, 1 + vq(shares, centres)[0][index], 0).astype(np.uint8)
            path = folder / f"codes-{number}-{other}.tif"
            write_raster(path, codes, grid, nodata=0, overviews="mode", overwrite=True)
            if other != number:
                pairs.append((path, folder / f"labels-{other}.tif"))
        write_raster(
            folder / f"nlcd-{number}.tif",
            _read(folder / f"codes-{number}-{number}.tif"),
            cells[number][1],
            nodata=0,
            overviews="mode",
            overwrite=True,
        )
        write_cooccurrence(measure_spread(pairs, scheme), folder / f"cooccurrence-{number}.csv", overwrite=True)
        places[f"ohio-{number}"] = ComparedPlace(tiles=(str(number),), cooccurrence=f"cooccurrence-{number}.csv")
    return Comparison(
        title="Methods on two clusters of Ohio",
        about=f"Four bands, 0.6 m. {CODES} coarse codes: k-means of the class shares of 30 m cells of other clusters.",
        scheme=str(REPOSITORY / "benchmarks" / "accuracy" / "ohio-5.yaml"),
        files={"image": "image-{tile}.tif", "nlcd": "nlcd-{tile}.tif", "labels": "labels-{tile}.tif"},
        places=places,
    )


def _read(path: Path) -> np.ndarray:
    with open_raster(path) as src:
        return src.read(1)


def list_comparisons(folder: Path, sets: list[str]) -> Iterator[tuple[str, Comparison, Path]]:
    """Return the comparisons with their roots."""
    if "west-virginia" in sets:
        found = load_comparison("west-virginia")
        yield (
            "west-virginia",
            found.model_copy(update={"methods": found.methods + VARIANTS}),
            data_folder() / "chesapeake-wv-patches",
        )
    if "city-windows" in sets:
        yield "city-windows", load_comparison("city-windows"), data_folder() / "enviroatlas-4city-notebook"
    if "ohio" in sets:
        root = folder / "ohio-files"
        yield "ohio", derive_ohio(root), root


def score_developed(
    runner: Runner, results: list[Result], experiment: Experiment
) -> dict[tuple[str, str, str], list[float]]:
    """Return the accuracy of each seed over the pixels of developed codes, by row, map and region."""
    scheme = load_scheme(experiment.scheme)
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for result in results:
        total = Scores.of(np.empty(0, int), np.empty(0, int), scheme)
        for place, path in runner.find_maps(result):
            if not path.is_file() or place.nlcd is None:
                continue
            with open_raster(path) as mapped, open_raster(place.labels) as truth:
                label_map = experiment.regions[result.region].label_map
                labels = read_classes(truth, None, scheme, codes=label_map, where=place.labels)
                classes = read_classes(mapped, None, scheme, codes=None, where=path)
            developed = np.isin(_read(place.nlcd), DEVELOPED)
            total += Scores.of(classes[developed], labels[developed], scheme)
        if total.pixels:
            found[result.row, result.map, result.region].append(100 * total.accuracy)
    return dict(found)


def show_developed(found: dict[tuple[str, str, str], list[float]]) -> str:
    """Return a table of the accuracies in developed areas."""
    regions = list(dict.fromkeys(region for _, _, region in found))
    rows = list(dict.fromkeys((row, kind) for row, kind, _ in found))
    lines = [f"{'accuracy in developed cells (21-24)':<36}" + "".join(f"{region:>16}" for region in regions)]
    for row, kind in rows:
        cells = [found.get((row, kind, region), []) for region in regions]
        shown = [f"{statistics.mean(c):.1f} ±{(max(c) - min(c)) / 2:.1f}" if c else "" for c in cells]
        lines.append(f"{f'{row}: {kind}':<36}" + "".join(f"{text:>16}" for text in shown))
    return "\n".join(lines)


def judge_claims(lines: list[Line], experiment: Experiment) -> str:
    """Return whether the papers' claims hold here, as text."""
    found = {(line.row, line.map, line.region): line for line in lines}
    text = []
    for region in experiment.columns:
        sr = found.get(("sr", "q", region))
        for rival in ("soft-naive", "hard-naive", "em"):
            other = found.get((rival, "q", region))
            if sr and other:
                gains = sr.accuracy - other.accuracy, sr.mean_iou - other.mean_iou
                text.append(f"{region}: sr less {rival}: accuracy {gains[0]:+.1f}, mean IoU {gains[1]:+.1f}")
    return "\n".join(text)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("landprior-experiments/methods"),
    show_default=True,
    help="Folder of the results, kept; the same command resumes from it.",
)
@click.option("--sets", default="west-virginia,city-windows,ohio", show_default=True)
@click.option("--method", "methods", multiple=True, help="Rows to run.")
@click.option("--seeds", default=3, show_default=True, help="Training runs of each method.")
@click.option("--filters", default=16, show_default=True, help="Width of the networks.")
@click.option("--steps", default=600, show_default=True, help="Optimiser steps.")
def main(output: Path, sets: str, methods: tuple[str, ...], seeds: int, filters: int, steps: int) -> None:
    """Run the comparisons and print their tables."""
    warnings.simplefilter("ignore", LandpriorWarning)
    for name, found, root in list_comparisons(output, sets.split(",")):
        # the mosaics of Ohio have two million pixels and more, at 0.6 m
        changes = {"epitome": EPITOME, "self-epitome": {"shrink": 8} if name == "ohio" else {}}
        own = tuple(
            one.model_copy(update={"options": dict(changes.get(one.method, one.options))}) for one in found.methods
        )
        comparison = found.model_copy(update={"methods": own})
        experiment = comparison.to_experiment(seeds=seeds, filters=filters, steps=steps)
        known = [row.name for row in experiment.rows]
        experiment = experiment.select(rows=[row for row in methods if row in known])
        runner = Runner(experiment, root, output / name, rivals=RIVALS, run=Run(progress=False))
        results = runner.run()
        write_report(output / name, experiment, results)
        runner.draw_panels(results)
        lines = summarise(experiment, results)
        click.echo(to_markdown(experiment, lines))
        click.echo(judge_claims(lines, experiment))
        developed = score_developed(runner, results, experiment)
        if developed:
            click.echo("\n" + show_developed(developed) + "\n")


if __name__ == "__main__":
    main()
