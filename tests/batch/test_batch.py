"""Many tiles: plans, shards, states, failures, Ray, mosaics."""

import json
import os
import signal
import time
from dataclasses import replace
from threading import Thread

import numpy as np
import psutil
import pytest
import rasterio
import torch

from landprior.batch.estimate import estimate_work
from landprior.batch.mosaic import join_maps
from landprior.batch.plans import plan_workspace, read_plan, write_plan
from landprior.batch.shards import choose_shard, find_shard
from landprior.batch.states import RUN, find_tile, read_state, read_states
from landprior.batch.tile_runner import TileRunner, run_plan
from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.inputs import checksum
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.item import TileFolder
from landprior.landcover.workspace.pipeline import run_workspace
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme
from tests.helpers import on_one_core

pytestmark = pytest.mark.filterwarnings(
    "ignore::landprior.errors.HarmWarning",
    "ignore::landprior.errors.CollapseWarning",
    "ignore::landprior.errors.CooccurrenceWarning",
)


@pytest.fixture
def workspace(tmp_path, make_grid, coarse, rng):
    """Four tiles of 64 x 64 px in a row, with image, NLCD and labels."""
    root = tmp_path / "data"
    for number in range(4):
        grid = make_grid(64, 64, left=600_000.0 + 60 * number)
        folder = TileFolder(path=root / "town" / f"tile-{number}", city="town")
        folder.path.mkdir(parents=True)
        nlcd = coarse(64, 64, codes=(41, 81))
        write_raster(folder.file("naip"), rng.integers(1, 255, (4, 64, 64)).astype(np.uint8), grid)
        write_raster(folder.file("nlcd"), nlcd, grid, overviews="nearest")
        write_raster(folder.file("labels"), np.where(nlcd == 41, 40, 70).astype(np.uint8), grid, overviews="nearest")
    return Workspace(root)


@pytest.fixture
def settings():
    training = {"steps": 8, "epoch_steps": 4, "warmup_steps": 2}
    return PipelineSettings.for_city(
        "town",
        scheme=load_scheme("enviroatlas-5"),
        training=TileSettings(training=training, filters=2, patch_size=32, batch_size=2),
    )


@pytest.fixture
def plan(workspace, settings):
    return plan_workspace(workspace, "town", settings)


def mark(tile):
    """Stand in for the pipeline: write the files that mark a tile as done."""
    time.sleep(0.001)
    tile.file("prediction").write_bytes(b"map")
    (tile.path / "item.json").write_text("{}")
    return {"by": os.getpid()}


def maps_of(plan):
    return {tile.name: find_tile(plan, tile.name).file("prediction").read_bytes() for tile in plan.tiles}


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_survives_writing_and_reading(tmp_path, plan):
    path = write_plan(plan, tmp_path / "plan.json")
    again = read_plan(path)
    assert again == plan
    assert again.digest == plan.digest
    assert [(t.name, t.width, t.height) for t in again.tiles] == [(f"tile-{n}", 64, 64) for n in range(4)]
    moved = plan.model_copy(update={"workspace": "data"})
    assert read_plan(write_plan(moved, tmp_path / "relative.json")).workspace == plan.workspace
    assert moved.digest == plan.digest


def test_the_hash_depends_on_the_recipe_and_not_on_the_tiles(plan):
    training = plan.recipe.training | {"filters": 3}
    other = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"training": training})})
    assert other.digest != plan.digest
    assert plan.model_copy(update={"tiles": plan.tiles[:2]}).digest == plan.digest


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (None, MissingInputError, "make one with: landprior plan"),
        ("no json", ConfigError, "a plan is made by landprior plan"),
        ('{"format": 9}', ConfigError, "a plan is made by landprior plan"),
    ],
)
def test_files_that_are_not_plans_are_refused(tmp_path, content, error, text):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=text):
        read_plan(path)


def test_shards_contain_every_tile_exactly_once(plan):
    shards = [choose_shard(plan, index, 3).tiles for index in range(3)]
    assert sorted(tile.name for shard in shards for tile in shard) == [tile.name for tile in plan.tiles]
    for index, count in ((3, 3), (-1, 3), (4, 9)):
        with pytest.raises(InputError, match="shard"):
            choose_shard(plan, index, count)


