"""The servers of the other tests behave as those tests assume."""

from __future__ import annotations

import csv
import gzip
import json
import socket
import time
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
import pytest
import rasterio
import requests
import shapely
from affine import Affine
from rasterio.io import MemoryFile
from rasterio.windows import Window

from landprior.raster.grid import Grid

from .faulty import Fault, FaultyServer
from .place import osm_elements, write_pbf

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 4
# NLCD's projection in older files: Albers on WGS 84, without an EPSG code
NLCD_ALBERS = "+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45.5 +x_0=0 +y_0=0 +datum=WGS84 +units=m"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.bin").write_bytes(DATA)
    return tmp_path


@pytest.fixture
def session():
    with requests.Session() as session:
        yield session


# -- nginx ---------------------------------------------------------------------------------------


def test_nginx_serves_ranges_and_logs_requests(file_server, folder, session):
    url = file_server(folder)
    assert session.get(f"{url}/data.bin?a=b").content == DATA
    part = session.get(f"{url}/data.bin", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, DATA[10:20], "bytes 10-19/1024")
    assert session.head(f"{url}/none.tif").status_code == 404
    log = file_server.requests(url)
    assert [(r.method, r.path, r.status, r.range) for r in log] == [
        ("GET", "/data.bin?a=b", 200, ""),
        ("GET", "/data.bin", 206, "bytes=10-19"),
        ("HEAD", "/none.tif", 404, ""),
    ]
    assert [r.sent for r in log[:2]] == [1024, 10]
    file_server.stop(url)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/data.bin", timeout=5)


# -- WCS -----------------------------------------------------------------------------------------


WCS = {"SERVICE": "WCS", "VERSION": "1.0.0", "COVERAGE": "NLCD"}


def get_coverage(session, url, src, window, epsg, **others):
    bbox = ",".join(map(repr, Grid.of(src).window(window).bounds))
    where = {"REQUEST": "GetCoverage", "CRS": f"EPSG:{epsg}", "BBOX": bbox, "FORMAT": "image/geotiff"}
    return session.get(url, params={**WCS, **where, **others})


def check_coverage(session, url, src, window, epsg):
    around = np.pad(src.read(1), 100, constant_values=int(src.nodata))  # windows extend beyond the edge
    expected = around[window.row_off + 100 :, window.col_off + 100 :][: window.height, : window.width]
    for size in ({"RESX": 30, "RESY": 30}, {"WIDTH": window.width, "HEIGHT": window.height}):
        answer = get_coverage(session, url, src, window, epsg, INTERPOLATION="nearest neighbor", **size)
        assert answer.headers["Content-Type"] == "image/geotiff", answer.text
        with MemoryFile(answer.content) as file, file.open() as out:
            np.testing.assert_array_equal(out.read(1), expected)
            assert out.transform == Grid.of(src).window(window).transform
            assert (out.crs.to_epsg(), out.nodata) == (epsg, src.nodata)


@pytest.mark.parametrize("crs", ["EPSG:5070", NLCD_ALBERS], ids=["EPSG", "custom"])
def test_the_wcs_returns_the_exact_codes(wcs_server, tmp_path, session, rng, crs):
    codes = rng.choice(np.array([0, 11, 21, 24, 41, 82, 95], dtype=np.uint8), size=(90, 70))
    place = {"crs": crs, "transform": Affine(30, 0, 1_500_015, 0, -30, 1_900_005), "nodata": 0}
    with rasterio.open(tmp_path / "nlcd.tif", "w", width=70, height=90, count=1, dtype="uint8", **place) as out:
        out.write(codes, 1)
    url = wcs_server(tmp_path / "nlcd.tif", coverage="NLCD")
    with rasterio.open(tmp_path / "nlcd.tif") as src:
        assert src.crs.to_epsg() == (5070 if crs == "EPSG:5070" else None)
        for window in (Window(7, 11, 40, 30), Window(0, 0, 70, 90), Window(-5, 70, 20, 40)):
            check_coverage(session, url, src, window, 5070)
        timed = get_coverage(session, url, src, Window(7, 11, 4, 3), 5070, WIDTH=4, HEIGHT=3, TIME="2021")
    # errors have status 200
    assert (timed.status_code, timed.headers["Content-Type"][:26]) == (200, "application/vnd.ogc.se_xml")
    assert "does not support temporal subsetting" in timed.text
    described = session.get(url, params={**WCS, "REQUEST": "DescribeCoverage"}).text
    assert (
        "<gml:pos>1500015 1900005</gml:pos>" in described
    )  # the origin is the corner of the first cell, not its centre
    assert "<name>NLCD</name>" in session.get(url, params={**WCS, "REQUEST": "GetCapabilities"}).text
    assert wcs_server.requests(url)[-1].path.startswith("/wcs?SERVICE=WCS")


