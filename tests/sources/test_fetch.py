"""The whole way: a synthetic place served by real servers, fetched, run, scored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_bounds

from landprior.landcover.acquisition import FetchSettings, fetch, plan_fetch
from landprior.landcover.workspace import Workspace
from landprior.sources.areas import area_from_bounds
from landprior.sources.cache import Cache
from landprior.sources.network import Network, RetryPolicy

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)
LAYERS = ("naip", "nlcd", "roads", "waterways", "waterbodies", "buildings")


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


@pytest.fixture
def inside(scene_files):
    """The scene's box in degrees, less 100 m, so that the margin stays within the image."""
    left, bottom, right, top = scene_files.scene.grid.bounds
    box = (left + 100, bottom + 100, right - 100, top - 100)
    return tuple(transform_bounds(scene_files.scene.grid.crs, "EPSG:4326", *box))


@pytest.fixture
def served(scene_files, file_server, stac_server, wcs_server):
    """Settings whose sources are servers on loopback, all but OpenStreetMap's."""
    url = file_server(scene_files.folder)
    (scene_files.folder / "dataset-links.csv").write_text(scene_files.links_csv(url), encoding="utf-8")
    return FetchSettings(
        year=2010,
        stac_url=stac_server(scene_files.naip_items(url)),
        nlcd_wcs=wcs_server(scene_files.nlcd, coverage="nlcd"),
        nlcd_coverage="nlcd",
        osm=str(scene_files.pbf),
        buildings_index=f"{url}/dataset-links.csv",
        labels=(scene_files.labels,),
    )


def test_layers_lie_on_one_grid_and_hold_what_was_served(scene_files, served, inside, network, tmp_path, enviroatlas):
    settings = served.model_copy(update={"scheme": enviroatlas})
    workspace = Workspace(tmp_path / "w")
    plan = plan_fetch(area_from_bounds(inside, name="village"), workspace, settings, network)
    (tile,) = fetch(plan, workspace, settings, network)
    scene = scene_files.scene
    grids, values = {}, {}
    for name in (*LAYERS, "labels"):
        with rasterio.open(tile.file(name)) as src:
            grids[name] = (src.crs, src.transform, src.shape)
            values[name] = src.read()
    assert len(set(grids.values())) == 1
    (grid,) = (plan.tiles[0].grid,)
    assert (grid.transform.a, grid.transform.c % 1, grid.transform.f % 1) == (1, 0, 0)
    col = round(grid.transform.c - scene.grid.transform.c)
    row = round(scene.grid.transform.f - grid.transform.f)
    here = (slice(row, row + grid.height), slice(col, col + grid.width))
    assert np.array_equal(values["naip"], scene.image[:, *here])
    assert np.array_equal(values["labels"][0], scene.truth[here])
    for name in ("buildings", "waterbodies"):
        agreement = (values[name][0] > 0) == (scene.layers[name][here] > 0)
        assert agreement.mean() > 0.999, name
    item = json.loads((tile.path / "item.json").read_text())
    assert set(item["assets"]) == {*LAYERS, "labels"}