@pytest.mark.parametrize(
    ("environment", "count", "found"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_MIN": "1"}, None, (6, 16)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "5"}, None, (0, 5)),
        ({"JOB_COMPLETION_INDEX": "3"}, 8, (3, 8)),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "4"}, None, (3, 4)),
    ],
)
def test_shards_of_batch_systems(environment, count, found):
    assert find_shard(environment, count) == found


def test_a_missing_shard_or_count_is_an_error():
    with pytest.raises(InputError, match="JOB_COMPLETIONS is not"):
        find_shard({"JOB_COMPLETION_INDEX": "3"})
    with pytest.raises(InputError, match="give --shard INDEX/COUNT"):
        find_shard({})


def test_the_estimate_grows_with_the_work(plan):
    work = estimate_work(plan)
    assert work.tiles == 4
    assert work.megapixels == pytest.approx(4 * 64 * 64 / 1e6)
    twice = estimate_work(plan.model_copy(update={"tiles": plan.tiles * 2}))
    assert twice.core_hours == pytest.approx(2 * work.core_hours)
    assert "4 tiles" in work.to_text()


# -- running ---------------------------------------------------------------------------------------


def test_any_number_of_shards_gives_the_same_maps(plan):
    """For any number of cores that torch would use in each."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    assert {state.state for state in run_plan(plan)} == {"done"}
    assert torch.get_num_threads() == 1
    whole = maps_of(plan)
    for tile in plan.tiles:
        for name in ("prior", "model", "prediction"):
            find_tile(plan, tile.name).file(name).unlink()
        for name in (RUN, "item.json"):
            (find_tile(plan, tile.name).path / name).unlink()
    for index in (1, 0):
        torch.set_num_threads(2 + index)
        run_plan(choose_shard(plan, index, 2))
    torch.set_num_threads(cores)
    assert maps_of(plan) == whole
    note = json.loads((find_tile(plan, "tile-0").path / RUN).read_text())
    assert note["state"] == "done"
    assert 0 < note["accuracy"] <= 1


def test_a_tile_uses_the_cores_in_its_plan(plan):
    """In torch and in numpy's BLAS."""
    from threadpoolctl import threadpool_info

    from landprior.batch import tile_runner

    with tile_runner._on_cores(2):
        assert torch.get_num_threads() == 2
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
    two = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"threads": 2})})
    assert two.digest != plan.digest


def test_done_tiles_are_skipped_and_others_run_again(plan):
    seen = []
    work = lambda tile: seen.append(tile.name) or mark(tile)  # noqa: E731
    run_plan(plan, work=work)
    run_plan(plan, work=work)
    assert seen == [tile.name for tile in plan.tiles]
    find_tile(plan, "tile-2").file("prediction").unlink()
    assert read_state(plan, "tile-2").detail == "its map was removed"
    other = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"posterior": False})})
    assert {state.detail for state in read_states(other)} == {"was run by another plan"}
    run_plan(plan, work=work)
    assert seen[4:] == ["tile-2"]


def test_a_failed_tile_does_not_stop_the_others(plan):
    bad = find_tile(plan, "tile-1").file("nlcd")
    good = bad.read_bytes()
    bad.write_bytes(b"no raster")
    states = {state.name: state for state in run_plan(plan)}
    assert [name for name, state in states.items() if state.state == "failed"] == ["tile-1"]
    assert "nlcd.tif" in states["tile-1"].detail
    assert read_state(plan, "tile-1") == states["tile-1"].__class__(
        "tile-1", "failed", states["tile-1"].detail, pytest.approx(states["tile-1"].seconds, abs=0.01)
    )
    bad.write_bytes(good)
    assert {state.state for state in run_plan(plan)} == {"done"}


def test_an_error_from_a_library_is_a_failed_tile(plan):
    def broken(tile):
        raise ZeroDivisionError(tile.name)

    states = run_plan(plan, work=broken)
    assert {state.state for state in states} == {"failed"}
    assert states[0].detail == "ZeroDivisionError: tile-0"


def test_an_interruption_stops_the_run_and_is_recorded(plan):
    def stopped(tile):
        if tile.name == "tile-1":
            raise KeyboardInterrupt
        return mark(tile)

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, work=stopped)
    assert [state.state for state in read_states(plan)] == ["done", "interrupted", "waiting", "waiting"]


