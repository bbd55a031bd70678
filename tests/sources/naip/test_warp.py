"""NAIP: found in catalogues and folders, chosen by year and place, laid out in its own zone, put onto the grid."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from shapely.geometry import box, mapping
from shapely.ops import unary_union

from landprior.errors import InputError, MissingInputError, OfflineError, RasterReadError, SourceError
from landprior.raster.grid import Grid
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, Remote, RetryPolicy
from landprior.sources.naip import warp as naip
from landprior.sources.naip.warp import (
    Choice,
    NaipImage,
    TokenSigner,
    choose_images,
    list_images,
    search_images,
    tile_grid,
    utm_of,
    write_image,
)

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


# -- searching -------------------------------------------------------------------------------------


def make_item(name, bounds, year, **changes):
    """An item as Planetary Computer has them."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "naip",
        "geometry": mapping(box(*bounds)),
        "bbox": list(bounds),
        "properties": {
            "datetime": f"{year}-06-20T16:00:00Z",
            "gsd": 0.6,
            "naip:year": str(year),
            "naip:state": "va",
            "proj:epsg": 26917,
        },
        "links": [],
        "assets": {"image": {"href": f"https://images.test/naip/{name}.tif?secret=1", "type": "image/tiff"}},
    }
    properties = item["properties"] | changes.pop("properties", {})
    return item | {"properties": properties} | changes


PLACE = box(-80.0, 40.0, -79.9, 40.1)


@pytest.fixture(scope="module")
def many():
    """More items than a page, of four years, some beside the place."""
    cells = [(-80.1 + 0.01 * i, 40.0 + 0.01 * j) for i in range(12) for j in range(5)]
    return [
        make_item(f"va_m_{n:07d}_{year}", (x, y, x + 0.01, y + 0.01), year)
        for year in (2010, 2012, 2014, 2016)
        for n, (x, y) in enumerate(cells)
    ]


def test_all_pages_of_a_real_catalogue_are_read_and_kept(stac_server, many, network, tmp_path):
    url = stac_server(many)
    found = search_images(PLACE, network, stac_url=url)
    # ten columns lie beside the place; one of them touches it
    expected = {item["id"] for item in many if box(*item["bbox"]).intersects(PLACE)}
    assert len(found) == len(expected) > 50
    assert {image.id for image in found} == expected
    image = min(found, key=lambda image: image.id)
    assert (image.year, image.date, image.resolution, image.crs) == (2010, "2010-06-20", 0.6, CRS.from_epsg(26917))
    assert image.origin == f"https://images.test/naip/{image.id}.tif"
    assert "secret" not in repr(image)
    assert image.source == Remote(f"https://images.test/naip/{image.id}.tif?secret=1")
    stac_server.stop(url)
    assert search_images(PLACE, network, stac_url=url) == found
    offline = Network(Cache(tmp_path / "cache"), offline=True)
    assert search_images(PLACE, offline, stac_url=url) == found
    with pytest.raises(OfflineError, match=r"NAIP: .* is not in the cache"):
        search_images(box(-80.0, 40.0, -79.8, 40.1), offline, stac_url=url)


def test_many_items_take_several_pages(stac_server, many, network):
    everywhere = box(-81, 39, -79, 41)
    found = search_images(everywhere, network, stac_url=stac_server(many))
    assert sorted(image.id for image in found) == sorted(item["id"] for item in many)
    assert len(found) == 240


def test_a_place_without_images_gives_none(stac_server, many, network):
    assert search_images(box(10, 50, 11, 51), network, stac_url=stac_server(many)) == []


