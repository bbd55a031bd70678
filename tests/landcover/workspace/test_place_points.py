"""Places adapted to labelled points: one head for all tiles, each step once, and the same as by hand."""

import json
import shutil
import warnings
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio

from landprior.errors import InputError, LandpriorWarning, OutputExistsError
from landprior.landcover.adaptation.adapt import adapted_model, fit_head
from landprior.landcover.adaptation.labelled_pixels import PlaceTile
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.model import load_model
from landprior.landcover.workspace import pipeline
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.groups import read_grid
from landprior.landcover.workspace.pipeline import run_workspace
from landprior.landcover.workspace.place_head import ADAPTATION, read_head
from landprior.landcover.workspace.place_points import find_points
from landprior.raster.scheme import load_scheme
from tests.helpers import on_one_core
from tests.landcover.workspace.test_joint import settings_of, write_town

SIDE, TILE = 132, 80
SCHEME = load_scheme("enviroatlas-5")
TILES = ("ne", "nw", "se", "sw")
LOOP = {"steps": 4, "warmup_steps": 2, "epoch_steps": 2}
ALONE = settings_of(joint=False, **LOOP)
PAIRS = settings_of(group=2, **LOOP)


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture(autouse=True)
def _unheard():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        yield


def run(workspace, settings, points=None, **options):
    given = None if points is None else find(workspace, points)
    return run_workspace(workspace, "town", settings, points=given, **options)


def find(workspace, points, **options):
    grids = {tile.name: read_grid(tile) for tile in workspace.tiles("town")}
    return find_points(grids, [points], SCHEME, **options)


