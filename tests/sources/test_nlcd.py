"""NLCD: cells from coverage services and national files are exact, and placed to within half a metre."""

from __future__ import annotations

import re

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from landprior.errors import (
    GridMismatchError,
    InputError,
    MissingInputError,
    OfflineError,
    SourceBusyError,
    SourceError,
    SourceWarning,
)
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.landcover.workspace.nlcd_layer import write_nlcd
from landprior.landcover.workspace.tile_fetch import TileFetcher
from landprior.raster.grid import Grid
from landprior.run import Run
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.nlcd import clip_file, describe_coverage, download_nlcd, match_year
from landprior.sources.public import WCS_URL

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)
COVERAGE = "mrlc:Land-Cover"


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


def read(path):
    with rasterio.open(path) as src:
        return src.read(1), Grid.of(src), src.nodata


def check_cells(path, source, grid):
    """Check that a file has exactly the cells of another on its grid, and covers a grid plus two cells around it."""
    values, own, _ = read(path)
    whole, there, _ = read(source)
    column, row = ~there.transform @ own.transform @ (0, 0)
    assert (column, row) == pytest.approx((round(column), round(row)), abs=1e-6)
    assert (own.transform.a, own.transform.e) == (there.transform.a, there.transform.e)
    rows, columns = slice(round(row), round(row) + own.height), slice(round(column), round(column) + own.width)
    np.testing.assert_array_equal(values, whole[rows, columns])
    wanted = transform_bounds(grid.crs, there.crs, *grid.bounds, densify_pts=21)
    reach = np.array(own.bounds) - wanted
    assert (np.abs(reach) <= 3 * 30 + 1e-6).all()
    assert (reach * [-1, -1, 1, 1] >= 2 * 30 - 1e-6).all()
    return values


def within(scene_files, *, left=100, top=150, width=300, height=200):
    grid = scene_files.scene.grid
    return Grid(width=width, height=height, transform=grid.transform @ Affine.translation(left, top), crs=grid.crs)


def place_at(left, top, width=90, height=60, epsg=5070):
    return Grid(width=width, height=height, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(epsg))


# -- a real server -----------------------------------------------------------------------------


def test_cells_from_mapserver_are_exact(wcs_server, scene_files, network, tmp_path):
    url = wcs_server(scene_files.nlcd, coverage="nlcd")
    described = describe_coverage(network, url=url, coverage="nlcd")
    with rasterio.open(scene_files.nlcd) as src:
        assert described.transform == src.transform
        assert (described.crs, described.height, described.width) == (src.crs, *src.shape)
    assert (described.srs, described.years) == ("EPSG:5070", ())
    grid = within(scene_files)
    path = download_nlcd(grid, None, network, url=url, coverage="nlcd")
    values = check_cells(path, scene_files.nlcd, grid)
    assert len(np.unique(values)) > 3
    asked = [request.path for request in wcs_server.requests(url)]
    assert [re.search("request=([A-Za-z]+)", path)[1] for path in asked[1:]] == ["DescribeCoverage", "GetCoverage"]
    assert "time" not in asked[-1].lower()
    assert download_nlcd(grid, None, network, url=url, coverage="nlcd") == path
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    assert download_nlcd(grid, None, offline, url=url, coverage="nlcd") == path
    assert len(wcs_server.requests(url)) == len(asked)
    with pytest.raises(OfflineError, match=r"NLCD: .* is not in the cache"):
        download_nlcd(within(scene_files, left=0), None, offline, url=url, coverage="nlcd")


