"""Points proposed for an adaptation: where the map is unsure, over all classes, away from each other."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest

from landprior.errors import InputError, MissingInputError
from landprior.landcover.adaptation.proposals import APART, propose_points
from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.assessment.sampling import write_sample

SIDE = 200


@pytest.fixture
def make_map(make_raster, enviroatlas):
    """Return a factory of maps with probabilities."""

    def make(shares, name="map"):
        tags = {"scheme": enviroatlas.model_dump_json(exclude_defaults=True)}
        codes = enviroatlas.decode(np.nan_to_num(shares).argmax(0), ~np.isnan(shares[0]))
        make_raster(
            f"{name}_probabilities.tif", shares.astype(np.float32), dtype="float32", nodata=float("nan"), tags=tags
        )
        return make_raster(f"{name}.tif", codes, nodata=255, tags=tags)

    return make


def two_classes(unsure, common=2, rare=4, rare_at=()):
    """Return shares of a map that is sure of its classes but for some pixels."""
    shares = np.full((5, SIDE, SIDE), 1e-4)
    shares[common] = 0.99
    if rare_at:
        shares[common][rare_at], shares[rare][rare_at] = 1e-4, 0.99
    shares[:, unsure] = np.where(shares[:, unsure] > 0.5, 0.51, 0.1225)
    return shares


def pixels_of(frame, path):
    from landprior.raster.grid import Grid
    from landprior.raster.reading import open_raster

    with open_raster(path) as src:
        grid = Grid.of(src)
    columns, rows = ~grid.transform @ (frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy())
    assert np.allclose(rows % 1, 0.5)
    return np.floor(rows).astype(int), np.floor(columns).astype(int)


def test_points_lie_where_the_map_is_unsure_and_apart(make_map, enviroatlas):
    unsure = np.zeros((SIDE, SIDE), dtype=bool)
    unsure[:, :60] = True
    path = make_map(two_classes(unsure))
    found = propose_points(path, enviroatlas, count=20)
    rows, columns = pixels_of(found, path)
    assert len(found) == 20
    assert unsure[rows, columns].mean() >= 0.9  # a sure pixel weighs a thousandth, and there are a few times as many
    near = np.hypot(rows[:, None] - rows, columns[:, None] - columns)[~np.eye(20, dtype=bool)]
    assert near.min() >= APART
    assert set(found["purpose"]) == {"adapt"}
    assert found["reference"].isna().all()
    again = propose_points(path, enviroatlas, count=20)
    assert again.geometry.equals(found.geometry)
    assert not propose_points(path, enviroatlas, count=20, seed=1).geometry.equals(found.geometry)


def test_a_rare_class_has_points_by_the_root_of_its_unsure_area(make_map, enviroatlas):
    unsure = np.ones((SIDE, SIDE), dtype=bool)
    rare = (slice(0, 100), slice(0, 16))  # 1,600 of 40,000 pixels
    path = make_map(two_classes(unsure, rare_at=rare))
    rows, columns = pixels_of(propose_points(path, enviroatlas, count=24), path)
    inside = (rows < 100) & (columns < 16)
    assert inside.sum() == 4  # roots 40 and 196


def test_new_points_lie_away_from_labelled_ones(tmp_path, make_map, enviroatlas):
    path = make_map(two_classes(np.ones((SIDE, SIDE), dtype=bool)))
    first = propose_points(path, enviroatlas, count=15)
    known = write_sample(first, tmp_path / "known.gpkg", enviroatlas)
    second = propose_points(path, enviroatlas, count=15, known=[known])
    for point in second.geometry:
        assert first.geometry.distance(point).min() >= APART - 1e-6


def test_pixels_without_data_are_not_proposed(make_map, enviroatlas):
    shares = two_classes(np.ones((SIDE, SIDE), dtype=bool))
    shares[:, 30:] = np.nan
    path = make_map(shares)
    rows, _ = pixels_of(propose_points(path, enviroatlas, count=10), path)
    assert rows.max() < 30


def test_a_full_map_gives_as_many_as_there_is_room_for(make_map, enviroatlas, caplog):
    shares = two_classes(np.ones((SIDE, SIDE), dtype=bool))
    shares[:, 12:] = np.nan
    shares[:, :, 12:] = np.nan
    path = make_map(shares)
    found = propose_points(path, enviroatlas, count=20)
    assert 1 <= len(found) <= 4
    assert f"there is room for {len(found)} points only" in caplog.text


def test_a_map_without_probabilities_is_an_error(make_raster, enviroatlas):
    path = make_raster("bare.tif", np.full((20, 20), 40, np.uint8))
    with pytest.raises(MissingInputError, match="--probabilities"):
        propose_points(path, enviroatlas)


def test_no_room_is_an_error(tmp_path, make_map, enviroatlas):
    shares = two_classes(np.ones((SIDE, SIDE), dtype=bool))
    shares[:, 5:] = np.nan
    shares[:, :, 5:] = np.nan
    path = make_map(shares)
    known = write_sample(propose_points(path, enviroatlas, count=4), tmp_path / "known.gpkg", enviroatlas)
    with pytest.raises(InputError, match="10 m or more from the points"):
        propose_points(path, enviroatlas, count=4, known=[known])


def test_proposed_points_do_not_score_a_map(tmp_path, make_map, enviroatlas):
    path = make_map(two_classes(np.ones((SIDE, SIDE), dtype=bool)))
    points = write_sample(propose_points(path, enviroatlas, count=20), tmp_path / "points.gpkg", enviroatlas)
    frame = geopandas.read_file(points)
    frame["reference"] = "barren"
    frame.to_file(points)
    with pytest.raises(InputError, match=r"20 points .* were proposed where a map is unsure"):
        evaluate_points(path, points, enviroatlas)
    frame.drop(columns="purpose").to_file(points)
    assert evaluate_points(path, points, enviroatlas).overall.value == 1.0
