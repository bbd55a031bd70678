"""What labelled points add: adapted models against classifiers of pixels alone, from the same points.

Points are random labelled pixels of a set's tiles. They and 5 m around them are left out of every score.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from landprior.landcover.adaptation.adapt import adapted_model, fit_head
from landprior.landcover.adaptation.labelled_pixels import PlaceTile
from landprior.landcover.adaptation.proposals import propose_points
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.mapping.finish import Finish
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.head import describe_surroundings
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.model import BandStatistics
from landprior.raster.classes import read_classes
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from benchmarks.accuracy.cases import Case
    from landprior.landcover.adaptation.report import Report
    from landprior.landcover.training.model import LandcoverModel

BUFFER = 5.0
FIRST, EACH = 40, 20
"""Random points, and points of a round, where points are chosen."""

MOST_TRAINED = 20_000
"""Pixels that the supervised forest is trained on."""


@dataclass(frozen=True)
class Plan:
    """Numbers of points to adapt to, how often each is drawn, and whether points are also chosen."""

    numbers: tuple[int, ...] = ()
    draws: int = 5
    chosen: bool = False


NO_POINTS = Plan()


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile in memory: what classifiers of pixels see, and the labels."""

    image: Path
    path: Path
    grid: Grid
    labels: NDArray[np.int16]
    bands: Tensor
    valid: NDArray[np.bool_]
    features: NDArray[np.float32]
    finish: Finish

    @classmethod
    def read(cls, image: Path, labels: Path, case: Case) -> Tile:
        """Read a tile; its bands are standardised by themselves."""
        with ImageLayer(image) as layer, open_raster(labels) as src:
            values, valid = layer.read()
            known = read_classes(src, None, case.scheme, codes=case.label_map, where=labels)
            grid, size = Grid.of(src), layer.grid.pixel_size(where=image)
        seen = values[:, valid].astype(np.float64)
        statistics = BandStatistics(mean=seen.mean(1), std=seen.std(1))
        bands = statistics.standardise(torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(valid))
        features = describe_surroundings(bands, torch.from_numpy(valid)).numpy()
        return cls(image, labels, grid, np.where(valid, known, -1), bands, valid, features, Finish.of(size))


def draw_points(tiles: list[Tile], case: Case, number: int, seed: int, path: Path) -> list[NDArray[np.intp]]:
    """Draw random labelled pixels over all tiles; write them, and return rows and columns for each tile."""
    places = [np.argwhere(tile.labels >= 0) for tile in tiles]
    ends = np.cumsum([len(some) for some in places])
    chosen = np.random.default_rng(seed).choice(ends[-1], number, replace=False)
    found, frames = [], []
    for tile, some, end in zip(tiles, places, ends, strict=True):
        inside = (chosen >= end - len(some)) & (chosen < end)
        here = some[chosen[inside] - (end - len(some))]
        found.append(here)
        x, y = tile.grid.transform @ (here[:, 1] + 0.5, here[:, 0] + 0.5)
        names = [case.scheme.names[index] for index in tile.labels[tuple(here.T)]]
        crs = None if tile.grid.crs is None else tile.grid.crs.to_wkt()
        frames.append(geopandas.GeoDataFrame({"class": names}, geometry=geopandas.points_from_xy(x, y), crs=crs))
    write_points(frames, path)
    return found


def write_points(frames: list[geopandas.GeoDataFrame], path: Path) -> None:
    """Write points to one file, in place of an older one."""
    path.unlink(missing_ok=True)
    with warnings.catch_warnings():  # images without a CRS have points without one
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pd.concat(frames, ignore_index=True).to_file(path, engine="pyogrio")


def score_adapted(case: Case, model: LandcoverModel, points: Path, folder: Path) -> tuple[Scores, Report]:
    """Adapt a model to points, map all tiles with it, and score the maps."""
    tiles = [PlaceTile(image=image, prior=prior, model=model) for image, prior, _ in case.tiles]
    heads, report = fit_head(tiles, points)
    adapted = adapted_model(model, heads[0], points, report)
    pairs = []
    for number, (image, prior, labels) in enumerate(case.tiles):
        target = folder / f"adapted-{number}.tif"
        predict(image, target, adapted, posterior=prior, run=Run(overwrite=True))
        pairs.append((target, labels))
    return evaluate(pairs, case.scheme, label_map=case.label_map, exclude=points, buffer=BUFFER), report


