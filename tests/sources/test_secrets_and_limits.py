"""Secrets that servers may receive, and limits on their responses, tested with servers on loopback."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zlib

import pytest
import requests
from shapely.geometry import box

from landprior.addresses import hide_addresses, redact
from landprior.errors import InputError, SourceError
from landprior.raster.grid import Grid
from landprior.sources import buildings, nlcd, osm
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Origin, Remote
from landprior.sources.http.responses import ANSWER_LIMIT, MEGABYTE, TooLongError, fingerprint, parse_json, require_web
from landprior.sources.naip.search import search_images
from landprior.sources.naip.sign import TokenSigner
from landprior.sources.nominatim import geocode

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, connect_timeout=2.0, read_timeout=5.0)
SOURCE = Origin(name="The source", folder="source", remedy="give a file of your own")
PLACE = box(-79.0, 38.0, -78.9, 38.1)


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


def sent(server, name="Authorization"):
    return [request.headers.get(name) for request in server.requests]


def leading_to(url, status=302):
    return lambda _: (status, {"Location": url}, b"")


def good(_):
    return 200, {}, b"good"


# -- secrets -------------------------------------------------------------------------------------


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    """A ~/.netrc with a password for every host."""
    path = tmp_path / "netrc"
    path.write_text("default login me password netrc-secret\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


@pytest.mark.usefixtures("netrc")
def test_passwords_in_netrc_are_never_sent(faulty_server, network):
    other = faulty_server(routes={"/there": good})
    server = faulty_server(routes={"/here": good, "/on": leading_to(f"{other.url}/there")})
    assert network.get(f"{server.url}/here", SOURCE) == b"good"
    assert network.get(f"{server.url}/on", SOURCE) == b"good"
    assert sent(server) + sent(other) == [None] * 3


@pytest.mark.usefixtures("netrc")
def test_passwords_in_netrc_are_not_sent_to_overpass_or_its_redirects(
    faulty_server, network, make_grid, scene_files, monkeypatch
):
    monkeypatch.setattr("geopandas.GeoDataFrame.estimate_utm_crs", lambda *_: 26917)
    other = faulty_server(routes={"/interpreter": scene_files.overpass})
    server = faulty_server(routes={"/api/interpreter": leading_to(f"{other.url}/interpreter", 307)})
    assert osm.download_features(make_grid(32, 32), network, url=f"{server.url}/api").is_file()
    assert (len(server.requests), len(other.requests)) == (1, 1)
    assert sent(server) + sent(other) == [None] * 2


def test_a_password_in_an_address_is_sent_to_that_host_only(faulty_server, network):
    other = faulty_server(routes={"/there": good})
    server = faulty_server(routes={"/here": good, "/on": leading_to(f"{other.url}/there"), "/by": leading_to("/here")})
    address = server.url.replace("http://", "http://me:word@")
    for path in ("here", "on", "by"):
        assert network.get(f"{address}/{path}", SOURCE) == b"good"
    basic = "Basic bWU6d29yZA=="
    assert sent(server) == [basic] * 4
    assert sent(other) == [None]


def test_keys_and_tokens_are_not_sent_on_to_another_host(faulty_server, network):
    other = faulty_server(routes={"/there": good})
    server = faulty_server(routes={"/on": leading_to(f"{other.url}/there")})
    secrets = {"Ocp-Apim-Subscription-Key": "k", "X-Api-Key": "k", "Authorization": "Bearer k"}
    network.get(f"{server.url}/on", SOURCE, headers=secrets)
    for name in secrets:
        assert sent(server, name)[0] is not None
        assert sent(other, name) == [None]


def test_a_redirect_from_https_to_http_is_refused(network):
    response = requests.Response()
    response.raw = io.BytesIO()
    response.status_code, response.url = 302, "https://safe.test/a?sig=TOKEN"
    response.headers["Location"] = "http://safe.test/a?sig=TOKEN"
    with pytest.raises(
        SourceError, match=r"https://safe.test/a redirects from https to http://safe.test/a, which is not"
    ):
        network.session.get_redirect_target(response)
    response.headers["Location"] = "https://other.test/a"
    assert network.session.get_redirect_target(response) == "https://other.test/a"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a", "gopher://host/a", "/vsicurl/x"])
def test_only_http_addresses_are_requested(faulty_server, network, target):
    if "://" in target:
        server = faulty_server(routes={"/on": leading_to(target)})
        with pytest.raises(SourceError, match=r"The source: .* cannot be queried"):
            network.get(f"{server.url}/on", SOURCE)
    for act in (
        lambda: network.get(target, SOURCE),
        lambda: download(network, Remote(target), SOURCE),
        lambda: require_web(target),
        lambda: TokenSigner(network, target).sign("https://a.test/b/c.tif"),
        lambda: nlcd.describe_coverage(network, url=target),
        lambda: buildings.list_files((0, 0, 1, 1), network, index_url=target),
        lambda: geocode("Ithaca", network, url=target),
    ):
        with pytest.raises(SourceError, match="cannot be queried"):
            act()


def test_a_catalogue_cannot_cause_local_files_to_be_read(faulty_server, network, tmp_path):
    stolen = tmp_path / "catalog.json"
    stolen.write_text(json.dumps({"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x"}))
    for address in (stolen.as_uri(), str(stolen)):
        with pytest.raises(SourceError, match="cannot be"):
            search_images(PLACE, network, stac_url=address)
    server = faulty_server(routes={"/": lambda _: (200, {}, json.dumps({"type": "Catalog", "links": []}).encode())})
    with pytest.raises(SourceError, match="is not a STAC API"):
        search_images(PLACE, network, stac_url=f"{server.url}/")


def test_secrets_are_removed_from_addresses_in_messages_of_a_server():
    said = "cannot read http://me:word@host.test:81/a/b?sig=TOKEN#x, nor 's3://k:s@bucket/c?token=T'; see docs"
    assert hide_addresses(said) == "cannot read http://host.test:81/a/b nor 's3://bucket/c'; see docs"


# -- keys of the cache ---------------------------------------------------------------------------


def test_fingerprints_differ_by_query_and_password_and_reveal_neither():
    alike = ["https://h.test/a?y=1", "https://h.test/a?y=2", "https://me:1@h.test/a", "https://me:2@h.test/a"]
    assert len({redact(url) for url in alike}) == 1
    assert len({fingerprint(url) for url in alike}) == 4
    assert all(len(fingerprint(url)) == 64 for url in alike)


# -- limits --------------------------------------------------------------------------------------


def zeros(size):
    """Return the given number of zeros as gzip, without holding them in memory."""
    packer, piece = zlib.compressobj(wbits=31), bytes(MEGABYTE)
    return b"".join([packer.compress(piece) for _ in range(size // MEGABYTE)] + [packer.flush()])


@pytest.fixture(scope="module")
def bomb():
    return zeros(10 * ANSWER_LIMIT)


def packed(body):
    return lambda _: (200, {"Content-Encoding": "gzip", "Content-Type": "application/json"}, body)


def peak_of(act, words):
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=words):
            act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_response_that_decompresses_to_far_too_much_is_given_up_early(faulty_server, network, bomb):
    server = faulty_server(routes={"/a": packed(bomb)})
    assert len(bomb) < MEGABYTE
    peak = peak_of(
        lambda: network.get(f"{server.url}/a", SOURCE, keep=99), "The source: http.*/a sends more than 32 MB, far more"
    )
    assert peak < 2 * ANSWER_LIMIT
    assert len(server.requests) == 1  # not retried, because that would not help
    assert [path for path in network.cache.root.rglob("*") if path.is_file() and path.suffix != ".TAG"] == []


def test_a_response_of_exactly_the_limit_is_accepted(faulty_server, network):
    server = faulty_server(routes={"/a": packed(gzip.compress(bytes(1000)))})
    assert network.get(f"{server.url}/a", SOURCE, limit=1000) == bytes(1000)
    with pytest.raises(TooLongError):
        network.get(f"{server.url}/a", SOURCE, limit=999)


def test_every_kind_of_response_has_a_limit(faulty_server, network, bomb, make_grid, monkeypatch):
    monkeypatch.setattr(osm, "_OVERPASS_LIMIT", ANSWER_LIMIT)
    monkeypatch.setattr(buildings, "_INDEX_LIMIT", ANSWER_LIMIT)
    server = faulty_server(
        routes=dict.fromkeys(("/", "/search", "/wcs", "/index.csv", "/interpreter", "/sign"), packed(bomb))
    )
    grid = make_grid(32, 32)
    for act in (
        lambda: search_images(PLACE, network, stac_url=f"{server.url}/"),
        lambda: TokenSigner(network, f"{server.url}/sign").sign("https://a.test/b/c.tif"),
        lambda: nlcd.describe_coverage(network, url=f"{server.url}/wcs"),
        lambda: buildings.list_files((0, 0, 1, 1), network, index_url=f"{server.url}/index.csv"),
        lambda: osm.download_features(grid, network, url=server.url),
        lambda: geocode("Ithaca", network, url=server.url),
    ):
        assert peak_of(act, "sends more than [0-9]+ MB, far more than expected") < 2 * ANSWER_LIMIT + 40 * MEGABYTE


def test_the_body_of_a_redirect_is_not_read(faulty_server, network, bomb):
    server = faulty_server(
        routes={
            "/on": lambda _: (302, {"Location": "/here", "Content-Encoding": "gzip"}, bomb),
            "/here": good,
        }
    )
    tracemalloc.start()
    try:
        assert network.get(f"{server.url}/on", SOURCE) == b"good"
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", ["99999999999999", "9" * 5000])
def test_an_absurd_content_length(faulty_server, network, length):
    server = faulty_server(routes={"/a": good})
    original = server.RequestHandlerClass._send

    class Boasting(server.RequestHandlerClass):
        def _send(self, status, headers, data, *, sent=None):
            self.close_connection = True
            end = self.end_headers

            def end_headers():
                self._headers_buffer = [
                    f"Content-Length: {length}\r\n".encode() if line.lower().startswith(b"content-length") else line
                    for line in self._headers_buffer
                ]
                end()

            self.end_headers = end_headers
            original(self, status, headers, data, sent=sent)

    server.RequestHandlerClass = Boasting
    acts = [
        lambda: network.get(f"{server.url}/a", SOURCE),
        lambda: download(network, Remote(f"{server.url}/a"), SOURCE),
    ]
    for act in acts if len(length) < 20 else ():
        with pytest.raises(SourceError, match=r"sends more than [0-9,]+ MB"):
            act()
    if len(length) > 20:  # too long to be a number, so it is ignored
        assert network.get(f"{server.url}/a", SOURCE) == b"good"


def test_a_download_is_given_up_at_its_limit_and_nothing_is_kept(faulty_server, network):
    server = faulty_server(routes={"/a": lambda _: (200, {}, bytes(5000))})
    with pytest.raises(SourceError, match="far more than expected"):
        download(network, Remote(f"{server.url}/a"), SOURCE, limit=4999)
    assert list(network.cache.root.glob("source/*")) == []
    assert download(network, Remote(f"{server.url}/a"), SOURCE, limit=5000).stat().st_size == 5000


def test_footprints_that_decompress_to_far_too_much_are_refused(faulty_server, network, tmp_path, bomb):
    (tmp_path / "part.csv.gz").write_bytes(bomb)
    index = f"Location,QuadKey,Url,Size\nX,{buildings.quadkeys_of((-79, 38, -78.99, 38.01))[0]},part.csv.gz,1KB\n"
    (tmp_path / "index.csv").write_text(index)
    server = faulty_server(tmp_path)
    peak = peak_of(
        lambda: buildings.download_buildings((-79, 38, -78.99, 38.01), network, index_url=f"{server.url}/index.csv"),
        r"Buildings \(Microsoft\): a file of footprints unpacks to more than 100 times its size",
    )
    assert peak < 32 * MEGABYTE
    assert list(network.cache.root.glob("buildings/*.gz")) == []


def test_json_nested_too_deeply_is_refused(faulty_server, network, make_grid):
    deep = b"[" * 300_000 + b"]" * 300_000
    with pytest.raises(SourceError, match="here sent JSON that is nested too deeply"):
        parse_json(deep, "here")
    server = faulty_server(routes=dict.fromkeys(("/", "/sign", "/interpreter", "/search"), lambda _: (200, {}, deep)))
    for act in (
        lambda: search_images(PLACE, network, stac_url=f"{server.url}/"),
        lambda: TokenSigner(network, f"{server.url}/sign").sign("https://a.test/b/c.tif"),
        lambda: osm.download_features(make_grid(32, 32), network, url=server.url),
        lambda: geocode("Ithaca", network, url=server.url),
    ):
        with pytest.raises(SourceError, match="nested too deeply"):
            act()
    assert len(server.requests) == 4


def test_cells_of_a_service_that_would_fill_the_memory_are_refused(make_grid):
    grid = make_grid(1000, 1000)
    fine = Grid(width=10**7, height=10**7, crs=grid.crs, transform=grid.transform @ grid.transform.scale(0.001))
    with pytest.raises(InputError, match=r"NLCD: https://h.test/wcs has .* cells in one tile"):
        nlcd._window_around(fine, grid, "https://h.test/wcs?key=K")
