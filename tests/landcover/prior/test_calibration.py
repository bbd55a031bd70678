"""Recalibration of a prior with labelled points."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from scipy.optimize import approx_fprime
from shapely.geometry import Point

from landprior.errors import InputError
from landprior.landcover.prior import calibration as module
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.calibration import Calibration, calibrate
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.training.layers import PriorLayer
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.windows import grow_window


def draw(rng, prior):
    """Draw a label from each column of probabilities."""
    return np.array([rng.choice(len(p), p=p / p.sum()) for p in prior.T])


def test_it_finds_the_change_made_to_the_prior(rng):
    """Labels are drawn from p^a e^b; with many points the penalties do not matter."""
    prior = rng.dirichlet(np.ones(3), 20_000).T
    truth = Calibration(1.6, (1.0, 0.0, -1.0), 0)
    found = calibrate(prior, draw(rng, truth.apply(prior.astype(np.float32))))
    assert found.sharpness == pytest.approx(1.6, abs=0.06)
    assert np.subtract(found.bias, np.mean(found.bias)) == pytest.approx([1, 0, -1], abs=0.08)
    assert found.points == 20_000


def test_a_calibrated_prior_is_left_unchanged(rng):
    prior = rng.dirichlet(np.ones(4), 20_000).T
    found = calibrate(prior, draw(rng, prior))
    np.testing.assert_allclose(found.apply(prior.astype(np.float32)), prior, atol=0.03)


def test_the_gradient_matches_the_objective(rng, monkeypatch):
    """The gradient passed to the optimiser, compared with finite differences."""
    seen = {}

    def minimize(objective, start, **options):  # noqa: ARG001 - scipy's signature
        seen["objective"] = objective
        return type("Found", (), {"x": start})

    monkeypatch.setattr("scipy.optimize.minimize", minimize)
    prior = rng.dirichlet(np.ones(3), 40).T
    calibrate(prior, rng.integers(0, 3, 40), rng.uniform(0.5, 2, 40))
    at = np.array([0.3, 0.2, -0.5, 0.1])
    slope = approx_fprime(at, lambda x: seen["objective"](x)[0], 1e-7)
    np.testing.assert_allclose(seen["objective"](at)[1], slope, rtol=1e-4, atol=1e-4)


def test_a_weight_of_two_counts_a_point_twice(rng):
    prior = rng.dirichlet(np.ones(3), 50).T
    classes = rng.integers(0, 3, 50)
    twice = calibrate(np.repeat(prior, 2, axis=1), np.repeat(classes, 2), np.tile([1.0, 0.0], 50) + 1e-12)
    again = calibrate(np.repeat(prior, 2, axis=1), np.repeat(classes, 2))
    assert twice.bias == pytest.approx(again.bias, abs=1e-3)


def test_a_calibrated_prior_stays_normalised(rng):
    prior = rng.dirichlet(np.ones(5), (6, 7)).transpose(2, 0, 1).astype(np.float32)
    prior[:, 0, 0] = np.nan
    prior[:, 1, 1] = [1, 0, 0, 0, 0]
    found = Calibration(2.0, (0.0, 3.0, 0.0, 0.0, 0.0), 30).apply(prior)
    assert np.isnan(found[:, 0, 0]).all()
    np.testing.assert_allclose(np.delete(found.sum(0).ravel(), 0), 1, atol=1e-5)
    assert found[0, 1, 1] > 0.99  # e^3 against 1000^2
    assert found.dtype == np.float32


def test_too_few_points():
    with pytest.raises(InputError, match="needs at least 20"):
        calibrate(np.full((3, 19), 1 / 3), np.zeros(19, dtype=int))
    assert module.LEAST_POINTS == 20


@pytest.fixture
def place(make_raster, coarse, enviroatlas, rng, tmp_path):
    """A place where grassland is barren, contrary to the shipped matrix, and sixty points that show it."""
    codes = coarse(80, 100, codes=(41, 71))
    truth = np.where(codes == 41, 40, 30)
    nlcd = make_raster("nlcd.tif", codes)
    rows, columns = rng.integers(0, 80, 60), rng.integers(0, 100, 60)
    names = [enviroatlas.names[enviroatlas.index(int(truth[r, c]))] for r, c in zip(rows, columns, strict=True)]
    with open_raster(nlcd) as src:
        grid = Grid.of(src)
    x, y = grid.transform @ (columns + 0.5, rows + 0.5)
    frame = geopandas.GeoDataFrame({"class": names}, geometry=geopandas.points_from_xy(x, y), crs=grid.crs.to_wkt())
    frame.to_file(tmp_path / "points.gpkg")
    return nlcd, truth, grid, frame


def test_points_recalibrate_the_prior_of_a_whole_place(tmp_path, place, enviroatlas):
    nlcd, truth, grid, _ = place
    labels = read_sparse_labels(tmp_path / "points.gpkg", enviroatlas, grid, weight=0.5)
    right = {}
    for name, recalibrate in (("as it is", False), ("mended", True)):
        path = tmp_path / f"{recalibrate}.tif"
        options = {
            "settings": PriorSettings(blur_sigma=5, blur_radius=8),
            "sparse_labels": labels,
            "recalibrate": recalibrate,
        }
        build_prior(nlcd, path, cooccurrence=load_cooccurrence(None, enviroatlas), **options)
        with PriorLayer(path) as belief:
            best = enviroatlas.codes[belief.read()[0].argmax(0)]
        right[name] = (best == truth).mean()
    assert right["as it is"] < (truth == 40).mean() + 0.05  # barren hardly occurs
    assert right["mended"] > 0.8
    with rasterio.open(tmp_path / "True.tif") as src:
        tags = json.loads(src.tags(ns="LANDPRIOR")["calibration"])
    assert tags["points"] == 60
    assert tags["bias"][2] == max(tags["bias"])  # barren


def test_recalibrating_uses_only_points_with_one_class(tmp_path, place, enviroatlas):
    nlcd, _, grid, frame = place
    matrix = load_cooccurrence(None, enviroatlas)
    with pytest.raises(InputError, match="needs labelled points"):
        build_prior(nlcd, tmp_path / "a.tif", cooccurrence=matrix, recalibrate=True)
    frame.assign(**{"class": "trees|grass"}).to_file(tmp_path / "vague.gpkg")
    labels = read_sparse_labels(tmp_path / "vague.gpkg", enviroatlas, grid)
    with pytest.raises(InputError, match="0 labelled points"):
        build_prior(nlcd, tmp_path / "b.tif", cooccurrence=matrix, sparse_labels=labels, recalibrate=True)
    assert not (tmp_path / "b.tif").exists()


def test_points_of_a_stratified_sample_are_weighted_by_area(tmp_path, place, enviroatlas):
    _, _, grid, frame = place
    strata = np.where(np.arange(60) < 10, 10, 40)
    sizes = np.where(strata == 10, 100, 5000)
    frame.assign(stratum=strata, stratum_pixels=sizes).to_file(tmp_path / "sample.gpkg")
    labels = read_sparse_labels(tmp_path / "sample.gpkg", enviroatlas, grid)
    *_, shares = labels.points(grid)
    assert sorted(set(shares)) == [10.0, 100.0]  # 100 px on 10 points, 5000 px on 50
    assert (shares == 10).sum() == 10


def test_points_are_assigned_to_the_pixels_that_contain_them(place, enviroatlas, tmp_path):
    _, truth, grid, frame = place
    outside = geopandas.GeoDataFrame({"class": ["trees"]}, geometry=[Point(grid.bounds.left - 5, 0)], crs=frame.crs)
    geopandas.pd.concat([frame, outside]).to_file(tmp_path / "more.gpkg")
    rows, columns, classes, _ = read_sparse_labels(tmp_path / "more.gpkg", enviroatlas, grid).points(grid)
    assert len(rows) == 60
    assert (enviroatlas.codes[classes] == truth[rows, columns]).all()


def test_windows_grow_up_to_the_edge_of_the_raster(make_grid):
    assert grow_window(Window(5, 6, 1, 1), 10, make_grid(20, 30)) == Window(0, 0, 16, 17)
    assert grow_window(Window(5, 6, 1, 1), 2, Window(4, 0, 30, 30)) == Window(4, 4, 4, 5)
