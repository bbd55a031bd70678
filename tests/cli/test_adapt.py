"""``landprior adapt`` and ``landprior sample --for adapt``."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
from click.testing import CliRunner

from landprior.cli import main
from landprior.landcover.training.model import load_model, save_model
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster


def landprior(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in ("--quiet", *arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def place(tmp_path, make_image, make_prior, make_model):
    """Return image, prior, model and 30 labelled points."""
    image, prior = make_image("image.tif", 120, 120), make_prior("prior.tif", 120, 120)
    model = save_model(make_model(), tmp_path / "model.safetensors")
    with open_raster(image) as src:
        grid = Grid.of(src)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 120, (2, 30))
    x, y = grid.transform @ (columns + 0.5, rows + 0.5)
    names = rng.choice(["trees", "grass", "water"], 30)
    points = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame({"class": names}, geometry=geopandas.points_from_xy(x, y), crs=grid.crs.to_wkt()).to_file(
        points
    )
    return image, prior, model, points


def test_the_loop_of_points(tmp_path, place):
    image, prior, model, points = place
    adapted, target, more = (tmp_path / name for name in ("adapted.safetensors", "map.tif", "more.gpkg"))
    files = ("--model", model, "--image", image, "--prior", prior)
    text = landprior("adapt", *files, "--points", points, "-o", adapted)
    assert "30 points (" in text
    assert text.splitlines()[-1] == str(adapted)
    landprior("predict", image, "--model", adapted, "--posterior", prior, "--probabilities", "-o", target)
    landprior("sample", target, "--for", "adapt", "-n", "12", "--known", points, "-o", more)
    frame = geopandas.read_file(more)
    assert len(frame) == 12
    frame["reference"] = "trees"
    frame.to_file(more)
    again = tmp_path / "again.safetensors"
    found = json.loads(landprior("adapt", *files, "--points", points, "--points", more, "-o", again, "--json"))
    assert found["points"] == 42
    assert found["proposed"] == 12
    assert load_model(again).record["adaptation"]["files"] == ["points.gpkg", "more.gpkg"]
    assert "proposed where a map is unsure" in landprior("evaluate", target, more, code=1)


def test_options_of_the_other_purpose_are_refused(tmp_path, place):
    image, *_, points = place
    text = landprior("sample", image, "--for", "adapt", "--least", "5", "-o", tmp_path / "a.gpkg", "--scheme",
                     "enviroatlas-5", code=2)  # fmt: skip
    assert "--least cannot be used with --for adapt" in text
    text = landprior("sample", image, "--known", points, "-o", tmp_path / "a.gpkg", "--scheme", "enviroatlas-5", code=2)
    assert "--known cannot be used with a random sample" in text


def test_train_adapts_its_model(tmp_path, place):
    image, prior, _, points = place
    target = tmp_path / "trained.safetensors"
    files = ("--image", image, "--prior", prior, "--points", points, "-o", target)
    text = landprior("train", *files, "--filters", "2", "--steps", "4", "--patch-size", "16", "--batch-size", "2")
    assert "30 points (" in text
    assert load_model(target).record["adaptation"]["points"] == 30


def test_points_are_checked_before_the_training(tmp_path, place):
    image, prior, _, points = place
    target = tmp_path / "trained.safetensors"
    geopandas.read_file(points).head(9).to_file(points)
    text = landprior("train", "--image", image, "--prior", prior, "--points", points, "-o", target, code=1)
    assert "9 points have one class and lie on the priors; at least 10 are needed" in text
    assert not target.exists()
    text = landprior("train", "--image", image, "--prior", prior, "--class-column", "a", "-o", target, code=2)
    assert "--class-column cannot be used with a training without --points" in text


def test_every_image_needs_its_prior(tmp_path, place):
    image, prior, model, points = place
    files = ("--model", model, "--image", image, "--image", image, "--prior", prior, "--points", points)
    text = landprior("adapt", *files, "-o", tmp_path / "a.safetensors", code=2)
    assert "--prior" in text
