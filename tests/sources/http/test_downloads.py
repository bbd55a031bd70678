"""Downloads of whole files: resuming, checking, fetching only once."""

from __future__ import annotations

import gzip
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from landprior.errors import (
    OfflineError,
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Remote

from .shared import DATA, DATED, QUICK, SOURCE, files_of, ranges, served


def test_a_file_is_downloaded_once(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    paths = {download(network, remote, SOURCE, suffix=".bin") for _ in range(3)}
    (path,) = paths
    assert path.read_bytes() == DATA
    assert files_of(cache.root) == ["CACHEDIR.TAG", f"source/{path.name}"]
    assert ranges(server) == [None]
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_download_resumes_where_it_broke_off(network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate", times=2)
    path = download(network, Remote(f"{server.url}/data.bin"), SOURCE)
    assert path.read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None), (450_000, None)]
    assert server.requests[1].headers["If-Range"].startswith('"')


def test_a_download_resumes_in_the_next_run(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate")
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceBusyError, match=r"broke off after 300000 bytes .*\(tried once\); run the same command"):
        download(Network(cache, policy=RetryPolicy(attempts=1)), remote, SOURCE)
    assert [path.suffix for path in sorted(cache.root.glob("source/*"))] == [".part", ".version"]
    anew = Network(cache, policy=QUICK, refresh=True)  # a partial download is resumed even with refresh
    assert download(anew, remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None)]
    assert [path.suffix for path in cache.root.glob("source/*")] == [""]


def test_a_changed_file_is_downloaded_from_the_start(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate")
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceBusyError):
        download(Network(cache, policy=RetryPolicy(attempts=1)), remote, SOURCE)
    (folder / "data.bin").write_bytes(DATA[::-1])
    assert download(network, remote, SOURCE).read_bytes() == DATA[::-1]
    assert ranges(server) == [None, (300_000, None)]


@pytest.mark.parametrize(
    ("validators", "if_range"),
    [
        ({"ETag": '"v1"'}, '"v1"'),
        (DATED, DATED["Last-Modified"]),
        ({"ETag": 'W/"v1"'} | DATED, DATED["Last-Modified"]),
        ({"ETag": 'W/"v1"'}, None),
        ({}, None),
    ],
)
def test_only_a_file_with_a_strong_validator_is_resumed(network, faulty_server, validators, if_range):
    server = faulty_server(routes={"/a": served(DATA, validators)})
    server.fail("truncate")
    assert download(network, Remote(f"{server.url}/a"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None) if if_range else None]
    assert server.requests[1].headers.get("If-Range") == if_range


def test_versions_are_not_mixed_by_a_server_without_if_range(network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'})})
    server.fail("truncate")

    def then(request):
        server.routes["/a"] = served(DATA[::-1], {"ETag": '"v2"'}, if_range=False)
        return served(DATA, {"ETag": '"v1"'})(request)

    server.routes["/a"] = then
    assert download(network, Remote(f"{server.url}/a"), SOURCE).read_bytes() == DATA[::-1]
    assert ranges(server) == [None, (300_000, None), None]


def begin_download(cache, remote, content, version):
    """Put a partial download into the cache, like an earlier run."""
    path = cache.path(SOURCE.folder, remote.href)
    path.with_name(f"{path.name}.part").write_bytes(content)
    if version is not None:
        path.with_name(f"{path.name}.part.version").write_text(version)


def test_a_complete_part_is_used(cache, network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'})})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, DATA, '"v1"')
    assert download(network, remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [(600_000, None)]


@pytest.mark.parametrize(
    ("part", "version", "asked"),
    [
        (DATA + b"more", '"v1"', [(600_004, None), None]),  # longer than the file
        (DATA[:9], None, [None]),  # without a version
        (DATA[:9], "", [None]),  # written on a full disk
        (b"", '"v1"', [None]),
    ],
)
def test_an_unusable_part_is_not_used(cache, network, faulty_server, part, version, asked):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'}, if_range=False)})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, part, version)
    assert download(network, remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == asked


def test_a_part_is_not_resumed_if_the_server_has_no_version(cache, network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {})})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, DATA[::-1][:9], '"v1"')
    server.fail("truncate")
    assert download(network, remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [(9, None), None]


def test_without_ranges_a_download_starts_over(network, faulty_server, folder):
    server = faulty_server(folder)
    server.faults += ["truncate", "ignore-range"]
    assert download(network, Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None)]


def test_an_empty_response_does_not_lose_the_part(network, faulty_server, folder):
    server = faulty_server(folder)
    server.faults += ["truncate", "empty"]
    assert download(network, Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None), (300_000, None)]


