"""Progress: bars only on a terminal, whole lines in a log, nothing with --quiet."""

import io
import logging
import re
import sys
from pathlib import Path

import pytest

import landprior
from landprior import progress
from landprior.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that the test controls."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    one = Clock()
    monkeypatch.setattr(progress, "time", one)
    return one


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "landprior")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_log_gets_a_line_per_stage_and_per_tenth_with_rate_and_time_left(lines, clock, capsys):
    with Progress(400, "qr", "step") as bar:
        for _ in range(400):
            clock.now += 0.5
            bar.update()
    said = lines()
    assert len(said) == 11
    assert said[0] == "qr: 400 steps"
    assert said[1] == "qr:  10 %, 40 of 400 steps, 2 steps/s, 3:00 left"
    assert said[-1] == "qr: 100 %, 400 of 400 steps, 2 steps/s, took 3:20"
    assert "\r" not in capsys.readouterr().err


def test_slow_parts_are_reported_in_seconds_each_and_hours(lines, clock):
    bar = Progress(12, "pittsburgh", "tile")
    clock.now = 600.0
    bar.update(2)
    assert lines()[1] == "pittsburgh:  16 %, 2 of 12 tiles, 300 s/tile, 50:00 left"
    clock.now = 6000.0
    bar.update()
    assert lines()[2] == "pittsburgh:  25 %, 3 of 12 tiles, 2e+03 s/tile, 5:00:00 left"


def test_the_rate_of_a_resumed_stage_is_that_of_this_run(lines, clock):
    bar = Progress(100, "rq", "step", done=50)
    clock.now = 10.0
    bar.note("loss=0.5")
    bar.update(10)
    assert lines() == [
        "rq: 100 steps, 50 of them done before",
        "rq:  60 %, 60 of 100 steps, 1 steps/s, 0:40 left, loss=0.5",
    ]


def test_short_stages_get_a_line_per_part(lines):
    assert list(track("abc", "maps", "image")) == ["a", "b", "c"]
    assert [line.split(",")[1].strip() for line in lines()] == ["1 of 3 images", "2 of 3 images", "3 of 3 images"]


def test_a_stage_of_unknown_length_gets_one_line_at_its_end(lines, clock):
    with Progress(None, "t1", "B") as bar:
        bar.update(3 * 2**20)
        clock.now = 61.0
        bar.note("done")
    assert lines() == ["t1: 3 MiB in 1:01, done"]


def test_a_stage_that_fails_ends_without_a_line_of_success(lines):
    def fail():
        with Progress(4, "maps", "image") as bar:
            bar.update()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert len(lines()) == 1


@pytest.mark.parametrize("show", [True, False])
def test_a_stage_without_parts(lines, show):
    assert list(track([], "maps", "image", show=show)) == []
    assert lines() == []


def test_quiet_prints_nothing(lines, monkeypatch):
    assert list(track(range(50), "maps", "image", show=False)) == list(range(50))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track(range(50), "maps", "image", show=False)) == list(range(50))
    assert lines() == []
    assert sys.stderr.getvalue() == ""


def test_a_terminal_gets_a_bar_and_no_lines(lines, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(20, "qr", "step") as bar:
        bar.note("loss=0.5")
        bar.update(20)
    assert lines() == []
    assert re.search(r"\rqr: .*0/20", sys.stderr.getvalue())
    assert "loss=0.5" in sys.stderr.getvalue()


def test_a_dumb_terminal_gets_lines(lines, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(range(3), "maps", "image"))
    assert len(lines()) == 3
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_a_missing_stderr_is_not_a_terminal(monkeypatch, stderr):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if stderr is None else closed)
    assert progress.has_bars() is False


def test_no_other_module_draws_bars():
    users = [
        path.name
        for path in Path(landprior.__file__).parent.rglob("*.py")
        if re.search(r"^\s*(from|import) tqdm", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(users) == ["progress.py", "terminal.py"]
