"""The workspace: items record how results were made, and a rerun does only what is needed."""

import hashlib
import json
import logging
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.warp import transform
from rasterio.windows import Window
from safetensors import safe_open

from landprior.errors import LandpriorWarning, MissingInputError, OutputExistsError
from landprior.implicit.settings import TrainingSettings
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import TileSettings, make_settings
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.groups import make_groups
from landprior.landcover.workspace.item import ITEM, RESULTS, TileFolder
from landprior.landcover.workspace.pipeline import run_workspace
from landprior.landcover.workspace.provenance import make_key
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.landcover.workspace.steps import (
    ensure_joint_model,
    ensure_map,
    ensure_model,
    ensure_prior,
    score_tile,
    train_city,
)
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA, load_scheme
from landprior.run import Run
from tests.helpers import on_one_core

MADE = tuple(name for name in RESULTS if name != "adapted")  # which needs points
FILES = {name: f"{name}.safetensors" if name == "model" else f"{name}.tif" for name in MADE}
LAYERS = ("roads", "buildings", "waterways", "waterbodies")


@contextmanager
def unheard():
    """Drop landprior's warnings: a network trained for four steps may be useless, which gives a warning."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", LandpriorWarning)
        yield


def write_tile(folder, window, *, layers=LAYERS, labels=True):
    """Write part of a synthetic scene as a tile."""
    scene = make_scene(128, seed=0)
    at, grid = window.toslices(), scene.grid.window(window)
    write_raster(folder / "naip.tif", scene.image[(slice(None), *at)], grid)
    write_raster(folder / "nlcd.tif", scene.nlcd[at], grid)
    for name in layers:
        write_raster(folder / f"{name}.tif", scene.layers[name][at], grid)
    if labels:
        write_raster(folder / "labels.tif", scene.truth[at], grid, nodata=MAP_NODATA)
    return TileFolder(path=folder, city=folder.parent.name)


def settings_of(*, prior=None, posterior=True, **training):
    loop = {"steps": 4, "warmup_steps": 2, "epoch_steps": 2} | training
    scheme = load_scheme("enviroatlas-5")
    return PipelineSettings(
        scheme=scheme,
        cooccurrence=load_cooccurrence(None, scheme),
        prior=PriorSettings(**{"blur_sigma": 5.0, "blur_radius": 8.0} | (prior or {})),
        training=TileSettings(training=TrainingSettings(**loop), filters=2, patch_size=16, batch_size=2),
        posterior=posterior,
    )


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Return a workspace with two tiles that was run once; do not change it."""
    root = tmp_path_factory.mktemp("workspace")
    write_tile(root / "town" / "east", Window(64, 20, 48, 56))
    write_tile(root / "town" / "west", Window(10, 30, 52, 44), layers=("roads",))
    with unheard():
        run_workspace(Workspace(root), "town", settings_of())
    return root


@pytest.fixture(autouse=True)
def _unheard():
    with unheard():
        yield


@pytest.fixture
def done(town, tmp_path):
    """Return a copy of the workspace with results."""
    return Workspace(shutil.copytree(town, tmp_path / "done"))


@pytest.fixture
def fresh(town, tmp_path):
    """Return a copy of the workspace without results."""
    results = shutil.ignore_patterns(ITEM, *FILES.values())
    return Workspace(shutil.copytree(town, tmp_path / "fresh", ignore=results))


@pytest.fixture
def tile(tmp_path):
    return write_tile(tmp_path / "data" / "town" / "east", Window(64, 20, 48, 56), layers=())


@pytest.fixture
def log(caplog):
    """Return a function that returns the lines logged since the last call."""
    caplog.set_level(logging.INFO, "landprior")

    def lines():
        found = [record.getMessage().strip() for record in caplog.records]
        caplog.clear()
        return found

    return lines


def item_of(tile):
    return json.loads((tile.path / ITEM).read_text(encoding="utf-8"))


