"""The command line: results on stdout, everything else on stderr, one line and an exit code for errors."""

# ruff: noqa: ARG001 - many tests use a fixture only because it changes the directory

import contextlib
import importlib
import json
import re
import shlex
import shutil
import typing
import warnings
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from rasterio.windows import Window
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shapely.geometry import Point, box

from landprior.cli import _COMMANDS, main
from landprior.cli.demo import command as demo_command
from landprior.cli.options import training_settings
from landprior.cli.run import command as run_command
from landprior.cli.train import command as train_command
from landprior.errors import CollapseWarning, MissingInputError
from landprior.implicit.losses import LOSSES
from landprior.implicit.settings import LossName, TrainingSettings
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior import sparse_labels
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import load_cooccurrence, measure_cooccurrence
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.synthetic import demo
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training import patches
from landprior.landcover.training import settings as recipes
from landprior.landcover.training.model import load_model, save_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.raster.cog import Encoding, write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import MAP_NODATA
from landprior.sources.cities import list_cities
from landprior.superres.settings import EpitomeSettings
from tests.helpers import on_one_core

# on the command line landprior's warnings are lines on stderr, and tiny trainings give some
pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

LAYERS = {"r": "roads", "b": "buildings", "w": "waterways", "wb": "waterbodies"}
TINY = "--steps 6 --warmup-steps 3 --filters 2 --patch-size 16 --batch-size 2"

BUILD = (
    "build-prior --nlcd nlcd.tif --roads r.tif --buildings b.tif --waterways w.tif --waterbodies wb.tif "
    "--scheme enviroatlas-5 --cooccurrence m.npy -o prior.tif"
)
TRAIN = f"train --image naip.tif --prior prior.tif --loss qr --seed 0 {TINY} -o model.safetensors"
PREDICT = "predict naip.tif --model model.safetensors --posterior prior.tif --probabilities -o map.tif"
EVALUATE = 'evaluate map.tif labels.tif --label-map "10:10,20:20" --json'
COOCCURRENCE = "cooccurrence nlcd.tif labels.tif --scheme enviroatlas-5 -o cooc.csv"


def landprior(line):
    """Run the command line that follows ``landprior``."""
    return CliRunner().invoke(main, shlex.split(line), prog_name="landprior")


def succeed(line):
    result = landprior(line)
    assert result.exit_code == 0, result.output
    return result


PROGRESS = re.compile(r"^[^:]+: +\d+ %, \d+ of \d+ ")


def on_screen(text):
    """Return the lines of a text, without those that only report progress."""
    assert "\r" not in text  # not a terminal: no bar
    return [line for line in text.split("\n") if line and not PROGRESS.search(line)]


def assert_refused(line, *words):
    """Check that a command ends with exit code 1 and one line that contains some words."""
    result = landprior(line)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    shown = on_screen(result.stderr)
    assert len(shown) == 1, shown
    assert shown[0].startswith("Error: ")
    for word in words:
        assert word in shown[0]


def read(path):
    with rasterio.open(path) as src:
        return src.read()


def tags_of(path):
    with rasterio.open(path) as src:
        return src.tags(ns="landprior")


