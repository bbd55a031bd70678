"""Areas per polygon: against counting pixels, closed forms, the ellipsoid, and other readers of the files."""

import logging

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from affine import Affine
from pyproj import Geod
from rasterio.crs import CRS

import landprior
from landprior.errors import InputError, NoOverlapError, OutputExistsError, SchemeError
from landprior.landcover.assessment.sampling import measure_classes
from landprior.landcover.vectors.zonal import AreaOptions, measure_areas, name_columns, write_areas
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import ClassScheme
from landprior.run import Run
from landprior.sources import polygons as polygons_module

LEFT, TOP = 600_000.0, 4_500_000.0
OVERWRITE = Run(overwrite=True)


@pytest.fixture(scope="module")
def codes(enviroatlas):
    rng = np.random.default_rng(7)
    cells = rng.choice([*enviroatlas.codes, 255], (60, 75), p=[0.1, 0.2, 0.1, 0.3, 0.25, 0.05])
    return np.kron(cells, np.ones((10, 12), dtype=np.uint8)).astype(np.uint8)  # more than one block of 512 pixels


@pytest.fixture(scope="module")
def map_path(codes, enviroatlas, tmp_path_factory):
    return write_map(tmp_path_factory.mktemp("map") / "map.tif", codes, enviroatlas)


def make_grid(shape, transform=None, epsg=26917):
    crs = None if epsg is None else CRS.from_epsg(epsg)
    return Grid(width=shape[1], height=shape[0], transform=transform or Affine(1, 0, LEFT, 0, -1, TOP), crs=crs)


def write_map(path, codes, scheme, transform=None, epsg=26917, **options):
    grid = make_grid(codes.shape, transform, epsg)
    return write_raster(path, codes, grid, nodata=255, overviews="mode", scheme=scheme, **options)


def boxes(columns, rows, widths, heights, **values):
    """Return boxes given in pixels of the map as features."""
    x, y = LEFT + np.asarray(columns, float), TOP - np.asarray(rows, float)
    shapes = shapely.box(x, y - heights, x + widths, y)
    return geopandas.GeoDataFrame(values or {"number": range(len(shapes))}, geometry=shapes, crs="EPSG:26917")


def classes_of(frame, scheme, end="ha"):
    return frame[[f"{name}_{end}" for name in name_columns(scheme)]].to_numpy()


def tiling(height, width, rng, count=60):
    """Return slanted polygons that tile the map."""
    seeds = shapely.multipoints(np.column_stack([rng.random(count) * width, rng.random(count) * height]))
    frame = shapely.box(0, 0, width, height)
    cells = shapely.intersection(shapely.get_parts(shapely.voronoi_polygons(seeds, extend_to=frame)), frame)
    placed = shapely.transform(cells, lambda xy: np.column_stack([LEFT + xy[:, 0], TOP - xy[:, 1]]))
    return geopandas.GeoDataFrame({"number": range(len(cells))}, geometry=placed, crs="EPSG:26917")


# -- areas ----------------------------------------------------------------------------------------


def test_boxes_of_whole_pixels_equal_a_count(map_path, codes, enviroatlas, rng):
    rows, columns = rng.integers(0, 560, 300), rng.integers(0, 860, 300)
    heights, widths = rng.integers(1, 90, (2, 300))
    found = measure_areas(map_path, boxes(columns, rows, widths, heights))
    mapped, unmapped = np.nan_to_num(classes_of(found, enviroatlas)), found["unmapped_ha"].to_numpy()
    for i in range(300):
        part = codes[rows[i] : rows[i] + heights[i], columns[i] : columns[i] + widths[i]]
        counts = [(part == code).sum() for code in enviroatlas.codes]
        assert mapped[i] * 1e4 == pytest.approx(counts, abs=1e-6)
        assert unmapped[i] * 1e4 == pytest.approx(heights[i] * widths[i] - np.sum(counts), abs=1e-6)
    assert found["area_ha"].to_numpy() * 1e4 == pytest.approx(heights * widths, rel=1e-12)
    assert (rows + heights > 600).any()  # some are partly off the map, which counts as unmapped
    shares = classes_of(found, enviroatlas, "share").sum(axis=1)
    assert shares == pytest.approx(1)


