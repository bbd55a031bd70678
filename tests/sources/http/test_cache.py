"""The cache and the commands that show and clear it."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest
from click.testing import CliRunner
from pyogrio.errors import DataSourceError

from landprior.cli import main
from landprior.errors import InputError, RasterWriteError, SourceBusyError
from landprior.sources.http.cache import Cache, Usage, default_cache, writing_features

DAY = 86_400


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def filled(cache):
    """A cache with 300 bytes of NAIP, 100 of which are ten days old, and 50 of OpenStreetMap."""
    cache.put(cache.path("osm", "features", ".gpkg"), bytes(50))
    folder = cache.path("naip", "image", ".chunks")
    cache.put(folder / "meta.json", bytes(100))
    old = cache.put(folder / "v1" / "000000", bytes(100))
    cache.put(cache.path("naip", "search", ".json"), bytes(100))
    os.utime(old, (time.time() - 10 * DAY,) * 2)
    cache.lock_path(folder).touch()
    return cache


@pytest.fixture
def run():
    """Run the command line."""
    return lambda *options, **env: CliRunner().invoke(main, ["cache", *options], env=env, prog_name="landprior")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- the cache -----------------------------------------------------------------------------------


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LANDPRIOR_CACHE", str(tmp_path / "here"))
    assert Cache().root == default_cache() == tmp_path / "here"
    monkeypatch.delenv("LANDPRIOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert default_cache().name == "landprior"
    assert not (tmp_path / "here").exists(), "made on first use only"


def test_file_names_differ_between_keys_and_do_not_reveal_them(cache):
    first, second = (cache.path("naip", f"http://host/a.tif?sig={secret}", ".tif") for secret in ("x", "y"))
    assert first != second
    assert first == cache.path("naip", "http://host/a.tif?sig=x", ".tif")
    assert (first.parent, first.suffix, len(first.stem)) == (cache.root / "naip", ".tif", 32)
    assert set(first.stem) <= set("0123456789abcdef")
    assert (cache.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_file_is_written_completely(cache):
    path = cache.path("naip", "a", ".json")
    assert cache.put(path, b"first") == path
    assert cache.put(path, b"second").read_bytes() == b"second"
    assert names(cache.root / "naip") == [path.name]


def test_a_failed_write_keeps_the_old_file(cache, monkeypatch):
    path = cache.path("naip", "a", ".json")
    cache.put(path, b"first")

    def full(self, content):
        with self.open("wb") as stream:
            stream.write(content[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RasterWriteError) as caught:
        cache.put(path, b"second")
    assert str(caught.value) == (
        f"cannot write {path} (No space left on device); free some space there, or set LANDPRIOR_CACHE to a folder on "
        "another disk"
    )
    assert path.read_bytes() == b"first"
    assert names(cache.root / "naip") == [path.name]


def raising(context, error):
    with context:
        raise error


def test_errors_of_the_disk_give_advice(cache, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(RasterWriteError, match=r"x.zip \(No space left on device\); free some space there$"):
        raising(cache.writing(tmp_path / "x.zip"), full)
    with pytest.raises(RasterWriteError, match=r"x.gpkg \(disk I/O error\); is the disk full\?$"):
        raising(writing_features(tmp_path / "x.gpkg"), DataSourceError("disk\n I/O error"))
    with pytest.raises(SourceBusyError, match=r"^busy$"):  # also an OSError, but not from the disk
        raising(cache.writing(tmp_path), SourceBusyError("busy"))


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RasterWriteError, match=r"^cannot use the cache .*; set LANDPRIOR_CACHE to another folder$"):
        Cache(tmp_path / "file" / "cache").path("naip", "a")


def test_locks_are_kept_apart(cache, tmp_path):
    path = cache.path("naip", "a", ".tif")
    assert cache.lock_path(path) == cache.lock_path(path) != cache.lock_path(tmp_path / "a.tif")
    cache.lock_path(path).touch()
    assert cache.usage() == [Usage(source="naip", entries=0, size=0)]
    cache.put(path, b"content")
    cache.clear()
    assert cache.lock_path(path).exists(), "someone may be waiting for it"


def test_usage(filled, tmp_path):
    assert filled.usage() == [Usage(source="naip", entries=3, size=300), Usage(source="osm", entries=1, size=50)]
    assert Cache(tmp_path / "none").usage() == []


@pytest.mark.parametrize(
    ("sources", "days", "freed", "left"),
    [
        ((), 0, 350, []),
        (("osm",), 0, 50, ["naip"]),
        (("osm", "naip"), 0, 350, []),
        ((), 5, 100, ["naip", "osm"]),
        (("osm",), 5, 0, ["naip", "osm"]),
        ((), 20, 0, ["naip", "osm"]),
    ],
)
def test_clear(filled, sources, days, freed, left):
    before = sum(usage.size for usage in filled.usage())
    assert filled.clear(sources, older_than_days=days) == freed
    assert [usage.source for usage in filled.usage()] == left
    assert sum(usage.size for usage in filled.usage()) == before - freed
    assert not [path for path in filled.root.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_clear_refuses_unknown_sources_and_other_folders(filled, tmp_path):
    with pytest.raises(InputError, match=r"^the cache has nothing from \.\., nlcd; it has: naip, osm$"):
        filled.clear(("nlcd", ".."))
    assert len(filled.usage()) == 2
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    (tmp_path / "mine" / "photos" / "a.jpg").write_bytes(b"a")
    with pytest.raises(InputError, match=r"mine is not a landprior cache \(it has no CACHEDIR.TAG\); nothing was"):
        Cache(tmp_path / "mine").clear()
    assert names(tmp_path / "mine") == ["photos/a.jpg"]
    (tmp_path / "empty").mkdir()
    assert [Cache(tmp_path / name).clear(("osm",)) for name in ("none", "empty")] == [0, 0]


def test_clear_names_the_file_that_it_cannot_delete(filled, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(RasterWriteError, match=r"^cannot delete .*/naip/.* \(Permission denied\)$"):
        filled.clear()


def test_discard(filled):
    (folder,) = filled.root.glob("naip/*.chunks")
    filled.discard(folder)
    filled.discard(folder)
    (file,) = filled.root.glob("osm/*")
    filled.discard(file)
    assert filled.usage() == [Usage(source="naip", entries=1, size=100), Usage(source="osm", entries=0, size=0)]


# -- the commands --------------------------------------------------------------------------------


def test_info(filled, run):
    shown = run("info", LANDPRIOR_CACHE=str(filled.root))
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert [line.split() for line in shown.stdout.splitlines()] == [
        [str(filled.root)],
        ["naip", "3", "files", "0.0", "MB"],
        ["osm", "1", "files", "0.0", "MB"],
        ["all", "4", "files", "0.0", "MB"],
    ]


def test_info_as_json(filled, run, tmp_path):
    shown = run("info", "--json", "--folder", str(filled.root), LANDPRIOR_CACHE=str(tmp_path / "other"))
    assert json.loads(shown.stdout) == {
        "folder": str(filled.root),
        "sources": {"naip": {"files": 3, "bytes": 300}, "osm": {"files": 1, "bytes": 50}},
    }
    empty = run("info", "--json", LANDPRIOR_CACHE=str(tmp_path / "other"))
    assert json.loads(empty.stdout) == {"folder": str(tmp_path / "other"), "sources": {}}


def test_clear_command(filled, run):
    env = {"LANDPRIOR_CACHE": str(filled.root)}
    filled.put(filled.path("nlcd", "a"), bytes(3 * 2**20))
    assert run("clear", "--older-than", "5", **env).stdout == "0.0 MB freed\n"
    assert [(usage.source, usage.size) for usage in filled.usage()] == [("naip", 200), ("nlcd", 3 * 2**20), ("osm", 50)]
    assert run("clear", "--source", "nlcd", "--source", "osm", **env).stdout == "3.0 MB freed\n"
    assert [usage.source for usage in filled.usage()] == ["naip"]
    assert run("clear", **env).stdout == "0.0 MB freed\n"
    assert filled.usage() == []


def test_clear_command_with_mistakes(filled, run, tmp_path):
    wrong = run("clear", "--source", "naipp", LANDPRIOR_CACHE=str(filled.root))
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr == "Error: the cache has nothing from naipp; it has: naip, osm\n"
    assert run("clear", "--older-than", "-1", LANDPRIOR_CACHE=str(filled.root)).exit_code == 2
    (tmp_path / "file").write_text("x")
    assert run("clear", "--folder", str(tmp_path / "file")).exit_code == 2
    assert len(filled.usage()) == 2