def test_at_the_edge_of_the_coverage_at_least_three_cells_are_requested(wcs_server, scene_files, network):
    url = wcs_server(scene_files.nlcd, coverage="nlcd")
    with rasterio.open(scene_files.nlcd) as src:
        left, bottom, right, top = src.bounds
    whole, there, _ = read(scene_files.nlcd)
    for grid in (
        place_at(left - 89, top + 59),  # overlaps it by only a metre
        place_at(right - 1, bottom + 1),
        place_at(left - 50, bottom + 50),
        place_at(left + 300, top - 300, width=1, height=1),
        place_at(left - 30, top + 30, width=8000, height=8000),
    ):
        values, own, _ = read(download_nlcd(grid, None, network, url=url, coverage="nlcd"))
        assert min(own.shape) >= 3
        column, row = (round(value) for value in ~there.transform @ own.transform @ (0, 0))
        np.testing.assert_array_equal(values, whole[row : row + own.height, column : column + own.width])
    count = len(wcs_server.requests(url))
    for grid in (
        place_at(left - 90, top - 300),
        place_at(right, top - 300),
        place_at(left + 300, top + 60),
        place_at(left + 300, bottom),
        place_at(0, 0),
    ):
        with pytest.raises(GridMismatchError, match=r"NLCD: .* has no data at this place; give the national file"):
            download_nlcd(grid, None, network, url=url, coverage="nlcd")
    assert len(wcs_server.requests(url)) == count


def test_errors_of_mapserver_are_passed_on(wcs_server, scene_files, network):
    url = wcs_server(scene_files.nlcd, coverage="nlcd")
    with pytest.raises(SourceError, match=r"NLCD: .*/wcs says: .*none.*; give the national file") as caught:
        describe_coverage(network, url=url, coverage="none")
    assert not isinstance(caught.value, SourceBusyError)
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"says: .*does not support temporal subsetting"):
        download_nlcd(within(scene_files), 2021, network, url=url, coverage="nlcd")
    wcs_server.stop(url)
    with pytest.raises(SourceBusyError, match=r"cannot be reached.*tried 2 times.*--nlcd-wcs"):
        download_nlcd(within(scene_files, left=0), None, network, url=url, coverage="nlcd")


@pytest.mark.realdata
def test_real_nlcd_is_exact_and_in_the_right_place(wcs_server, real_data, network, tmp_path):
    source = real_data / "nlcd-samples" / "nlcd_rhode_island_30m.tif"
    url = wcs_server(source, coverage="nlcd")
    grid = place_at(290_000, 4_620_000, width=1000, height=500, epsg=26919)
    path = download_nlcd(grid, None, network, url=url, coverage="nlcd")
    values = check_cells(path, source, grid)
    assert len(np.unique(values)) > 8
    assert read(path)[2] == 255
    layer, own, nodata = read(write_nlcd(path, grid, tmp_path / "nlcd.tif"))
    assert (own, nodata) == (grid, 0)
    check_edges(layer, path, grid)
    np.testing.assert_array_equal(read(write_nlcd(source, grid, tmp_path / "whole.tif"))[0], layer)
    sea = place_at(320_000, 4_570_000, width=300, height=300, epsg=26919)
    with pytest.raises(GridMismatchError, match="has no data"):
        write_nlcd(source, sea, tmp_path / "sea.tif")
    assert not (tmp_path / "sea.tif").exists()
    coast = place_at(322_010, 4_586_780, width=300, height=300, epsg=26919)
    layer, _, _ = read(write_nlcd(source, coast, tmp_path / "coast.tif"))
    assert 255 not in layer
    assert 0.1 < (layer == 0).mean() < 0.3  # 255 in the file


# -- position of cells -------------------------------------------------------------------------


def check_edges(layer, source, grid):
    """Check that each pixel has the code of the cell that contains its centre, except within 0.1 m of another cell."""
    codes, there, _ = read(source)
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    places = grid.transform @ (columns, rows)
    to_cells = Transformer.from_crs(grid.crs.to_wkt(), there.crs.to_wkt(), always_xy=True)
    x, y = ~there.transform @ to_cells.transform(*places)
    expected = codes[np.floor(y).astype(int), np.floor(x).astype(int)]
    wrong = layer != np.where(expected == 255, 0, expected)
    to_edge = 30 * np.minimum(np.abs(x - np.round(x)), np.abs(y - np.round(y)))
    assert wrong.mean() < 1e-3
    assert to_edge[wrong].max(initial=0.0) < 0.1