def results_of(workspace):
    """Return the time and content of every result."""
    paths = [path for tile in workspace.tiles() for path in map(tile.file, RESULTS) if path.is_file()]
    return {f"{p.parent.name}/{p.name}": (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def remade(before, after):
    """Return the results that were remade between two calls of :func:`results_of`."""
    return {name for name in after if before.get(name, (None,))[0] != after[name][0]}


def repaint(path, code=7):
    """Rewrite a raster with another value in the upper rows."""
    with rasterio.open(path) as src:
        values, grid, nodata = src.read(), Grid.of(src), src.nodata
    values[:, :20] = code
    write_raster(path, values, grid, nodata=nodata, overwrite=True)


# -- the item -------------------------------------------------------------------------------------


def test_the_item_is_a_stac_item_with_the_extent_of_the_tile(done):
    for tile in done.tiles("town"):
        item = pystac.Item.from_dict(item_of(tile), preserve_dict=True)
        assert item.id == f"town-{tile.name}"
        assert item.datetime is not None
        assert item.datetime <= datetime.now(UTC)
        assert {url.split("/")[3] for url in item.stac_extensions} == {"projection", "file", "raster", "classification"}
        with rasterio.open(tile.file("naip")) as src:
            left, bottom, right, top = src.bounds
            xs, ys = transform(src.crs, "EPSG:4326", [left, left, right, right], [bottom, top, bottom, top])
            assert item.properties["proj:code"] == f"EPSG:{src.crs.to_epsg()}"
            assert item.properties["proj:shape"] == list(src.shape)
            assert item.properties["proj:transform"] == list(src.transform)[:6]
        assert item.bbox == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-7)
        corners = item.geometry["coordinates"][0]
        assert [min(c) for c in zip(*corners, strict=True)] == pytest.approx(item.bbox[:2])
        assert [max(c) for c in zip(*corners, strict=True)] == pytest.approx(item.bbox[2:])


def test_checksums_of_assets_are_correct(done):
    for tile in done.tiles("town"):
        item = pystac.Item.from_dict(item_of(tile), preserve_dict=True)
        assert {asset.href for asset in item.assets.values()} == {
            f"./{path.name}" for path in tile.path.iterdir() if path.suffix in (".tif", ".safetensors")
        }
        for asset in item.assets.values():
            path = tile.path / asset.href
            content = path.read_bytes()
            fields = asset.extra_fields
            assert fields["file:size"] == len(content)
            # multihash: the code of sha2-256, the length, the digest
            assert fields["file:checksum"] == "12" + "20" + hashlib.sha256(content).hexdigest()
            assert asset.roles == ["data"]


@pytest.mark.parametrize("name", [ITEM, FILES["model"]])
def test_metadata_is_strictly_valid_json(done, name):
    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    for tile in done.tiles("town"):
        if name == ITEM:
            json.loads((tile.path / name).read_text(encoding="utf-8"), parse_constant=refuse)
            continue
        with safe_open(tile.path / name, framework="pt") as handle:
            json.loads(handle.metadata()["landprior"], parse_constant=refuse)


def test_the_item_contains_no_absolute_path(done):
    for tile in done.tiles("town"):
        assert str(done.root) not in (tile.path / ITEM).read_text()


def test_the_item_records_the_steps(done):
    east, west = done.tiles("town")
    steps = {tile.name: tile.steps() for tile in (east, west)}
    assert set(steps["east"]) == {"prior", "model", "prediction", "evaluation"}
    assert steps["east"]["prior"]["layers"] == sorted(LAYERS)
    assert steps["west"]["prior"]["layers"] == ["roads"]
    assert steps["east"]["model"]["loss"] == "qr"
    assert steps["east"]["model"]["history"]["steps"] == 4
    assert steps["east"]["evaluation"]["accuracy"] == score_tile(east, settings_of()).accuracy
    for name in MADE:
        assert steps["east"][name]["sha256"] == hashlib.sha256(east.file(name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "crs",
    [
        pytest.param(None, id="none"),
        pytest.param(CRS.from_proj4("+proj=aea +lat_1=29 +lat_2=45 +lat_0=23 +lon_0=-96 +datum=WGS84"), id="custom"),
    ],
)
def test_the_item_of_a_grid_without_an_epsg_code(tmp_path, make_grid, crs):
    grid = replace(make_grid(20, 30, left=1_400_000.0, top=2_000_000.0), crs=crs)
    write_raster(tmp_path / "town" / "a" / "naip.tif", np.ones((4, 20, 30), np.uint8), grid)
    tile = TileFolder(path=tmp_path / "town" / "a", city="town")
    tile.record("prior", "key")
    item = pystac.Item.from_dict(item_of(tile))
    assert (item.bbox is None) == (crs is None)
    assert item.properties.get("proj:code") is None
    written = item.properties.get("proj:wkt2")
    assert (written is None) == (crs is None)
    assert written is None or (CRS.from_wkt(written) == crs and written.startswith("PROJCRS["))


# -- the state of a result ------------------------------------------------------------------------


def key_of(tile, **settings):
    return make_key({"blur": 31} | settings, {"nlcd": tile.file("nlcd"), "image": tile.file("naip")})


@pytest.fixture
def made(tile):
    """Return a tile with a recorded prior."""
    tile.file("prior").write_bytes(b"a prior")
    tile.record("prior", key_of(tile))
    return tile


def test_a_result_without_a_file_is_missing(tile):
    assert tile.state("prior", key_of(tile)) == "missing"


def test_a_recorded_result_is_current(made):
    assert made.state("prior", key_of(made)) == "current"
    assert TileFolder(path=made.path, city="town").state("prior", key_of(made)) == "current"


def test_a_recorded_result_that_was_deleted_is_missing(made):
    made.file("prior").unlink()
    assert made.state("prior", key_of(made)) == "missing"


def test_an_unrecorded_result_is_stale(tile):
    tile.file("prior").write_bytes(b"from elsewhere")
    assert tile.state("prior", key_of(tile)) == "stale"


def test_other_settings_make_a_result_stale(made):
    assert made.state("prior", key_of(made, blur=30)) == "stale"


@pytest.mark.parametrize("layer", ["nlcd", "naip"])
def test_a_changed_input_makes_a_result_stale(made, layer):
    repaint(made.file(layer))
    assert made.state("prior", key_of(made)) == "stale"


def test_an_additional_input_makes_a_result_stale(made):
    key = make_key({"blur": 31}, {name: made.file(name) for name in ("nlcd", "naip", "labels")})
    assert made.state("prior", key) == "stale"


def test_a_touched_or_copied_input_does_not_make_a_result_stale(made):
    content = made.file("nlcd").read_bytes()
    made.file("nlcd").unlink()
    made.file("nlcd").write_bytes(content)
    assert made.state("prior", key_of(made)) == "current"


@pytest.mark.parametrize("content", [b"b prior", b"a prior and more", b""])
def test_an_altered_result_is_stale(made, content):
    made.file("prior").write_bytes(content)
    assert made.state("prior", key_of(made)) == "stale"


def test_recording_one_step_keeps_the_others(made):
    made.file("model").write_bytes(b"a model")
    made.record("model", "key", loss="qr")
    assert made.state("prior", key_of(made)) == "current"
    assert made.state("model", "key") == "current"
    assert set(item_of(made)["assets"]) == {"naip", "nlcd", "labels", "prior", "model"}


def test_without_its_item_a_result_is_stale(made):
    (made.path / ITEM).unlink()
    assert made.state("prior", key_of(made)) == "stale"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"type": "Feature", "prop',
        b"\xff\xfe\x00not text",
        b"[]",
        b"null",
        b"{}",
        b'{"type": "Feature"}',
        b'{"properties": null}',
        b'{"properties": {"landprior:steps": null}}',
    ],
)
def test_a_damaged_item_is_rewritten(made, content):
    (made.path / ITEM).write_bytes(content)
    assert made.state("prior", key_of(made)) == "stale"
    made.record("prior", key_of(made))
    assert pystac.Item.from_dict(item_of(made)).id == "town-east"
    assert made.state("prior", key_of(made)) == "current"


