"""Buildings: Microsoft's footprints are found by quadkey, downloaded, and burnt like with rasterio."""

from __future__ import annotations

import csv
import gzip
import io
import json

import geopandas
import mercantile
import numpy as np
import pyogrio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from shapely.geometry import LineString, MultiPolygon, Point, box, mapping

from landprior.errors import OfflineError, SourceError, SourceWarning
from landprior.sources.buildings import download_buildings, list_files, quadkeys_of
from landprior.sources.burning import burn
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.vectors import read_vectors

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


def write_index(folder, rows):
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\r\n")
    writer.writerows([["Location", "QuadKey", "Url", "Size", "UploadDate"], *rows])
    (folder / "dataset-links.csv").write_text(table.getvalue(), encoding="utf-8-sig", newline="")


def write_footprints(path, shapes):
    """Write GeoJSON lines like those in Microsoft's files, one for each shape."""
    lines = [
        json.dumps({"type": "Feature", "properties": {"height": -1.0}, "geometry": mapping(shape)}) for shape in shapes
    ]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


# -- quadkeys ------------------------------------------------------------------------------------


def test_a_quadkey_computed_by_hand():
    # north of Pittsburgh, in tile x = 142, y = 192 of the 512 x 512 tiles of level 9, from the north-west:
    # x = 010001110, y = 011000000 in binary, and each digit of the key is 2 y + x
    assert (-80.0 + 180) / 360 * 512 // 1 == 142
    mercator = np.arcsinh(np.tan(np.radians(40.6)))
    assert (1 - mercator / np.pi) / 2 * 512 // 1 == 192
    assert quadkeys_of((-80.0, 40.6, -79.99, 40.61)) == ["032001110"]


