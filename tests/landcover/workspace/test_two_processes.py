"""Several processes that write into one workspace at the same time, some of which are killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pystac
import pytest

from landprior import records
from landprior.errors import RasterWriteError
from landprior.inputs import checksum, stamp_of
from landprior.landcover.workspace import item as workspace
from landprior.landcover.workspace.collection import COLLECTION
from landprior.landcover.workspace.item import ITEM, TileFolder
from landprior.raster import locks
from landprior.raster.cog import write_raster
from landprior.records import changing

RECORD = """
import sys
from pathlib import Path
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.item import TileFolder
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tile = TileFolder(path=folder, city="town")
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, last):
    tile.record(f"step-{number}", f"key-{number}", number=number)
    if number % 10 == 0:
        Workspace(folder.parent.parent).write_collection()
"""
HOLD = """
import sys, time
from pathlib import Path
from landprior.records import changing
with changing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

ADD = """
import sys
from dataclasses import dataclass
from pathlib import Path
from landprior.records import add_records
@dataclass
class One:
    number: int
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, last):
    add_records(folder, [One(number)], One, key=lambda one: str(one.number))
"""


@dataclass
class Numbered:
    number: int


@pytest.fixture
def tile(tmp_path, make_grid):
    folder = TileFolder(path=tmp_path / "data" / "town" / "t1", city="town")
    folder.path.mkdir(parents=True)
    write_raster(folder.file("naip"), np.ones((3, 20, 20), np.uint8), make_grid(20, 20))
    return folder


@contextmanager
def started(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_all_sixty_steps_of_two_processes_are_recorded(tile):
    with started(RECORD, tile.path, 0, 30) as one, started(RECORD, tile.path, 30, 60) as two:
        assert [process.stdout.readline() for process in (one, two)] == ["ready\n"] * 2
        for process in (one, two):  # at the same time
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in (one, two)] == [0, 0]
    steps = tile.steps()
    assert {name: step["number"] for name, step in steps.items()} == {f"step-{n}": n for n in range(60)}
    assert pystac.Item.from_dict(json.loads((tile.path / ITEM).read_text())).id == "town-t1"
    root = tile.path.parent.parent
    assert [link["href"] for link in json.loads((root / COLLECTION).read_text())["links"][1:]] == [
        "./town/t1/item.json"
    ]
    assert not [path.name for path in (*tile.path.iterdir(), *root.iterdir()) if path.name.startswith(".")]


def test_all_results_of_two_processes_in_one_folder_are_kept(tmp_path):
    with started(ADD, tmp_path, 0, 30) as one, started(ADD, tmp_path, 20, 50) as two:
        assert [process.stdout.readline() for process in (one, two)] == ["ready\n"] * 2
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in (one, two)] == [0, 0]
    assert sorted(one.number for one in records.read_records(tmp_path, Numbered)) == list(range(50))
    assert [path.name for path in tmp_path.iterdir()] == [records.RESULTS]


def test_a_process_can_write_on_a_file_system_without_locks(tile, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    tile.record("prior", "key")
    assert set(tile.steps()) == {"prior"}


def test_unchanged_files_are_described_only_once(tile, monkeypatch, make_grid):
    opened = []
    describe = workspace._describe_raster
    monkeypatch.setattr(workspace, "_describe_raster", lambda path: opened.append(path.name) or describe(path))
    tile.record("a", "key")
    first = json.loads((tile.path / ITEM).read_text())["assets"]
    tile.record("b", "key")
    assert opened == ["naip.tif"]
    assert json.loads((tile.path / ITEM).read_text())["assets"] == first
    values, names = np.ones((3, 20, 20), np.uint8), ("red", "green", "blue")
    write_raster(tile.file("naip"), values, make_grid(20, 20), descriptions=names, overwrite=True)
    tile.record("c", "key")
    assert opened == ["naip.tif"] * 2
    assert json.loads((tile.path / ITEM).read_text())["assets"]["naip"]["bands"][0]["name"] == "red"


def test_the_lock_of_a_killed_process_does_not_block(tile):
    with started(HOLD, tile.path / ITEM) as holder:
        assert holder.stdout.readline() == "held\n"
        assert (tile.path / f".landprior-{ITEM}.lock").exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    tile.record("prior", "key")
    assert set(tile.steps()) == {"prior"}
    assert not (tile.path / f".landprior-{ITEM}.lock").exists()


def test_a_process_that_never_releases_the_lock_is_an_error(tile, monkeypatch):
    monkeypatch.setattr(records, "PATIENCE", 0.1)
    with started(HOLD, tile.path / ITEM) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RasterWriteError, match=r"another process has been writing .*item\.json for 0 s"):
            tile.record("prior", "key")


def test_a_failed_write_of_a_description_keeps_the_old_one(tile):
    tile.record("prior", "key")
    before = (tile.path / ITEM).read_bytes()
    with pytest.raises(TypeError), changing(tile.path / ITEM) as write:
        write({"of no": object()})
    assert (tile.path / ITEM).read_bytes() == before


def test_a_new_file_of_the_same_size_and_date_is_noticed(tmp_path):
    """The cached checksum does not depend on dates that can be set."""
    path = tmp_path / "nlcd.tif"
    path.write_bytes(b"one")
    dated = path.stat()
    time.sleep(0.06)
    first = checksum(path)
    assert checksum(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(dated.st_atime_ns, dated.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (dated.st_size, dated.st_mtime_ns)
    assert checksum(path) != first
    other = tmp_path / "other.tif"
    other.write_bytes(b"six")
    os.utime(other, ns=(dated.st_atime_ns, dated.st_mtime_ns))
    before = stamp_of(path)
    other.replace(path)
    assert stamp_of(path) != before