def test_a_damaged_item_is_named_in_the_log(made, log):
    (made.path / ITEM).write_text("{")
    made.record("prior", key_of(made))
    assert f"{made.path / ITEM} is damaged; writing a new one" in log()


# -- finding tiles --------------------------------------------------------------------------------


def test_tiles_are_the_folders_with_an_image(town):
    (town / ".hidden" / "a").mkdir(parents=True, exist_ok=True)
    workspace = Workspace(town)
    assert [(t.city, t.name) for t in workspace.tiles()] == [("town", "east"), ("town", "west")]
    assert [t.name for t in workspace.tiles("town", only=["west"])] == ["west"]


def test_a_missing_workspace(tmp_path):
    with pytest.raises(MissingInputError, match=r"no workspace at .*none; name one with --data.*landprior demo"):
        Workspace(tmp_path / "none").tiles("town")


def test_a_missing_city(town):
    with pytest.raises(MissingInputError, match=r"no city 'village' \(it has: town\).*village/<tile>/naip\.tif"):
        Workspace(town).tiles("village")


def test_an_empty_workspace(tmp_path):
    with pytest.raises(MissingInputError, match=r"no city 'town' \(it has: none\)"):
        Workspace(tmp_path).tiles("town")
    with pytest.raises(MissingInputError, match=r"no tile with a naip\.tif in"):
        Workspace(tmp_path).tiles()