@pytest.mark.realdata
def test_the_wcs_returns_the_codes_of_real_nlcd(wcs_server, real_data, session):
    path = real_data / "nlcd-samples" / "nlcd_rhode_island_30m.tif"
    url = wcs_server(path, coverage="NLCD")
    with rasterio.open(path) as src:
        for window in (Window(1000, 2000, 400, 300), Window(-20, -10, 50, 40)):
            check_coverage(session, url, src, window, 3857)


# -- STAC ----------------------------------------------------------------------------------------


def test_stac_search_finds_items_by_bounding_box(stac_server, scene_files):
    pystac_client = pytest.importorskip("pystac_client")
    items = scene_files.naip_items("http://127.0.0.1:1", *scene_files.neighbours)
    client = pystac_client.Client.open(stac_server(items))
    boxes = [item["bbox"] for item in items]
    between = [boxes[1][0], boxes[0][1], boxes[0][2], boxes[0][3]]
    found = {item.id for item in client.search(collections=["naip"], bbox=between).items()}
    assert found == {"va_m_3807857_sw_17_1_20100620", "va_m_3807857_se_17_1_20100620"}
    left = [boxes[0][0], boxes[0][1], boxes[0][0] + 1e-4, boxes[0][3]]
    (item,) = client.search(collections=["naip"], bbox=left, datetime="2010").items()
    assert item.assets["image"].href == "http://127.0.0.1:1/naip-split/m_3807857_sw_17_1_20100620.tif"
    assert not list(client.search(collections=["naip"], bbox=[10, 50, 11, 51]).items())
    assert not list(client.search(collections=["naip"], bbox=left, datetime="2012").items())


# -- faults --------------------------------------------------------------------------------------


def test_without_faults_the_faulty_server_serves_files(faulty_server, folder, session):
    server = faulty_server(folder)
    whole = session.get(f"{server.url}/data.bin")
    assert (whole.status_code, whole.content) == (200, DATA)
    for span, content in {"5-9": DATA[5:10], "1000-": DATA[1000:], "-4": DATA[-4:], "1020-2000": DATA[1020:]}.items():
        part = session.get(
            f"{server.url}/data.bin", headers={"Range": f"bytes={span}", "If-Range": whole.headers["ETag"]}
        )
        assert (part.status_code, part.content) == (206, content)
        assert part.headers["Content-Range"].endswith("/1024")
    assert session.get(f"{server.url}/data.bin", headers={"Range": "bytes=2000-"}).status_code == 416
    changed = session.get(f"{server.url}/data.bin", headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, DATA)
    head = session.head(f"{server.url}/data.bin")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, "1024", b"")
    assert session.get(f"{server.url}/none").status_code == 404
    assert [request.method for request in server.requests[-2:]] == ["HEAD", "GET"]
    assert server.requests[1].headers["range"] == "bytes=5-9"


def test_faults_happen_one_after_the_other(faulty_server, folder, session):
    server = faulty_server(folder)
    address = f"{server.url}/data.bin"
    server.faults.extend(["reset", "429", "503", "504", "403", "truncate", "wrong-length", "empty", "garbage"])
    with pytest.raises(requests.ConnectionError, match=r"[Rr]eset"):
        session.get(address)
    assert [session.get(address).status_code for _ in range(4)] == [429, 503, 504, 403]
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="512 bytes read, 512 more expected"):
        session.get(address)
    assert session.get(address).content == DATA[:512]
    empty = session.get(address)
    assert (empty.status_code, empty.content) == (200, b"")
    assert session.get(address).content == bytes(255 - value for value in DATA)
    assert session.get(address).content == DATA
    assert server.faults == []
    assert [request.fault for request in server.requests][-3:] == ["empty", "garbage", ""]


