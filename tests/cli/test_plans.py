"""Commands for many tiles, from a workspace to one map."""

import json
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import rasterio

from landprior.landcover.synthetic.scene import make_scene
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from tests.helpers import good, run

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

PLAN = "plan --city town --scheme enviroatlas-5 --steps 6 --filters 2"


@pytest.fixture(scope="module")
def scene():
    return make_scene(160, seed=1)


@pytest.fixture
def town(tmp_path, scene, monkeypatch):
    """A workspace with two tiles that overlap by 20 px, in the current directory."""
    monkeypatch.chdir(tmp_path)
    arrays = {"naip": scene.image, "nlcd": scene.nlcd, "roads": scene.layers["roads"]}
    for name, left in (("east", 70), ("west", 0)):
        columns = slice(left, left + 90)
        grid = Grid(
            width=90,
            height=160,
            transform=scene.grid.transform @ rasterio.Affine.translation(left, 0),
            crs=scene.grid.crs,
        )
        for layer, values in arrays.items():
            path = tmp_path / "landprior-data" / "town" / name / f"{layer}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_raster(path, values[..., columns], grid, overviews="nearest")
    return tmp_path


def test_from_a_plan_to_one_map(town, scene):  # noqa: ARG001 - changes the directory
    planned = json.loads(good(f"{PLAN} --json"))
    assert (planned["plan"], planned["tiles"]) == ("plan.json", 2)
    assert planned["megapixels"] == pytest.approx(2 * 90 * 160 / 1e6)
    assert "2 tiles: 0 done, 0 running, 0 failed, 0 interrupted, 2 waiting" in good("status plan.json")
    early = run("-q mosaic plan.json -o map.tif")
    assert (early.exit_code, "2 of 2 tiles are not done" in early.stderr) == (1, True)
    assert good("run plan.json --shard 0/2") == "1 of 1 tiles are done\n"
    assert good("run plan.json --shard auto/2", JOB_COMPLETION_INDEX="1") == "1 of 1 tiles are done\n"
    states = json.loads(good("status plan.json --json"))
    assert states["counts"] == {"done": 2}
    assert good("run plan.json") == "2 of 2 tiles are done\n"  # nothing is left to do
    assert good("mosaic plan.json -o map.tif").strip() == "map.tif"
    with rasterio.open("map.tif") as src:
        assert src.shape == (160, 160)
        assert src.bounds == scene.grid.bounds
        assert (src.read(1) != 255).all()
        assert json.loads(src.tags(ns="LANDPRIOR")["scheme"])["name"] == "enviroatlas-5"
        counts = dict(zip(*np.unique(src.read(1), return_counts=True), strict=True))
    table = ET.parse("map.tif.aux.xml").iter("Row")  # noqa: S314 - written by landprior
    found = {int(row[0].text): int(row[1].text) for row in table}
    assert {code: count for code, count in found.items() if count} == counts
    entries = ET.parse("map.qml").iter("paletteEntry")  # noqa: S314 - written by landprior
    assert {int(entry.get("value")) for entry in entries} == set(found)


def test_how_layers_are_fused_is_part_of_the_plan(town):
    default = json.loads(good(f"{PLAN} --json"))
    planned = json.loads(good(f"{PLAN} --fusion conserving --blur-sigma 20 -o fused.json --json"))
    assert planned["hash"] != default["hash"]
    assert json.loads((town / "plan.json").read_text())["recipe"]["prior"] is None
    assert good("run fused.json --shard 0/2") == "1 of 1 tiles are done\n"
    with rasterio.open(town / "landprior-data" / "town" / "east" / "prior.tif") as src:
        fused = json.loads(src.tags(ns="LANDPRIOR")["settings"])
    assert (fused["fusion"], fused["blur_sigma"]) == ("conserving", 20)
    basis = json.loads((town / "landprior-data" / "town" / "east" / "item.json").read_text())
    assert '"conserving"' in json.dumps(basis)


def test_a_failed_tile_is_named_and_sets_the_exit_code(town):
    good(PLAN)
    nlcd = town / "landprior-data" / "town" / "east" / "nlcd.tif"
    nlcd.write_bytes(b"no raster")
    result = run("-q run plan.json")
    assert result.exit_code == 1
    assert "1 of 2 tiles are done" in result.stdout
    assert "1 are not done; why: landprior status plan.json" in result.stderr
    text = good("status plan.json")
    assert "failed       east" in text
    assert "nlcd.tif" in text
    assert good("mosaic plan.json --partial -o map.tif").strip() == "map.tif"


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("run plan.json", 1, "no plan at plan.json"),
        ("status none.json", 1, "make one with: landprior plan"),
        ("run --city town --scheme enviroatlas-5 --shard 0/2", 2, "--shard cannot be used with a place"),
        ("run mine.json --filters 3", 2, "--filters cannot be used with a plan"),
        ("run mine.json --joint", 2, "--joint cannot be used with a plan"),
        ("run --city town --group 0 --scheme enviroatlas-5", 2, "0 is not in the range x>=1"),
        (
            "run --city town --joint --only scores --scheme enviroatlas-5",
            2,
            "--joint cannot be used with --only scores",
        ),
        ("run mine.json --shard 4", 2, "lacks the count"),
        ("run mine.json --shard a/b", 2, "neither INDEX/COUNT"),
        ("run mine.json --shard 2/2", 1, "the index goes from 0 to 1"),
        ("run mine.json --shard auto", 1, "SLURM_ARRAY_TASK_ID"),
        *(
            (f"run mine.json --ray {one}", 2, "is not the address of a Ray cluster")
            for one in ("mine.json", "head", ":6379", "head:0", "head:65536", "http://head:1", "ray://", "'a b:1'")
        ),
        ("run --ray mine.json", 2, "give --ray at the end"),
        ("run mine.json --ray [::1]:6379 --workers 2", 2, "--workers cannot be used with a cluster"),
        ("run mine.json --ray ray://head-0.local:10001 --workers 2", 2, "--workers cannot be used with a cluster"),
        ("run mine.json --workers 2", 2, "--workers cannot be used with a run without --ray"),
        (f"{PLAN} -o mine.json", 1, "exists; give --overwrite"),
        (f"{PLAN} -o landprior-data/town/west/naip.tif --overwrite", 1, "plans are written as .json"),
        (f"{PLAN} -o plan", 1, "plans are written as .json"),
        ("plan --city village --scheme enviroatlas-5 -o p.json", 1, "has no city 'village'"),
        ("plan --city town -o p.json", 1, "'town' is not a preset"),
    ],
)
def test_refused_command_lines(town, line, code, text):
    good(f"{PLAN} -o mine.json")
    before = {path: path.read_bytes() for path in town.rglob("*") if path.is_file()}
    result = run(f"-q {line}")
    assert (result.exit_code, text in result.stderr) == (code, True), result.output
    assert {path: path.read_bytes() for path in town.rglob("*") if path.is_file()} == before