def test_a_missing_tile(town):
    with pytest.raises(MissingInputError, match="there is no tile north; there are: east, west"):
        Workspace(town).tiles("town", only=["east", "north"])


def test_a_city_without_tiles(tmp_path):
    (tmp_path / "town" / "a").mkdir(parents=True)
    with pytest.raises(MissingInputError, match=r"no tile with a naip\.tif in .*town"):
        Workspace(tmp_path).tiles("town")


def test_the_error_for_a_missing_layer_gives_advice(tile):
    assert tile.require("naip", hint="") == tile.path / "naip.tif"
    with pytest.raises(MissingInputError, match=r"east/model\.safetensors is missing; train it"):
        tile.require("model", hint="train it")


# -- the whole pipeline ---------------------------------------------------------------------------


def test_all_results_are_made(done, enviroatlas):
    for tile in done.tiles("town"):
        with rasterio.open(tile.file("naip")) as image:
            shape, crs = image.shape, image.crs
        for name, bands in (("prior", 5), ("prediction", 1)):
            with rasterio.open(tile.file(name)) as src:
                assert (src.count, *src.shape) == (bands, *shape)
                assert src.crs == crs
        with rasterio.open(tile.file("prediction")) as src:
            assert set(np.unique(src.read())) <= set(enviroatlas.codes.tolist())
            assert src.tags(ns="landprior")["model"] == load_model(tile.file("model")).digest()
        assert not [path for path in tile.path.iterdir() if path.name.startswith(".")]


def test_a_rerun_remakes_nothing_and_logs_it(done, log):
    before = results_of(done)
    maps, scores = run_workspace(done, "town", settings_of())
    assert results_of(done) == before
    assert maps == [tile.file("prediction") for tile in done.tiles("town")]
    assert scores.pixels == 48 * 56 + 52 * 44
    assert log() == [
        line
        for name in ("town/east", "town/west")
        for line in (name, *(f"{file} is current" for file in FILES.values()))
    ]


@pytest.mark.parametrize(
    ("changes", "anew", "why"),
    [
        (
            {"prior": {"blur_sigma": 3.0}},
            {"prior", "model", "prediction"},
            {
                "prior": "other settings: prior.blur_sigma was 5.0, now 3.0",
                "model": "prior has changed",
                "prediction": "model has changed; prior has changed",
            },
        ),
        (
            {"loss": "ce"},
            {"model", "prediction"},
            {"model": "other settings: training.loss was qr, now ce", "prediction": "model has changed"},
        ),
        (
            {"seed": 1},
            {"model", "prediction"},
            {"model": "other settings: training.seed was 0, now 1", "prediction": "model has changed"},
        ),
        (
            {"posterior": False},
            {"prediction"},
            {"prediction": "prior was removed; other settings: posterior was True, now False"},
        ),
    ],
    ids=["blur", "loss", "seed", "posterior"],
)
def test_other_settings_remake_what_depends_on_them_and_log_why(done, log, changes, anew, why):
    before = results_of(done)
    run_workspace(done, "town", settings_of(**changes), only=["east"])
    assert remade(before, results_of(done)) == {f"east/{FILES[name]}" for name in anew}
    lines = log()
    for name, file in FILES.items():
        said = f"is stale ({why[name]}); remaking it" if name in anew else "is current"
        assert f"{file} {said}" in lines
    run_workspace(done, "town", settings_of(**changes), only=["east"])
    assert log() == ["town/east", *(f"{file} is current" for file in FILES.values())]


def test_a_finished_map_gets_the_style_it_lacks_and_is_not_remade(done):
    style = done.root / "town" / "west" / "prediction.qml"
    before, text = results_of(done), style.read_bytes()
    style.unlink()
    for option, there in ((False, False), (True, True)):
        run_workspace(done, "town", settings_of(), only=["west"], options=MapOptions(style=option))
        assert style.exists() == there
    assert remade(before, results_of(done)) == set()
    assert style.read_bytes() == text