@pytest.fixture
def catalogue(faulty_server):
    """A STAC API whose search gives the ``pages``, one after the other, for ever."""

    def answer(content):
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def root(_request):
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
        search = {"rel": "search", "href": f"{server.url}/search", "method": "POST", "type": "application/geo+json"}
        about = {"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "x", "conformsTo": conforms}
        return answer(about | {"links": [search]} if server.root is None else server.root)

    def search(request):
        number = json.loads(request.body).get("token", 0)
        following = {"rel": "next", "href": f"{server.url}/search", "method": "POST", "merge": True}
        last = number + 1 >= len(server.pages) and not server.endless
        links = [] if last else [following | {"body": {"token": (number + 1) % len(server.pages)}}]
        return answer({"type": "FeatureCollection", "features": server.pages[number], "links": links})

    server = faulty_server(routes={"/": root, "/search": search})
    server.pages, server.endless, server.root = [[]], False, None
    return server


def test_the_question_is_a_post_of_the_box(catalogue, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010)], [make_item("b", PLACE.bounds, 2012)]]
    assert [image.id for image in search_images(PLACE, network, stac_url=catalogue.url)] == ["a", "b"]
    posted = [json.loads(request.body) for request in catalogue.requests if request.method == "POST"]
    question = {"collections": ["naip"], "bbox": list(PLACE.bounds), "limit": 100}
    assert posted == [question, question | {"token": 1}]
    count = len(catalogue.requests)
    search_images(box(*PLACE.bounds), network, stac_url=catalogue.url)
    assert len(catalogue.requests) == count


def test_what_is_no_image_of_the_place_is_left_out(catalogue, network):
    item = make_item("whole", PLACE.bounds, 2010)
    corner = box(-80.2, 40.0, -80.0001, 40.1)  # within the box searched, but not in the place
    catalogue.pages = [
        [
            item,
            make_item("nothing to read", PLACE.bounds, 2010, assets={"metadata": {"href": "https://a.test/x.txt"}}),
            make_item("nowhere", PLACE.bounds, 2010, geometry=None),
            make_item("beside", corner.bounds, 2010),
            make_item("../up/and away", PLACE.bounds, 2010, properties={"proj:epsg": 999_999, "gsd": None}),
            make_item("undated", PLACE.bounds, 2010, properties={"naip:year": None, "datetime": None}),
            make_item("coded", PLACE.bounds, 2010, properties={"proj:epsg": None, "proj:code": "EPSG:26918"}),
        ]
    ]
    found = {image.id: image for image in search_images(PLACE, network, stac_url=catalogue.url)}
    assert set(found) == {"whole", "_up_and_away", "undated", "coded"}
    assert (found["_up_and_away"].crs, found["_up_and_away"].resolution) == (None, None)
    assert (found["undated"].year, found["undated"].date) == (None, "")
    assert found["coded"].crs == CRS.from_epsg(26918)


@pytest.mark.parametrize("href", ["s3://naip-analytic/va/2018/60cm/m_1.tif", "m_1.tif"])
def test_addresses_that_cost_or_lead_nowhere_are_refused(catalogue, network, href):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010, assets={"image": {"href": href}})]]
    kind = "s3" if href.startswith("s3") else "local"
    with pytest.raises(SourceError, match=rf"gives {kind} addresses.*requester pays.*--naip FOLDER"):
        search_images(PLACE, network, stac_url=catalogue.url)


@pytest.mark.parametrize("root", [{}, [], "x", {"type": "Feature"}])
def test_what_is_no_catalogue_is_said_and_not_kept(catalogue, network, root):
    catalogue.root, catalogue.pages = root, [[make_item("a", PLACE.bounds, 2010)]]
    with pytest.raises(SourceError, match=r"NAIP: the address leads to no STAC API; give another .*--stac-url"):
        search_images(PLACE, network, stac_url=catalogue.url)
    catalogue.root = None
    assert len(search_images(PLACE, network, stac_url=catalogue.url)) == 1


def test_a_catalogue_that_cannot_be_searched_is_said_in_a_line(catalogue, network):
    catalogue.root = {"type": "Catalog", "links": []}
    with pytest.raises(SourceError, match=r"is no STAC API that can be searched .*--stac-url") as caught:
        search_images(PLACE, network, stac_url=f"{catalogue.url}?key=secret")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pages_in_a_circle_and_pages_of_nonsense_end(catalogue, network):
    catalogue.pages, catalogue.endless = [[make_item("a", PLACE.bounds, 2010)], [make_item("b", PLACE.bounds, 2010)]], 1
    with pytest.raises(SourceError, match=r"no STAC API that can be searched \(its pages go round in a circle\)"):
        search_images(PLACE, network, stac_url=catalogue.url)
    catalogue.pages, catalogue.endless = [[{"id": "a", "assets": {"image": {}}, "geometry": {"type": "Lump"}}]], 0
    with pytest.raises(SourceError, match="no STAC API that can be searched"):
        search_images(PLACE, Network(network.cache, refresh=True, policy=QUICK), stac_url=catalogue.url)


