"""Judging without labels: the estimate is exact under its assumptions, and snapshots are computed correctly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import log_evidence, log_posterior
from landprior.landcover.training.tiles import measure_bands, read_tile
from landprior.landcover.training.verdict import CROP, LEAST_EVIDENCE, Judge, Snapshot, estimate_accuracy, warn_of_harm


def moments_of(seed, classes, items=5000):
    """Return the moments of a calibrated prior and a noisy map with confusion T, and the map's true accuracy."""
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(classes, 0.5), items)
    confusion = 0.6 * np.eye(classes) + 0.4 * rng.dirichlet(np.ones(classes), classes).T  # columns sum to one
    own = prior.T @ prior / items
    return confusion @ own, own, float((np.diag(confusion) * prior.mean(0)).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_estimate_is_exact_under_its_assumptions(seed, classes):
    moments, own, accuracy = moments_of(seed, classes)
    assert estimate_accuracy(moments, own) == pytest.approx(accuracy, abs=2e-3)


def test_a_perfect_map_and_a_permuted_one():
    _, own, _ = moments_of(0, 4)
    assert estimate_accuracy(own, own) == pytest.approx(1, abs=1e-6)
    assert estimate_accuracy(np.roll(own, 1, axis=0), own) == pytest.approx(0, abs=1e-6)


def test_a_constant_map_gets_the_share_of_its_class():
    _, own, _ = moments_of(1, 3)
    constant = np.zeros_like(own)
    constant[1] = own.sum(0)
    assert estimate_accuracy(constant, own) == pytest.approx(own[1].sum(), abs=2e-3)


def test_classes_that_are_never_in_the_prior_do_not_matter():
    _, own, _ = moments_of(2, 3)
    wider = np.zeros((4, 4))
    wider[:3, :3] = own
    assert estimate_accuracy(wider, wider) == pytest.approx(1, abs=1e-6)


@pytest.fixture
def tile(make_image, make_prior, rng):
    holes = rng.random((60, 70)) < 0.1
    return read_tile(make_image("image.tif", 60, 70, holes=holes), make_prior("prior.tif", 60, 70))


def test_a_snapshot_is_the_posterior_of_the_tile(tile, make_model):
    network = make_model().network
    judge = Judge([tile], measure_bands([tile]), smoothing=1e-4)
    snapshot = judge.take_snapshot(network)
    (index, (rows, columns), best), *others = snapshot.maps
    assert (index, rows, columns, others) == (0, slice(5, 55), slice(5, 65), [])
    statistics = measure_bands([tile])
    with torch.no_grad():
        log_q = network(statistics.standardise(tile.image, tile.valid)[None])[..., 5:-5, 5:-5]
    prior = (tile.prior.float() + 1e-4) / (tile.prior.float().sum(0) + 5e-4)
    log_p = prior.log()[None, :, 5:-5, 5:-5]
    mask = tile.valid[None, 5:-5, 5:-5]
    r = log_posterior(log_q, log_p, mask)
    assert (best == torch.where(mask, r.argmax(1), -1)[0]).float().mean() > 0.999
    expected = log_evidence(log_q, log_p, mask)[mask].mean() + math.log(int(mask.sum()))
    assert snapshot.evidence == pytest.approx(expected.item(), abs=1e-4)


def test_change_is_the_share_of_pixels_with_another_class(tile, make_model):
    one, other = make_model(seed=0).network, make_model(seed=1).network
    judge = Judge([tile], measure_bands([tile]), smoothing=1e-4)
    first = judge.take_snapshot(one)
    assert math.isnan(first.change)
    same = judge.take_snapshot(one)
    assert same.change == 0
    changed = judge.take_snapshot(other)
    (_, _, before), (_, _, after) = first.maps[0], changed.maps[0]
    assert changed.change == pytest.approx((before != after).sum().item() / (before >= 0).sum().item())
    assert changed.change > 0.1


def test_large_tiles_are_judged_on_crops_that_contain_data(make_image, make_prior, make_model):
    holes = np.ones((700, 900), dtype=bool)
    holes[500:, 650:] = False
    tile = read_tile(make_image("image.tif", 700, 900, holes=holes), make_prior("prior.tif", 700, 900))
    snapshot = Judge([tile], measure_bands([tile]), smoothing=1e-4).take_snapshot(make_model(filters=2).network)
    assert all(best.shape == (CROP - 10, CROP - 10) for _, _, best in snapshot.maps)
    seen = sum(int((best >= 0).sum()) for _, _, best in snapshot.maps)
    assert seen > 0.5 * 200 * 250


def test_a_strip_where_crops_meet_is_judged(make_image, make_prior, make_model):
    """These rows are in the borders of all adjacent crops."""
    holes = np.ones((700, 900), dtype=bool)
    holes[124:132] = False
    tile = read_tile(make_image("image.tif", 700, 900, holes=holes), make_prior("prior.tif", 700, 900))
    snapshot = Judge([tile], measure_bands([tile]), smoothing=1e-4).take_snapshot(make_model(filters=2).network)
    assert snapshot.pixels == sum(int((best >= 0).sum()) for _, _, best in snapshot.maps)
    assert snapshot.pixels > 1000


@pytest.mark.parametrize(
    ("count", "why"), [(0, "the map cannot be judged"), (30, "too few pixels to judge the map: 30 of")]
)
def test_without_enough_pixels_the_verdict_is_abstained(tile, make_model, count, why):
    valid = torch.zeros((60, 70), dtype=torch.bool)
    valid[:4] = True
    valid[20, 20 : 20 + count] = True
    tile = replace(tile, valid=valid)
    snapshot = Judge([tile], measure_bands([tile]), smoothing=1e-4).take_snapshot(make_model().network)
    verdict = snapshot.judge()
    assert (verdict.pixels, verdict.decision) == (count, "abstained")
    assert why in verdict.why
    if not count:
        assert (verdict.evidence, verdict.estimate, verdict.change) == (None, None, None)
        assert not snapshot.change < 1  # so that the map does not count as settled


def look_of(*, evidence=0.3, estimate=0.9, prior_estimate=0.8):
    return Snapshot(maps=[], change=0.001, evidence=evidence, estimate=estimate, prior_estimate=prior_estimate)


@pytest.mark.parametrize(
    ("snapshot", "decision", "why"),
    [
        (look_of(), "kept", r"accuracy \+0\.100"),
        (look_of(estimate=0.79), "kept", r"-0\.010"),
        (look_of(estimate=0.7), "abstained", r"-0\.100"),
        (look_of(evidence=LEAST_EVIDENCE - 0.01), "abstained", "carries no information"),
        (look_of(evidence=-0.3), "abstained", "carries no information"),
    ],
)
def test_decisions(snapshot, decision, why):
    import re

    verdict = snapshot.judge()
    assert verdict.decision == decision
    assert re.search(why, verdict.why)
    assert verdict.change == 0.001


def test_support_and_found_by_hand(tile, make_model):
    """Mean q where r is a class, and the ratio of its share in r to that in the prior, over the inner pixels."""
    model = make_model()
    snapshot = Judge([tile], model.statistics, smoothing=1e-4).take_snapshot(model.network)
    inner = (..., slice(5, -5), slice(5, -5))
    with torch.no_grad():
        log_q = model.network(tile.inputs(model.statistics, slice(None), slice(None))[None])[inner]
    log_p, valid = log_prior(tile.prior[None].float())[inner], tile.valid[None][inner]
    named = log_posterior(log_q, log_p, valid).argmax(1)[valid]
    q, p = log_q[0].exp()[:, valid[0]], log_p[0].exp()[:, valid[0]]
    for index in range(5):
        here = named == index
        if here.any():
            assert snapshot.support[index] == pytest.approx(float(q[index][here].mean()), rel=1e-4)
        else:
            assert np.isnan(snapshot.support[index])
        assert snapshot.found[index] == pytest.approx(float(here.float().mean() / p[index].mean()), rel=1e-3)
    shares = torch.bincount(q.argmax(0), minlength=5) / q.shape[1]
    assert snapshot.distance == pytest.approx(float((shares - p.mean(1)).abs().sum() / 2), abs=1e-4)


def test_shares_far_from_the_priors_are_a_warning_with_the_way_out(caplog):
    near = Snapshot(maps=[], change=0.001, evidence=0.5, estimate=0.8, prior_estimate=0.7, distance=0.05)
    for snapshot, warned in ((near, False), (replace(near, distance=0.12), True)):
        caplog.clear()
        verdict = snapshot.judge()
        assert verdict.to_dict()["distance"] == snapshot.distance
        warn_of_harm(verdict)
        assert ("landprior adapt" in caplog.text) is warned


@pytest.mark.parametrize(
    ("support", "found", "expected"),
    [
        ((0.9, 0.9, 0.9), (1.0, 0.2, 1.1), []),  # hardly found, but the network is confident
        ((0.9, 0.2, 0.9), (1.0, 0.8, 1.1), []),  # the network is not confident, but most of it is found
        ((0.9, 0.2, 0.9), (1.0, 0.2, 1.1), [1]),
        ((0.9, float("nan"), 0.9), (1.0, 0.0, 1.1), []),  # never predicted, so there is nothing to leave out
    ],
)
def test_classes_without_support(support, found, expected):
    snapshot = Snapshot(
        maps=[], change=0.1, evidence=1.0, estimate=0.8, prior_estimate=0.7, support=support, found=found
    )
    assert snapshot.unsupported == expected
    assert snapshot.judge().unsupported == expected
