"""The command line with a full disk, a closed pipe and any encoding: one line for each error."""

import errno
import io
import logging
import os
import subprocess
import sys

import pytest
import rasterio.errors
from click.testing import CliRunner

from landprior import cli
from landprior.cli import main
from landprior.cli.terminal import LineFormatter, explain_failure, one_line

SCHEME = """name: forêt
classes:
  - {code: 1, name: "eau ± 森", colour: "#00c5ff"}
  - {code: 2, name: bâti, colour: "#267300"}
"""


@pytest.fixture
def labels(make_raster, rng):
    return make_raster("labels.tif", rng.integers(1, 3, (40, 50)).astype("uint8"))


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the command line in a separate process."""
    (tmp_path / "s.yaml").write_text(SCHEME, encoding="utf-8")

    def start(*arguments, stdout=subprocess.PIPE, **environment):
        clean = {key: value for key, value in os.environ.items() if key != "LANDPRIOR_DEBUG"}
        return subprocess.run(
            [sys.executable, "-m", "landprior", *map(str, arguments)],
            env=clean | environment, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip

    return start


@pytest.mark.parametrize("command", [["--help"], ["cache", "info"]])
def test_a_full_standard_output_gives_one_line_and_exit_code_1(run, command):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = run(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: cannot write to standard output (No space left on device)\n"


def test_a_closed_pipe_is_quiet(run):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("cache", "info", stdout=writer)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", "eau ± ?"), ("cp1252", "eau ± ?"), ("ascii", "eau ± 森"), ("utf-8", "eau ± 森")]
)
def test_a_table_is_printed_in_any_encoding(labels, tmp_path, encoding, shown):
    (tmp_path / "s.yaml").write_text(SCHEME, encoding="utf-8")
    arguments = ["-q", "evaluate", str(labels), str(labels), "--scheme", str(tmp_path / "s.yaml")]
    result = CliRunner(charset=encoding).invoke(main, arguments)
    assert result.exit_code == 0, result.stderr_bytes
    rows = result.stdout_bytes.decode(encoding.replace("ascii", "utf-8")).splitlines()
    assert rows[1].startswith(shown)
    assert rows[2].split()[0] == "bâti"


def test_warnings_of_other_libraries_are_not_errors(run, labels):
    done = run("-q", "evaluate", labels, labels, "--scheme", "s.yaml", PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_name_with_other_bytes_and_a_newline_gives_one_line(run):
    done = run("evaluate", b"a\nb\xe9.tif".decode("utf-8", "surrogateescape"), "x.tif", "--scheme", "chesapeake-4")
    assert done.returncode == 1
    assert done.stderr == b"Error: no such file: a\\nb\xe9.tif\n"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MemoryError(), "out of memory; close other programs"),
        (RecursionError("x"), "nested too deeply"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b.tif"), "/a/b.tif: no space left to write a file"),
        (OSError(errno.EMFILE, "Too many open files", "b.tif"), "b.tif: too many open files; raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", "b.csv"), "Error: b.csv: Permission denied"),
        (rasterio.errors.CRSError("PROJ: no database\nat all"), "system cannot be used (PROJ: no database at"),
    ],
)  # fmt: skip
def test_failures_of_the_system_give_one_line(monkeypatch, failure, said):
    def fail(*_):
        raise failure

    monkeypatch.setattr("landprior.cli.doctor._packages", fail)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert said in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_bug_gives_one_line_that_asks_for_a_report(monkeypatch):
    def fail():
        key = "x\ny"
        raise KeyError(key)

    monkeypatch.setattr("landprior.cli.doctor._packages", fail)
    monkeypatch.delenv("LANDPRIOR_DEBUG")
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "unexpected error (KeyError: 'x\\ny'); please report it" in result.stderr
    assert isinstance(CliRunner().invoke(main, ["-vv", "doctor"]).exception, KeyError)
    monkeypatch.setenv("LANDPRIOR_DEBUG", "1")
    assert isinstance(CliRunner().invoke(main, ["doctor"]).exception, KeyError)


def test_unexpected_errors_have_no_explanation():
    assert explain_failure(KeyError("x")) is None
    assert explain_failure(OSError("no number")) is None


def test_control_characters_are_shown_as_escapes():
    assert one_line("a\nb\r\x1b[31mc\t\x9bé森") == r"a\nb\r\x1b[31mc\t\x9bé森"
    record = logging.LogRecord("x", logging.INFO, "", 0, "name %s", ("a\nb",), None)
    assert LineFormatter("%(message)s").format(record) == r"name a\nb"


def test_a_log_has_no_carriage_returns_and_quiet_prints_nothing(labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SCHEME, encoding="utf-8")
    (tmp_path / "m.csv").write_text('code,"eau ± 森",bâti\n1,1,0\n2,0,1\n', encoding="utf-8")
    command = ["build-prior", "--nlcd", str(labels), "--scheme", "s.yaml", "--cooccurrence", "m.csv", "-o", "p.tif"]
    said = CliRunner().invoke(main, command)
    assert said.exit_code == 0, said.stderr
    assert "\r" not in said.stderr
    assert "100 %, 1 of 1 block, " in said.stderr
    assert CliRunner().invoke(main, ["-q", *command, "--overwrite"]).stderr == ""


def test_foreign_settings_give_a_warning_only_once(monkeypatch):
    monkeypatch.setenv("GDAL_DATA", "/nonexistent")
    first, second = (CliRunner().invoke(main, ["cache", "info"]) for _ in range(2))
    assert first.stderr.startswith("Warning: GDAL_DATA=/nonexistent is ignored: ")
    assert second.stderr == ""
    assert cli._FOREIGN == []


def test_a_stream_without_reconfigure_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    cli.terminal.prepare_streams()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--learning-rate", "nan", "'nan' is not a finite number"),
        ("--learning-rate", "inf", "'inf' is not a finite number"),
        ("--learning-rate", "0", "0.0 is not in the range x>0"),
        ("--steps", "99999999999999999999", "is too large; the maximum is 2147483647"),
        ("--seed", "4294967296", "is too large"),
        ("--output", "z.pt", "z.pt cannot be the name of a model: models are written as .safetensors"),
    ],
)
def test_impossible_numbers_and_names_are_refused(make_image, make_prior, tmp_path, monkeypatch, option, value, said):
    monkeypatch.chdir(tmp_path)
    image, prior = make_image("image.tif", 40, 50), make_prior("prior.tif", 40, 50)
    command = ["train", "--image", str(image), "--prior", str(prior), "-o", "m.safetensors", option, value]
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert said in result.stderr
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt", ".safetensors")]


def test_options_of_a_figure_are_refused_without_a_figure(labels):
    arguments = ["evaluate", str(labels), str(labels), "--scheme", "chesapeake-4", "--image", "nothing.tif"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--image cannot be used with scores alone; ask for a picture with --figure" in result.stderr
