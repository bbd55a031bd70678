"""Commands that learn from labels, draw samples and run experiments, on small plain files."""

# ruff: noqa: ARG001 - many tests use a fixture only because it changes the directory

import json
import os
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import rasterio
import yaml

from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.model import load_model
from landprior.raster.cog import write_raster
from landprior.sources.sample_design import REFERENCE
from tests.helpers import good, run

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

TINY = "--steps 6 --filters 2 --batch-size 2"
LAYERS = "--roads roads.tif --buildings buildings.tif --waterways waterways.tif --waterbodies waterbodies.tif"
LEARN = (
    f"learn-prior --nlcd nlcd.tif --labels labels.tif {LAYERS} --scheme enviroatlas-5 --steps 4 --filters 2 "
    "-o learned.safetensors"
)
BUILD = f"build-prior --nlcd nlcd.tif {LAYERS} --scheme enviroatlas-5"


@pytest.fixture(scope="module")
def scene():
    return make_scene(128, seed=1)


@pytest.fixture
def files(tmp_path, scene, enviroatlas, monkeypatch):
    """The layers of a scene in the current directory."""
    monkeypatch.chdir(tmp_path)
    arrays = {"naip": scene.image, "nlcd": scene.nlcd, "labels": scene.truth, **scene.layers}
    for name, values in arrays.items():
        scheme = {"scheme": enviroatlas, "nodata": 255} if name == "labels" else {}
        write_raster(tmp_path / f"{name}.tif", values, scene.grid, overviews="nearest", **scheme)
    return tmp_path


@pytest.mark.parametrize("command", ["learn-prior", "train", "tune", "sample", "evaluate", "experiment", "build-prior"])
def test_help_has_examples(command):
    text = good(f"{command} --help")
    assert f"landprior {command}" in text


def test_a_prior_is_learned_and_used(files):
    assert good(LEARN).strip() == "learned.safetensors"
    assert load_model("learned.safetensors").extras == ("nlcd", "roads", "buildings", "waterways", "waterbodies")
    good(f"{BUILD} --learned learned.safetensors -o prior.tif")
    with rasterio.open("prior.tif") as src:
        np.testing.assert_allclose(src.read().sum(0), 1, atol=5e-3)
    missing = run("-q build-prior --nlcd nlcd.tif --scheme enviroatlas-5 --learned learned.safetensors -o b.tif")
    assert missing.exit_code == 1
    assert "give --roads, --buildings, --waterways, --waterbodies" in missing.stderr
    other = run(f"-q {BUILD} --learned learned.safetensors --blur-sigma 9 -o b.tif")
    assert other.exit_code == 1
    assert "sigma 31 m" in other.stderr


def test_a_prior_is_learned_on_two_tiles_whose_options_must_match(files):
    good(LEARN.replace("-o learned", "--nlcd nlcd.tif --labels labels.tif " + LAYERS + " -o two"))
    assert len(load_model("two.safetensors").record["tiles"]) == 2
    result = run(f"-q {LEARN} --nlcd nlcd.tif")
    assert result.exit_code == 2
    assert "2 --nlcd and 1 --labels were given" in result.stderr
    assert run("learn-prior -o x.safetensors").exit_code == 2


def test_a_prior_is_learned_on_the_labelled_tiles_of_a_workspace(files):
    for tile in ("one", "two"):
        folder = files / "landprior-data" / "town" / tile
        folder.mkdir(parents=True)
        for path in files.glob("*.tif"):
            if path.name != "labels.tif" or tile == "one":
                (folder / path.name).write_bytes(path.read_bytes())
    options = "--city town --scheme enviroatlas-5 --steps 4 --filters 2"
    good(f"learn-prior {options} -o city.safetensors")
    assert load_model("city.safetensors").record["tiles"] == ["town/one"]
    good("build-prior --city town --scheme enviroatlas-5 --tile two --learned city.safetensors")
    refused = run(f"-q learn-prior {options} --tile two -o b.safetensors")
    assert refused.exit_code == 1
    assert "name labelled tiles with --tile" in refused.stderr
    with rasterio.open(files / "landprior-data" / "town" / "two" / "prior.tif") as src:
        assert src.tags(ns="landprior")["learned"] == load_model("city.safetensors").digest()
    # run accepts it too, and keeps the prior that build-prior made with it
    stamp = (files / "landprior-data" / "town" / "two" / "prior.tif").stat().st_mtime_ns
    good("run --city town --scheme enviroatlas-5 --tile two --learned city.safetensors --filters 2")
    assert (files / "landprior-data" / "town" / "two" / "prior.tif").stat().st_mtime_ns == stamp