def test_other_products_remake_the_map(done):
    before = results_of(done)
    run_workspace(done, "town", settings_of(), only=["west"], options=MapOptions(confidence=True))
    assert remade(before, results_of(done)) == {"west/prediction.tif"}
    assert (done.root / "town" / "west" / "prediction_confidence.tif").is_file()


@pytest.mark.parametrize(
    ("layer", "code", "anew"),
    [
        ("naip", 7, {"model", "prediction"}),
        ("nlcd", 11, {"prior", "model", "prediction"}),
        ("labels", 10, set()),
    ],
)
def test_a_changed_file_remakes_what_depends_on_it(done, layer, code, anew):
    tile = done.tiles("town", only=["east"])[0]
    repaint(tile.file(layer), code)
    before = results_of(done)
    run_workspace(done, "town", settings_of())
    assert remade(before, results_of(done)) == {f"east/{FILES[name]}" for name in anew}
    again = results_of(done)
    run_workspace(done, "town", settings_of())
    assert results_of(done) == again


@pytest.mark.parametrize(
    ("layer", "code"),
    [("prior", 0), ("prediction", 10)],
)
def test_a_result_changed_by_hand_is_kept_without_overwrite(done, layer, code):
    """And no other result is made, in any tile."""
    tile = done.tiles("town", only=["west"])[0]
    repaint(tile.file(layer), code)
    before = results_of(done)
    changed = settings_of(seed=1)
    with pytest.raises(
        OutputExistsError,
        match=rf"west/{layer}\.tif was changed or replaced after landprior made it; it is kept\..*--overwrite",
    ):
        run_workspace(done, "town", changed)
    assert results_of(done) == before
    run_workspace(done, "town", changed, run=Run(overwrite=True))
    assert len(remade(before, results_of(done))) == 6


@pytest.mark.parametrize("step", MADE)
def test_a_result_that_landprior_did_not_make_is_kept(fresh, step):
    tile = fresh.tiles("town", only=["east"])[0]
    tile.file(step).write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"was not made here by landprior; it is kept"):
        run_workspace(fresh, "town", settings_of(), only=["east"])
    assert tile.file(step).read_bytes() == b"mine"
    assert {path.name for path in tile.path.iterdir()} & set(FILES.values()) == {FILES[step]}


def test_a_map_of_another_model_is_not_replaced_by_a_run_or_the_tile_model(done, tmp_path):
    """Even after --overwrite was used once; but the other model can replace its own map."""
    tile = done.tiles("town", only=["east"])[0]
    joint = train_city(done.tiles("town"), tmp_path / "joint.safetensors", settings_of().training)
    own = tile.file("prediction").read_bytes()
    with pytest.raises(
        OutputExistsError,
        match=r"prediction\.tif was made by predict with the tile's own model, not by predict --model joint",
    ):
        ensure_map(tile, model=joint)
    assert tile.file("prediction").read_bytes() == own
    ensure_map(tile, model=joint, run=Run(overwrite=True))
    theirs = tile.file("prediction").read_bytes()
    assert theirs != own
    for again in (lambda: ensure_map(tile), lambda: run_workspace(done, "town", settings_of(), only=["east"])):
        with pytest.raises(OutputExistsError, match="was made by predict --model joint"):
            again()
    assert tile.file("prediction").read_bytes() == theirs
    ensure_map(tile, model=joint, posterior=False)  # the other model's own map, with another setting
    assert tile.file("prediction").read_bytes() != theirs
    ensure_map(tile, model=tile.file("model"), run=Run(overwrite=True))  # by its path, but still the tile's own
    run_workspace(done, "town", settings_of(), only=["east"])
    assert tile.file("prediction").read_bytes() == own


def test_results_of_another_command_with_other_settings_are_kept(done):
    """With the same settings they are current, or remade when inputs have changed."""
    tile = done.tiles("town", only=["east"])[0]
    before = results_of(done)
    ensure_model(tile, settings_of().training)
    ensure_prior(tile, settings_of())
    ensure_map(tile)
    assert results_of(done) == before
    refused = {
        "prior": lambda: ensure_prior(tile, settings_of(prior={"blur_sigma": 3.0})),
        "model": lambda: ensure_model(tile, settings_of(seed=1).training),
        "prediction": lambda: ensure_map(tile, posterior=False),
    }
    for step, make in refused.items():
        with pytest.raises(OutputExistsError, match=rf"{FILES[step]} was made by landprior run \(other settings: "):
            make()
    assert results_of(done) == before
    repaint(tile.file("nlcd"), 11)
    ensure_prior(tile, settings_of())
    assert remade(before, results_of(done)) == {"east/prior.tif"}