@pytest.mark.parametrize("crs", ["EPSG:5070", "EPSG:4326", "EPSG:3857"])
def test_cells_are_in_the_right_place_throughout_a_tile(tmp_path, rng, crs):
    grid = place_at(585_000, 4_483_000, width=7000, height=120, epsg=26917)
    left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds)
    cell = 30 if crs != "EPSG:4326" else 1 / 3600
    shape = (int((top - bottom) / cell) + 8, int((right - left) / cell) + 8)
    transform = Affine(cell, 0, left - 3.3 * cell, 0, -cell, top + 3.7 * cell)
    place = {"crs": crs, "transform": transform, "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "cells.tif", "w", **place) as dst:
        dst.write(rng.integers(1, 100, shape, dtype=np.uint8), 1)
    layer, _, _ = read(write_nlcd(tmp_path / "cells.tif", grid, tmp_path / "nlcd.tif"))
    check_edges(layer, tmp_path / "cells.tif", grid)


def test_the_layer_has_the_cells_of_the_service(wcs_server, scene_files, network, tmp_path):
    url = wcs_server(scene_files.nlcd, coverage="nlcd")
    grid = within(scene_files, width=500, height=400)
    path = download_nlcd(grid, None, network, url=url, coverage="nlcd")
    layer, own, nodata = read(write_nlcd(path, grid, tmp_path / "nlcd.tif"))
    assert (own, nodata) == (grid, 0)
    check_edges(layer, scene_files.nlcd, grid)


# -- a server like that of USGS ------------------------------------------------------------------

# GeoServer's form (WCS 1.0.0): the origin is the centre of the first cell, and its numbers may be rounded.
DESCRIPTION = """\
<?xml version="1.0" encoding="UTF-8"?>
<wcs:CoverageDescription version="1.0.0" xmlns:wcs="http://www.opengis.net/wcs" xmlns:gml="http://www.opengis.net/gml"
    xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:ows="http://www.opengis.net/ows/1.1">
  <wcs:CoverageOffering>
    <wcs:description>Generated from ImageMosaic</wcs:description>
    <wcs:name>mrlc:Land-Cover</wcs:name>
    <wcs:label>Land-Cover</wcs:label>
    <wcs:lonLatEnvelope srsName="urn:ogc:def:crs:OGC:1.3:CRS84">
      <gml:pos>-130.23 21.74</gml:pos>
      <gml:pos>-63.67 52.92</gml:pos>
      <gml:timePosition>1985-01-01T00:00:00.000Z</gml:timePosition>
      <gml:timePosition>2024-01-01T00:00:00.000Z</gml:timePosition>
    </wcs:lonLatEnvelope>
    <wcs:keywords><wcs:keyword>WCS</wcs:keyword></wcs:keywords>
    <wcs:domainSet>
      <wcs:spatialDomain>
        <gml:{envelope} srsName="EPSG:5070">
          <gml:pos>{left} {bottom}</gml:pos>
          <gml:pos>{right} {top}</gml:pos>
          {span}
        </gml:{envelope}>
        <gml:RectifiedGrid dimension="2" srsName="EPSG:5070">
          <gml:limits>
            <gml:GridEnvelope>
              <gml:low>0 0</gml:low>
              <gml:high>{last_column} {last_row}</gml:high>
            </gml:GridEnvelope>
          </gml:limits>
          <gml:axisName>E</gml:axisName>
          <gml:axisName>N</gml:axisName>
          <gml:origin><gml:pos>{x} {y}</gml:pos></gml:origin>
          <gml:offsetVector>30.0 0.0</gml:offsetVector>
          <gml:offsetVector>0.0 -30.0</gml:offsetVector>
        </gml:RectifiedGrid>
      </wcs:spatialDomain>
      {domain}
    </wcs:domainSet>
    <wcs:rangeSet><wcs:RangeSet>
      <wcs:name>Land-Cover</wcs:name>
      <wcs:label>Land-Cover</wcs:label>
      <wcs:axisDescription><wcs:AxisDescription>
        <wcs:name>Band</wcs:name>
        <wcs:label>Band</wcs:label>
        <wcs:values><wcs:singleValue>1</wcs:singleValue></wcs:values>
      </wcs:AxisDescription></wcs:axisDescription>
    </wcs:RangeSet></wcs:rangeSet>
    <wcs:supportedCRSs><wcs:requestResponseCRSs>EPSG:5070</wcs:requestResponseCRSs></wcs:supportedCRSs>
    <wcs:supportedFormats nativeFormat="ImageMosaic">
      <wcs:formats>ArcGrid</wcs:formats>
      <wcs:formats>GeoTIFF</wcs:formats>
      <wcs:formats>ImageMosaic</wcs:formats>
    </wcs:supportedFormats>
    <wcs:supportedInterpolations default="nearest neighbor">
      <wcs:interpolationMethod>nearest neighbor</wcs:interpolationMethod>
      <wcs:interpolationMethod>bilinear</wcs:interpolationMethod>
    </wcs:supportedInterpolations>
  </wcs:CoverageOffering>
</wcs:CoverageDescription>
"""
TIMES = [f"<gml:timePosition>{year}-01-01T00:00:00.000Z</gml:timePosition>" for year in (2006, 2011, 2016, 2021)]
LIST = f"<wcs:temporalDomain>{''.join(TIMES)}</wcs:temporalDomain>"
PERIOD = (
    "<wcs:temporalDomain><wcs:timePeriod><wcs:beginPosition>1985-01-01T00:00:00.000Z</wcs:beginPosition>"
    "<wcs:endPosition>2024-01-01T00:00:00.000Z</wcs:endPosition><wcs:timeResolution>P1Y</wcs:timeResolution>"
    "</wcs:timePeriod></wcs:temporalDomain>"
)
XML = {"Content-Type": "application/vnd.ogc.se_xml"}


@pytest.fixture
def geoserver(faulty_server, scene_files):
    """A coverage service of the scene's NLCD that responds like GeoServer; its attributes change the responses."""
    codes, there, _ = read(scene_files.nlcd)

    def answer(request):
        query = {name.lower(): value for name, value in request.query.items()}
        if query["request"] == "DescribeCoverage":
            left, bottom, right, top = there.bounds
            words = {"left": left, "bottom": bottom, "right": right, "top": top, "envelope": "Envelope", "span": ""}
            words |= {"x": left + 15, "y": top - 15, "domain": server.domain}
            words |= {"last_column": there.width - 1, "last_row": there.height - 1} | server.changes
            return 200, {"Content-Type": "text/xml"}, DESCRIPTION.format(**words).encode()
        if server.says is not None:
            return 200, XML, server.says
        left, bottom, right, top = map(float, query["bbox"].split(","))
        width, height = int(query["width"]), int(query["height"])
        assert query["crs"] == "EPSG:5070"
        assert query["format"] == "GeoTIFF"
        column, row = ~there.transform @ (left, top)
        assert (column % 1, row % 1, (right - left) / width, (top - bottom) / height) == (0, 0, 30, 30)
        values = codes[int(row) : int(row) + height, int(column) : int(column) + width]
        return 200, {"Content-Type": "image/tiff"}, server.encode(values, Affine(30, 0, left, 0, -30, top))

    server = faulty_server(routes={"/geoserver/wcs": answer})
    server.domain, server.changes, server.says, server.encode = LIST, {}, None, encode_tiff
    server.wcs = f"{server.url}/geoserver/wcs"
    return server


def encode_tiff(values, transform, **options):
    options = {"crs": "EPSG:5070", "count": 1, "dtype": values.dtype, "transform": transform, **options}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", height=values.shape[0], width=values.shape[1], **options) as dst:
            dst.write(values, 1)
        return memory.read()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"envelope": "EnvelopeWithTimePeriod", "span": TIMES[0] + TIMES[-1]},
        {"left": 1_400_000.0, "top": 1_900_000.0},  # the envelope is only a guess
    ],
    ids=["plain", "with times", "guessed"],
)
def test_the_origin_of_geoserver_is_the_centre_of_a_cell(geoserver, scene_files, network, changes):
    geoserver.changes = changes
    described = describe_coverage(network, url=geoserver.wcs, coverage=COVERAGE)
    with rasterio.open(scene_files.nlcd) as src:
        assert described.transform == src.transform
        assert (described.crs, described.height, described.width) == (src.crs, *src.shape)
    assert (described.years, described.format) == ((2006, 2011, 2016, 2021), "GeoTIFF")
    grid = within(scene_files)
    path = download_nlcd(grid, 2011, network, url=geoserver.wcs, coverage=COVERAGE)
    check_cells(path, scene_files.nlcd, grid)
    query = geoserver.requests[-1].query
    assert query["time"] == "2011-01-01T00:00:00.000Z"
    assert (query["version"], query["coverage"], query["interpolation"]) == ("1.0.0", COVERAGE, "nearest neighbor")