def test_retries_continue_while_a_long_file_grows(cache, faulty_server, folder):
    content = np.random.default_rng(1).bytes(8 * 2**20)
    (folder / "long.bin").write_bytes(content)
    server = faulty_server(folder)
    server.fail("truncate", times=None)
    network = Network(cache, policy=QUICK)
    remote = Remote(f"{server.url}/long.bin")
    with pytest.raises(SourceBusyError, match="tried 3 times"):
        download(network, remote, SOURCE)
    mib = 2**20
    assert ranges(server) == [None, *((part * mib // 4, None) for part in (16, 24, 28, 30))]
    server.faults.clear()
    assert download(network, remote, SOURCE).read_bytes() == content
    assert ranges(server)[5:] == [(31 * mib // 4, None)]


def test_a_checksum_is_checked(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceError) as caught:
        download(network, remote, SOURCE, md5="0" * 32)
    assert str(caught.value) == (
        f"The source: {server.url}/data.bin has the wrong checksum and was deleted; give a file of your own"
    )
    assert len(server.requests) == 2  # tried once more, in case it was an accident
    assert files_of(cache.root) == ["CACHEDIR.TAG"]
    server.fail("garbage")
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    assert download(network, remote, SOURCE, md5=md5).read_bytes() == DATA
    assert len(server.requests) == 4


def test_a_file_can_be_written_elsewhere(cache, network, faulty_server, folder, tmp_path):
    server = faulty_server(folder)
    target = tmp_path / "elsewhere" / "data.zip"
    target.parent.mkdir()
    assert download(network, Remote(f"{server.url}/data.bin"), SOURCE, path=target) == target
    assert [path.name for path in target.parent.iterdir()] == ["data.zip"]
    assert target.read_bytes() == DATA
    assert cache.usage() == []


def test_a_compressed_file_is_kept_compressed(network, faulty_server):
    packed = gzip.compress(DATA)
    server = faulty_server(routes={"/a.gz": served(packed, {"ETag": '"v1"', "Content-Encoding": "gzip"})})
    server.fail("truncate")
    assert download(network, Remote(f"{server.url}/a.gz"), SOURCE).read_bytes() == packed
    assert ranges(server) == [None, (len(packed) // 2, None)]


def test_refresh_keeps_the_old_file_until_the_new_one_is_complete(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    path = download(network, remote, SOURCE)
    (folder / "data.bin").write_bytes(b"new")
    anew = Network(cache, policy=QUICK, refresh=True)
    server.fail("503", times=3)
    with pytest.raises(SourceBusyError):
        download(anew, remote, SOURCE)
    assert path.read_bytes() == DATA
    assert [download(anew, remote, SOURCE).read_bytes() for _ in range(2)] == [b"new"] * 2
    assert len(server.requests) == 1 + 3 + 1


def test_two_threads_fetch_the_same_file_once(cache, faulty_server, folder, caplog):
    server = faulty_server(folder)
    server.routes["/slow"] = lambda _: (time.sleep(0.5), server.routes.clear(), (200, {}, DATA))[2]
    caplog.set_level(logging.INFO, logger="landprior")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(download, Network(cache, policy=QUICK), Remote(f"{server.url}/slow"), SOURCE) for _ in range(2)
        ]
        assert [job.result().read_bytes() for job in jobs] == [DATA, DATA]
    assert len(server.requests) == 1
    assert sum("is being fetched by another process; waiting" in message for message in caplog.messages) == 1


def test_a_whole_file_offline(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    download(network, Remote(f"{server.url}/data.bin"), SOURCE)
    offline = Network(cache, offline=True)
    assert download(offline, Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    with pytest.raises(OfflineError, match=r"^The source: http://127.0.0.1:\d+/other is not in the cache"):
        download(offline, Remote(f"{server.url}/other?sig=secret"), SOURCE)
    assert len(server.requests) == 1
