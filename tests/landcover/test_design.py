"""The design of a sample survives what formats do to names of columns, or reading stops."""

import geopandas
import numpy as np
import pytest

from landprior.errors import InputError
from landprior.landcover.design import read_design
from landprior.sources.vectors import read_everything


@pytest.fixture
def points():
    return geopandas.GeoDataFrame(
        {
            "reference": ["a", "b", "a", "b"],
            "stratum": [1, 2, 2, 2],
            "stratum_pixels": [100, 9000, 9000, 9000],
            "stratum_hectares": [0.01, 0.9, 0.9, 0.9],
        },
        geometry=geopandas.points_from_xy([600001.5, 600002.5, 600003.5, 600004.5], [4499999.5] * 4),
        crs="EPSG:26917",
    )


@pytest.mark.parametrize("change", [str, str.upper, str.title, "points_{}".format, "{}_left".format, "P {}".format])
@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.fgb", "a.parquet"])
def test_strata_are_found_under_changed_names(tmp_path, points, change, name):
    frame = points.rename(columns={c: change(c) for c in points.columns if c.startswith("stratum")})
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    design = read_design(read_everything(path), path)
    assert design.sizes == {1: 100, 2: 9000}
    np.testing.assert_allclose(sorted(design.shares()), [100, 3000, 3000, 3000])
    assert design.areas == {1: 0.01, 2: 0.9}


@pytest.mark.filterwarnings("ignore")
def test_strata_survive_a_shapefile(tmp_path, points):
    points.to_file(tmp_path / "a.shp")
    found = read_everything(tmp_path / "a.shp")
    assert "stratum_pi" in found
    assert read_design(found, "a.shp").sizes == {1: 100, 2: 9000}
    upper = found.rename(columns=lambda name: name if name == "geometry" else name.upper())
    assert read_design(upper, "a.shp").sizes == {1: 100, 2: 9000}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.drop(columns="stratum_pixels"), "no column 'stratum_pixels'"),
        (lambda f: f.drop(columns="stratum"), "no column 'stratum'"),
        (lambda f: f.assign(stratum=[1, None, 2, 2]), "feature 2: stratum is empty"),
        (lambda f: f.assign(stratum_pixels=[100, 9000, 9000, None]), "feature 4: stratum_pixels is empty"),
        (lambda f: f.assign(stratum_pixels=[100, 9000, 9000, 8000]), "several sizes, 8000 and 9000"),
    ],
)
def test_a_damaged_design_stops(points, change, reason):
    with pytest.raises(InputError, match=reason):
        read_design(change(points), "a.gpkg")


def test_points_without_a_design_have_none(points):
    assert read_design(points[["reference", "geometry"]], "a.gpkg") is None
    assert read_design(points[["reference", "geometry"]].assign(forest_stratum=1), "a.gpkg") is None


def test_swapped_arguments_of_evaluate_are_recognised(make_raster, chesapeake):
    from landprior.landcover.evaluation import refuse_swapped

    codes = np.ones((4, 5), np.uint8)
    plain = make_raster("labels.tif", codes)
    ours = make_raster("map.tif", codes, tags={"scheme": chesapeake.model_dump_json(exclude_defaults=True)})
    with pytest.raises(InputError, match=r"swapped\? Write: landprior evaluate .*map\.tif .*labels\.tif"):
        refuse_swapped(plain, ours)
    refuse_swapped(ours, plain)
    refuse_swapped(ours, ours)
    refuse_swapped(plain, plain)
