"""Checks of inputs before they are opened: pipes, devices, names, and bytes that are not text."""

import os
import socket

import numpy as np
import pytest

from landprior.errors import ConfigError, InputError, LandpriorError, MissingInputError
from landprior.inputs import check_file, check_target, read_array, read_arrays, read_text


def test_a_file_passes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    assert check_file(str(path)) == path


def test_a_pipe_without_a_writer_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")  # opening it would block for ever
    with pytest.raises(InputError, match=r"pipe\.csv is a pipe, not a file"):
        read_text(tmp_path / "pipe.csv")


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")
        with pytest.raises(InputError, match="s is a socket"):
            check_file("s")


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "/dev/full"])
def test_a_device_is_refused(name):
    with pytest.raises(InputError, match=f"{name} is a device"):
        read_text(name)


def test_folders_missing_files_and_empty_files_are_refused(tmp_path):
    (tmp_path / "none").touch()
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(MissingInputError, match="no such file: "):
        check_file(tmp_path / "nothing")
    with pytest.raises(MissingInputError, match="no such file: "):
        check_file(tmp_path / "none" / "under-a-file")
    with pytest.raises(InputError, match="none is empty"):
        read_text(tmp_path / "none")
    assert read_text(tmp_path / "none", empty=True) == ""


@pytest.mark.parametrize("name", ["x" * 300, "nul\0.csv"])
def test_impossible_names_give_one_short_line(tmp_path, name):
    with pytest.raises(InputError, match="cannot be opened") as caught:
        check_file(tmp_path / name)
    assert len(str(caught.value)) < 200


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(InputError, match="cannot be opened"):
        check_file(tmp_path / "a")


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(InputError, match=r"a\.csv cannot be read \(permission denied\)"):
        read_text(path)


def test_a_file_that_fails_while_it_is_read():
    with pytest.raises(LandpriorError, match="/proc/self/mem cannot be read"):
        read_text("/proc/self/mem")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a,ä\nb".encode(), "a,ä\nb"),
        ("a,ä\nb".encode("utf-8-sig"), "a,ä\nb"),
        ("a,ä".encode("utf-16"), "a,ä"),
        (b"\xfe\xff" + "a,ä".encode("utf-16-be"), "a,ä"),
    ],
)
def test_readable_texts(tmp_path, content, text):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("name\nfor\xeat\n".encode("latin-1"), "line 2: the byte 0xea is not UTF-8"),
        (b"\xef\xbb\xbfa\n\xff", "line 2: the byte 0xff is not UTF-8"),
        (b"a\nb\0c", "is not a text file"),
        (b"\xff\xfea", "starts as UTF-16 but is not"),
    ],
)
def test_bytes_that_are_not_text_are_reported_with_their_line(tmp_path, content, place):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=place) as caught:
        read_text(tmp_path / "a.yaml", error=ConfigError)
    assert str(tmp_path / "a.yaml") in str(caught.value)


def test_results_are_not_written_to_devices_or_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(InputError, match="/dev/null is a device; give the path of a file"):
        check_target("/dev/null")
    with pytest.raises(InputError, match=r"pipe\.tif is a pipe"):
        check_target(tmp_path / "pipe.tif")
    check_target(tmp_path / "new.tif")


def test_a_device_is_not_replaced_by_a_raster(make_raster):
    with pytest.raises(InputError, match="/dev/null is a device"):
        make_raster("/dev/null", [[1]], overwrite=True)


@pytest.mark.parametrize("size", [100, 240, 247])
def test_a_raster_with_a_long_name_is_written_and_too_long_a_name_is_an_error(make_raster, tmp_path, size):
    path = make_raster(f"{'x' * (size - 4)}.tif", [[1, 2]])
    assert len(path.name) == size
    with pytest.raises(LandpriorError, match="too long"):
        make_raster(f"{'x' * 260}.tif", [[1, 2]])
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def _archive(path, *, flag=0, method=0, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, a=np.arange(400), b=np.ones(3))
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")  # the first entry of the directory
    content[at + 8] |= flag
    content[at + 10] = method or content[at + 10]
    path.write_bytes(bytes(content))
    return path


def _cut(path):
    path.write_bytes(path.read_bytes()[:500])
    return path


def _changed(path, at, value):
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: _archive(path, flag=1), "encrypted"),
        (lambda path: _archive(path, method=97), "compression"),
        (lambda path: _archive(path, method=14), ""),
        (lambda path: _cut(_archive(path)), ""),
        (lambda path: _changed(_archive(path, compressed=True), 80, 0xFF), ""),
        (lambda path: path.write_bytes(b"x") and path, ""),
        (lambda path: np.savez(path, a=np.array([object()], dtype=object)) or path, "allow_pickle"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x0a\x00{'a': 1}  ") and path, ""),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x0a\x00{'a': ((   ") and path, ""),
    ],
)
def test_damaged_arrays_give_one_line(tmp_path, make, reason):
    path = make(tmp_path / "a.npz")
    for read in (read_arrays, read_array):
        with pytest.raises(InputError, match=rf"a\.npz is no good \(.*{reason}"):
            read(path, trouble="is no good")


def test_arrays_are_read_and_one_array_is_not_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.ones(2))
    np.save(tmp_path / "a.npy", np.arange(3))
    assert {name: list(values) for name, values in read_arrays(tmp_path / "a.npz", trouble="").items()} == {
        "a": [0, 1, 2],
        "b": [1, 1],
    }
    assert list(read_array(tmp_path / "a.npy", trouble="")) == [0, 1, 2]
    with pytest.raises(InputError, match=r"is no \.npz \(it is a single array"):
        read_arrays(tmp_path / "a.npy", trouble="is no .npz")
    with pytest.raises(InputError, match=r"is no \.npy \(it is an archive"):
        read_array(tmp_path / "a.npz", trouble="is no .npy")
    with pytest.raises(MissingInputError):
        read_array(tmp_path / "b.npy", trouble="")
