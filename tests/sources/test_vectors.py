"""Vector data: read from any format and CRS within the grid, and burnt like with rasterio and scipy."""

from __future__ import annotations

import json
import zipfile

import geopandas
import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.features import rasterize
from scipy.ndimage import grey_dilation
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from landprior.errors import InputError, MissingInputError
from landprior.raster.grid import Grid
from landprior.sources.burning import burn, widen_pixels
from landprior.sources.vectors import read_everything, read_vectors


@pytest.fixture
def grid(make_grid):
    return make_grid(60, 80)


@pytest.fixture
def houses(grid):
    """Three on the grid, one of which extends beyond its edge, and two far away."""
    left, bottom, right, top = grid.bounds
    shapes = [
        box(left + 5.2, top - 20.1, left + 15.3, top - 8.2),
        Polygon([(left + 30.13, top - 5.27), (left + 50.31, top - 9.17), (left + 40.21, top - 33.39)]),
        box(right - 5.2, bottom - 5.2, right + 5, bottom + 5.2),
        box(left - 5000, top, left - 4990, top + 10),
        box(right + 9000, bottom, right + 9010, bottom + 10),
    ]
    return geopandas.GeoDataFrame({"class": ["a", "b", "c", "d", "e"]}, geometry=shapes, crs=grid.crs.to_wkt())


def write(frame, path):
    if path.suffix == ".zip":
        folder = path.parent / "unzipped"
        folder.mkdir()
        pyogrio.write_dataframe(frame, folder / "houses.shp")
        with zipfile.ZipFile(path, "w") as archive:
            for part in sorted(folder.iterdir()):
                archive.write(part, part.name)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyogrio.write_dataframe(frame, path)
    return path


def check(found, houses, grid):
    assert found.crs == grid.crs.to_wkt()
    assert sorted(found["class"]) == ["a", "b", "c"]
    expected = houses.set_index("class").geometry
    for name, shape in zip(found["class"], found.geometry, strict=True):
        assert shape.symmetric_difference(expected[name]).area < 1e-3
    np.testing.assert_array_equal(
        burn(found.geometry, grid), rasterize(houses.geometry, grid.shape, transform=grid.transform, dtype="uint8")
    )


@pytest.mark.parametrize("epsg", [26917, 4326, 5070, 32618])
@pytest.mark.parametrize("ending", ["gpkg", "fgb", "geojson", "shp", "zip", "parquet"])
def test_any_format_in_any_crs_is_read_within_the_grid(tmp_path, houses, grid, ending, epsg):
    path = write(houses.to_crs(epsg), tmp_path / f"houses.{ending}")
    check(read_vectors(path, grid=grid), houses, grid)
    assert len(read_vectors(path)) == 5
    assert read_vectors(path).crs.to_epsg() == epsg


@pytest.mark.parametrize("epsg", [26917, 4326])
def test_geoparquet_with_bounding_boxes_is_filtered_in_its_own_crs(tmp_path, houses, grid, epsg):
    path = tmp_path / "boxes.parquet"
    houses.to_crs(epsg).to_parquet(path, write_covering_bbox=True, row_group_size=1)
    check(read_vectors(path, grid=grid), houses, grid)


def test_geoparquet_in_the_form_of_overture(tmp_path, houses, grid):
    path = tmp_path / "overture.parquet"
    houses.to_crs(4326).to_parquet(path, write_covering_bbox=True)
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"geo"])
    del about["columns"]["geometry"]["crs"]  # without it the CRS is longitude, latitude
    for covering in (True, False):  # earlier releases have the boxes, but no metadata about them
        if not covering:
            about["version"] = "1.0.0"
            del about["columns"]["geometry"]["covering"]
        text = json.dumps(about).encode()
        pyarrow.parquet.write_table(table.replace_schema_metadata({b"geo": text}), path)
        assert read_vectors(path).crs == "OGC:CRS84"
        check(read_vectors(path, grid=grid), houses, grid)


