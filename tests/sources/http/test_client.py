"""Retries, time limits, resume, ranges, offline mode: the network by itself, against servers on loopback."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import io
import json
import logging
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
import requests
from affine import Affine
from requests.structures import CaseInsensitiveDict

from landprior.addresses import redact
from landprior.errors import (
    FetchInterruptedError,
    InputError,
    OfflineError,
    RasterReadError,
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import DAY, USER_AGENT, Network, Origin, Remote, RetryPolicy
from landprior.sources.http.ranges import CHUNK, Chunks, RangeFile, open_remote
from landprior.sources.http.responses import check_status, retry_after, translate

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=5.0, connect_timeout=2.0, read_timeout=1.0, grace=0.3)
SOURCE = Origin(name="The source", folder="source", remedy="give a file of your own")
DATA = np.random.default_rng(5).bytes(600_000)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def network(cache):
    return Network(cache, policy=QUICK)


@pytest.fixture
def waits(network, monkeypatch):
    """The waits of ``network``, which are noted and left out."""
    noted = []
    monkeypatch.setattr(network, "pause", noted.append)
    return noted


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """A folder with ``image.tif``, 4 bands of noise that do not shrink, about 9 chunks, and another in ``other/``."""
    folder = tmp_path_factory.mktemp("rasters")
    for number, path in enumerate((folder / "image.tif", folder / "other" / "image.tif")):
        path.parent.mkdir(exist_ok=True)
        write_noise(path, seed=number)
    return folder


def write_noise(path, *, seed, size=1024, **options):
    values = np.random.default_rng(seed).integers(0, 255, (4, size, size), dtype=np.uint8)
    profile = {"width": size, "height": size, "count": 4, "dtype": "uint8", "crs": "EPSG:26917", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "transform": Affine(1, 0, 6e5, 0, -1, 4e6)}
    with rasterio.open(path, "w", driver="GTiff", **(profile | options)) as out:
        out.write(values)


@pytest.fixture
def image(rasters):
    return rasters / "image.tif"


@pytest.fixture
def folder(tmp_path):
    """A folder to serve, with ``data.bin``."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "data.bin").write_bytes(DATA)
    return served


def ranges(server):
    """What was asked for of files: (first, last) of each request, last None if open, None for the whole."""
    found = (re.fullmatch(r"bytes=(\d+)-(\d*)", r.headers.get("Range", "")) for r in server.requests)
    return [None if f is None else (int(f[1]), int(f[2]) if f[2] else None) for f in found]


@contextmanager
def speaking(answer=b"", *, times=1):
    """Give the address of a server that sends these very bytes, or nothing, and then waits for the client."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            for _ in range(times):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if answer:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def files_of(folder):
    """What a folder has in the end; locks are no content."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)


# -- patience ------------------------------------------------------------------------------------


def test_waits_grow_to_a_cap_and_vary():
    policy = RetryPolicy(first_wait=2.0, longest_wait=30.0)
    for attempt, longest in enumerate((2.0, 4.0, 8.0, 16.0, 30.0, 30.0), start=1):
        waits = [policy.wait(attempt) for _ in range(300)]
        assert 0.5 * longest <= min(waits) < 0.55 * longest
        assert 0.95 * longest < max(waits) <= longest


def failing(*failures):
    """Return an action that raises these one by one, then returns 7."""
    left = list(failures)

    def action():
        if left:
            raise left.pop(0)
        return 7

    return action


def test_what_is_busy_is_asked_again(network, waits, caplog):
    caplog.set_level(logging.INFO, logger="landprior")
    assert network.call(SOURCE, failing(SourceBusyError("it is busy"), requests.ConnectionError())) == 7
    assert 0.005 <= waits[0] <= 0.01 <= waits[1] <= 0.02
    assert "The source: it is busy; trying again in 0.0 s (1 of 2)" in caplog.messages


def test_patience_ends_with_source_cause_and_remedy(network, waits):
    with pytest.raises(SourceBusyError) as caught:
        network.call(SOURCE, failing(*[SourceBusyError("it is busy")] * 9))
    assert str(caught.value) == (
        "The source: it is busy (tried 3 times); run the same command again later, or give a file of your own"
    )
    assert len(waits) == 2
    network.policy = RetryPolicy(attempts=1)
    with pytest.raises(SourceBusyError, match=r"\(tried once\)"):
        network.call(SOURCE, failing(SourceBusyError("it is busy")))


def test_what_cannot_help_is_not_tried(network, waits):
    with pytest.raises(SourceError) as caught:
        network.call(SOURCE, failing(SourceError("it says no")))
    assert str(caught.value) == "The source: it says no; give a file of your own"
    with pytest.raises(InputError, match=r"^not ours$"):
        network.call(SOURCE, failing(InputError("not ours")))
    assert waits == []


