"""Commands on a workspace refuse options that they would ignore, and keep results that something else made."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner

# imported first, because the tests change settings that these modules import from another one
import landprior.batch.estimate
import landprior.batch.plans
import landprior.batch.tile_runner
import landprior.cli.learn_prior
import landprior.cli.run  # noqa: F401 - likewise
from landprior.cli import main
from landprior.implicit.settings import TrainingSettings
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training import settings as training_settings
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.cog import write_raster
from landprior.raster.scheme import MAP_NODATA

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")


def run(line):
    return CliRunner().invoke(main, ["-q", *shlex.split(line)], prog_name="landprior")


def succeed(line):
    result = run(line)
    assert result.exit_code == 0, result.output
    return result


def assert_refused(line, *words):
    """Check that a command ends with a one-line error that contains some words, and no result."""
    result = run(line)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    text = result.stderr[result.stderr.index("Error: ") :]
    assert text.count("\n") == 1, text
    for word in words:
        assert word in text


def quick(**changes):
    """Return settings for a training of four steps."""
    loop = TrainingSettings(steps=4, warmup_steps=2)
    return TileSettings(**{"training": loop, "filters": 2, "patch_size": 16, "batch_size": 2} | changes)


@pytest.fixture(scope="module")
def scene():
    return make_scene(128, seed=3)


@pytest.fixture
def town(tmp_path, scene, monkeypatch):
    """Return a workspace with one tile that was filled by hand, with short trainings."""
    folder = tmp_path / "data" / "town" / "centre"
    folder.mkdir(parents=True)
    write_raster(folder / "naip.tif", scene.image, scene.grid)
    write_raster(folder / "nlcd.tif", scene.nlcd.astype(np.uint8), scene.grid, overviews="nearest")
    write_raster(folder / "labels.tif", scene.truth, scene.grid, nodata=MAP_NODATA, overviews="nearest")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDPRIOR_DATA", "data")
    monkeypatch.setattr(training_settings, "TileSettings", quick)
    return folder


def test_a_joint_model_does_not_replace_maps_of_the_tile_models(town):
    """README: nothing is replaced without --overwrite; stale results of the same recipe are recomputed."""
    succeed("run --city TOWN --scheme enviroatlas-5")
    before = (town / "prediction.tif").read_bytes()
    succeed("train --city town --joint")
    assert_refused(
        "predict --city town --model data/town/model.safetensors",
        "data/town/centre/prediction.tif was made by predict with the tile's own model",
        "not by predict with the joint model of the place",
        "--overwrite",
    )
    assert (town / "prediction.tif").read_bytes() == before
    succeed("predict --city town --model data/town/model.safetensors --overwrite")
    made = TileFolder(path=town, city="town").steps()["prediction"]
    assert made["recipe"] == "predict with the joint model of the place"
    assert_refused(
        "run --city town --scheme enviroatlas-5",
        "prediction.tif was made by predict with the joint model",
        "--overwrite",
    )


SOURCES = (
    "--reference nosuch.tif",
    "--reference nosuch.tif --label-map 1:2",
    "--class-column kind",
    "--year 2004",
    "--nlcd-year 2019",
    "--naip nosuch",
    "--nlcd nosuch.tif",
    "--nlcd-wcs http://127.0.0.1/",
    "--nlcd-coverage x",
    "--osm none",
    "--overpass-url http://127.0.0.1/",
    "--nominatim-url http://127.0.0.1/",
    "--stac-url http://127.0.0.1/",
    "--sign-url http://127.0.0.1/",
    "--buildings nosuch.fgb",
    "--buildings-index http://127.0.0.1/",
    "--road-width tags",
    "--jobs 3",
    "--refresh",
    "--retries 2",
)


@pytest.mark.parametrize("options", SOURCES)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_sources_of_a_place_that_is_not_fetched_are_refused(town, command, options):
    """They used to be ignored silently."""
    assert_refused(
        f"{command} --city town --scheme enviroatlas-5 {options}",
        f"{options.split()[0]} cannot be used with the place town of the workspace",
        "it was not fetched, so put your layers into data/town/<tile>/",
    )
    assert not (town / "prior.tif").exists()


def test_the_error_for_sources_of_a_place_fetched_by_box_suggests_the_box(town):
    TileFolder(path=town, city="town").record("naip", "key")
    assert_refused(
        "run --city town --scheme enviroatlas-5 --reference nosuch.tif",
        "--reference cannot be used with the place town",
        "--bbox, --place or --aoi, and --name town",
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --city town --scheme enviroatlas-5 --bbox 1,2,3,4", ["--bbox cannot be used with --city"]),
        ("plan --city town --scheme enviroatlas-5 --name x", ["--name cannot be used with --city"]),
        ("build-prior --city town --nlcd a.tif --scheme enviroatlas-5 -o p.tif", ["--nlcd is for plain files"]),
        ("build-prior --nlcd a.tif --scheme enviroatlas-5 -o p.tif --tile centre", ["--tile is for a workspace"]),
        ("build-prior --nlcd a.tif --scheme enviroatlas-5 -o p.tif --data data", ["--data is for a workspace"]),
        ("train --image a.tif --prior p.tif -o m.safetensors --tile centre", ["--tile is for a workspace"]),
        ("train --city town --method sr --nlcd a.tif", ["--nlcd is for plain files"]),
        ("train --city town --method em -o m.safetensors", ["-o is for plain files"]),
        ("predict a.tif --model m.safetensors --tile centre", ["--tile is for a workspace"]),
        ("predict --city town --encoding uint8", ["--encoding cannot be used with a map only"]),
        ("predict --city town --finish none --finish-width 5", ["--finish-width cannot be used with --finish none"]),
        ("learn-prior --nlcd a --labels b --scheme enviroatlas-5 -o l --tile x", ["--tile is for a workspace"]),
        ("run --city ../town --scheme enviroatlas-5", ["is a folder; give its name", "--city town"]),
        ("run --city ../../x --scheme enviroatlas-5", ["cannot be the name of a city: it is a path"]),
    ],
)
def test_options_that_a_command_would_ignore_are_refused(town, line, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    if "../town" in line:
        (town.parents[1] / "sub").mkdir()
        line = line.replace("../town", "data/town")
    assert_refused(line, *words)


def test_a_label_map_that_no_tile_needs_is_refused(town):
    tile = TileFolder(path=town, city="town")
    line = "run --city town --scheme enviroatlas-5 --label-map 40:70"
    succeed(line)
    tile.record("labels", "key")  # like fetch
    assert_refused(
        line, "--label-map would have no effect: fetch has already converted", "labels.tif to the scheme's codes"
    )
    tile.file("labels").unlink()
    assert_refused(line, "--label-map would have no effect: no tile has labels (there is no ", "labels.tif")


def test_joint_training_with_a_preset_file_writes_into_the_workspace(town, tmp_path):
    """And not to the path of the preset file."""
    path = tmp_path / "another-name.yaml"
    path.write_text(
        "name: town\ntitle: x\nbounds: [-76.6, 42.4, -76.4, 42.5]\nnaip_year: 2021\nnlcd_year: 2021\nepsg: 26918\n"
        "scheme: enviroatlas-5\n"
    )
    succeed(f"build-prior --city {path}")
    assert succeed(f"train --city {path} --joint").stdout == "data/town/model.safetensors\n"
    assert path.is_file()
    assert (town.parent / "model.safetensors").is_file()


# -- single steps and whole runs -------------------------------------------------------------------

MADE = ("prior.tif", "model.safetensors", "prediction.tif")


@pytest.mark.parametrize(
    "lines",
    [
        ("run --city town --scheme enviroatlas-5",),
        (
            "run --city town --scheme enviroatlas-5 --only prior",
            "run --city town --only model",
            "run --city town --only map",
            "run --city town --scheme enviroatlas-5 --only scores",
        ),
        ("build-prior --city town --scheme enviroatlas-5", "train --city town", "predict --city town"),
    ],
    ids=["chain", "only", "alias"],
)
def test_single_steps_and_commands_for_files_give_the_same_as_run(town, lines, made):
    """The same bytes, because they run the same code."""
    shown = [succeed(line).stdout for line in lines]
    found = {name: (town / name).read_bytes() for name in MADE}
    assert made.setdefault("files", found) == found
    if len(lines) > 1:
        paths = ["data/town/centre/prior.tif", "data/town/centre/model.safetensors", "data/town/centre/prediction.tif"]
        assert [text.strip() for text in shown[:3]] == paths
    if "--only scores" in lines[-1]:
        assert "accuracy" in shown[-1]
    by = "run" if lines[0].startswith("run") else "predict"
    assert TileFolder(path=town, city="town").steps()["prediction"]["command"] == by


@pytest.fixture(scope="module")
def made():
    """Return a dictionary in which a test leaves its files for the next one to compare."""
    return {}


def test_several_steps_at_once_and_their_output(town):
    shown = json.loads(succeed("run --city town --scheme enviroatlas-5 --only prior,model --json").stdout)
    assert shown == {"models": ["data/town/centre/model.safetensors"], "scores": None}
    assert not (town / "prediction.tif").exists()
    shown = json.loads(succeed("run --city town --scheme enviroatlas-5 --only map --only scores --json").stdout)
    assert shown["maps"] == ["data/town/centre/prediction.tif"]
    assert shown["scores"]["pixels"] == 128 * 128


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--only prio", ["'prio' is not a step; the steps are fetch, prior, model, map, scores"]),
        ("--only prior --steps 3", ["--steps cannot be used with --only prior", "it is for: model"]),
        ("--only model --quicklook", ["--quicklook cannot be used with --only model", "it is for: map"]),
        ("--only map,scores --year 2010", ["--year cannot be used with --only map,scores", "it is for: fetch"]),
        ("--only model --label-map 1:2", ["--label-map cannot be used with --only model", "fetch, scores"]),
        ("--only map --encoding uint8", ["--encoding cannot be used with a map only"]),
    ],
)
def test_options_of_omitted_steps_are_refused(town, options, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert_refused(f"run --city town --scheme enviroatlas-5 {options}", *words)
    assert not (town / "prior.tif").exists()


def test_steps_without_a_place_are_refused(town):
    assert_refused("run --bbox 1,2,3,4 --only map", "give a place of the workspace with --city")
    assert not (town / "prediction.tif").exists()


@pytest.fixture
def labelled(town):
    """Return points on the tile, from its labels."""
    with rasterio.open(town / "labels.tif") as src:
        values, transform = src.read(1), src.transform
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 128, (2, 30))
    x, y = transform @ (columns + 0.5, rows + 0.5)
    frame = pd.DataFrame({"x": x, "y": y, "seen": values[rows, columns]})
    frame.to_csv("points.csv", index=False)
    return "points.csv"


def test_run_with_points_gives_the_same_as_adapt_and_predict(town, labelled):
    """README: the points of a place adapt its models; plain files and the workspace agree to the bit."""
    run_with_points = f"run --city town --scheme enviroatlas-5 --points {labelled} --class-column seen"
    succeed("run --city town --scheme enviroatlas-5")
    model = (town / "model.safetensors").read_bytes()
    text = succeed(run_with_points).stdout
    assert "30 points (" in text
    assert "data/town/centre/prediction.tif" in text.splitlines()
    files = f"--image {town}/naip.tif --prior {town}/prior.tif"
    succeed(f"adapt --model {town}/model.safetensors {files} --points {labelled} --class-column seen -o a.safetensors")
    succeed(f"predict {town}/naip.tif --model a.safetensors --posterior {town}/prior.tif -o a.tif")
    assert Path("a.safetensors").read_bytes() == (town / "adapted.safetensors").read_bytes()
    with rasterio.open("a.tif") as one, rasterio.open(town / "prediction.tif") as other:
        assert np.array_equal(one.read(), other.read())
        assert one.tags(ns="landprior") == other.tags(ns="landprior")
    assert (town / "model.safetensors").read_bytes() == model
    before = (town / "prediction.tif").stat().st_mtime_ns
    found = json.loads(succeed(f"{run_with_points} --json").stdout)
    assert found["adaptation"]["points"] == 30
    assert (town / "prediction.tif").stat().st_mtime_ns == before
    assert_refused("run --city town --scheme enviroatlas-5", "adapted to points", "it is kept", "--overwrite")
    (town / "prediction.tif").unlink()
    succeed(f"run --city town --only map --points {labelled} --class-column seen")
    with rasterio.open("a.tif") as one, rasterio.open(town / "prediction.tif") as other:
        assert np.array_equal(one.read(), other.read())


def test_options_of_points_are_checked(town, labelled):
    line = "run --city town --scheme enviroatlas-5"
    assert_refused(f"{line} --layer a", "--layer cannot be used with a run without --points")
    assert_refused(f"{line} --class-column seen", "--class-column cannot be used with the place town")
    assert_refused(f"{line} --only model --points {labelled}", "--points cannot be used with --only model")
    assert_refused(f"{line} --points {labelled}", "has no column 'reference'", "--class-column")
    pd.read_csv(labelled).head(9).to_csv("few.csv", index=False)
    assert_refused(f"{line} --points few.csv --class-column seen", "9 points have one class", "at least 10 are needed")
    assert not (town / "prior.tif").exists()
