"""Scores: parity with scikit-learn, pooling, exclusions, bad input."""

import json

import geopandas
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from landprior.errors import GridMismatchError, InputError, SchemeError
from landprior.landcover.assessment.figures import draw_comparison
from landprior.landcover.assessment.scores import Scores, evaluate, scheme_of_map
from landprior.raster.scheme import load_scheme


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 60),
    st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
)
def test_scores_match_scikit_learn(seed, count, classes):
    rng = np.random.default_rng(seed)
    truth, found = rng.choice(classes, count), rng.choice(classes, count)
    scheme = load_scheme("enviroatlas-5")
    scores = Scores.of(found, truth, scheme)
    np.testing.assert_array_equal(scores.confusion, metrics.confusion_matrix(truth, found, labels=range(5)))
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, found))
    here = np.union1d(truth, found)
    options = {"labels": here, "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(scores.iou[here], metrics.jaccard_score(truth, found, labels=here, average=None))
    np.testing.assert_allclose(scores.precision[here], metrics.precision_score(truth, found, **options))
    np.testing.assert_allclose(scores.recall[here], metrics.recall_score(truth, found, **options))
    assert scores.mean_iou == pytest.approx(metrics.jaccard_score(truth, found, labels=here, average="macro"))
    assert scores.absent == [name for i, name in enumerate(scheme.names) if i not in here]


def test_nodata_and_ignored_codes_do_not_count(make_raster, enviroatlas):
    found = np.full((20, 30), 40, np.uint8)
    found[0] = 255
    truth = np.full((20, 30), 40, np.uint8)
    truth[1] = 0  # ignored by the scheme
    truth[2] = 70  # wrong
    truth[3, :5] = 255
    scores = evaluate([(make_raster("m.tif", found), make_raster("l.tif", truth))], enviroatlas)
    assert scores.pixels == 20 * 30 - 30 - 30 - 5
    assert scores.accuracy == pytest.approx(1 - 30 / scores.pixels)
    assert scores.absent == ["water", "impervious", "barren"]
    assert scores.mean_iou == pytest.approx((scores.accuracy + 0) / 2)


def test_maps_are_pooled(make_raster, enviroatlas, rng):
    pairs, found, truth = [], [], []
    for i, shape in enumerate([(20, 30), (33, 21)]):
        f, t = rng.choice([10, 20, 40], shape).astype(np.uint8), rng.choice([10, 20, 40], shape).astype(np.uint8)
        pairs.append((make_raster(f"m{i}.tif", f), make_raster(f"l{i}.tif", t)))
        found.append(f.ravel()), truth.append(t.ravel())
    scores = evaluate(pairs, enviroatlas)
    assert scores.accuracy == pytest.approx((np.concatenate(found) == np.concatenate(truth)).mean())
    assert scores.pixels == 20 * 30 + 33 * 21


def test_labels_of_another_scheme_are_merged_by_rule(make_raster, enviroatlas):
    found = np.array([[10, 20], [40, 70]], np.uint8)
    truth = np.array([[1, 5], [2, 3]], np.uint8)
    mapping = {1: 10, 5: 20, 2: 40, 3: 70}
    assert (
        evaluate([(make_raster("m.tif", found), make_raster("l.tif", truth))], enviroatlas, label_map=mapping).accuracy
        == 1
    )


def test_a_map_of_another_scheme_is_merged_by_rule(make_raster, chesapeake):
    found = np.array([[10, 20], [30, 70]], np.uint8)
    truth = np.array([[1, 6], [4, 3]], np.uint8)  # 4 and 6 merge into impervious
    mapping = {10: 1, 20: 4, 30: 4, 70: 3}
    pair = (make_raster("m.tif", found), make_raster("l.tif", truth))
    assert evaluate([pair], chesapeake, map_map=mapping).accuracy == 1


def test_labels_on_another_grid_are_resampled_to_the_map(make_raster, make_grid, enviroatlas, rng):
    coarse = rng.choice([10, 20, 40], (10, 12)).astype(np.uint8)
    labels = make_raster("l.tif", coarse, grid=make_grid(10, 12, pixel=5.0))
    found = make_raster("m.tif", np.kron(coarse, np.ones((5, 5), np.uint8)))
    scores = evaluate([(found, labels)], enviroatlas)
    assert scores.accuracy == 1
    assert scores.pixels == 3000


def test_unknown_codes_are_named(make_raster, enviroatlas):
    pair = (make_raster("m.tif", np.full((4, 4), 40, np.uint8)), make_raster("l.tif", np.full((4, 4), 3, np.uint8)))
    with pytest.raises(SchemeError, match=r"l\.tif has code\(s\) 3 that are not in scheme 'enviroatlas-5'"):
        evaluate([pair], enviroatlas)


def test_labels_that_are_all_nodata_are_refused(make_raster, enviroatlas):
    pair = (make_raster("m.tif", np.full((4, 4), 40, np.uint8)), make_raster("l.tif", np.zeros((4, 4), np.uint8)))
    with pytest.raises(InputError, match="no usable label"):
        evaluate([pair], enviroatlas)


def test_a_map_without_data_at_the_labels_is_refused(make_raster, enviroatlas):
    pair = (make_raster("m.tif", np.full((4, 4), 255, np.uint8)), make_raster("l.tif", np.full((4, 4), 40, np.uint8)))
    with pytest.raises(InputError, match="has no data where"):
        evaluate([pair], enviroatlas)


def test_labels_of_another_place_are_refused(make_raster, make_grid, enviroatlas):
    found = make_raster("m.tif", np.full((4, 4), 40, np.uint8))
    far = make_raster("l.tif", np.full((4, 4), 40, np.uint8), grid=make_grid(4, 4, left=700_000.0))
    with pytest.raises(GridMismatchError, match="do not overlap"):
        evaluate([(found, far)], enviroatlas)


def test_probabilities_are_not_accepted_as_a_map(make_raster, enviroatlas):
    found = make_raster("m.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(InputError, match=r"has 0\.5 at row 0, column 0.*whole numbers.*prior or probabilities"):
        evaluate([(found, make_raster("l.tif", np.full((4, 4), 40, np.uint8)))], enviroatlas)


def test_a_map_without_a_scheme(make_raster):
    with pytest.raises(SchemeError, match="give --scheme"):
        scheme_of_map(make_raster("m.tif", np.full((4, 4), 40, np.uint8)))


def test_scores_can_be_written_as_json(enviroatlas):
    scores = Scores.of(np.array([0, 1, 1]), np.array([0, 1, 0]), enviroatlas)
    data = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert data["accuracy"] == pytest.approx(2 / 3)
    assert data["classes"][2]["iou"] is None
    assert data["absent"] == ["barren", "trees", "grass"]
    assert data["classes"][0] == {
        "code": 10,
        "name": "water",
        "iou": 0.5,
        "precision": 1.0,
        "recall": 0.5,
        "label_pixels": 2,
        "map_pixels": 1,
    }


def test_area_ratios_are_those_of_pixel_counts(enviroatlas):
    labels, mapped = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 1, 2, 3])
    found = Scores.of(mapped, labels, enviroatlas).area_ratio
    np.testing.assert_allclose(found, [0.5, 1.5, np.nan, 1.0, np.nan])