def test_a_catalogue_that_is_busy_is_asked_again(catalogue, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010)]]
    catalogue.fail("503", path="/search")
    assert len(search_images(PLACE, network, stac_url=catalogue.url)) == 1
    catalogue.fail("504", path="/search", times=None)
    with pytest.raises(SourceError, match=r"NAIP: .*/search answered 504 .*tried 2 times"):
        search_images(box(-80.0, 40.0, -79.8, 40.1), network, stac_url=catalogue.url)


# -- signing ---------------------------------------------------------------------------------------


@pytest.fixture
def signing(faulty_server):
    """An endpoint like ``sas/v1/sign``: each answer has another signature, good for ``holds`` seconds."""

    def sign(request):
        server.signed += 1
        href, until = request.query["href"], datetime.now(UTC) + timedelta(seconds=server.holds)
        query = f"st=now&sig={server.signed}%3D"
        answer = {"href": f"{href}{'&' if '?' in href else '?'}{query}", "msft:expiry": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer if server.whole else {}).encode()

    server = faulty_server(routes={"/sign": sign})
    server.signed, server.holds, server.whole = 0, 3600, True
    return server


def test_a_signature_serves_a_container_until_it_runs_out(signing, network, monkeypatch):
    signer = TokenSigner(network, f"{signing.url}/sign")
    first = signer.sign("https://east.test/naip/a.tif")
    assert first == "https://east.test/naip/a.tif?st=now&sig=1%3D"
    assert signer.sign("https://east.test/naip/folder/b.tif?x=1") == (
        "https://east.test/naip/folder/b.tif?x=1&st=now&sig=1%3D"
    )
    assert signer.sign("https://east.test/other/a.tif").endswith("sig=2%3D")
    assert signer.sign("https://west.test/naip/a.tif?x=1") == "https://west.test/naip/a.tif?x=1&st=now&sig=3%3D"
    signer.forget("https://east.test/naip/c.tif")
    assert signer.sign("https://east.test/naip/a.tif").endswith("sig=4%3D")
    assert signer.sign("https://east.test/other/a.tif").endswith("sig=2%3D")
    assert signing.signed == 4
    now = time.time()
    monkeypatch.setattr("landprior.sources.naip.warp.time.time", lambda: now + 3600 - 90)
    assert signer.sign("https://east.test/naip/a.tif").endswith("sig=4%3D")
    monkeypatch.setattr("landprior.sources.naip.warp.time.time", lambda: now + 3600 - 30)  # before it is too late
    assert signer.sign("https://east.test/naip/a.tif").endswith("sig=5%3D")


def test_the_key_of_planetary_computer_goes_to_its_own_signer_if_there_is_one(signing, network, monkeypatch):
    monkeypatch.setattr(naip, "SIGN_URL", f"{signing.url}/sas/v1/sign")
    signer = TokenSigner(network, f"{signing.url}/sign")
    signer.sign("https://east.test/naip/a.tif")
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mine")
    signer.sign("https://east.test/other/a.tif")
    keys = [request.headers.get("Ocp-Apim-Subscription-Key") for request in signing.requests]
    assert keys == [None, "mine"]


def test_the_key_of_planetary_computer_goes_to_no_other_signer(signing, network, monkeypatch):
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mine")
    TokenSigner(network, f"{signing.url}/sign").sign("https://east.test/naip/a.tif")
    assert [request.headers.get("Ocp-Apim-Subscription-Key") for request in signing.requests] == [None]


