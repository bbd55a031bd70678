"""One model for the tiles of a place: maps that meet without a seam, and reruns that do only what is needed."""

import shutil
import warnings
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window, from_bounds

from landprior.errors import LandpriorWarning, OutputExistsError
from landprior.implicit.settings import TrainingSettings
from landprior.landcover.adaptation.adapt import adapt
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.synthetic.demo import write_points
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.shares import find_shares
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.groups import make_groups
from landprior.landcover.workspace.pipeline import run_steps, run_workspace
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import ensure_map
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA, load_scheme
from landprior.run import Run
from tests.helpers import on_one_core

SIDE, TILE = 232, 180
"""Pixels of the scene and of a tile: neighbours overlap by 128 m, as those that fetch lays out."""


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture(autouse=True)
def _unheard():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        yield


def write_town(root, *, side=SIDE, tile=TILE):
    """Write a scene as four tiles that overlap."""
    scene = make_scene(side, seed=1)
    for row, column in product((0, 1), (0, 1)):
        window = Window(column * (side - tile), row * (side - tile), tile, tile)
        at, grid = window.toslices(), scene.grid.window(window)
        folder = root / "town" / f"{'ns'[row]}{'we'[column]}"
        folder.mkdir(parents=True)
        write_raster(folder / "naip.tif", scene.image[(slice(None), *at)], grid)
        for name, values in {"nlcd": scene.nlcd, **scene.layers}.items():
            write_raster(folder / f"{name}.tif", values[at], grid, overviews="nearest")
        write_raster(folder / "labels.tif", scene.truth[at], grid, nodata=MAP_NODATA, overviews="nearest")
    return Workspace(root)


