"""Outputs never replace an input, replace all files of a raster together, and are complete or absent."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from landprior.errors import InputError, OutputBusyError, OutputExistsError, RasterWriteError
from landprior.raster.cog import write_raster
from landprior.raster.locks import claiming, clear_leftovers
from landprior.raster.outputs import check_apart, check_folder, check_output, check_outputs, checkpoint_path, replacing
from landprior.raster.remote import archive_path, explain_remote_input
from landprior.raster.sidecars import files_of, same_file


@pytest.fixture
def image(tmp_path, make_grid):
    return write_raster(tmp_path / "image.tif", np.ones((8, 8), np.uint8), make_grid(8, 8))


# -- an output that is an input ---------------------------------------------------------------------


def _same(path):
    return path


def _dotted(path):
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


def _linked(path):
    link = path.with_name("link.tif")
    link.symlink_to(path)
    return link


def _linked_folder(path):
    folder = path.parent.with_name(f"{path.parent.name}-link")
    folder.symlink_to(path.parent)
    return folder / path.name


def _hard(path):
    other = path.with_name("hard.tif")
    os.link(path, other)
    return other


def _relative(path):
    return Path(os.path.relpath(path))


@pytest.mark.parametrize("spell", [_same, _dotted, _linked, _linked_folder, _hard, _relative])
@pytest.mark.parametrize("swapped", [False, True])
def test_an_output_that_is_an_input_is_refused_under_any_name(image, spell, swapped):
    before = image.read_bytes()
    output, source = (spell(image), image) if not swapped else (image, spell(image))
    with pytest.raises(InputError, match="is the input"):
        check_output(output, overwrite=True, inputs=[None, source], kind="raster")
    assert image.read_bytes() == before


def test_part_of_an_input_is_an_input(tmp_path, image):
    inner, outer = tmp_path / "inner.vrt", tmp_path / "outer.vrt"
    text = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    inner.write_text(text.format("image.tif"))
    outer.write_text(text.format("inner.vrt"))
    assert any(same_file(image, part) for part in files_of(outer))
    with pytest.raises(InputError, match=r"is part of the input .*outer\.vrt"):
        check_output(image, overwrite=True, inputs=[outer], kind="raster")
    mask = tmp_path / "image.tif.msk"
    mask.write_bytes(b"x")
    with pytest.raises(InputError, match="is part of the input"):
        check_output(mask, overwrite=True, inputs=[image])


@pytest.mark.parametrize(
    ("source", "output"),
    [("a.shp", "a.dbf"), ("a.shp", "A.SHX"), ("a.gpkg", "a.gpkg-wal"), ("a.tab", "a.map")],
)
def test_all_files_of_a_vector_data_set_are_inputs(tmp_path, source, output):
    (tmp_path / source).write_bytes(b"x")
    (tmp_path / output).write_bytes(b"x")
    with pytest.raises(InputError, match="is part of the input"):
        check_output(tmp_path / output, overwrite=True, inputs=[tmp_path / source])
    check_output(tmp_path / "b.csv", overwrite=True, inputs=[tmp_path / source])


def test_files_in_an_input_folder_and_archives_are_inputs(tmp_path, image):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.tif").write_bytes(b"x")
    with pytest.raises(InputError, match="a file of the input folder"):
        check_output(folder / "a.tif", overwrite=True, inputs=[folder])
    check_output(folder / "new.tif", overwrite=True, inputs=[folder])
    with pytest.raises(InputError, match="give another folder for the results"):
        check_folder(tmp_path / "slides" / ".." / "slides", [folder])
    check_folder(folder / "out", [folder, image])
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.write(image, "in/image.tif")
    path = archive_path(f"/vsizip/{archive}/in/image.tif")
    with rasterio.open(Path(path)) as src:  # as a Path it still points there
        assert src.read(1).tolist() == np.ones((8, 8)).tolist()
    with pytest.raises(InputError, match="is part of the input"):
        check_output(archive, overwrite=True, inputs=[Path(path)])


def test_two_results_cannot_share_a_file(tmp_path):
    with pytest.raises(InputError, match="two results would be the same file"):
        check_outputs([tmp_path / "a.csv", tmp_path / "." / "a.csv"], overwrite=True)
    with pytest.raises(InputError, match="two results would be the same file"):
        check_outputs([tmp_path / "a"], files=[tmp_path / "a"], overwrite=True)
    check_apart([tmp_path / "a.csv", tmp_path / "b.csv"], [])


# -- places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["s3://b/x.tif", "gs://b/x.tif", "az://b/x.tif", "https://h/x.tif", "/vsis3/b/x.tif", "/vsimem/x.tif",
     "/vsizip/a.zip/x.tif", Path("s3://b/x.tif"), Path("https://h/x.tif"), "S3://b/x.tif", "file:///tmp/x.tif"],
)  # fmt: skip
def test_results_are_written_to_local_paths_only(tmp_path, monkeypatch, make_grid, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not a local path"):
        check_output(path, overwrite=True)
    with pytest.raises(InputError, match="is not a local path"):
        write_raster(path, np.ones((8, 8), np.uint8), make_grid(8, 8))
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_not_local_are_recognised():
    for text in ("s3://b/x", "https://h/x", "/vsicurl/https://h/x", "/vsis3/b/x", Path("gs://b/x")):
        assert "download it first" in explain_remote_input(text)
    assert "/vsizip/" in explain_remote_input("zip://a.zip!x.tif")
    for text in ("a.tif", "/vsizip/a.zip/x.tif", "/vsigzip/a.gz", "C:/a.tif", "2021:b/x.tif", "p:1.tif"):
        assert explain_remote_input(text) is None


@pytest.mark.parametrize(
    "text",
    ["https://me:TOKEN@h.test/x.tif", "https://h.test/x.tif?sig=TOKEN", "s3://b/x.tif#TOKEN", "zip://a.zip?TOKEN",
     "/vsicurl/https://me:TOKEN@h.test/x.tif", "/vsicurl?url=https://h.test/x.tif&pw=TOKEN", Path("s3://me:TOKEN@b/x")],
)  # fmt: skip
def test_addresses_in_messages_do_not_show_secrets(text):
    assert "TOKEN" not in explain_remote_input(text)
    with pytest.raises(InputError, match="is not a local path") as caught:
        check_output(text, overwrite=True)
    assert "TOKEN" not in str(caught.value)


def test_a_file_in_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RasterWriteError, match=rf"the folder {tmp_path}/no/where of a\.tif does not exist"):
        check_output(tmp_path / "no" / "where" / "a.tif", overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["map.jpg", "map.vrt", "map.img", "map.gpkg", "map.PNG"])
def test_a_raster_with_the_extension_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in \.tif"):
        check_output(tmp_path / name, overwrite=True, kind="raster")


def test_a_link_and_a_long_name_are_refused(tmp_path):
    (tmp_path / "real.tif").write_text("real")
    (tmp_path / "link.tif").symlink_to("real.tif")
    (tmp_path / "nowhere.tif").symlink_to("missing.tif")
    for name in ("link.tif", "nowhere.tif"):
        with pytest.raises(InputError, match="is a link to"):
            check_output(tmp_path / name, overwrite=True)
    with pytest.raises(RasterWriteError, match="too long"):
        check_output(tmp_path / ("a" * 300), overwrite=True)
    with pytest.raises(RasterWriteError, match="too long"):  # with .aux.xml
        check_output(tmp_path / ("a" * 246 + ".tif"), overwrite=True, kind="raster")


def test_a_checkpoint_works_beside_a_long_name(tmp_path):
    assert checkpoint_path(tmp_path / "map.tif") == tmp_path / ".map.tif.checkpoint"
    found = set()
    for name in ("a" * 255, "a" * 254 + "b", "森" * 85, "é" * 120):
        path = checkpoint_path(tmp_path / name)
        found.add(path.name)
        path.with_name(f"{path.name}-31.safetensors.part").touch()
    assert len(found) == 4


# -- sidecar files ----------------------------------------------------------------------------------

_READ_WITH_IT = ["map.tif.aux.xml", "map.tif.ovr", "map.tif.msk", "map.tfw", "map.wld", "map.TFW", "map.tif.vat.dbf"]


def _dataset(folder, make_grid, scheme):
    """Write a map with every possible sidecar file."""
    from landprior.landcover.mapping.products import write_quicklook, write_style

    path = write_raster(folder / "map.tif", np.full((8, 8), 2, np.uint8), make_grid(8, 8), scheme=scheme)
    write_style(folder / "map.qml", scheme)
    write_quicklook(path, folder / "map.png", scheme)
    for kind in ("probabilities", "confidence"):
        other = folder / f"map_{kind}.tif"
        write_raster(other, np.ones((8, 8), np.float32), make_grid(8, 8), tags={"kind": kind})
        (folder / f"{other.name}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
    for name in _READ_WITH_IT:
        (folder / name).write_text("of the older map")
    return path


def test_a_raster_is_replaced_with_its_sidecar_files(tmp_path, make_grid, enviroatlas):
    path = _dataset(tmp_path, make_grid, enviroatlas)
    (tmp_path / "map_notes.txt").write_text("mine")
    (tmp_path / "map2.tif.ovr").write_text("another's")
    with pytest.raises(OutputExistsError):
        check_output(path, overwrite=False, kind="raster")
    check_output(path, overwrite=True, kind="raster")
    with pytest.raises(ZeroDivisionError), replacing(path, overwrite=True, kind="raster"):
        _ = 1 / 0
    assert (tmp_path / "map.tif.ovr").read_text() == "of the older map"  # nothing is lost when a run fails
    write_raster(path, np.ones((8, 8), np.uint8), make_grid(8, 8), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map2.tif.ovr", "map_notes.txt"]


def test_files_that_the_new_run_writes_beside_it_are_kept(tmp_path, make_grid, enviroatlas):
    path = _dataset(tmp_path, make_grid, enviroatlas)
    keep = [tmp_path / "map_probabilities.tif"]
    write_raster(path, np.ones((8, 8), np.uint8), make_grid(8, 8), scheme=enviroatlas, overwrite=True, keep=keep)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "map_probabilities.tif"]
    assert "older map" not in (tmp_path / "map.tif.aux.xml").read_text()


@pytest.mark.parametrize("name", [*_READ_WITH_IT, "map_probabilities.tif", "map.qml"])
def test_leftovers_of_an_older_raster_are_not_taken_for_the_new_one(tmp_path, make_grid, enviroatlas, name):
    path = _dataset(tmp_path, make_grid, enviroatlas)
    for other in tmp_path.iterdir():
        if other.name != name:
            other.unlink()
    with pytest.raises(OutputExistsError, match=r"is left over from an older map\.tif"):
        check_output(path, overwrite=False, kind="raster")
    check_output(path, overwrite=True, kind="raster")
    write_raster(path, np.ones((8, 8), np.uint8), make_grid(8, 8), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("name", ["map.qml", "map.png", "map_probabilities.tif"])
def test_a_file_from_elsewhere_beside_a_map_is_neither_removed_nor_used(tmp_path, image, name):
    path = image.rename(tmp_path / "map.tif")
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match="landprior did not write it; move it away"):
        check_output(path, overwrite=True, kind="raster")
    check_output(path, overwrite=True, kind="raster", inputs=[tmp_path / name])  # an input is not a product
    path.unlink()
    check_output(path, overwrite=False, kind="raster")  # without a map there is nothing to confuse it with
    assert (tmp_path / name).read_text() == "mine"


def test_a_sidecar_of_the_older_map_that_is_an_input_is_not_removed(tmp_path, make_grid, enviroatlas):
    path = _dataset(tmp_path, make_grid, enviroatlas)
    with pytest.raises(InputError, match="is the input"):
        check_output(path, overwrite=True, kind="raster", inputs=[tmp_path / "map_probabilities.tif"])


# -- complete or absent -----------------------------------------------------------------------------

_KILLED = """
import os, sys, time
from landprior.raster.locks import claiming
from landprior.raster.outputs import replacing
with claiming(sys.argv[1]), replacing(sys.argv[1], overwrite=True) as temporary:
    temporary.write_text("half")
    print("now", flush=True)
    time.sleep(60)
"""


def test_files_of_a_killed_process_are_removed_and_those_of_a_running_one_kept(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("whole")
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        assert len(list(tmp_path.glob(".*"))) == 2  # its folder and its lock
        clear_leftovers(tmp_path)
        assert len(list(tmp_path.glob(".*"))) == 2
        with pytest.raises(OutputBusyError, match="another process is writing"), claiming(target):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.glob(".*"))) == 2
    assert target.read_text() == "whole"
    with claiming(target), replacing(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.csv": "new"}


def test_the_file_mode_follows_the_umask_which_is_not_changed(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.csv", overwrite=False) as temporary:
            temporary.write_text("x")
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o640


def test_a_result_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    sync, move = os.fsync, Path.replace

    def watched_sync(descriptor):
        calls.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def watched_move(self, target):
        calls.append("rename")
        return move(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_move)
    with replacing(tmp_path / "a.csv", overwrite=False) as temporary:
        temporary.write_text("x")
    assert calls == [str(temporary), "rename", str(tmp_path)]
