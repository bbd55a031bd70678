"""With damaged input files, every command ends with a result or a one-line error.

``tests/damage.py`` has the files, the commands and the damage. To repeat a case that failed, give its number:
``python tests/damage.py --seed SEED --first NUMBER --count 1``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("damage", Path(__file__).with_name("damage.py"))
damage = importlib.util.module_from_spec(_spec)
sys.modules["damage"] = damage
_spec.loader.exec_module(damage)

FEW = 200
"""Number of cases in the fast suite."""

MANY = int(os.environ.get("LANDPRIOR_DAMAGED", "5000"))
"""Number of cases in the slow test; continuous integration runs fewer."""


@pytest.fixture(scope="session")
def good_files(tmp_path_factory):
    """One undamaged file of each kind, written by a separate process."""
    base = tmp_path_factory.mktemp("good")
    found = subprocess.run(
        [sys.executable, damage.__file__, "--base", str(base), "--build"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return base


def all_right(found, count):
    text = damage.report(found)
    print(text.splitlines()[0])
    assert len(found) == count
    assert not [line for line in found if line["wrong"]], text


def test_a_few_hundred_damaged_inputs_give_a_result_or_one_line(good_files):
    all_right(damage.run_many(FEW, seed=20, base=good_files, jobs=2), FEW)


@pytest.mark.slow
def test_thousands_of_damaged_inputs_give_a_result_or_one_line(good_files):
    all_right(damage.run_many(MANY, seed=22, base=good_files, jobs=os.cpu_count() or 1), MANY)


@pytest.mark.slow
def test_the_commands_give_results_with_undamaged_inputs(good_files):
    failed = {}
    for case in damage.CASES:
        found = damage.run_case(0, 0, good_files, case.name, unharmed=True)
        if found["code"] != 0 or found["wrong"]:
            failed[case.name] = found
    assert not failed