def test_a_tile_is_run_by_one_process_at_a_time(plan):
    inner = []

    def work(tile):
        inner.append(TileRunner(plan).run(tile.name, work=mark))
        assert read_state(plan, tile.name).state == "running"
        return mark(tile)

    assert TileRunner(plan).run("tile-0", work=work).state == "done"
    assert (inner[0].state, inner[0].detail) == ("running", "another process is running it")


def test_a_process_that_has_gone_is_not_running(plan, monkeypatch):
    states = []

    def work(tile):
        states.append(read_state(plan, tile.name).state)
        monkeypatch.setattr(psutil, "pid_exists", lambda _: False)
        states.append(read_state(plan, tile.name).state)
        return mark(tile)

    TileRunner(plan).run("tile-0", work=work)
    assert states == ["running", "interrupted"]


def test_a_different_learned_prior_is_refused(plan, tmp_path, make_model):
    from landprior.landcover.training.model import save_model

    path = save_model(make_model(), tmp_path / "learned.safetensors")
    recipe = plan.recipe.model_copy(update={"learned": str(path), "learned_checksum": "0"})
    states = run_plan(plan.model_copy(update={"recipe": recipe}))
    assert "has changed since the plan was made" in states[0].detail


# -- Ray -------------------------------------------------------------------------------------------


@pytest.mark.needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_ray_gives_the_same_maps(plan):
    from landprior.batch.cluster import run_on_ray

    run_plan(plan)
    alone = maps_of(plan)
    for tile in plan.tiles:
        for name in ("prior.tif", "model.safetensors", "prediction.tif", "item.json", RUN):
            (find_tile(plan, tile.name).path / name).unlink()
    broken = find_tile(plan, "tile-3").file("nlcd")
    broken.write_bytes(b"no raster")
    states = run_on_ray(plan, workers=2)
    assert [state.state for state in states] == ["done", "done", "done", "failed"]
    assert "nlcd.tif" in states[3].detail
    del alone["tile-3"]
    assert maps_of(plan.model_copy(update={"tiles": plan.tiles[:3]})) == alone


@pytest.mark.needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_killing_a_node_loses_no_tile(plan, tmp_path):
    """A cluster of three local nodes, one of which is killed with SIGKILL while it works."""
    import ray
    from ray.cluster_utils import Cluster

    from landprior.batch.cluster import run_on_ray

    tiles = tuple(plan.tiles[0].model_copy(update={"name": f"many-{n}"}) for n in range(24))
    many = plan.model_copy(update={"tiles": tiles})

    log = tmp_path / "log"

    def slow(tile):
        tile.path.mkdir(parents=True, exist_ok=True)
        with log.open("a") as lines:
            lines.write(f"{tile.name} {ray.get_runtime_context().get_node_id()}\n")
        time.sleep(0.5)
        return mark(tile)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

        def kill():
            while not log.is_file() or doomed.node_id not in log.read_text():
                time.sleep(0.05)
            time.sleep(0.2)  # in the middle of a tile
            for process in doomed.all_processes["raylet"]:
                for child in psutil.Process(process.process.pid).children(recursive=True):
                    child.send_signal(signal.SIGKILL)
                os.kill(process.process.pid, signal.SIGKILL)

        killer = Thread(target=kill, daemon=True)
        killer.start()
        states = run_on_ray(many, work=slow)
        killer.join(10)
        assert not killer.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert {state.state for state in states} == {"done"}
    assert {state.state for state in read_states(many)} == {"done"}
    lines = log.read_text().splitlines()
    assert doomed.node_id in {line.split()[1] for line in lines}
    assert len(lines) > 24  # tiles of the killed node were started again


def test_a_tile_that_needs_more_cores_than_ray_has_is_refused():
    """Otherwise Ray would wait for ever."""
    from landprior.batch.cluster import _require_cores

    _require_cores(2, 2)
    with pytest.raises(ConfigError, match="needs 4 cores and Ray has 2; make the plan with --threads 2"):
        _require_cores(4, 2)


@pytest.mark.needs("ray")
@pytest.mark.parametrize(
    ("address", "given", "text"),
    [
        (None, "local", r"Ray cannot be started on this machine \(refused\)"),
        ("head:6379", "head:6379", r"no Ray cluster at head:6379 \(refused\)"),
    ],
)
def test_ray_on_this_machine_ignores_an_inherited_address(plan, monkeypatch, address, given, text):
    import ray

    from landprior.batch.cluster import run_on_ray

    asked = []

    def init(*, address, **_):
        asked.append(address)
        msg = "refused"
        raise ConnectionError(msg)

    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=text):
        run_on_ray(plan, address=address)
    assert asked == [given]