def test_a_pixel_counts_with_the_part_that_lies_in_the_polygon(tmp_path, enviroatlas):
    codes = np.full((4, 4), enviroatlas.codes[0], dtype=np.uint8)
    codes[:, 2:] = enviroatlas.codes[1]
    path = write_map(tmp_path / "map.tif", codes, enviroatlas)
    triangle = shapely.Polygon([(LEFT, TOP), (LEFT + 4, TOP), (LEFT, TOP - 4)])
    tiny = shapely.box(LEFT + 1.9, TOP - 0.3, LEFT + 2.2, TOP - 0.2)
    frame = geopandas.GeoDataFrame(geometry=[triangle, tiny], crs="EPSG:26917")
    found = classes_of(measure_areas(path, frame), enviroatlas)[:, :2] * 1e4
    assert found == pytest.approx(np.array([[6, 2], [0.01, 0.02]]), rel=1e-6)


def test_areas_of_polygons_that_tile_the_map_sum_to_the_whole(map_path, enviroatlas, rng):
    found = measure_areas(map_path, tiling(600, 900, rng))
    pixels, hectares = measure_classes(map_path, enviroatlas)
    assert np.nansum(classes_of(found, enviroatlas), axis=0) == pytest.approx(hectares, rel=1e-6)
    assert found["unmapped_ha"].sum() * 1e4 == pytest.approx(600 * 900 - pixels.sum(), rel=1e-5)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1), ("uint8", 255)])
def test_probabilities_give_expected_areas(tmp_path, enviroatlas, rng, dtype, scale):
    shares = rng.dirichlet(np.ones(5), (530, 40)).transpose(2, 0, 1)
    shares[:, :7, :9] = 0 if dtype == "uint8" else np.nan
    stored = np.rint(shares * scale).astype(dtype) if dtype == "uint8" else shares.astype(dtype)
    grid = make_grid(stored.shape[1:])
    path = write_raster(
        tmp_path / "map_probabilities.tif", stored, grid, scheme=enviroatlas, tags={"kind": "probabilities"}
    )
    found = measure_areas(path, boxes([0, 3.5, 0], [0, 2, 500], [40, 8, 5], [530, 512, 5]))
    values = np.nan_to_num(stored.astype(float))
    values /= np.where(values.sum(0) > 0, values.sum(0), 1)
    halves = values[:, 2:514, 3:12].sum(1)
    halves[:, [0, -1]] /= 2
    expected = [values.sum((1, 2)), halves.sum(1), values[:, 500:505, :5].sum((1, 2))]
    assert classes_of(found, enviroatlas) * 1e4 == pytest.approx(np.array(expected), rel=1e-6)
    # columns 3.5 to 9 of rows 2 to 7 have no data
    assert found["unmapped_ha"].to_numpy() * 1e4 == pytest.approx([63, 27.5, 0], rel=1e-5, abs=1e-6)


def test_expected_areas_of_certain_pixels_are_those_of_the_map(tmp_path, map_path, codes, enviroatlas, rng):
    certain = np.stack([codes == code for code in enviroatlas.codes]).astype(np.float32)
    path = write_raster(
        tmp_path / "p.tif", certain, make_grid(codes.shape), scheme=enviroatlas, tags={"kind": "probabilities"}
    )
    polygons = tiling(600, 900, rng, count=20)
    first, second = (classes_of(measure_areas(one, polygons), enviroatlas) for one in (map_path, path))
    assert first == pytest.approx(second, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [(4326, Affine(0.01, 0, -80, 0, -0.01, 40)), (3857, Affine(900, 0, -8.9e6, 0, -900, 4.9e6))],
)
def test_areas_are_those_on_the_ground_in_degrees_and_web_mercator(tmp_path, enviroatlas, epsg, transform):
    codes = np.full((300, 200), enviroatlas.codes[3], dtype=np.uint8)
    codes[150:] = enviroatlas.codes[4]
    path = write_map(tmp_path / "map.tif", codes, enviroatlas, transform, epsg)
    corners = [((20, 10), (150, 150)), ((20, 150), (150, 280)), ((-50, 100), (0, 120)), ((150, 20), (260, 60))]
    shapes = [shapely.box(*(transform @ a), *(transform @ b)) for a, b in corners]
    frame = geopandas.GeoDataFrame(geometry=[shapely.normalize(shape) for shape in shapes], crs=epsg)
    found = measure_areas(path, frame)
    geod = Geod(ellps="WGS84")
    degrees = frame.geometry.segmentize(frame.total_bounds[2] * 0 + abs(transform.a)).to_crs(4326)
    exact = np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in degrees]) / 1e4
    assert found["area_ha"].to_numpy() == pytest.approx(exact, rel=1e-5)
    assert found["trees_ha"].iloc[0] == pytest.approx(exact[0], rel=1e-5)
    assert found["grass_ha"].iloc[1] == pytest.approx(exact[1], rel=1e-5)
    assert np.isnan(found["trees_ha"].iloc[2])
    assert found["trees_ha"].iloc[3] == pytest.approx(exact[3] * 50 / 110, rel=1e-5)  # the rest is off the map