def test_an_error_is_said_once(network, waits):
    with pytest.raises(SourceError) as caught:
        network.call(SOURCE, lambda: network.call(SOURCE, failing(SourceError("it says no"))))
    assert str(caught.value) == "The source: it says no; give a file of your own"
    busy = failing(*[SourceBusyError("it is busy")] * 9)
    with pytest.raises(SourceBusyError, match=r"^The source: it is busy \(tried 3 times\); run"):
        network.call(SOURCE, lambda: network.call(SOURCE, busy))
    assert len(waits) == 2


def test_the_wait_that_is_asked_for_is_the_least(network, waits):
    assert network.call(SOURCE, failing(SourceBusyError("busy", wait=3.0), SourceBusyError("busy", wait=0.0))) == 7
    assert 3.005 <= waits[0] <= 3.01
    assert 0.005 <= waits[1] <= 0.01


def test_too_long_a_wait_is_said_and_not_waited_for(network, waits):
    with pytest.raises(SourceBusyError, match=r"busy \(it asks to wait 3600 s\); run the same command again later"):
        network.call(SOURCE, failing(SourceBusyError("busy", wait=3600.0)))
    assert waits == []


def test_patience_counts_only_new_bytes(network, waits):
    with pytest.raises(SourceBusyError, match="tried 3 times"):
        network.call(SOURCE, failing(*[SourceBusyError("busy")] * 9), gained=lambda: 2**30)
    assert len(waits) == 2


def test_patience_lasts_while_bytes_come(network, waits):
    kept = iter([2**20, 2 * 2**20, 3 * 2**20, 3 * 2**20 + 9, 3 * 2**20 + 9, 3 * 2**20 + 9])
    now = 0  # bytes

    def action():
        nonlocal now
        now = next(kept)
        msg = "broke off"
        raise SourceBusyError(msg)

    with pytest.raises(SourceBusyError, match="tried 3 times"):
        network.call(SOURCE, action, gained=lambda: now)
    assert len(waits) == 4  # three with progress, of which the last counts as the first, and two without
    assert list(kept) == [3 * 2**20 + 9]


def answer_of(status, **headers):
    answer = requests.Response()
    answer.status_code, answer.reason, answer.url = status, "Reason", "http://host/path?sig=secret"
    answer.headers = CaseInsensitiveDict(headers)
    return answer


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 599])
def test_statuses_that_may_pass(status):
    with pytest.raises(SourceBusyError, match=f"^http://host/path answered {status} Reason$") as caught:
        check_status(answer_of(status, **{"Retry-After": "7"}))
    assert caught.value.wait == 7.0


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 410, 501, 505])
def test_statuses_that_will_not_pass(status):
    with pytest.raises(SourceError, match=f"answered {status} Reason") as caught:
        check_status(answer_of(status))
    assert not isinstance(caught.value, SourceBusyError)
    assert ("access was denied" in str(caught.value)) == (status in {401, 403})
    check_status(answer_of(206))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), (" 120 ", 120.0), ("0", 0.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("²", None),
        ("9" * 400, None), ("Mon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015 07:28:00", None),
    ],
)  # fmt: skip
def testretry_after(text, seconds):
    assert retry_after(answer_of(503, **{"Retry-After": text})) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_a_date(zone):
    date = email.utils.formatdate(time.time() + 90, usegmt=True).replace("GMT", zone)
    assert retry_after(answer_of(503, **{"Retry-After": date})) == pytest.approx(90, abs=2)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a/b.tif?sv=1&sig=secret#part", "https://host/a/b.tif"),
        ("https://user:secret@host:8080/a", "https://host:8080/a"),
        ("http://[::1]:80/a?secret", "http://[::1]:80/a"),
        ("http://host:port/a?secret", "http://host:port/a"),
        ("http://[secret/a", "an invalid URL"),
        ("user:secret@host/a?secret", "host/a"),
        ("folder/nlcd.tif", "folder/nlcd.tif"),
        ("", ""),
    ],
)
def test_redact(url, shown):
    assert redact(url) == shown


# -- what can happen before there is an answer ---------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (requests.TooManyRedirects(), SourceBusyError, "http://host/a redirects in a loop"),
        (requests.ReadTimeout(), SourceBusyError, "http://host/a did not answer in time"),
        (requests.ConnectTimeout(), SourceBusyError, "http://host/a did not answer in time"),
        (requests.exceptions.ProxyError(), SourceBusyError, "http://host/a cannot be reached through the proxy"),
        (requests.ConnectionError("reset"), SourceBusyError, "http://host/a cannot be reached, or broke off"),
        (requests.exceptions.SSLError("EOF in violation of protocol"), SourceBusyError, "cannot be reached, or broke"),
        (requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), SourceError, "the certificate of http://host/a"),
        (requests.exceptions.InvalidURL(), SourceError, r"http://host/a cannot be queried \(InvalidURL\)"),
    ],
)
def test_failures_in_our_words(error, kind, said):
    failure = translate(error, "http://user:secret@host/a?sig=secret")
    assert type(failure) is kind
    assert re.match(f"(.* )?{said}", str(failure))
    assert "secret" not in str(failure)


