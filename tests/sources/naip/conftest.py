"""Fixtures: a network with its own cache, and a catalogue."""

from __future__ import annotations

import json

import pytest

from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network

from .shared import QUICK, make_item


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


@pytest.fixture(scope="module")
def many():
    """More items than fit on a page, from four years, some next to the place."""
    cells = [(-80.1 + 0.01 * i, 40.0 + 0.01 * j) for i in range(12) for j in range(5)]
    return [
        make_item(f"va_m_{n:07d}_{year}", (x, y, x + 0.01, y + 0.01), year)
        for year in (2010, 2012, 2014, 2016)
        for n, (x, y) in enumerate(cells)
    ]


@pytest.fixture
def catalogue(faulty_server):
    """A STAC API whose search returns the ``pages`` one after the other, in an endless loop if asked."""

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