def test_expected_areas_in_degrees_use_each_pixels_own_area(tmp_path, enviroatlas):
    transform = Affine(0.01, 0, -80, 0, -0.01, 60)
    codes = np.full((300, 100), enviroatlas.codes[2], dtype=np.uint8)
    certain = np.stack([codes == code for code in enviroatlas.codes]).astype(np.float32)
    grid = make_grid(codes.shape, transform, 4326)
    probabilities = write_raster(tmp_path / "p.tif", certain, grid, scheme=enviroatlas, tags={"kind": "probabilities"})
    path = write_map(tmp_path / "map.tif", codes, enviroatlas, transform, 4326)
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(-79.9, 57.2, -79.203, 59.9)], crs=4326)
    first, second = (measure_areas(one, frame)["barren_ha"].iloc[0] for one in (path, probabilities))
    assert first == pytest.approx(second, rel=1e-6)
    assert first == pytest.approx(measure_areas(path, frame)["area_ha"].iloc[0], rel=1e-9)


def test_polygons_in_another_crs_give_the_same_areas_and_keep_theirs(map_path, enviroatlas, rng, caplog):
    polygons = tiling(600, 900, rng)
    there = polygons.to_crs(4326)
    with caplog.at_level(logging.DEBUG, "landprior"):
        found = measure_areas(map_path, there)
    assert "is in WGS 84; its polygons are projected to NAD83 / UTM zone 17N of the map" in caplog.text
    direct = measure_areas(map_path, polygons)
    assert classes_of(found, enviroatlas) == pytest.approx(classes_of(direct, enviroatlas), rel=1e-6, abs=1e-9)
    assert found.crs == there.crs
    assert found.geometry.geom_equals(there.geometry).all()


def test_a_rotated_map_without_north_up(tmp_path, codes, enviroatlas, map_path):
    turn = Affine(1, 0, LEFT, 0, -1, TOP) @ Affine.rotation(30)
    path = write_map(tmp_path / "map.tif", codes, enviroatlas, turn)
    corners = np.array([(10, 20), (200, 30), (150, 400), (5, 300)], dtype=float)
    there = [shapely.Polygon(np.column_stack(t @ (corners[:, 0], corners[:, 1]))) for t in (turn,)]
    here = [shapely.Polygon(np.column_stack([LEFT + corners[:, 0], TOP - corners[:, 1]]))]
    rotated, plain = (
        classes_of(measure_areas(one, geopandas.GeoDataFrame(geometry=shapes, crs=26917)), enviroatlas)
        for one, shapes in ((path, there), (map_path, here))
    )
    assert rotated == pytest.approx(plain, rel=1e-5)


def test_a_map_without_georeferencing_needs_the_size_of_its_pixels(tmp_path, codes, enviroatlas):
    path = write_map(tmp_path / "map.tif", codes, enviroatlas, Affine.identity(), None)
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 20, 30)])
    with pytest.raises(InputError, match="give --pixel-size METRES"):
        measure_areas(path, frame)
    found = measure_areas(path, frame, options=AreaOptions(pixel_size=0.5))
    assert found["area_ha"].iloc[0] == pytest.approx(600 * 0.25 / 1e4)