@pytest.mark.parametrize("url", ["foo", "ftp://host/a", "http://[bad/a", "http://host:port/a", "http://.example./a"])
def test_addresses_that_are_none(network, url):
    with pytest.raises(SourceError, match=r"^The source: .* cannot be queried \(.*\); give a file of your own$"):
        network.get(url, SOURCE)


def test_nobody_listens(network):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SourceBusyError, match=r"127.0.0.1:\d+/a cannot be reached, .* \(tried 3 times\)"):
        network.get(f"http://127.0.0.1:{port}/a?sig=secret", SOURCE)


def test_a_server_that_never_answers(cache):
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=0.2))
    start = time.monotonic()
    with speaking(times=2) as url, pytest.raises(SourceBusyError, match=r"did not answer in time \(tried 2 times\)"):
        network.get(url, SOURCE)
    assert 0.4 <= time.monotonic() - start < 2.0


def test_a_server_that_stops_half_way(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=60, times=None)
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=0.2))
    with pytest.raises(SourceBusyError, match=r"broke off after 1 bytes \(ReadTimeoutError\) \(tried 2 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)


def test_a_server_that_drips_is_given_up_by_its_speed(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=0.02, times=None)
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=5.0, grace=0.3))
    start = time.monotonic()
    with pytest.raises(SourceBusyError, match=r"sends too slowly \(\d+ bytes in 0 s\) \(tried 2 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)
    assert 0.6 <= time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_answers_that_are_no_http(network, answer):
    with speaking(answer, times=3) as url, pytest.raises(SourceError, match=r"^The source: .*give a file of your own$"):
        network.get(f"{url}/a?sig=secret", SOURCE)


def test_a_redirect_loop(network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("redirect-loop", times=None)
    with pytest.raises(SourceBusyError, match=r"redirects in a loop \(tried 3 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)
    assert len(server.requests) == 3 * 11


# -- small answers -------------------------------------------------------------------------------


def counting(content=b"an answer"):
    """Return a route that numbers its answers."""
    answers = iter(range(1, 100))
    return lambda _request: (200, {}, content + b" %d" % next(answers))


def test_what_is_asked(network, faulty_server):
    server = faulty_server(routes={"/a": lambda _: (200, {}, b"answer")})
    assert network.get(f"{server.url}/a", SOURCE, params={"x": 1, "y": "z"}, headers={"X-Key": "k"}) == b"answer"
    assert network.get(f"{server.url}/a", SOURCE, body={"bbox": [1, 2]}) == b"answer"
    asked, posted = server.requests
    assert (asked.method, asked.query, asked.headers["X-Key"]) == ("GET", {"x": "1", "y": "z"}, "k")
    assert asked.headers["User-Agent"] == USER_AGENT
    assert (posted.method, json.loads(posted.body)) == ("POST", {"bbox": [1, 2]})


def test_answers_are_kept_for_a_while(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})

    def ask(**options):
        return network.get(f"{server.url}/a", SOURCE, params=options or None, keep=DAY, suffix=".txt")

    assert [ask(), ask(), ask(p=1), ask(p=1)] == [b"an answer 1"] * 2 + [b"an answer 2"] * 2
    kept = sorted(cache.root.glob("source/*.txt"), key=lambda path: path.read_bytes())
    assert [path.read_bytes() for path in kept] == [b"an answer 1", b"an answer 2"]
    os.utime(kept[0], (time.time() - 2 * DAY,) * 2)
    assert [ask(), ask()] == [b"an answer 3"] * 2
    assert len(server.requests) == 3


def test_threads_that_ask_the_same_ask_once(network, faulty_server):
    route = counting()
    server = faulty_server(routes={"/a": lambda request: (time.sleep(0.1), route(request))[1]})
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(network.get, f"{server.url}/a", SOURCE, keep=DAY) for _ in range(4)]
        assert {job.result() for job in jobs} == {b"an answer 1"}
    assert len(server.requests) == 1


def test_answers_are_not_kept_unasked(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})
    assert [network.get(f"{server.url}/a", SOURCE) for _ in range(2)] == [b"an answer 1", b"an answer 2"]
    assert not cache.root.exists()