def test_the_table_names_classes_left_out(enviroatlas):
    text = Scores.of(np.array([0, 1, 1]), np.array([0, 1, 0]), enviroatlas).to_text()
    assert "accuracy 0.6667   mean IoU 0.5000   3 pixels" in text
    assert "not in labels or map, left out of the mean: barren, trees, grass" in text


def test_an_exclusion_outside_the_map_reaches_into_it(tmp_path, make_raster, enviroatlas):
    """A point 5 m east of the map with a buffer of 20 m excludes a circular segment 15 m deep."""
    path = make_raster("map.tif", np.full((100, 100), 40, dtype=np.uint8), nodata=255, scheme=enviroatlas)
    point = geopandas.GeoDataFrame(geometry=geopandas.points_from_xy([600_105], [4_499_950]), crs=26917)
    point.to_crs(4326).to_file(tmp_path / "point.gpkg")
    scores = evaluate([(path, path)], enviroatlas, exclude=tmp_path / "point.gpkg", buffer=20)
    cap = 400 * np.arccos(5 / 20) - 5 * np.sqrt(400 - 25)
    assert 100 * 100 - scores.pixels == pytest.approx(cap, rel=0.1)


def test_a_map_can_be_resampled_to_the_labels(make_raster, make_grid, enviroatlas):
    """A coarse map counts at every labelled pixel; codes outside the labels do not matter."""
    labels = np.full((60, 60), 40, dtype=np.uint8)
    labels[:, 30:] = 70
    codes = np.full((5, 5), 40, dtype=np.uint8)
    codes[:, 3:], codes[4] = 20, 99
    coarse = make_raster("coarse.tif", codes, grid=make_grid(5, 5, pixel=20))
    truth = make_raster("labels.tif", labels)
    scores = evaluate([(coarse, truth)], enviroatlas, on_labels=True)
    assert scores.pixels == 60 * 60
    assert scores.accuracy == pytest.approx(0.5)
    with pytest.raises(SchemeError, match="99"):
        evaluate([(coarse, truth)], enviroatlas)


def test_figure_shows_all_panels(tmp_path, make_image, make_prior, make_model, make_raster, enviroatlas):
    from matplotlib.image import imread

    from landprior.landcover.training.model import save_model

    labels = make_raster("l.tif", np.full((40, 50), 40, np.uint8))
    found = make_raster("m.tif", np.full((40, 50), 70, np.uint8))
    model = save_model(make_model(), tmp_path / "model.safetensors")
    path = draw_comparison(
        tmp_path / "figure.png",
        enviroatlas,
        maps={"map": found},
        labels=labels,
        image=make_image("image.tif", 40, 50),
        prior=make_prior("prior.tif", 40, 50),
        model=model,
    )
    picture = imread(path)[..., :3]
    height, width = picture.shape[:2]
    assert width > 4.5 * 0.7 * height  # five panels in a row
    trees = np.array(enviroatlas.classes[3].rgb) / 255
    assert (np.abs(picture[:, -width // 5 :] - trees).max(-1) < 0.01).mean() > 0.3  # the labels are last


def test_figure_of_a_model_needs_the_image(tmp_path, make_raster, enviroatlas):
    with pytest.raises(InputError, match="needs --image"):
        draw_comparison(
            tmp_path / "f.png",
            enviroatlas,
            maps={"map": make_raster("m.tif", np.full((4, 4), 70, np.uint8))},
            model="m",
        )
