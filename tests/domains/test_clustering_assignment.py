"""Classes for clusters: the table, points, random draws, and the command."""

import csv
import json

import geopandas
import numpy as np
import pytest
from click.testing import CliRunner

from landprior.cli import main
from landprior.domains.clustering.assignment import ClusterLayer, LabelDraws, fit_assignment, score_splits
from landprior.domains.clustering.classes import assign_classes
from landprior.domains.clustering.mapping import find_probabilities
from landprior.domains.clustering.points import read_points
from landprior.errors import InputError, MissingInputError, SchemeError
from landprior.landcover.mapping.options import MapOptions
from landprior.raster.cog import write_raster
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme, LandClass


@pytest.fixture
def scheme():
    colours = ("#0000ff", "#00ff00", "#999999")
    names = ("water", "trees", "built")
    classes = tuple(LandClass(code=c, name=n, colour=h) for c, n, h in zip((1, 2, 5), names, colours, strict=True))
    return ClassScheme(name="three", classes=classes)


@pytest.fixture
def place(tmp_path, make_grid):
    """Four clusters in quarters, the last two of one class, and labels; the lower right corner has no data."""
    grid = make_grid(40, 60)
    kinds = (np.arange(40)[:, None] // 20) * 2 + np.arange(60) // 30
    q = np.full((4, 40, 60), 0.05, np.float32)
    np.put_along_axis(q, kinds[None], np.float32(0.85), axis=0)
    q[:, 36:, 50:] = np.nan
    path = write_raster(tmp_path / "q.tif", q, grid, nodata=float("nan"))
    codes = np.array([1, 2, 5, 5], np.uint8)[kinds]
    codes[:, :3] = 255
    labels = write_raster(tmp_path / "labels.tif", codes, grid, nodata=255)
    return path, labels, grid, q, codes


def write_csv(path, names, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([names, *rows])
    return path


def test_the_table_follows_the_formula(scheme):
    q = np.array([[0.7, 0.2, 0.1], [0.3, 0.8, 0.9], [0.0, 0.0, 0.0]])
    found = fit_assignment(q, np.array([0, 1, 1]), scheme, weight=0.3)
    own = np.array([[0.7, 0.3, 0], [0.3, 1.7, 0], [0, 0, 0]]) + 0.3 * np.array([1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(found.table, own / own.sum(1, keepdims=True))
    np.testing.assert_allclose(found.table[2], [1 / 3, 2 / 3, 0])  # no point is in this cluster
    shares = np.array([[0.5], [0.25], [0.25]])
    np.testing.assert_allclose(found.apply(shares)[:, 0], found.table.T @ shares[:, 0], rtol=1e-6)
    assert "cluster" in found.to_text()
    with pytest.raises(InputError, match="no labelled point"):
        fit_assignment(q[:, :0], np.array([], int), scheme)


def test_points_by_coordinates_and_by_pixels_agree(tmp_path, place, scheme):
    grid = place[2]
    places = [(0, 0, "water"), (39, 59, "5"), (20, 30, "Trees"), (7, 8, "2.0"), (9, 9, "")]
    rows = write_csv(tmp_path / "rows.csv", ["row", "col", "class"], places)
    xy = [(*(grid.transform @ (c + 0.5, r + 0.5)), kind) for r, c, kind in places]
    coordinates = write_csv(tmp_path / "xy.csv", ["X", "Y", "Label"], xy)
    for path in (rows, coordinates):
        found = read_points(path, grid, scheme)
        assert found.rows.tolist() == [0, 39, 20, 7]
        assert found.columns.tolist() == [0, 59, 30, 8]
        assert found.classes.tolist() == [0, 2, 1, 1]  # the point without a class is left out
    frame = geopandas.GeoDataFrame(
        {"reference": [kind for *_, kind in xy]},
        geometry=geopandas.points_from_xy(*zip(*[(x, y) for x, y, _ in xy], strict=True)),
        crs=grid.crs.to_wkt(),
    )
    frame.to_crs(4326).to_file(tmp_path / "points.gpkg", driver="GPKG")
    assert read_points(tmp_path / "points.gpkg", grid, scheme).rows.tolist() == [0, 39, 20, 7]


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        (["row", "col", "class"], [(1, 1, "water"), (40, 3, "water")], "1 of 2 points lie outside"),
        (["x", "y", "class"], [(0, 0, "water")], "1 of 1 points lie outside"),
        (["a", "b", "class"], [(0, 0, "water")], "but needs x,y"),
        (["x", "y"], [(0, 0)], "and class"),
        (["row", "col", "class"], [(0, "here", "water")], "line 2: col and row must be unambiguous numbers"),
        (["row", "col", "class"], [("nan", 1, "water")], "must be unambiguous finite numbers"),
        (["row", "col", "class"], [], "has no points"),
    ],
)
def test_wrong_points_are_refused(tmp_path, place, scheme, names, rows, message):
    path = write_csv(tmp_path / "points.csv", names, rows)
    with pytest.raises(InputError, match=message):
        read_points(path, place[2], scheme)


def test_unknown_classes_and_missing_files_are_named(tmp_path, place, scheme):
    path = write_csv(tmp_path / "points.csv", ["row", "col", "class"], [(0, 0, "lava")])
    with pytest.raises(SchemeError, match="lava"):
        read_points(path, place[2], scheme)
    with pytest.raises(MissingInputError, match="no such file"):
        read_points(tmp_path / "none.csv", place[2], scheme)


def test_fewer_points_than_classes_are_refused(tmp_path, place, scheme):
    path = write_csv(tmp_path / "points.csv", ["row", "col", "class"], [(1, 1, "water"), (1, 40, "trees")])
    with pytest.raises(InputError, match="2 labelled points are fewer than the 3 classes"):
        assign_classes(place[0], tmp_path / "map.tif", scheme=scheme, points=path)
    with pytest.raises(InputError, match="--points"):
        assign_classes(place[0], tmp_path / "map.tif", scheme=scheme)


def test_splits_are_scored_on_the_points_left_out(scheme):
    q = np.repeat(np.eye(3), 20, axis=1)
    classes = np.repeat([0, 1, 2], 20)
    found = score_splits(q, classes, scheme, draws=4, train_points=45)
    assert found.mean == 1
    assert [score.pixels for score in found.scores] == [15] * 4
    with pytest.raises(InputError, match="cannot be split"):
        score_splits(q, classes, scheme, train_points=60)


def test_draws_from_labels_match_those_from_arrays(place, scheme):
    path, labels, _, q, codes = place
    known = ~np.isnan(q[0]) & (codes != 255)
    truth = scheme.encode(codes.astype(np.int64))[known]
    with ClusterLayer(path) as layer, open_raster(labels) as src:
        drawn = LabelDraws(layer, src, scheme)
        assert drawn.count() == known.sum()
        shares, classes = drawn.draw(1, 30, 7)[0]
        chosen = np.sort(np.random.default_rng(7).choice(known.sum(), 30, replace=False))
        np.testing.assert_allclose(shares, q[:, known][:, chosen], atol=1e-6)
        assert classes.tolist() == truth[chosen].tolist()
        accuracy = drawn.score(3, 30, 7)
        with pytest.raises(InputError, match="not more than"):
            drawn.draw(1, 10_000, 0)
    table = fit_assignment(q[:, known][:, chosen], truth[chosen], scheme)
    right = table.apply(q[:, known]).argmax(0) == truth
    right[chosen] = False
    assert accuracy.scores[0].pixels == known.sum() - 30
    assert accuracy.values[0] == pytest.approx(right.sum() / (known.sum() - 30))


def test_the_map_of_classes(tmp_path, place, scheme):
    path, _, _, q, _ = place
    points = [(1, 1, "water"), (1, 40, "trees"), (30, 1, "built"), (30, 40, "built"), (38, 55, "water")]
    given = write_csv(
        tmp_path / "points.csv", ["row", "col", "class"], points
    )  # the last is in the corner without data
    found = assign_classes(
        path, tmp_path / "map.tif", scheme=scheme, points=given, draws=0, options=MapOptions(probabilities=True)
    )
    assert found.accuracy is None
    assert found.assignment.points == 4
    with open_raster(tmp_path / "map.tif") as src:
        codes = src.read(1)
    kinds = (np.arange(40)[:, None] // 20) * 2 + np.arange(60) // 30
    wanted = np.where(np.isnan(q[0]), 255, np.array([1, 2, 5, 5])[kinds])
    np.testing.assert_array_equal(codes, wanted)
    with open_raster(tmp_path / "map_probabilities.tif") as src:
        shares = src.read()
    np.testing.assert_allclose(shares[:, ~np.isnan(q[0])].sum(0), 1, atol=2e-3)


def test_assign_on_the_command_line(tmp_path, place, scheme):
    path, labels, *_ = place
    own = tmp_path / "three.yaml"
    own.write_text(
        "name: three\nclasses:\n"
        + "".join(f'  - {{code: {c.code}, name: {c.name}, colour: "{c.colour}"}}\n' for c in scheme.classes)
    )
    output = tmp_path / "map.tif"
    arguments = ["-q", "assign", str(path), "--scheme", str(own), "-o", str(output)]
    run = CliRunner()
    drawn = [*arguments, "--labels", str(labels), "--train-points", "60", "--draws", "5"]
    result = run.invoke(main, [*drawn, "--json"])
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["accuracy"]["mean"] == 1
    assert about["accuracy"]["draws"] == 5
    assert about["accuracy"]["scored"] == "pixels"
    assert np.argmax(about["table"], axis=1).tolist() == [0, 1, 2, 2]
    assert "--overwrite" in run.invoke(main, drawn).stderr
    text = run.invoke(main, [*drawn, "--overwrite"]).stdout
    assert "over 5 draws of 60 points, on all other labelled pixels" in text
    assert run.invoke(main, arguments).exit_code == 2
    single = run.invoke(main, ["-q", "assign", str(labels), *arguments[3:], "--labels", str(labels), "--overwrite"])
    assert "has one band" in single.stderr


def test_points_from_layers_and_tables_give_the_same_classes(tmp_path, place, scheme):
    path, labels, *_ = place
    with open_raster(labels) as src:
        codes, crs, transform = src.read(1), src.crs, src.transform
    rows, columns = np.nonzero(codes != 255)
    rows, columns = rows[::97], columns[::97]
    x, y = transform @ (columns + 0.5, rows + 0.5)
    points = geopandas.GeoDataFrame(
        {"class": codes[rows, columns].astype(int)}, geometry=geopandas.points_from_xy(x, y), crs=crs
    )
    points.to_file(tmp_path / "a.gpkg", layer="points")
    points.iloc[:2].to_file(tmp_path / "a.gpkg", layer="draft")
    points.drop(columns="geometry").assign(X=x, Y=y).to_csv(
        tmp_path / "a.csv", sep=";", decimal=",", index=False, encoding="utf-16"
    )
    own = tmp_path / "three.yaml"
    own.write_text(scheme.model_dump_json(exclude_defaults=True))
    options = ["--scheme", str(own), "--draws", "0", "--json", "--overwrite", "-o", str(tmp_path / "map.tif")]

    def assign(*arguments):
        return CliRunner().invoke(main, ["-q", "assign", str(path), *map(str, arguments), *options])

    expected = json.loads(assign("--points", tmp_path / "a.csv").stdout)
    assert expected["points"] == len(points)
    for found in (
        assign("--points", tmp_path / "a.gpkg", "--layer", "points"),
        assign("--points", f"{tmp_path / 'a.gpkg'}|layername=points"),
    ):
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout) == expected
    assert "2 layers: 'points'" in assign("--points", tmp_path / "a.gpkg").stderr
    twice = assign("--points", f"{tmp_path / 'a.gpkg'}|layername=draft", "--layer", "points")
    assert "give one of them" in twice.stderr
    assert assign("--labels", labels, "--layer", "points").exit_code == 2


def test_the_probabilities_beside_the_map_are_found(place):
    assert find_probabilities(place[0]) == place[0]
    with pytest.raises(InputError, match="has one band"):
        find_probabilities(place[1])