def test_one_of_several_layers_must_be_chosen(tmp_path, houses):
    path = tmp_path / "two.gpkg"
    pyogrio.write_dataframe(houses.drop(columns="geometry"), path, layer="table")
    pyogrio.write_dataframe(houses[:2], path, layer="some", append=True)
    pyogrio.write_dataframe(houses, path, layer="all", append=True)
    with pytest.raises(
        InputError, match=r"has 2 layers: 'some' \(2 features\), 'all' \(5 features\); choose one with --layer NAME"
    ) as caught:
        read_vectors(path)
    assert f'"{path}|layername=some"' in str(caught.value)
    assert len(read_vectors(path, layer="all")) == 5
    for text, count in (
        ("|layername=some", 2),
        ("|layername=ALL", 5),
        ("|layerid=1", 5),
        ("|layerid=1|layername=all", 5),
        ("|layername=all|geometrytype=MultiPolygon25D", 5),
        ("|layername=all|geometrytype=Point", 0),
        ("|layername=all|uniqueGeometryType=yes", 5),
    ):
        assert len(read_vectors(f"{path}{text}")) == count, text
    for text, reason in (
        ("|layername=none", "no layer 'none'; it has 'some', 'all'"),
        ("|layerid=2", "no layer 2"),  # after the layers comes a table
        ("|layerid=9", "no layer 9"),
        ("|layername=all|subset=class = 'a'", "a filter"),
        ("|layername=", "is not supported"),
        ("|nonsense", "is not supported"),
    ):
        with pytest.raises(InputError, match=reason):
            read_vectors(f"{path}{text}")
    with pytest.raises(InputError, match="names the layer 'some' and --layer 'all'"):
        read_vectors(f"{path}|layername=some", layer="all")
    with pytest.raises(MissingInputError, match=r"no such file: .*none\.gpkg$"):
        read_vectors(tmp_path / "none.gpkg|layername=some")


def test_empty_layers_and_tables_do_not_count_and_file_names_may_have_bars(tmp_path, houses):
    path = tmp_path / "two.gpkg"
    pyogrio.write_dataframe(houses[:0], path, layer="draft", geometry_type="Polygon")
    pyogrio.write_dataframe(houses, path, layer="all", append=True)
    assert len(read_vectors(path)) == 5
    odd = path.rename(tmp_path / "a|layername=b.gpkg")
    assert len(read_vectors(odd, layer="all")) == 5


def test_features_without_a_geometry_are_counted(tmp_path, houses, grid, caplog):
    houses.loc[1, "geometry"] = None
    houses.loc[2, "geometry"] = Polygon()
    path = write(houses, tmp_path / "some.gpkg")
    assert sorted(read_vectors(path, grid=grid)["class"]) == ["a"]
    assert sorted(read_vectors(path)["class"]) == ["a", "d", "e"]
    assert "2 of 5 features have no usable geometry" in caplog.text


def test_a_grid_without_features_gives_an_empty_result(tmp_path, houses, make_grid):
    for ending in ("gpkg", "fgb", "parquet"):
        path = write(houses, tmp_path / f"houses.{ending}")
        found = read_vectors(path, grid=make_grid(left=700_000.0))
        assert len(found) == 0
        assert burn(found.geometry, make_grid(4, 5)).tolist() == [[0] * 5] * 4


@pytest.mark.parametrize("ending", ["gpkg", "shp", "fgb", "parquet"])
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_missing_crs_is_refused(tmp_path, houses, grid, ending):
    path = write(houses.set_crs(None, allow_override=True), tmp_path / f"lost.{ending}")
    for where in (grid, None):
        with pytest.raises(InputError, match=rf"lost\.{ending} has no CRS; set it \(ogr2ogr -a_srs EPSG:4326\)"):
            read_vectors(path, grid=where)


def test_unreadable_files_are_errors(tmp_path, houses, grid):
    with pytest.raises(MissingInputError, match="no such file"):
        read_vectors(tmp_path / "none.gpkg", grid=grid)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"table\.csv has no coordinates"):
        read_vectors(tmp_path / "table.csv", grid=grid)
    for name in ("text.gpkg", "text.geojson"):
        (tmp_path / name).write_text("houses")
        with pytest.raises(InputError, match=rf"{name} cannot be read as vector data"):
            read_vectors(tmp_path / name, grid=grid)
    (tmp_path / "text.parquet").write_text("houses")
    with pytest.raises(InputError, match=r"text\.parquet cannot be read as GeoParquet"):
        read_vectors(tmp_path / "text.parquet", grid=grid)
    houses.drop(columns="geometry").to_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match=r"table\.parquet cannot be read as GeoParquet \(Missing geo metadata"):
        read_vectors(tmp_path / "table.parquet", grid=grid)
    whole = write(houses, tmp_path / "houses.gpkg").read_bytes()
    (tmp_path / "half.gpkg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half\.gpkg cannot be read"):
        read_vectors(tmp_path / "half.gpkg", grid=grid)