@pytest.mark.parametrize(
    "url",
    [
        "http://planetarycomputer.microsoft.com/api/sas/v1/sign",
        "https://planetarycomputer.microsoft.com:8443/sign",
        "https://planetarycomputer.microsoft.com.evil.test/sign",
        "https://planetarycomputer.microsoft.com@evil.test/sign",
        "https://me:you@planetarycomputer.microsoft.com/sign",
        "https://evil.test\\@planetarycomputer.microsoft.com/sign",  # two parsers, two hosts
        "https://evil.test/?https://planetarycomputer.microsoft.com/sign",
        "https:/planetarycomputer.microsoft.com/sign",
        "//planetarycomputer.microsoft.com/sign",
    ],
)
def test_an_address_that_looks_like_the_signer_gets_no_key(url, monkeypatch):
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mine")
    assert naip.key_headers(url) == {}
    assert naip.key_headers(naip.SIGN_URL) == {"Ocp-Apim-Subscription-Key": "mine"}


def test_an_endpoint_that_does_not_sign_is_said(signing, network):
    signing.whole = False
    with pytest.raises(SourceError, match=r"NAIP: .*/sign signs nothing"):
        TokenSigner(network, f"{signing.url}/sign").sign("https://east.test/naip/a.tif")


def test_images_of_a_catalogue_are_signed_when_they_are_read(catalogue, signing, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010, assets={"image": {"href": "https://e.test/naip/a.tif"}})]]
    (image,) = search_images(PLACE, network, stac_url=catalogue.url, sign_url=f"{signing.url}/sign")
    assert signing.signed == 0
    assert image.source.url == "https://e.test/naip/a.tif?st=now&sig=1%3D"
    assert image.origin == "https://e.test/naip/a.tif"


# -- choosing --------------------------------------------------------------------------------------


def make_image(name, bounds, year):
    return NaipImage(id=name, year=year, date="", footprint=box(*bounds), source=Remote(f"https://a.test/{name}"))


WEST, EAST = (-80.0, 40.0, -79.95, 40.1), (-79.952, 40.0, -79.9, 40.1)


def names(choices):
    return [choice.image.id for choice in choices]


@pytest.mark.parametrize(
    ("year", "expected"),
    [(2010, 2010), (2005, 2010), (2011, 2012), (2012, 2012), (2013, 2012), (2016, 2018), (2030, 2018), (None, 2018)],
)
def test_the_nearest_year_is_taken_the_later_of_two(year, expected):
    images = [make_image(f"{y}", PLACE.bounds, y) for y in (2010, 2012, 2018)]
    if year == 2016:
        images = [image for image in images if image.year != 2012] + [make_image("2014", PLACE.bounds, 2014)]
    for order in (images, images[::-1]):
        (choice,), covered = choose_images(order, PLACE, year)
        assert choice.image.year == expected
        assert covered == pytest.approx(1.0)
        assert choice.part.equals(PLACE)


def test_beyond_a_state_border_the_nearest_other_year_fills_in():
    images = [make_image("w12", WEST, 2012), make_image("w14", WEST, 2014), make_image("e13", EAST, 2013)]
    images += [make_image("e09", EAST, 2009)]
    choices, covered = choose_images(images, PLACE, 2012)
    assert names(choices) == ["w12", "e13"]
    assert covered == pytest.approx(1.0)
    assert choices[1].part.bounds == pytest.approx(EAST)


def test_of_two_years_as_near_one_is_taken_all_over():
    """The footprints of two surveys differ by a little, which must not mix their years."""
    images = [make_image("w11", WEST, 2011), make_image("e13", EAST, 2013)]
    images += [make_image("w13", (-79.99999, *WEST[1:]), 2013), make_image("e11", EAST, 2011)]
    choices, _ = choose_images(images, PLACE, 2012)
    assert {choice.image.year for choice in choices} == {2013}


def test_copies_of_an_image_are_not_taken_twice():
    images = [make_image(name, WEST, 2012) for name in ("va_a", "md_a", "va_a_2")] + [make_image("b", EAST, 2012)]
    for order in (images, images[::-1]):
        choices, _ = choose_images(order, PLACE, 2012)
        assert sorted(names(choices)) == ["b", "md_a"]


def test_what_is_not_covered_is_said_and_slivers_do_not_count():
    choices, covered = choose_images([make_image("w", WEST, 2012)], PLACE, 2012)
    assert names(choices) == ["w"]
    assert covered == pytest.approx(0.5, abs=0.001)
    sliver = make_image("s", (-79.95, 40.0, -79.94999, 40.1), 2012)
    choices, _ = choose_images([make_image("w", WEST, 2012), sliver], PLACE, 2012)
    assert names(choices) == ["w"]
    assert choose_images([], PLACE, 2012) == ([], 0.0)
    assert choose_images([make_image("far", (10, 50, 11, 51), 2012)], PLACE, None) == ([], 0.0)