@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_another_recipe_does_not_replace_a_model(done, recipe):
    tile = done.tiles("town", only=["east"])[0]
    before = results_of(done)
    with pytest.raises(
        OutputExistsError, match=rf"was made by train --recipe default, not by train --recipe {recipe}; it is kept"
    ):
        run_workspace(done, "town", replace(settings_of(), training=make_settings(recipe, filters=2)))
    assert results_of(done) == before
    assert tile.steps()["model"]["recipe"] == "train --recipe default"


@pytest.mark.parametrize("step", MADE)
def test_a_result_whose_process_was_killed_before_recording_it_counts_as_made_here(fresh, step, monkeypatch):
    """After kill -9 between rename and record, a rerun ends as if nothing had happened."""
    tile = fresh.tiles("town", only=["east"])[0]
    record = TileFolder.record

    def killed(self, name, *arguments, **options):
        if name == step:
            raise KeyboardInterrupt
        record(self, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TileFolder, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            run_workspace(fresh, "town", settings_of(), only=["east"])
    left = tile.file(step).read_bytes()
    assert step not in tile.steps()
    run_workspace(fresh, "town", settings_of(), only=["east"])
    assert tile.file(step).read_bytes() == left
    assert "landprior:begun" not in item_of(tile)["properties"]
    before = results_of(fresh)
    run_workspace(fresh, "town", settings_of(), only=["east"])
    assert results_of(fresh) == before


def test_a_change_by_hand_after_a_killed_process_is_still_noticed(fresh, monkeypatch):
    tile = fresh.tiles("town", only=["east"])[0]
    with monkeypatch.context() as patch:
        patch.setattr(TileFolder, "record", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ensure_prior(tile, settings_of())
    repaint(tile.file("prior"))
    with pytest.raises(OutputExistsError, match="was not made here by landprior"):
        ensure_prior(tile, settings_of())


def test_a_joint_model_is_remade_only_if_stale_and_made_here(done):
    (group,) = make_groups(done.tiles("town"))
    path = ensure_joint_model(group, settings_of().training)
    assert path == done.root / "town" / "model.safetensors"
    first = path.read_bytes(), path.stat().st_mtime_ns
    ensure_joint_model(group, settings_of().training)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == first
    ensure_joint_model(group, settings_of(seed=1).training)
    second = path.read_bytes()
    assert second != first[0]
    with pytest.raises(OutputExistsError, match="was made by train --recipe default, not by train --recipe best"):
        ensure_joint_model(group, make_settings("best", filters=2))
    path.write_bytes(second + b" ")
    with pytest.raises(OutputExistsError, match="was changed or replaced after landprior made it"):
        ensure_joint_model(group, settings_of(seed=1).training)
    ensure_joint_model(group, settings_of(seed=1).training, run=Run(overwrite=True))
    assert path.read_bytes() == second
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(OutputExistsError, match="was not made here by landprior"):
        ensure_joint_model(group, settings_of(seed=1).training)


def test_labels_that_fetch_has_converted_to_codes_are_not_mapped_again(done):
    """A label map applies to a labels.tif that was added by hand."""
    tile = done.tiles("town", only=["east"])[0]
    plain = score_tile(tile, settings_of())
    mapped = replace(settings_of(), label_map={40: 70, 70: 40})
    assert score_tile(tile, mapped).accuracy != plain.accuracy
    tile.record("labels", "key")
    assert score_tile(tile, mapped).accuracy == plain.accuracy


def test_a_layer_added_later_remakes_the_prior(done):
    before = results_of(done)
    west = done.tiles("town", only=["west"])[0]
    shutil.copy(west.file("roads"), west.file("buildings"))
    run_workspace(done, "town", settings_of())
    assert "west/prior.tif" in remade(before, results_of(done))
    assert west.steps()["prior"]["layers"] == ["buildings", "roads"]


def test_an_image_on_another_grid_remakes_the_prior(done):
    tile = done.tiles("town", only=["east"])[0]
    with rasterio.open(tile.file("naip")) as src:
        values, grid = src.read(), Grid.of(src)
    write_raster(tile.file("naip"), values[:, :50, :40], replace(grid, height=50, width=40), overwrite=True)
    run_workspace(done, "town", settings_of(), only=["east"])
    for name in ("prior", "prediction"):
        with rasterio.open(tile.file(name)) as src:
            assert src.shape == (50, 40)
    assert item_of(tile)["properties"]["proj:shape"] == [50, 40]


def test_a_prior_is_always_the_same_file(tile):
    digests = set()
    for size in range(6):
        noise = [np.full(100_000 * (size + 1), 0.1 * size) for _ in range(3)]
        del noise  # previously used memory must not end up in the file
        digests.add(hashlib.sha256(ensure_prior(tile, settings_of(), run=Run(overwrite=True)).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("name", MADE)
def test_a_deleted_result_is_remade_identically(done, name):
    before = results_of(done)
    for tile in done.tiles("town"):
        tile.file(name).unlink()
    run_workspace(done, "town", settings_of())
    after = results_of(done)
    assert remade(before, after) == {f"{tile}/{FILES[name]}" for tile in ("east", "west")}
    assert {file: content for file, (_, content) in after.items()} == {
        file: content for file, (_, content) in before.items()
    }


def test_overwrite_remakes_everything(done):
    before = results_of(done)
    run_workspace(done, "town", settings_of(), only=["east"], run=Run(overwrite=True))
    assert remade(before, results_of(done)) == {f"east/{file}" for file in FILES.values()}


def test_the_seed_of_a_tile_does_not_depend_on_the_other_tiles(done, fresh):
    digests = {tile.name: load_model(tile.file("model")).digest() for tile in done.tiles("town")}
    shutil.rmtree(fresh.root / "town" / "east")
    run_workspace(fresh, "town", settings_of())
    assert load_model(fresh.root / "town" / "west" / "model.safetensors").digest() == digests["west"]
    assert digests["east"] != digests["west"]


def test_only_some_tiles(fresh):
    maps, scores = run_workspace(fresh, "town", settings_of(), only=["west"])
    assert maps == [fresh.root / "town" / "west" / "prediction.tif"]
    assert scores.pixels == 52 * 44
    assert not (fresh.root / "town" / "east" / "prior.tif").exists()


def test_pooled_scores_are_the_sum_over_tiles(done, enviroatlas):
    _, pooled = run_workspace(done, "town", settings_of())
    east, west = (score_tile(tile, settings_of()) for tile in done.tiles("town"))
    np.testing.assert_array_equal(pooled.confusion, east.confusion + west.confusion)
    pairs = [(tile.file("prediction"), tile.file("labels")) for tile in done.tiles("town")]
    assert pooled.to_dict() == evaluate(pairs, enviroatlas).to_dict()
    assert not np.array_equal(east.confusion, west.confusion)


def test_tiles_without_labels_have_no_scores(done):
    for tile in done.tiles("town"):
        tile.file("labels").unlink()
    before = results_of(done)
    maps, scores = run_workspace(done, "town", settings_of())
    assert len(maps) == 2
    assert scores is None
    assert results_of(done) == before


def test_a_failure_keeps_finished_results_and_a_rerun_continues(fresh):
    missing = fresh.root / "town" / "west" / "nlcd.tif"
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(MissingInputError, match=r"west/nlcd\.tif is missing; put the NLCD raster"):
        run_workspace(fresh, "town", settings_of())
    east = {file: (fresh.root / "town" / "east" / file).stat().st_mtime_ns for file in FILES.values()}
    missing.write_bytes(content)
    run_workspace(fresh, "town", settings_of())
    assert {file: (fresh.root / "town" / "east" / file).stat().st_mtime_ns for file in FILES.values()} == east
    assert (fresh.root / "town" / "west" / "prediction.tif").is_file()


def test_a_joint_model_of_a_city(done, tmp_path):
    tiles = done.tiles("town")
    path = train_city(tiles, tmp_path / "joint.safetensors", settings_of().training)
    digest = load_model(path).digest()
    assert load_model(path).record["tiles"] == ["town/east", "town/west"]
    assert digest not in {load_model(tile.file("model")).digest() for tile in tiles}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        train_city(tiles, path, settings_of().training)
    assert load_model(path).digest() == digest


def test_a_joint_model_needs_the_priors(fresh, tmp_path):
    with pytest.raises(MissingInputError, match=r"prior\.tif is missing; build it with: .*build-prior --city town"):
        train_city(fresh.tiles("town"), tmp_path / "joint.safetensors", settings_of().training)