def test_a_model_of_image_and_prior_maps_a_workspace(files):
    folder = files / "landprior-data" / "town" / "one"
    folder.mkdir(parents=True)
    good(f"{BUILD} -o prior.tif")
    good(
        f"train --image naip.tif --labels labels.tif --prior prior.tif --scheme enviroatlas-5 {TINY} -o aux.safetensors"
    )
    for path in files.glob("*.tif"):
        (folder / path.name).write_bytes(path.read_bytes())
    good("predict --city town --model aux.safetensors --maps q")
    good("predict naip.tif --model aux.safetensors --prior prior.tif -o aux.tif")
    with rasterio.open("aux.tif") as alone, rasterio.open(folder / "prediction.tif") as inside:
        assert (alone.read() == inside.read()).all()
    good("evaluate aux.tif labels.tif --figure f.png --image naip.tif --prior prior.tif --model aux.safetensors")
    assert (files / "f.png").stat().st_size > 10_000


def test_options_without_effect_are_refused(files):
    good(f"{BUILD} -o prior.tif")
    lines = {
        "run --city town --scheme enviroatlas-5 --recipe best --starts 2": "give only one of the two",
        "train --image naip.tif --labels labels.tif --scheme enviroatlas-5 --starts 2 -o m.safetensors": "no evidence",
        "train --image naip.tif --prior prior.tif --label-map 1:10 -o m.safetensors": "only with --labels",
        "evaluate labels.tif labels.tif --exclude-buffer 3": "name what is left out with --exclude",
        "evaluate labels.tif labels.tif --pixel-size 3": "only with points",
        f"{BUILD} --points-weight 0.5 -o b.tif": "without --points",
        f"{LEARN} --city town": "is for plain files",
    }
    for line, text in lines.items():
        result = run(f"-q {line}")
        assert (result.exit_code, text in result.stderr) == (2, True), result.output


def test_from_labels_to_a_map_and_then_qr(files):
    good(f"{BUILD} -o prior.tif")
    good(f"train --image naip.tif --labels labels.tif --scheme enviroatlas-5 {TINY} -o hr.safetensors")
    good(
        f"train --image naip.tif --labels labels.tif --prior prior.tif --scheme enviroatlas-5 {TINY} -o aux.safetensors"
    )
    assert load_model("hr.safetensors").loss == "ce"
    assert load_model("hr.safetensors").network.smoothing == 1e-8
    good("predict naip.tif --model hr.safetensors -o hr.tif")
    good("predict naip.tif --model aux.safetensors --prior prior.tif -o aux.tif")
    good(f"train --image naip.tif --prior prior.tif --init hr.safetensors {TINY} --warmup-steps 2 -o qr.safetensors")
    assert load_model("qr.safetensors").loss == "qr"
    lacking = run("-q predict naip.tif --model aux.safetensors -o b.tif")
    assert (lacking.exit_code, "--prior PRIOR" in lacking.stderr) == (1, True)
    wrong = run(
        f"-q train --image naip.tif --labels labels.tif --loss qr --scheme enviroatlas-5 {TINY} -o b.safetensors"
    )
    assert (wrong.exit_code, "use --loss ce" in wrong.stderr) == (1, True)
    both = run(f"-q train --image naip.tif --labels labels.tif --labels labels.tif {TINY} -o b.safetensors")
    assert (both.exit_code, "1 --image and 2 --labels" in both.stderr) == (2, True)


def test_recipes_on_the_command_line(files):
    good(f"{BUILD} -o prior.tif")
    good(f"train --image naip.tif --prior prior.tif --recipe best {TINY} --warmup-steps 2 -o best.safetensors")
    assert len(load_model("best.safetensors").members) == 3
    good(f"train --image naip.tif --prior prior.tif --members 2 {TINY} --warmup-steps 2 -o two.safetensors")
    two = load_model("two.safetensors")
    assert (len(two.members), two.network.flips) == (2, False)
    wrong = run(f"-q train --image naip.tif --prior prior.tif --members 2 --starts 2 {TINY} -o b.safetensors")
    assert (wrong.exit_code, "give only one of the two" in wrong.stderr) == (2, True)


