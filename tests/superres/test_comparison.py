"""``landprior compare`` and ``train --method``, from files to a table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from landprior.cli.methods import METHOD_LOSSES, METHODS
from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.implicit.losses import LOSSES
from landprior.landcover.experiments.config import Experiment
from landprior.landcover.experiments.runner import Runner
from landprior.landcover.training.model import load_model
from landprior.landcover.workspace.collection import Workspace
from landprior.raster.cog import write_raster
from landprior.resources import shipped_names
from landprior.superres import rivals
from landprior.superres.comparison import COMPARE_NAMES, Comparison, load_comparison
from landprior.superres.rivals import RIVALS
from tests.helpers import good, run

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

TINY = "--steps 8 --filters 2"


@pytest.fixture
def tiles(tmp_path, make_grid, rng, chesapeake):
    """Write two tiles whose brightness depends on the class only, with NLCD and labels."""
    for name in ("a", "b"):
        grid = make_grid(96, 104)
        fields = rng.integers(0, 3, (12, 13)).repeat(8, 0).repeat(8, 1)  # trees, grass, impervious
        image = np.stack([np.choose(fields, (60, 120, 200))] * 3) + rng.normal(0, 5, (3, 96, 104))
        share = np.kron(rng.random((4, 4)) < 0.5, np.ones((30, 30)))[:96, :104]
        write_raster(tmp_path / f"{name}_naip.tif", image.clip(1, 255).astype(np.uint8), grid)
        write_raster(tmp_path / f"{name}_nlcd.tif", np.where(share, 41, 23).astype(np.uint8), grid, nodata=0)
        write_raster(tmp_path / f"{name}_lc.tif", chesapeake.codes[1 + fields], grid, nodata=255)
    return tmp_path


@pytest.fixture
def config(tiles):
    """Write the configuration of a comparison of the fast methods."""
    content = {
        "scheme": "chesapeake-4",
        "files": {"image": "{tile}_naip.tif", "nlcd": "{tile}_nlcd.tif", "labels": "{tile}_lc.tif"},
        "places": {"north": ["a"], "south": {"tiles": ["b"]}},
        "methods": [
            "prior",
            "qr",
            "soft-naive",
            "sr",
            {"method": "sr", "name": "sr l1", "options": {"criterion": "l1"}},
            "em",
            {"method": "epitome", "options": {"size": 16, "steps": 6, "patches": 16}},
            "self-epitome",
        ],
        "seeds": 1,
        "settings": {"steps": 8, "filters": 2, "patch_size": 40, "batch_size": 2},
    }
    path = tiles / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# -- compare -----------------------------------------------------------------------------------------


def test_a_comparison_writes_a_table_a_figure_and_maps(config):
    text = good(f"compare {config}")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    expected = ["prior", "qr", "soft-naive", "sr", "sr l1", "em", "epitome", "self-epitome"]
    assert [row for row in dict.fromkeys(rows) if row != "---"] == expected
    folder = config.with_suffix("")
    assert {"report.md", "report.json", "report.png", "maps.png", "results.jsonl"} <= {p.name for p in folder.iterdir()}
    lines = json.loads((folder / "report.json").read_text())["lines"]
    assert {(line["row"], line["map"]) for line in lines} >= {(name, "q") for name in expected[1:]} | {("qr", "r")}
    assert {line["region"] for line in lines} == {"north", "south"}
    assert all(line["tiles"] == 1 and 0 <= line["accuracy"] <= 100 for line in lines)
    models = {load_model(path).record.get("method", {}).get("criterion") for path in (folder / "models").glob("sr*")}
    assert models == {"match", "l1"}


def test_it_resumes_after_an_interruption_with_the_same_results(config, monkeypatch):
    good(f"compare {config} --place north")
    whole = (config.with_suffix("") / "results.jsonl").read_text()

    calls, predict = [], rivals.predict

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    monkeypatch.setattr(rivals, "predict", stop)
    cut = run(f"-q compare {config} --place north -o {config.parent / 'other'}")
    assert cut.exit_code == 130
    assert "to do  sr l1, north" in good(f"compare {config} --place north -o {config.parent / 'other'} --dry-run")
    monkeypatch.setattr(rivals, "predict", predict)
    good(f"compare {config} --place north -o {config.parent / 'other'}")
    assert (config.parent / "other" / "results.jsonl").read_text() == whole


@pytest.mark.parametrize("kind", ["map of the prior", "report", "configuration"])
def test_results_do_not_replace_files_named_in_the_configuration(config, kind):
    content = yaml.safe_load(config.read_text()) | {"methods": ["prior"], "places": {"north": ["a"]}}
    config.write_text(yaml.safe_dump(content))
    good(f"compare {config} -o {config.parent / 'first'}")
    (kept,) = (config.parent / "first" / "maps").rglob("*.tif")
    name = {"map of the prior": kept.relative_to(config.parent / "first"), "report": "report.png"}.get(
        kind, "experiment.json"
    )
    labels = config.parent / "out" / name
    labels.parent.mkdir(parents=True)
    (config.parent / "a_lc.tif").rename(labels)
    before = labels.read_bytes()
    config.write_text(yaml.safe_dump(content | {"files": content["files"] | {"labels": f"out/{name}"}}))
    result = run(f"-q compare {config} -o {config.parent / 'out'}")
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1, result.output
    if kind != "configuration":  # which looks like that of another comparison
        assert f"would replace the input {labels}" in result.output
    assert labels.read_bytes() == before


def test_results_do_not_go_into_the_folder_of_the_data(config):
    experiment = load_comparison(config).to_experiment()
    with pytest.raises(InputError, match="is a folder of inputs; give another folder for the results"):
        Runner(experiment, config.parent, config.parent / "." / "", rivals=RIVALS)
    result = run(f"-q compare {config} -o {config.parent}")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)


def test_methods_and_places_are_chosen_by_name(config):
    text = good(f"compare {config} --method soft-naive --place south --json")
    lines = json.loads(text)["lines"]
    assert {(line["row"], line["region"]) for line in lines} == {("soft-naive", "south")}
    wrong = run(f"compare {config} --method soft")
    assert (wrong.exit_code, wrong.output.count("\n")) == (1, 1)
    assert "'soft' is not a row of this experiment" in wrong.output


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": ["qr", "lsrn"]}, "lsrn|Input should be 'prior'"),
        ({"files": {"image": "x.tif"}}, "files need nlcd, labels"),
        ({"methods": ["qr", "qr"]}, "rows must have different names"),
        ({"places": {}}, "at least 1"),
        ({"files": {"image": "{tile}{x}", "nlcd": "n", "labels": "l"}}, "may contain no placeholder other than"),
        ({"methods": [{"method": "sr", "options": {"criterium": "l1"}}]}, "options of sr.*criterium"),
        (
            {"methods": [{"method": "qr", "options": {"criterion": "l1"}}]},
            "rival and options are for rows of method rival",
        ),
    ],
)
def test_errors_in_a_configuration_are_one_line(config, change, text):
    content = yaml.safe_load(config.read_text()) | change
    config.write_text(yaml.safe_dump(content))
    result = run(f"-q compare {config}")
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1, result.output
    import re

    assert re.search(text, result.output), result.output


def test_shipped_comparisons_are_valid_and_need_a_root(tmp_path):
    assert shipped_names("comparisons") == ["city-windows", "west-virginia"]
    for name in shipped_names("comparisons"):
        experiment = load_comparison(name).to_experiment()
        assert [row.name for row in experiment.rows] == list(COMPARE_NAMES)
    result = run("compare west-virginia")
    assert result.exit_code == 2
    assert "--root is missing" in result.output
    with pytest.raises(MissingInputError):
        load_comparison(tmp_path / "none.yaml")


def test_a_method_unknown_to_the_runner_is_an_error(config):
    experiment = load_comparison(config).to_experiment()
    with pytest.raises(ConfigError, match=r"row 'sr': unknown method 'sr' \(available: none\)"):
        Runner(experiment, config.parent, config.parent / "out")
    content = experiment.model_dump(mode="json")
    content["rows"] = [{"name": "x", "method": "rival"}]
    with pytest.raises(ValueError, match="name the method, rival"):
        Experiment.model_validate(content)


def test_every_method_has_a_row():
    comparison = Comparison(
        scheme="chesapeake-4", files={"image": "i", "nlcd": "n", "labels": "l"}, places={"p": {"tiles": ["t"]}}
    )
    rows = comparison.to_experiment().rows
    assert [row.name for row in rows] == list(COMPARE_NAMES)
    assert {row.rival for row in rows if row.method == "rival"} == set(RIVALS)


@pytest.mark.realdata
def test_patches_of_west_virginia(real_data, tmp_path):
    text = good(
        f"compare west-virginia --root {real_data / 'chesapeake-wv-patches'} -o {tmp_path / 'out'} --seeds 1 "
        "--method prior --method sr --steps 10 --filters 2"
    )
    assert "| prior | - | - | prior | west-virginia | 11 | 86.9 | 45.2 |" in text
    assert "| sr | joint |" in text


# -- train --method ----------------------------------------------------------------------------------


@pytest.fixture
def place(tiles, monkeypatch):
    monkeypatch.chdir(tiles)
    good("build-prior --nlcd a_nlcd.tif --scheme chesapeake-4 -o prior.tif")
    return tiles


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_model_that_maps(place, method):
    nlcd = {"sr": "--nlcd a_nlcd.tif", "epitome": "--nlcd a_nlcd.tif --epitome-size 16"}.get(method, "")
    small = "--steps 8" if method == "epitome" else TINY
    assert (
        good(f"train --image a_naip.tif --prior prior.tif {nlcd} --method {method} {small} -o m.safetensors")
        == "m.safetensors\n"
    )
    model = load_model(place / "m.safetensors")
    assert model.loss == METHOD_LOSSES.get(method, method)
    good("predict a_naip.tif --model m.safetensors -o map.tif")
    assert f"'loss': '{model.loss}'" in str(_tags(place / "map.tif"))


def _tags(path):
    import rasterio

    with rasterio.open(path) as src:
        return src.tags(ns="landprior")


def test_method_names_are_losses():
    assert set(METHOD_LOSSES.values()) <= set(LOSSES)


def test_labels_join_the_cells(place):
    good(
        f"train --image a_naip.tif --prior prior.tif --nlcd a_nlcd.tif --labels a_lc.tif --method sr {TINY} "
        "-o m.safetensors"
    )
    assert load_model(place / "m.safetensors").record["method"]["joint"] is True


@pytest.mark.needs("monai")
def test_a_unet_chosen_by_name(place):
    good(f"train --image a_naip.tif --prior prior.tif --network unet --patch-size 48 {TINY} -o m.safetensors")
    assert load_model(place / "m.safetensors").kind == "unet"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--method sr --loss qr", "--method and --loss are mutually exclusive"),
        ("--method sr", "1 --image and 0 --nlcd were given"),
        ("--method em --nlcd a_nlcd.tif", "--nlcd cannot be used with --method em"),
        ("--method sr --nlcd a_nlcd.tif --starts 3", "--starts cannot be used with --method sr"),
        ("--criterion l1", "--criterion cannot be used with a loss"),
        ("--method epitome --nlcd a_nlcd.tif --criterion l1", "--criterion cannot be used with --method epitome"),
    ],
)
def test_options_without_effect_are_refused(place, options, text):
    result = run(f"train --image a_naip.tif --prior prior.tif {options} -o m.safetensors")
    assert result.exit_code == 2
    assert text in result.output
    assert not (place / "m.safetensors").exists()


def test_a_method_in_a_workspace(place, tmp_path):
    workspace = Workspace(tmp_path / "space")
    folder = workspace.root / "town" / "one"
    folder.mkdir(parents=True)
    for name, layer in (("a_naip", "naip"), ("a_nlcd", "nlcd"), ("prior", "prior")):
        (folder / f"{layer}.tif").write_bytes((place / f"{name}.tif").read_bytes())
    line = f"train --city town --data {workspace.root} {TINY}"
    good(f"{line} --method sr")
    first = load_model(folder / "model.safetensors")
    assert first.loss == "sr"
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    good(f"{line} --method sr")
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # it was current
    good(f"{line} --method sr --criterion l2")
    assert load_model(folder / "model.safetensors").record["method"]["criterion"] == "l2"
    kept = (folder / "model.safetensors").read_bytes()
    refused = run(f"{line} --loss ce")  # a model of another method is not replaced
    assert refused.exit_code == 1
    assert "was made by train --method sr, not by train --recipe default; it is kept" in refused.output
    assert (folder / "model.safetensors").read_bytes() == kept
    good(f"{line} --loss ce --overwrite")
    assert load_model(folder / "model.safetensors").loss == "ce"


def test_the_spread_is_measured_and_printed(place):
    text = good("cooccurrence a_nlcd.tif a_lc.tif --scheme chesapeake-4 --spread -o cooc.csv")
    assert " cells " in text
    assert "±0." in text
    assert "tree canopy std" in (place / "cooc.csv").read_text()
    good(
        f"train --image a_naip.tif --prior prior.tif --nlcd a_nlcd.tif --method sr --cooccurrence cooc.csv {TINY} "
        "-o m.safetensors"
    )


def test_a_running_marginal_is_an_option(place):
    good(f"train --image a_naip.tif --prior prior.tif --marginal running {TINY} -o m.safetensors")
    assert load_model(place / "m.safetensors").record["settings"]["training"]["marginal"] == "running"
