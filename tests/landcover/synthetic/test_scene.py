"""The synthetic scene: seeded, with realistic statistics, and not too easy."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier

from landprior.errors import InputError
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.fusion import prior_from_arrays
from landprior.landcover.synthetic.scene import make_scene


@pytest.fixture(scope="module")
def scene():
    return make_scene(768, seed=0)


def test_same_seed_same_scene():
    one, other, third = (make_scene(160, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.nlcd, other.nlcd)
    assert not np.array_equal(one.truth, third.truth)


def test_shapes_and_codes(scene, enviroatlas):
    assert scene.image.shape == (4, 768, 768)
    assert scene.image.dtype == np.uint8
    assert set(np.unique(scene.truth)) <= set(enviroatlas.codes.tolist())
    assert set(np.unique(scene.truth)) == set(enviroatlas.codes.tolist())
    assert set(np.unique(scene.nlcd)) <= {11, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95}
    assert len(np.unique(scene.nlcd)) >= 6
    assert set(scene.layers) == {"roads", "buildings", "waterways", "waterbodies"}
    for layer in scene.layers.values():
        assert set(np.unique(layer)) == {0, 1}


def test_developed_codes_follow_the_impervious_rule_of_nlcd():
    """Cells with a developed code have, on average, the impervious share that it stands for."""
    shares = {code: [] for code in (21, 22, 23, 24)}
    for seed in range(3):
        one = make_scene(512, seed=seed)
        for code, found in shares.items():
            found.extend((one.truth[one.nlcd == code] == 20).tolist())
    bounds = {21: (0.0, 0.2), 22: (0.2, 0.5), 23: (0.5, 0.8), 24: (0.8, 1.0)}
    for code, found in shares.items():
        if len(found) > 900:
            low, high = bounds[code]
            assert low - 0.02 <= np.mean(found) <= high + 0.02, code


def test_cells_are_thirty_metres_and_tilted(scene):
    """Codes do not change at multiples of 30, because the cells are rotated against the grid."""
    changes = (np.diff(scene.nlcd.astype(int), axis=1) != 0).sum(axis=0)
    by_phase = np.array([changes[phase::30].sum() for phase in range(30)])
    assert by_phase.max() / by_phase.sum() < 0.15


def test_layers_have_gaps_and_offsets(scene):
    """Like OpenStreetMap, footprints and roads are incomplete, but mostly right."""
    for name, low in (("buildings", 0.6), ("roads", 0.5)):
        layer = scene.layers[name] > 0
        right = (scene.truth[layer] == 20).mean()
        assert low < right < 1.0, name
    built = scene.truth == 20
    covered = (scene.layers["buildings"] > 0) | (scene.layers["roads"] > 0)
    assert covered[built].mean() < 0.95


def test_prior_is_not_too_good(scene, enviroatlas):
    layers = {name: values > 0 for name, values in scene.layers.items()}
    prior = prior_from_arrays(scene.nlcd, load_cooccurrence(None, enviroatlas), **layers)
    accuracy = (enviroatlas.codes[prior.argmax(0)] == scene.truth).mean()
    assert 0.55 < accuracy <= 0.75


def test_pixels_alone_do_not_determine_the_class(scene):
    """Checked with a random forest trained on the truth, and k-means with majority classes, on the four bands."""
    pixels, truth = scene.image.reshape(4, -1).T.astype(np.float32), scene.truth.ravel()
    rng = np.random.default_rng(0)
    train, test = rng.permutation(truth.size)[:60_000].reshape(2, -1)
    forest = RandomForestClassifier(50, min_samples_leaf=5, random_state=0, n_jobs=2).fit(pixels[train], truth[train])
    assert 0.6 < forest.score(pixels[test], truth[test]) < 0.90
    groups = KMeans(12, n_init=1, random_state=0).fit_predict(pixels)
    right = sum(np.bincount(truth[groups == k]).max() for k in range(12))
    assert 0.5 < right / truth.size < 0.90


@pytest.mark.slow
def test_a_large_scene_is_a_town_and_its_country():
    scene = make_scene(1500, seed=0)
    middle = scene.truth[500:1000, 500:1000] == 20
    rim = np.concatenate([scene.truth[:150].ravel(), scene.truth[-150:].ravel()]) == 20
    assert 0.05 < (scene.truth == 20).mean() < 0.12
    assert middle.mean() > 5 * rim.mean() > 0
    assert scene.layers["roads"][:, :300].any()  # roads of the country
    assert scene.layers["roads"][:, -300:].any()


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="at least 128 m"):
        make_scene(100)
    with pytest.raises(InputError, match="climate is one of"):
        make_scene(128, climate="polar")