def test_a_reset_is_a_tcp_rst(faulty_server, folder):
    server = faulty_server(folder)
    server.faults.append("reset")
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.sendall(b"GET /data.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_faults_with_ranges(faulty_server, folder, session):
    server = faulty_server(folder)
    server.faults.extend(["wrong-length", "ignore-range", "empty", "truncate"])
    span = {"Range": "bytes=0-9"}
    wrong, ignored, empty = (session.get(f"{server.url}/data.bin", headers=span) for _ in range(3))
    assert (wrong.status_code, wrong.headers["Content-Range"], len(wrong.content)) == (206, "bytes 0-9/1025", 10)
    assert (ignored.status_code, ignored.content) == (200, DATA)
    assert (empty.status_code, empty.content, empty.headers.get("Content-Range")) == (200, b"", None)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="5 bytes read, 5 more expected"):
        session.get(f"{server.url}/data.bin", headers=span)


def test_a_redirect_loop_ends_at_the_next_attempt(faulty_server, folder, session):
    server = faulty_server(folder)
    server.faults.append("redirect-loop")
    with pytest.raises(requests.TooManyRedirects):
        session.get(f"{server.url}/data.bin")
    assert session.get(f"{server.url}/data.bin").content == DATA


def test_a_drip_is_slow_and_does_not_block_closing(folder):
    def read(server, size):
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(b"GET /data.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            head, body = b"", b""
            while len(body) < size:
                head += client.recv(4096)
                body = head.partition(b"\r\n\r\n")[2]
        assert b"Content-Length: 1024" in head
        return body

    start = time.monotonic()
    with FaultyServer(folder, None) as server:
        server.faults.extend(["drip", Fault("drip", seconds=1e6)])  # ends when the server is closed
        assert read(server, 3) == DATA[:3]
        assert time.monotonic() - start > 0.35
        assert read(server, 1) == DATA[:1]


def test_faults_apply_to_matching_requests(faulty_server, folder, session):
    server = faulty_server(folder)
    server.fail("503", path="year=2010", times=2, retry_after=7)
    server.faults.append(Fault("404", method="HEAD", times=None))
    asked = [session.get(f"{server.url}/data.bin", params={"year": year}) for year in (2012, 2010, 2010, 2010)]
    assert [answer.status_code for answer in asked] == [200, 503, 503, 200]
    assert asked[1].headers["Retry-After"] == "7"
    assert [session.head(f"{server.url}/data.bin").status_code for _ in range(3)] == [404] * 3
    with pytest.raises(ValueError, match="no such fault: 'fire'"):
        server.fail("fire")


def test_routes_return_recorded_responses(faulty_server, session):
    def sign(request):
        return (
            200,
            {"Content-Type": "application/json"},
            json.dumps({"href": f"{request.query['href']}?sig=1"}).encode(),
        )

    def interpreter(request):
        return 200, {"Content-Type": "text/plain"}, request.form["data"].encode()

    server = faulty_server(routes={"/api/sas/v1/sign": sign, "/api/interpreter": interpreter})
    server.fail("504", path="interpreter")
    assert session.get(f"{server.url}/api/sas/v1/sign", params={"href": "http://a/b"}).json() == {
        "href": "http://a/b?sig=1"
    }
    query = {"data": "[out:json];way(1);out;"}
    assert session.post(f"{server.url}/api/interpreter", data=query).status_code == 504
    assert session.post(f"{server.url}/api/interpreter", data=query).text == query["data"]
    assert [(request.method, request.path) for request in server.requests[1:]] == [("POST", "/api/interpreter")] * 2


# -- the place -----------------------------------------------------------------------------------


def test_the_images_and_nlcd_of_the_scene(scene_files):
    scene = scene_files.scene
    with rasterio.open(scene_files.image) as src:
        np.testing.assert_array_equal(src.read(), scene.image)
        assert (src.crs.to_epsg(), src.transform, src.profile["tiled"]) == (26917, scene.grid.transform, True)
        for path, columns in zip(scene_files.neighbours, (slice(0, 484), slice(284, 768)), strict=True):
            with rasterio.open(path) as part:
                np.testing.assert_array_equal(part.read(), scene.image[:, :, columns])
                assert part.bounds.left == src.bounds.left + columns.start
    with rasterio.open(scene_files.nlcd) as src:
        assert (src.crs.to_epsg(), src.res, src.nodata) == (5070, (30, 30), 0)
        assert {edge % 30 for edge in src.bounds} == {15}
        codes = src.read(1)
        for x, y in ((-20.0, 0.0), (100.5, 200.5), (700.5, 30.5)):
            xs, ys = rasterio.warp.transform(scene.grid.crs, src.crs, *([v] for v in scene.grid.transform @ (x, y)))
            row, column = src.index(xs[0], ys[0])
            near = scene.nlcd[max(int(y) - 22, 0) : int(y) + 22, max(int(x) - 22, 0) : int(x) + 22]
            assert codes[row, column] in (near if x > 0 else [0])
    assert set(np.unique(codes)) == {0, *np.unique(scene.nlcd)}
    with rasterio.open(scene_files.labels) as src:
        np.testing.assert_array_equal(src.read(1), scene.truth)


def read_layer(path: Path, layer: str, column: str) -> dict[str, int]:
    frame = pyogrio.read_dataframe(path, layer=layer)
    return dict(frame[column].value_counts()) if column in frame else {}


def test_the_pbf_has_all_features(scene_files):
    expected = {name: len(shapes) for name, shapes in scene_files.scene.vectors.items()}
    assert read_layer(scene_files.pbf, "lines", "highway") == {"residential": expected["roads"]}
    assert read_layer(scene_files.pbf, "lines", "waterway") == {"river": expected["waterways"]}
    assert read_layer(scene_files.pbf, "multipolygons", "building") == {"yes": expected["buildings"]}
    assert read_layer(scene_files.pbf, "multipolygons", "natural") == {"water": expected["waterbodies"]}
    frame = pyogrio.read_dataframe(scene_files.pbf, layer="multipolygons").to_crs(scene_files.scene.grid.crs)
    drawn = shapely.union_all(scene_files.scene.vectors["buildings"])
    assert (
        shapely.union_all(frame.geometry[frame["building"] == "yes"]).symmetric_difference(drawn).area
        < 0.001 * drawn.area
    )


def test_areas_with_holes_become_multipolygons(tmp_path):
    lake = shapely.Point(680_100, 4_210_100).buffer(50).difference(shapely.Point(680_100, 4_210_100).buffer(10))
    elements = osm_elements({"waterbodies": [lake]}, "EPSG:26917")
    (relation,) = (element for element in elements if element["type"] == "relation")
    assert [member["role"] for member in relation["members"]] == ["outer", "inner"]
    frame = pyogrio.read_dataframe(write_pbf(tmp_path / "lake.osm.pbf", elements), layer="multipolygons")
    assert list(frame["natural"]) == ["water"]
    assert frame.to_crs(26917).area[0] == pytest.approx(lake.area, rel=1e-4)


def test_overpass_returns_the_same_features(faulty_server, scene_files, session):
    server = faulty_server(routes={"/api/interpreter": scene_files.overpass})
    answer = session.post(f"{server.url}/api/interpreter", data={"data": "[out:json];..."}).json()
    nodes = {element["id"] for element in answer["elements"] if element["type"] == "node"}
    ways = [element for element in answer["elements"] if element["type"] == "way"]
    assert len(ways) == sum(map(len, scene_files.scene.vectors.values()))
    assert all(set(way["nodes"]) <= nodes for way in ways)


def test_the_footprints_are_found_by_quadkey(scene_files):
    (far, near) = csv.DictReader(scene_files.links_csv("http://127.0.0.1:1").splitlines())
    assert (near["Location"], near["QuadKey"]) == ("UnitedStates", "032001313")
    assert near["Url"] == "http://127.0.0.1:1/part-032001313.csv.gz"
    assert len(far["QuadKey"]) == 9
    lines = gzip.decompress(scene_files.footprints[near["QuadKey"]].read_bytes()).decode().splitlines()
    assert len(lines) == len(scene_files.scene.vectors["buildings"])
    assert {json.loads(line)["geometry"]["type"] for line in lines} == {"Polygon"}
