"""Faults of the network with every source: nothing wrong is kept, and nothing good is fetched twice.

docs/results/reliability.md counts these cases.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely.geometry import box, mapping

from landprior.errors import OfflineError, RasterWriteError, SourceBusyError, SourceError
from landprior.landcover.workspace.acquisition import fetch
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.landcover.workspace.layout import plan_fetch
from landprior.raster.grid import Grid
from landprior.sources import buildings, nlcd, osm
from landprior.sources.areas import area_from_bounds
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy
from landprior.sources.http.origins import Remote
from landprior.sources.http.ranges import CHUNK, open_remote
from landprior.sources.naip.images import NAIP, NaipImage
from landprior.sources.naip.search import search_images
from landprior.sources.naip.sign import KEY_VARIABLE, TokenSigner
from landprior.sources.naip.warp import write_image
from landprior.sources.nominatim import geocode

from .faulty import FaultyServer
from .place import in_degrees, osm_elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from shapely.geometry.base import BaseGeometry

    from .faulty import Received
    from .place import SceneFiles

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=60.0, read_timeout=10.0, grace=10.0)
LAYERS = ("naip", "nlcd", "roads", "waterways", "waterbodies", "buildings")
TOKEN = "SASTOKENx7Q"  # noqa: S105 - not a secret, but must look like one
KEY = "SUBSCRIPTIONKEYx9Z"


# -- a place and its sources ---------------------------------------------------------------------


@dataclass
class Place:
    """The synthetic place behind one server that acts as all sources."""

    server: FaultyServer
    files: SceneFiles
    folder: Path
    bounds: tuple[float, float, float, float] = ()
    expiry: str = "2099-01-01T00:00:00Z"
    tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        left, bottom, right, top = self.files.scene.grid.bounds
        crs = self.files.scene.grid.crs
        self.bounds = tuple(transform_bounds(crs, "EPSG:4326", left + 100, bottom + 100, right - 100, top - 100))
        self.url = self.server.url
        links = self.files.links_csv(self.url).encode()
        self.server.routes |= {
            "/stac": self.catalogue,
            "/stac/search": self.search,
            "/sign": self.sign,
            "/wcs": self.wcs,
            "/overpass/interpreter": self.overpass,
            "/nominatim/search": self.nominatim,
            "/dataset-links.csv": lambda _: (200, {"Content-Type": "text/csv"}, links),
        }

    @property
    def outline(self) -> BaseGeometry:
        return box(*self.bounds)

    @property
    def grid(self) -> Grid:
        """Return the scene's grid without a margin of 100 m."""
        whole = self.files.scene.grid
        return whole.window(Window(100, 100, whole.width - 200, whole.height - 200))

    @property
    def image(self) -> Remote:
        return Remote(self.files.href(self.files.image, self.url))

    @property
    def settings(self) -> FetchSettings:
        """Return settings with all layers from the server, the same as the options in :meth:`command`."""
        return FetchSettings(
            year=2010,
            stac_url=f"{self.url}/stac",
            nlcd_wcs=f"{self.url}/wcs",
            nlcd_coverage="nlcd",
            overpass_url=f"{self.url}/overpass",
            buildings_index=f"{self.url}/dataset-links.csv",
        )

    def network(self, *, cache: str = "cache", policy: RetryPolicy = QUICK, **options: bool) -> Network:
        return Network(Cache(self.folder / cache), policy=policy, **options)

    def fetch(self, network: Network, *, workspace: str = "w", **changes: object) -> Path:
        """Fetch the place, and return the folder of its tile."""
        settings = self.settings.model_copy(update=changes)
        space = Workspace(self.folder / workspace)
        plan = plan_fetch(area_from_bounds(self.bounds, name="village"), space, settings, network)
        (tile,) = fetch(plan, space, settings, network)
        return tile.path

    def command(self, *, workspace: str = "w", **changes: object) -> list[str]:
        """Return the equivalent command line."""
        chosen = self.settings.model_dump(exclude_defaults=True, mode="json") | changes
        options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        where = [f"--bbox={','.join(map(str, self.bounds))}", "--name=village", f"--data={self.folder / workspace}"]
        return ["-q", "fetch", *where, *options]

    # responses of the sources

    def catalogue(self, _request: Received) -> tuple[int, dict[str, str], bytes]:
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
        links = [{"rel": "self", "href": f"{self.url}/stac"}, {"rel": "root", "href": f"{self.url}/stac"}]
        links += [{"rel": "search", "href": f"{self.url}/stac/search", "method": m} for m in ("GET", "POST")]
        root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "c", "links": links}
        return answer(root | {"conformsTo": conforms})

    def search(self, _request: Received) -> tuple[int, dict[str, str], bytes]:
        return answer({"type": "FeatureCollection", "features": self.files.naip_items(self.url), "links": []})

    def sign(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        self.tokens.append(f"{TOKEN}{len(self.tokens)}")
        return answer({"href": f"{request.query['href']}?sig={self.tokens[-1]}", "msft:expiry": self.expiry})

    def wcs(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        with rasterio.open(self.files.nlcd) as src:
            if request.query["request"] == "DescribeCoverage":
                return 200, {"Content-Type": "text/xml"}, describe(Grid.of(src)).encode()
            left, bottom, right, top = map(float, request.query["bbox"].split(","))
            corners = ~src.transform @ np.array([[left, right], [top, bottom]])
            (column, last), (row, low) = np.rint(corners).astype(int)
            part = Grid.of(src).window(Window(column, row, last - column, low - row))
            values = src.read(1, window=Window(column, row, part.width, part.height))
            profile = src.profile | {"height": part.height, "width": part.width, "transform": part.transform}
        with MemoryFile() as memory:
            with memory.open(**profile) as out:
                out.write(values, 1)
            return 200, {"Content-Type": "image/tiff"}, memory.read()

    def overpass(self, _request: Received) -> tuple[int, dict[str, str], bytes]:
        asked = {layer: self.files.scene.vectors[layer] for layer in osm.LAYERS}
        return answer({"version": 0.6, "elements": osm_elements(asked, self.grid.crs.to_wkt())})

    def nominatim(self, _request: Received) -> tuple[int, dict[str, str], bytes]:
        left, bottom, right, top = self.bounds
        found = {
            "place_id": 1, "osm_type": "relation", "osm_id": 2, "lat": str(bottom), "lon": str(left), "class": "place",
            "type": "village", "place_rank": 19, "importance": 0.1, "addresstype": "village", "name": "Village",
            "display_name": "Village, VA", "boundingbox": [str(v) for v in (bottom, top, left, right)],
            "geojson": mapping(self.outline),
        }  # fmt: skip
        return answer([found])


def answer(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def describe(grid: Grid) -> str:
    """Describe a coverage in the form of WCS 1.0.0."""
    left, bottom, right, top = grid.bounds
    return f"""<?xml version="1.0"?>
<CoverageDescription xmlns="http://www.opengis.net/wcs" xmlns:gml="http://www.opengis.net/gml" version="1.0.0">
<CoverageOffering><name>nlcd</name><domainSet><spatialDomain>
<gml:Envelope srsName="EPSG:5070"><gml:pos>{left} {bottom}</gml:pos><gml:pos>{right} {top}</gml:pos></gml:Envelope>
<gml:RectifiedGrid dimension="2" srsName="EPSG:5070"><gml:limits><gml:GridEnvelope><gml:low>0 0</gml:low>
<gml:high>{grid.width - 1} {grid.height - 1}</gml:high></gml:GridEnvelope></gml:limits>
<gml:origin><gml:pos>{left} {top}</gml:pos></gml:origin>
<gml:offsetVector>30 0</gml:offsetVector><gml:offsetVector>0 -30</gml:offsetVector></gml:RectifiedGrid>
</spatialDomain></domainSet><supportedFormats><formats>GeoTIFF</formats></supportedFormats>
</CoverageOffering></CoverageDescription>"""


@pytest.fixture
def place(faulty_server, scene_files, tmp_path, monkeypatch):
    monkeypatch.setattr("osmnx._nominatim.time", SimpleNamespace(sleep=lambda _: None))  # it waits a second per request
    monkeypatch.setattr("geopandas.GeoDataFrame.estimate_utm_crs", lambda *_: 26917)  # 0.2 s per request
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return Place(server=faulty_server(scene_files.folder), files=scene_files, folder=tmp_path)


@pytest.fixture
def log(caplog):
    """All log records of landprior."""
    caplog.set_level(logging.DEBUG, "landprior")
    return caplog


@pytest.fixture(scope="module")
def expected(scene_files, tmp_path_factory):
    """The expected layers of the place."""
    with FaultyServer(scene_files.folder, None) as server:
        place = Place(server=server, files=scene_files, folder=tmp_path_factory.mktemp("expected"))
        tile = place.fetch(place.network())
    layers = read_layers(tile)
    with rasterio.open(tile / "naip.tif") as src:
        column, row = (round(value) for value in ~scene_files.scene.grid.transform @ src.transform @ (0, 0))
        here = (slice(row, row + src.height), slice(column, column + src.width))
    np.testing.assert_array_equal(layers["naip"], scene_files.scene.image[:, *here])
    for name in ("buildings", "waterbodies"):
        assert ((layers[name][0] > 0) == (scene_files.scene.layers[name][here] > 0)).mean() > 0.999
    assert all(values.any() for values in layers.values())
    return layers


def read_layers(tile):
    found = {}
    for name in LAYERS:
        with rasterio.open(tile / f"{name}.tif") as src:
            found[name] = src.read()
    return found


def assert_same(layers, expected):
    for name in LAYERS:
        np.testing.assert_array_equal(layers[name], expected[name], err_msg=name)


# -- requests to the sources ---------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """One kind of request, with a result that can be compared.

    Parameters
    ----------
    source, remedy
        Strings that an error must contain.
    hits
        A part of the addresses that the faults apply to.
    act
        Makes the request.
    truth
        The expected result.
    asks
        Number of requests without faults.
    leaves
        The files left in the cache, by extension.
    redirects
        How many redirects it follows.
    bears
        How many times the content may be wrong.
    lie
        How many extra requests a wrong length takes.
    """

    source: str
    remedy: str
    hits: str
    act: Callable[[Place, Network], object]
    truth: Callable[[Place], object]
    asks: int
    leaves: tuple[str, ...]
    redirects: int = 10
    bears: int = 2
    lie: int = 1


def search(place, network):
    found = search_images(place.outline, network, stac_url=f"{place.url}/stac")
    return [(image.id, image.origin, image.year) for image in found]


def read_index(place, network):
    return buildings.list_files(place.bounds, network, index_url=f"{place.url}/dataset-links.csv")


def read_footprints(place, network):
    path = buildings.download_buildings(place.bounds, network, index_url=f"{place.url}/dataset-links.csv")
    return len(pyogrio.read_dataframe(path))


PART = (300, 250, 256, 156)
"""The part of the image that is read: column, row, width, height."""


def read_image(place, network):
    image = NaipImage(id="i", year=2010, date="", footprint=place.outline, source=place.image)
    part = place.grid.window(Window(*PART))
    path = write_image(image, part, place.folder / "naip.tif", network, overwrite=True)
    with rasterio.open(path) as src:
        return src.read().tobytes()


def read_coverage(place, network):
    path = nlcd.download_nlcd(place.grid, None, network, url=f"{place.url}/wcs", coverage="nlcd")
    return codes_around(place, path)


def read_national(place, network):
    return codes_around(place, nlcd.clip_file(f"{place.url}/nlcd.tif", 2010, place.grid, network))


def codes_around(place, path):
    """Return the codes of the cells at the centre of the place."""
    left, bottom, right, top = transform_bounds(place.grid.crs, "EPSG:5070", *place.grid.bounds)
    with rasterio.open(path) as src:
        (first, row), (last, low) = (~src.transform @ corner for corner in ((left, top), (right, bottom)))
        return src.read(1)[int(row) : int(low), int(first) : int(last)].tobytes()


def read_features(place, network):
    path = osm.download_features(place.grid, network, url=f"{place.url}/overpass")
    return {name: pyogrio.read_info(path, layer=name)["features"] for name in ("lines", "multipolygons")}


def count_within(place, layer):
    """Return how many features of the scene touch the place."""
    shapes = in_degrees(place.files.scene.vectors[layer], place.grid.crs.to_wkt())
    return sum(place.outline.intersects(shape) for shape in shapes)


def find_place(place, network):
    return geocode("Village, VA", network, url=f"{place.url}/nominatim").wkt


def sign(place, network):
    return TokenSigner(network, f"{place.url}/sign").sign(place.image.href).rpartition("=")[0]


ACCESSES = {
    "catalogue": Access(
        "NAIP", "(--stac-url)", "stac/search", search,
        lambda p: [(i["id"], i["assets"]["image"]["href"], 2010) for i in p.files.naip_items(p.url)],
        asks=2, leaves=(".json", ".json"),
    ),
    "index": Access(
        "Buildings (Microsoft)", "(--buildings FILE)", "dataset-links", read_index,
        lambda p: {key: [p.files.href(path, p.url)] for key, path in p.files.footprints.items()},
        asks=1, leaves=(".csv",),
    ),
    "file": Access(
        "Buildings (Microsoft)", "(--buildings FILE)", "part-", read_footprints,
        lambda p: count_within(p, "buildings"), asks=2, leaves=(".csv", ".fgb", ".gz"), bears=1,
    ),
    "ranges": Access(
        "NAIP", "(--naip)", ".tif", read_image,
        lambda p: p.files.scene.image[:, 350:506, 400:656].tobytes(),
        asks=4, leaves=(".json", *[""] * 5), bears=1, lie=3,
    ),
    "ranges of NLCD": Access(
        "NLCD", "(--nlcd-wcs)", "nlcd.tif", read_national, lambda p: codes_around(p, p.files.nlcd),
        asks=1, leaves=("", ".json", ".tif"), bears=0,
    ),
    "coverage": Access(
        "NLCD", "(--nlcd FILE or URL)", "GetCoverage", read_coverage, lambda p: codes_around(p, p.files.nlcd),
        asks=2, leaves=(".tif", ".xml"),
    ),
    "its description": Access(
        "NLCD", "(--nlcd FILE or URL)", "DescribeCov", read_coverage, lambda p: codes_around(p, p.files.nlcd),
        asks=2, leaves=(".tif", ".xml"),
    ),
    "features": Access(
        "OpenStreetMap (Overpass)", "(--osm FILE.osm.pbf)", "interpreter", read_features,
        lambda p: {
            "lines": count_within(p, "roads") + count_within(p, "waterways"),
            "multipolygons": count_within(p, "waterbodies"),
        }, asks=1, leaves=(".gpkg",), redirects=30,
    ),
    "place by name": Access(
        "Nominatim (places by name)", "--bbox or --aoi", "nominatim", find_place, lambda p: p.outline.wkt,
        asks=1, leaves=(".json",),
        redirects=30,
    ),
    "signature": Access(
        "NAIP", "(--stac-url)", "sign?", sign, lambda p: f"{p.image.href}?sig", asks=1, leaves=(),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """A fault of a request, with the parameters of ``Fault`` and a retry policy."""

    kind: str
    retry_after: int | None = None
    seconds: float = 0.01
    policy: RetryPolicy = QUICK
    content: bool = False  # wrong content, which is only noticed when it is read
    only: tuple[str, ...] = ()  # only these kinds of access: it is slow, and the others use the same code


IMPATIENT = RetryPolicy(attempts=2, first_wait=0.01, read_timeout=0.5, grace=0.25)
TROUBLES = {
    "connection reset": Trouble("reset"),
    "429 with Retry-After": Trouble("429", retry_after=7),
    "503": Trouble("503"),
    "504": Trouble("504"),
    "truncated": Trouble("truncate"),
    "wrong length": Trouble("wrong-length", content=True),
    "corrupt": Trouble("garbage", content=True),
    "empty": Trouble("empty"),
    "redirect loop": Trouble("redirect-loop"),
    "slow drip": Trouble("drip", policy=IMPATIENT),
    "silence half-way": Trouble("drip", seconds=60, policy=IMPATIENT, only=("catalogue", "file", "ranges", "features")),
}
ENDLESS = {
    **TROUBLES,
    "429 for an hour": Trouble("429", retry_after=3600),
    "403": Trouble("403"),
    "404": Trouble("404"),
}


def fail(place, access, trouble, times):
    options = {"times": times, "retry_after": trouble.retry_after, "seconds": trouble.seconds}
    place.server.fail(trouble.kind, path=access.hits, **options)


def patient(place, policy, monkeypatch):
    """Return a network and the list of its waits, which are skipped."""
    network, waits = place.network(policy=policy), []
    monkeypatch.setattr(network, "pause", waits.append)
    return network, waits


def kept(cache):
    """Return the final files of a cache, without partial files and locks."""
    begun = {".part", ".version", ".lock"}
    paths = [p for p in cache.root.rglob("*/*") if p.is_file() and p.suffix not in begun]
    assert not [p for p in paths if p.name.startswith(".")], "a temporary file was left"
    return {str(p.relative_to(cache.root)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES)
def test_no_fault(place, access):
    network = place.network()
    assert access.act(place, network) == access.truth(place)
    assert len(place.server.requests) == access.asks
    again = place.network()
    assert access.act(place, again) == access.truth(place)
    assert len(place.server.requests) == access.asks + (access.hits == "sign?")  # signatures are not cached


def combine(troubles):
    """Return every combination of a fault and a kind of access, by name."""
    pairs = [(access, trouble) for access in ACCESSES for trouble in troubles]
    return {
        f"{trouble}-{access}": (ACCESSES[access], troubles[trouble])
        for access, trouble in pairs
        if access in (troubles[trouble].only or ACCESSES)
    }


PASSING = {name: pair for name, pair in combine(TROUBLES).items() if pair[0].bears or not pair[1].content}
LASTING = combine(ENDLESS)


@pytest.mark.parametrize(("access", "trouble"), PASSING.values(), ids=PASSING)
def test_a_temporary_fault(place, access, trouble, monkeypatch):
    times = access.bears if trouble.content else min(2, trouble.policy.attempts - 1)
    network, waits = patient(place, trouble.policy, monkeypatch)
    fail(place, access, trouble, times)
    assert access.act(place, network) == access.truth(place)
    assert place.server.faults == []
    cost = {"redirect-loop": access.redirects + 1, "wrong-length": access.lie}.get(trouble.kind, 1)
    assert len(place.server.requests) == access.asks + times * cost
    assert {wait >= 7 for wait in waits} <= {trouble.retry_after == 7}
    assert sorted(Path(name).suffix for name in kept(network.cache)) == sorted(access.leaves)


@pytest.mark.parametrize(("access", "trouble"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault(place, access, trouble, monkeypatch):
    policy = replace(trouble.policy, attempts=1) if trouble.policy is IMPATIENT else trouble.policy
    network, waits = patient(place, policy, monkeypatch)
    fail(place, access, trouble, None)
    with pytest.raises(SourceError) as caught:
        access.act(place, network)
    text = str(caught.value)
    assert text.startswith(f"{access.source}: ")
    assert access.remedy in text
    assert "\n" not in text
    assert (trouble.retry_after != 3600) or (waits == [] and "the server asks to wait 3600 s" in text)
    left = kept(network.cache)
    place.server.faults.clear()
    assert access.act(place, network) == access.truth(place)
    good = kept(network.cache)
    assert {name for name, content in left.items() if good.get(name) != content} == set()
    assert sorted(Path(name).suffix for name in good) == sorted(access.leaves)


def ranged(content, request):
    """Serve a range of a file, like the server does for its folder."""
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1, len(content))
    headers = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    return 206, headers, content[start:stop]


def serve_image(place, before, path=None):
    """Serve the image by a route that first calls ``before(number, request)``, which may return another response."""
    content, asked = place.files.image.read_bytes(), []

    def route(request):
        asked.append(request)
        return before(len(asked), request) or ranged(content, request)

    place.server.routes[path or place.image.href.removeprefix(place.url)] = route
    return asked


def spans(requests):
    """Return the chunks that were requested."""
    found = (r.headers["Range"].removeprefix("bytes=").split("-") for r in requests)
    return [number for first, last in found for number in range(int(first) // CHUNK, (int(last) + 1) // CHUNK)]


# -- wrong content -------------------------------------------------------------------------------


def spoil_after(place, number, times):
    """Corrupt the chunks after the given number of good ones, keeping their length."""

    def before(asked, _request):
        if asked == number:
            place.server.fail("garbage", path=".tif", times=times)

    serve_image(place, before)


def test_a_corrupt_chunk_is_deleted_and_fetched_again_once(place, log):
    spoil_after(place, 3, 1)
    access, network = ACCESSES["ranges"], place.network()
    assert access.act(place, network) == access.truth(place)
    faults = [request.fault for request in place.server.requests]
    assert faults == ["", "", "", "garbage", "", "", "", ""]
    (said,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert said.startswith(f"NAIP: {place.image.href} is damaged (")
    assert said.endswith("fetching it again")


def test_a_chunk_that_stays_corrupt_is_an_error(place):
    spoil_after(place, 3, None)
    access, network = ACCESSES["ranges"], place.network()
    with pytest.raises(SourceError, match=r"^NAIP: .* is damaged \(.*\) and was deleted; give another catalogue"):
        access.act(place, network)
    assert kept(network.cache) == {}
    assert not (place.folder / "naip.tif").exists()
    place.server.faults.clear()
    assert access.act(place, network) == access.truth(place)


REMARK = 'runtime error: Query timed out in "query" at line 1 after 180 seconds.'


def remark(place, elements):
    def route(_request):
        return answer({"version": 0.6, "elements": elements(place), "remark": REMARK})

    place.server.routes["/overpass/interpreter"] = route


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_overpass_response_with_a_remark_is_an_error_not_zeros(place, share, monkeypatch):
    whole = json.loads(place.overpass(None)[2])["elements"]
    good = place.server.routes["/overpass/interpreter"]
    remark(place, lambda _: whole[: int(share * len(whole))])
    network, _ = patient(place, QUICK, monkeypatch)
    with pytest.raises(SourceBusyError) as caught:
        place.fetch(network)
    assert str(caught.value).startswith(f"OpenStreetMap (Overpass): {place.url}/overpass/interpreter could not answer")
    assert "Query timed out" in str(caught.value)
    assert [path.name for path in (place.folder / "w").rglob("*.tif")] == ["nlcd.tif"]
    assert not list(network.cache.root.glob("osm/*"))
    place.server.routes["/overpass/interpreter"] = good
    assert ACCESSES["features"].act(place, network) == ACCESSES["features"].truth(place)


def test_an_overpass_response_without_features_gives_zeros(place, expected):
    place.server.routes["/overpass/interpreter"] = lambda _: answer({"version": 0.6, "elements": []})
    tile = place.fetch(place.network())
    layers = read_layers(tile)
    for name in osm.LAYERS:
        assert layers[name].shape == expected[name].shape
        assert not layers[name].any()
    steps = json.loads((tile / "item.json").read_text())["properties"]["landprior:steps"]
    assert [steps[name]["features"] for name in osm.LAYERS] == [0, 0, 0]
    before = len(place.server.requests)
    place.fetch(place.network(), workspace="another")  # the empty response was cached too
    assert len(place.server.requests) == before


# -- signatures ----------------------------------------------------------------------------------


def signing(place, *, revoke_after):
    """Serve the image for the latest signature only, which expires after some responses; return the requests."""
    void, good = set(), []

    def before(_number, request):
        if request.query.get("sig") in {*void, None} or request.query["sig"] != place.tokens[-1]:
            return 403, {}, b"AuthenticationFailed"
        good.append(request)
        if len(good) == revoke_after:
            void.update(place.tokens)
        return None

    return serve_image(place, before), good


def signed(place, network, path=None):
    signer = TokenSigner(network, f"{place.url}/sign")
    return Remote(place.image.href if path is None else f"{place.url}{path}", signer)


@pytest.mark.parametrize("revoke_after", [1, 2, 3])
def test_a_signature_that_expires_half_way_is_renewed(place, revoke_after):
    asked, good = signing(place, revoke_after=revoke_after)
    network = place.network()
    with open_remote(network, signed(place, network), NAIP) as src:
        np.testing.assert_array_equal(src.read(), place.files.scene.image)
    assert len(place.tokens) == 2
    assert len(asked) == len(good) + 1
    assert sorted(spans(good)) == [0, 1, 2, 3, 4]


def test_a_signature_that_is_never_valid_is_an_error(place):
    asked, good = signing(place, revoke_after=1)
    place.server.routes["/sign"] = lambda request: answer({"href": f"{request.query['href']}?sig={TOKEN}"})
    place.tokens.append("another")
    network = place.network()
    remote = signed(place, network)
    with pytest.raises(SourceError) as caught, open_remote(network, remote, NAIP):
        pass
    assert str(caught.value) == (f"NAIP: {place.image.href} answered 403 Forbidden: access was denied; {NAIP.remedy}")
    assert (len(asked), len(good)) == (2, 0)
    assert kept(network.cache) == {}


def test_a_failed_renewal_of_a_signature_loses_no_chunk(place, monkeypatch):
    _, good = signing(place, revoke_after=2)
    network, _ = patient(place, QUICK, monkeypatch)
    remote = signed(place, network)
    with pytest.raises(SourceBusyError) as caught, open_remote(network, remote, NAIP) as src:  # noqa: PT012
        src.read(1, window=((0, 1), (0, 1)))
        place.server.fail("503", path="sign?", times=None)
        src.read()
    assert str(caught.value).startswith(f"NAIP: {place.url}/sign answered 503 Service Unavailable (tried 3 times)")
    place.server.faults.clear()
    again = place.network()
    with open_remote(again, signed(place, again), NAIP) as src:
        np.testing.assert_array_equal(src.read(), place.files.scene.image)
    assert sorted(spans(good)) == [0, 1, 2, 3, 4]


def test_threads_renew_a_signature_only_once(place):
    paths = [f"/naip/{name}.tif" for name in "abcd"]
    void = []
    for path in paths:
        serve_image(place, lambda _, r: (403, {}, b"") if r.query["sig"] in void else None, path)
    network = place.network()
    first = signed(place, network)
    void.append(place.tokens[0] if first.url and place.tokens else "")

    def read(path):
        with open_remote(network, Remote(f"{place.url}{path}", first.signer), NAIP) as src:
            return np.array_equal(src.read(), place.files.scene.image)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, paths))
    assert len(place.tokens) == 2


# -- a full disk ---------------------------------------------------------------------------------


@contextmanager
def limited(size):
    """Limit the size of files, so that writing fails half-way, like on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = [
    ("catalogue", 200), ("index", 200), ("file", 200), ("file", 900), ("file", 9_000), ("ranges", 100), ("ranges", 300),
    ("ranges", 100_000), ("ranges of NLCD", 300), ("coverage", 200), ("its description", 200),
    ("features", 100), ("features", 10_000), ("features", 50_000), ("place by name", 200),
]  # fmt: skip
"""Kind of access, and the size in bytes at which the disk is full: in its first file or a later one."""


@pytest.mark.parametrize(("name", "size"), FULL)
def test_a_disk_that_fills_up_half_way(place, name, size):
    access, network = ACCESSES[name], place.network()
    with limited(size), pytest.raises(RasterWriteError) as caught:
        access.act(place, network)
    text = str(caught.value)
    assert text.startswith("cannot write ")
    assert "File too large" in text or text.endswith("is the disk full?")
    assert "\n" not in text
    left = kept(network.cache)
    assert access.act(place, network) == access.truth(place)
    good = kept(network.cache)
    assert {name for name, content in left.items() if good.get(name) != content} == set()
    assert sorted(Path(name).suffix for name in good) == sorted(access.leaves)


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_workspace_that_fills_up_half_way(place, size):
    access, network = ACCESSES["ranges"], place.network()
    access.act(place, network)
    before, asked = (place.folder / "naip.tif").read_bytes(), len(place.server.requests)
    with limited(size), pytest.raises(RasterWriteError, match=r"^cannot write .*/naip.tif \(.*\); is the disk full\?$"):
        access.act(place, network)
    assert sorted(path.name for path in place.folder.iterdir()) == ["cache", "naip.tif"]
    assert (place.folder / "naip.tif").read_bytes() == before
    assert access.act(place, network) == access.truth(place)
    assert len(place.server.requests) == asked


def environment(cache):
    return {**os.environ, "LANDPRIOR_CACHE": str(cache), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def test_a_real_full_disk(place, expected, tmp_path):
    """Run the command with its cache on a disk of 1 MB, then on a larger one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join(["python", "-m", "landprior", *place.command()]).replace("python", sys.executable, 1)
    script = f"""
    mount -t tmpfs -o size=1m tmpfs {disk} || exit 9
    {command} 2>{tmp_path}/first.txt
    test $? = 1 || exit 8
    find {disk} -name '.*-*' >{tmp_path}/left.txt
    mount -o remount,size=64m {disk} || exit 9
    {command} 2>{tmp_path}/second.txt
    """
    asked = serve_image(place, lambda *_: None)
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted in a namespace of one's own (unshare)")
    run = subprocess.run([unshare, "-rm", "sh", "-c", script], env=environment(disk / "cache"), check=False)
    if run.returncode == 9:
        pytest.skip("tmpfs cannot be mounted")
    assert run.returncode == 0
    (said,) = (tmp_path / "first.txt").read_text().splitlines()
    assert said.startswith(f"Error: cannot write {disk}/cache/naip/")
    assert (
        "(No space left on device); free some space there, or set LANDPRIOR_CACHE to a folder on another disk" in said
    )
    assert (tmp_path / "left.txt").read_text() == (tmp_path / "second.txt").read_text() == ""
    (tile,) = (tmp_path / "w" / "village").iterdir()
    assert not [path for path in tile.iterdir() if path.name.startswith(".")]
    assert_same(read_layers(tile), expected)
    chunks = spans(asked)
    assert set(chunks) == {0, 1, 2, 3, 4}
    assert chunks.count(0) == chunks.count(4) == 1  # files that fitted were kept


# -- kill -9 and ctrl-C --------------------------------------------------------------------------


PATIENT = """
import functools
from landprior.sources.http import client
client.RetryPolicy = functools.partial(client.RetryPolicy, read_timeout=1e6, grace=1e6)
"""
"""Code that runs before a command and makes its requests wait for ever."""


@contextmanager
def running(place, before=""):
    """Run the command, and kill it at the end."""
    # tests that run in the background may ignore ctrl-C, and a child process would inherit that
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += f"{before}\nrunpy.run_module('landprior', run_name='__main__')"
    command = [sys.executable, "-c", start, *place.command()]
    with subprocess.Popen(command, env=environment(place.folder / "cache"), stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, process):
    """Wait until a condition holds or the process ends."""
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)


def assert_others_asked_once(place, *, but):
    """Check that all requests except those for ``but`` succeeded at once, and that there was one of each."""
    others = [request for request in place.server.requests if but not in request.path]
    names = [(request.path, request.query.get("request"), request.headers.get("Range")) for request in others]
    assert len(names) == len(set(names))
    assert {request.fault for request in others} == {""}


def test_kill_while_chunks_arrive(place, expected):
    def before(number, _request):
        if number == 2:
            place.server.fail("drip", path=".tif", seconds=0.001)

    asked = serve_image(place, before)
    with running(place) as process:
        wait_for(lambda: len(asked) == 3, process)
        time.sleep(0.2)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [request.fault for request in asked] == ["", "", "drip"]
    (tile,) = (place.folder / "w" / "village").iterdir()
    assert not (tile / "naip.tif").exists()
    network = place.network()
    assert place.fetch(network) == tile
    assert_same(read_layers(tile), expected)
    assert sorted(spans(asked[:2] + asked[3:])) == [0, 1, 2, 3, 4]
    assert_others_asked_once(place, but="naip")


def test_kill_while_a_file_arrives(place, expected):
    place.server.fail("drip", path="part-", seconds=0.001)
    parts = (place.folder / "cache" / "buildings").glob
    with running(place) as process:
        wait_for(lambda: sum(path.stat().st_size for path in parts("*.part")) > 500, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (part,) = parts("*.part")
    size = part.stat().st_size
    assert size < 4000, "bytes lie in no buffer"
    (whole,) = place.files.footprints.values()
    assert whole.read_bytes().startswith(part.read_bytes())
    tile = place.fetch(place.network())
    assert_same(read_layers(tile), expected)
    _, again = (request for request in place.server.requests if "part-" in request.path)
    assert again.headers["Range"] == f"bytes={size}-"
    assert again.headers["If-Range"]
    assert_others_asked_once(place, but="part-")
    assert list(parts("*.part*")) == []


def test_ctrl_c_while_a_server_is_silent(place, expected):
    def before(number, _request):
        if number == 2:
            place.server.fail("drip", path=".tif", seconds=1e6)

    asked = serve_image(place, before)
    with running(place, before=PATIENT) as process:
        wait_for(lambda: len(asked) == 3, process)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130  # neither the server nor the command would have given up
        said = process.stderr.read().decode().strip()
    assert said.startswith("Interrupted")
    assert len(said.splitlines()) == 1
    (tile,) = (place.folder / "w" / "village").iterdir()
    left = {"item.json", "nlcd.tif.aux.xml", *(f"{name}.tif" for name in LAYERS[1:])}
    assert {path.name for path in tile.iterdir()} == left
    place.fetch(place.network())
    assert_same(read_layers(tile), expected)
    assert sorted(spans(asked[:2] + asked[3:])) == [0, 1, 2, 3, 4]


# -- a whole fetch -------------------------------------------------------------------------------

LAYER_FAULTS = {
    "catalogue": ("NAIP", "stac/search", []),
    "nlcd": ("NLCD", "GetCoverage", []),
    "osm": ("OpenStreetMap (Overpass)", "interpreter", ["nlcd"]),
    "index": ("Buildings (Microsoft)", "dataset-links", ["nlcd", *osm.LAYERS]),
    "buildings": ("Buildings (Microsoft)", "part-", ["nlcd", *osm.LAYERS]),
    "naip": ("NAIP", ".tif", ["nlcd", *osm.LAYERS, "buildings"]),
}


@pytest.mark.parametrize(("source", "hits", "done"), LAYER_FAULTS.values(), ids=LAYER_FAULTS)
def test_a_fetch_resumes_at_the_layer_that_failed(place, expected, source, hits, done, monkeypatch):
    place.server.fail("503", path=hits, times=None)
    network, _ = patient(place, QUICK, monkeypatch)
    with pytest.raises(SourceBusyError) as caught:
        place.fetch(network)
    assert str(caught.value).startswith(f"{source}: ")
    written = [path.stem for path in (place.folder / "w").rglob("*.tif")]
    assert sorted(written) == sorted(done)
    place.server.faults.clear()
    tile = place.fetch(place.network())
    assert_same(read_layers(tile), expected)
    good = [
        (r.method, r.path, *r.query.items(), r.headers.get("Range")) for r in place.server.requests if r.fault == ""
    ]
    assert len(good) == len(set(good)) == 11


def test_a_failing_tile_does_not_stop_the_others(place):
    west, east = place.files.neighbours
    place.server.routes["/stac/search"] = lambda _: answer(
        {"type": "FeatureCollection", "features": place.files.naip_items(place.url, west, east), "links": []}
    )
    place.server.fail("404", path="_se_", times=None)
    settings, space, network = place.settings, Workspace(place.folder / "w"), place.network()
    plan = plan_fetch(area_from_bounds(place.bounds, name="village"), space, settings, network)
    with pytest.raises(SourceError) as caught:
        fetch(plan, space, settings, network)
    cause = f"NAIP: {place.files.href(east, place.url)} answered 404"
    assert str(caught.value).startswith(f"1 of 2 tiles are incomplete (va_{east.stem}); the first cause: {cause}")
    assert [path.parent.name for path in (place.folder / "w").rglob("naip.tif")] == [f"va_{west.stem}"]
    place.server.faults.clear()
    before = len(place.server.requests)
    assert len(fetch(plan, space, settings, network)) == 2
    assert {request.path for request in place.server.requests[before:]} == {f"/naip-split/{east.name}"}


def test_workspaces_share_the_cache_which_is_enough_offline(place, expected, monkeypatch):
    place.fetch(place.network())
    before = len(place.server.requests)

    def refuse(*_):
        msg = "the network was touched"
        raise AssertionError(msg)

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for number, network in enumerate((place.network(), place.network(offline=True))):
        tile = place.fetch(network, workspace=f"another{number}")
        assert_same(read_layers(tile), expected)
    assert len(place.server.requests) == before


@pytest.fixture(scope="module")
def fetched(scene_files, tmp_path_factory):
    """The place after a fetch, with its server still running."""
    with FaultyServer(scene_files.folder, None) as server:
        place = Place(server=server, files=scene_files, folder=tmp_path_factory.mktemp("fetched"))
        place.fetch(place.network())
        yield place


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("naip/*.json", ["NAIP: http"]),
        ("naip/*.chunks/*/000003", ["NAIP: http"]),
        ("nlcd/*", ["NLCD: http"]),
        ("osm/*", ["OpenStreetMap (Overpass): OpenStreetMap of this tile"]),
        ("buildings/*", ["Buildings (Microsoft): http"]),
        ("*/*", ["NAIP: http"]),
        ("*/*[!n]", ["NLCD: http", "OpenStreetMap (Overpass): ", "Buildings (Microsoft): http", "NAIP: http"]),
    ],
)
def test_offline_the_error_lists_what_is_missing(fetched, tmp_path, lost, named):
    place = replace(fetched, folder=tmp_path)
    place.server.routes |= fetched.server.routes
    shutil.copytree(fetched.folder / "cache", tmp_path / "cache")
    for path in list((tmp_path / "cache").glob(lost)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = len(place.server.requests)
    with pytest.raises(OfflineError) as caught:
        place.fetch(place.network(offline=True), workspace="another")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(named)
    for line, name in zip(lines, named, strict=True):
        assert name in line
        assert line.endswith("is not in the cache, and --offline was given; run once without it")
    assert len(place.server.requests) == before


# -- secrets -------------------------------------------------------------------------------------


HIDING = ("403", "503", "reset", "garbage", "redirect-loop")


@pytest.mark.parametrize(
    ("kind", "hits"),
    [
        ("", ""),
        *((kind, "/naip/") for kind in (*HIDING, "404", "truncate", "wrong-length")),
        *((kind, "sign") for kind in HIDING),
    ],
)
def test_keys_and_signatures_are_not_leaked(place, log, monkeypatch, capsys, kind, hits):
    """Searched for in logs (of all libraries), on the screen, in errors and in every file."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr(
        "landprior.sources.naip.sign.SIGN_URL", f"{place.url}/sign"
    )  # the only signer that gets the key
    log.set_level(logging.DEBUG)
    serve_image(place, lambda _, r: None if r.query.get("sig") == place.tokens[-1] else (403, {}, b""))
    if kind:
        place.server.fail(kind, path=hits, times=None)
    network, _ = patient(place, QUICK, monkeypatch)
    changes = {
        "sign_url": f"{place.url}/sign",
        "nlcd_wcs": f"{place.url}/wcs?key={KEY}",
        "buildings_index": f"{place.url}/dataset-links.csv?sig={TOKEN}",
    }
    if kind:
        changes |= {"osm": "none", "buildings": "none"}
    said = ""
    try:
        place.fetch(network, **changes)
    except SourceError as error:
        said = "".join(traceback.format_exception(error))
    assert bool(said) == bool(kind)
    told = [(r.headers.get("Ocp-Apim-Subscription-Key"), r.query.get("sig", "")) for r in place.server.requests]
    assert any(key == KEY for key, _ in told)
    assert any(TOKEN in token for _, token in told) == (hits != "sign")
    shown = capsys.readouterr()
    texts = {"log": log.text, "out": shown.out, "err": shown.err, "error": said}
    texts |= {str(path): path.read_bytes().decode("latin-1") for path in place.folder.rglob("*") if path.is_file()}
    assert len(texts) > 9
    assert [name for name, text in texts.items() if TOKEN in name + text or KEY in name + text] == []
    assert place.url in log.text