def test_without_ray_the_error_suggests_the_extra(plan, monkeypatch):
    from landprior.batch import cluster

    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'landprior\[ray\]'"):
        cluster.run_on_ray(plan)


# -- groups of tiles that share a model ------------------------------------------------------------


@pytest.fixture
def pairs(workspace, settings):
    """A plan of two groups of two tiles."""
    return plan_workspace(workspace, "town", replace(settings, joint=True, group=2))


def models_of(plan):
    return {group.model.name: group.model.read_bytes() for group in plan.find_groups()}


def test_groups_are_part_of_a_plan(tmp_path, plan, pairs, settings, workspace):
    assert pairs.groups == (("tile-0", "tile-1"), ("tile-2", "tile-3"))
    again = read_plan(write_plan(pairs, tmp_path / "plan.json"))
    assert (again, again.digest) == (pairs, pairs.digest)
    whole = plan_workspace(workspace, "town", replace(settings, joint=True))
    assert whole.groups == (("tile-0", "tile-1", "tile-2", "tile-3"),)
    assert len({plan.digest, pairs.digest, whole.digest}) == 3
    assert plan.groups == ()
    assert plan.find_groups() == []
    alone, shared = (estimate_work(one).core_hours for one in (plan, pairs))
    assert shared < 0.6 * alone