def test_an_old_answer_is_better_than_none(cache, network, faulty_server, caplog):
    server = faulty_server(routes={"/a": counting()})
    network.get(f"{server.url}/a", SOURCE, keep=DAY, suffix=".txt")
    (kept,) = cache.root.glob("source/*.txt")
    os.utime(kept, (1_700_000_000,) * 2)
    server.fail("503", times=None)
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, suffix=".txt") == b"an answer 1"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.endswith("or give a file of your own; using the answer of 2023-11-14")


def test_refresh_asks_anew_once(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})
    network.get(f"{server.url}/a", SOURCE, keep=DAY)
    anew = Network(cache, policy=QUICK, refresh=True)
    assert [anew.get(f"{server.url}/a", SOURCE, keep=DAY) for _ in range(2)] == [b"an answer 2"] * 2
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY) == b"an answer 2"
    assert len(server.requests) == 2


def test_offline_takes_what_is_there_and_names_what_is_not(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})
    network.get(f"{server.url}/a", SOURCE, keep=DAY)
    (kept,) = cache.root.glob("source/*")
    os.utime(kept, (1_700_000_000,) * 2)
    offline = Network(cache, policy=QUICK, offline=True)
    assert offline.get(f"{server.url}/a", SOURCE, keep=DAY) == b"an answer 1"
    with pytest.raises(OfflineError) as caught:
        offline.get(f"{server.url}/a", SOURCE, params={"sig": "secret"}, keep=DAY)
    assert str(caught.value) == (
        f"The source: {server.url}/a is not in the cache, and --offline was given; run once without it"
    )
    assert len(server.requests) == 1


def test_a_damaged_answer_is_not_kept_nor_taken(cache, network, faulty_server):
    def check(content):
        if not content.endswith(b"}"):
            msg = "that is no JSON"
            raise SourceBusyError(msg)

    server = faulty_server(routes={"/a": lambda _: (200, {}, b'{"a": 1}')})
    server.fail("wrong-length", times=2)
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, check=check) == b'{"a": 1}'
    (kept,) = cache.root.glob("source/*")
    kept.write_bytes(b"")  # as after a power cut
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, check=check) == b'{"a": 1}'
    assert [request.fault for request in server.requests] == ["wrong-length", "wrong-length", "", ""]
    assert kept.read_bytes() == b'{"a": 1}'


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_packed_answers_are_unpacked(network, faulty_server, size):
    content = (b"0123456789" * (size // 10)) + DATA[: size // 10]
    packed = gzip.compress(content)
    server = faulty_server(routes={"/a": lambda _: (200, {"Content-Encoding": "gzip"}, packed)})
    server.fail("truncate")
    assert network.get(f"{server.url}/a", SOURCE) == content
    assert len(server.requests) == 2


def test_bytes_are_counted_for_whoever_listens(network, faulty_server, folder):
    server = faulty_server(folder)
    counted = []
    with network.listening(counted.append):
        network.get(f"{server.url}/data.bin", SOURCE)
        with network.listening(lambda _: None):
            network.get(f"{server.url}/data.bin", SOURCE)
    network.get(f"{server.url}/data.bin", SOURCE)
    assert sum(counted) == len(DATA)


def test_keys_are_not_told_to_another_host(network, faulty_server):
    other = faulty_server(routes={"/b": lambda _: (200, {}, b"there")})
    server = faulty_server(routes={"/b": lambda _: (200, {}, b"here")})
    server.routes["/near"] = lambda _: (302, {"Location": "/b"}, b"")
    server.routes["/far"] = lambda _: (302, {"Location": f"{other.url}/b"}, b"")
    headers = {"Ocp-Apim-Subscription-Key": "secret", "Accept": "text/plain"}
    assert network.get(f"{server.url}/near", SOURCE, headers=headers) == b"here"
    assert server.requests[-1].headers["Ocp-Apim-Subscription-Key"] == "secret"
    assert network.get(f"{server.url}/far", SOURCE, headers=headers) == b"there"
    (far,) = other.requests
    assert "Ocp-Apim-Subscription-Key" not in far.headers
    assert far.headers["Accept"] == "text/plain"


def test_queries_stay_out_of_the_logs_of_urllib3(network, faulty_server, caplog):
    server = faulty_server(routes={"/a": lambda _: (200, {}, b"answer")})
    with caplog.at_level(logging.DEBUG):
        network.get(f"{server.url}/a", SOURCE, params={"sig": "secret"})
    assert any(record.name == "urllib3.connectionpool" and "/a" in record.getMessage() for record in caplog.records)
    assert "secret" not in caplog.text


# -- whole files ---------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    paths = {network.download(remote, SOURCE, suffix=".bin") for _ in range(3)}
    (path,) = paths
    assert path.read_bytes() == DATA
    assert files_of(cache.root) == ["CACHEDIR.TAG", f"source/{path.name}"]
    assert ranges(server) == [None]
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_download_goes_on_where_it_broke_off(network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate", times=2)
    path = network.download(Remote(f"{server.url}/data.bin"), SOURCE)
    assert path.read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None), (450_000, None)]
    assert server.requests[1].headers["If-Range"].startswith('"')


def test_a_download_goes_on_in_the_next_run(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate")
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceBusyError, match=r"broke off after 300000 bytes .*\(tried once\); run the same command"):
        Network(cache, policy=RetryPolicy(attempts=1)).download(remote, SOURCE)
    assert [path.suffix for path in sorted(cache.root.glob("source/*"))] == [".part", ".version"]
    anew = Network(cache, policy=QUICK, refresh=True)  # also then what was begun is gone on with
    assert anew.download(remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None)]
    assert [path.suffix for path in cache.root.glob("source/*")] == [""]


