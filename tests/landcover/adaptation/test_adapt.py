"""Adapting a model to labelled points, and mapping with it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pandas as pd
import pytest

from landprior.errors import InputError, OutputExistsError
from landprior.landcover.adaptation.adapt import adapt, fit_head
from landprior.landcover.adaptation.fitting import LEAST_POINTS, Share
from landprior.landcover.adaptation.labelled_pixels import PlaceTile
from landprior.landcover.adaptation.report import Report
from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.head import Head
from landprior.landcover.training.model import load_model, save_model
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.run import Run

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 90
SHARES = MapOptions(probabilities=True, encoding="float32")


@pytest.fixture
def place(tmp_path, make_raster, make_prior, make_model):
    """Return a place whose classes are bright and dark halves of an image that the model knows nothing of."""
    rng = np.random.default_rng(5)
    bright = np.zeros((SIDE, SIDE), dtype=bool)
    bright[:, SIDE // 2 :] = True
    values = np.where(bright, 200, 60) + rng.normal(0, 10, (4, SIDE, SIDE))
    image = make_raster("image.tif", values.clip(1, 255).astype(np.uint8))
    with open_raster(image) as src:
        grid = Grid.of(src)
    prior = make_prior("prior.tif", SIDE, SIDE)
    model = save_model(make_model(), tmp_path / "model.safetensors")
    return image, prior, model, grid, bright


def write_points(path: Path, grid: Grid, rows, columns, names, column="class", **more) -> Path:
    x, y = grid.transform @ (np.asarray(columns) + 0.5, np.asarray(rows) + 0.5)
    frame = geopandas.GeoDataFrame(
        {column: names, **more}, geometry=geopandas.points_from_xy(x, y), crs=grid.crs.to_wkt()
    )
    frame.to_file(path)
    return path


def draw(path, grid, bright, number=40, **options):
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, SIDE, (2, number))
    return write_points(path, grid, rows, columns, np.where(bright[rows, columns], "barren", "grass"), **options)


def read(path):
    with open_raster(path) as src:
        return src.read(1)


def test_points_teach_classes_that_the_model_does_not_know(tmp_path, place, enviroatlas):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    report = adapt(model, [(image, prior)], points, tmp_path / "adapted.safetensors")
    assert report.points == 40
    assert report.classes["barren"] + report.classes["grass"] == 40
    assert report.adapted.value > 0.95
    assert report.plain.value < 0.5
    assert report.adapted.low < report.adapted.value <= report.adapted.high
    found = read(predict(image, tmp_path / "map.tif", load_model(tmp_path / "adapted.safetensors"), posterior=prior))
    codes = {name: enviroatlas.classes[enviroatlas.names.index(name)].code for name in ("barren", "grass")}
    away = np.abs(np.arange(SIDE) - SIDE / 2) > 6
    assert (found == np.where(bright, codes["barren"], codes["grass"]))[:, away].mean() > 0.98


def test_a_head_without_points_maps_as_the_model_does(tmp_path, place):
    image, prior, path, *_ = place
    model = load_model(path)
    head = fit_start(model, image, prior)
    options = replace(SHARES, finish="none")  # a finished map of r leaves out what was given up
    plain = predict(image, tmp_path / "plain.tif", model, posterior=prior, options=options)
    adapted = replace(model, head=head, record={"adaptation": {"points": 0}})
    headed = predict(image, tmp_path / "head.tif", adapted, posterior=prior, options=options)
    with open_raster(companion(plain)) as a, open_raster(companion(headed)) as b:
        np.testing.assert_allclose(a.read(), b.read(), atol=2e-5)
        tags = b.tags(ns="landprior")
    assert read(plain).tolist() == read(headed).tolist()
    assert tags["adapted"] == "0 points"
    assert "decision" not in tags


def companion(path: Path) -> Path:
    return path.with_name(f"{path.stem}_probabilities.tif")


def fit_start(model, image, prior) -> Head:
    from landprior.landcover.training.layers import ImageLayer, PriorLayer

    with ImageLayer(image) as pixels, PriorLayer(prior) as belief:
        import torch

        values, valid = pixels.read()
        inputs = model.statistics.standardise(torch.from_numpy(values), torch.from_numpy(valid))[None]
        with torch.inference_mode():
            q = model.network(inputs)[0].exp().double()
        shares = belief.read()[0]
    return Head.of_posterior(q.mean((1, 2)).log().numpy(), np.log(shares.mean((1, 2), dtype=np.float64)), 4)


@pytest.mark.parametrize("finish", ["edge", "none"])
def test_maps_by_a_head_do_not_depend_on_the_windows(tmp_path, place, make_prior, finish):
    image, prior, path, *_ = place
    model = load_model(path)
    start, rng = fit_start(model, image, prior), np.random.default_rng(0)
    weights = start.weights + 0.3 * rng.normal(size=start.weights.shape)
    adapted = replace(model, head=replace(start, weights=weights), record={"adaptation": {"points": 9}})
    holes = np.zeros((SIDE, SIDE), dtype=bool)
    holes[20:50, 30:70] = True
    holed = make_prior("holed.tif", SIDE, SIDE, holes=holes)
    options = replace(SHARES, finish=finish)
    found = []
    for size in (512, 32):
        target = predict(image, tmp_path / f"{size}.tif", adapted, posterior=holed, options=options, window_size=size)
        with open_raster(companion(target)) as src:
            found.append(src.read())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.isfinite(found[0]).all()


def test_where_there_is_no_prior_the_mean_prior_stands_in(tmp_path, place, make_raster, enviroatlas):
    image, prior, path, *_ = place
    model = load_model(path)
    head = fit_start(model, image, prior)
    adapted = replace(model, head=head, record={"adaptation": {"points": 9}})
    options = replace(SHARES, finish="none")
    bare = predict(image, tmp_path / "bare.tif", adapted, options=options)
    mean = np.broadcast_to(np.exp(head.log_prior)[:, None, None], (5, SIDE, SIDE)).astype(np.float32)
    tags = {"scheme": enviroatlas.model_dump_json(exclude_defaults=True)}
    flat = make_raster("flat.tif", mean, dtype="float32", nodata=float("nan"), tags=tags)
    full = predict(image, tmp_path / "full.tif", adapted, posterior=flat, options=options)
    with open_raster(companion(bare)) as a, open_raster(companion(full)) as b:
        np.testing.assert_allclose(a.read(), b.read(), atol=1e-3)  # a prior that is read is smoothed by 1e-4


def test_points_of_a_sample_have_the_shares_of_their_strata(tmp_path, place):
    image, prior, model, grid, bright = place
    number = 40
    strata = {"stratum": np.arange(number) % 2 + 1, "stratum_pixels": np.where(np.arange(number) % 2, 300, 7800)}
    strata["stratum_hectares"] = strata["stratum_pixels"] / 1e4
    points = draw(tmp_path / "points.gpkg", grid, bright, number, column="reference", **strata)
    report = adapt(model, [(image, prior)], points, tmp_path / "adapted.safetensors")
    assert report.designed
    even = adapt(model, [(image, prior)], draw(tmp_path / "even.gpkg", grid, bright), tmp_path / "even.safetensors")
    assert not even.designed
    assert "random sample" in even.to_text()
    assert "random sample" not in report.to_text()
    first, second = (load_model(tmp_path / f"{name}.safetensors").head for name in ("adapted", "even"))
    assert first is not None
    assert second is not None
    assert np.abs(first.weights - second.weights).max() > 1e-3


def test_one_head_for_tiles_with_their_own_models(tmp_path, place, make_model):
    image, prior, path, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    one, other = load_model(path), make_model(seed=8)
    tiles = [PlaceTile(image=image, prior=prior, model=model) for model in (one, other)]
    heads, report = fit_head(tiles, points)
    assert report.points == 40  # each counts once
    np.testing.assert_array_equal(heads[0].weights, heads[1].weights)
    assert np.abs(heads[0].log_marginal - heads[1].log_marginal).max() > 0.01
    np.testing.assert_allclose(heads[0].log_marginal, fit_start(one, image, prior).log_marginal, atol=1e-4)
    np.testing.assert_allclose(heads[1].log_marginal, fit_start(other, image, prior).log_marginal, atol=1e-4)


def test_a_model_that_is_adapted_again_begins_anew(tmp_path, place):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    first = adapt(model, [(image, prior)], points, tmp_path / "first.safetensors")
    again = adapt(tmp_path / "first.safetensors", [(image, prior)], points, tmp_path / "again.safetensors")
    assert again == first
    a, b = (load_model(tmp_path / f"{name}.safetensors") for name in ("first", "again"))
    assert a.digest() == b.digest()
    assert a.record["adaptation"]["files"] == ["points.gpkg"]
    assert a.record["adaptation"]["adapted"]["value"] == first.adapted.value


def test_classes_given_up_are_left_out_unless_a_point_shows_them(tmp_path, place):
    image, prior, path, grid, bright = place
    base = load_model(path)
    # a network that never names barren or trees
    last = [module for module in base.network.modules() if getattr(module, "out_channels", 0) == 5][-1]
    last.bias.data[[2, 3]] -= 50.0
    points = draw(tmp_path / "points.gpkg", grid, bright)
    heads, _ = fit_head([PlaceTile(image=image, prior=prior, model=base)], points)
    left_out = heads[0].left_out.tolist()
    assert 3 in left_out
    assert 2 not in left_out  # some points are barren


def test_a_file_given_twice_changes_nothing(tmp_path, place):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    once = adapt(model, [(image, prior)], points, tmp_path / "once.safetensors")
    assert adapt(model, [(image, prior)], [points, points], tmp_path / "twice.safetensors") == once


def test_points_of_an_overlap_are_counted_once(tmp_path, place, make_model, caplog):
    image, prior, path, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright, purpose=np.where(np.arange(40) < 7, "adapt", ""))
    tiles = [PlaceTile(image=image, prior=prior, model=model) for model in (load_model(path), make_model(seed=8))]
    _, report = fit_head(tiles, points)
    assert report.points == 40
    assert report.proposed == 7
    assert "without data" not in caplog.text


def test_points_without_data_are_left_out(tmp_path, place, make_image, caplog):
    _, prior, model, grid, bright = place
    holes = np.zeros((SIDE, SIDE), dtype=bool)
    holes[:, :45] = True
    image = make_image("holed.tif", SIDE, SIDE, holes=holes)
    points = draw(tmp_path / "points.gpkg", grid, bright)
    with caplog.at_level(logging.WARNING, logger="landprior"):
        report = adapt(model, [(image, prior)], points, tmp_path / "adapted.safetensors")
    assert report.points == 40 - report.classes["grass"] - caplog_count(caplog)
    assert "lie on pixels without data" in caplog.text


def caplog_count(caplog) -> int:
    (text,) = [record.getMessage() for record in caplog.records if "without data" in record.getMessage()]
    return int(text.split(": ")[1].split()[0])


@pytest.mark.parametrize(
    ("number", "complaint"), [(LEAST_POINTS - 1, f"9 points have one class .* at least {LEAST_POINTS} are needed")]
)
def test_too_few_points_are_an_error(tmp_path, place, number, complaint):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright, number)
    with pytest.raises(InputError, match=complaint):
        adapt(model, [(image, prior)], points, tmp_path / "adapted.safetensors")
    assert not (tmp_path / "adapted.safetensors").exists()


def test_an_existing_model_is_kept(tmp_path, place):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    (tmp_path / "mine.safetensors").write_text("kept")
    with pytest.raises(OutputExistsError):
        adapt(model, [(image, prior)], points, tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "kept"
    with pytest.raises(InputError, match="which it would replace"):
        adapt(model, [(image, prior)], points, model, run=Run(overwrite=True))


def test_a_mean_prediction_is_refused_for_an_adapted_model(tmp_path, place):
    image, prior, path, *_ = place
    model = load_model(path)
    adapted = replace(model, head=fit_start(model, image, prior), record={"adaptation": {"points": 9}})
    with pytest.raises(InputError, match="own mean prediction"):
        predict(image, tmp_path / "map.tif", adapted, posterior=prior, marginal=[0.2] * 5)


@pytest.mark.parametrize(
    ("plain", "half", "adapted", "advice"),
    [
        (0.8, 0.7, 0.75, "the points do not improve the map"),
        (0.6, 0.7, 0.75, "the second half of the points added 5 %: more of them are likely to pay"),
        (0.6, 0.75, 0.75, "the second half of the points added little"),
    ],
)
def test_the_report_advises(plain, half, adapted, advice):
    shares = {
        name: Share(value, 0.0, 1.0) for name, value in {"plain": plain, "half": half, "adapted": adapted}.items()
    }
    report = Report(
        points=30,
        classes={"water": 2, "grass": 28},
        ridge=1.0,
        prior=Share(0.5, 0.4, 0.6),
        designed=True,
        proposed=0,
        **shares,
    )
    assert advice in report.advise()
    assert ("label more points of water" in report.advise()) == (plain < adapted)
    assert "30 points (water 2, grass 28)" in report.to_text()


def test_a_map_knows_the_points_that_it_was_adapted_to(tmp_path, place, enviroatlas, caplog):
    image, prior, model, grid, bright = place
    points = draw(tmp_path / "points.gpkg", grid, bright)
    report = adapt(model, [(image, prior)], points, tmp_path / "adapted.safetensors")
    assert len(set(report.marks.split())) == 40
    found = predict(image, tmp_path / "map.tif", load_model(tmp_path / "adapted.safetensors"), posterior=prior)
    frame = geopandas.read_file(points)
    moved = frame.assign(geometry=frame.translate(1 / 3))
    for name, some, text in (
        ("same", frame, "adapted to 40 of the 40 points, so it looks better"),
        ("mixed", pd.concat([frame.head(10), moved.tail(20)]).to_crs(4326), "adapted to 10 of the 30 points"),
        ("new", moved, None),
    ):
        some.to_file(tmp_path / f"{name}.gpkg")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="landprior"):
            evaluate_points(found, tmp_path / f"{name}.gpkg", enviroatlas, column="class")
        assert (text in caplog.text) if text else ("adapted to" not in caplog.text)
