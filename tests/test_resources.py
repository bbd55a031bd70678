"""The shipped configuration is found in a checkout, and the wheel includes it."""

import tomllib
from pathlib import Path

import pytest

from landprior import resources
from landprior.errors import MissingInputError
from landprior.resources import configs_dir, find_config, shipped_names

REPOSITORY = Path(__file__).resolve().parent.parent


def test_all_shipped_files_are_found():
    assert configs_dir().is_dir()
    assert shipped_names("schemes") == ["chesapeake-4", "enviroatlas-5", "nlcd"]
    assert shipped_names("cooccurrence", ".csv") == ["chesapeake-4", "enviroatlas-5"]
    assert find_config("nlcd", "schemes").is_file()


def test_the_wheel_has_the_files_in_the_expected_place():
    with (REPOSITORY / "pyproject.toml").open("rb") as stream:
        wheel = tomllib.load(stream)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "landprior/configs"}


def test_an_installation_without_the_files_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "landprior" / "resources.py"))
    with pytest.raises(MissingInputError, match="reinstall landprior"):
        configs_dir()
