"""Benchmarks: code that would not run on a machine without a GPU, the accuracy reached, checksums and lists."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import main as list_benchmarks
from benchmarks.accuracy.__main__ import Row, show_areas
from benchmarks.accuracy.places import derive_layers
from benchmarks.accuracy.sets import prepare
from benchmarks.same_maps.__main__ import compare
from benchmarks.same_maps.__main__ import main as same_maps
from benchmarks.same_maps.contents import digest, encode, flatten, read_content
from benchmarks.time_to_accuracy import reach
from landprior.raster.reading import open_raster


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_too():
    sizes = {"filters": 4, "width": 600, "height": 500, "patch": 32, "batch": 4, "steps": 2, "matrix": 256}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    result = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shares = [int(share) for share in re.findall(r"(\d+)% \(bar", result.output)]
    assert len(shares) == 2
    assert all(0 <= share <= 100 for share in shares)  # per cent of the device's peak
    assert "600 x 500 px read, predicted and written" in result.output


@pytest.mark.parametrize(
    ("accuracies", "found"),
    [
        ([0.1, 0.6, 0.4, 0.6, 0.7, 0.8, 0.5], 4),  # an accuracy that is lost again at once does not count
        ([0.6, 0.6, 0.6], 1),
        ([0.1, 0.2, 0.6], 3),
        ([0.1, 0.2, 0.3], None),
    ],
)
def test_when_an_accuracy_counts_as_reached(accuracies, found):
    assert reach(list(enumerate(accuracies, 1)), 0.6) == found


def test_all_benchmarks_are_listed():
    result = CliRunner().invoke(list_benchmarks, ["--list"])
    assert {"gpu", "time_to_accuracy", "whole_path"} <= set(BENCHMARKS)
    assert [line.split()[0] for line in result.output.splitlines()] == list(BENCHMARKS)


def content_of(path):
    values, record = read_content(path, path.parent)
    return {"sha256": digest(*values, encode(record)), "values": digest(*values), "record": dict(flatten(record))}


def test_checksums_ignore_dates_versions_and_paths_and_name_differences(tmp_path, make_raster):
    record = {"when": "2026-01-01T00:00:00Z", "landprior": "0.1.0", "accuracy": 0.5, "map": f"{tmp_path}/a.tif"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record))
    before = {"a": content_of(path)}
    path.write_text(json.dumps(record | {"when": "2027-01-01T00:00:00Z", "landprior": "0.2.0", "map": "a.tif"}))
    assert compare({"a": content_of(path)}, before) == []
    path.write_text(json.dumps(record | {"accuracy": 0.6}))
    assert compare({"a": content_of(path)}, before) == [
        "a: accuracy: 0.5 -> 0.6",
        "a: same values, another record",
    ]
    assert compare({}, before) == ["only before: a"]
    values = np.zeros((3, 4), np.uint8)
    one = {"m": content_of(make_raster("m.tif", values, tags={"version": "0.1.0"}))}
    assert compare({"m": content_of(make_raster("n.tif", values, tags={"version": "0.2.0"}))}, one) == []
    values[1, 2] = 1
    assert compare({"m": content_of(make_raster("o.tif", values))}, one) == ["m: values differ"]


@pytest.mark.slow
def test_two_runs_of_the_commands_write_the_same_files(tmp_path):
    options = ["--part", "sample", "--part", "plan", "-o", str(tmp_path / "before.json")]
    first = CliRunner().invoke(same_maps, options, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(same_maps, [*options[:4], "--against", str(tmp_path / "before.json")])
    assert (second.exit_code, second.stdout.splitlines()[-1]) == (0, "0 differences")


def test_roads_and_footprints_are_derived_from_a_mask():
    mask = np.zeros((90, 120), np.uint8)
    mask[40:47] = 2  # a road of 7 m
    mask[60:85, 40:80] = 2  # a car park
    mask[10:22, 10:20] = mask[10:22, 60:75] = 1
    layers = derive_layers(mask, 1.0, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(layers["roads"][:, 20]), [42, 43, 44])
    assert not layers["roads"][70, 60]  # too wide for a road
    sizes = {120, 180, 300}  # one or both, moved
    assert int(layers["buildings"].sum()) in sizes
    assert np.abs(np.argwhere(layers["buildings"]).min(0) - [10, 10]).max() <= 51


def test_the_table_of_areas_has_means_over_the_seeds():
    rows = [
        Row("demo", "default", "qr", seed, areas={"prior": {"water": 0.5}, "r": {"water": ratio}})
        for seed, ratio in enumerate((1.0, 1.5))
    ]
    assert [line.split()[-2:] for line in show_areas(rows).splitlines()[1:]] == [["water", "0.50"], ["water", "1.25"]]


@pytest.mark.realdata
@pytest.mark.usefixtures("real_data")
def test_a_real_set_is_prepared_in_a_new_folder(tmp_path):
    case = next(prepare(tmp_path / "work", ["pittsburgh"]))
    assert (case.name, case.matrix) == ("pittsburgh", "own")
    image, prior, labels = case.tiles[0]
    assert image.is_file()
    assert labels.is_file()
    assert prior.parent == tmp_path / "work" / "pittsburgh"
    with open_raster(prior) as src:
        assert (src.count, src.shape) == (5, (368, 368))