def test_a_rounded_origin_moves_cells_only_by_the_rounding(geoserver, scene_files, network):
    with rasterio.open(scene_files.nlcd) as src:
        left, top = src.bounds.left, src.bounds.top
    geoserver.changes = {"x": left + 15.004, "y": top - 14.996}
    described = describe_coverage(network, url=geoserver.wcs, coverage=COVERAGE)
    assert (described.transform.c, described.transform.f) == pytest.approx((left, top), abs=0.005)


@pytest.mark.parametrize(
    ("domain", "years"),
    [
        (LIST, (2006, 2011, 2016, 2021)),
        (PERIOD, tuple(range(1985, 2025))),
        ("", ()),
        ("<wcs:temporalDomain/>", ()),
        ("<wcs:temporalDomain><gml:timePosition>2001</gml:timePosition></wcs:temporalDomain>", (2001,)),
    ],
)
def test_the_years_are_those_listed_or_all_in_a_period(geoserver, network, domain, years):
    geoserver.domain = domain
    assert describe_coverage(network, url=geoserver.wcs, coverage=COVERAGE).years == years


def test_each_year_and_service_is_cached_separately(geoserver, scene_files, network):
    grid = within(scene_files)
    paths = {download_nlcd(grid, year, network, url=geoserver.wcs, coverage=COVERAGE) for year in (2006, 2011, None)}
    paths |= {download_nlcd(grid, 2011, network, url=f"{geoserver.wcs}?map=other", coverage=COVERAGE)}
    assert len(paths) == 4
    assert geoserver.requests[-1].query["map"] == "other"
    assert "time" not in next(r for r in geoserver.requests[::-1] if "map" not in r.query).query
    count = len(geoserver.requests)
    download_nlcd(grid, 2006, network, url=geoserver.wcs, coverage=COVERAGE)
    assert len(geoserver.requests) == count
    download_nlcd(grid, 2006, Network(network.cache, refresh=True), url=geoserver.wcs, coverage=COVERAGE)
    assert len(geoserver.requests) == count + 2


