"""The design of a sample survives the changes that formats make to column names, or reading fails."""

import json

import geopandas
import numpy as np
import pytest
from click.testing import CliRunner
from shapely.geometry import MultiPoint, box

from landprior.cli import main
from landprior.errors import InputError
from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.assessment.sampling import draw_sample
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.sources.sample_design import read_design
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
        (lambda f: f.assign(stratum_pixels=[100, 9000, 9000, 8000]), "several sizes for stratum 2, 8000 and 9000"),
    ],
)
def test_a_damaged_design_is_an_error(points, change, reason):
    with pytest.raises(InputError, match=reason):
        read_design(change(points), "a.gpkg")


def test_points_without_a_design_have_none(points):
    assert read_design(points[["reference", "geometry"]], "a.gpkg") is None
    assert read_design(points[["reference", "geometry"]].assign(forest_stratum=1), "a.gpkg") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["points_", "P_", "pts_", "joined_layer_", "validation_"])
@pytest.mark.parametrize("local", [False, True])
def test_strata_survive_a_join_in_a_shapefile(tmp_path, points, prefix, local):
    """QGIS prefixes columns with the layer's name; ten letters leave ``points_str, points_s_1, points_s_2``."""
    frame = points.rename(columns={c: f"{prefix}{c}" for c in points.columns if c != "geometry"})
    if local:
        frame[f"{prefix}stratum_hectares"] = np.nan
    frame = frame.loc[[0, 0, *range(1, 4)]].reset_index(drop=True)
    frame.to_file(tmp_path / "a.shp")
    found = read_everything(tmp_path / "a.shp")
    assert max(map(len, found.columns)) <= 10
    if local and prefix in ("joined_layer_", "validation_"):
        assert read_design(found, "a.shp") is None  # indistinguishable from any other numbers
        return
    assert read_design(found, "a.shp").sizes == {1: 100, 2: 9000}


def test_a_damaged_design_under_truncated_names_is_an_error(points):
    names = {"stratum": "points_str", "stratum_pixels": "points_s_1", "stratum_hectares": "points_s_2"}
    frame = points.rename(columns=names)
    frame.loc[1, "points_s_1"] = 8000
    with pytest.raises(
        InputError, match=r"points_str, points_s_1, points_s_2 look like a sample design with cut names"
    ):
        read_design(frame, "a.shp")
    names = {"stratum": "main_stree", "stratum_pixels": "main_str_1", "stratum_hectares": "main_str_2"}
    assert read_design(points.rename(columns=names).assign(main_stree="High St"), "a.shp") is None


@pytest.fixture
def sampled(make_raster, chesapeake, rng):
    """A map and 80 interpreted points; counted as a simple random sample they would give a very different result."""
    codes = np.full((60, 80), 2, np.uint8)
    codes[:6], codes[54:] = 1, 4
    path = make_raster("map.tif", codes, scheme=chesapeake, nodata=255)
    sample = draw_sample(path, chesapeake, count=80, allocation="equal")
    wrong = (sample["stratum"] != 2) & (rng.random(len(sample)) < 0.6)
    seen = np.where(wrong, 3, sample["stratum"])
    return path, sample.assign(reference=[chesapeake.names[code - 1] for code in seen])


def _write_excel(frame, path):
    """Write a CSV like Excel in a locale with decimal commas."""
    flat = frame.drop(columns="geometry").assign(X=frame.geometry.x, Y=frame.geometry.y)
    flat.to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig", lineterminator="\r\n")


def _write_csv(frame, path):
    degrees = frame.to_crs(4326).geometry
    frame.drop(columns="geometry").assign(lon=degrees.x, lat=degrees.y).to_csv(path, index=False)


def _write_wkt(frame, path):
    texts = [f"SRID=4326;{text}" for text in frame.to_crs(4326).geometry.to_wkt()]
    frame.drop(columns="geometry").assign(WKT=texts).to_csv(path, index=False, sep="\t", encoding="utf-16")


def _write_earth_engine(frame, path):
    shapes = [json.dumps(shape["geometry"]) for shape in frame.to_crs(4326).geometry.__geo_interface__["features"]]
    frame.drop(columns="geometry").assign(**{".geo": shapes}).to_csv(path, index=False)


def _write_joined(frame, path):
    frame.rename(columns={c: f"points_{c}" for c in frame.columns if c.startswith("stratum")}).to_file(path)


