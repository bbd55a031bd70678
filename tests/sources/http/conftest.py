"""Fixtures: a network with its own cache, and files and rasters to serve."""

from __future__ import annotations

import pytest

from landprior.sources.http.client import Network

from .shared import DATA, QUICK, write_noise


@pytest.fixture
def network(cache):
    return Network(cache, policy=QUICK)


@pytest.fixture
def waits(network, monkeypatch):
    """The waits of ``network``, which are recorded and skipped."""
    noted = []
    monkeypatch.setattr(network, "pause", noted.append)
    return noted


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """A folder with ``image.tif``, 4 bands of incompressible noise in about 9 chunks, and another in ``other/``."""
    folder = tmp_path_factory.mktemp("rasters")
    for number, path in enumerate((folder / "image.tif", folder / "other" / "image.tif")):
        path.parent.mkdir(exist_ok=True)
        write_noise(path, seed=number)
    return folder


@pytest.fixture
def image(rasters):
    return rasters / "image.tif"


@pytest.fixture
def folder(tmp_path):
    """A folder to serve, with ``data.bin``."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "data.bin").write_bytes(DATA)
    return served