def test_the_nodata_value_of_the_service_is_kept(geoserver, scene_files, network, tmp_path):
    """Annual NLCD has 250 outside the country."""

    def encode(values, transform):
        return encode_tiff(np.where(values == values[0, 0], 250, values).astype(np.uint8), transform, nodata=250)

    geoserver.encode = encode
    grid = within(scene_files)
    path = download_nlcd(grid, 2011, network, url=geoserver.wcs, coverage=COVERAGE)
    values, _, nodata = read(path)
    assert nodata == 250
    assert (values == 250).any()
    assert set(np.unique(read(write_nlcd(path, grid, tmp_path / "nlcd.tif"))[0])) == {0, *np.unique(values)} - {250}


EXCEPTION = b"""<?xml version="1.0" encoding="UTF-8"?>
<ServiceExceptionReport version="1.2.0" xmlns="http://www.opengis.net/ogc">
  <ServiceException code="InvalidParameterValue" locator="time">
      java.lang.NullPointerException: Cannot invoke &quot;getTime()&quot;
      because &quot;startTime&quot; is null
  </ServiceException>
</ServiceExceptionReport>"""
OWS = b"""<?xml version="1.0"?><ows:ExceptionReport xmlns:ows="http://www.opengis.net/ows/1.1"><ows:Exception>
<ows:ExceptionText>Could not find the specified coverage</ows:ExceptionText></ows:Exception></ows:ExceptionReport>"""