_FORMATS = {
    "a.gpkg": lambda frame, path: frame.to_file(path),
    "a.shp": lambda frame, path: frame.to_file(path),
    "upper.shp": lambda frame, path: frame.rename(columns=lambda c: c if c == "geometry" else c.upper()).to_file(path),
    "joined.shp": _write_joined,
    "a.kml": lambda frame, path: frame.to_crs(4326).to_file(path, driver="KML"),
    "libkml.kml": lambda frame, path: frame.to_crs(4326).to_file(path, driver="LIBKML"),
    "a.geojson": lambda frame, path: frame.to_crs(4326).to_file(path),
    "a.fgb": lambda frame, path: frame.to_file(path),
    "a.gml": lambda frame, path: frame.to_file(path, driver="GML"),
    "multi.gpkg": lambda f, path: f.assign(geometry=[MultiPoint([p]) for p in f.geometry]).to_file(path),
    "excel.csv": _write_excel,
    "lonlat.csv": _write_csv,
    "wkt.txt": _write_wkt,
    "earth-engine.csv": _write_earth_engine,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _FORMATS)
def test_a_sample_gives_the_same_result_in_every_format(tmp_path, sampled, chesapeake, name, caplog):
    """The estimate, and the weight of each point in --recalibrate, are those of the GeoPackage."""
    path, sample = sampled
    _FORMATS[name](sample, tmp_path / name)
    with open_raster(path) as src:
        grid = Grid.of(src)
    found = evaluate_points(path, tmp_path / name, chesapeake)
    right = sample["reference"] == [chesapeake.names[code - 1] for code in sample["stratum"]]
    shares = {code: right[sample["stratum"] == code].mean() for code in (1, 2, 4)}
    assert found.overall.value == pytest.approx(0.1 * shares[1] + 0.8 * shares[2] + 0.1 * shares[4])
    assert abs(found.overall.value - right.mean()) > 0.15  # what a simple random sample would give
    assert found.hectares == pytest.approx(0.48)
    labels = read_sparse_labels(tmp_path / name, chesapeake, grid, column="reference")
    assert labels.designed
    rows, _, classes, weights = labels.points(grid)
    there = np.select([rows < 6, rows < 54], [1, 2], 4)
    counts = sample["stratum"].value_counts()
    sizes = {1: 480, 2: 3840, 4: 480}
    np.testing.assert_allclose(weights, [sizes[code] / counts[code] for code in there])
    assert np.bincount(classes, minlength=4).tolist() == [(sample["reference"] == n).sum() for n in chesapeake.names]
    assert "simple random sample" not in caplog.text


def run(*arguments):
    found = CliRunner().invoke(main, [str(one) for one in arguments])
    assert not isinstance(found.exception, Exception), found.exception
    return found


@pytest.mark.filterwarnings("ignore")
def test_commands_give_the_same_result_for_a_shapefile(tmp_path, sampled, make_raster):
    """The values of evaluate and build-prior --recalibrate on the command line; without strata they warn."""
    path, sample = sampled
    nlcd = make_raster("nlcd.tif", np.kron([[41, 21], [81, 41]], np.ones((30, 40))).astype(np.uint8))
    sample.to_file(tmp_path / "a.gpkg")
    sample.to_file(tmp_path / "a.shp")
    _write_excel(sample, tmp_path / "a.csv")
    sample[["reference", "geometry"]].to_file(tmp_path / "plain.gpkg")
    values, priors = {}, {}
    for name in ("a.gpkg", "a.shp", "a.csv", "plain.gpkg"):
        found = run("evaluate", path, tmp_path / name, "--json")
        assert ("simple random sample" in found.stderr) == (name == "plain.gpkg")
        values[name] = json.loads(found.stdout)["overall_accuracy"]["value"]
        options = ("--nlcd", nlcd, "--scheme", "chesapeake-4", "--class-column", "reference", "--recalibrate")
        found = run("build-prior", *options, "--points", tmp_path / name, "-o", tmp_path / "p.tif", "--overwrite")
        assert found.exit_code == 0, found.output
        assert ("simple random sample" in found.stderr) == (name == "plain.gpkg")
        with open_raster(tmp_path / "p.tif") as src:
            priors[name] = src.read()
    assert values["a.shp"] == values["a.csv"] == values["a.gpkg"]
    np.testing.assert_array_equal(priors["a.shp"], priors["a.gpkg"])
    np.testing.assert_array_equal(priors["a.csv"], priors["a.gpkg"])
    assert abs(priors["plain.gpkg"] - priors["a.gpkg"]).max() > 0.05


def test_strata_that_are_not_classes_are_an_error(tmp_path, sampled, chesapeake):
    path, sample = sampled
    sample.assign(stratum=sample["stratum"] + 40).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"has strata .*4[124].*which are not codes of scheme 'chesapeake-4'"):
        evaluate_points(path, tmp_path / "a.gpkg", chesapeake)


def test_points_joined_to_multipoints_have_no_design(tmp_path, sampled, chesapeake):
    path, sample = sampled
    joined = sample.dissolve(["reference", "stratum"], as_index=False)
    joined.to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="merged into MultiPoints"):
        evaluate_points(path, tmp_path / "a.gpkg", chesapeake)