@pytest.mark.parametrize(
    "groups",
    [[["tile-0", "tile-1"], ["tile-1", "tile-2", "tile-3"]], [["tile-0"]], [["../x", "tile-0"]]],
    ids=["twice", "missing", "outside"],
)
def test_plans_with_wrong_groups_are_refused(tmp_path, pairs, groups):
    path = write_plan(pairs, tmp_path / "plan.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"groups": groups}))
    with pytest.raises(ConfigError, match="a plan is made by landprior plan"):
        read_plan(path)


def test_shards_contain_whole_groups(pairs):
    shards = [choose_shard(pairs, index, 2) for index in range(2)]
    assert [[tile.name for tile in shard.tiles] for shard in shards] == [["tile-0", "tile-1"], ["tile-2", "tile-3"]]
    assert {shard.digest for shard in shards} == {pairs.digest}
    with pytest.raises(InputError, match=r"shard 2/3 has no group of tiles that share a model; the plan has 2"):
        choose_shard(pairs, 2, 3)


def test_shards_of_groups_give_the_maps_of_a_run_of_the_place(workspace, settings, pairs):
    with on_one_core():
        run_workspace(workspace, "town", replace(settings, joint=True, group=2))
    wanted = maps_of(pairs), models_of(pairs)
    for path in (workspace.root / "town").rglob("*"):
        if path.name.startswith(("prior", "model", "prediction", "item")):
            path.unlink()
    assert {state.state for state in run_plan(choose_shard(pairs, 1, 2))} == {"done"}
    assert [state.state for state in read_states(pairs)] == ["waiting", "waiting", "done", "done"]
    assert [state.state for state in run_plan(pairs)] == ["done"] * 4
    assert (maps_of(pairs), models_of(pairs)) == wanted
    note = json.loads((find_tile(pairs, "tile-0").path / RUN).read_text())
    assert (note["state"], note["model"]) == ("done", checksum(pairs.find_group("tile-0").model))
    times = {path: path.stat().st_mtime_ns for path in (workspace.root / "town").rglob("*")}
    run_plan(pairs)
    assert {path: path.stat().st_mtime_ns for path in (workspace.root / "town").rglob("*")} == times
    assert not list((workspace.root / "town").rglob(".*"))


def test_a_failed_tile_holds_up_its_group_only(pairs):
    mine = find_tile(pairs, "tile-1").file("prior")
    mine.write_bytes(b"by hand")
    states = run_plan(pairs)
    assert [state.state for state in states] == ["waiting", "failed", "done", "done"]
    assert states[0].detail == "its group waits for tile-1"
    assert "prior.tif was not made here by landprior; it is kept" in states[1].detail
    assert [state.state for state in read_states(pairs)] == ["waiting", "failed", "done", "done"]
    mine.unlink()
    assert {state.state for state in run_plan(pairs)} == {"done"}


def test_a_damaged_layer_is_named_by_the_neighbours_too(pairs):
    nlcd = find_tile(pairs, "tile-1").file("nlcd")
    nlcd.write_bytes(b"no raster")
    states = run_plan(pairs)
    assert [state.state for state in states] == ["failed", "failed", "done", "done"]
    assert all(str(nlcd) in state.detail for state in states[:2])


def test_a_training_that_fails_fails_for_all_tiles_of_its_group(pairs):
    pairs.find_groups()[0].model.write_bytes(b"mine")
    states = run_plan(pairs)
    assert [state.state for state in states] == ["failed", "failed", "done", "done"]
    assert "was not made here by landprior; it is kept" in states[0].detail
    assert pairs.find_groups()[0].model.read_bytes() == b"mine"


def test_a_group_is_mapped_again_when_its_model_is(pairs):
    run_plan(pairs)
    before = models_of(pairs), maps_of(pairs)
    pairs.find_groups()[0].model.unlink()
    assert [state.state for state in read_states(pairs)] == ["waiting", "waiting", "done", "done"]
    assert read_state(pairs, "tile-0").detail == "model-1.safetensors is gone since it was done"
    run_plan(pairs)
    assert (models_of(pairs), maps_of(pairs)) == before
    nlcd = find_tile(pairs, "tile-0").file("nlcd")
    with rasterio.open(nlcd) as src:
        grid = Grid.of(src)
    write_raster(nlcd, np.full((64, 64), 81, np.uint8), grid, overviews="nearest", overwrite=True)
    assert {state.state for state in run_plan(pairs)} == {"done"}
    after = models_of(pairs), maps_of(pairs)
    assert after[0]["model-1.safetensors"] != before[0]["model-1.safetensors"]
    assert after[0]["model-2.safetensors"] == before[0]["model-2.safetensors"]
    for name in ("tile-0", "tile-1"):
        with rasterio.open(find_tile(pairs, name).file("prediction")) as src:
            assert src.tags(ns="landprior")["model"] == load_model(pairs.find_groups()[0].model).digest()


def test_an_interrupted_stage_is_recorded_for_the_group(pairs, monkeypatch):
    from landprior.batch import tile_runner

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tile_runner, "ensure_joint_model", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(pairs)
    assert [state.state for state in read_states(pairs)] == ["interrupted", "interrupted", "waiting", "waiting"]
    assert {state.state for state in run_plan(pairs)} == {"done"}


@pytest.mark.needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_ray_runs_each_stage_of_a_group_once(pairs):
    from landprior.batch.cluster import run_on_ray

    run_plan(pairs)
    alone = maps_of(pairs), models_of(pairs)
    for path in find_tile(pairs, "tile-0").path.parent.rglob("*"):
        if path.name.startswith(("prior", "model", "prediction", "item", RUN)):
            path.unlink()
    mine = find_tile(pairs, "tile-3").file("prior")
    mine.write_bytes(b"by hand")
    states = run_on_ray(pairs, workers=2)
    assert [state.state for state in states] == ["done", "done", "waiting", "failed"]
    mine.unlink()
    assert [state.state for state in run_on_ray(pairs, workers=2)] == ["done"] * 4
    assert (maps_of(pairs), models_of(pairs)) == alone


# -- mosaics ---------------------------------------------------------------------------------------


def folder_with_map(root, name, codes, grid, scheme, core=None):
    folder = TileFolder(path=root / "town" / name, city="town")
    folder.path.mkdir(parents=True)
    write_raster(folder.file("naip"), np.ones((1, *codes.shape), np.uint8), grid)
    write_raster(folder.file("prediction"), codes, grid, nodata=255, scheme=scheme)
    if core is not None:
        folder.record("naip", "key", core=core)
    return folder


def test_each_pixel_comes_from_the_tile_whose_core_contains_it(tmp_path, make_grid, enviroatlas):
    """Two tiles of 40 px with a margin of 10; the seam runs where their cores meet, in either order."""
    from landprior.raster.grid import Bounds

    left = np.full((40, 40), 40, np.uint8)
    right = np.full((40, 40), 70, np.uint8)
    right[:5, :] = 255
    top = 4_500_000.0
    one = folder_with_map(
        tmp_path, "one", left, make_grid(40, 40), enviroatlas, Bounds(600_010.0, top - 30, 600_030.0, top - 10)
    )
    two = folder_with_map(
        tmp_path,
        "two",
        right,
        make_grid(40, 40, left=600_020.0),
        enviroatlas,
        Bounds(600_030.0, top - 30, 600_050.0, top - 10),
    )
    maps = []
    for number, tiles in enumerate(([one, two], [two, one])):
        with rasterio.open(join_maps(tiles, tmp_path / f"{number}.tif", enviroatlas)) as src:
            assert src.bounds[:] == (600_000.0, top - 40, 600_060.0, top)
            maps.append(src.read(1))
    ground = (slice(10, 30), slice(10, 50))
    np.testing.assert_array_equal(maps[0][ground], maps[1][ground])
    assert (maps[0][10:30, 10:30] == 40).all()
    assert (maps[0][10:30, 30:50] == 70).all()
    assert (maps[0][:5, 20:40] == 40).all()  # nodata in the other tile
    assert (maps[0][:5, 40:] == 255).all()


def test_tiles_in_two_zones_are_put_on_one_grid(tmp_path, make_grid, enviroatlas):
    """The same ground in zones 17 and 18, warped by nearest neighbour, so that classes stay classes."""
    from rasterio.warp import transform_bounds

    grid = make_grid(60, 60, left=700_000.0)
    west = folder_with_map(tmp_path, "west", np.full((60, 60), 40, np.uint8), grid, enviroatlas)
    left, bottom, *_ = transform_bounds("EPSG:26917", "EPSG:26918", *grid.bounds)
    other = make_grid(60, 60, left=round(left), top=round(bottom), epsg=26918)
    east = folder_with_map(tmp_path, "east", np.full((60, 60), 70, np.uint8), other, enviroatlas)
    with rasterio.open(join_maps([west, east], tmp_path / "map.tif", enviroatlas)) as src:
        assert src.crs.to_epsg() == 26917
        assert src.res == (1.0, 1.0)
        codes, counts = np.unique(src.read(1), return_counts=True)
    found = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    assert found[40] == 3600
    assert found[70] == pytest.approx(3600, rel=0.02)
    with rasterio.open(join_maps([west, east], tmp_path / "2.tif", enviroatlas, crs="EPSG:5070", pixel=2)) as src:
        assert (src.crs.to_epsg(), src.res) == (5070, (2.0, 2.0))
        assert (src.read(1) == 40).sum() == pytest.approx(900, rel=0.05)


def test_maps_without_a_crs_are_not_joined(tmp_path, make_grid, enviroatlas):
    folder = folder_with_map(
        tmp_path, "one", np.full((20, 20), 40, np.uint8), make_grid(20, 20, epsg=None), enviroatlas
    )
    with pytest.raises(InputError, match="has no CRS"):
        join_maps([folder], tmp_path / "map.tif", enviroatlas)


def test_a_mosaic_reads_maps_like_other_rasters_of_codes(tmp_path, make_grid, enviroatlas):
    """Of maps edited elsewhere, whole floats with NaN and a mask are read; other codes and fractions are errors."""
    from landprior.errors import SchemeError

    codes = np.full((40, 40), 40.0, np.float32)
    codes[:3], codes[3:6] = np.nan, 70
    folder = folder_with_map(tmp_path, "one", codes, make_grid(40, 40), enviroatlas)
    two = folder_with_map(
        tmp_path, "two", np.full((40, 40), 70, np.uint8), make_grid(40, 40, left=600_040.0), enviroatlas
    )
    with rasterio.open(join_maps([folder, two], tmp_path / "map.tif", enviroatlas)) as src:
        found = src.read(1)
    assert (found[:3, :40] == 255).all()
    assert (found[3:6, :40] == 70).all()
    assert (found[6:, :40] == 40).all()
    assert (found[:, 40:] == 70).all()
    for wrong, error, said in ((41, SchemeError, r"one.*prediction.*41"), (40.5, InputError, r"40\.5 at row 7")):
        codes[7, 7] = wrong
        folder.file("prediction").unlink()
        write_raster(folder.file("prediction"), codes, make_grid(40, 40), nodata=255, scheme=enviroatlas)
        with pytest.raises(error, match=said):
            join_maps([folder, two], tmp_path / "wrong.tif", enviroatlas)
        assert not (tmp_path / "wrong.tif").exists()