def test_an_image_is_not_stretched_to_what_it_only_touches():
    place = unary_union([box(-80.0, 40.0, -79.98, 40.02), box(-79.95, 40.05, -79.9, 40.1)])
    (choice,), _ = choose_images([make_image("w", WEST, 2012)], place, 2012)
    assert choice.part.equals(box(-80.0, 40.0, -79.98, 40.02))


def test_images_without_a_year_serve_where_none_of_the_year_is():
    images = [make_image("unknown", PLACE.bounds, None), make_image("w12", WEST, 2012), make_image("e10", EAST, 2010)]
    assert names(choose_images(images, PLACE, 2012)[0]) == ["w12", "unknown"]
    assert names(choose_images(images[:1], PLACE, None)[0]) == ["unknown"]


# -- folders ---------------------------------------------------------------------------------------


def write_tiff(path, values, *, transform, epsg=26917, colors=None, mask=None, **options):
    values = np.asarray(values, dtype=options.pop("dtype", "uint8"))
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    crs = None if epsg is None else CRS.from_epsg(epsg)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **options) as dst,
    ):
        if colors:
            dst.colorinterp = colors
        dst.write(values)
        if mask is not None:
            dst.write_mask(mask)
    return path


AT = Affine(1, 0, 600_000, 0, -1, 4_500_000)


def test_a_folder_is_listed_and_what_is_no_image_left_out(tmp_path, caplog):
    folder = tmp_path / "naip"
    (folder / "below").mkdir(parents=True)
    values = np.full((4, 20, 30), 7)
    write_tiff(folder / "m_4007934_nw_17_1_20100620_20101015.tif", values, transform=AT)
    write_tiff(folder / "below" / "m_4007934_ne_17_1_20120501.TIF", values, transform=AT)
    write_tiff(folder / "mosaic.tiff", values[:3], transform=AT)
    write_tiff(folder / "deep.tif", values, transform=AT, dtype="uint16")
    write_tiff(folder / "lost.tif", values, transform=AT, epsg=None)
    write_tiff(folder / "mask.tif", values[:1], transform=AT)
    write_tiff(folder / "degrees.tif", values, transform=Affine(1e-5, 0, -80, 0, -1e-5, 40), epsg=4326)
    (folder / "text.tif").write_text("no image")
    (folder / "m_4007934_nw.jpg").write_text("no image")
    images = {image.id: image for image in list_images(folder)}
    assert {name: (image.year, image.date) for name, image in images.items()} == {
        "m_4007934_nw_17_1_20100620_20101015": (2010, "2010-06-20"),
        "m_4007934_ne_17_1_20120501": (2012, "2012-05-01"),
        "mosaic": (None, ""),
    }
    image = images["mosaic"]
    assert (image.resolution, image.crs, image.origin) == (1.0, CRS.from_epsg(26917), str(folder / "mosaic.tiff"))
    for name, reason in {
        "deep.tif": "it has 4 band(s) of uint16",
        "lost.tif": "it has no CRS",
        "mask.tif": "it has 1 band(s) of uint8",
        "degrees.tif": "is in degrees",
        "text.tif": "cannot be read as a raster",
    }.items():
        (said,) = (record.getMessage() for record in caplog.records if f": {name} is left out" in record.getMessage())
        assert reason in said
    assert "jpg" not in caplog.text


def test_a_folder_may_lie_elsewhere_or_hold_nothing(tmp_path):
    write_tiff(tmp_path / "a.tif", np.ones((4, 20, 30)), transform=AT)
    (image,) = list_images(tmp_path)
    assert list_images(tmp_path / "a.tif", image.footprint) == [image]
    assert list_images(tmp_path, PLACE) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no NAIP image, .*\(no \.tif\)"):
        list_images(tmp_path / "empty")
    with pytest.raises(MissingInputError, match=r"no such folder or file: .*absent"):
        list_images(tmp_path / "absent")
    write_tiff(tmp_path / "empty" / "one.tif", np.ones((1, 20, 30)), transform=AT)
    with pytest.raises(InputError, match=r"\(it has 1 band\(s\) of uint8\)"):
        list_images(tmp_path / "empty" / "one.tif")