def test_large_polygons_are_cut_without_a_trace(monkeypatch, map_path, enviroatlas):
    frame = boxes([0.5], [0.5], [890], [590])
    whole = classes_of(measure_areas(map_path, frame), enviroatlas)
    monkeypatch.setattr("landprior.landcover.vectors.overlap.CELLS", 1000)
    monkeypatch.setattr("landprior.landcover.vectors.overlap.CACHE_BYTES", 1)
    assert classes_of(measure_areas(map_path, frame), enviroatlas) == pytest.approx(whole, rel=1e-6)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gpkg", ".csv", ".parquet"])
def test_files_are_written_in_batches_with_all_columns(tmp_path, map_path, rng, suffix, monkeypatch):
    monkeypatch.setattr(polygons_module, "BATCH", 7)
    polygons = tiling(600, 900, rng, count=20)
    polygons["name"] = [None] * 10 + [f"é {i}" for i in range(len(polygons) - 10)]
    polygons["built"] = pd.array([*range(1990, 1990 + len(polygons) - 1), None], dtype="Int64")
    polygons.to_file(tmp_path / "parcels.gpkg")
    target = write_areas(map_path, tmp_path / "parcels.gpkg", tmp_path / f"areas{suffix}")
    found = measure_areas(map_path, polygons)
    if suffix == ".csv":
        again = pd.read_csv(target)
    else:
        again = geopandas.read_parquet(target) if suffix == ".parquet" else geopandas.read_file(target)
        assert again.crs == polygons.crs
        assert again.geometry.geom_equals(polygons.geometry).all()
    assert [name for name in again.columns if name != "geometry"] == list(found.columns.drop("geometry"))
    assert again["name"].isna().sum() == 10
    assert again["name"].tolist()[10:] == polygons["name"].tolist()[10:]
    assert again["built"].dropna().tolist() == polygons["built"].dropna().tolist()
    for name in found.columns.drop(["name", "built", "geometry"]):
        assert again[name].to_numpy(float) == pytest.approx(found[name].to_numpy(float), rel=1e-9, nan_ok=True)
    if suffix == ".gpkg":
        info = pyogrio.read_info(target)
        assert (info["layer_name"], info["geometry_type"]) == ("areas", "MultiPolygon")


def test_only_the_id_is_kept_and_features_are_numbered_without_columns(tmp_path, map_path):
    frame = boxes([1, 20], [1, 20], 5, 5, parcel=["b", "a"], owner=["x", "y"])
    frame.to_file(tmp_path / "parcels.shp")
    frame.drop(columns=["parcel", "owner"]).to_file(tmp_path / "plain.geojson")
    found = measure_areas(map_path, tmp_path / "parcels.shp", options=AreaOptions(identity="PARCEL"))
    assert found["parcel"].tolist() == ["b", "a"]
    assert "owner" not in found
    assert measure_areas(map_path, tmp_path / "plain.geojson")["feature"].tolist() == [1, 2]
    frame.to_file(tmp_path / "parcels.gpkg")
    found = measure_areas(map_path, tmp_path / "parcels.gpkg", options=AreaOptions(identity="fid"))
    assert list(found.columns[:2]) == ["fid", "area_ha"]
    assert found["fid"].tolist() == [1, 2]


def test_other_formats_are_read(tmp_path, map_path, enviroatlas):
    frame = boxes([1, 20], [1, 20], 5, 5)
    expected = classes_of(measure_areas(map_path, frame), enviroatlas)
    frame.to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"number": [0, 1], "wkt": frame.geometry.to_wkt()}).to_csv(tmp_path / "a.csv", index=False)
    frame.to_file(tmp_path / "a.fgb")
    for name in ("a.parquet", "a.csv", "a.fgb"):
        found = measure_areas(map_path, tmp_path / name).sort_values("number")  # FlatGeobuf has an order of its own
        assert classes_of(found, enviroatlas) == pytest.approx(expected, nan_ok=True), name


