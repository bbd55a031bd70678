"""The numbers of test cases in docs/results/reliability.md are correct."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest


def test_the_page_has_the_numbers_of_cases(request):
    """The cases can only be counted if pytest collected all of them."""
    here = Path(__file__).parent
    found = Counter(item.path for item in request.session.items)
    groups = [[here / "test_faults.py"], list((here / "http").glob("test_*.py"))]
    option = request.config.option
    if not all(found[path] for group in groups for path in group) or option.keyword or "::" in str(request.config.args):
        pytest.skip("not all cases were collected")
    counts = [sum(found[path] for path in group) for group in groups]
    page = (here.parents[1] / "docs" / "results" / "reliability.md").read_text(encoding="utf-8")
    assert f"**{counts[0]} cases**" in page
    assert f"Another {counts[1]} cases" in page
    rows = re.findall(r"^\| .* \| ([0-9]+) \|$", page, flags=re.MULTILINE)
    assert sum(map(int, rows)) == counts[0]