@pytest.mark.realdata
def test_a_real_zipped_shapefile(real_data, make_grid):
    path = real_data / "building-footprints-boulder" / "boulder_buildings.zip"
    everything = read_vectors(path)
    assert len(everything) == 13_491
    there = everything.to_crs(26913)
    left, _, _, top = there.geometry.iloc[5000].bounds
    grid = make_grid(400, 500, left=np.floor(left) - 200.0, top=np.floor(top) + 200.0, epsg=26913)
    found = read_vectors(path, grid=grid)
    assert 20 < len(found) < 2000
    expected = rasterize(there.geometry, grid.shape, transform=grid.transform, dtype="uint8")
    np.testing.assert_array_equal(burn(found.geometry, grid), expected)
    assert 0.02 < expected.mean() < 0.8


@pytest.mark.realdata
def test_real_polygons_are_clipped_to_their_image(real_data):
    folder = real_data / "redmond-naip-vector"
    found = read_vectors(folder / "example_labels.geojson")
    assert dict(found["class"].value_counts()) == {"building": 45, "other": 17, "water": 6}
    with rasterio.open(folder / "naip_rgb_redmond_wa_2019.tif") as src:
        grid = Grid.of(src)
    there = read_vectors(folder / "example_labels.geojson", grid=grid)
    assert "water" not in set(there["class"])
    assert 30 < len(there) < 62
    everything = rasterize(found.to_crs(26910).geometry, grid.shape, transform=grid.transform, dtype="uint8")
    np.testing.assert_array_equal(burn(there.geometry, grid), everything)


# -- burning -------------------------------------------------------------------------------------


def test_holes_lines_and_points_are_burnt_like_rasterio(grid):
    left, bottom, right, top = grid.bounds
    ring = Point(left + 30, top - 30).buffer(20).difference(Point(left + 30, top - 30).buffer(8))
    shapes = [
        MultiPolygon([ring, box(right - 9.5, top - 9.5, right - 2.5, top - 2.5)]),
        LineString([(left - 10, bottom - 10), (right + 10, top + 10)]),
        Point(left + 30.5, top - 30.5),
    ]
    for touched in (False, True):
        expected = rasterize(shapes, grid.shape, transform=grid.transform, all_touched=touched, dtype="uint8")
        np.testing.assert_array_equal(burn(shapes, grid, touched=touched), expected)
        wide = grey_dilation(expected, size=(5, 5), mode="constant")
        np.testing.assert_array_equal(burn(iter(shapes), grid, touched=touched, widen=5), wide)
    assert burn(shapes, grid)[30, 30] == 1
    assert burn(shapes, grid)[36, 30] == 0


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)),
    st.sampled_from([1, 3, 5, 7, 15, 31]),
)
def test_widening_is_dilation_by_a_square(mask, width):
    before = mask.copy()
    expected = grey_dilation(mask, size=(width, width), mode="constant", cval=0)
    np.testing.assert_array_equal(widen_pixels(mask, width), expected)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.filterwarnings("ignore:Non closed ring detected")  # a warning of pyogrio
@pytest.mark.parametrize(
    ("ring", "message"),
    [
        (
            [[-79.8, 40.6], [-79.7, 40.6], [-79.7, 40.7], [-79.8, 40.61]],
            "closed linestring|cannot be read as vector data",
        ),
        ([[-79.8, 40.6], [-79.7, 1e999], [-79.7, 40.7], [-79.8, 40.6]], "not a finite number|cannot be read"),
    ],
)
def test_broken_rings_and_coordinates_give_one_line(tmp_path, ring, message):
    text = json.dumps({"type": "Polygon", "coordinates": [ring]})
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_vectors(tmp_path / "a.geojson")
    assert "a.geojson" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_error_names_a_feature_with_an_invalid_coordinate(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[Point(1, 2), LineString([(0, 0), (float("nan"), 1)])], crs=4326)
    frame.to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"a.gpkg: feature 2 has a coordinate that is not a finite number"):
        read_vectors(tmp_path / "a.gpkg")


def test_latitudes_beyond_the_poles_are_an_error(tmp_path, make_grid):
    shapes = [Point(37.5, -122.1), Point(37.6, -122.2)]
    geopandas.GeoDataFrame({"a": [1, 2]}, geometry=shapes, crs=4326).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"latitudes from -122.2 to -122.1 .*longitude and latitude swapped\?"):
        read_everything(tmp_path / "a.gpkg", grid=make_grid(5, 5, epsg=26910))
    utm = geopandas.GeoDataFrame({"a": [1]}, geometry=[Point(570010, 4120200)], crs=4326)
    utm.to_file(tmp_path / "utm.gpkg")
    with pytest.raises(InputError, match=r"latitudes from .*these are map coordinates; set their CRS"):
        read_everything(tmp_path / "utm.gpkg", grid=make_grid(5, 5, epsg=26910))