@given(st.floats(-179, 179), st.floats(-80, 80), st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_quadkeys_cover_the_box(left, bottom, width, height):
    keys = quadkeys_of((left, bottom, left + width, bottom + height))
    tiles = [mercantile.bounds(mercantile.quadkey_to_tile(key)) for key in keys]
    assert {len(key) for key in keys} == {9}
    for x in (left, left + width / 2, left + width):
        for y in (bottom, bottom + height / 2, bottom + height):
            assert any(t.west - 1e-9 <= x <= t.east + 1e-9 and t.south - 1e-9 <= y <= t.north + 1e-9 for t in tiles)
    whole = box(left, bottom, left + width, bottom + height)
    assert all(box(*tile).intersects(whole) for tile in tiles)


# -- the index -----------------------------------------------------------------------------------

NORTH_WEST = (-179.9, 85.0, -179.8, 85.04)
"""In quadkey 000000000, whose zeros spreadsheet programs drop."""


def test_the_index_may_lack_leading_zeros_and_have_several_files_per_key(faulty_server, tmp_path, network):
    write_index(
        tmp_path,
        [
            ["Canada", "0", "https://files.test/a.csv.gz", "1KB", "2026-02-03"],
            ["Canada", "000000000", "https://files.test/b.csv.gz", "1KB", "2026-02-03"],
            ["Russia", "0", "parts/c.csv.gz", "1KB", "2026-02-03"],
            ["Canada", "32001110", "https://files.test/d.csv.gz", "1KB", "2026-02-03"],
            ["Canada", "132001110", "https://files.test/e.csv.gz", "1KB", "2026-02-03"],
        ],
    )
    server = faulty_server(tmp_path)
    url = f"{server.url}/dataset-links.csv"
    assert list_files(NORTH_WEST, network, index_url=url) == {
        "000000000": ["https://files.test/a.csv.gz", "https://files.test/b.csv.gz", f"{server.url}/parts/c.csv.gz"]
    }
    pittsburgh = (-80.0, 40.6, -79.99, 40.61)
    assert list_files(pittsburgh, network, index_url=url) == {"032001110": ["https://files.test/d.csv.gz"]}
    assert len(server.requests) == 1
    assert list_files((10.0, 50.0, 10.1, 50.1), network, index_url=url) == {"120203312": []}


@pytest.mark.parametrize("content", ["", "Location;QuadKey;Url\n", "<html>Not here</html>", "QuadKey,Size\n0,1\n"])
def test_an_invalid_index_is_refused(faulty_server, tmp_path, network, content):
    (tmp_path / "dataset-links.csv").write_text(content)
    with pytest.raises(
        SourceError, match=r"Buildings .Microsoft.: the index is not a table with QuadKey and Url.*--buildings"
    ):
        list_files(NORTH_WEST, network, index_url=f"{faulty_server(tmp_path).url}/dataset-links.csv")


# -- footprints ----------------------------------------------------------------------------------


@pytest.fixture
def grid(make_grid):
    return make_grid(200, 300)


@pytest.fixture
def houses(grid):
    """In degrees: some on the grid, one with a courtyard, one far away."""
    left, bottom, right, top = grid.bounds
    court = box(left + 100.3, top - 60.2, left + 140.1, top - 20.7)
    shapes = [
        box(left + 5.2, top - 20.1, left + 15.3, top - 8.2),
        court.difference(court.buffer(-8)),
        MultiPolygon(
            [box(right - 20.2, top - 30.1, right - 12.4, top - 22.6), box(right - 5.1, top - 9.9, right + 9, top)]
        ),
        Point(left + 50.3, bottom + 50.7).buffer(12.3),
        box(left - 3000, bottom - 3000, left - 2990, bottom - 2990),
    ]
    return list(geopandas.GeoSeries(shapes, crs=grid.crs.to_wkt()).to_crs(4326))


def burn_file(path, grid):
    return burn(read_vectors(path, grid=grid).geometry, grid)


def expected_of(shapes, grid):
    there = geopandas.GeoSeries(shapes, crs=4326).to_crs(grid.crs.to_wkt())
    return rasterize(there, grid.shape, transform=grid.transform, dtype="uint8")


def bounds_of(grid):
    return tuple(transform_bounds(grid.crs, "EPSG:4326", *grid.bounds, densify_pts=21))


@pytest.fixture
def served(faulty_server, tmp_path, grid, houses):
    """A server with an index that has two files for the grid's quadkey."""
    folder = tmp_path / "files"
    folder.mkdir()
    (key,) = quadkeys_of(bounds_of(grid))
    write_footprints(folder / "a.csv.gz", houses[:2])
    write_footprints(folder / "b.csv.gz", houses[2:])
    server = faulty_server(folder)
    rows = [["UnitedStates", key.lstrip("0"), f"{server.url}/{name}.csv.gz", "1KB", "2026-02-03"] for name in "ab"]
    write_index(folder, [["Canada", "133333333", f"{server.url}/none.csv.gz", "1KB", "2026-02-03"], *rows])
    server.index = f"{server.url}/dataset-links.csv"
    return server


def test_all_files_of_a_quadkey_are_burnt(served, network, grid, houses, tmp_path):
    path = download_buildings(bounds_of(grid), network, index_url=served.index)
    assert pyogrio.read_info(path)["features"] == 4
    expected = expected_of(houses, grid)
    np.testing.assert_array_equal(burn_file(path, grid), expected)
    assert expected[40, 120] == 0  # the courtyard
    assert expected[40, 103] == 1
    paths = [request.path for request in served.requests]
    assert paths == ["/dataset-links.csv", "/a.csv.gz", "/b.csv.gz"]
    assert download_buildings(bounds_of(grid), network, index_url=served.index) == path
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    assert download_buildings(bounds_of(grid), offline, index_url=served.index) == path
    left, bottom, right, top = bounds_of(grid)
    inner = download_buildings((left, bottom, (left + right) / 2, top), offline, index_url=served.index)
    assert pyogrio.read_info(inner)["features"] == 3
    assert len(served.requests) == 3


def test_the_scene_has_its_buildings(file_server, scene_files, network):
    url = file_server(scene_files.folder)
    (scene_files.folder / "links.csv").write_text(scene_files.links_csv(url), encoding="utf-8")
    grid = scene_files.scene.grid
    path = download_buildings(bounds_of(grid), network, index_url=f"{url}/links.csv")
    assert (burn_file(path, grid) == (scene_files.scene.layers["buildings"] > 0)).mean() > 0.999


def test_a_quadkey_that_is_not_listed_is_empty_with_a_message(served, network, grid, make_grid):
    elsewhere = make_grid(20, 30, left=300_000.0)
    (key,) = quadkeys_of(bounds_of(elsewhere))
    with pytest.warns(SourceWarning, match=rf"no buildings for quadkey {key}; the layer stays empty there"):
        path = download_buildings(bounds_of(elsewhere), network, index_url=served.index)
    assert not burn_file(path, elsewhere).any()
    (listed,) = quadkeys_of(bounds_of(grid))
    east = mercantile.bounds(mercantile.quadkey_to_tile(listed)).east
    left, bottom, right, top = bounds_of(grid)
    with pytest.warns(SourceWarning, match="no buildings for quadkey"):
        path = download_buildings((left, bottom, max(right, east + 0.001), top), network, index_url=served.index)
    assert pyogrio.read_info(path)["features"] == 4


def test_only_polygons_count_as_footprints(served, network, grid, houses, tmp_path):
    others = [houses[0].centroid, LineString(houses[3].exterior)]
    write_footprints(tmp_path / "files" / "a.csv.gz", others)
    write_footprints(tmp_path / "files" / "b.csv.gz", [*others, houses[0]])
    path = download_buildings(bounds_of(grid), network, index_url=served.index)
    np.testing.assert_array_equal(burn_file(path, grid), expected_of(houses[:1], grid))


def test_an_interrupted_download_resumes_and_a_damaged_one_is_refused(served, network, grid, houses, tmp_path):
    served.fail("truncate", path="a.csv.gz")
    path = download_buildings(bounds_of(grid), network, index_url=served.index)
    np.testing.assert_array_equal(burn_file(path, grid), expected_of(houses, grid))
    assert any(request.headers.get("Range") for request in served.requests)
    file = tmp_path / "files" / "b.csv.gz"
    whole = file.read_bytes()
    again = Network(Cache(tmp_path / "other"), policy=QUICK)
    for content in (whole[: len(whole) // 2], whole[:-8] + bytes(8), b"no gzip"):
        file.write_bytes(content)
        with pytest.raises(SourceError, match=r"Buildings .*a file of footprints is damaged .*--buildings"):
            download_buildings(bounds_of(grid), again, index_url=served.index)
    file.write_bytes(gzip.compress(b"this is\nno GeoJSON\n"))
    with pytest.raises(SourceError, match=r"a file is damaged and was deleted .*run again"):
        download_buildings(bounds_of(grid), again, index_url=served.index)
    file.write_bytes(whole)
    path = download_buildings(bounds_of(grid), again, index_url=served.index)
    np.testing.assert_array_equal(burn_file(path, grid), expected_of(houses, grid))


def test_offline_the_missing_file_is_named(served, network, grid, tmp_path):
    list_files(bounds_of(grid), network, index_url=served.index)
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    with pytest.raises(OfflineError, match=r"a\.csv\.gz is not in the cache"):
        download_buildings(bounds_of(grid), offline, index_url=served.index)
