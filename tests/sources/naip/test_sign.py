"""Signatures of addresses are kept until they expire, and the key goes to one signer only."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from landprior.errors import SourceError
from landprior.sources.naip import sign
from landprior.sources.naip.search import search_images
from landprior.sources.naip.sign import SIGN_URL, TokenSigner, key_headers

from .shared import PLACE, make_item


@pytest.fixture
def signing(faulty_server):
    """An endpoint like ``sas/v1/sign``: each response has a new signature, valid for ``holds`` seconds."""

    def sign(request):
        server.signed += 1
        href, until = request.query["href"], datetime.now(UTC) + timedelta(seconds=server.holds)
        query = f"st=now&sig={server.signed}%3D"
        answer = {"href": f"{href}{'&' if '?' in href else '?'}{query}", "msft:expiry": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer if server.whole else {}).encode()

    server = faulty_server(routes={"/sign": sign})
    server.signed, server.holds, server.whole = 0, 3600, True
    return server


def test_a_signature_is_used_for_a_container_until_it_expires(signing, network, monkeypatch):
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
    monkeypatch.setattr("landprior.sources.naip.sign.time.time", lambda: now + 3600 - 90)
    assert signer.sign("https://east.test/naip/a.tif").endswith("sig=4%3D")
    monkeypatch.setattr("landprior.sources.naip.sign.time.time", lambda: now + 3600 - 30)  # shortly before it expires
    assert signer.sign("https://east.test/naip/a.tif").endswith("sig=5%3D")


def test_the_key_of_planetary_computer_is_sent_to_its_own_signer(signing, network, monkeypatch):
    monkeypatch.setattr(sign, "SIGN_URL", f"{signing.url}/sas/v1/sign")
    signer = TokenSigner(network, f"{signing.url}/sign")
    signer.sign("https://east.test/naip/a.tif")
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mine")
    signer.sign("https://east.test/other/a.tif")
    keys = [request.headers.get("Ocp-Apim-Subscription-Key") for request in signing.requests]
    assert keys == [None, "mine"]


def test_the_key_of_planetary_computer_is_not_sent_to_other_signers(signing, network, monkeypatch):
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
        "https://evil.test\\@planetarycomputer.microsoft.com/sign",  # parsers disagree about the host
        "https://evil.test/?https://planetarycomputer.microsoft.com/sign",
        "https:/planetarycomputer.microsoft.com/sign",
        "//planetarycomputer.microsoft.com/sign",
    ],
)
def test_an_address_that_looks_like_the_signer_gets_no_key(url, monkeypatch):
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mine")
    assert key_headers(url) == {}
    assert key_headers(SIGN_URL) == {"Ocp-Apim-Subscription-Key": "mine"}


def test_an_endpoint_that_does_not_sign_is_an_error(signing, network):
    signing.whole = False
    with pytest.raises(SourceError, match=r"NAIP: .*/sign returned no signature"):
        TokenSigner(network, f"{signing.url}/sign").sign("https://east.test/naip/a.tif")


def test_images_from_a_catalogue_are_signed_when_they_are_read(catalogue, signing, network):
    catalogue.pages = [[make_item("a", PLACE.bounds, 2010, assets={"image": {"href": "https://e.test/naip/a.tif"}})]]
    (image,) = search_images(PLACE, network, stac_url=catalogue.url, sign_url=f"{signing.url}/sign")
    assert signing.signed == 0
    assert image.source.url == "https://e.test/naip/a.tif?st=now&sig=1%3D"
    assert image.origin == "https://e.test/naip/a.tif"