def test_unused_labels_are_counted_in_the_log(tmp_path, sampled, chesapeake, caplog):
    path, sample = sampled
    with open_raster(path) as src:
        grid = Grid.of(src)
    plain = sample[["reference", "geometry"]].copy()
    plain.loc[:4, "reference"] = None
    plain.loc[5:7, "geometry"] = plain.geometry[5:8].translate(5000, 0)
    plain.loc[8, "geometry"] = MultiPoint([plain.geometry[8], plain.geometry[9]])
    plain.loc[10, "geometry"] = plain.geometry[10].buffer(3)
    plain.loc[11, "reference"] = "water|impervious"
    plain.to_file(tmp_path / "a.geojson", driver="GeoJSON")
    with caplog.at_level("INFO"):
        labels = read_sparse_labels(tmp_path / "a.geojson", chesapeake, grid, column="reference")
        rows, *_ = labels.points(grid)
    assert "1 MultiPoints are 2 points" in caplog.text
    assert "81 features; 73 with a label on the grid, 3 outside it, 5 without a label" in caplog.text
    assert "71 points have one class; 2 lines, polygons or labels of several classes" in caplog.text
    assert len(rows) == 71
    plain.loc[20, "reference"] = "swamp"
    plain.to_file(tmp_path / "b.geojson", driver="GeoJSON")
    with pytest.raises(InputError, match="feature 21: 'swamp' is not a class"):
        read_sparse_labels(tmp_path / "b.geojson", chesapeake, grid, column="reference")


@pytest.mark.parametrize(("x", "y"), [("lat", "lon"), ("y", "x")])
def test_swapped_axes_of_a_csv_are_recognised(tmp_path, sampled, chesapeake, x, y):
    path, sample = sampled
    places = sample.to_crs(4326).geometry if x == "lat" else sample.geometry
    swapped = sample.drop(columns="geometry").assign(**{x: places.x, y: places.y})
    swapped.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=r"80 of 80 points .* line 2.*\(longitude and latitude\) swapped\?"):
        evaluate_points(path, tmp_path / "a.csv", chesapeake)


def test_layers_are_chosen_by_option_or_name(tmp_path, sampled, make_raster):
    path, sample = sampled
    nlcd = make_raster("nlcd.tif", np.full((60, 80), 41, np.uint8))
    project = tmp_path / "project.gpkg"
    geopandas.GeoDataFrame(
        {"reference": ["water"]}, geometry=[box(600000, 4499950, 600080, 4500000)], crs=26917
    ).to_file(project, layer="draft")
    sample.to_file(project, layer="points")
    sample.to_file(tmp_path / "a.gpkg")
    expected = run("evaluate", path, tmp_path / "a.gpkg").stdout
    assert run("evaluate", path, project, "--layer", "points").stdout == expected
    assert run("evaluate", path, f"{project}|layername=points").stdout == expected
    options = ("--nlcd", nlcd, "--scheme", "chesapeake-4", "--class-column", "reference", "-o", tmp_path / "p.tif")
    for command in (("evaluate", path, project), ("build-prior", *options, "--points", project)):
        found = run(*command)
        assert found.exit_code == 1
        assert "has 2 layers: 'draft' (1 features), 'points' (80 features)" in found.stderr
        found = run(*command, "--layer", "none")
        assert found.exit_code == 1
        assert "has no layer 'none'; it has 'draft', 'points'" in found.stderr
    assert run("build-prior", *options, "--points", project, "--layer", "points").exit_code == 0
    with open_raster(tmp_path / "p.tif") as src:
        assert json.loads(src.tags(ns="landprior")["hints"])["count"] == 80


def test_points_before_the_map_are_recognised(tmp_path, sampled):
    path, sample = sampled
    sample.to_file(tmp_path / "a.gpkg")
    for more in ((), ("--scheme", "chesapeake-4")):
        found = run("evaluate", tmp_path / "a.gpkg", path, *more)
        assert found.exit_code == 1
        assert f"swapped? Try: landprior evaluate {path} {tmp_path / 'a.gpkg'}" in found.stderr


def test_swapped_arguments_of_evaluate_are_recognised(make_raster, chesapeake):
    from landprior.landcover.assessment.scores import refuse_swapped

    codes = np.ones((4, 5), np.uint8)
    plain = make_raster("labels.tif", codes)
    ours = make_raster("map.tif", codes, tags={"scheme": chesapeake.model_dump_json(exclude_defaults=True)})
    with pytest.raises(InputError, match=r"swapped\? Try: landprior evaluate .*map\.tif .*labels\.tif"):
        refuse_swapped(plain, ours)
    refuse_swapped(ours, plain)
    refuse_swapped(ours, ours)
    refuse_swapped(plain, plain)
