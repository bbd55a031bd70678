"""Benchmarks whose code paths a machine without a GPU would not see otherwise."""

import re

import pytest
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import main as list_benchmarks
from benchmarks.time_to_accuracy import reach


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_too():
    sizes = {"filters": 4, "width": 600, "height": 500, "patch": 32, "batch": 4, "steps": 2, "matrix": 256}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    result = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shares = [int(share) for share in re.findall(r"(\d+)% \(bar", result.output)]
    assert len(shares) == 2
    assert all(0 <= share <= 100 for share in shares)  # of what the device can do
    assert "600 x 500 px read, predicted and written" in result.output


@pytest.mark.parametrize(
    ("accuracies", "found"),
    [
        ([0.1, 0.6, 0.4, 0.6, 0.7, 0.8, 0.5], 4),  # what is lost again right after does not count
        ([0.6, 0.6, 0.6], 1),
        ([0.1, 0.2, 0.6], 3),
        ([0.1, 0.2, 0.3], None),
    ],
)
def test_when_an_accuracy_is_reached(accuracies, found):
    assert reach(list(enumerate(accuracies, 1)), 0.6) == found


def test_all_benchmarks_are_listed():
    result = CliRunner().invoke(list_benchmarks, ["--list"])
    assert {"gpu", "time_to_accuracy", "whole_path"} <= set(BENCHMARKS)
    assert [line.split()[0] for line in result.output.splitlines()] == list(BENCHMARKS)