def test_footprints_follow_the_turned_edges(tmp_path):
    write_tiff(tmp_path / "far.tif", np.ones((3, 60, 60)), transform=Affine(100, 0, 300_000, 0, -100, 4_500_000))
    (image,) = list_images(tmp_path)
    to_degrees = Transformer.from_crs(26917, 4326, always_xy=True).transform
    for x, y in ((300_001, 4_499_999), (305_999, 4_494_001), (303_000, 4_499_999)):
        assert image.footprint.contains(box(*to_degrees(x, y), *to_degrees(x, y)).centroid)
    for x, y in ((299_999, 4_499_999), (305_999, 4_493_999), (303_000, 4_500_001)):
        assert not image.footprint.contains(box(*to_degrees(x, y), *to_degrees(x, y)).centroid)


@pytest.mark.realdata
def test_the_real_samples_are_listed(real_data):
    images = {image.id: image for image in list_images(real_data / "naip-samples")}
    assert len(images) == 10
    years = {name: image.year for name, image in images.items() if name.startswith("m_")}
    assert years == {
        "m_3211605_ne_11_060_20200415": 2020,
        "m_3607717_sw_18_1_20160620_subset": 2016,
        "m_3607824_se_17_1_20160620_subset": 2016,
        "m_3907864_sw_17_060_20210912_downsampled": 2021,
        "m_4208701_ne_16_060_20200902": 2020,
    }
    assert images["naip_va_4band_1m"].year is None
    assert images["m_4208701_ne_16_060_20200902"].crs == CRS.from_epsg(26916)
    assert images["m_4208701_ne_16_060_20200902"].resolution == pytest.approx(0.6, abs=0.001)
    centre = images["naip_va_4band_1m"].footprint.centroid
    assert (centre.x, centre.y) == pytest.approx((-78.937, 37.997), abs=0.002)


# -- layout ----------------------------------------------------------------------------------------


def choose_all(image):
    return Choice(image=image, part=image.footprint)


def test_a_tile_has_whole_metres_and_a_margin(tmp_path):
    transform = Affine(0.6, 0, 600_000.3, 0, -0.6, 4_500_000.7)
    write_tiff(tmp_path / "a.tif", np.ones((4, 100, 200)), transform=transform)
    (image,) = list_images(tmp_path)
    grid = tile_grid(choose_all(image), margin=10)
    assert grid.transform == Affine(1, 0, 599_990, 0, -1, 4_500_011)
    assert grid.bounds.right == 600_131  # 600 120.3
    assert grid.bounds.bottom == 4_499_930  # 4 499 940.7
    assert grid.crs == CRS.from_epsg(26917)
    part = box(*image.footprint.centroid.buffer(0.0003).bounds)
    smaller = tile_grid(Choice(image=image, part=part), margin=0)
    to_utm = Transformer.from_crs(4326, 26917, always_xy=True)
    corners = np.array([to_utm.transform(*corner) for corner in part.exterior.coords])
    assert smaller.bounds == (*np.floor(corners.min(axis=0)), *np.ceil(corners.max(axis=0)))


def test_a_tile_of_whole_metres_does_not_grow(tmp_path):
    write_tiff(tmp_path / "a.tif", np.ones((4, 100, 200)), transform=AT)
    (image,) = list_images(tmp_path)
    grid = tile_grid(choose_all(image), margin=0)
    assert (grid.transform, grid.shape) == (AT, (100, 200))


@pytest.mark.realdata
def test_neighbours_across_a_zone_border_keep_their_zones(real_data):
    folder = real_data / "naip-samples"
    for name, epsg in (("m_3607717_sw_18_1_20160620_subset", 26918), ("m_3607824_se_17_1_20160620_subset", 26917)):
        (image,) = list_images(folder / f"{name}.tif")
        grid = tile_grid(choose_all(image), margin=0)
        with rasterio.open(folder / f"{name}.tif") as src:
            assert (grid.crs, grid.transform, grid.shape) == (src.crs, src.transform, src.shape)
        assert grid.crs == CRS.from_epsg(epsg)
        moved = tile_grid(Choice(image=image, part=box(-78.01, 36.6, -77.99, 36.61)), margin=64)
        assert moved.crs == CRS.from_epsg(epsg)


