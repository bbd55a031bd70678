"""Finding NAIP images in catalogues and folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from shapely.geometry import box

from landprior.errors import InputError, MissingInputError, OfflineError, SourceError
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network
from landprior.sources.http.origins import Remote
from landprior.sources.naip.search import list_images, search_images

from .shared import AT, PLACE, QUICK, make_item, write_tiff


def test_all_pages_of_a_real_catalogue_are_read_and_cached(stac_server, many, network, tmp_path):
    url = stac_server(many)
    found = search_images(PLACE, network, stac_url=url)
    # ten columns are next to the place; one of them touches it
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


def test_a_place_without_images_gives_an_empty_list(stac_server, many, network):
    assert search_images(box(10, 50, 11, 51), network, stac_url=stac_server(many)) == []


def test_the_search_is_a_post_request_with_the_box(catalogue, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010)], [make_item("b", PLACE.bounds, 2012)]]
    assert [image.id for image in search_images(PLACE, network, stac_url=catalogue.url)] == ["a", "b"]
    posted = [json.loads(request.body) for request in catalogue.requests if request.method == "POST"]
    question = {"collections": ["naip"], "bbox": list(PLACE.bounds), "limit": 100}
    assert posted == [question, question | {"token": 1}]
    count = len(catalogue.requests)
    search_images(box(*PLACE.bounds), network, stac_url=catalogue.url)
    assert len(catalogue.requests) == count


def test_items_that_are_not_images_of_the_place_are_left_out(catalogue, network):
    item = make_item("whole", PLACE.bounds, 2010)
    corner = box(-80.2, 40.0, -80.0001, 40.1)  # within the searched box, but not in the place
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
def test_paid_and_local_addresses_are_refused(catalogue, network, href):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010, assets={"image": {"href": href}})]]
    kind = "s3" if href.startswith("s3") else "local"
    with pytest.raises(SourceError, match=rf"gives {kind} addresses.*requester pays.*--naip FOLDER"):
        search_images(PLACE, network, stac_url=catalogue.url)


@pytest.mark.parametrize("root", [{}, [], "x", {"type": "Feature"}])
def test_an_address_without_a_catalogue_is_an_error_and_not_cached(catalogue, network, root):
    catalogue.root, catalogue.pages = root, [[make_item("a", PLACE.bounds, 2010)]]
    with pytest.raises(SourceError, match=r"NAIP: the address is not a STAC API; give another .*--stac-url"):
        search_images(PLACE, network, stac_url=catalogue.url)
    catalogue.root = None
    assert len(search_images(PLACE, network, stac_url=catalogue.url)) == 1


def test_a_catalogue_without_search_is_a_one_line_error(catalogue, network):
    catalogue.root = {"type": "Catalog", "links": []}
    with pytest.raises(SourceError, match=r"is not a STAC API with search .*--stac-url") as caught:
        search_images(PLACE, network, stac_url=f"{catalogue.url}?key=secret")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pages_in_a_loop_and_invalid_pages_are_errors(catalogue, network):
    catalogue.pages, catalogue.endless = [[make_item("a", PLACE.bounds, 2010)], [make_item("b", PLACE.bounds, 2010)]], 1
    with pytest.raises(SourceError, match=r"not a STAC API with search \(its pages form a loop\)"):
        search_images(PLACE, network, stac_url=catalogue.url)
    catalogue.pages, catalogue.endless = [[{"id": "a", "assets": {"image": {}}, "geometry": {"type": "Lump"}}]], 0
    with pytest.raises(SourceError, match="not a STAC API with search"):
        search_images(PLACE, Network(network.cache, refresh=True, policy=QUICK), stac_url=catalogue.url)


def test_a_busy_catalogue_is_tried_again(catalogue, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010)]]
    catalogue.fail("503", path="/search")
    assert len(search_images(PLACE, network, stac_url=catalogue.url)) == 1
    catalogue.fail("504", path="/search", times=None)
    with pytest.raises(SourceError, match=r"NAIP: .*/search answered 504 .*tried 2 times"):
        search_images(box(-80.0, 40.0, -79.8, 40.1), network, stac_url=catalogue.url)


def test_images_in_a_folder_are_listed_and_other_files_left_out(tmp_path, caplog):
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


def test_a_folder_of_another_place_or_without_images(tmp_path):
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


def test_footprints_follow_rotated_edges(tmp_path):
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