@pytest.mark.parametrize(
    ("content", "words", "again"),
    [
        (
            EXCEPTION,
            r'says: java.lang.NullPointerException: Cannot invoke "getTime\(\)" because "startTime" is null;',
            0,
        ),
        (OWS, "says: Could not find the specified coverage;", 0),
        (b"<html><body>Busy</body></html>", r"says: 30 bytes that are not a raster \(tried 2 times\)", 1),
        (b"<html><body>Busy<br></body>", r"did not send XML \(27 bytes\) \(tried 2 times\)", 1),
        (b"busy", r"says: 4 bytes that are not a raster \(tried 2 times\)", 1),
        (b"", r"says: 0 bytes that are not a raster|empty", 1),
        (b"II*\x00 and nothing more", r"sent a damaged raster", 1),
    ],
)
def test_unexpected_responses_of_the_service_are_passed_on(geoserver, scene_files, network, content, words, again):
    geoserver.says = content
    with pytest.raises(SourceError, match=rf"NLCD: .*/wcs {words}") as caught:
        download_nlcd(within(scene_files), 2011, network, url=geoserver.wcs, coverage=COVERAGE)
    assert "\n" not in str(caught.value)
    assert sum("bbox" in request.query for request in geoserver.requests) == 1 + again
    assert not list((network.cache.root / "nlcd").glob("*.tif"))
    geoserver.says = None
    download_nlcd(within(scene_files), 2011, network, url=geoserver.wcs, coverage=COVERAGE)


def moved(columns, rows, scale=1.0):
    return lambda values, transform: encode_tiff(
        values, transform @ Affine.translation(columns, rows) @ Affine.scale(scale)
    )


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (
            lambda values, transform: encode_tiff(values[:-1], transform),
            r"sent \d+ x \d+ cells instead of \d+ x \d+",
        ),
        (moved(0.5, 0.5), r"sent another place than requested \(0\.5 cells away\)"),
        (moved(0, 0, 1.05), r"sent another place than requested"),
        (lambda values, transform: encode_tiff(values.astype("int16") + 300, transform), "sent int16 numbers up to"),
        (lambda values, transform: encode_tiff(values.astype("float32"), transform), "sent float32 numbers up to"),
    ],
    ids=["size", "half a cell", "scale", "large codes", "no codes"],
)
def test_a_raster_other_than_the_requested_one_is_refused(geoserver, scene_files, network, encode, words):
    geoserver.encode = encode
    with pytest.raises(SourceError, match=rf"NLCD: .*/wcs {words}"):
        download_nlcd(within(scene_files), 2011, network, url=geoserver.wcs, coverage=COVERAGE)