@pytest.mark.parametrize(
    ("crs", "x", "expected"),
    [
        (26917, -77.5, 26917),  # its own, though the place lies in the next
        (32617, -77.5, 32617),
        (3857, -77.5, 26918),
        (5070, -90.5, 26915),
        (None, -179.9, 26901),
        (None, 144.7, 32655),
        (None, 180.0, 32660),
    ],
)
def test_the_zone_is_the_images_own_or_that_of_the_place(crs, x, expected):
    crs = None if crs is None else CRS.from_epsg(crs)
    assert utm_of(crs, box(x - 0.001, 40, x + 0.001, 40.1)) == CRS.from_epsg(expected)


def test_utm_without_a_code_is_kept_and_in_feet_is_not():
    place = box(-80.5, 40, -80.4, 40.1)
    own = CRS.from_string("+proj=utm +zone=18 +ellps=GRS80 +units=m")
    assert utm_of(own, place) is own
    feet = CRS.from_string("+proj=utm +zone=17 +ellps=GRS80 +units=us-ft")
    assert utm_of(feet, place) == CRS.from_epsg(26917)


# -- pixels ----------------------------------------------------------------------------------------


def put(tmp_path, path, grid, network):
    """Write an image onto a grid; return its bands."""
    (image,) = list_images(path)
    out = write_image(image, grid, tmp_path / f"out_{path.name}", network, overwrite=True)
    with rasterio.open(out) as dst:
        assert (Grid.of(dst), dst.nodata) == (grid, 0)
        assert ColorInterp.alpha not in dst.colorinterp
        return dst.read()


RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


@pytest.fixture
def speckled(rng):
    """Values of all kinds; near infrared is 0 in places, as over water, and so are other bands."""
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
        assert difference.max() <= 1  # GDAL follows the curve to an eighth of a pixel, window by window
        assert difference.mean() < 0.002
        assert (whole > 0).any(axis=0).mean() > 0.3


def weights(grid_edges, source_edges):
    """Return how much of each source pixel lies in each pixel of the grid, along one axis."""
    low = np.maximum(grid_edges[:-1, None], source_edges[None, :-1])
    high = np.minimum(grid_edges[1:, None], source_edges[None, 1:])
    return np.clip(high - low, 0, None)


def average(values, transform, grid, valid=None):
    """Return the area-weighted mean of the source pixels with data in each pixel; 0 where none are."""
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
def test_what_has_no_data_stays_without_and_does_not_bleed(tmp_path, network, kind, size):
    values = np.full((4, 100, 100), 200, dtype=np.uint8)
    gone = np.zeros((100, 100), dtype=bool)
    gone[20:50, 30:70] = True
    values[:, gone] = {"nodata 255": 255, "mask": 37}.get(kind, 0)
    values[:, 80:90, 80:90] = 0 if kind in {"nodata 255", "mask"} else 1  # black, and has data
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
    # the edge of what is missing is as bright as the rest: nothing is mixed with what is not there
    edge = has_data & (result[0] < 150)
    rows, columns = np.nonzero(edge)
    assert rows.min() > 75 * size
    assert columns.min() > 75 * size


CORNER = (600_431, 4_499_612)


def bright_square(tmp_path, size, *, epsg=26917, west=600_400.0, north=4_499_650.0):
    """Write 10 everywhere but 210 in a square of 30 m whose upper left corner is CORNER."""
    count = round(100 / size)
    x = west + size * (np.arange(count) + 0.5)
    y = north - size * (np.arange(count) + 0.5)
    inside = ((y <= CORNER[1]) & (y >= CORNER[1] - 30))[:, None] & ((x >= CORNER[0]) & (x <= CORNER[0] + 30))[None, :]
    values = np.broadcast_to(np.where(inside, 210, 10), (4, count, count))
    return write_tiff(tmp_path / f"{size}.tif", values, transform=Affine(size, 0, west, 0, -size, north), epsg=epsg)


