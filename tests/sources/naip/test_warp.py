"""Resampling NAIP images to the grid of a tile."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from landprior.errors import RasterReadError, SourceError
from landprior.raster.grid import Grid
from landprior.sources.http.client import Network
from landprior.sources.http.origins import Remote
from landprior.sources.naip.grid import tile_grid
from landprior.sources.naip.images import NaipImage
from landprior.sources.naip.search import list_images
from landprior.sources.naip.warp import write_image

from .shared import AT, PLACE, choose_all, write_tiff


def put(tmp_path, path, grid, network):
    """Write an image onto a grid, and return its bands."""
    (image,) = list_images(path)
    out = write_image(image, grid, tmp_path / f"out_{path.name}", network, overwrite=True)
    with rasterio.open(out) as dst:
        assert (Grid.of(dst), dst.nodata) == (grid, 0)
        assert ColorInterp.alpha not in dst.colorinterp
        return dst.read()


RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


@pytest.fixture
def speckled(rng):
    """Varied values; near infrared is 0 in places, as over water, and so are other bands."""
    values = rng.integers(0, 256, size=(4, 90, 120), dtype=np.uint8)
    values[3, 20:40, 20:40] = 0
    values[:3, 50:55, 50:55] = 0
    values[3, 50:55, 50:55] = 9
    values[1:, 60:63, 60:63] = 0
    values[0, 60:63, 60:63] = 5
    return values


@pytest.mark.parametrize("colors", [None, RGBA], ids=["plain", "alpha"])
def test_pixels_on_the_grid_are_copied(tmp_path, network, speckled, colors):
    path = write_tiff(tmp_path / "a.tif", speckled, transform=AT, colors=colors, photometric="RGB")
    with rasterio.open(path) as src:
        assert (src.colorinterp[3] is ColorInterp.alpha) == (colors is RGBA)
    left, top = 600_010, 4_499_995
    inside = Grid(width=70, height=60, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(26917))
    np.testing.assert_array_equal(put(tmp_path, path, inside, network), speckled[:, 5:65, 10:80])
    around = Grid(width=200, height=150, transform=Affine(1, 0, left - 40, 0, -1, top + 20), crs=CRS.from_epsg(26917))
    expected = np.zeros((4, 150, 200), dtype=np.uint8)
    expected[:, 15:105, 30:150] = speckled
    np.testing.assert_array_equal(put(tmp_path, path, around, network), expected)


def test_windows_leave_no_seams(tmp_path, network, rng, monkeypatch):
    values = rng.integers(1, 256, size=(4, 150, 220), dtype=np.uint8)
    transform = Affine(0.6, 0, 600_000.2, 0, -0.6, 4_500_000.4)
    path = write_tiff(tmp_path / "a.tif", values, transform=transform)
    own = Grid(width=130, height=88, transform=Affine(1, 0, 600_001, 0, -1, 4_499_999), crs=CRS.from_epsg(26917))
    left, top = np.floor(Transformer.from_crs(26917, 26918, always_xy=True).transform(600_000, 4_500_010))
    next_zone = Grid(width=150, height=120, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(26918))
    for grid in (own, next_zone):
        whole = put(tmp_path, path, grid, network)
        monkeypatch.setattr("landprior.sources.naip.warp._WINDOW", 32)
        difference = np.abs(put(tmp_path, path, grid, network).astype(int) - whole)
        monkeypatch.undo()
        if grid is own:
            assert not difference.any()
        assert difference.max() <= 1  # in each window GDAL approximates positions to an eighth of a pixel
        assert difference.mean() < 0.002
        assert (whole > 0).any(axis=0).mean() > 0.3


def weights(grid_edges, source_edges):
    """Return how much of each source pixel is in each pixel of the grid, along one axis."""
    low = np.maximum(grid_edges[:-1, None], source_edges[None, :-1])
    high = np.minimum(grid_edges[1:, None], source_edges[None, 1:])
    return np.clip(high - low, 0, None)


def average(values, transform, grid, valid=None):
    """Return the area-weighted mean of the source pixels with data in each pixel, or 0 if there are none."""
    height, width = values.shape[1:]
    valid = np.ones((height, width)) if valid is None else valid
    columns = transform.c + transform.a * np.arange(width + 1)
    rows = -(transform.f + transform.e * np.arange(height + 1))
    across = weights(grid.transform.c + np.arange(grid.width + 1), columns)
    down = weights(-grid.transform.f + np.arange(grid.height + 1), rows)
    mass = down @ valid @ across.T
    return np.stack([down @ (band * valid) @ across.T for band in values]) / np.where(mass > 1e-9, mass, 1), mass


@pytest.mark.parametrize(
    ("a", "e"), [(0.6, -0.6), (0.599384, -0.6008007), (0.3, -0.3), (0.5, -0.5)], ids=["0.6", "unequal", "0.3", "0.5"]
)
@pytest.mark.parametrize("colors", [None, RGBA], ids=["plain", "alpha"])
def test_smaller_pixels_are_averaged_by_area(tmp_path, network, rng, a, e, colors):
    values = rng.integers(1, 256, size=(4, 160, 170), dtype=np.uint8)
    values[3, 30:60, 30:60] = 0
    transform = Affine(a, 0, 600_000.37, 0, e, 4_500_000.81)
    path = write_tiff(tmp_path / "a.tif", values, transform=transform, colors=colors, photometric="RGB")
    (image,) = list_images(path)
    grid = tile_grid(choose_all(image), margin=3)
    result = put(tmp_path, path, grid, network)
    expected, mass = average(values, transform, grid)
    whole = mass > 0.99
    assert whole.mean() > 0.7
    assert np.abs(result.astype(float) - expected)[:, whole].max() <= 1.0
    assert np.abs(result.astype(float) - expected)[:, whole].mean() < 0.3
    np.testing.assert_array_equal(result[:, mass < 1e-9], 0)


@pytest.mark.parametrize("kind", ["zeros", "nodata 0", "nodata 255", "mask"])
@pytest.mark.parametrize("size", [1.0, 0.6, 2.0])
def test_nodata_stays_nodata_and_does_not_bleed(tmp_path, network, kind, size):
    values = np.full((4, 100, 100), 200, dtype=np.uint8)
    gone = np.zeros((100, 100), dtype=bool)
    gone[20:50, 30:70] = True
    values[:, gone] = {"nodata 255": 255, "mask": 37}.get(kind, 0)
    values[:, 80:90, 80:90] = 0 if kind in {"nodata 255", "mask"} else 1  # black, but data
    options = {"nodata": int(kind.split()[1])} if kind.startswith("nodata") else {}
    mask = np.where(gone, 0, 255).astype(np.uint8) if kind == "mask" else None
    start = 0.0 if size == 1.0 else 0.1
    transform = Affine(size, 0, 600_000 + start, 0, -size, 4_500_000 - start)
    path = write_tiff(tmp_path / "a.tif", values, transform=transform, mask=mask, photometric="MINISBLACK", **options)
    grid = tile_grid(choose_all(list_images(path)[0]), margin=5)
    result = put(tmp_path, path, grid, network)
    has_data = (result > 0).any(axis=0)
    _, mass = average(values, transform, grid, (~gone).astype(float))
    if size == 1.0:
        np.testing.assert_array_equal(has_data, mass > 0.5)
    else:
        np.testing.assert_array_equal(has_data[mass > 0.99], True)
        np.testing.assert_array_equal(has_data[mass < 0.001], False)
    x, y = round(85 * size) + 5, round(85 * size) + 5
    assert result[:, y, x].max() <= 1
    assert has_data[y, x]
    # the edge of missing data is as bright as the rest, so missing values are not mixed in
    edge = has_data & (result[0] < 150)
    rows, columns = np.nonzero(edge)
    assert rows.min() > 75 * size
    assert columns.min() > 75 * size


CORNER = (600_431, 4_499_612)


def bright_square(tmp_path, size, *, epsg=26917, west=600_400.0, north=4_499_650.0):
    """Write 10 everywhere except for 210 in a square of 30 m whose upper left corner is CORNER."""
    count = round(100 / size)
    x = west + size * (np.arange(count) + 0.5)
    y = north - size * (np.arange(count) + 0.5)
    inside = ((y <= CORNER[1]) & (y >= CORNER[1] - 30))[:, None] & ((x >= CORNER[0]) & (x <= CORNER[0] + 30))[None, :]
    values = np.broadcast_to(np.where(inside, 210, 10), (4, count, count))
    return write_tiff(tmp_path / f"{size}.tif", values, transform=Affine(size, 0, west, 0, -size, north), epsg=epsg)


@pytest.mark.parametrize("size", [1.0, 0.6, 0.5, 0.3])
@pytest.mark.parametrize("epsg", [26917, 26918], ids=["own zone", "next zone"])
@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_a_corner_stays_in_its_place(tmp_path, network, size, epsg, offset):
    path = bright_square(tmp_path, size, west=600_400.0 + offset, north=4_499_650.0 - offset)
    to_grid = Transformer.from_crs(26917, epsg, always_xy=True).transform
    left, top = np.floor(to_grid(CORNER[0] - 15, CORNER[1] + 15))
    grid = Grid(width=70, height=70, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(epsg))
    bright = put(tmp_path, path, grid, network)[0] > 110
    columns, rows = np.meshgrid(np.arange(70) + 0.5, np.arange(70) + 0.5)
    x, y = Transformer.from_crs(epsg, 26917, always_xy=True).transform(*(grid.transform @ (columns, rows)))
    # how far inside the square a pixel's centre is, in metres; the source itself is off by half a pixel
    depth = np.minimum.reduce([x - CORNER[0], CORNER[0] + 30 - x, CORNER[1] - y, y - CORNER[1] + 30])
    slack = 0.5 + size / 2 * (offset > 0 or size not in {1.0, 0.5})
    np.testing.assert_array_equal(bright[depth > slack], True)
    np.testing.assert_array_equal(bright[depth < -slack], False)
    # overall it is not moved either: its centre of mass, and its area
    shift = np.array([columns[bright].mean(), rows[bright].mean()]) - [
        columns[depth > 0].mean(),
        rows[depth > 0].mean(),
    ]
    assert np.abs(shift).max() < 0.3
    assert bright.sum() == pytest.approx(900, rel=0.05)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["naip_va_4band_1m", "m_3607717_sw_18_1_20160620_subset"])
def test_real_images_at_one_metre_are_copied(real_data, tmp_path, network, name):
    path = real_data / "naip-samples" / f"{name}.tif"
    with rasterio.open(path) as src:
        values, grid = src.read(), Grid.of(src)
    np.testing.assert_array_equal(put(tmp_path, path, grid, network), values)
    assert values[3].std() > 5


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["m_3211605_ne_11_060_20200415", "m_4208701_ne_16_060_20200902"])
def test_real_images_with_smaller_pixels_are_averaged(real_data, tmp_path, network, name):
    path = real_data / "naip-samples" / f"{name}.tif"
    with rasterio.open(path) as src:
        values, transform = src.read(), src.transform
        assert src.colorinterp[3] is ColorInterp.alpha
    grid = tile_grid(choose_all(list_images(path)[0]), margin=0)
    expected, mass = average(values, transform, grid)
    difference = np.abs(put(tmp_path, path, grid, network).astype(float) - expected)[:, mass > 0.99]
    assert difference.max() <= 1.0
    assert difference.mean() < 0.3


@pytest.mark.realdata
def test_real_neighbours_agree_at_the_border_of_two_zones(real_data, tmp_path, network):
    """Both show the same place, in whichever zone."""
    folder = real_data / "naip-samples"
    first, second = folder / "m_3607717_sw_18_1_20160620_subset.tif", folder / "m_3607824_se_17_1_20160620_subset.tif"
    with rasterio.open(first) as src:
        grid, own = Grid.of(src), src.read().astype(float)
    other = put(tmp_path, second, grid, network).astype(float)
    both = (other > 0).any(axis=0)

    def likeness(row, column):
        moved = np.roll(other, (row, column), axis=(1, 2))
        there = np.roll(both, (row, column), axis=(0, 1))
        return np.corrcoef(own[1][there], moved[1][there])[0, 1]

    scores = {(r, c): likeness(r, c) for r in range(-3, 4) for c in range(-3, 4)}
    assert both.sum() > 5000
    assert max(scores, key=scores.get) == (0, 0)
    assert scores[0, 0] > 0.99


def test_three_bands_stay_three_and_there_is_no_data_elsewhere(tmp_path, network, speckled):
    rgb = write_tiff(tmp_path / "rgb.tif", speckled[:3], transform=AT)
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    np.testing.assert_array_equal(put(tmp_path, rgb, grid, network), speckled[:3, :30, :40])
    far = Grid(width=40, height=30, transform=Affine(1, 0, 700_000, 0, -1, 4_500_000), crs=CRS.from_epsg(26917))
    assert not put(tmp_path, rgb, far, network).any()


def test_pixels_of_a_catalogue_are_read_by_ranges(tmp_path, network, faulty_server, speckled):
    write_tiff(tmp_path / "m_1_20100620.tif", speckled, transform=AT)
    server = faulty_server(tmp_path)
    remote = make_remote(f"{server.url}/m_1_20100620.tif")
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    out = write_image(remote, grid, tmp_path / "out.tif", network)
    with rasterio.open(out) as dst:
        np.testing.assert_array_equal(dst.read(), speckled[:, :30, :40])
        tags = dst.tags(ns="landprior")
    assert (tags["origin"], tags["date"], tags["resampling"]) == (remote.origin, "2010-06-20", "nearest")
    assert all(request.headers["Range"] for request in server.requests)
    count = len(server.requests)
    write_image(remote, grid, tmp_path / "again.tif", Network(network.cache, offline=True))
    assert len(server.requests) == count


def make_remote(url):
    return NaipImage(id="m_1", year=2010, date="2010-06-20", footprint=PLACE, source=Remote(url))


def test_a_damaged_download_is_fetched_again_once(tmp_path, network, faulty_server, speckled, caplog):
    write_tiff(tmp_path / "m_1.tif", speckled, transform=AT, compress="deflate")
    server = faulty_server(tmp_path)
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    server.fail("garbage")
    out = write_image(make_remote(f"{server.url}/m_1.tif"), grid, tmp_path / "out.tif", network)
    with rasterio.open(out) as dst:
        np.testing.assert_array_equal(dst.read(), speckled[:, :30, :40])
    assert "is damaged" in caplog.text
    (tmp_path / "cut.tif").write_bytes((tmp_path / "m_1.tif").read_bytes()[:20_000])
    with pytest.raises(SourceError, match=r"NAIP: .*cut\.tif is damaged .*--naip"):
        write_image(make_remote(f"{server.url}/cut.tif"), grid, tmp_path / "cut_out.tif", network)
    assert not (tmp_path / "cut_out.tif").exists()
    with pytest.raises(SourceError, match=r"NAIP: .*damaged\.tif answered 404"):
        write_image(make_remote(f"{server.url}/damaged.tif"), grid, tmp_path / "cut_out.tif", network)
    assert (
        sum("damaged.tif" in request.path for request in server.requests) == 1
    )  # not retried, since it is damaged in name only
    (image,) = list_images(tmp_path / "cut.tif")
    with pytest.raises(RasterReadError, match=r"cut\.tif is damaged or truncated .*copy or download it again"):
        write_image(image, grid, tmp_path / "cut_out.tif", network)
    assert not (tmp_path / "cut_out.tif").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({"epsg": None}, "has no CRS"), ({"dtype": "uint16"}, "has type uint16; NAIP has uint8")]
)
def test_a_remote_file_that_is_not_naip_is_refused(tmp_path, network, faulty_server, options, message):
    write_tiff(tmp_path / "a.tif", np.ones((4, 30, 40)), transform=AT, **options)
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    with pytest.raises(RasterReadError, match=message):
        write_image(make_remote(f"{faulty_server(tmp_path).url}/a.tif"), grid, tmp_path / "out.tif", network)