def test_tune_prints_the_grid_and_the_best(files):
    good(f"{BUILD} -o prior.tif")
    line = f"tune --image naip.tif --prior prior.tif --reference labels.tif {TINY} --rates 1e-2,1e-3 -o tuning"
    first = good(line)
    assert first.count("<- best") == 1
    assert "its model: tuning" in first
    stamps = {path: path.stat().st_mtime_ns for path in (files / "tuning").glob("*.safetensors")}
    found = json.loads(good(f"{line} --json"))
    assert {path: path.stat().st_mtime_ns for path in (files / "tuning").glob("*.safetensors")} == stamps
    best = max(found["trials"], key=lambda trial: trial["accuracy"])
    assert found["learning_rate"] == best["learning_rate"]
    assert load_model(found["model"]).record["settings"]["training"]["learning_rate"] == best["learning_rate"]
    wrong = run("-q tune --image naip.tif --reference labels.tif -o t")
    assert (wrong.exit_code, "give --prior or --labels" in wrong.stderr) == (2, True)
    rates = run("-q tune --image naip.tif --prior prior.tif --reference labels.tif --rates no -o t")
    assert (rates.exit_code, "not a list of positive numbers" in rates.stderr) == (2, True)
    own = run("-q tune --image naip.tif --labels labels.tif --reference labels.tif --scheme enviroatlas-5 -o t")
    assert (own.exit_code, "validate on another tile" in own.stderr) == (1, True)
    (files / "other.tif").write_bytes((files / "naip.tif").read_bytes())
    lacking = run("-q tune --image naip.tif --prior prior.tif --validation-image other.tif --reference labels.tif -o t")
    assert (lacking.exit_code, "give other.tif a prior too" in lacking.stderr) == (1, True)
    labels = good(
        "tune --image naip.tif --labels labels.tif --validation-image other.tif --reference labels.tif "
        f"--scheme enviroatlas-5 {TINY} --rates 1e-2,1e-3 -o supervised"
    )
    assert "0.01" in labels


def interpret(path, scene, enviroatlas):
    """Fill in the classes of the points from the scene's truth."""
    frame = geopandas.read_file(path)
    columns, rows = ~scene.grid.transform @ (frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy())
    codes = scene.truth[rows.astype(int), columns.astype(int)]
    frame[REFERENCE] = [enviroatlas.names[enviroatlas.index(int(code))] for code in codes]
    path.unlink()
    frame.to_file(path)


def test_points_from_the_sample_to_the_estimate(files, scene, enviroatlas):
    assert good("sample labels.tif --count 120 -o points.gpkg").strip() == "points.gpkg"
    early = run("-q evaluate labels.tif points.gpkg")
    assert (early.exit_code, "fill it in" in early.stderr) == (1, True)
    interpret(files / "points.gpkg", scene, enviroatlas)
    found = json.loads(good("evaluate labels.tif points.gpkg --json"))
    assert found["overall_accuracy"]["value"] == 1.0  # the map is the truth
    assert found["hectares"] == pytest.approx(128 * 128 / 1e4)
    text = good("evaluate labels.tif points.gpkg")
    assert "95 % interval" in text
    pointless = run("-q evaluate labels.tif points.gpkg --exclude points.gpkg")
    assert (pointless.exit_code, "--exclude cannot be used with points" in pointless.stderr) == (2, True)


def test_points_recalibrate_the_prior_and_are_excluded_from_its_score(files, scene, enviroatlas):
    good("sample labels.tif --count 120 -o points.gpkg")
    interpret(files / "points.gpkg", scene, enviroatlas)
    good(f"{BUILD} --points points.gpkg --class-column reference --recalibrate -o prior.tif")
    with rasterio.open("prior.tif") as src:
        assert json.loads(src.tags(ns="landprior")["calibration"])["points"] == 120
    whole = json.loads(good("evaluate labels.tif labels.tif --json"))
    rest = json.loads(good("evaluate labels.tif labels.tif --exclude points.gpkg --exclude-buffer 1.2 --json"))
    assert whole["pixels"] == 128 * 128
    assert 120 * 4 < whole["pixels"] - rest["pixels"] <= 120 * 21  # discs of 1.2 m, some overlapping or beyond the edge
    refused = run(f"-q {BUILD} --recalibrate -o b.tif")
    assert (refused.exit_code, "--points" in refused.stderr) == (1, True)


