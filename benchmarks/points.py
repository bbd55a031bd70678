"""Gain from adding a hundred labelled points to a prior, on the city windows: ``python -m benchmarks.points``.

A hundred random pixels of a window are labelled from its reference and passed to ``build-prior --points``, once applied
at their places only and once with ``--recalibrate`` (its one free parameter, the spread of the biases, was chosen on
Durham and the demo scenes). QR is trained on each prior, and each model is also adapted to the points. A random forest
trained on the same points alone (mean and deviation of each band within 5 x 5 pixels) shows their value without a
prior. All maps are scored as by ``evaluate --exclude``: the points and 5 m around them are left out of every score.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import geopandas
import numpy as np
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from benchmarks.accuracy.cases import CITIES, data_folder
from landprior.errors import CollapseWarning, HarmWarning
from landprior.landcover.adaptation.adapt import adapted_model, fit_head
from landprior.landcover.adaptation.labelled_pixels import PlaceTile
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.training.ensemble import train_best
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.raster.classes import read_classes
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POINTS = 100
BUFFER = 5.0
KINDS = ("without", "points", "recalibrated")
SIDE = 5
"""Side in pixels of the squares from which the random forest's features are computed."""


def draw_points(labels: Path, path: Path, seed: int) -> None:
    """Write a hundred random labelled pixels with their class."""
    scheme = load_scheme("enviroatlas-5")
    with open_raster(labels) as src:
        positions = read_classes(src, None, scheme, codes=None, where=labels)
        grid = Grid.of(src)
    rows, columns = np.nonzero(positions >= 0)
    chosen = np.random.default_rng(seed).choice(len(rows), POINTS, replace=False)
    rows, columns = rows[chosen], columns[chosen]
    x, y = grid.transform @ (columns + 0.5, rows + 0.5)
    names = [scheme.names[index] for index in positions[rows, columns]]
    geopandas.GeoDataFrame({"class": names}, geometry=geopandas.points_from_xy(x, y)).to_file(path, engine="pyogrio")


def map_forest(image: Path, points: Path, output: Path, seed: int) -> Path:
    """Map the image with a random forest trained on the points alone."""
    scheme = load_scheme("enviroatlas-5")
    with open_raster(image) as src:
        bands, grid = src.read().astype(np.float32), Grid.of(src)
    means = np.stack([ndimage.uniform_filter(band, SIDE) for band in bands])
    squares = np.stack([ndimage.uniform_filter(band**2, SIDE) for band in bands])
    features = np.concatenate([means, np.sqrt(np.maximum(squares - means**2, 0))]).transpose(1, 2, 0)
    table = geopandas.read_file(points, engine="pyogrio")
    columns, rows = ~grid.transform @ (table.geometry.x.to_numpy(), table.geometry.y.to_numpy())
    known = features[rows.astype(int), columns.astype(int)]
    forest = RandomForestClassifier(n_estimators=200, random_state=seed).fit(known, table["class"])
    codes = np.array([scheme.classes[scheme.names.index(name)].code for name in forest.classes_], dtype=np.uint8)
    best = forest.predict_proba(features.reshape(-1, features.shape[-1])).argmax(1)
    return write_raster(output, codes[best].reshape(grid.height, grid.width), grid, overwrite=True)


def run_city(
    city: str, matrix: str | None, seed: int, filters: int, folder: Path, *, kinds: Sequence[str] = KINDS
) -> dict[str, Any]:
    """Build the priors of a window, train on each and score, together with the random forest."""
    scheme = load_scheme("enviroatlas-5")
    source = data_folder() / "enviroatlas-4city-notebook"
    stem = CITIES[city][0]
    image, labels = source / f"{stem}_naip-rgb.tif", source / f"{stem}_highres_labels.tif"
    points = folder / f"{city}-{seed}.gpkg"
    draw_points(labels, points, seed)
    with open_raster(image) as src:
        hundred = read_sparse_labels(points, scheme, Grid.of(src))
    row: dict[str, Any] = {"city": city, "seed": seed}
    prior, target = folder / "prior.tif", folder / "map.tif"

    def score(name: str) -> None:
        scores = evaluate([(target, labels)], scheme, exclude=points, buffer=BUFFER)
        row[name] = {"accuracy": scores.accuracy, "mean_iou": scores.mean_iou}

    map_forest(image, points, target, seed)
    score("forest")
    for kind in kinds:
        build_prior(
            source / f"{stem}_nlcd.tif",
            prior,
            cooccurrence=load_cooccurrence(matrix, scheme),
            layers={name: source / f"{stem}_{name}.tif" for name in LAYERS},
            sparse_labels=None if kind == "without" else hundred,
            recalibrate=kind == "recalibrated",
            run=Run(overwrite=True),
        )
        model = train_best([read_tile(image, prior, name=stem)], make_settings(filters=filters, seed=seed))
        map_prior(prior, target, run=Run(overwrite=True))
        score(f"prior {kind}")
        predict(image, target, model, posterior=prior, force=True, run=Run(overwrite=True))
        score(f"r {kind}")
        heads, found = fit_head([PlaceTile(image=image, prior=prior, model=model)], points)
        adapted = adapted_model(model, heads[0], points, found)
        predict(image, target, adapted, posterior=prior, run=Run(overwrite=True))
        score(f"adapted {kind}")
    return row


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: mean over seeds (each with its own points and training), and half the spread."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["city"]].append(row)
    names = [f"{which} {kind}" for which in ("prior", "r", "adapted") for kind in KINDS]
    columns = [name for name in (*names, "forest") if name in rows[0]]
    lines = []
    for measure in ("accuracy", "mean_iou"):
        lines.append(f"{measure:<12}" + "".join(f"{name:>20}" for name in columns))
        for city, some in groups.items():
            cells = [[row[name][measure] for row in some] for name in columns]
            text = [f"{statistics.mean(v):.3f} ±{(max(v) - min(v)) / 2:.3f}" for v in cells]
            lines.append(f"{city:<12}" + "".join(f"{cell:>20}" for cell in text))
        lines.append("")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Draws and training runs for each city.")
@click.option("--filters", default=16, show_default=True, help="Width of the networks.")
@click.option("--cities", default="durham,pittsburgh,phoenix", show_default=True, help="Comma-separated.")
@click.option("--forest", is_flag=True, help="Score the random forest alone, which takes seconds.")
def main(seeds: int, filters: int, cities: str, *, forest: bool) -> None:
    """Score what points add, with the shipped matrix (no other label of the city)."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", HarmWarning)
    warnings.simplefilter("ignore", CollapseWarning)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for city in cities.split(","):
            for seed in range(seeds):
                rows.append(run_city(city, None, seed, filters, Path(work), kinds=() if forest else KINDS))
                click.echo(json.dumps(rows[-1]), err=True)
    click.echo(report(rows))


if __name__ == "__main__":
    main()