@pytest.mark.parametrize("size", [1.0, 0.6, 0.5, 0.3])
@pytest.mark.parametrize("epsg", [26917, 26918], ids=["own zone", "next zone"])
@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_a_corner_stays_where_it_is(tmp_path, network, size, epsg, offset):
    path = bright_square(tmp_path, size, west=600_400.0 + offset, north=4_499_650.0 - offset)
    to_grid = Transformer.from_crs(26917, epsg, always_xy=True).transform
    left, top = np.floor(to_grid(CORNER[0] - 15, CORNER[1] + 15))
    grid = Grid(width=70, height=70, transform=Affine(1, 0, left, 0, -1, top), crs=CRS.from_epsg(epsg))
    bright = put(tmp_path, path, grid, network)[0] > 110
    columns, rows = np.meshgrid(np.arange(70) + 0.5, np.arange(70) + 0.5)
    x, y = Transformer.from_crs(epsg, 26917, always_xy=True).transform(*(grid.transform @ (columns, rows)))
    # how far inside the square the middle of a pixel is, in metres; the source itself is off by half its pixel
    depth = np.minimum.reduce([x - CORNER[0], CORNER[0] + 30 - x, CORNER[1] - y, y - CORNER[1] + 30])
    slack = 0.5 + size / 2 * (offset > 0 or size not in {1.0, 0.5})
    np.testing.assert_array_equal(bright[depth > slack], True)
    np.testing.assert_array_equal(bright[depth < -slack], False)
    # and on the whole it is not moved: its centre of mass, and its area
    shift = np.array([columns[bright].mean(), rows[bright].mean()]) - [
        columns[depth > 0].mean(),
        rows[depth > 0].mean(),
    ]
    assert np.abs(shift).max() < 0.3
    assert bright.sum() == pytest.approx(900, rel=0.05)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["naip_va_4band_1m", "m_3607717_sw_18_1_20160620_subset"])
def test_real_images_of_one_metre_are_copied(real_data, tmp_path, network, name):
    path = real_data / "naip-samples" / f"{name}.tif"
    with rasterio.open(path) as src:
        values, grid = src.read(), Grid.of(src)
    np.testing.assert_array_equal(put(tmp_path, path, grid, network), values)
    assert values[3].std() > 5


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["m_3211605_ne_11_060_20200415", "m_4208701_ne_16_060_20200902"])
def test_real_images_of_less_are_averaged(real_data, tmp_path, network, name):
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
def test_real_neighbours_agree_on_the_zone_border(real_data, tmp_path, network):
    """What both show is the same place, whichever zone it is put into."""
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


def test_three_bands_are_three_and_elsewhere_is_nothing(tmp_path, network, speckled):
    rgb = write_tiff(tmp_path / "rgb.tif", speckled[:3], transform=AT)
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    np.testing.assert_array_equal(put(tmp_path, rgb, grid, network), speckled[:3, :30, :40])
    far = Grid(width=40, height=30, transform=Affine(1, 0, 700_000, 0, -1, 4_500_000), crs=CRS.from_epsg(26917))
    assert not put(tmp_path, rgb, far, network).any()


def test_pixels_of_a_catalogue_come_by_ranges(tmp_path, network, faulty_server, speckled):
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
    (image,) = list_images(tmp_path / "cut.tif")
    with pytest.raises(RasterReadError, match=r"cut\.tif is damaged or truncated .*copy or download it again"):
        write_image(image, grid, tmp_path / "cut_out.tif", network)
    assert not (tmp_path / "cut_out.tif").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({"epsg": None}, "has no CRS"), ({"dtype": "uint16"}, "holds uint16, NAIP is uint8")]
)
def test_a_remote_file_that_is_no_naip_is_refused(tmp_path, network, faulty_server, options, message):
    write_tiff(tmp_path / "a.tif", np.ones((4, 30, 40)), transform=AT, **options)
    grid = Grid(width=40, height=30, transform=AT, crs=CRS.from_epsg(26917))
    with pytest.raises(RasterReadError, match=message):
        write_image(make_remote(f"{faulty_server(tmp_path).url}/a.tif"), grid, tmp_path / "out.tif", network)
