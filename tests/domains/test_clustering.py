"""The neighbourhood prior, training from random weights, and the map of clusters."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.special import softmax

from landprior.cli import main
from landprior.domains.clustering.mapping import cluster_image, find_probabilities, map_clusters
from landprior.domains.clustering.neighbourhood import (
    FLOOR,
    NeighbourhoodPrior,
    fit_logistic,
    mean_boxes,
    sum_boxes,
)
from landprior.domains.clustering.settings import ClusterSettings
from landprior.domains.clustering.training import (
    ClusterUse,
    clear_attempts,
    image_tile,
    make_scheme,
    read_image_tile,
    spread_weights,
    train_clusters,
)
from landprior.errors import CollapseWarning, InputError, OutputExistsError, TrainingInterruptedError
from landprior.implicit.losses import qr
from landprior.implicit.networks import build_fcn
from landprior.implicit.seeds import derive_seed
from landprior.implicit.settings import TrainingSettings
from landprior.landcover.mapping.blur import blur_log
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.landcover.training.model import load_model
from landprior.landcover.training.patches import vary_bands
from landprior.landcover.training.tiles import COLOUR_FLOOR, measure_bands, measure_colours
from landprior.raster.cog import write_raster
from landprior.raster.reading import open_raster


def stripes(height, width, rng, *, bands=3):
    """Return a noisy image of three materials in broad stripes, and the materials."""
    kinds = np.broadcast_to((np.arange(width) // 16) % 3, (height, width))
    colours = np.array([[60, 150, 90], [190, 180, 160], [90, 60, 40]])[:, :bands]
    noise = rng.normal(0, 6, (bands, height, width))
    return np.clip(colours[kinds].transpose(2, 0, 1) + noise, 1, 255).astype(np.uint8), kinds


def quick(**changes):
    training = {"loss": "qr", "warmup": "none", "steps": 60, "learning_rate": 3e-3, "epoch_steps": 10}
    training |= changes.pop("training", {})
    small = {"clusters": 4, "filters": 8, "patch_size": 32, "batch_size": 8, "near": 5, "far": 20, "every": 10}
    return ClusterSettings(training=TrainingSettings(**training), **(small | changes))


@pytest.fixture
def image(tmp_path, make_grid, rng):
    values, kinds = stripes(96, 144, rng)
    values[:, 90:, :20] = 0
    path = write_raster(tmp_path / "image.tif", values, make_grid(96, 144), nodata=0)
    return path, kinds


@pytest.mark.parametrize("side", [1, 2, 5, 8, 50])
def test_box_sums_equal_those_of_a_loop(side, rng):
    values = rng.random((2, 3, 9, 13))
    wanted = np.zeros_like(values)
    for row in range(9):
        for column in range(13):
            top, left = row - side // 2, column - side // 2
            box = values[..., max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
            wanted[..., row, column] = box.sum((-2, -1))
    np.testing.assert_allclose(sum_boxes(torch.from_numpy(values), side).numpy(), wanted, atol=1e-12)


def test_box_means_count_pixels_with_data_only():
    q = torch.tensor([[[[1.0, 0.5, 0.0, 0.25]], [[0.0, 0.5, 1.0, 0.75]]]])
    mask = torch.tensor([[[True, True, False, False]]])
    found = mean_boxes(q, mask, 3)
    np.testing.assert_allclose(found[0, :, 0, :3].numpy(), [[0.75, 0.75, 0.5], [0.25, 0.25, 0.5]])
    assert found[0, :, 0, 3].tolist() == [0.0, 0.0]  # no data nearby


def test_a_uniform_prediction_stays_uniform_and_sums_to_one(rng):
    prior = NeighbourhoodPrior(near=3, far=7, every=0)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    flat = prior(torch.full((2, 5, 8, 8), -np.log(5)).double(), mask)
    np.testing.assert_allclose(flat.exp().numpy(), 0.2)
    some = torch.log_softmax(torch.from_numpy(rng.normal(size=(2, 5, 8, 8))), 1)
    np.testing.assert_allclose(prior(some, mask).exp().sum(1).numpy(), 1.0)


def test_the_prior_follows_the_formula(rng):
    prior = NeighbourhoodPrior(near=3, far=6, every=0, balance=2)
    prior.weights.copy_(torch.tensor([1.5, -0.5]))
    log_q = torch.log_softmax(torch.from_numpy(rng.normal(size=(1, 4, 10, 10))), 1)
    mask = torch.from_numpy(rng.random((1, 10, 10)) > 0.2)
    near, far = (np.log(np.maximum(mean_boxes(log_q.exp(), mask, side).numpy(), FLOOR)) for side in (3, 6))
    common = log_q.exp().numpy().transpose(0, 2, 3, 1)[mask.numpy()].mean(0)
    wanted = np.exp(1.5 * near - 0.5 * far) / common[:, None, None] ** 2
    np.testing.assert_allclose(prior(log_q, mask).exp().numpy(), wanted / wanted.sum(1, keepdims=True), rtol=1e-6)


def test_contrast_lowers_classes_that_are_common_nearby():
    near_alike = torch.zeros(1, 2, 41, 41)
    near_alike[:, 0] = 0.9
    near_alike[:, 1] = 0.1
    near_alike[:, :, 18:23, 18:23] = 0.5  # both classes here, where the first is common nearby
    prior = NeighbourhoodPrior(near=5, far=41, every=0, balance=0)
    prior.weights.copy_(torch.tensor([1.0, -0.5]))
    found = prior(near_alike.log(), torch.ones(1, 41, 41, dtype=torch.bool)).exp()[0, :, 20, 20]
    assert found[0] < 0.5 < found[1]


def test_the_logistic_regression_finds_its_weights(rng):
    near, far = np.log(rng.uniform(0.01, 1, (2, 4000, 5)))
    q = softmax(1.7 * near - 0.6 * far, axis=1)
    found = fit_logistic(near, far, q, np.array([1.0, -0.3]))
    np.testing.assert_allclose(found, [1.7, -0.6], atol=0.03)  # a small penalty pulls towards 0


def test_weights_are_estimated_at_intervals_and_kept_in_buffers(rng):
    prior = NeighbourhoodPrior(near=3, far=9, every=3)
    mask = torch.ones(2, 12, 12, dtype=torch.bool)
    log_q = torch.log_softmax(torch.from_numpy(rng.normal(size=(2, 4, 12, 12))), 1)
    seen = []
    for _ in range(7):
        prior(log_q, mask)
        seen.append(prior.weights.clone())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[5])
    assert set(prior.state_dict()) == {"weights", "batches"}
    assert int(prior.batches) == 7
    nothing = NeighbourhoodPrior(every=1)
    for _ in range(2):  # a batch without data changes nothing
        nothing(log_q, ~mask)
    assert nothing.weights.tolist() == [0.5, 0.5]


def test_the_prior_of_a_view_comes_from_the_other_view(rng):
    mask = torch.from_numpy(rng.random((4, 9, 9)) > 0.1)
    mask[2:] = mask[:2]
    log_q = torch.log_softmax(torch.from_numpy(rng.normal(size=(4, 3, 9, 9))), 1)
    crossed = NeighbourhoodPrior(near=3, far=7, every=0, views=2)(log_q, mask)
    plain = NeighbourhoodPrior(near=3, far=7, every=0)(log_q, mask)
    np.testing.assert_allclose(crossed[:2].numpy(), plain[2:].numpy(), rtol=1e-9)
    np.testing.assert_allclose(crossed[2:].numpy(), plain[:2].numpy(), rtol=1e-9)


def test_qr_against_it_is_a_bound_on_shared_information(rng):
    mask = torch.ones(2, 12, 12, dtype=torch.bool)
    log_q = torch.log_softmax(3 * torch.from_numpy(rng.normal(size=(2, 4, 12, 12))), 1)
    q = log_q.exp().numpy()
    common = q.mean((0, 2, 3))
    near = mean_boxes(log_q.exp(), mask, 5).numpy()
    cross = -(q * np.log(near)).sum(1).mean()
    entropy = -(common * np.log(common)).sum()
    prior = NeighbourhoodPrior(near=5, every=0, start=(1, 0), balance=0)
    assert float(qr(log_q, prior(log_q, mask), mask)) == pytest.approx(cross - entropy)


def test_gamma_scales_the_gradient_of_the_entropy(rng):
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 8, 8))).requires_grad_()

    def slope(balance):
        log_q = torch.log_softmax(logits, 1)
        prior = NeighbourhoodPrior(near=3, every=0, balance=balance)(log_q, mask)
        return torch.autograd.grad(qr(log_q, prior, mask), logits)[0]

    common = torch.softmax(logits, 1).mean((0, 2, 3))
    entropy = torch.autograd.grad(-(common * common.log()).sum(), logits)[0]
    torch.testing.assert_close(slope(2.0) - slope(0.0), -2 * entropy, atol=1e-12, rtol=1e-9)


def test_no_gradient_flows_through_the_prior(rng):
    log_q = torch.log_softmax(torch.from_numpy(rng.normal(size=(1, 3, 6, 6))).requires_grad_(), 1)
    assert not NeighbourhoodPrior()(log_q, torch.ones(1, 6, 6, dtype=torch.bool)).requires_grad


def test_the_scheme_of_clusters():
    scheme = make_scheme(64)
    assert scheme.names[:2] == ["cluster 1", "cluster 2"]
    assert scheme.codes.tolist() == list(range(1, 65))
    assert len({c.colour for c in scheme.classes}) == 64


@pytest.fixture
def grey_tile(rng):
    """Return a tile whose bands are mostly brightness."""
    brightness = rng.normal(size=(1, 40, 40)) * 60 + 120
    values = np.concatenate([brightness + rng.normal(size=(1, 40, 40)) * width for width in (20, 30, 40)])
    return image_tile("x", values.astype(np.float32), np.ones((40, 40), bool), make_scheme(3))


def test_views_vary_like_the_colours_of_the_image(grey_tile):
    statistics = measure_bands([grey_tile])
    colours = measure_colours([grey_tile], statistics)
    covariance = torch.cov(grey_tile.inputs(statistics, slice(None), slice(None)).flatten(1).double(), correction=0)
    floor = COLOUR_FLOOR * torch.linalg.eigvalsh(covariance)[-1]
    torch.testing.assert_close(colours, colours.T)
    torch.testing.assert_close(colours @ colours, covariance + floor * torch.eye(3), atol=1e-5, rtol=0)
    grey = torch.zeros(20_000, 3, 2, 2)
    varied = vary_bands(grey, 0.0, torch.Generator().manual_seed(0), tint=0.5 * colours)
    assert torch.equal(varied, varied[:, :, :1, :1].expand_as(varied))  # one offset per patch
    found = torch.cov(varied[:, :, 0, 0].T.double())
    torch.testing.assert_close(found, 0.25 * colours @ colours, atol=0.01, rtol=0)


def test_spread_weights_show_the_network_uncorrelated_bands(grey_tile):
    statistics = measure_bands([grey_tile])
    torch.manual_seed(0)
    network = build_fcn(3, 3, filters=4)
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    before = [layer.weight.clone() for layer in layers]
    spread_weights(network, measure_colours([grey_tile], statistics), 2.0)
    assert torch.allclose(layers[1].weight, 2 * before[1])
    change = torch.linalg.lstsq(
        before[0].permute(0, 2, 3, 1).reshape(-1, 3), layers[0].weight.permute(0, 2, 3, 1).reshape(-1, 3) / 2
    ).solution.detach()
    inputs = grey_tile.inputs(statistics, slice(None), slice(None)).flatten(1).double()
    covariance = torch.cov(change.double().T @ inputs)
    correlation = torch.corrcoef(change.double().T @ inputs)
    np.testing.assert_allclose(torch.diagonal(covariance).numpy(), 1, atol=0.2)
    np.testing.assert_allclose(correlation.numpy(), np.eye(3), atol=0.1)


def test_materials_are_found_starting_from_random_weights(image):
    path, kinds = image
    tile = read_image_tile(path, make_scheme(4))
    training = {"learning_rate": 2e-3, "steps": 160}
    model = train_clusters([tile], quick(filters=16, jitter=0.2, tint=0.05, training=training))
    about = model.record["clustering"]
    assert 2 < about["effective"] <= 4
    assert about["attempts"][0]["seed"] == 0
    with torch.no_grad():
        inputs = tile.inputs(model.statistics, slice(None), slice(None))[None]
        found = model.network(inputs)[0].argmax(0).numpy()
    inner = (slice(8, 88), slice(8, 136))
    pure = sum(np.bincount(kinds[inner][found[inner] == one], minlength=3).max() for one in range(4))
    assert pure / kinds[inner].size > 0.75  # chance gives a third


def test_an_interrupted_run_ends_with_the_same_weights(image, tmp_path, monkeypatch):
    tile = read_image_tile(image[0], make_scheme(4))
    whole = train_clusters([tile], quick())
    place = tmp_path / "state"
    calls = 0
    forward = NeighbourhoodPrior.forward

    def stop(self, log_q, mask):
        nonlocal calls
        calls += 1
        if calls == 35:
            raise KeyboardInterrupt
        return forward(self, log_q, mask)

    with monkeypatch.context() as patch:
        patch.setattr(NeighbourhoodPrior, "forward", stop)
        with pytest.raises(TrainingInterruptedError, match="after 34 of 60 steps"):
            train_clusters([tile], quick(), checkpoint=place)
    resumed = train_clusters([tile], quick(), checkpoint=place)
    assert resumed.digest() == whole.digest()
    assert resumed.record["clustering"] == whole.record["clustering"]
    clear_attempts(place)
    assert not list(tmp_path.glob("state*"))


@pytest.mark.parametrize(
    ("shares", "effective", "bad"),
    [
        ([0.25] * 4, 4.0, False),
        ([1.0, 0, 0, 0], 1.0, True),
        ([0.5, 0.25, 0.25, 0], None, False),
        ([0.6, 0.4, 0, 0], None, True),  # half are empty
        ([0.85, 0.05, 0.05, 0.05], None, True),  # one has nearly all
    ],
)
def test_the_use_of_clusters(shares, effective, bad):
    use = ClusterUse.of(torch.tensor(shares))
    if effective is not None:
        assert use.effective == pytest.approx(effective)
    assert use.largest == pytest.approx(max(shares))
    assert use.degenerate(4) is bad


def test_an_image_of_one_colour_trains_without_an_error():
    tile = image_tile("flat", np.full((3, 48, 48), 7, np.uint8), np.ones((48, 48), bool), make_scheme(4))
    statistics = measure_bands([tile])
    root = measure_colours([tile], statistics)
    torch.testing.assert_close(root, root[0, 0] * torch.eye(3, dtype=torch.float64))
    assert root[0, 0] > 0
    model = train_clusters([tile], quick(training={"steps": 5}, restarts=0))
    with torch.no_grad():
        log_q = model.network(tile.inputs(statistics, slice(None), slice(None))[None])[0, :, 8:-8, 8:-8]
    assert torch.isfinite(log_q).all()
    torch.testing.assert_close(log_q, log_q[:, :1, :1].expand_as(log_q))


@pytest.mark.parametrize(("good", "chosen"), [(1, 1), (None, 0)])
def test_degenerate_clusters_are_retrained_with_derived_seeds(image, monkeypatch, good, chosen):
    tile = read_image_tile(image[0], make_scheme(4))
    used = iter([ClusterUse(1.0 if number != good else 3.5, 0.99 if number != good else 0.4) for number in range(9)])
    monkeypatch.setattr("landprior.domains.clustering.training.measure_use", lambda *_, **__: next(used))
    with pytest.warns(CollapseWarning) as caught:
        model = train_clusters([tile], quick(restarts=1, training={"steps": 1}))
    said = [str(warning.message) for warning in caught]
    assert said[0] == (
        "the clusters degenerate: 1.0 of 4 are used, the largest for 99% of the pixels; restarting with another seed"
    )
    assert len(said) == (1 if good else 2)
    if not good:
        assert "try another --seed" in said[1]
    attempts = model.record["clustering"].pop("attempts")
    assert [attempts[0]["seed"], attempts[1]["seed"]] == [0, derive_seed(0, "restart 1")]
    assert model.record["clustering"]["effective"] == attempts[chosen]["effective"]


@pytest.mark.parametrize(("jitter", "tint", "views"), [(0.0, 0.0, 1), (0.3, 0.0, 2), (0.0, 0.3, 2)])
def test_two_views_are_used_only_if_they_differ(jitter, tint, views):
    assert ClusterSettings(jitter=jitter, tint=tint).views == views


def test_wrong_input_is_refused(tmp_path, make_grid):
    with pytest.raises(InputError, match="no images to cluster"):
        train_clusters([])
    with pytest.raises(InputError, match="choose a loss from qr, qr-kl, rq"):
        train_clusters([], quick(training={"loss": "ce"}))
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 20, 20), np.uint8), make_grid(20, 20), nodata=0)
    with pytest.raises(InputError, match="no valid pixel"):
        read_image_tile(empty, make_scheme(3))


def test_the_map_does_not_depend_on_windows(tmp_path, make_grid, rng):
    values, _ = stripes(600, 530, rng)  # two blocks in each direction
    values[:, 300:340, 500:] = 0
    path = write_raster(tmp_path / "image.tif", values, make_grid(600, 530), nodata=0)
    model = train_clusters([read_image_tile(path, make_scheme(4))], quick(training={"steps": 5}))
    map_clusters(path, tmp_path / "map.tif", model, side=7, options=MapOptions(encoding="float32"))
    with ImageLayer(path) as layer:
        pixels, valid = layer.read()
    inputs = model.statistics.standardise(torch.from_numpy(pixels), torch.from_numpy(valid), None)[None]
    with torch.no_grad():
        whole = blur_log(model.network.eval()(inputs), 7)[0].exp().numpy()
    with PriorLayer(tmp_path / "map_probabilities.tif") as layer:
        assert layer.scheme.names == model.scheme.names
        found, known = layer.read()
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_allclose(found[:, valid], whole[:, valid], atol=1e-5)
    with open_raster(tmp_path / "map.tif") as src:
        codes = src.read(1)
    assert (codes[~valid] == 255).all()
    assert (codes[valid] == whole.argmax(0)[valid] + 1).mean() > 0.9999
    assert not list(tmp_path.glob(".map*"))  # no files are left behind


def test_an_even_box_is_refused(tmp_path):
    with pytest.raises(InputError, match="odd number of pixels"):
        map_clusters("x.tif", tmp_path / "map.tif", None, side=4)


def test_an_even_box_is_refused_before_the_training(image, tmp_path, monkeypatch):
    monkeypatch.setattr("landprior.domains.clustering.mapping.train_clusters", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="odd number of pixels"):
        cluster_image(image[0], tmp_path / "map.tif", side=4)


def test_cluster_on_the_command_line(image, tmp_path):
    run = CliRunner()
    output = tmp_path / "clusters.tif"
    arguments = ["-q", "cluster", str(image[0]), "-k", "4", "--filters", "4", "--steps", "3", "-o", str(output)]
    result = run.invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["map"] == str(output)
    assert 1 <= about["effective"] <= 4
    assert load_model(tmp_path / "clusters.safetensors").record["clustering"]["alpha"] == about["alpha"]
    assert find_probabilities(output) == tmp_path / "clusters_probabilities.tif"
    assert not [path for path in tmp_path.iterdir() if "checkpoint" in path.name]
    again = run.invoke(main, arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert run.invoke(main, [*arguments, "--overwrite"]).stdout.startswith(f"{output}\n")
    assert run.invoke(main, ["cluster", str(image[0]), "-k", "1", "-o", "x.tif"]).exit_code == 2
    wrong = run.invoke(main, [*arguments, "--blur", "4", "--overwrite"])
    assert "odd number of pixels" in wrong.stderr


def test_existing_files_are_not_replaced(image, tmp_path):
    (tmp_path / "clusters.safetensors").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"clusters\.safetensors"):
        cluster_image(image[0], tmp_path / "clusters.tif", quick())
    assert (tmp_path / "clusters.safetensors").read_text() == "mine"
    assert not (tmp_path / "clusters.tif").exists()


@pytest.mark.slow
@pytest.mark.realdata
def test_clusters_of_real_imagery_beat_k_means(tmp_path):
    from benchmarks.accuracy.cases import data_folder
    from benchmarks.clustering import Task, run_seed

    if not data_folder().is_dir():
        pytest.skip(f"no {data_folder()}")
    task = Task("ohio-15", tmp_path)
    found = run_seed(task, 0, tmp_path, task.draws(10, 400))
    assert np.mean(found["clusters"]) > np.mean(found["kmeans"]) + 0.02
    assert np.mean(found["clusters"]) > 0.87