def make_plain(root, settings):
    place = write_town(root, side=SIDE, tile=TILE)
    with on_one_core(), warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        run(place, settings)
    return place


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a place of four tiles, each mapped with its own model; do not change it."""
    return make_plain(tmp_path_factory.mktemp("plain"), ALONE)


@pytest.fixture(scope="module")
def plain_pairs(tmp_path_factory):
    """Return a place of two groups of two tiles; do not change it."""
    return make_plain(tmp_path_factory.mktemp("pairs"), PAIRS)


@pytest.fixture
def place(plain, tmp_path):
    return Workspace(shutil.copytree(plain.root, tmp_path / "data"))


@pytest.fixture
def pairs(plain_pairs, tmp_path):
    return Workspace(shutil.copytree(plain_pairs.root, tmp_path / "data"))


@pytest.fixture(scope="module")
def points(plain, tmp_path_factory):
    return write_points(plain, tmp_path_factory.mktemp("points") / "points.gpkg", range(40))


@pytest.fixture(scope="module")
def adapted(plain, points, tmp_path_factory):
    """Return the place adapted to its points; do not change it."""
    root = shutil.copytree(plain.root, tmp_path_factory.mktemp("adapted") / "data")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        assert made_again(Workspace(root), ALONE, points) == {ADAPTATION} | ADAPTED | MAPS  # plain maps are replaced
    return Workspace(root)


@pytest.fixture
def done(adapted, tmp_path):
    return Workspace(shutil.copytree(adapted.root, tmp_path / "done"))


def write_points(workspace, path, numbers, *, west=0):
    """Write points on all tiles but the south-eastern one; every fourth lies where the northern tiles overlap."""
    tile = workspace.tiles("town")[1]
    grid = read_grid(tile)
    x, y, names = [], [], []
    for number in numbers:
        rng = np.random.default_rng(number)
        row, column = rng.integers(0, TILE // 2, 2)
        column = column if number % 2 else column + TILE // 2
        row += TILE // 2 * (number % 4 == 3) if number % 2 else 0
        here = grid.transform @ (column + 0.5, row + 0.5)
        x.append(here[0] + west)
        y.append(here[1])
        names.append(SCHEME.names[int(rng.integers(0, 5))])
    frame = geopandas.GeoDataFrame({"class": names}, geometry=geopandas.points_from_xy(x, y), crs=grid.crs.to_wkt())
    frame.to_file(path)
    return path


def stamps_of(workspace):
    folder = workspace.root / "town"
    names = (".tif", ".safetensors", ".json")
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in names and path.name != "item.json"
    }


def made_again(workspace, settings, points, **options):
    before = stamps_of(workspace)
    run(workspace, settings, points, **options)
    after = stamps_of(workspace)
    return {name for name in after if after[name] != before.get(name)}


def read(path):
    with rasterio.open(path) as src:
        return src.read().tolist(), src.tags(ns="landprior")


def results_of(workspace):
    return {tile.name: read(tile.file("prediction")) for tile in workspace.tiles("town")}


ADAPTED = {f"{name}/adapted.safetensors" for name in TILES}
MAPS = {f"{name}/prediction.tif" for name in TILES}


def test_a_place_is_adapted_as_by_hand_to_the_bit(adapted, points, tmp_path):
    tiles = adapted.tiles("town")
    by_hand = [PlaceTile(image=t.file("naip"), prior=t.file("prior"), model=load_model(t.file("model"))) for t in tiles]
    heads, report = fit_head(by_hand, points)
    found = read_head(adapted.root / "town")
    assert found.report == report
    assert report.points == 40  # also those on several tiles
    for tile, given, head in zip(tiles, by_hand, heads, strict=True):
        model = adapted_model(given.model, head, points, report)
        own = load_model(tile.file("adapted"))
        assert own.digest() == model.digest()
        assert own.record == model.record
        assert np.array_equal(own.head.weights, np.array(found.weights))
        assert own.head.log_marginal.tolist() != heads[0].log_marginal.tolist() or tile.name == "ne"
        target = predict(given.image, tmp_path / f"{tile.name}.tif", model, posterior=given.prior)
        assert read(target) == read(tile.file("prediction"))
        assert read(target)[1]["adapted"] == "40 points"
    assert "adapted" in json.loads((tiles[0].path / "item.json").read_text())["assets"]


def test_a_tile_without_points_is_mapped_by_the_common_head(place, tmp_path):
    few = write_points(place, tmp_path / "few.gpkg", range(1, 41, 4), west=-0.25)
    given = find(place, few)
    assert given.tiles == ("nw",)
    run_workspace(place, "town", ALONE, points=given)
    heads = [load_model(tile.file("adapted")).head for tile in place.tiles("town")]
    for head in heads[1:]:
        assert np.array_equal(head.weights, heads[0].weights)
        assert head.log_marginal.tolist() != heads[0].log_marginal.tolist()
    assert {read(tile.file("prediction"))[1]["adapted"] for tile in place.tiles("town")} == {"10 points"}


def test_a_rerun_makes_nothing_and_other_points_only_head_and_maps(done, points, tmp_path):
    assert made_again(done, ALONE, points) == set()
    more = write_points(done, tmp_path / "more.gpkg", range(45))
    assert made_again(done, ALONE, more) == {ADAPTATION} | ADAPTED | MAPS
    assert read_head(done.root / "town").report.points == 45


def test_the_column_of_the_class_is_an_option(place, points, tmp_path):
    columns = geopandas.read_file(points).rename(columns={"class": "seen"})
    columns.to_file(tmp_path / "columns.gpkg")
    with pytest.raises(InputError, match="has no column 'reference'"):
        find(place, tmp_path / "columns.gpkg")
    assert find(place, tmp_path / "columns.gpkg", column="seen").tiles == ("ne", "nw", "sw")


def test_without_points_the_adapted_maps_are_kept(done):
    before = stamps_of(done)
    why = r"was made by predict with the tile's own model, adapted to points, not by predict with the tile's own model"
    with pytest.raises(OutputExistsError, match=why):
        run(done, ALONE)
    assert stamps_of(done) == before


def test_an_interruption_between_head_and_maps_changes_nothing(place, adapted, points, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ensure_map", stop)
        with pytest.raises(KeyboardInterrupt):
            run(place, ALONE, points)
    assert (place.root / "town" / ADAPTATION).is_file()
    assert ADAPTATION not in made_again(place, ALONE, points)
    assert results_of(place) == results_of(adapted)


def test_another_model_of_a_tile_with_points_fits_the_head_again(done, points):
    before = read_head(done.root / "town").weights
    other = replace(ALONE, training=ALONE.training.model_copy(update={"filters": 3}))
    run(done, other, points, only=["nw"])
    assert read_head(done.root / "town").weights != before
    assert made_again(done, other, points) == {
        f"{name}/{file}" for name in ("ne", "se", "sw") for file in ("adapted.safetensors", "prediction.tif")
    } | {"se/model.safetensors"}  # that has no point, and was not chosen


def test_groups_are_adapted_with_the_shares_that_their_models_have(pairs, points):
    expected = {ADAPTATION} | MAPS | {f"adapted-{n}.{end}" for n in (1, 2) for end in ("safetensors", "json")}
    assert made_again(pairs, PAIRS, points) == expected
    models = [load_model(pairs.root / "town" / f"adapted-{number}.safetensors") for number in (1, 2)]
    assert np.array_equal(models[0].head.weights, models[1].head.weights)
    for model in models:
        shares = np.array(model.record["shares"]["q"])
        np.testing.assert_allclose(np.exp(model.head.log_marginal), shares / shares.sum(), rtol=1e-12)
    digests = {tags["model"] for _, tags in results_of(pairs).values()}
    assert digests == {model.digest() for model in models}
    assert made_again(pairs, PAIRS, points) == set()


def test_only_models_that_are_needed_are_made_for_one_tile(tmp_path, points):
    fresh = write_town(tmp_path, side=SIDE, tile=TILE)
    maps, _ = run(fresh, ALONE, points, only=["se"])
    tiles = {tile.name: tile for tile in fresh.tiles("town")}
    assert maps == [tiles["se"].file("prediction")]
    assert all(tile.file("model").is_file() for tile in tiles.values())
    assert [tile.name for tile in tiles.values() if tile.file("adapted").is_file()] == ["se"]


def test_a_file_of_someone_else_is_kept(place, points):
    path = place.root / "town" / ADAPTATION
    for content in ("mine", "{}", "[1]"):
        path.write_text(content)
        with pytest.raises(OutputExistsError, match=r"adaptation\.json was not made here by landprior; it is kept"):
            run(place, ALONE, points)
        assert path.read_text() == content
        assert read_head(path.parent) is None


def test_a_damaged_head_is_fitted_again(done, points):
    path = done.root / "town" / ADAPTATION
    before = path.read_bytes()
    content = json.loads(before)
    path.write_text(json.dumps(content | {"weights": [["x"]]}))
    assert read_head(path.parent) is None
    run(done, ALONE, points)
    assert path.read_bytes() == before


def test_too_few_points_on_the_tiles_are_an_error(place, tmp_path):
    path = write_points(place, tmp_path / "points.gpkg", range(40))
    geopandas.read_file(path).head(9).to_file(path)
    with pytest.raises(InputError, match="9 points have one class and lie on the tiles; at least 10 are needed"):
        find(place, path)
