"""Helpers of several test modules: running the command line, using one core, interrupting at a given step."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner

from landprior.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result


def run(line: str, **environment: str) -> Result:
    """Run a command line of landprior in this process."""
    return CliRunner(env=environment).invoke(main, shlex.split(line), prog_name="landprior")


def good(line: str, **environment: str) -> str:
    """Run a command line quietly, assert that it succeeds, and return its output."""
    result = run(f"-q {line}", **environment)
    assert result.exit_code == 0, result.output
    return result.stdout


@contextmanager
def on_one_core() -> Iterator[None]:
    """Compute on one core: tiny batches are not worth sharing, and on busy cores threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_num_threads(threads)


@contextmanager
def interrupted_at(monkeypatch: pytest.MonkeyPatch, feed: type, steps: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at the ``steps``-th call of a feed."""
    call, left = feed.__call__, {"steps": steps}

    def counted(self, step):
        left["steps"] -= 1
        if left["steps"] == 0:
            raise KeyboardInterrupt
        return call(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(feed, "__call__", counted)
        yield