def test_an_interrupted_file_leaves_nothing_and_an_old_one_stays(tmp_path, map_path, monkeypatch):
    monkeypatch.setattr(polygons_module, "BATCH", 2)
    mixed = boxes([1, 9, 20, 30], 1, 5, 5)
    mixed.loc[3, "geometry"] = mixed.geometry[3].boundary
    for name in ("a.gpkg", "a.csv", "a.parquet"):
        with pytest.raises(InputError, match=r"has LineString \(the first is feature 4\); polygons are needed"):
            write_areas(map_path, mixed, tmp_path / name)
    assert not list(tmp_path.iterdir())
    target = write_areas(map_path, mixed[:3], tmp_path / "a.csv")
    before = target.read_bytes()
    with pytest.raises(OutputExistsError, match="give --overwrite"):
        write_areas(map_path, mixed[:3], target)
    with pytest.raises(InputError):
        write_areas(map_path, mixed, target, run=OVERWRITE)
    assert target.read_bytes() == before
    assert write_areas(map_path, mixed[:1], target, run=OVERWRITE).read_bytes() != before


def test_polygons_are_never_overwritten_by_their_areas(tmp_path, map_path):
    boxes([1], [1], 5, 5).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="is the input"):
        write_areas(map_path, tmp_path / "a.gpkg", tmp_path / "a.gpkg", run=OVERWRITE)
    with pytest.raises(InputError, match=r"written as .gpkg, .csv or .parquet"):
        write_areas(map_path, tmp_path / "a.gpkg", tmp_path / "areas.shp")


def test_columns_named_as_those_of_a_geopackage_are_kept(tmp_path, map_path):
    frame = boxes([1, 20], 1, 5, 5, fid=["a", "b"], geom=[1, 2])
    target = write_areas(map_path, frame, tmp_path / "areas.gpkg")
    again = geopandas.read_file(target)
    assert (again["fid"].tolist(), again["geom"].tolist()) == (["a", "b"], [1, 2])


# -- polygons that are not as they should be ------------------------------------------------------


def test_invalid_polygons_are_repaired_with_a_line(map_path, caplog):
    bow = shapely.Polygon([(LEFT, TOP), (LEFT + 10, TOP - 10), (LEFT + 10, TOP), (LEFT, TOP - 10)])
    frame = geopandas.GeoDataFrame({"id": [1, 2]}, geometry=[boxes([1], 1, 5, 5).geometry[0], bow], crs=26917)
    found = measure_areas(map_path, frame)
    assert found["area_ha"].to_numpy() * 1e4 == pytest.approx([25, 50])
    assert "1 of 2 features were invalid and have been repaired" in caplog.text
    assert "(the first is feature 2)" in caplog.text
    assert found.geometry[1].equals_exact(bow)  # the file keeps them as they were


def test_features_without_a_geometry_and_collections(tmp_path, map_path, caplog):
    inside = boxes([1, 40], 1, 5, 5).geometry
    several = shapely.GeometryCollection([inside[0], inside[1], shapely.Point(LEFT, TOP)])
    empty = shapely.Polygon()
    frame = geopandas.GeoDataFrame({"id": range(4)}, geometry=[inside[0], None, empty, several], crs=26917)
    found = measure_areas(map_path, frame)
    assert found["area_ha"].to_numpy() * 1e4 == pytest.approx([25, np.nan, np.nan, 50], nan_ok=True)
    assert "2 of 4 features have no geometry; their areas are empty (the first is feature 2)" in caplog.text
    again = geopandas.read_file(write_areas(map_path, frame, tmp_path / "areas.gpkg"))
    assert again["id"].tolist() == [0, 1, 2, 3]