def settings_of(*, group=None, joint=True, filters=4, **training):
    loop = {"steps": 30, "warmup_steps": 24, "epoch_steps": 15, "learning_rate": 5e-3} | training
    scheme = load_scheme("enviroatlas-5")
    return PipelineSettings(
        scheme=scheme,
        cooccurrence=load_cooccurrence(None, scheme),
        training=TileSettings(training=TrainingSettings(**loop), filters=filters, patch_size=32, batch_size=8),
        joint=joint,
        group=group,
    )


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_town(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def mapped(town, tmp_path_factory):
    """Return a copy of the town that was mapped with one model; do not change it."""
    root = shutil.copytree(town.root, tmp_path_factory.mktemp("mapped") / "data")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        run_workspace(Workspace(root), "town", settings_of())
    return Workspace(root)


@pytest.fixture
def fresh(town, tmp_path):
    return Workspace(shutil.copytree(town.root, tmp_path / "fresh"))


@pytest.fixture
def done(mapped, tmp_path):
    return Workspace(shutil.copytree(mapped.root, tmp_path / "done"))


def read_shared(first, second):
    """Return what two rasters have where they overlap."""
    with rasterio.open(first) as one, rasterio.open(second) as other:
        a, b = one.bounds, other.bounds
        shared = (max(a.left, b.left), max(a.bottom, b.bottom), min(a.right, b.right), min(a.top, b.top))
        return [src.read(window=from_bounds(*shared, src.transform)) for src in (one, other)]


def measure_agreement(workspace):
    """Return the share of the pixels in overlaps where the maps of two tiles agree."""
    pairs = [
        read_shared(one.file("prediction"), other.file("prediction"))
        for one, other in combinations(workspace.tiles("town"), 2)
    ]
    return sum((one == other).sum() for one, other in pairs) / sum(one.size for one, _ in pairs)


def stamps_of(workspace):
    folder = workspace.root / "town"
    paths = [path for path in folder.rglob("*") if path.name.startswith(("model", "prior", "prediction"))]
    results = [path for path in paths if path.suffix in (".tif", ".safetensors")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in results}


def rerun(workspace, settings, **options):
    """Run the place again and return the files that were made anew."""
    before = stamps_of(workspace)
    run_workspace(workspace, "town", settings, **options)
    after = stamps_of(workspace)
    return {name for name in after if after[name] != before.get(name)}


def repaint(path, value, rows, columns):
    with rasterio.open(path) as src:
        values, grid, nodata = src.read(), Grid.of(src), src.nodata
    values[:, rows, columns] = value
    write_raster(path, values, grid, nodata=nodata, overviews="nearest", overwrite=True)


MAPS = {f"{name}/prediction.tif" for name in ("ne", "nw", "se", "sw")}
PRIORS = {f"{name}/prior.tif" for name in ("ne", "nw", "se", "sw")}


# -- without a seam ------------------------------------------------------------------------------------


def test_maps_agree_where_tiles_overlap(mapped):
    assert measure_agreement(mapped) >= 0.99
    for one, other in combinations(mapped.tiles("town"), 2):
        priors = read_shared(one.file("prior"), other.file("prior"))
        assert np.abs(priors[0].astype(float) - priors[1]).max() < 1e-3
    assert not list((mapped.root / "town").glob("*/model.safetensors"))
    assert not list((mapped.root / "town").rglob(".*"))


def test_maps_use_the_shares_of_the_whole_group(mapped, tmp_path):
    model = load_model(mapped.root / "town" / "model.safetensors")
    assert model.record["tiles"] == ["town/ne", "town/nw", "town/se", "town/sw"]
    for tile in mapped.tiles("town")[:2]:
        shares = find_shares(model.record, tile.id)
        path = tmp_path / "map.tif"
        predict(tile.file("naip"), path, model, posterior=tile.file("prior"), marginal=shares, run=Run(overwrite=True))
        with rasterio.open(path) as src, rasterio.open(tile.file("prediction")) as own:
            assert np.array_equal(src.read(), own.read())
    sums = [np.average([s[row] for s in [shares]], axis=0).sum() for row in range(3)]
    assert sums == pytest.approx([1, 1, 1])


def test_scores_are_pooled_over_the_tiles(mapped):
    maps, scores = run_workspace(mapped, "town", settings_of())
    assert len(maps) == 4
    assert scores is not None
    assert scores.pixels == 4 * TILE**2


@pytest.mark.slow
def test_one_model_is_better_than_one_each_and_meets_better(tmp_path):
    """On the scene of the demo, cut into four tiles, with a training that is long enough to matter."""
    found = {}
    for joint in (True, False):
        place = write_town(tmp_path / f"{joint}", side=800, tile=464)
        settings = settings_of(joint=joint, filters=16, steps=300, warmup_steps=100, epoch_steps=25, learning_rate=2e-3)
        training = settings.training.model_copy(update={"patch_size": 64, "batch_size": 16})
        _, scores = run_workspace(place, "town", replace(settings, training=training))
        found[joint] = scores.accuracy, measure_agreement(place)
    print(found)
    assert found[True][1] >= 0.99
    assert found[False][1] < 0.9
    assert found[True][0] > found[False][0]


# -- reruns --------------------------------------------------------------------------------------------


def test_a_rerun_makes_nothing_again(done):
    assert rerun(done, settings_of()) == set()


def test_a_changed_layer_remakes_the_priors_within_reach_the_model_and_all_maps(done):
    repaint(done.root / "town" / "nw" / "roads.tif", 1, slice(0, 30), slice(0, 30))
    assert rerun(done, settings_of()) == PRIORS | {"model.safetensors"} | MAPS  # all lie within 125 m
    assert rerun(done, settings_of()) == set()


def test_other_settings_train_the_model_again(done):
    assert rerun(done, settings_of(seed=1)) == {"model.safetensors"} | MAPS


def test_a_lost_map_is_made_again_by_itself(done):
    before = (done.root / "town" / "se" / "prediction.tif").read_bytes()
    (done.root / "town" / "se" / "prediction.tif").unlink()
    assert rerun(done, settings_of()) == {"se/prediction.tif"}
    assert (done.root / "town" / "se" / "prediction.tif").read_bytes() == before


def test_a_failure_keeps_what_was_done_and_a_rerun_continues(fresh, monkeypatch):
    from landprior.landcover.workspace import pipeline

    make, calls = pipeline.ensure_map, []

    def failing(tile, **how):
        calls.append(tile.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(tile, **how)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ensure_map", failing)
        with pytest.raises(KeyboardInterrupt):
            run_workspace(fresh, "town", settings_of())
    assert rerun_maps(fresh) == {"ne"}
    before = stamps_of(fresh)
    run_workspace(fresh, "town", settings_of())
    assert rerun_maps(fresh) == {"ne", "nw", "se", "sw"}
    after = stamps_of(fresh)
    assert {name: after[name] for name in before} == before


def rerun_maps(workspace):
    return {tile.name for tile in workspace.tiles("town") if tile.file("prediction").is_file()}


def test_results_of_one_model_each_are_kept(fresh):
    run_workspace(fresh, "town", settings_of(joint=False))
    with pytest.raises(OutputExistsError, match="not by predict with the joint model of the place; it is kept"):
        run_workspace(fresh, "town", settings_of())
    assert not (fresh.root / "town" / "model.safetensors").exists()  # refused before any work
    run_workspace(fresh, "town", settings_of(), run=Run(overwrite=True))
    with pytest.raises(OutputExistsError, match="was made by predict with the joint model of the place"):
        run_workspace(fresh, "town", settings_of(joint=False))


def test_a_model_that_landprior_did_not_make_is_kept(fresh):
    path = fresh.root / "town" / "model.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"town/model\.safetensors was not made here by landprior; it is kept"):
        run_workspace(fresh, "town", settings_of())
    assert path.read_bytes() == b"mine"
    assert not list((fresh.root / "town").glob("*/prior.tif"))


# -- groups --------------------------------------------------------------------------------------------


def test_each_group_has_its_model(fresh):
    run_workspace(fresh, "town", settings_of(group=2))
    models = [load_model(fresh.root / "town" / f"model-{number}.safetensors") for number in (1, 2)]
    groups = make_groups(fresh.tiles("town"), 2)
    assert [model.record["tiles"] for model in models] == [[tile.id for tile in group.tiles] for group in groups]
    for group, model in zip(groups, models, strict=True):
        for tile in group.tiles:
            with rasterio.open(tile.file("prediction")) as src:
                assert src.tags(ns="landprior")["model"] == model.digest()
    assert rerun(fresh, settings_of(group=2)) == set()


def test_only_the_group_of_a_chosen_tile_is_trained_and_only_its_map_made(fresh):
    groups = make_groups(fresh.tiles("town"), 2)
    chosen = groups[1].tiles[0]
    maps, _ = run_workspace(fresh, "town", settings_of(group=2), only=[chosen.name])
    assert maps == [chosen.file("prediction")]
    assert [path.name for path in (fresh.root / "town").glob("model*.safetensors")] == ["model-2.safetensors"]
    assert all(tile.file("prior").is_file() for tile in groups[1].tiles)
    assert rerun_maps(fresh) == {chosen.name}


def test_single_steps_for_groups(fresh):
    tiles = fresh.tiles("town")
    groups = make_groups(tiles)
    settings = settings_of()
    how = {"training": settings.training, "groups": groups}
    assert [found.path for found in run_steps(tiles, ["prior"], settings, **how)] == [t.file("prior") for t in tiles]
    assert [found.path for found in run_steps(tiles, ["model"], **how)] == [groups[0].model]
    mapped = [found.path for found in run_steps(tiles[:1], ["map"], **how)]
    assert mapped == [tiles[0].file("prediction")]


def test_an_adapted_model_of_the_place_maps_its_tiles(done, tmp_path):
    tiles = done.tiles("town")
    points = write_points(tiles[0], tmp_path / "points.gpkg", load_scheme("enviroatlas-5"), count=40)
    pairs = [(tile.file("naip"), tile.file("prior")) for tile in tiles]
    adapted = tmp_path / "adapted.safetensors"
    report = adapt(tiles[0].path.parent / "model.safetensors", pairs, points, adapted)
    assert report.points == 40  # those in the overlaps count once
    options = MapOptions(tags={"about": "adapted"})
    ensure_map(tiles[1], model=adapted, options=options, run=Run(overwrite=True))
    with rasterio.open(tiles[1].file("prediction")) as src:
        assert src.tags(ns="landprior")["adapted"] == "40 points"