def test_a_file_that_has_changed_starts_over(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("truncate")
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceBusyError):
        Network(cache, policy=RetryPolicy(attempts=1)).download(remote, SOURCE)
    (folder / "data.bin").write_bytes(DATA[::-1])
    assert network.download(remote, SOURCE).read_bytes() == DATA[::-1]
    assert ranges(server) == [None, (300_000, None)]


def served(content, validators, *, if_range=True):
    """Return a route that serves a file with ranges and these validators; it may not know If-Range."""

    def route(request):
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        known = request.headers.get("If-Range")
        if found is None or (if_range and known is not None and known not in validators.values()):
            return 200, dict(validators), content
        start, stop = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return 416, validators | {"Content-Range": f"bytes */{len(content)}"}, b""
        return 206, validators | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    return route


DATED = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}


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
def test_only_a_file_that_can_be_told_from_others_is_gone_on_with(network, faulty_server, validators, if_range):
    server = faulty_server(routes={"/a": served(DATA, validators)})
    server.fail("truncate")
    assert network.download(Remote(f"{server.url}/a"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None) if if_range else None]
    assert server.requests[1].headers.get("If-Range") == if_range


def test_versions_are_not_mixed_by_a_server_that_does_not_know_if_range(network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'})})
    server.fail("truncate")

    def then(request):
        server.routes["/a"] = served(DATA[::-1], {"ETag": '"v2"'}, if_range=False)
        return served(DATA, {"ETag": '"v1"'})(request)

    server.routes["/a"] = then
    assert network.download(Remote(f"{server.url}/a"), SOURCE).read_bytes() == DATA[::-1]
    assert ranges(server) == [None, (300_000, None), None]


def begin_download(cache, remote, content, version):
    """Put a part into the cache as an earlier run would have."""
    path = cache.path(SOURCE.folder, remote.href)
    path.with_name(f"{path.name}.part").write_bytes(content)
    if version is not None:
        path.with_name(f"{path.name}.part.version").write_text(version)


def test_a_part_that_is_whole_is_taken(cache, network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'})})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, DATA, '"v1"')
    assert network.download(remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [(600_000, None)]


@pytest.mark.parametrize(
    ("part", "version", "asked"),
    [
        (DATA + b"more", '"v1"', [(600_004, None), None]),  # longer than the file
        (DATA[:9], None, [None]),  # of no known version
        (DATA[:9], "", [None]),  # the disk was full
        (b"", '"v1"', [None]),
    ],
)
def test_a_part_that_cannot_be_used_is_not(cache, network, faulty_server, part, version, asked):
    server = faulty_server(routes={"/a": served(DATA, {"ETag": '"v1"'}, if_range=False)})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, part, version)
    assert network.download(remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == asked


def test_a_part_without_a_version_is_not_gone_on_with_by_that_of_another(cache, network, faulty_server):
    server = faulty_server(routes={"/a": served(DATA, {})})
    remote = Remote(f"{server.url}/a")
    begin_download(cache, remote, DATA[::-1][:9], '"v1"')
    server.fail("truncate")
    assert network.download(remote, SOURCE).read_bytes() == DATA
    assert ranges(server) == [(9, None), None]


def test_a_server_without_ranges_starts_over(network, faulty_server, folder):
    server = faulty_server(folder)
    server.faults += ["truncate", "ignore-range"]
    assert network.download(Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None)]


def test_an_empty_answer_does_not_cost_the_part(network, faulty_server, folder):
    server = faulty_server(folder)
    server.faults += ["truncate", "empty"]
    assert network.download(Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    assert ranges(server) == [None, (300_000, None), (300_000, None)]


def test_patience_with_a_long_file_does_not_end_while_it_grows(cache, faulty_server, folder):
    content = np.random.default_rng(1).bytes(8 * 2**20)
    (folder / "long.bin").write_bytes(content)
    server = faulty_server(folder)
    server.fail("truncate", times=None)
    network = Network(cache, policy=QUICK)
    remote = Remote(f"{server.url}/long.bin")
    with pytest.raises(SourceBusyError, match="tried 3 times"):
        network.download(remote, SOURCE)
    mib = 2**20
    assert ranges(server) == [None, *((part * mib // 4, None) for part in (16, 24, 28, 30))]
    server.faults.clear()
    assert network.download(remote, SOURCE).read_bytes() == content
    assert ranges(server)[5:] == [(31 * mib // 4, None)]


def test_a_checksum_is_checked(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    with pytest.raises(SourceError) as caught:
        network.download(remote, SOURCE, md5="0" * 32)
    assert str(caught.value) == (
        f"The source: {server.url}/data.bin has another checksum than it should and was deleted; "
        "give a file of your own"
    )
    assert len(server.requests) == 2  # once more, as it may have been an accident
    assert files_of(cache.root) == ["CACHEDIR.TAG"]
    server.fail("garbage")
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    assert network.download(remote, SOURCE, md5=md5).read_bytes() == DATA
    assert len(server.requests) == 4


def test_a_file_may_go_elsewhere(cache, network, faulty_server, folder, tmp_path):
    server = faulty_server(folder)
    target = tmp_path / "elsewhere" / "data.zip"
    target.parent.mkdir()
    assert network.download(Remote(f"{server.url}/data.bin"), SOURCE, path=target) == target
    assert [path.name for path in target.parent.iterdir()] == ["data.zip"]
    assert target.read_bytes() == DATA
    assert cache.usage() == []


def test_a_packed_file_is_kept_as_it_lies_there(network, faulty_server):
    packed = gzip.compress(DATA)
    server = faulty_server(routes={"/a.gz": served(packed, {"ETag": '"v1"', "Content-Encoding": "gzip"})})
    server.fail("truncate")
    assert network.download(Remote(f"{server.url}/a.gz"), SOURCE).read_bytes() == packed
    assert ranges(server) == [None, (len(packed) // 2, None)]


def test_refresh_keeps_the_old_file_until_the_new_one_is_whole(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    remote = Remote(f"{server.url}/data.bin")
    path = network.download(remote, SOURCE)
    (folder / "data.bin").write_bytes(b"new")
    anew = Network(cache, policy=QUICK, refresh=True)
    server.fail("503", times=3)
    with pytest.raises(SourceBusyError):
        anew.download(remote, SOURCE)
    assert path.read_bytes() == DATA
    assert [anew.download(remote, SOURCE).read_bytes() for _ in range(2)] == [b"new"] * 2
    assert len(server.requests) == 1 + 3 + 1


def test_two_who_want_the_same_file_fetch_it_once(cache, faulty_server, folder, caplog):
    server = faulty_server(folder)
    server.routes["/slow"] = lambda _: (time.sleep(0.5), server.routes.clear(), (200, {}, DATA))[2]
    caplog.set_level(logging.INFO, logger="landprior")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(Network(cache, policy=QUICK).download, Remote(f"{server.url}/slow"), SOURCE) for _ in range(2)
        ]
        assert [job.result().read_bytes() for job in jobs] == [DATA, DATA]
    assert len(server.requests) == 1
    assert sum("is being fetched by another process; waiting" in message for message in caplog.messages) == 1


def test_a_whole_file_offline(cache, network, faulty_server, folder):
    server = faulty_server(folder)
    network.download(Remote(f"{server.url}/data.bin"), SOURCE)
    offline = Network(cache, offline=True)
    assert offline.download(Remote(f"{server.url}/data.bin"), SOURCE).read_bytes() == DATA
    with pytest.raises(OfflineError, match=r"^The source: http://127.0.0.1:\d+/other is not in the cache"):
        offline.download(Remote(f"{server.url}/other?sig=secret"), SOURCE)
    assert len(server.requests) == 1


# -- parts of files ------------------------------------------------------------------------------


def test_a_remote_raster_reads_as_a_local_one(network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src, rasterio.open(image) as local:
        assert (src.crs, src.transform, src.shape, src.count) == (local.crs, local.transform, local.shape, 4)
        np.testing.assert_array_equal(src.read(), local.read())
    asked = ranges(server)
    assert asked == sorted(asked)
    assert [first for first, _ in asked] == [0, *(last + 1 for _, last in asked[:-1])]
    assert asked[-1][1] >= image.stat().st_size - 1
    # read on and on, so the requests grow
    assert [(last + 1 - first) // CHUNK for first, last in asked] == [1, 1, 2, 4, 1]


def test_a_file_may_have_any_name(network, faulty_server, image):
    server = faulty_server(routes={"/a b:c!.tif": served(image.read_bytes(), {"ETag": '"v1"'})})
    remote = Remote(f"{server.url}/a%20b:c!.tif?x=1/2.tif")
    with open_remote(network, remote, SOURCE) as src, rasterio.open(image) as local:
        np.testing.assert_array_equal(src.read(1), local.read(1))


def test_only_what_is_read_is_fetched(cache, network, faulty_server, rasters, image):
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


def test_chunks_are_used_again(cache, network, faulty_server, rasters, image):
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


def read_all(network, remote):
    with open_remote(network, remote, SOURCE) as src:
        return src.read()


def test_offline_with_nothing(cache, faulty_server, rasters):
    server = faulty_server(rasters)
    with pytest.raises(OfflineError, match=r"image.tif is not in the cache"):
        read_all(Network(cache, offline=True), Remote(f"{server.url}/image.tif?sig=secret"))
    assert server.requests == []


WINDOW = ((0, 100), (0, 100))


@pytest.fixture
def changing(tmp_path, faulty_server):
    """Return a factory of a served raster and a function that puts another version in its place."""

    def make(**options):
        path = tmp_path / "served" / "image.tif"
        path.parent.mkdir()
        write_noise(path, seed=0, **options)
        server = faulty_server(path.parent)
        return server, Remote(f"{server.url}/image.tif"), lambda: write_noise(path, seed=1, **options)

    return make


@pytest.mark.parametrize("options", [{"compress": None}, {}], ids=["same length", "other length"])
def test_two_versions_are_not_mixed_while_a_file_is_read(cache, network, changing, tmp_path, options):
    _, remote, change = changing(**options)
    expected = r"^The source: .*/image.tif has changed since it was begun, .*deleted; run the same command again; give"
    with pytest.raises(SourceError, match=expected), open_remote(network, remote, SOURCE) as src:  # noqa: PT012
        src.read(window=WINDOW)
        change()
        src.read()
    assert files_of(cache.root) == ["CACHEDIR.TAG"]
    np.testing.assert_array_equal(read_all(network, remote), rasterio.open(tmp_path / "served" / "image.tif").read())


@pytest.mark.parametrize("options", [{"compress": None}, {}], ids=["same length", "other length"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_two_versions_are_not_mixed_from_run_to_run(cache, network, changing, tmp_path, options, attempts):
    _, remote, change = changing(**options)
    with open_remote(network, remote, SOURCE) as src:
        src.read(window=WINDOW)
    change()
    later = Network(cache, policy=RetryPolicy(attempts=attempts, first_wait=0.01))
    with pytest.raises(SourceError, match="has changed since it was begun"):
        read_all(later, remote)
    np.testing.assert_array_equal(read_all(later, remote), rasterio.open(tmp_path / "served" / "image.tif").read())


@pytest.mark.parametrize("validators", [({"ETag": 'W/"v1"'}, {"ETag": 'W/"v2"'}), (DATED, {"Last-Modified": "now"})])
def test_versions_are_told_by_what_the_server_says_of_them(network, faulty_server, image, validators):
    content = image.read_bytes()
    server = faulty_server(routes={"/a.tif": served(content, validators[0])})
    remote = Remote(f"{server.url}/a.tif")
    with pytest.raises(SourceError, match="has changed since"), open_remote(network, remote, SOURCE) as src:  # noqa: PT012
        src.read(window=WINDOW)
        server.routes["/a.tif"] = served(content, validators[1])
        src.read()


def test_a_slip_of_the_server_does_not_cost_the_chunks(network, faulty_server, rasters, image):
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
        other = Network(cache, policy=QUICK, refresh=True)  # its locks are its own, as those of a process are
        np.testing.assert_array_equal(read_all(other, remote), rasterio.open(tmp_path / "served" / "image.tif").read())
        before = len(server.requests)
        src.read()
    assert len(server.requests) == before + 2  # it did not take the other's chunks


def test_a_server_without_ranges_is_read_once(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    server.fail("ignore-range", times=None)
    np.testing.assert_array_equal(read_all(network, Remote(f"{server.url}/image.tif")), rasterio.open(image).read())
    assert len(server.requests) == 1
    assert len(list(cache.root.glob("source/*/*/*"))) == -(-image.stat().st_size // CHUNK)


def test_a_server_that_says_no_length_is_read_once(network, image):
    content = image.read_bytes()
    with speaking(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + content) as url:
        np.testing.assert_array_equal(read_all(network, Remote(f"{url}/image.tif")), rasterio.open(image).read())


def test_of_a_broken_answer_whole_chunks_are_kept(network, faulty_server, rasters, image):
    server, content = faulty_server(rasters), image.read_bytes()
    chunks = Chunks(network, Remote(f"{server.url}/image.tif"), SOURCE)
    for number, breaks in ((0, 0), (1, 0), (2, 1), (4, 2)):
        server.faults += ["truncate"] * breaks
        start = number * CHUNK
        assert chunks.read(start, start + 99) == content[start : start + 99]
    # two were asked for and one came; four, and two came; two, and one came
    asked = [(first // CHUNK, (last + 1) // CHUNK) for first, last in ranges(server)]
    assert asked == [(0, 1), (1, 2), (2, 4), (3, 4), (4, 8), (6, 8), (7, 8)]
    assert chunks.read(0, 8 * CHUNK) == content[: 8 * CHUNK]
    assert len(server.requests) == 7


def test_parts_that_are_not_those_asked_for_are_refused(network, faulty_server, image):
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


def test_what_is_damaged_is_thrown_away(cache, network, faulty_server, rasters, image):
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


def test_errors_of_the_reader_are_its_own(cache, network, faulty_server, rasters):
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


def test_a_failed_read_is_said_even_if_nobody_minded(network, faulty_server, rasters):
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


def test_a_file_that_seeks_and_tells(network, faulty_server, folder):
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


def test_memory_for_chunks_is_bounded(network, faulty_server, tmp_path):
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


def test_two_files_of_one_name_are_not_confused(network, faulty_server, rasters):
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


def test_a_cache_that_is_cleared_meanwhile(cache, network, faulty_server, rasters, image):
    server = faulty_server(rasters)
    with open_remote(network, Remote(f"{server.url}/image.tif"), SOURCE) as src, rasterio.open(image) as local:
        src.read(window=WINDOW)
        cache.clear()
        np.testing.assert_array_equal(src.read(), local.read())


def test_chunks_cut_short_are_fetched_again(cache, network, faulty_server, rasters, image):
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


def test_refresh_reads_anew_once_and_keeps_the_old_until_it_can(cache, network, faulty_server, rasters):
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


# -- stopping ------------------------------------------------------------------------------------


def seconds_to_stop(network, action):
    """Run an action in a thread, stop the network, and return how long it then takes to end."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(action)
        time.sleep(0.3)
        assert not job.done()
        start = time.monotonic()
        network.stop()
        with pytest.raises(FetchInterruptedError, match="what is whole was kept, and the same command goes on"):
            job.result(timeout=20)
        return time.monotonic() - start


@pytest.fixture
def patient(cache):
    """A network that would wait a minute for anything."""
    return Network(cache, policy=RetryPolicy(first_wait=60.0, read_timeout=60.0, grace=60.0))


def test_stop_ends_a_wait(patient):
    failure = SourceBusyError("busy")
    assert seconds_to_stop(patient, lambda: patient.call(SOURCE, failing(failure, failure))) < 0.3
    with pytest.raises(FetchInterruptedError):
        patient.get("http://127.0.0.1:1/", SOURCE)


def test_stop_ends_a_request_without_an_answer(patient):
    with speaking() as url:
        assert seconds_to_stop(patient, lambda: patient.get(url, SOURCE)) < 0.5


@pytest.mark.parametrize("kind", ["download", "raster"])
def test_stop_ends_an_answer_in_progress(patient, faulty_server, rasters, kind):
    server = faulty_server(rasters)
    server.fail("drip", seconds=30, times=None)
    remote = Remote(f"{server.url}/image.tif")
    actions = {"download": lambda: patient.download(remote, SOURCE), "raster": lambda: read_all(patient, remote)}
    assert seconds_to_stop(patient, actions[kind]) < 0.5


def test_stop_ends_waiting_for_another_process(cache, patient, network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=0.05)
    with ThreadPoolExecutor(1) as pool:
        remote = Remote(f"{server.url}/data.bin")
        network.policy = patient.policy
        first = pool.submit(network.download, remote, SOURCE)
        time.sleep(0.2)
        assert seconds_to_stop(patient, lambda: patient.download(remote, SOURCE)) < 0.5
        network.stop()
        with pytest.raises(FetchInterruptedError):
            first.result()
    part = next(cache.root.glob("source/*.part"))
    assert DATA.startswith(part.read_bytes())


# -- the page ------------------------------------------------------------------------------------


def test_the_page_counts_the_cases(request):
    """docs/results/reliability.md gives the numbers; they are counted if pytest was not told to leave some out."""
    here = Path(__file__).parent
    counts = [sum(item.path == here / name for item in request.session.items) for name in PAGES_TESTS]
    option = request.config.option
    if 0 in counts or option.keyword or "::" in " ".join(request.config.args):
        pytest.skip("not all cases were collected")
    page = (here.parents[1] / "docs" / "results" / "reliability.md").read_text(encoding="utf-8")
    assert f"**{counts[0]} cases**" in page
    assert f"Another {counts[1]} cases" in page
    rows = re.findall(r"^\| .* \| ([0-9]+) \|$", page, flags=re.MULTILINE)
    assert sum(map(int, rows)) == counts[0]


PAGES_TESTS = ("test_faults.py", "test_network.py")
