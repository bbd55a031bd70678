"""The client, with servers on loopback: retries, time limits, small responses, offline mode, stopping."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests

from landprior.errors import (
    FetchInterruptedError,
    InputError,
    OfflineError,
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.client import DAY, USER_AGENT, Network, RetryPolicy
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Remote
from tests.sources.programs import find_program

from .shared import DATA, QUICK, SOURCE, failing, read_all, speaking

# -- retries -------------------------------------------------------------------------------------


def test_waits_grow_up_to_a_limit_and_vary():
    policy = RetryPolicy(first_wait=2.0, longest_wait=30.0)
    for attempt, longest in enumerate((2.0, 4.0, 8.0, 16.0, 30.0, 30.0), start=1):
        waits = [policy.wait(attempt) for _ in range(300)]
        assert 0.5 * longest <= min(waits) < 0.55 * longest
        assert 0.95 * longest < max(waits) <= longest


def test_a_busy_source_is_tried_again(network, waits, caplog):
    caplog.set_level(logging.INFO, logger="landprior")
    assert network.call(SOURCE, failing(SourceBusyError("it is busy"), requests.ConnectionError())) == 7
    assert 0.005 <= waits[0] <= 0.01 <= waits[1] <= 0.02
    assert "The source: it is busy; trying again in 0.0 s (1 of 2)" in caplog.messages


def test_the_final_error_has_the_source_the_cause_and_advice(network, waits):
    with pytest.raises(SourceBusyError) as caught:
        network.call(SOURCE, failing(*[SourceBusyError("it is busy")] * 9))
    assert str(caught.value) == (
        "The source: it is busy (tried 3 times); run the same command again later, or give a file of your own"
    )
    assert len(waits) == 2
    network.policy = RetryPolicy(attempts=1)
    with pytest.raises(SourceBusyError, match=r"\(tried once\)"):
        network.call(SOURCE, failing(SourceBusyError("it is busy")))


def test_permanent_errors_are_not_retried(network, waits):
    with pytest.raises(SourceError) as caught:
        network.call(SOURCE, failing(SourceError("it says no")))
    assert str(caught.value) == "The source: it says no; give a file of your own"
    with pytest.raises(InputError, match=r"^not ours$"):
        network.call(SOURCE, failing(InputError("not ours")))
    assert waits == []


def test_nested_calls_name_the_source_only_once(network, waits):
    with pytest.raises(SourceError) as caught:
        network.call(SOURCE, lambda: network.call(SOURCE, failing(SourceError("it says no"))))
    assert str(caught.value) == "The source: it says no; give a file of your own"
    busy = failing(*[SourceBusyError("it is busy")] * 9)
    with pytest.raises(SourceBusyError, match=r"^The source: it is busy \(tried 3 times\); run"):
        network.call(SOURCE, lambda: network.call(SOURCE, busy))
    assert len(waits) == 2


def test_the_source_of_an_error_is_an_attribute_not_parsed_from_its_text(network, waits):
    with pytest.raises(SourceError) as caught:
        network.call(SOURCE, failing(SourceError("The source: nowhere/damaged.tif")))
    assert str(caught.value) == "The source: The source: nowhere/damaged.tif; give a file of your own"
    assert caught.value.source == "The source"
    again = pickle.loads(pickle.dumps(SourceBusyError("busy", wait=3.0, source="The source")))  # noqa: S301 - made here
    assert (type(again), str(again), again.wait, again.source) == (SourceBusyError, "busy", 3.0, "The source")
    assert waits == []


def test_an_untrusted_certificate_is_refused_at_once(network, waits, tmp_path):
    files = {name: str(tmp_path / f"{name}.pem") for name in ("out", "keyout")}
    command = [find_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    paths = [word for name, path in files.items() for word in (f"-{name}", path)]
    subprocess.run([*command, "-nodes", "-subj", "/CN=localhost", *paths], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["out"], files["keyout"])

    def serve():
        with suppress(OSError):
            context.wrap_socket(server.accept()[0], server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(serve)
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            SourceError, match=f"^The source: the certificate of {url}/ cannot be verified; give a file"
        ):
            network.get(url, SOURCE)
    assert waits == []


def test_the_requested_wait_is_the_minimum(network, waits):
    assert network.call(SOURCE, failing(SourceBusyError("busy", wait=3.0), SourceBusyError("busy", wait=0.0))) == 7
    assert 3.005 <= waits[0] <= 3.01
    assert 0.005 <= waits[1] <= 0.01


def test_too_long_a_requested_wait_is_an_error_at_once(network, waits):
    with pytest.raises(
        SourceBusyError, match=r"busy \(the server asks to wait 3600 s\); run the same command again later"
    ):
        network.call(SOURCE, failing(SourceBusyError("busy", wait=3600.0)))
    assert waits == []


def test_only_new_bytes_count_as_progress(network, waits):
    with pytest.raises(SourceBusyError, match="tried 3 times"):
        network.call(SOURCE, failing(*[SourceBusyError("busy")] * 9), gained=lambda: 2**30)
    assert len(waits) == 2


def test_retries_continue_while_bytes_arrive(network, waits):
    kept = iter([2**20, 2 * 2**20, 3 * 2**20, 3 * 2**20 + 9, 3 * 2**20 + 9, 3 * 2**20 + 9])
    now = 0  # bytes

    def action():
        nonlocal now
        now = next(kept)
        msg = "broke off"
        raise SourceBusyError(msg)

    with pytest.raises(SourceBusyError, match="tried 3 times"):
        network.call(SOURCE, action, gained=lambda: now)
    assert len(waits) == 4  # three with progress, the last of which counts as the first attempt, and two without
    assert list(kept) == [3 * 2**20 + 9]


@pytest.mark.parametrize("url", ["foo", "ftp://host/a", "http://[bad/a", "http://host:port/a", "http://.example./a"])
def test_invalid_addresses(network, url):
    with pytest.raises(SourceError, match=r"^The source: .* cannot be queried \(.*\); give a file of your own$"):
        network.get(url, SOURCE)


def test_a_port_without_a_server(network):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SourceBusyError, match=r"127.0.0.1:\d+/a cannot be reached, .* \(tried 3 times\)"):
        network.get(f"http://127.0.0.1:{port}/a?sig=secret", SOURCE)


def test_a_server_that_never_responds(cache):
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=0.2))
    start = time.monotonic()
    with speaking(times=2) as url, pytest.raises(SourceBusyError, match=r"did not answer in time \(tried 2 times\)"):
        network.get(url, SOURCE)
    assert time.monotonic() - start >= 0.4


def test_a_server_that_stops_half_way(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=60, times=None)
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=0.2))
    with pytest.raises(SourceBusyError, match=r"broke off after 1 bytes \(ReadTimeoutError\) \(tried 2 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)


def test_a_very_slow_server_is_given_up(cache, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=0.02, times=None)
    network = Network(cache, policy=RetryPolicy(attempts=2, first_wait=0.01, read_timeout=5.0, grace=0.3))
    start = time.monotonic()
    with pytest.raises(SourceBusyError, match=r"sends too slowly \(\d+ bytes in 0 s\) \(tried 2 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)
    assert time.monotonic() - start >= 0.6


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
def test_responses_that_are_not_http(network, answer):
    with speaking(answer, times=3) as url, pytest.raises(SourceError, match=r"^The source: .*give a file of your own$"):
        network.get(f"{url}/a?sig=secret", SOURCE)


def test_a_redirect_loop(network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("redirect-loop", times=None)
    with pytest.raises(SourceBusyError, match=r"redirects in a loop \(tried 3 times\)"):
        network.get(f"{server.url}/data.bin", SOURCE)
    assert len(server.requests) == 3 * 11


# -- small responses -----------------------------------------------------------------------------


def counting(content=b"an answer"):
    """Return a route that numbers its responses."""
    answers = iter(range(1, 100))
    return lambda _request: (200, {}, content + b" %d" % next(answers))


def test_requests_have_the_given_query_headers_and_body(network, faulty_server):
    server = faulty_server(routes={"/a": lambda _: (200, {}, b"answer")})
    assert network.get(f"{server.url}/a", SOURCE, params={"x": 1, "y": "z"}, headers={"X-Key": "k"}) == b"answer"
    assert network.get(f"{server.url}/a", SOURCE, body={"bbox": [1, 2]}) == b"answer"
    asked, posted = server.requests
    assert (asked.method, asked.query, asked.headers["X-Key"]) == ("GET", {"x": "1", "y": "z"}, "k")
    assert asked.headers["User-Agent"] == USER_AGENT
    assert (posted.method, json.loads(posted.body)) == ("POST", {"bbox": [1, 2]})


def test_responses_are_cached_for_the_given_time(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})

    def ask(**options):
        return network.get(f"{server.url}/a", SOURCE, params=options or None, keep=DAY, suffix=".txt")

    assert [ask(), ask(), ask(p=1), ask(p=1)] == [b"an answer 1"] * 2 + [b"an answer 2"] * 2
    kept = sorted(cache.root.glob("source/*.txt"), key=lambda path: path.read_bytes())
    assert [path.read_bytes() for path in kept] == [b"an answer 1", b"an answer 2"]
    os.utime(kept[0], (time.time() - 2 * DAY,) * 2)
    assert [ask(), ask()] == [b"an answer 3"] * 2
    assert len(server.requests) == 3


def test_threads_share_one_request_for_the_same_address(network, faulty_server):
    route = counting()
    server = faulty_server(routes={"/a": lambda request: (time.sleep(0.1), route(request))[1]})
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(network.get, f"{server.url}/a", SOURCE, keep=DAY) for _ in range(4)]
        assert {job.result() for job in jobs} == {b"an answer 1"}
    assert len(server.requests) == 1


def test_responses_are_not_cached_by_default(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})
    assert [network.get(f"{server.url}/a", SOURCE) for _ in range(2)] == [b"an answer 1", b"an answer 2"]
    assert not cache.root.exists()


def test_an_expired_response_is_used_if_the_server_fails(cache, network, faulty_server, caplog):
    server = faulty_server(routes={"/a": counting()})
    network.get(f"{server.url}/a", SOURCE, keep=DAY, suffix=".txt")
    (kept,) = cache.root.glob("source/*.txt")
    os.utime(kept, (1_700_000_000,) * 2)
    server.fail("503", times=None)
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, suffix=".txt") == b"an answer 1"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.endswith("or give a file of your own; using the response of 2023-11-14")


def test_refresh_requests_only_once_more(cache, network, faulty_server):
    server = faulty_server(routes={"/a": counting()})
    network.get(f"{server.url}/a", SOURCE, keep=DAY)
    anew = Network(cache, policy=QUICK, refresh=True)
    assert [anew.get(f"{server.url}/a", SOURCE, keep=DAY) for _ in range(2)] == [b"an answer 2"] * 2
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY) == b"an answer 2"
    assert len(server.requests) == 2


def test_offline_uses_the_cache_and_names_what_is_missing(cache, network, faulty_server):
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


def test_a_damaged_response_is_neither_cached_nor_used(cache, network, faulty_server):
    def check(content):
        if not content.endswith(b"}"):
            msg = "that is no JSON"
            raise SourceBusyError(msg)

    server = faulty_server(routes={"/a": lambda _: (200, {}, b'{"a": 1}')})
    server.fail("wrong-length", times=2)
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, check=check) == b'{"a": 1}'
    (kept,) = cache.root.glob("source/*")
    kept.write_bytes(b"")  # like after a power failure
    assert network.get(f"{server.url}/a", SOURCE, keep=DAY, check=check) == b'{"a": 1}'
    assert [request.fault for request in server.requests] == ["wrong-length", "wrong-length", "", ""]
    assert kept.read_bytes() == b'{"a": 1}'


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_compressed_responses_are_decompressed(network, faulty_server, size):
    content = (b"0123456789" * (size // 10)) + DATA[: size // 10]
    packed = gzip.compress(content)
    server = faulty_server(routes={"/a": lambda _: (200, {"Content-Encoding": "gzip"}, packed)})
    server.fail("truncate")
    assert network.get(f"{server.url}/a", SOURCE) == content
    assert len(server.requests) == 2


def test_listeners_are_told_the_number_of_bytes(network, faulty_server, folder):
    server = faulty_server(folder)
    counted = []
    with network.listening(counted.append):
        network.get(f"{server.url}/data.bin", SOURCE)
        with network.listening(lambda _: None):
            network.get(f"{server.url}/data.bin", SOURCE)
    network.get(f"{server.url}/data.bin", SOURCE)
    assert sum(counted) == len(DATA)


def test_keys_are_not_sent_to_another_host(network, faulty_server):
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


# -- stopping ------------------------------------------------------------------------------------


def assert_stops(network, action):
    """Run an action that would take days in a thread, stop the network, and wait for the thread to end."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(action)
        time.sleep(0.3)
        assert not job.done()
        network.stop()
        with pytest.raises(FetchInterruptedError, match="finished downloads were kept, and the same command resumes"):
            job.result()


