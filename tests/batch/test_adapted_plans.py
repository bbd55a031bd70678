"""Plans with points: one fit for the place after all models that it needs, whatever the shards and interruptions."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import rasterio

from landprior.batch import tile_runner
from landprior.batch.plans import plan_workspace, read_plan, write_plan
from landprior.batch.points import PlannedPoints
from landprior.batch.shards import choose_shard
from landprior.batch.states import RUN, find_tile, place_of, read_states
from landprior.batch.tile_runner import run_plan
from landprior.errors import ConfigError, LandpriorWarning, MissingInputError
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.groups import read_grid
from landprior.landcover.workspace.pipeline import run_workspace
from landprior.landcover.workspace.place_head import ADAPTATION, read_head
from landprior.landcover.workspace.place_points import PointFiles, find_points
from tests.helpers import on_one_core
from tests.landcover.workspace.test_joint import repaint, write_town
from tests.landcover.workspace.test_place_points import ALONE, PAIRS, SCHEME, SIDE, TILE, write_points


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture(autouse=True)
def _unheard():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        yield


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_town(tmp_path_factory.mktemp("town"), side=SIDE, tile=TILE)


@pytest.fixture(scope="module")
def points(town, tmp_path_factory):
    """Points on all tiles but the south-eastern one."""
    return write_points(town, tmp_path_factory.mktemp("points") / "points.gpkg", range(20))


def run_whole(town, points, settings, root):
    """Return the results of a run of the place without a plan."""
    place = Workspace(shutil.copytree(town.root, root / "whole"))
    grids = {tile.name: read_grid(tile) for tile in place.tiles("town")}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        run_workspace(place, "town", settings, points=find_points(grids, [points], SCHEME))
    return results_of(place.root)


@pytest.fixture(scope="module")
def expected(town, points, tmp_path_factory):
    return run_whole(town, points, ALONE, tmp_path_factory.mktemp("expected"))


@pytest.fixture
def place(town, tmp_path):
    return Workspace(shutil.copytree(town.root, tmp_path / "data"))


@pytest.fixture
def plan(place, points):
    return plan_workspace(place, "town", ALONE, points=PointFiles(files=(points,)))


def results_of(root):
    """Return maps with their tags, and the head."""
    found = {}
    for path in sorted((Path(root) / "town").glob("*/prediction.tif")):
        with rasterio.open(path) as src:
            found[path.parent.name] = src.read().tolist(), src.tags(ns="landprior")
    head = read_head(Path(root) / "town")
    return found, head and (head.weights, head.report)


def stamps_of(plan):
    return {path: path.stat().st_mtime_ns for path in place_of(plan).rglob("*") if path.is_file()}


def states_of(plan):
    return {state.name: state.state for state in read_states(plan)}


def test_points_are_part_of_a_plan(tmp_path, plan, place, points):
    assert plan.points.tiles == ("ne", "nw", "sw")
    assert plan.points.count == 20
    again = read_plan(write_plan(plan, tmp_path / "plan.json"))
    assert (again, again.digest) == (plan, plan.digest)
    assert plan_workspace(place, "town", ALONE).digest != plan.digest
    copied = shutil.copy(points, tmp_path / "elsewhere.gpkg")
    assert plan_workspace(place, "town", ALONE, points=PointFiles(files=(copied,))).digest == plan.digest
    other = write_points(place, tmp_path / "other.gpkg", range(1, 21))
    assert plan_workspace(place, "town", ALONE, points=PointFiles(files=(other,))).digest != plan.digest
    assert choose_shard(plan, 1, 4).points == plan.points


@pytest.mark.parametrize(
    "change",
    [{"tiles": ["nw", "elsewhere"]}, {"tiles": ["../x"]}, {"files": []}, {"checksums": []}, {"count": 0}, {"more": 1}],
    ids=["unknown tile", "outside", "no file", "no checksum", "no point", "unknown field"],
)
def test_plans_with_wrong_points_are_refused(tmp_path, plan, change):
    path = write_plan(plan, tmp_path / "plan.json")
    content = json.loads(path.read_text())
    content["points"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="a plan is made by landprior plan"):
        read_plan(path)


def test_shards_fit_once_and_give_the_maps_of_a_run_of_the_place(plan, expected):
    first, second = (choose_shard(plan, index, 2) for index in (0, 1))  # ne and se, nw and sw
    waiting = run_plan(first)
    assert {(one.name, one.state) for one in waiting} == {("ne", "waiting"), ("se", "waiting")}
    assert {one.detail for one in waiting} == {
        "the points wait for the model of nw; run the plan again when it is trained"
    }
    assert not (place_of(plan) / ADAPTATION).exists()
    assert plan.points.find_report(place_of(plan)) is None
    assert {one.state for one in run_plan(second)} == {"done"}
    head = (place_of(plan) / ADAPTATION).stat().st_mtime_ns
    assert states_of(plan) == {"ne": "waiting", "nw": "done", "se": "waiting", "sw": "done"}
    assert {one.state for one in run_plan(first)} == {"done"}
    assert (place_of(plan) / ADAPTATION).stat().st_mtime_ns == head
    assert results_of(plan.workspace) == expected
    assert plan.points.find_report(place_of(plan)).points == 20
    before = stamps_of(plan)
    assert {one.state for one in run_plan(plan)} == {"done"}
    assert stamps_of(plan) == before
    assert not list(place_of(plan).rglob(".*"))


def test_a_run_that_stops_between_fit_and_maps_resumes_with_the_maps(plan, expected, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tile_runner, "ensure_map", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan)
    assert states_of(plan) == {"ne": "interrupted", "nw": "waiting", "se": "waiting", "sw": "waiting"}
    before = stamps_of(plan)
    assert {one.state for one in run_plan(plan)} == {"done"}
    assert {path.name for path, stamp in before.items() if stamps_of(plan)[path] != stamp} == {RUN, "item.json"}
    assert results_of(plan.workspace) == expected


def test_a_failed_tile_with_points_holds_up_the_maps_and_one_without_only_itself(plan):
    for name, others in (("nw", "waiting"), ("se", "done")):
        mine = find_tile(plan, name).file("prior")
        mine.unlink(missing_ok=True)
        mine.write_bytes(b"mine")
        states = {one.name: one.state for one in run_plan(plan)}
        assert states == dict.fromkeys(("ne", "nw", "se", "sw"), others) | {name: "failed"}
        mine.unlink()
    assert {one.state for one in run_plan(plan)} == {"done"}


def test_a_new_model_under_a_point_fits_again_and_maps_all_tiles(plan):
    run_plan(plan)
    before = read_head(place_of(plan)).weights
    tile = find_tile(plan, "nw")
    repaint(tile.file("roads"), 1, slice(0, 40), slice(0, 40))
    assert states_of(plan) == {"ne": "done", "nw": "waiting", "se": "done", "sw": "done"}
    assert {one.state for one in run_plan(plan)} == {"done"}
    assert read_head(place_of(plan)).weights != before
    notes = [json.loads((find_tile(plan, name).path / RUN).read_text())["adaptation"] for name in ("ne", "nw", "se")]
    assert len(set(notes)) == 1
    (place_of(plan) / ADAPTATION).unlink()
    assert {one.detail for one in read_states(plan)} == {"adaptation.json is gone since it was done"}


def test_points_that_have_changed_or_gone_are_an_error(place, points, tmp_path):
    own = tmp_path / "own.gpkg"
    shutil.copy(points, own)
    plan = plan_workspace(place, "town", ALONE, points=PointFiles(files=(own,)))
    assert PlannedPoints.model_validate_json(plan.points.model_dump_json()).open().files == (str(own),)
    write_points(place, own, range(21))
    with pytest.raises(ConfigError, match=r"own\.gpkg has changed since the plan was made; make a new plan"):
        plan.points.open()
    assert {one.state for one in run_plan(plan)} == {"failed"}
    own.unlink()
    with pytest.raises(MissingInputError, match="every worker needs them"):
        plan.points.open()


def test_groups_fit_after_their_models(town, place, points, tmp_path):
    plan = plan_workspace(place, "town", PAIRS, points=PointFiles(files=(points,)))
    first, second = (choose_shard(plan, index, 2) for index in (0, 1))
    assert {one.state for one in run_plan(first)} == {"waiting"}
    assert {one.state for one in run_plan(second)} == {"done"}
    assert {one.state for one in run_plan(first)} == {"done"}
    assert results_of(plan.workspace) == run_whole(town, points, PAIRS, tmp_path)


@pytest.mark.needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_ray_fits_once(plan, expected):
    from landprior.batch.cluster import run_on_ray

    assert [one.state for one in run_on_ray(plan, workers=2)] == ["done"] * 4
    assert results_of(plan.workspace) == expected