def test_rounded_coordinates_in_the_response_are_accepted(geoserver, scene_files, network):
    geoserver.encode = moved(0.01, -0.01)
    grid = within(scene_files)
    check_cells(download_nlcd(grid, 2011, network, url=geoserver.wcs, coverage=COVERAGE), scene_files.nlcd, grid)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("30.0 0.0</", "30.0 0.5</"),
        ("0.0 -30.0</", "0.0 30.0</"),
        ("<gml:low>0 0</gml:low>", ""),
        ("<gml:low>0 0</gml:low>", "<gml:low>0</gml:low>"),
        ('dimension="2" srsName="EPSG:5070"', 'dimension="2" srsName="EPSG:404000"'),
        ('dimension="2" srsName="EPSG:5070"', 'dimension="2"'),
        ("<gml:offsetVector>30.0 0.0</gml:offsetVector>", ""),
        ("<gml:origin><gml:pos>", "<gml:origin><gml:pos>east "),
    ],
)
def test_an_unusable_description_is_an_error(geoserver, network, monkeypatch, old, new):
    assert old in DESCRIPTION
    monkeypatch.setattr(f"{__name__}.DESCRIPTION", DESCRIPTION.replace(old, new))
    with pytest.raises(SourceError, match=r"NLCD: .*/wcs gives an unusable description of its raster; give"):
        describe_coverage(network, url=geoserver.wcs, coverage=COVERAGE)


def test_entities_in_a_response_are_not_expanded(geoserver, scene_files, network):
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><ServiceException>&a;</ServiceException>'
    geoserver.says = bomb
    with pytest.raises(SourceError, match="did not send XML"):
        download_nlcd(within(scene_files), 2011, network, url=geoserver.wcs, coverage=COVERAGE)


# -- years -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("year", "years", "expected"),
    [
        (2012, (), 2012),
        (1950, (), 1985),
        (2090, (), 2025),
        (2012, (2011, 2013), 2011),
        (2012, (2013, 2001), 2013),
        (2012, (2012, 2011), 2012),
        (2030, (2001, 2021), 2021),
    ],
)
def test_the_nearest_year_is_chosen_and_the_earlier_of_two(year, years, expected):
    assert match_year(year, years) == expected


def offered(network, url):
    settings = FetchSettings(nlcd_wcs=url, nlcd_coverage=COVERAGE)
    return TileFetcher(plan=None, settings=settings, network=network, run=Run())._offered_year


def test_a_year_is_requested_only_if_there_are_several(geoserver, network, monkeypatch):
    with pytest.warns(SourceWarning, match="NLCD 2012 is not available; using 2011"):
        assert offered(network, geoserver.wcs)(2012) == 2011
    assert offered(network, geoserver.wcs)(2016) == 2016
    assert offered(network, geoserver.wcs)(None) is None
    geoserver.domain = ""
    assert offered(network, f"{geoserver.wcs}?single")(2012) is None
    single = describe_coverage(network, url=f"{geoserver.wcs}?single", coverage=COVERAGE)
    monkeypatch.setattr("landprior.sources.nlcd.describe_coverage", lambda *_, **__: single)
    assert offered(network, WCS_URL)(2012) == 2012  # this service is known to have all years


# -- files -------------------------------------------------------------------------------------


def test_a_local_file_is_used_in_place(tmp_path, scene_files, network, make_grid):
    assert clip_file(scene_files.nlcd, 2011, make_grid(), network) == scene_files.nlcd
    assert clip_file(f"{tmp_path}/nlcd_{{year}}.tif", 2011, make_grid(), network) == tmp_path / "nlcd_2011.tif"
    assert clip_file(str(scene_files.nlcd), None, make_grid(), network) == scene_files.nlcd
    with pytest.raises(MissingInputError, match=r"no such file: .*nlcd_2011\.tif"):
        write_nlcd(tmp_path / "nlcd_2011.tif", make_grid(), tmp_path / "out.tif")
    for address in ("s3://usgs-landcover/nlcd.tif?key=secret", "ftp://a.test/nlcd.tif"):
        with pytest.raises(InputError, match="is neither a file nor an http address") as caught:
            clip_file(address, 2011, make_grid(), network)
        assert "secret" not in str(caught.value)


