"""Remote rasters read by ranges: chunks, versions, damage, interruptions."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio

from landprior.errors import (
    InputError,
    OfflineError,
    RasterReadError,
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.http.origins import Remote
from landprior.sources.http.ranges import CHUNK, Chunks, RangeFile, open_remote

from .shared import DATA, DATED, QUICK, SOURCE, files_of, ranges, read_all, served, speaking, write_noise


def test_a_remote_raster_reads_like_a_local_one(network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src, rasterio.open(image) as local:
        assert (src.crs, src.transform, src.shape, src.count) == (local.crs, local.transform, local.shape, 4)
        np.testing.assert_array_equal(src.read(), local.read())
    asked = ranges(server)
    assert asked == sorted(asked)
    assert [first for first, _ in asked] == [0, *(last + 1 for _, last in asked[:-1])]
    assert asked[-1][1] >= image.stat().st_size - 1
    # sequential reads, so the requests grow
    assert [(last + 1 - first) // CHUNK for first, last in asked] == [1, 1, 2, 4, 1]


def test_a_file_can_have_any_name(network, faulty_server, image):
    server = faulty_server(routes={"/a b:c!.tif": served(image.read_bytes(), {"ETag": '"v1"'})})
    remote = Remote(f"{server.url}/a%20b:c!.tif?x=1/2.tif")
    with open_remote(network, remote, SOURCE) as src, rasterio.open(image) as local:
        np.testing.assert_array_equal(src.read(1), local.read(1))


def test_only_chunks_that_are_read_are_fetched(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    with open_remote(network, remote, SOURCE) as src, rasterio.open(image) as local:
        window = ((900, 1000), (900, 1000))
        np.testing.assert_array_equal(src.read(window=window), local.read(window=window))
    fetched = sum(last + 1 - first for first, last in ranges(server))
    assert fetched <= 4 * CHUNK < image.stat().st_size // 2
    assert len(server.requests) <= 4
    (usage,) = cache.usage()
    assert usage.size < 4 * CHUNK + 1000


def test_chunks_are_reused(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    window = ((0, 100), (0, 100))
    with open_remote(network, remote, SOURCE) as src:
        values = src.read(window=window)
    before = len(server.requests)
    for again in (Network(cache, policy=QUICK), Network(cache, offline=True)):
        with open_remote(again, remote, SOURCE) as src:
            np.testing.assert_array_equal(src.read(window=window), values)
    assert len(server.requests) == before
    with pytest.raises(OfflineError, match=rf"^The source: {server.url}/image.tif is not in the cache, and --offline"):
        read_all(Network(cache, offline=True), remote)
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(image).read())
    asked = [number for span in ranges(server) for number in range(span[0] // CHUNK, (span[1] + 1) // CHUNK)]
    assert len(asked) == len(set(asked))


def test_offline_with_an_empty_cache(cache, faulty_server, rasters):
    server = faulty_server(rasters)
    with pytest.raises(OfflineError, match=r"image.tif is not in the cache"):
        read_all(Network(cache, offline=True), Remote(f"{server.url}/image.tif?sig=secret"))
    assert server.requests == []


WINDOW = ((0, 100), (0, 100))


@pytest.fixture
def changing(tmp_path, faulty_server):
    """Return a factory of a served raster and a function that replaces it with another version."""

    def make(**options):
        path = tmp_path / "served" / "image.tif"
        path.parent.mkdir()
        write_noise(path, seed=0, **options)
        server = faulty_server(path.parent)
        return server, Remote(f"{server.url}/image.tif"), lambda: write_noise(path, seed=1, **options)

    return make


@pytest.mark.parametrize("options", [{"compress": None}, {}], ids=["same length", "different length"])
def test_two_versions_are_not_mixed_while_a_file_is_read(cache, network, changing, tmp_path, options):
    _, remote, change = changing(**options)
    expected = (
        r"^The source: .*/image.tif has changed since the download began, .*deleted; run the same command again; give"
    )
    with pytest.raises(SourceError, match=expected), open_remote(network, remote, SOURCE) as src:  # noqa: PT012
        src.read(window=WINDOW)
        change()
        src.read()
    assert files_of(cache.root) == ["CACHEDIR.TAG"]
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(tmp_path / "served" / "image.tif").read())


@pytest.mark.parametrize("options", [{"compress": None}, {}], ids=["same length", "different length"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_two_versions_are_not_mixed_between_runs(cache, network, changing, tmp_path, options, attempts):
    _, remote, change = changing(**options)
    with open_remote(network, remote, SOURCE) as src:
        src.read(window=WINDOW)
    change()
    later = Network(cache, policy=RetryPolicy(attempts=attempts, first_wait=0.01))
    with pytest.raises(SourceError, match="has changed since the download began"):
        read_all(later, remote)
    np.testing.assert_array_equal(read_all(later, remote), rasterio.open(tmp_path / "served" / "image.tif").read())


@pytest.mark.parametrize("validators", [({"ETag": 'W/"v1"'}, {"ETag": 'W/"v2"'}), (DATED, {"Last-Modified": "now"})])
def test_versions_are_recognised_by_validators(network, faulty_server, image, validators):
    content = image.read_bytes()
    server = faulty_server(routes={"/a.tif": served(content, validators[0])})
    remote = Remote(f"{server.url}/a.tif")
    with pytest.raises(SourceError, match="has changed since"), open_remote(network, remote, SOURCE) as src:  # noqa: PT012
        src.read(window=WINDOW)
        server.routes["/a.tif"] = served(content, validators[1])
        src.read()


def test_a_single_wrong_response_does_not_lose_the_chunks(network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src, rasterio.open(image) as local:
        src.read(window=WINDOW)
        before = len(server.requests)
        server.fail("wrong-length")
        np.testing.assert_array_equal(src.read(), local.read())
    asked = ranges(server)
    assert asked[before] == asked[before + 1]
    assert len(set(asked)) == len(asked) - 1


def test_two_processes_do_not_mix_versions(cache, network, changing, tmp_path):
    server, remote, change = changing(compress=None)
    with pytest.raises(SourceError, match="has changed since"), open_remote(network, remote, SOURCE) as src:  # noqa: PT012
        src.read(window=WINDOW)
        change()
        other = Network(cache, policy=QUICK, refresh=True)  # with separate locks, like another process
        np.testing.assert_array_equal(read_all(other, remote), rasterio.open(tmp_path / "served" / "image.tif").read())
        before = len(server.requests)
        src.read()
    assert len(server.requests) == before + 2  # it did not use the other's chunks


def test_a_server_without_ranges_is_read_once(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    server.fail("ignore-range", times=None)
    np.testing.assert_array_equal(read_all(network, Remote(f"{server.url}/image.tif")), rasterio.open(image).read())
    assert len(server.requests) == 1
    assert len(list(cache.root.glob("source/*/*/*"))) == -(-image.stat().st_size // CHUNK)


def test_a_server_without_a_length_is_read_once(network, image):
    content = image.read_bytes()
    with speaking(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + content) as url:
        np.testing.assert_array_equal(read_all(network, Remote(f"{url}/image.tif")), rasterio.open(image).read())


def test_complete_chunks_of_a_broken_response_are_kept(network, faulty_server, rasters, image):
    server, content = faulty_server(rasters), image.read_bytes()
    chunks = Chunks(network, Remote(f"{server.url}/image.tif"), SOURCE)
    for number, breaks in ((0, 0), (1, 0), (2, 1), (4, 2)):
        server.faults += ["truncate"] * breaks
        start = number * CHUNK
        assert chunks.read(start, start + 99) == content[start : start + 99]
    # two requested and one received; four and two; two and one
    asked = [(first // CHUNK, (last + 1) // CHUNK) for first, last in ranges(server)]
    assert asked == [(0, 1), (1, 2), (2, 4), (3, 4), (4, 8), (6, 8), (7, 8)]
    assert chunks.read(0, 8 * CHUNK) == content[: 8 * CHUNK]
    assert len(server.requests) == 7


def test_ranges_other_than_those_requested_are_refused(network, faulty_server, image):
    content = image.read_bytes()
    good = served(content, {"ETag": '"v1"'})

    def moved(request):
        status, headers, _ = good(request)
        return status, headers | {"Content-Range": f"bytes 9-99/{len(content)}"}, content[9:100]

    def unsaid(request):
        status, headers, body = good(request)
        return status, {"ETag": headers["ETag"]}, body

    bad = [moved, unsaid]

    def route(request):
        return (bad.pop() if bad else good)(request)

    server = faulty_server(routes={"/a.tif": route})
    np.testing.assert_array_equal(read_all(network, Remote(f"{server.url}/a.tif")), rasterio.open(image).read())
    assert ranges(server)[:3] == [(0, CHUNK - 1)] * 3


def test_damaged_files_are_deleted_from_the_cache(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    server.fail("garbage")
    with pytest.raises(SourceError) as caught:
        read_all(network, remote)
    assert str(caught.value) == (
        f"The source: {remote.href} is damaged (image.tif not recognized as being in a supported file format) "
        "and was deleted; give a file of your own"
    )
    assert files_of(cache.root) == ["CACHEDIR.TAG"]
    with (  # noqa: PT012
        pytest.raises(SourceError, match=r"is damaged \(ZIPDecode:Decoding error.*\) and was deleted"),
        open_remote(network, remote, SOURCE) as src,
    ):
        server.fail("garbage")
        src.read()
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(image).read())


def test_errors_of_the_caller_pass_through_unchanged(cache, network, faulty_server, rasters):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    msg = "not what we want"
    with (  # noqa: PT012
        pytest.raises(RasterReadError, match=rf"^{msg}$"),
        open_remote(network, remote, SOURCE) as src,
    ):
        src.read(1, window=WINDOW)
        raise RasterReadError(msg)
    assert cache.usage()[0].entries > 1


def test_a_failed_read_is_reported_even_if_it_was_ignored(network, faulty_server, rasters):
    server = faulty_server(rasters)

    def read_and(then):
        with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src:
            server.fail("404", times=None)
            with pytest.raises(rasterio.RasterioIOError):
                src.read()
            then()

    def complain():
        msg = "some consequence"
        raise InputError(msg)

    for then in (lambda: None, complain):
        with pytest.raises(SourceError, match=r"image.tif answered 404 Not Found; give a file of your own$"):
            read_and(then)
        server.faults.clear()


def test_an_interruption_within_gdal_is_not_lost(network, faulty_server, rasters, monkeypatch):
    server = faulty_server(rasters)
    with pytest.raises(KeyboardInterrupt), open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src:  # noqa: PT012
        monkeypatch.setattr(network, "open", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        src.read()


def test_seek_and_tell(network, faulty_server, folder):
    server = faulty_server(folder)
    with RangeFile(Chunks(network, Remote(f"{server.url}/data.bin"), SOURCE)) as file:
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert (file.seek(-10, io.SEEK_END), file.tell(), file.read()) == (599_990, 599_990, DATA[-10:])
        assert (file.read(5), file.read()) == (b"", b"")
        assert (file.seek(CHUNK - 2), file.read(4), file.tell()) == (CHUNK - 2, DATA[CHUNK - 2 : CHUNK + 2], CHUNK + 2)
        assert (file.seek(-4, io.SEEK_CUR), file.read(3)) == (CHUNK - 2, DATA[CHUNK - 2 : CHUNK + 1])
        assert (file.seek(10**9), file.read(1)) == (10**9, b"")
        assert (file.seek(0), file.read(0), file.read(-1)) == (0, b"", DATA)
    assert ranges(server) == [(0, CHUNK - 1), (CHUNK, 2 * CHUNK - 1)]


def test_memory_for_chunks_is_limited(network, faulty_server, tmp_path):
    (tmp_path / "long.bin").write_bytes(bytes(40 * CHUNK))
    server = faulty_server(tmp_path)
    chunks = Chunks(network, Remote(f"{server.url}/long.bin"), SOURCE)
    for start in range(0, 40 * CHUNK, CHUNK):
        assert chunks.read(start, start + 10) == bytes(10)
    assert len(chunks._recent) == 32


def test_threads_that_read_one_file_fetch_it_once(network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    expected = rasterio.open(image).read()
    chunks = Chunks(network, remote, SOURCE)
    content = image.read_bytes()

    def read(number):
        if number % 2:
            return np.array_equal(read_all(network, remote), expected)
        spots = np.random.default_rng(number).integers(len(content) - 9, size=60).tolist()
        return all(chunks.read(spot, spot + 9) == content[spot : spot + 9] for spot in spots)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))
    asked = [n for first, last in ranges(server) for n in range(first // CHUNK, (last + 1) // CHUNK)]
    assert sorted(asked) == list(range(-(-len(content) // CHUNK)))


def test_two_files_with_the_same_name_are_not_confused(network, faulty_server, rasters):
    server = faulty_server(rasters)
    names = ["image.tif", "other/image.tif"] * 3

    def read(name):
        return np.array_equal(read_all(network, Remote(f"{server.url}/{name}")), rasterio.open(rasters / name).read())

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(read, names))
    with (
        open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as first,
        open_remote(network, Remote(f"{server.url}/other/image.tif"), SOURCE) as second,
    ):
        assert not np.array_equal(first.read(1), second.read(1))


def test_the_cache_can_be_cleared_during_a_read(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src, rasterio.open(image) as local:
        src.read(window=WINDOW)
        cache.clear()
        np.testing.assert_array_equal(src.read(), local.read())


def test_truncated_chunks_are_fetched_again(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    read_all(network, remote)
    before = len(server.requests)
    for path in list(cache.root.glob("source/*/*/*"))[:2]:
        path.write_bytes(path.read_bytes()[:100])
    (meta,) = cache.root.glob("source/*/meta.json")
    assert json.loads(meta.read_text())["size"] == image.stat().st_size
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(image).read())
    assert len(server.requests) == before + 2
    meta.write_text("{")
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(image).read())
    assert len(server.requests) == before + 3


def test_refresh_fetches_once_more_and_keeps_the_old_chunks_until_then(cache, network, faulty_server, rasters):
    server = faulty_server(rasters)
    remote = Remote(f"{server.url}/image.tif")
    read_all(network, remote)
    kept, before = files_of(cache.root), len(server.requests)
    anew = Network(cache, policy=QUICK, refresh=True)
    server.fail("503", times=3)
    with pytest.raises(SourceBusyError):
        read_all(anew, remote)
    assert files_of(cache.root) == kept
    for _ in range(2):
        read_all(anew, remote)
    assert len(server.requests) == before + 3 + before
