"""Settings of another GDAL or PROJ are recognised, ignored with a message, and do not affect results."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from click.testing import CliRunner

from landprior import environment as environment_module
from landprior.cli import main
from landprior.environment import drop_foreign_settings

OWN = Path(rasterio.__file__).parent / "proj_data"


@pytest.fixture
def old(tmp_path):
    """Return a folder with a proj.db in an old layout."""
    folder = tmp_path / "old"
    folder.mkdir()
    with sqlite3.connect(folder / "proj.db") as database:
        database.execute("CREATE TABLE metadata (key TEXT, value TEXT)")
        rows = [("DATABASE.LAYOUT.VERSION.MAJOR", "1"), ("DATABASE.LAYOUT.VERSION.MINOR", "0")]
        database.executemany("INSERT INTO metadata VALUES (?, ?)", rows)
    database.close()
    return folder


@pytest.fixture
def places(tmp_path, old):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "proj.db").write_bytes(b"no database" * 50)
    names = ("empty", "file", "junk", "nothing")
    return {"old": str(old), "blank": "", **{name: str(tmp_path / name) for name in names}}


@pytest.mark.parametrize("name", ["PROJ_LIB", "PROJ_DATA", "GDAL_DATA"])
@pytest.mark.parametrize("kind", ["old", "empty", "file", "junk", "nothing", "blank"])
def test_unusable_settings_are_removed_with_a_message(places, name, kind):
    environment = {name: places[kind], "HOME": "/home"}
    (said,) = drop_foreign_settings(environment)
    assert environment == {"HOME": "/home"}
    assert said.startswith(f"{name}={places[kind]} is ignored: ")
    assert "\n" not in said


def test_the_message_gives_both_layouts(places):
    (said,) = drop_foreign_settings({"PROJ_LIB": places["old"]})
    assert "layout 1.0, required is 1." in said


def test_usable_settings_are_kept(places):
    newest = str(max(environment_module._list_own_databases(), key=environment_module._read_layout).parent)
    environment = {
        "PROJ_DATA": os.pathsep.join([places["empty"], newest]),
        "GDAL_DATA": str(OWN.parent / "gdal_data"),
        "GDAL_DRIVER_PATH": "disable",
        "PROJ_NETWORK": "OFF",
    }
    before = dict(environment)
    assert drop_foreign_settings(environment) == []
    assert environment == before


@pytest.mark.parametrize(
    ("name", "value"), [("PROJ_NETWORK", "ON"), ("GDAL_DRIVER_PATH", "/usr/lib"), ("PROJ_AUX_DB", "/nothing.db")]
)
def test_other_settings_that_change_results_are_removed(name, value):
    environment = {name: value}
    (said,) = drop_foreign_settings(environment)
    assert not environment
    assert said.startswith(f"{name}={value} is ignored: ")


def test_a_command_works_with_data_of_another_proj_and_warns_in_one_line(places, tmp_path, make_raster, coarse):
    nlcd, like = make_raster("nlcd.tif", coarse(64, 80)), make_raster("like.tif", coarse(64, 80))
    command = ["-q", "build-prior", "--nlcd", str(nlcd), "--like", str(like), "--scheme", "chesapeake-4", "-o"]
    foreign = os.environ | {"PROJ_LIB": places["old"], "GDAL_DATA": places["empty"]}
    done = subprocess.run(
        [sys.executable, "-m", "landprior", *command, tmp_path / "a.tif"],
        env=foreign,
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "ignored" in line]
    assert [line.split("=")[0] for line in said] == ["Warning: PROJ_LIB", "Warning: GDAL_DATA"]
    own = CliRunner().invoke(main, [*command, str(tmp_path / "b.tif")])
    assert own.exit_code == 0, own.output
    assert "ignored" not in own.stderr
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        assert a.crs == b.crs
        assert a.crs.to_epsg() == 26917
        assert (a.read() == b.read()).all()


def test_doctor_reports_ignored_settings(places, monkeypatch):
    monkeypatch.setenv("PROJ_DATA", places["old"])
    monkeypatch.setattr("landprior.cli.doctor._network", lambda _: True)
    monkeypatch.setattr("landprior.cli.doctor._cuda", lambda *_: {})
    report = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert any(note.startswith(f"PROJ_DATA={places['old']} is ignored") for note in report["notes"])
    assert not [one for one in report["problems"] if "PROJ" in one]
    assert report["environment"] == {}


def test_doctor_lists_settings_in_use_and_checks_proj(monkeypatch):
    monkeypatch.setenv("GDAL_DATA", str(OWN.parent / "gdal_data"))
    monkeypatch.setattr("landprior.cli.doctor._network", lambda _: True)
    monkeypatch.setattr("landprior.cli.doctor._cuda", lambda *_: {})
    monkeypatch.setattr("rasterio.warp.transform", lambda *_: 1 / 0)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert report["environment"] == {"GDAL_DATA": str(OWN.parent / "gdal_data")}
    assert any(one.startswith("PROJ does not work (division by zero)") for one in report["problems"])
    assert result.exit_code == 1