@pytest.fixture
def national(tmp_path, rng):
    """A large tiled file like the national ones: 4 MB that cannot be compressed."""
    path = tmp_path / "files" / "nlcd_2011.tif"
    path.parent.mkdir()
    place = {"crs": "EPSG:5070", "transform": Affine(30, 0, 1_400_025, 0, -30, 1_960_005), "nodata": 250}
    shape = {"height": 2000, "width": 2000, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", driver="GTiff", blockxsize=256, blockysize=256, **shape, **place) as dst:
        dst.write(rng.integers(1, 250, (2000, 2000), dtype=np.uint8), 1)
    return path


def test_only_the_necessary_part_of_a_remote_file_is_fetched(file_server, national, network, tmp_path):
    url = file_server(national.parent)
    address = f"{url}/nlcd_{{year}}.tif?signature=secret"
    grid = place_at(1_430_000, 1_930_000, width=700, height=500)
    path = clip_file(address, 2011, grid, network)
    check_cells(path, national, grid)
    assert read(path)[2] == 250
    requests = file_server.requests(url)
    assert sum(request.sent for request in requests) < national.stat().st_size / 2
    assert all(request.range for request in requests)
    assert clip_file(address, 2011, grid, network) == path
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    assert clip_file(address, 2011, grid, offline) == path
    # another place in the same parts needs no further requests
    near = place_at(1_430_300, 1_930_000, width=400, height=500)
    check_cells(clip_file(address, 2011, near, offline), national, near)
    assert len(file_server.requests(url)) == len(requests)


def test_two_addresses_that_differ_only_in_their_query_are_kept_apart(faulty_server, network):
    grid, files = place_at(1_430_000, 1_930_000, width=300, height=300), {}
    for year in ("2016", "2019"):
        with MemoryFile() as memory:
            profile = {"crs": "EPSG:5070", "transform": Affine(30, 0, 1_429_005, 0, -30, 1_931_005)}
            with memory.open(driver="GTiff", width=99, height=99, count=1, dtype="uint8", **profile) as dst:
                dst.write(np.full((1, 99, 99), 11 if year == "2016" else 81, np.uint8))
            files[year] = memory.read()
    server = faulty_server(routes={"/nlcd": lambda request: (200, {}, files[request.query["year"]])})
    address = f"{server.url}/nlcd?key=secret&year={{year}}"
    codes = [np.unique(read(clip_file(address, year, grid, network))[0]).tolist() for year in (2016, 2019, 2016)]
    assert codes == [[11], [81], [11]]
    plain = [clip_file(f"{server.url}/nlcd?year={year}", None, grid, network) for year in (2016, 2019)]
    assert [np.unique(read(path)[0]).tolist() for path in plain] == [[11], [81]]
    assert not [path for path in network.cache.root.rglob("*") if "secret" in path.name]


def test_remote_files_of_another_place_missing_or_damaged_are_errors(file_server, national, network):
    url = file_server(national.parent)
    with pytest.raises(GridMismatchError, match=r"NLCD: .*/nlcd_2011\.tif has no data at this place"):
        clip_file(f"{url}/nlcd_2011.tif", 2011, place_at(0, 0), network)
    with pytest.raises(SourceError, match=r"NLCD: .*/nlcd_2012\.tif answered 404"):
        clip_file(f"{url}/nlcd_{{year}}.tif", 2012, place_at(1_430_000, 1_930_000), network)
    (national.parent / "text.tif").write_text("no raster " * 100)
    with pytest.raises(SourceError, match=r"NLCD: .*/text\.tif is damaged"):
        clip_file(f"{url}/text.tif", 2011, place_at(1_430_000, 1_930_000), network)
    with rasterio.open(national) as src, rasterio.open(
        national.parent / "lost.tif", "w", driver="GTiff", height=9, width=9, count=1, dtype="uint8",
        transform=src.transform,
    ) as dst:  # fmt: skip
        dst.write(src.read(1, window=Window(0, 0, 9, 9)), 1)
    with pytest.raises(GridMismatchError, match=r"lost\.tif has no CRS"):
        clip_file(f"{url}/lost.tif", 2011, place_at(1_430_000, 1_930_000), network)