@pytest.fixture
def patient(cache):
    """A network that would wait for days."""
    return Network(cache, policy=RetryPolicy(first_wait=1e6, longest_wait=1e6, read_timeout=1e6, grace=1e6))


def test_stop_ends_a_wait(patient):
    failure = SourceBusyError("busy")
    assert_stops(patient, lambda: patient.call(SOURCE, failing(failure, failure)))
    with pytest.raises(FetchInterruptedError):
        patient.get("http://127.0.0.1:1/", SOURCE)


def test_stop_ends_a_request_without_a_response(patient):
    with speaking() as url:
        assert_stops(patient, lambda: patient.get(url, SOURCE))


@pytest.mark.parametrize("kind", ["download", "raster"])
def test_stop_ends_a_response_in_progress(patient, faulty_server, rasters, kind):
    server = faulty_server(rasters)
    server.fail("drip", seconds=1e6, times=None)
    remote = Remote(f"{server.url}/image.tif")
    actions = {"download": lambda: download(patient, remote, SOURCE), "raster": lambda: read_all(patient, remote)}
    assert_stops(patient, actions[kind])


def test_stop_ends_waiting_for_another_process(cache, patient, network, faulty_server, folder):
    server = faulty_server(folder)
    server.fail("drip", seconds=1e6)
    with ThreadPoolExecutor(1) as pool:
        remote = Remote(f"{server.url}/data.bin")
        network.policy = patient.policy
        first = pool.submit(download, network, remote, SOURCE)
        time.sleep(0.2)
        assert_stops(patient, lambda: download(patient, remote, SOURCE))
        network.stop()
        with pytest.raises(FetchInterruptedError):
            first.result()
    part = next(cache.root.glob("source/*.part"))
    assert DATA.startswith(part.read_bytes())