def test_polygons_off_the_map_and_smaller_than_a_pixel_are_told(map_path, caplog):
    caplog.set_level(logging.INFO, "landprior")
    frame = boxes([1, 5000, 895, 3], 1, [5, 5, 50, 0.5], [5, 5, 5, 0.25])
    found = measure_areas(map_path, frame)
    assert "1 of 4 polygons lie outside the map (the first is feature 2)" in caplog.text
    assert "1 of 4 polygons lie partly outside the map" in caplog.text
    assert "1 of 4 polygons are smaller than a pixel" in caplog.text
    assert np.isnan(found["trees_ha"].iloc[1])
    assert found["unmapped_ha"].iloc[1] * 1e4 == pytest.approx(25)
    assert found["unmapped_ha"].iloc[2] * 1e4 >= 225 - 1e-6


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: boxes([5000], 1, 5, 5),
            NoOverlapError,
            "no polygon of the polygons overlaps .*; the raster has x|x from",
        ),
        (lambda: boxes([1], 1, 5, 5).set_crs(None, allow_override=True), InputError, "has no CRS; set it"),
        (lambda: boxes([1], 1, 5, 5)[:0], InputError, "has no features"),
        (lambda: boxes([1], 1, 5, 5, trees_ha=[1]), InputError, "already has a column 'trees_ha'.*--id COLUMN"),
        (lambda: boxes([1], 1, 5, 5, Area_HA=[1]), InputError, "already has a column 'Area_HA'"),
        (
            lambda: boxes([1], 1, 5, 5).assign(geometry=shapely.Point(LEFT, TOP)),
            InputError,
            "Point .*polygons are needed",
        ),
        (
            lambda: boxes([1], 1, 5, 5).assign(geometry=[None]),
            NoOverlapError,
            "has no polygon that can be placed",
        ),
    ],
)
def test_layers_that_cannot_be_used(map_path, make, error, text):
    with pytest.raises(error, match=text):
        measure_areas(map_path, make())


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["a", "b", "a"], "features 1 and 3 have the same parcel, 'a'; dissolve them"),
        (["a", None, "c"], "feature 2: parcel is empty"),
    ],
)
def test_ids_that_repeat_or_are_missing(tmp_path, map_path, ids, text):
    frame = boxes([1, 20, 40], 1, 5, 5, parcel=ids)
    frame.to_file(tmp_path / "a.gpkg")
    for polygons in (frame, tmp_path / "a.gpkg"):
        with pytest.raises(InputError, match=text):
            measure_areas(map_path, polygons, options=AreaOptions(identity="parcel"))
    with pytest.raises(InputError, match="no column 'owner'; it has parcel"):
        measure_areas(map_path, frame, options=AreaOptions(identity="owner"))


def test_maps_that_cannot_be_used(tmp_path, map_path, codes, enviroatlas):
    frame = boxes([1], 1, 5, 5)
    frame.to_file(tmp_path / "a.gpkg")
    plain = write_raster(tmp_path / "plain.tif", codes, make_grid(codes.shape), nodata=255, overviews="mode")
    with pytest.raises(SchemeError, match="no classes in its tags; give --scheme"):
        measure_areas(plain, frame)
    other = ClassScheme.model_validate(
        {"name": "o", "classes": [{"code": i, "name": f"c{i}", "colour": "#000000"} for i in (1, 2)]}
    )
    with pytest.raises(SchemeError, match="not in scheme 'o'"):
        measure_areas(plain, boxes([1], 1, 500, 500), options=AreaOptions(scheme=other))
    with pytest.raises(InputError, match="the map must come first; are the two swapped"):
        measure_areas(tmp_path / "a.gpkg", map_path)
    with pytest.raises(InputError, match="is a raster, but a layer of polygons is needed"):
        measure_areas(map_path, plain)
    damaged = tmp_path / "cut.tif"
    damaged.write_bytes(map_path.read_bytes()[: map_path.stat().st_size * 2 // 3])
    with pytest.raises(landprior.LandpriorError):
        measure_areas(damaged, boxes([0], 0, 900, 600), options=AreaOptions(scheme=enviroatlas))


def test_names_of_columns():
    names = ["Low vegetation", "low-vegetation", "Area", "water / ice", "forêt"]
    classes = [{"code": i, "name": name, "colour": "#000000"} for i, name in enumerate(names, start=1)]
    scheme = ClassScheme.model_validate({"name": "t", "classes": classes})
    assert name_columns(scheme) == ["low_vegetation_1", "low_vegetation_2", "area_3", "water_ice", "forêt"]
