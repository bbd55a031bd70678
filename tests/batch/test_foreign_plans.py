"""Plans from elsewhere: invalid content, how they run, and the state of tiles that have changed since."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from landprior.batch.plans import plan_workspace, read_plan, write_plan
from landprior.batch.shards import find_shard
from landprior.batch.states import RUN, find_tile, read_state
from landprior.batch.tile_runner import TileRunner, run_plan
from landprior.errors import ConfigError, InputError
from landprior.landcover.prior.cooccurrence import Cooccurrence
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.item import ITEM, TileFolder
from landprior.landcover.workspace.pipeline import run_workspace
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import ensure_map, ensure_prior, train_city
from landprior.raster.cog import write_raster
from landprior.raster.scheme import ClassScheme, LandClass, load_scheme
from landprior.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")

RESULTS = ("prior.tif", "model.safetensors", "prediction.tif")


@pytest.fixture(autouse=True)
def _one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workspace(tmp_path, make_grid, coarse, rng):
    root = tmp_path / "data"
    for number in range(2):
        folder = TileFolder(path=root / "town" / f"t{number}", city="town")
        folder.path.mkdir(parents=True)
        grid = make_grid(48, 48, left=600_000.0 + 60 * number)
        write_raster(folder.file("naip"), rng.integers(1, 255, (4, 48, 48)).astype(np.uint8), grid)
        write_raster(folder.file("nlcd"), coarse(48, 48, codes=(41, 81, 11)), grid, overviews="nearest")
    return Workspace(root)


def tiny(**loop):
    training = {"steps": 4, "epoch_steps": 2, "warmup_steps": 2} | loop
    return TileSettings(training=training, filters=2, patch_size=24, batch_size=2)


@pytest.fixture
def settings():
    return PipelineSettings.for_city("town", scheme=load_scheme("enviroatlas-5"), training=tiny())


@pytest.fixture
def plan(workspace, settings):
    return plan_workspace(workspace, "town", settings)


# -- content of a plan -----------------------------------------------------------------------------


def of_recipe(**changes):
    return lambda content: content["recipe"].update(changes)


def of_tile(**changes):
    return lambda content: content["tiles"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (of_tile(name="../../../etc"), "cannot be the name of a tile: it is a path"),
        (of_tile(name="/etc/x"), "cannot be the name of a tile: it is a path"),
        (of_tile(name=".."), "it starts with a dot"),
        (of_tile(name="a\x00b"), "it has control characters"),
        (of_tile(name="x" * 300), "it is longer than"),
        (of_tile(name="t1"), "t1 is listed twice"),
        (of_tile(width=10**12), "width: .*less than or equal"),
        (of_tile(width=0), "width: "),
        (of_tile(width="wide"), "width: "),
        (lambda content: content.update(city="../x"), "city: '../x' cannot be the name of a city: it is a path"),
        (lambda content: content.update(city="/usr"), "city: .*it is a path"),
        (lambda content: content.update(workspace="a\x00b"), "workspace: a path may not contain control characters"),
        (lambda content: content.update(workspace=""), "workspace: "),
        (lambda content: content.update(tiles=[]), "tiles: "),
        (lambda content: content.update(surprise=1), "surprise: "),
        (lambda content: content.update(format=2), "the plan has format 2, but this version of landprior reads"),
        (lambda content: content.update(format="1"), "the plan has format 1, "),
        (of_recipe(threads=10**9), "recipe.threads: .*less than or equal to 1024"),
        (of_recipe(threads=0), "recipe.threads: "),
        (of_recipe(surprise=1), "recipe.surprise: "),
        (of_recipe(cooccurrence={"41": [0.5, 0.5]}), "cooccurrence of code 41 is not 5 probabilities"),
        (of_recipe(cooccurrence={"41": [0.5, 0.5, 0.5, 0, 0]}), "that sum to 1"),
        (of_recipe(cooccurrence={"41": [2.0, -1.0, 0, 0, 0]}), "code 41"),
        (of_recipe(cooccurrence={"4100": [1, 0, 0, 0, 0]}), "code 4100"),
        (lambda content: content.update(fetch={"outline": "POLYGON", "settings": {}}), "fetch.outline is not WKT"),
        (
            lambda content: content.update(fetch={"outline": "POINT (0 0)", "settings": {}}),
            "fetch.outline is not a polygon in degrees",
        ),
        (
            lambda content: content.update(fetch={"outline": "POLYGON ((0 0, 9000 0, 9000 90, 0 0))", "settings": {}}),
            "not a polygon in degrees",
        ),
        (
            lambda content: content.update(
                fetch={"outline": "POLYGON ((0 0, 1 0, 1 1, 0 0))", "settings": {"jbos": 3}}
            ),
            "fetch.settings: jbos: ",
        ),
        (
            lambda content: content.update(
                fetch={"outline": "POLYGON ((0 0, 1 0, 1 1, 0 0))", "settings": {}, "city": "../x"}
            ),
            "it is a path",
        ),
    ],
)
def test_a_plan_with_invalid_content_is_refused(tmp_path, plan, change, text):
    content = json.loads(plan.model_dump_json())
    change(content)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=text) as caught:
        read_plan(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("data/../etc"))


def test_an_unreadable_plan_is_a_one_line_error(tmp_path):
    for content in (b"\xff\xfe\x00", b"[" * 100_000, b"{" * 10, b"[]", b"null", b"1e999", b"", b"a\0b"):
        path = tmp_path / "plan.json"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"plan\.json.*a plan is made by landprior plan") as caught:
            read_plan(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_plan_is_read_in_all_common_encodings(tmp_path, plan, encoding):
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json(), encoding=encoding)
    assert read_plan(path).digest == plan.digest


def test_the_error_for_a_plan_in_latin_1_names_the_line(tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes('{\n "city": "Zürich"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"plan\.json, line 2: the byte 0xfc is not UTF-8"):
        read_plan(path)


def test_invalid_training_settings_are_refused_before_any_tile(plan):
    recipe = plan.recipe.model_copy(update={"training": {"filters": 10**9, "surprise": 1}})
    with pytest.raises(ConfigError, match=r"recipe\.training: surprise"):
        run_plan(plan.model_copy(update={"recipe": recipe}))
    assert not (find_tile(plan, "t0").path / RUN).exists()


def test_a_plan_does_not_create_a_missing_workspace(plan, tmp_path):
    moved = plan.model_copy(update={"workspace": str(tmp_path / "elsewhere")})
    (state, _) = run_plan(moved)
    assert (state.state, "there is no tile at" in state.detail) == ("failed", True)
    assert not (tmp_path / "elsewhere").exists()


# -- a plan gives the same maps as run -------------------------------------------------------------


def test_a_plan_and_a_run_give_the_same_maps_if_the_matrix_lacks_a_code(workspace, tmp_path):
    """In a scheme without a shipped matrix, a missing code gets the mean of the rows, weighted by their pixels."""
    classes = (LandClass(code=1, name="a", colour="#ff0000"), LandClass(code=2, name="b", colour="#00ff00"))
    scheme = ClassScheme(name="mine", classes=classes)
    matrix = Cooccurrence(
        scheme=scheme,
        probabilities={41: np.array([1.0, 0.0]), 81: np.array([0.0, 1.0])},
        pixels={41: 99, 81: 1},
        source="measured",
    )
    settings = PipelineSettings(scheme=scheme, cooccurrence=matrix, training=tiny())
    plan = read_plan(write_plan(plan_workspace(workspace, "town", settings), tmp_path / "plan.json"))
    assert plan.recipe.cooccurrence_pixels == {41: 99, 81: 1}
    run_workspace(workspace, "town", settings)
    alone = results_of(workspace)
    for tile in workspace.tiles("town"):
        for name in (*RESULTS, ITEM):
            (tile.path / name).unlink()
    assert {state.state for state in run_plan(plan)} == {"done"}
    assert results_of(workspace) == alone
    # and other weights give another prior
    tile = workspace.tiles("town")[0]
    even = PipelineSettings(
        scheme=scheme,
        cooccurrence=Cooccurrence(scheme=scheme, probabilities=matrix.probabilities, source="measured"),
        training=tiny(),
    )
    ensure_prior(tile, even, command="run")
    assert tile.file("prior").read_bytes() != alone[f"{tile.name}/prior.tif"]


def test_an_older_plan_without_later_fields_keeps_its_hash(tmp_path, plan):
    content = json.loads(plan.model_dump_json())
    for later in ("cooccurrence_pixels", "prior"):
        content["recipe"].pop(later)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    old = read_plan(path)
    assert (old.recipe.cooccurrence_pixels, old.recipe.prior) == ({}, None)
    recipe = {
        name: value for name, value in content["recipe"].items() if name not in ("learned", "cooccurrence_source")
    }
    hashed = json.dumps({"city": "town", "recipe": recipe, "fetch": None}, sort_keys=True)
    assert old.digest == plan.digest == hashlib.sha256(hashed.encode()).hexdigest()[:16]
    counted = plan.recipe.model_copy(update={"cooccurrence_pixels": {41: 9}})
    assert plan.model_copy(update={"recipe": counted}).digest != old.digest
    fused = plan.recipe.model_copy(update={"prior": PriorSettings(fusion="conserving")})
    assert plan.model_copy(update={"recipe": fused}).digest != old.digest


def results_of(workspace):
    return {f"{t.name}/{name}": (t.path / name).read_bytes() for t in workspace.tiles("town") for name in RESULTS}


# -- which tiles count as done ---------------------------------------------------------------------


def test_a_tile_is_done_only_while_its_map_is_that_of_the_plan(workspace, plan, tmp_path):
    run_plan(plan)
    tile = find_tile(plan, "t0")
    joint = train_city(workspace.tiles("town"), tmp_path / "joint.safetensors", tiny())
    assert read_state(plan, "t0").state == "done"
    ensure_map(tile, model=joint, run=Run(overwrite=True))
    state = read_state(plan, "t0")
    assert (state.state, state.detail) == ("waiting", "its map is not the one that this plan made since it was done")
    assert read_state(plan, "t1").state == "done"
    theirs = tile.file("prediction").read_bytes()
    (failed, done) = run_plan(plan)  # it is not replaced without --overwrite
    assert (failed.state, done.state) == ("failed", "done")
    assert "was made by predict --model joint.safetensors" in failed.detail
    assert tile.file("prediction").read_bytes() == theirs
    assert {state.state for state in run_plan(plan, run=Run(overwrite=True))} == {"done"}
    assert tile.file("prediction").read_bytes() != theirs
    assert read_state(plan, "t0").state == "done"


def test_a_replaced_layer_is_noticed_by_status_and_the_next_run(plan):
    """Even with the same size and date as the old one."""
    run_plan(plan)
    tile = find_tile(plan, "t0")
    before = tile.file("prior").read_bytes()
    status = tile.file("nlcd").stat()
    content = bytearray(tile.file("nlcd").read_bytes())
    other = find_tile(plan, "t1").file("nlcd").read_bytes()
    content[:] = other.ljust(len(content), b"\0")[: max(len(content), len(other))]
    tile.file("nlcd").write_bytes(bytes(content))
    os.utime(tile.file("nlcd"), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_state(plan, "t0").detail == "nlcd.tif has changed since it was done"
    write_raster(tile.file("nlcd"), np.full((48, 48), 11, np.uint8), grid_of(tile), overviews="nearest", overwrite=True)
    assert {state.state for state in run_plan(plan)} == {"done"}
    assert tile.file("prior").read_bytes() != before
    assert read_state(plan, "t0").state == "done"
    tile.file("nlcd").touch()  # a different date alone is not a change
    assert read_state(plan, "t0").state == "done"


def grid_of(tile):
    import rasterio

    from landprior.raster.grid import Grid

    with rasterio.open(tile.file("naip")) as src:
        return Grid.of(src)


def test_a_tile_with_an_older_run_note_still_counts_as_done(plan):
    run_plan(plan)
    path = find_tile(plan, "t0").path / RUN
    note = json.loads(path.read_text())
    note.pop("files")
    path.write_text(json.dumps(note))
    assert read_state(plan, "t0").state == "done"
    assert TileRunner(plan).run("t0").state == "done"


# -- shards of batch systems -----------------------------------------------------------------------


def slurm(task, **rest):
    return {"SLURM_ARRAY_TASK_ID": str(task)} | {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in rest.items()}


@pytest.mark.parametrize(
    ("first", "last", "step"), [(0, 10, 2), (1, 16, 1), (5, 5, 1), (3, 30, 9), (0, 9, 2), (100, 131, 4)]
)
def test_every_task_of_an_array_with_a_step_gets_its_own_shard(first, last, step):
    tasks = range(first, last + 1, step)
    rest = {"COUNT": len(tasks), "MIN": first, "MAX": tasks[-1], "STEP": step}
    for count in (None, len(tasks)):
        found = [find_shard(slurm(task, **rest), count) for task in tasks]
        assert found == [(index, len(tasks)) for index in range(len(tasks))]


@pytest.mark.parametrize(
    ("environment", "count", "text"),
    [
        (slurm(7, COUNT=3, MIN=0, MAX=7, STEP=1), None, "are not evenly spaced"),  # --array=0,3,7
        (slurm(3, COUNT=2, MIN=3, MAX=7, STEP=4), 16, "SLURM_ARRAY_TASK_COUNT says 2; give the index too"),
        (slurm(4, COUNT=3, MIN=0, MAX=4, STEP=0), None, "are not evenly spaced|shard"),
        (slurm("x", COUNT=3), None, "SLURM_ARRAY_TASK_ID is 'x', which is not a whole number"),
        (slurm(9, COUNT=3), None, "which is not the index of one of 3 shards"),
        (
            {"AWS_BATCH_JOB_ARRAY_INDEX": "5", "AWS_BATCH_JOB_ARRAY_SIZE": "5"},
            None,
            "which is not the index of one of 5 shards",
        ),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "5"}, 8, "AWS_BATCH_JOB_ARRAY_SIZE says 5"),
        ({"JOB_COMPLETION_INDEX": "-1", "JOB_COMPLETIONS": "4"}, None, "which is not the index of one of 4 shards"),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "4x"}, None, "JOB_COMPLETIONS is '4x'"),
    ],
)
def test_an_array_that_does_not_determine_the_shard_is_refused(environment, count, text):
    with pytest.raises(InputError, match=text):
        find_shard(environment, count)