def left(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def set_verdict(path, verdict=None):
    """Rewrite a model with another verdict or none; after six steps a network is always judged worse."""
    model = load_model(path)
    record = {name: value for name, value in model.record.items() if name != "verdict"}
    record |= {} if verdict is None else {"verdict": verdict}
    save_model(replace(model, record=record), path, overwrite=True)


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Return a folder with a scene in plain files and the outputs of the five commands, and what they printed."""
    folder = tmp_path_factory.mktemp("chain")
    scene, window = make_scene(128, seed=0), Window(20, 0, 96, 80)
    at, grid = window.toslices(), scene.grid.window(window)
    write_raster(folder / "naip.tif", scene.image[(slice(None), *at)], grid)
    write_raster(folder / "nlcd.tif", scene.nlcd[at], grid)
    write_raster(folder / "labels.tif", scene.truth[at], grid, nodata=MAP_NODATA)
    for name, layer in LAYERS.items():
        write_raster(folder / f"{name}.tif", scene.layers[layer][at], grid)
    np.save(folder / "m.npy", np.random.default_rng(0).integers(1, 1000, (11, 17)))
    with contextlib.chdir(folder):
        said = {line: succeed(line) for line in (BUILD, TRAIN)}
        set_verdict("model.safetensors")
        return folder, said | {line: succeed(line) for line in (PREDICT, EVALUATE, COOCCURRENCE)}


@pytest.fixture
def said(chain):
    return chain[1]


@pytest.fixture
def here(chain, tmp_path, monkeypatch):
    """Return the current directory, a copy of the files from ``chain``."""
    shutil.copytree(chain[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def grid(here):
    with rasterio.open(here / "naip.tif") as src:
        return Grid.of(src)


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_every_command_has_examples(command):
    result = succeed(f"{command} --help")
    assert result.stderr == ""
    examples = re.findall(rf"^  landprior {command}( .*)?$", result.stdout, flags=re.MULTILINE)
    assert examples
    assert succeed(f"{command} -h").stdout == result.stdout


@pytest.mark.parametrize("command", _COMMANDS)
def test_examples_of_the_help_are_accepted(command, monkeypatch, tmp_path):
    """All options in the examples exist; nothing is run."""
    monkeypatch.setenv("LANDPRIOR_CACHE", str(tmp_path))
    module = importlib.import_module(_COMMANDS[command][0])
    monkeypatch.setattr(module.command, "callback", lambda **_: None)
    text = succeed(f"{command} --help").stdout.replace("\\\n", " ")
    for example in re.findall(rf"^  landprior ({command}\b.*)$", text, flags=re.MULTILINE):
        succeed(example)


def test_help_lists_every_command():
    shown = succeed("--help").stdout
    for name, (_, text) in _COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", shown, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("typed", "near"), [("trian", "train"), ("build_prior", "build-prior"), ("evalute", "evaluate")]
)
def test_an_unknown_command_suggests_a_similar_one(typed, near):
    result = landprior(typed)
    assert result.exit_code == 2
    assert f"No such command '{typed}'. Did you mean '{near}'?" in result.stderr


def test_an_unknown_command_without_a_similar_one():
    result = landprior("xyzzy")
    assert result.exit_code == 2
    assert on_screen(result.stderr)[-1] == "Error: No such command 'xyzzy'."


@pytest.mark.parametrize("name", ["train", "tune", "run", "plan", "text"])
def test_loss_names_match_the_library(name):
    command = importlib.import_module(f"landprior.cli.{name}").command
    choices = next(p.type.choices for p in command.params if p.name == "loss")
    assert set(choices) == set(typing.get_args(LossName)) == set(LOSSES)


def defaults_in_help(command):
    found = {p.name: re.search(r"\[default: ([\d.]+)[;\]]", getattr(p, "help", None) or "") for p in command.params}
    return {name: float(match[1]) for name, match in found.items() if match}


def test_defaults_in_the_help_of_train_match_the_library():
    loop, tile = TrainingSettings(), TileSettings()
    expected = {name: getattr(loop, name) for name in ("steps", "learning_rate", "seed")}
    expected |= {name: getattr(tile, name) for name in ("filters", "patch_size", "batch_size", "starts", "members")}
    expected["epitome_size"] = EpitomeSettings().size
    assert defaults_in_help(train_command) == expected
    loop, tile = (paper := TileSettings.paper()).training, paper
    published = {
        "steps": loop.steps,
        "filters": tile.filters,
        "patch_size": tile.patch_size,
        "batch_size": tile.batch_size,
    }
    text = {p.name: getattr(p, "help", "") for p in train_command.params}
    assert all(text[name].endswith(f"paper {value}]") for name, value in published.items())
    loop = TrainingSettings()
    assert text["precision"].endswith(f"[default: {loop.precision}]")
    assert text["learning_rate"].endswith(
        f"[default: 0.002; paper 0.0001; paper with rq {TileSettings.paper('rq').training.learning_rate}]"
    )
    assert f"[default: {loop.loss}; ce with --labels]" in next(p for p in train_command.params if p.name == "loss").help


def test_defaults_in_the_help_of_run_match_the_library():
    loop, tile, prior = TrainingSettings(), TileSettings(), PriorSettings()
    expected = {name: getattr(loop, name) for name in ("steps", "learning_rate", "seed")}
    expected |= {name: getattr(tile, name) for name in ("filters", "patch_size", "batch_size", "starts", "members")}
    expected |= {name: getattr(prior, name) for name in ("blur_sigma", "blur_radius")}
    expected["jobs"] = FetchSettings().jobs
    assert defaults_in_help(run_command) == expected


def test_defaults_of_the_other_commands_match_the_library():
    assert {p.name: p.default for p in demo_command.params}["filters"] == demo.FILTERS
    command = importlib.import_module("landprior.cli.build_prior").command
    options = {p.name: p for p in command.params}
    settings = PriorSettings()
    assert defaults_in_help(command) == {name: getattr(settings, name) for name in ("blur_sigma", "blur_radius")}
    assert options["class_column"].default == sparse_labels.COLUMN
    assert tuple(sorted(options["encoding"].type.choices)) == tuple(sorted(typing.get_args(Encoding)))
    assert set(re.findall(r"\w+", options["city"].help.partition("(")[2].partition(")")[0])) == set(list_cities())


@pytest.mark.parametrize("loss", LOSSES)
def test_options_of_train_override_the_recipe(loss):
    options = {"steps": 7, "learning_rate": None, "filters": 3, "seed": 5, "precision": "fp32"}
    given = training_settings("default", labelled=False, loss=loss, **options)
    expected = TileSettings(training=TrainingSettings(loss=loss, steps=7, seed=5, precision="fp32"), filters=3)
    assert given == expected
    paper = training_settings("paper", labelled=False, loss=loss, steps=None, batch_size=4, seed=0, precision="auto")
    assert paper == TileSettings.paper(loss, batch_size=4)


# -- the pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "shown"), [(BUILD, "prior.tif\n"), (TRAIN, "model.safetensors\n"), (PREDICT, "map.tif\n")]
)
def test_stdout_is_the_path_and_progress_is_on_stderr(said, line, shown):
    assert said[line].stdout == shown
    assert " 100 %, " in said[line].stderr  # not a terminal: lines, no bar
    assert "\r" not in said[line].stderr
    assert said[line].stderr.endswith("\n")


def test_the_prior_equals_that_of_the_library(here, enviroatlas):
    layers = {layer: f"{name}.tif" for name, layer in LAYERS.items()}
    build_prior("nlcd.tif", "other.tif", cooccurrence=load_cooccurrence("m.npy", enviroatlas), layers=layers)
    np.testing.assert_array_equal(read("prior.tif"), read("other.tif"))
    assert tags_of("prior.tif") == tags_of("other.tif")
    assert tags_of("prior.tif")["cooccurrence"] == "m.npy"
    assert tags_of("prior.tif")["layers"] == "roads,buildings,waterways,waterbodies"


def test_the_model_has_the_given_settings(here):
    model = load_model(here / "model.safetensors")
    settings = TileSettings.model_validate(model.record["settings"])
    loop = TrainingSettings(loss="qr", seed=0, steps=6, warmup_steps=3)
    assert settings == TileSettings(training=loop, filters=2, receptive_field=7, patch_size=16, batch_size=2)
    assert model.record["tiles"] == ["naip.tif"]
    assert model.scheme.name == "enviroatlas-5"
    assert model.bands == 4


def test_map_and_probabilities_equal_those_of_the_library(here):
    options = MapOptions(probabilities=True)
    predict("naip.tif", "other.tif", load_model("model.safetensors"), posterior="prior.tif", options=options)
    for name in ("{}.tif", "{}_probabilities.tif"):
        np.testing.assert_array_equal(read(name.format("map")), read(name.format("other")))
        assert tags_of(name.format("map")) == tags_of(name.format("other"))


def test_scores_equal_those_of_the_library(here, said, enviroatlas):
    expected = evaluate([("map.tif", "labels.tif")], enviroatlas, label_map={10: 10, 20: 20}).to_dict()
    assert json.loads(said[EVALUATE].stdout) == expected
    assert expected["pixels"] == 80 * 96


def test_scores_as_text(here, enviroatlas):
    scores = evaluate([("map.tif", "labels.tif")], enviroatlas)
    assert succeed("evaluate map.tif labels.tif").stdout == scores.to_text() + "\n"


def test_a_label_map_changes_the_meaning_of_labels(here):
    table = "10:70,20:40,30:30,40:20,70:10"
    found = json.loads(
        succeed(f"evaluate labels.tif labels.tif --scheme enviroatlas-5 --label-map {table} --json").stdout
    )
    np.testing.assert_array_equal(
        np.diag(np.fliplr(found["confusion"])), np.bincount(read("labels.tif").ravel())[[10, 20, 30, 40, 70]][::-1]
    )


def test_pairs_are_pooled(here, enviroatlas):
    shutil.copy("map.tif", "other.tif")
    result = succeed("evaluate map.tif labels.tif --pair other.tif labels.tif --json")
    one = evaluate([("map.tif", "labels.tif")], enviroatlas)
    assert json.loads(result.stdout) == (one + one).to_dict()


def test_evaluate_draws_a_figure(here):
    given = "--image naip.tif --prior prior.tif --model model.safetensors"
    result = succeed(f"evaluate map.tif labels.tif --json --figure figure.png {given}")
    assert json.loads(result.stdout)["pixels"] == 80 * 96
    assert "figure: figure.png" in on_screen(result.stderr)
    assert (here / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_cooccurrence_reads_the_classes_from_tagged_labels(here, enviroatlas):
    with rasterio.open("labels.tif") as src:
        write_raster("said.tif", src.read(1), Grid.of(src), scheme=enviroatlas, nodata=255)
    succeed("cooccurrence nlcd.tif said.tif -o own.csv")
    succeed("cooccurrence nlcd.tif labels.tif --scheme enviroatlas-5 -o given.csv")
    assert (here / "own.csv").read_text() == (here / "given.csv").read_text()


def test_cooccurrence_equals_that_of_the_library(here, said, enviroatlas):
    measured = measure_cooccurrence([("nlcd.tif", "labels.tif")], enviroatlas)
    written = load_cooccurrence("cooc.csv", enviroatlas)
    assert set(written.probabilities) == set(measured.probabilities) == set(np.unique(read("nlcd.tif")))
    assert written.pixels == measured.pixels
    for code, row in measured.probabilities.items():
        np.testing.assert_allclose(written.probabilities[code], row, atol=1e-6)
    header, *rows = said[COOCCURRENCE].stdout.splitlines()
    assert header.split() == ["NLCD", "pixels", *enviroatlas.names]
    assert {int(row.split()[0]): int(row.split()[1]) for row in rows} == measured.pixels
    assert "written: cooc.csv" in on_screen(said[COOCCURRENCE].stderr)


def test_a_measured_matrix_builds_a_prior(here):
    succeed("build-prior --nlcd nlcd.tif --scheme enviroatlas-5 --cooccurrence cooc.csv -o other.tif")
    np.testing.assert_allclose(read("other.tif").sum(0), 1, atol=2e-3)
    assert tags_of("other.tif")["cooccurrence"] == "cooc.csv"


def test_predict_without_an_output_writes_beside_the_image(here):
    assert succeed("predict naip.tif --model model.safetensors").stdout == "naip_landcover.tif\n"
    assert tags_of("naip_landcover.tif")["maps"] == "q"
    assert tags_of("map.tif")["maps"] == "r"


def test_same_seed_same_map_other_seed_other_model(here):
    for name, seed in (("again", 0), ("other", 1)):
        line = f"train --image naip.tif --prior prior.tif --loss qr --seed {seed} {TINY} -o {name}.safetensors"
        succeed(line)
        set_verdict(f"{name}.safetensors")
        succeed(f"predict naip.tif --model {name}.safetensors --posterior prior.tif --probabilities -o {name}.tif")
    one, again, other = (load_model(f"{name}.safetensors").digest() for name in ("model", "again", "other"))
    assert one == again
    assert one != other
    assert (here / "map.tif").read_bytes() == (here / "again.tif").read_bytes()
    np.testing.assert_array_equal(read("map_probabilities.tif"), read("again_probabilities.tif"))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(here, loss):
    succeed(f"train --image naip.tif --prior prior.tif --loss {loss} {TINY} -o other.safetensors")
    model = load_model("other.safetensors")
    assert model.loss == loss
    assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())


@pytest.fixture
def halves(here, grid):
    """Cut the image and the prior in two."""
    for name, at in (("west", Window(0, 0, 50, 80)), ("east", Window(50, 0, 46, 80))):
        rows, columns = at.toslices()
        for source, target in (("naip", name), ("prior", f"{name}_prior")):
            values, tags = read(f"{source}.tif")[:, rows, columns], tags_of(f"{source}.tif")
            write_raster(here / f"{target}.tif", values, grid.window(at), tags=tags)
    return here


def test_one_joint_model_for_several_images(halves):
    pairs = "--image west.tif --prior west_prior.tif --image east.tif --prior east_prior.tif"
    assert succeed(f"train {pairs} {TINY} -o joint.safetensors").stdout == "joint.safetensors\n"
    joint = load_model("joint.safetensors")
    assert joint.record["tiles"] == ["east.tif", "west.tif"]
    values = np.concatenate([read("west.tif").reshape(4, -1), read("east.tif").reshape(4, -1)], axis=1)
    np.testing.assert_allclose(joint.statistics.mean, values.mean(1))
    set_verdict("joint.safetensors")
    for name in ("east", "west"):
        succeed(f"predict {name}.tif --model joint.safetensors --posterior {name}_prior.tif -o {name}_map.tif")
        assert tags_of(f"{name}_map.tif")["model"] == joint.digest()


def test_training_starts_from_a_model(here):
    tuned = TINY.replace("--steps 6 --warmup-steps 3", "--steps 1 --warmup-steps 0 --learning-rate 1e-12")
    succeed(f"train --image naip.tif --prior prior.tif --init model.safetensors {tuned} -o tuned.safetensors")
    start, end = load_file("model.safetensors"), load_file("tuned.safetensors")
    for name, value in start.items():
        torch.testing.assert_close(end[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("line", [BUILD, TRAIN, PREDICT, EVALUATE, COOCCURRENCE], ids=lambda line: line.split()[0])
def test_quiet_prints_only_results_and_warnings(here, said, line):
    result = succeed(f"-q {line}{'' if line == EVALUATE else ' --overwrite'}")
    assert [text for text in on_screen(result.stderr) if not text.startswith("Warning: ")] == []
    assert result.stdout == said[line].stdout


@pytest.mark.parametrize("quiet", ["", "-q "])
def test_warnings_are_separate_lines(here, monkeypatch, quiet):
    batch_of = patches.PatchFeed.__call__

    def batch(feed, step):
        if step == 3:
            warnings.warn("a test", CollapseWarning, stacklevel=2)
        return batch_of(feed, step)

    monkeypatch.setattr(patches.PatchFeed, "__call__", batch)
    result = succeed(f"{quiet}train --image naip.tif --prior prior.tif {TINY} -o other.safetensors")
    assert "Warning: a test" in on_screen(result.stderr)


def test_with_a_model_judged_worse_the_prior_is_mapped_unless_forced(here):
    set_verdict("model.safetensors", {"decision": "abstained", "why": "a test"})
    line = "predict naip.tif --model model.safetensors --posterior prior.tif -o other.tif"
    shown = on_screen(succeed(line).stderr)
    assert len(shown) == 1
    assert shown[0].startswith("Warning: this model was judged worse than its prior (a test)")
    assert "--force" in shown[0]
    codes = np.array([10, 20, 30, 40, 70])
    np.testing.assert_array_equal(read("other.tif")[0], codes[read("prior.tif").argmax(0)])
    succeed(f"{line} --force --overwrite")
    np.testing.assert_array_equal(read("other.tif"), read("map.tif"))


# -- the user's own labels ------------------------------------------------------------------------

PIXEL, FIELD, GROVE = (12, 30), (slice(40, 50), slice(60, 75)), (slice(60, 70), slice(5, 20))


def write_labels(grid, path="labels.gpkg", column="class", labels=("trees", "!water", "trees|grass")):
    def area(rows, columns):
        left, top = grid.transform @ (columns.start, rows.start)
        right, bottom = grid.transform @ (columns.stop, rows.stop)
        return box(left, bottom, right, top)

    row, column_of = PIXEL
    shapes = [Point(grid.transform @ (column_of + 0.5, row + 0.5)), area(*FIELD), area(*GROVE)]
    frame = geopandas.GeoDataFrame({column: list(labels)}, geometry=shapes, crs=grid.crs.to_wkt())
    frame.to_file(path)


@pytest.mark.parametrize(
    ("options", "weight", "column", "labels"),
    [
        ("", 0.9, "class", ("trees", "!water", "trees|grass")),
        ("--points-weight 0.6", 0.6, "class", ("trees", "!water", "trees|grass")),
        ("--points-weight 1", 1.0, "class", ("40", "!10", "40|70")),
        ("--class-column kind", 0.9, "kind", ("Trees", "impervious|barren|trees|grass", "grass|trees")),
    ],
)
def test_labels_sharpen_the_prior_at_their_places(here, grid, options, weight, column, labels):
    write_labels(grid, column=column, labels=labels)
    build = "build-prior --nlcd nlcd.tif --roads r.tif --scheme enviroatlas-5 --encoding float32"
    succeed(f"{build} -o plain.tif")
    succeed(f"{build} --points labels.gpkg {options} -o sharp.tif")
    plain, expected = read("plain.tif"), read("plain.tif")
    for at, allowed in ((PIXEL, [3]), (FIELD, [1, 2, 3, 4]), (GROVE, [3, 4])):
        within = plain[(slice(None), *at)]
        kept = np.zeros_like(within)
        kept[allowed] = within[allowed] / within[allowed].sum(axis=0)
        expected[(slice(None), *at)] = (1 - weight) * within + weight * kept
    sharp = read("sharp.tif")
    np.testing.assert_allclose(sharp, expected, atol=1e-6)
    np.testing.assert_allclose(sharp.sum(0), 1, atol=1e-5)
    assert sharp[(3, *PIXEL)] > plain[(3, *PIXEL)]
    said = json.loads(tags_of("sharp.tif")["hints"])
    assert said == {"source": "labels.gpkg", "weight": weight, "count": 3}
    assert json.loads(tags_of("plain.tif")["hints"]) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ("trees", "lava", "grass")}, ["'lava'", "enviroatlas-5"]),
        ({"column": "kind"}, ["labels.gpkg", "no column 'class'", "kind"]),
    ],
)
def test_invalid_labels(here, grid, change, words):
    write_labels(grid, **change)
    assert_refused("build-prior --nlcd nlcd.tif --scheme enviroatlas-5 --points labels.gpkg -o other.tif", *words)


def test_labels_of_another_place(here, grid):
    write_labels(grid.window(Window(5000, 0, 96, 80)))
    words = ["no labelled feature of labels.gpkg", "CRS"]
    assert_refused("build-prior --nlcd nlcd.tif --scheme enviroatlas-5 --points labels.gpkg -o other.tif", *words)


# -- bad input ------------------------------------------------------------------------------------


def test_image_and_prior_on_different_grids(here, make_raster, grid):
    make_raster("small.tif", read("naip.tif")[:, :70], grid=grid.window(Window(0, 0, 96, 70)))
    words = ["small.tif and prior.tif are on different grids", "96 x 70 px and 96 x 80 px", "rio warp"]
    assert_refused("train --image small.tif --prior prior.tif -o other.safetensors", *words)
    assert_refused("predict small.tif --model model.safetensors --posterior prior.tif -o other.tif", *words)


def test_image_and_prior_shifted(here, make_raster, grid):
    make_raster("moved.tif", read("naip.tif"), grid=grid.window(Window(3, 0, 96, 80)))
    assert_refused("train --image moved.tif --prior prior.tif -o other.safetensors", "corners up to 3 px apart")


def test_image_and_prior_in_different_crs(here, make_raster, make_grid):
    make_raster("zone18.tif", read("naip.tif"), grid=make_grid(80, 96, epsg=26918))
    words = ["different grids", "CRS EPSG:26918 and EPSG:26917"]
    assert_refused("train --image zone18.tif --prior prior.tif -o other.safetensors", *words)
    assert_refused("predict zone18.tif --model model.safetensors --posterior prior.tif -o other.tif", *words)


def test_layers_that_do_not_overlap(here, make_raster, make_grid):
    make_raster("far.tif", read("r.tif"), grid=make_grid(80, 96, left=200_000.0))
    assert_refused("build-prior --nlcd nlcd.tif --roads far.tif --scheme enviroatlas-5 -o other.tif", "do not overlap")


def test_wrong_number_of_bands(here, make_raster, grid):
    make_raster("rgb.tif", read("naip.tif")[:3], grid=grid)
    words = ["rgb.tif has 3 bands", "trained on 4"]
    assert_refused("predict rgb.tif --model model.safetensors -o other.tif", *words)


def test_prior_with_the_wrong_number_of_bands(here, make_raster, grid):
    make_raster("four.tif", read("prior.tif")[:4], grid=grid, tags=tags_of("prior.tif"))
    words = ["four.tif has 4 bands", "5 classes", "one band per class"]
    assert_refused("train --image naip.tif --prior four.tif -o other.safetensors", *words)


def test_images_of_one_model_with_different_bands(halves, make_raster, grid):
    make_raster("east.tif", read("east.tif")[:3], grid=grid.window(Window(50, 0, 46, 80)), overwrite=True)
    pairs = "--image west.tif --prior west_prior.tif --image east.tif --prior east_prior.tif"
    assert_refused(f"train {pairs} -o joint.safetensors", "west.tif has 4 bands and east.tif has 3")


@pytest.fixture
def untagged(here, make_raster, grid):
    make_raster("untagged.tif", read("prior.tif"), grid=grid)
    make_raster("bare.tif", read("map.tif"), grid=grid, nodata=255)


@pytest.mark.usefixtures("untagged")
def test_a_missing_class_scheme():
    words = ["has no classes in its tags", "--scheme"]
    assert_refused("train --image naip.tif --prior untagged.tif -o other.safetensors", "untagged.tif", *words)
    assert_refused("evaluate bare.tif labels.tif", "bare.tif", *words)


@pytest.mark.usefixtures("untagged")
def test_a_given_class_scheme(enviroatlas):
    succeed(f"train --image naip.tif --prior untagged.tif --scheme enviroatlas-5 {TINY} -o other.safetensors")
    assert load_model("other.safetensors").digest() == load_model("model.safetensors").digest()
    result = succeed("evaluate bare.tif labels.tif --scheme enviroatlas-5 --json")
    assert json.loads(result.stdout) == evaluate([("map.tif", "labels.tif")], enviroatlas).to_dict()


def test_prior_of_another_scheme(here):
    words = ["prior.tif was built for scheme 'enviroatlas-5', not 'chesapeake-4'"]
    assert_refused("train --image naip.tif --prior prior.tif --scheme chesapeake-4 -o other.safetensors", *words)


@pytest.mark.parametrize("scheme", ["{", "[]", '{"name": 3, "classes": []}'])
def test_a_damaged_scheme_in_a_file(here, make_raster, grid, scheme):
    make_raster("prior.tif", read("prior.tif"), grid=grid, tags={"scheme": scheme}, overwrite=True)
    make_raster("map.tif", read("map.tif"), grid=grid, tags={"scheme": scheme}, overwrite=True)
    assert_refused("train --image naip.tif --prior prior.tif -o other.safetensors", "prior.tif", "scheme")
    assert_refused("evaluate map.tif labels.tif", "map.tif", "scheme")


def test_unknown_nlcd_codes(here, make_raster, grid):
    codes = read("nlcd.tif")[0]
    codes[3:5, 7:9], codes[70, 70] = 77, 13
    make_raster("odd.tif", codes, grid=grid)
    words = ["code(s) 13 (1 px), 77 (4 px) are neither NLCD codes nor in the matrix", "--cooccurrence"]
    assert_refused("build-prior --nlcd odd.tif --scheme enviroatlas-5 -o other.tif", *words)


def test_another_layer_in_place_of_nlcd(here, make_raster, grid):
    make_raster("odd.tif", np.full(grid.shape, 3000, np.int16), grid=grid)
    assert_refused("build-prior --nlcd odd.tif --scheme enviroatlas-5 -o other.tif", "odd.tif has values such as 3000")


def test_nlcd_without_any_code(here, make_raster, grid):
    make_raster("odd.tif", np.zeros(grid.shape, np.uint8), grid=grid)
    assert_refused("build-prior --nlcd odd.tif --scheme enviroatlas-5 -o other.tif", "odd.tif has no NLCD code here")


@pytest.mark.parametrize("code", [0, 255])
def test_labels_that_are_all_nodata(here, make_raster, grid, code):
    make_raster("none.tif", np.full(grid.shape, code, np.uint8), grid=grid, nodata=255)
    assert_refused("evaluate map.tif none.tif", "none.tif has no usable label", "nodata or ignored")
    line = "cooccurrence nlcd.tif none.tif --scheme enviroatlas-5 -o other.csv"
    assert_refused(line, "nlcd.tif and none.tif share no pixel")


def test_labels_with_unknown_codes(here):
    words = ["nlcd.tif has code(s)", "are not in scheme 'enviroatlas-5'", "--label-map"]
    assert_refused("evaluate map.tif nlcd.tif", *words)
    assert_refused("cooccurrence nlcd.tif nlcd.tif --scheme enviroatlas-5 -o other.csv", *words)


def test_prior_without_mass(here, make_raster, grid):
    make_raster("zero.tif", np.zeros((5, *grid.shape), np.float32), grid=grid, tags=tags_of("prior.tif"))
    words = ["naip.tif and zero.tif have no pixel with data in common", "the prior is empty where the image is valid"]
    assert_refused("train --image naip.tif --prior zero.tif -o other.safetensors", *words)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_nan(here, make_raster, grid, value):
    values = read("naip.tif").astype(np.float32)
    values[2, 11, 17] = value
    make_raster("broken.tif", values, grid=grid)
    trained = succeed(f"train --image broken.tif --prior prior.tif {TINY} -o other.safetensors")
    mapped = succeed("predict broken.tif --model other.safetensors -o other.tif")
    for result in (trained, mapped):
        assert "broken.tif: pixels that are NaN or infinite in some band: 1; they count as no data" in result.stderr
    codes = read("other.tif")[0]
    assert codes[11, 17] == 255
    assert (codes == 255).sum() == (read("map.tif")[0] == 255).sum() + (read("map.tif")[0, 11, 17] != 255)


def test_a_prior_with_nan_in_some_bands(here, make_raster, grid):
    values = read("prior.tif")
    values[2, 11, 17] = np.nan
    make_raster("torn.tif", values, grid=grid, nodata=float("nan"), tags=tags_of("prior.tif"))
    words = ["torn.tif is not a prior: NaN in some bands", "row 11, column 17"]
    assert_refused("train --image naip.tif --prior torn.tif -o other.safetensors", *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --image none.tif --prior prior.tif -o other.safetensors", ["no such file: none.tif"]),
        ("train --image naip.tif --prior none.tif -o other.safetensors", ["no such file: none.tif"]),
        (
            "train --image naip.tif --prior prior.tif --init none.safetensors -o other.safetensors",
            ["no model at none.safetensors"],
        ),
        (
            "predict naip.tif --model none.safetensors -o other.tif",
            ["no model at none.safetensors", "landprior train --image IMAGE --prior PRIOR -o none.safetensors"],
        ),
        ("predict none.tif --model model.safetensors -o other.tif", ["no such file: none.tif"]),
        ("predict naip.tif --model model.safetensors --posterior none.tif -o o.tif", ["no such file: none.tif"]),
        ("evaluate none.tif labels.tif", ["no such file: none.tif"]),
        ("evaluate map.tif none.tif", ["no such file: none.tif"]),
        ("build-prior --nlcd none.tif --scheme enviroatlas-5 -o other.tif", ["no such file: none.tif"]),
        ("build-prior --nlcd nlcd.tif --roads none.tif --scheme enviroatlas-5 -o o.tif", ["no such file: none.tif"]),
        ("build-prior --nlcd nlcd.tif --cooccurrence none.csv --scheme enviroatlas-5 -o o.tif", ["none.csv"]),
        ("build-prior --nlcd nlcd.tif --points none.gpkg --scheme enviroatlas-5 -o o.tif", ["no such file: none.gpkg"]),
        ("build-prior --nlcd nlcd.tif --like none.tif --scheme enviroatlas-5 -o o.tif", ["no such file: none.tif"]),
        ("cooccurrence none.tif labels.tif --scheme enviroatlas-5 -o other.csv", ["no such file: none.tif"]),
    ],
)
def test_a_missing_file(here, line, words):
    before = left(here)
    assert_refused(line, *words)
    assert left(here) == before


@pytest.mark.parametrize(
    "line",
    [
        "train --image folder --prior prior.tif -o other.safetensors",
        "train --image naip.tif --prior folder -o other.safetensors",
        "train --image naip.tif --prior prior.tif -o folder",
        "predict folder --model model.safetensors -o other.tif",
        "predict naip.tif --model folder -o other.tif",
        "predict naip.tif --model model.safetensors -o folder",
        "evaluate folder labels.tif",
        "evaluate map.tif folder",
        "build-prior --nlcd folder --scheme enviroatlas-5 -o other.tif",
        "build-prior --nlcd nlcd.tif --roads folder --scheme enviroatlas-5 -o other.tif",
        "build-prior --nlcd nlcd.tif --cooccurrence ./folder --scheme enviroatlas-5 -o other.tif",
        "build-prior --nlcd nlcd.tif --points folder --scheme enviroatlas-5 -o other.tif",
        "build-prior --nlcd nlcd.tif --scheme enviroatlas-5 -o folder",
        "cooccurrence nlcd.tif labels.tif --scheme enviroatlas-5 -o folder",
    ],
)
def test_a_folder_in_place_of_a_file(here, line):
    (here / "folder").mkdir()
    before = left(here)
    assert_refused(line, "folder")
    assert left(here) == before
    assert not any((here / "folder").iterdir())


def test_the_error_for_a_folder_in_place_of_a_file_calls_it_one(here):
    (here / "folder").mkdir()
    assert_refused("evaluate folder labels.tif", "folder is a folder; give the path of a raster file")
    assert_refused("predict naip.tif --model folder -o other.tif", "folder is a folder")
    assert_refused(
        "predict naip.tif --model model.safetensors -o folder", "folder is a folder; give the path of a file"
    )


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (BUILD, "prior.tif"),
        (TRAIN, "model.safetensors"),
        (PREDICT, "map.tif"),
        (PREDICT, "map_probabilities.tif"),
        (f"{PREDICT} --confidence", "map_confidence.tif"),
        (f"{PREDICT} --style", "map.qml"),
        (f"{PREDICT} --quicklook", "map.png"),
        (COOCCURRENCE, "cooc.csv"),
    ],
    ids=lambda value: "" if " " in value else value,
)
def test_an_existing_output_is_kept_without_overwrite(here, line, output):
    for name in ("prior.tif", "model.safetensors", "map.tif", "map.qml", "map_probabilities.tif", "cooc.csv"):
        needed = name in ("prior.tif", "model.safetensors") and name != output and line.startswith(("train", "predict"))
        if not needed:
            (here / name).unlink()
    # a style that landprior did not write is kept in any case (test_maps.py)
    old = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis styleCategories=\"Symbology\"/>\n"
    (here / output).write_bytes(old)
    before = left(here)
    assert_refused(line, output, "exists; give --overwrite", "--overwrite")
    assert left(here) == before
    succeed(f"{line} --overwrite")
    assert (here / output).read_bytes() != old


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("naip.tif", "train --image naip.tif --prior prior.tif -o other.safetensors"),
        ("prior.tif", "train --image naip.tif --prior prior.tif -o other.safetensors"),
        ("naip.tif", "predict naip.tif --model model.safetensors -o other.tif"),
        ("prior.tif", "predict naip.tif --model model.safetensors --posterior prior.tif -o other.tif"),
        ("model.safetensors", "predict naip.tif --model model.safetensors -o other.tif"),
        ("nlcd.tif", "build-prior --nlcd nlcd.tif --scheme enviroatlas-5 -o other.tif"),
        ("r.tif", "build-prior --nlcd nlcd.tif --roads r.tif --scheme enviroatlas-5 -o other.tif"),
        ("map.tif", "evaluate map.tif labels.tif --scheme enviroatlas-5"),
        ("labels.tif", "evaluate map.tif labels.tif"),
        ("labels.tif", "cooccurrence nlcd.tif labels.tif --scheme enviroatlas-5 -o other.csv"),
    ],
)
@pytest.mark.parametrize("share", [0, 0.05, 0.5])
def test_a_truncated_file(here, make_raster, grid, name, line, share):
    if name not in (
        "naip.tif",
        "prior.tif",
        "model.safetensors",
    ):  # noise, because other values would compress too well
        noise = np.random.default_rng(0).choice([11, 21, 41] if name == "nlcd.tif" else [10, 20, 40], grid.shape)
        make_raster(name, noise.astype(np.uint8), grid=grid, overwrite=True)
    data = (here / name).read_bytes()
    (here / name).write_bytes(data[: int(len(data) * share)])
    before = left(here)
    assert_refused(line, name)
    assert left(here) == before


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("naip.tif", "predict naip.tif --model model.safetensors -o other.tif", "cannot be read as a raster"),
        ("labels.tif", "evaluate map.tif labels.tif", "cannot be read as a raster"),
        ("model.safetensors", "predict naip.tif --model model.safetensors -o other.tif", "is not a safetensors model"),
        ("m.npy", BUILD.replace("prior.tif", "other.tif"), "is not a plain .npy array"),
        ("cooc.csv", BUILD.replace("prior.tif", "other.tif").replace("m.npy", "cooc.csv"), "must be 'nlcd'"),
    ],
)
def test_a_file_of_another_kind(here, name, line, words):
    (here / name).write_text("to whom it may concern\n")
    assert_refused(line, name, words)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"format": 99, "version": "7.0"}',
        '{"format": 1, "scheme": {"name": 3}, "network": {}, "statistics": {}}',
        "belongs to another network",
    ],
)
def test_a_damaged_model(here, metadata):
    weights = load_file("model.safetensors")
    if metadata == "belongs to another network":
        with safe_open("model.safetensors", framework="pt") as handle:
            told = json.loads(handle.metadata()["landprior"])
        metadata = json.dumps(told | {"network": told["network"] | {"filters": 3}})
    save_file(weights, "other.safetensors", metadata=None if metadata is None else {"landprior": metadata})
    assert_refused("predict naip.tif --model other.safetensors -o other.tif", "other.safetensors")


def test_starting_from_a_model_of_another_width(here):
    line = TRAIN.replace("--filters 2", "--filters 3 --init model.safetensors").replace("-o model", "-o other")
    assert_refused(line, "has 4 bands, 2 filters", "this run has 4 bands, 3 filters")


def test_a_missing_device(here):
    words = ["no CUDA device was found", "--device cpu"]
    assert_refused("train --image naip.tif --prior prior.tif --device cuda -o other.safetensors", *words)
    assert_refused("predict naip.tif --model model.safetensors --device cuda -o other.tif", *words)


def test_a_tile_smaller_than_the_border(here, make_raster, grid):
    small = grid.window(Window(0, 0, 6, 6))
    make_raster("small.tif", read("naip.tif")[:, :6, :6], grid=small)
    make_raster("small_prior.tif", read("prior.tif")[:, :6, :6], grid=small, tags=tags_of("prior.tif"))
    line = "train --image small.tif --prior small_prior.tif -o other.safetensors"
    assert_refused(line, "small.tif", "(6, 6)", "--patch-size")


def test_double_verbose_shows_a_traceback(here):
    result = landprior("-vv evaluate none.tif labels.tif")
    assert result.exit_code == 1
    assert isinstance(result.exception, MissingInputError)


USAGE = {
    "train without -o": ("train --image a.tif --prior b.tif", ["-o is missing"]),
    "build-prior without -o": ("build-prior --nlcd a.tif --scheme enviroatlas-5", ["-o OUTPUT"]),
    "cooccurrence without -o": ("cooccurrence a.tif b.tif --scheme enviroatlas-5", ["Missing option '-o'"]),
    "more images than priors": (
        "train --image a.tif --image b.tif --prior c.tif -o m.safetensors",
        ["2 --image and 1 --prior were given", "each image needs its own"],
    ),
    "a prior without image": ("train --prior c.tif -o m.safetensors", ["0 --image and 1 --prior were given"]),
    "train without anything": ("train -o m.safetensors", ["--image and --prior", "--city"]),
    "build-prior without anything": ("build-prior", ["--nlcd", "--city"]),
    "build-prior without scheme": ("build-prior --nlcd a.tif -o b.tif", ["--scheme"]),
    "predict without anything": ("predict", ["IMAGE", "--model", "--city"]),
    "predict without model": ("predict a.tif -o b.tif", ["--model is missing", "landprior train"]),
    "evaluate without labels": ("evaluate a.tif", ["Missing argument 'REFERENCE'"]),
    "cooccurrence without anything": ("cooccurrence --scheme enviroatlas-5 -o a.csv", ["nothing to measure"]),
    "cooccurrence without labels": ("cooccurrence a.tif --scheme enviroatlas-5 -o a.csv", ["LABELS is missing"]),
    "run without city": ("run", ["give the place by one of --city, --bbox, --place, --aoi"]),
    "unknown scheme": (
        "build-prior --nlcd a.tif --scheme enviroatlas -o b.tif",
        ["'enviroatlas' is not one of the shipped schemes", "enviroatlas-5", "chesapeake-4"],
    ),
    "missing scheme file": ("evaluate a.tif b.tif --scheme mine.yaml", ["no such file: mine.yaml"]),
    "unknown loss": ("train --image a.tif --prior b.tif --loss qrs -o c", ["'qrs' is not one of", "'qr'"]),
    "label map with a dash": ('evaluate a.tif b.tif --label-map "10-20"', ["'10-20' is not FROM:TO", '"10:1,20:2"']),
    "label map with names": ('evaluate a.tif b.tif --label-map "a:b"', ["'a:b' is not FROM:TO"]),
    "empty label map": ('evaluate a.tif b.tif --label-map ""', ["is not FROM:TO"]),
    "label map with two targets": ("evaluate a.tif b.tif --label-map 1:10,1:20", ["maps code 1 to both 10 and 20"]),
    "blur of nothing": (
        "build-prior --nlcd a --scheme enviroatlas-5 --blur-sigma 0 -o b",
        ["--blur-sigma", "0<x<=5000"],
    ),
    "no steps": ("train --image a --prior b --steps 0 -o c", ["--steps"]),
    "weight above one": ("build-prior --nlcd a --scheme enviroatlas-5 --points-weight 2 -o b", ["--points-weight"]),
    "train of a city with -o": ("train --city town -o m.safetensors", ["-o is for plain files", "--city"]),
    "train of a city with --scheme": ("train --city town --scheme enviroatlas-5", ["--scheme is for plain files"]),
    "predict of a city with --posterior": ("predict --city town --posterior a", ["--posterior is for plain files"]),
    "build-prior of a city with --roads": ("build-prior --city town --roads a.tif", ["--roads is for plain files"]),
    "an option there is not": ("train --imag a.tif", ["--imag", "--image"]),
}


@pytest.mark.parametrize(("line", "words"), USAGE.values(), ids=USAGE)
def test_wrong_usage(tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    result = landprior(line)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    last = on_screen(result.stderr)[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last
    assert not any(tmp_path.iterdir())


# -- interruption ---------------------------------------------------------------------------------

LONGER = (
    "train --image naip.tif --prior prior.tif --steps 60 --warmup-steps 10 --filters 2 --patch-size 16 --batch-size 2"
)
CHECKPOINT = ".again.safetensors.checkpoint"


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that simulates pressing ctrl-C once, at a given step."""
    batch_of = patches.PatchFeed.__call__

    def at(step):
        pressed = []

        def batch(feed, now):
            if now == step and not pressed:
                pressed.append(now)
                raise KeyboardInterrupt
            return batch_of(feed, now)

        monkeypatch.setattr(patches.PatchFeed, "__call__", batch)

    return at


@pytest.fixture(scope="module")
def whole(chain):
    """Return the model of :data:`LONGER`, trained without interruption."""
    with contextlib.chdir(chain[0]):
        succeed(f"{LONGER} -o whole.safetensors")
        return load_model("whole.safetensors")


@pytest.mark.parametrize(("quiet", "step"), [("", 25), ("", 26), ("-q ", 49)])
def test_an_interrupted_training_resumes_when_the_command_is_repeated(here, whole, interrupt, quiet, step):
    interrupt(step)
    line = f"{quiet}{LONGER} -o again.safetensors"
    result = landprior(line)
    assert result.exit_code == 130
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    last = on_screen(result.stderr)[-1]
    assert last.startswith(f"Interrupted: training was interrupted after {step} of 60 steps")
    assert CHECKPOINT in last
    assert "the same command resumes from there" in last
    assert (here / CHECKPOINT).is_file()
    assert not (here / "again.safetensors").exists()
    resumed = succeed(line)
    assert resumed.stdout == "again.safetensors\n"
    assert ("resuming from" in resumed.stderr) == (not quiet)
    model = load_model("again.safetensors")
    assert model.digest() == whole.digest()
    assert model.record == whole.record
    assert not (here / CHECKPOINT).exists()


def test_an_interruption_before_the_first_checkpoint(here, whole, interrupt):
    interrupt(3)
    result = landprior(f"{LONGER} -o again.safetensors")
    assert result.exit_code == 130
    assert "interrupted after 3 of 60 steps; nothing was saved" in result.stderr
    succeed(f"{LONGER} -o again.safetensors")
    assert load_model("again.safetensors").digest() == whole.digest()


def test_an_interruption_in_the_middle_of_a_step(here, whole, monkeypatch):
    step, count = torch.optim.AdamW.step, []

    def interrupted(*args, **kwargs):
        result = step(*args, **kwargs)
        count.append(1)
        if len(count) == 26:  # by now the weights are those of the next step
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    assert landprior(f"{LONGER} -o again.safetensors").exit_code == 130
    succeed(f"{LONGER} -o again.safetensors")
    assert load_model("again.safetensors").digest() == whole.digest()


@pytest.mark.parametrize(
    "change",
    ["--seed 3", "--loss ce", "--batch-size 3", "--patch-size 20", "--filters 3", "--init model.safetensors", "prior"],
)
def test_a_checkpoint_of_a_different_run_is_not_resumed(here, grid, interrupt, change):
    interrupt(30)
    assert landprior(f"{LONGER} -o again.safetensors").exit_code == 130
    if change == "prior":
        write_raster(here / "prior.tif", read("prior.tif")[::-1], grid, tags=tags_of("prior.tif"), overwrite=True)
        change = ""
    succeed(f"{LONGER} {change} -o again.safetensors")
    succeed(f"{LONGER} {change} -o fresh.safetensors")
    assert load_model("again.safetensors").digest() == load_model("fresh.safetensors").digest()


def test_a_damaged_checkpoint_gives_a_warning(here, whole):
    (here / CHECKPOINT).write_bytes(b"no checkpoint")
    result = succeed(f"{LONGER} -o again.safetensors")
    assert f"Warning: {CHECKPOINT} is not a usable checkpoint" in result.stderr
    assert load_model("again.safetensors").digest() == whole.digest()


def test_an_interrupted_prediction_leaves_nothing(here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("landprior.landcover.mapping.predict.Mapper.compute", interrupted)
    before = left(here)
    result = landprior("predict naip.tif --model model.safetensors -o other.tif")
    assert result.exit_code == 130
    assert on_screen(result.stderr)[-1] == "Interrupted; nothing was left half-written."
    assert left(here) == before


# -- workspaces -----------------------------------------------------------------------------------


def quick(**changes):
    """Return settings for a training of six steps."""
    loop = TrainingSettings(steps=6, warmup_steps=3)
    return TileSettings(**{"training": loop, "filters": 2, "patch_size": 16, "batch_size": 2} | changes)


@pytest.fixture
def town(chain, tmp_path, monkeypatch):
    """Return a workspace with one tile, with short trainings."""
    for name in ("naip", "nlcd", "labels"):
        target = tmp_path / "data" / "town" / "centre" / f"{name}.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(chain[0] / f"{name}.tif", target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDPRIOR_DATA", "data")
    monkeypatch.setattr(recipes, "TileSettings", quick)
    return tmp_path / "data" / "town" / "centre"


def test_run_does_everything_and_a_rerun_nothing(town, enviroatlas):
    line = "run --city town --scheme enviroatlas-5"
    first = succeed(f"{line} --json")
    found = json.loads(first.stdout)
    assert found["maps"] == ["data/town/centre/prediction.tif"]
    scores = evaluate([(town / "prediction.tif", town / "labels.tif")], enviroatlas)
    assert found["scores"] == scores.to_dict()
    before = {name: (town / name).stat().st_mtime_ns for name in ("prior.tif", "model.safetensors", "prediction.tif")}
    again = succeed(line)
    assert again.stdout == f"data/town/centre/prediction.tif\n{scores.to_text()}\n"
    assert {name: (town / name).stat().st_mtime_ns for name in before} == before
    assert [text.strip() for text in on_screen(again.stderr)] == [
        "town/centre",
        *(f"{name} is current" for name in before),
    ]


def test_single_steps_give_the_same_as_run(town):
    assert succeed("build-prior --city town --scheme enviroatlas-5").stdout == "data/town/centre/prior.tif\n"
    assert succeed("train --city town").stdout == "data/town/centre/model.safetensors\n"
    assert succeed("predict --city town").stdout == "data/town/centre/prediction.tif\n"
    rerun = succeed("run --city town --scheme enviroatlas-5")
    assert rerun.stderr.count("is current") == 3
    assert tags_of(town / "prediction.tif")["maps"] == "r"
    succeed("predict --city town --maps q")
    assert tags_of(town / "prediction.tif")["maps"] == "q"


def test_a_joint_model_of_a_city_maps_its_tiles(town):
    succeed("build-prior --city town --scheme enviroatlas-5")
    assert succeed("train --city town --joint").stdout == "data/town/model.safetensors\n"
    succeed("predict --city town --model data/town/model.safetensors")
    assert tags_of(town / "prediction.tif")["model"] == load_model("data/town/model.safetensors").digest()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --city town", ["'town' is not a preset", "--scheme"]),
        ("run --city pitsburgh", ["'pitsburgh' is not a preset", "did you mean pittsburgh?"]),
        ("run --city village --scheme enviroatlas-5", ["has no city 'village' (it has: town)"]),
        ("build-prior --city twon --scheme enviroatlas-5", ["has no city 'twon' (it has: town); did you mean town?"]),
        ("run --city town --tile north --scheme enviroatlas-5", ["there is no tile north; there are: centre"]),
        ("run --city town --scheme enviroatlas-5 --data none", ["no workspace at none", "--data", "landprior demo"]),
        ("train --city town", ["prior.tif is missing", "build-prior --city town"]),
        ("run --city pittsburgh --offline", ["NAIP: ", "is not in the cache", "--offline was given"]),
    ],
)
@pytest.mark.usefixtures("town")
def test_missing_parts_of_a_workspace_are_errors(line, words):
    assert_refused(line, *words)


def test_demo_scores_its_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TileSettings", quick)
    report = json.loads(succeed("demo -o shown --size 128 --filters 2 --json").stdout)
    rows = ["prior (most probable)", "CE", "QR q", "QR r, not finished", "QR r", "QR r, 100 points"]
    assert list(report["scores"]) == rows
    assert all(0 < score["accuracy"] < 1 for score in report["scores"].values())
    for name in ("map", "figure"):
        assert (tmp_path / report[name]).is_file()
    assert_refused("-q demo -o shown --size 128", "exists; give --overwrite", "--overwrite")
