"""Files of version 0.1 still open and give the same values: models, workspaces, plans, result files.

The files were made by ``tests/fixtures/make.py`` and are never regenerated. Only the command line is used.
"""

import gzip
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from landprior.cli import main
from tests.fixtures.make import EXPERIMENT, MAPS, PARTIAL, PLAN, RANK, RUN, fill_in
from tests.helpers import on_one_core

PLAIN = " --finish none"  # version 0.1 finished no map

FIELD = " --receptive-field 11"  # its only one

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

FILES = Path(__file__).parent / "fixtures" / "v0.1"
PRODUCTS = ("", "_probabilities")


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the current directory: a copy of the files."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "drawn.gpkg").write_bytes(gzip.decompress((FILES / "drawn.gpkg.gz").read_bytes()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDPRIOR_DATA", "data")
    return tmp_path


def good(line):
    result = CliRunner().invoke(main, ["-q", *shlex.split(line)], prog_name="landprior")
    assert result.exit_code == 0, result.output
    return result.stdout


def read(path):
    with rasterio.open(path) as src:
        return src.read()


def assert_same(path, expected):
    """Check that a raster has the values that version 0.1 wrote; other processors round floats differently."""
    found, was = read(path), read(expected)
    assert found.dtype == was.dtype
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, was, atol=2e-3)
    else:
        np.testing.assert_array_equal(found, was)


def state(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FILES.rglob("*") if path.is_file()) < 400_000


@pytest.mark.parametrize("name", MAPS)
def test_models_priors_and_matrices_give_the_same_rasters(here, name):
    if name == "unet_r.tif":
        pytest.importorskip("monai")
    good(f"{MAPS[name]}{PLAIN if MAPS[name].startswith('predict') else ''} -o again.tif")
    found = [part for part in PRODUCTS if (here / f"{Path(name).stem}{part}.tif").is_file()]
    assert found == [part for part in PRODUCTS if (here / f"again{part}.tif").is_file()]
    for part in found:
        assert_same(here / f"again{part}.tif", FILES / f"{Path(name).stem}{part}.tif")


def test_a_model_can_be_drawn_and_trained_further(here):
    good("epitome epitome.safetensors -o epitome.png")
    good(
        "train --image naip.tif --prior prior.tif --init qr.safetensors --steps 2 --warmup-steps 1 --filters 2 "
        "--patch-size 16 --batch-size 2 -o tuned.safetensors"
    )
    assert {"epitome.png", "tuned.safetensors"} <= {path.name for path in here.iterdir()}


def test_points_give_the_same_estimate(here):
    fill_in(here / "drawn.gpkg", here / "filled.gpkg", here / "labels.tif")
    found = json.loads(good("evaluate qr_r.tif filled.gpkg --json"))
    assert found == json.loads((FILES / "estimate.json").read_text())


def steps_of(tile):
    return json.loads((tile / "item.json").read_text())["properties"]["landprior:steps"]


def test_a_workspace_is_current(here):
    tile = here / "data" / "town" / "centre"
    before, steps = state(tile), steps_of(tile)
    good(RUN + PLAIN + FIELD)
    after = state(tile)
    assert {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == {
        "item.json", "prediction.qml"  # the style that maps had not
    }  # fmt: skip
    changed = {name for name, step in steps_of(tile).items() if step != steps[name]}
    assert changed == {"evaluation"}  # scores are recomputed


def test_a_map_of_a_workspace_is_remade_with_the_same_values(here):
    prediction = here / "data" / "town" / "centre" / "prediction.tif"
    weights = prediction.with_name("model.safetensors").read_bytes()
    prediction.unlink()
    good(RUN + PLAIN + FIELD)
    assert prediction.with_name("model.safetensors").read_bytes() == weights
    assert_same(prediction, FILES / "data" / "town" / "centre" / "prediction.tif")


def test_a_plan_is_done_and_mosaicked(here):
    assert json.loads(good("status plan.json --json"))["counts"] == {"done": 2}
    before = state(here / "data")
    assert good(PLAN) == "2 of 2 tiles are done\n"
    assert state(here / "data") == before
    good("mosaic plan.json -o again.tif")
    assert_same(here / "again.tif", FILES / "mosaic.tif")


def test_a_plan_runs_from_the_start(here):
    tile = here / "data" / "village" / "east"
    for name in ("prior.tif", "model.safetensors", "prediction.tif", "item.json", "run.json"):
        (tile / name).unlink()
    assert good(PLAN) == "2 of 2 tiles are done\n"
    for name in ("prior.tif", "prediction.tif"):
        assert_same(tile / name, FILES / "data" / "village" / "east" / name)


def test_results_of_an_experiment_can_be_read(here):
    assert "to do" not in good(f"{EXPERIMENT} --dry-run")
    before = (here / "rows" / "results.jsonl").read_bytes()
    found = json.loads(good(f"{EXPERIMENT} --json"))
    assert found["missing_cells"] == 0
    assert found["lines"] == json.loads((FILES / "rows" / "report.json").read_text())["lines"]
    assert (here / "rows" / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", [PARTIAL, RANK])
def test_finished_trainings_in_other_domains_are_not_repeated(here, line):
    folder = here / line.split()[-1]
    kept = [path for path in sorted(folder.rglob("*")) if path.name == "results.jsonl"]
    assert kept
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    report = json.loads((folder / "report.json").read_text())
    good(line)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == before
    assert json.loads((folder / "report.json").read_text()) == report


def test_a_density_model_gives_the_same_map(here):
    good("density naip.tif --coarse blocks.csv --block 16 --model density/model.safetensors -o again")
    for part in PRODUCTS:
        assert_same(here / "again" / f"naip{part}.tif", FILES / "density" / f"naip{part}.tif")
