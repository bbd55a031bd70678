"""``landprior doctor`` lists what is installed, and gives advice about what is missing."""

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import landprior
from landprior.cli import main
from landprior.cli.doctor import PACKAGES
from landprior.resources import shipped_names


@pytest.fixture
def without(monkeypatch):
    """Return a function that makes an installed package look missing."""
    version = importlib.metadata.version

    def hide(package):
        def found(name):
            if name == package:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", found)

    return hide


def doctor(*options):
    return CliRunner().invoke(main, ["doctor", *options])


def test_json_lists_what_is_installed():
    result = doctor("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["landprior"] == landprior.__version__
    assert report["gdal"]["cog"] is True
    assert report["gdal"]["geotiff"] is True
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", report["gdal"]["version"])
    assert isinstance(report["cuda"]["available"], bool)
    assert report["torchgeo_fcn"] is True
    assert list(report["packages"]) == PACKAGES
    assert all(report["packages"].values())
    assert report["configs"] == {kind: shipped_names(kind) for kind in ("schemes", "cities")}
    assert report["problems"] == []


def test_text_has_the_same_content():
    result = doctor()
    assert result.exit_code == 0, result.output
    report = json.loads(doctor("--json").stdout)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"landprior {landprior.__version__}   Python {report['python']}")
    assert any(line.startswith("GDAL:") and report["gdal"]["version"] in line for line in lines)
    assert any(line.startswith("CUDA:") for line in lines)
    packages = next(line for line in lines if line.startswith("packages: "))
    for name, version in report["packages"].items():
        assert f"{name} {version}" in packages
    assert lines[-1] == "no problems found"


@pytest.mark.parametrize("package", ["osmnx", "tqdm"])
def test_a_missing_package_is_a_problem_with_the_install_command(without, package):
    without(package)
    result = doctor()
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert f"problem: {package} is missing: pip install {package}" in lines
    assert f"{package} MISSING" in result.stdout
    assert "no problems found" not in lines


def test_a_missing_package_in_json(without):
    without("osmnx")
    result = doctor("--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["packages"]["osmnx"] is None
    assert report["problems"] == ["osmnx is missing: pip install osmnx"]


@pytest.mark.parametrize(
    ("package", "words"), [("rasterio", "pip install"), ("torchgeo.models", "pip install --upgrade")]
)
def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch, package, words):
    monkeypatch.setitem(sys.modules, package, None)
    result = doctor()
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    assert any("cannot be imported" in line and words in line for line in problems)


def test_doctor_works_without_psutil(monkeypatch, without):
    without("psutil")
    monkeypatch.setitem(sys.modules, "psutil", None)
    result = doctor()
    assert result.exit_code == 1
    assert "problem: psutil is missing: pip install psutil" in result.stdout.splitlines()


def test_every_dependency_is_checked():
    project = tomllib.loads((Path(landprior.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert needed <= set(PACKAGES)


def test_missing_configuration_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("landprior.resources.__file__", str(tmp_path / "landprior" / "resources.py"))
    result = doctor()
    assert result.exit_code == 1
    assert "problem: the shipped configuration is missing" in result.stdout