def score_chosen(case: Case, model: LandcoverModel, tiles: list[Tile], number: int, seed: int, folder: Path) -> Scores:
    """Score a model adapted to 40 random points and then, in rounds, to 20 points that are proposed on its map."""
    path = folder / "chosen.gpkg"
    draw_points(tiles, case, FIRST, seed, path)
    given = [PlaceTile(image=image, prior=prior, model=model) for image, prior, _ in case.tiles]
    for _ in range((number - FIRST) // EACH):
        heads, report = fit_head(given, path)
        adapted = adapted_model(model, heads[0], path, report)
        frames = [geopandas.read_file(path, engine="pyogrio")]
        for index, (tile, (image, prior, _)) in enumerate(zip(tiles, case.tiles, strict=True)):
            target = folder / f"unsure-{index}.tif"
            options = MapOptions(probabilities=True)
            predict(image, target, adapted, posterior=prior, options=options, run=Run(overwrite=True))
            count = EACH // len(tiles)
            found = propose_points(target, case.scheme, count=count, known=[path], seed=seed)
            columns, rows = ~tile.grid.transform @ (found.geometry.x.to_numpy(), found.geometry.y.to_numpy())
            labels = tile.labels[np.floor(rows).astype(int), np.floor(columns).astype(int)]
            found = found.assign(**{"class": [case.scheme.names[max(label, 0)] for label in labels]})
            frames.append(found.loc[labels >= 0, ["class", "geometry"]])
        write_points(frames, path)
    return score_adapted(case, model, path, folder)[0]


def score_classifiers(
    case: Case, tiles: list[Tile], places: list[NDArray[np.intp]], points: Path, seed: int, folder: Path
) -> Iterator[tuple[str, Scores]]:
    """Score classifiers of pixels alone, trained on the points; their probabilities are finished like any map's."""
    inputs = np.concatenate([tile.features[:, *at.T].T for tile, at in zip(tiles, places, strict=True)])
    classes = np.concatenate([tile.labels[tuple(at.T)] for tile, at in zip(tiles, places, strict=True)])
    if len(np.unique(classes)) < 2:
        return
    makers = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "forest": RandomForestClassifier(n_estimators=200, random_state=seed),
    }
    for name, classifier in makers.items():
        classifier.fit(inputs, classes)
        pairs = []
        for number, tile in enumerate(tiles):
            target = folder / f"{name}-{number}.tif"
            best = classify(tile, classifier, len(case.scheme))
            write_raster(target, case.scheme.decode(best, tile.valid), tile.grid, scheme=case.scheme, overwrite=True)
            pairs.append((target, tile.path))
        yield name, evaluate(pairs, case.scheme, label_map=case.label_map, exclude=points, buffer=BUFFER)


def classify(tile: Tile, classifier: RandomForestClassifier, classes: int) -> NDArray[np.intp]:
    """Return the class of each pixel by a classifier whose probabilities are smoothed along edges."""
    shares = np.zeros((classes, *tile.valid.shape), dtype=np.float32)
    rows = max(1, 400_000 // tile.valid.shape[1])
    for top in range(0, tile.valid.shape[0], rows):
        part = tile.features[:, top : top + rows]
        found = classifier.predict_proba(part.reshape(len(part), -1).T)
        shares[classifier.classes_, top : top + rows] = found.T.reshape(-1, *part.shape[1:])
    if tile.finish.smoothing is not None:
        inside = None if tile.valid.all() else torch.from_numpy(tile.valid)
        shares = tile.finish.smoothing.apply(torch.from_numpy(shares), inside, tile.bands, (0, 0)).numpy()
    return np.asarray(shares.argmax(0))


def score_supervised(case: Case, tiles: list[Tile], seed: int = 0) -> float:
    """Return the accuracy of a forest that is trained on one half of each tile and scored on the other, both ways."""
    right = count = 0
    rng = np.random.default_rng(seed)
    for half in (0, 1):
        inputs, classes = [], []
        for tile in tiles:
            known = np.argwhere(tile.labels >= 0)
            middle = tile.labels.shape[1] // 2
            own = known[(known[:, 1] < middle) == (half == 0)]
            at = own[rng.permutation(len(own))[: MOST_TRAINED // len(tiles)]]
            inputs.append(tile.features[:, *at.T].T)
            classes.append(tile.labels[tuple(at.T)])
        forest = RandomForestClassifier(n_estimators=100, min_samples_leaf=2, random_state=seed, n_jobs=2)
        forest.fit(np.concatenate(inputs), np.concatenate(classes))
        for tile in tiles:
            best = classify(tile, forest, len(case.scheme))
            known = tile.labels >= 0
            middle = tile.labels.shape[1] // 2
            known[:, :middle] &= half == 1
            known[:, middle:] &= half == 0
            right += int((best == tile.labels)[known].sum())
            count += int(known.sum())
    return right / max(count, 1)