def test_from_a_joint_plan_to_one_map(town):
    """Two tiles share one model; with --group 1 each has its own in the folder of the place."""
    planned = json.loads(good(f"{PLAN} --joint --json"))
    assert planned["tiles"] == 2
    assert run("-q run plan.json --shard 1/2").exit_code == 1
    assert good("run plan.json --shard 0/2") == "2 of 2 tiles are done\n"
    place = town / "landprior-data" / "town"
    assert [path.name for path in place.rglob("model*.safetensors")] == ["model.safetensors"]
    assert good("run plan.json") == "2 of 2 tiles are done\n"
    assert good("mosaic plan.json -o map.tif").strip() == "map.tif"
    before = (place / "east" / "prediction.tif").stat().st_mtime_ns
    maps = good(f"{PLAN.replace('plan', 'run', 1)} --joint").split("\n")[:2]
    assert maps == [str(place.relative_to(town) / name / "prediction.tif") for name in ("east", "west")]
    assert (place / "east" / "prediction.tif").stat().st_mtime_ns == before  # run and run PLAN are one command
    good(f"{PLAN} --group 1 -o groups.json")
    assert "waiting" in good("status groups.json --all")
    assert good("run groups.json --overwrite") == "2 of 2 tiles are done\n"
    names = sorted(path.name for path in place.glob("model*.safetensors"))
    assert names == ["model-1.safetensors", "model-2.safetensors", "model.safetensors"]


def test_from_a_plan_with_points_to_adapted_maps(town, scene):
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 160, (2, 30))
    x, y = scene.grid.transform @ (columns + 0.5, rows + 0.5)
    table = pd.DataFrame({"x": x, "y": y, "class": scene.truth[rows, columns]})
    table.to_csv("points.csv", index=False)
    table.head(9).to_csv("few.csv", index=False)
    few = run(f"-q {PLAN} --points few.csv")
    assert (few.exit_code, "9 points have one class and lie on the tiles" in few.stderr) == (1, True)
    assert not (town / "plan.json").exists()
    good(PLAN)
    good("run plan.json")
    good(f"{PLAN} --points points.csv -o adapted.json")
    assert good("status adapted.json").splitlines()[-1] == "not yet adapted to the plan's 30 points"
    assert json.loads(good("status adapted.json --json"))["points"] == {"count": 30, "adaptation": None}
    text = good("run adapted.json")  # in place of the plain maps
    assert "30 points (" in text
    assert text.splitlines()[-1] == "2 of 2 tiles are done"
    assert good("status adapted.json").splitlines()[-1].startswith("adapted to 30 points: accuracy 0.")
    assert json.loads(good("status adapted.json --json"))["points"]["adaptation"]["points"] == 30
    for name in ("east", "west"):
        with rasterio.open(f"landprior-data/town/{name}/prediction.tif") as src:
            assert src.tags(ns="landprior")["adapted"] == "30 points"
    back = run("-q run plan.json")
    assert (back.exit_code, "0 of 2 tiles are done" in back.stdout) == (1, True)
    assert "adapted to points, not by predict with the tile's own model; it is kept" in good("status plan.json")


def test_single_steps_of_joint_models(town):
    place = town / "landprior-data" / "town"
    line = "run --city town --joint"
    result = run(f"-q {line} --only map")
    assert (
        "model.safetensors is missing; train it with: landprior run --city town --joint --only model" in result.stderr
    )
    good(f"{line} --scheme enviroatlas-5 --only prior")
    shown = good(f"{line} --only model --steps 6 --filters 2")
    assert shown.split() == [str(place.relative_to(town) / "model.safetensors")]
    assert len(good(f"{line} --only map").split()) == 2
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    good("train --city town --joint --steps 6 --filters 2")  # the same model
    assert (place / "model.safetensors").stat().st_mtime_ns == stamp


def test_plan_estimates_the_work(town):  # noqa: ARG001 - changes the directory
    result = run(PLAN)
    assert "2 tiles, 0 megapixels: about" in result.stderr
    assert "docs/results/scale.md" in result.stderr
    assert np.isclose(json.loads(good(f"{PLAN} --recipe best --json -o b.json"))["core_hours"], 0, atol=1)


@pytest.mark.parametrize("command", ["plan", "status", "mosaic", "run"])
def test_help_has_examples(command):
    text = good(f"{command} --help")
    assert f"landprior {command} " in text