def test_a_custom_experiment(files):
    content = {
        "title": "Mine",
        "scheme": "enviroatlas-5",
        "data": {
            "kind": "files",
            "halves": True,
            "layers": {"image": "{split}.tif", "nlcd": "nlcd.tif", "labels": "labels.tif"},
        },
        "regions": {"here": {"splits": {"test": ["naip"]}}},
        "rows": [
            {"name": "prior", "method": "prior", "prior": "nlcd", "published": {"here": {"prior": [50, 20]}}},
            {"name": "QR", "method": "weak", "prior": "nlcd"},
        ],
        "settings": {"steps": 6, "filters": 2, "patch_size": 24, "batch_size": 2},
    }
    (files / "mine.yaml").write_text(yaml.safe_dump(content))
    listed = good("experiment mine.yaml --root . --dry-run")
    assert listed.count("to do") == 3  # the prior, QR jointly and QR per tile
    text = good("experiment mine.yaml --root .")
    assert "| QR | per tile | 0.002 | r |" in text
    assert "| 50.0 / 20.0 |" in text
    folder = files / "landprior-experiments" / "mine"
    assert {path.name for path in folder.glob("report.*")} == {"report.md", "report.json", "report.png"}
    assert good("experiment mine.yaml --root . --dry-run").count("done") == 3
    assert json.loads(good("experiment mine.yaml --root . --json"))["missing_cells"] == 0
    changed = run("-q experiment mine.yaml --root . --steps 7")
    assert (changed.exit_code, "another configuration (it differs in settings)" in changed.stderr) == (1, True)


@pytest.mark.slow
def test_an_experiment_killed_without_warning_resumes(files):
    """After SIGKILL at the first result, a second run ends with exactly the file of an undisturbed run."""
    content = {
        "title": "Mine",
        "scheme": "enviroatlas-5",
        "data": {"kind": "files", "layers": {"image": "{split}.tif", "nlcd": "nlcd.tif", "labels": "labels.tif"}},
        "regions": {"here": {"splits": {"test": ["naip"]}}},
        "rows": [
            {"name": "prior", "method": "prior", "prior": "nlcd"},
            {"name": "QR", "method": "weak", "prior": "nlcd"},
            {"name": "RQ", "method": "weak", "prior": "nlcd", "loss": "rq"},
        ],
        "settings": {"steps": 40, "filters": 4, "patch_size": 48, "batch_size": 4},
        "modes": ["tile"],
    }
    (files / "mine.yaml").write_text(yaml.safe_dump(content))
    line = [sys.executable, "-m", "landprior", "-q", "experiment", "mine.yaml", "--root", ".", "-o"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*line, "whole"], check=True, env=environment, stdout=subprocess.DEVNULL)
    results = files / "cut" / "results.jsonl"
    with subprocess.Popen([*line, "cut"], env=environment) as process:
        while not results.is_file() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    lines = (files / "whole" / "results.jsonl").read_text().splitlines()
    assert 1 <= len(results.read_text().splitlines()) < len(lines) == 5
    subprocess.run([*line, "cut"], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert results.read_bytes() == (files / "whole" / "results.jsonl").read_bytes()
    reports = [(files / name / "report.md").read_text() for name in ("whole", "cut")]
    assert reports[0] == reports[1]


def test_experiments_report_missing_inputs(files):
    listed = good("experiment --list")
    for name in ("table-1", "table-2", "table-e2", "figure-e3", "city-windows"):
        assert name in listed
    for line, code, text in (
        ("experiment table-2", 2, "--root is missing"),
        ("experiment table-3 --root .", 1, "did you mean table-"),
        ("experiment table-2 --root . --joint --per-tile", 2, "are mutually exclusive"),
        ("experiment table-2 --root .", 1, "spatial_index.geojson is missing"),
        ("experiment table-2 --root nowhere", 1, "fetch --dataset"),
    ):
        result = run(f"-q {line}")
        assert (result.exit_code, text in result.stderr) == (code, True), result.stderr
