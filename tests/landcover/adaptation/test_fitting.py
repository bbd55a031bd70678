"""Fitting a head: what it begins as, where the points lead it, and how they are grouped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from landprior.landcover.adaptation.fitting import BIAS_PULL, Labelled, choose_ridge, estimate_share, fit, group
from landprior.landcover.training.head import Head

CLASSES, BANDS = 3, 1


def draw(number: int, seed: int = 0) -> tuple[Labelled, Head]:
    rng = np.random.default_rng(seed)
    q, p = rng.dirichlet(np.ones(CLASSES), number).T, rng.dirichlet(np.ones(CLASSES), number).T
    start = Head.of_posterior(np.log(q.mean(1)), np.log(p.mean(1)), BANDS)
    features = start.features(*(torch.from_numpy(x) for x in (np.log(q), np.log(p), rng.normal(size=(2, number)))))
    x, y = rng.random((2, number))
    points = Labelled(
        features=features.numpy(),
        classes=np.arange(number) % CLASSES,
        shares=np.ones(number),
        groups=group(x, y),
    )
    return points, start


def shares_of(head: Head, points: Labelled) -> np.ndarray:
    return head.apply(torch.from_numpy(points.features)).exp().numpy()


def test_without_points_the_head_is_the_posterior():
    points, start = draw(50)
    q = np.exp(points.features[:CLASSES] + start.log_marginal[:, None])
    r = np.exp(points.features[CLASSES : 2 * CLASSES]) * q / np.exp(start.log_marginal)[:, None]
    head = fit(points.take(np.zeros(50, dtype=bool)), start, 1.0)
    np.testing.assert_allclose(shares_of(head, points), r / r.sum(0), rtol=1e-12)


def test_the_slope_of_the_penalised_likelihood_is_zero():
    points, start = draw(60)
    head = fit(points, start, 0.5)
    miss = shares_of(head, points) - np.eye(CLASSES)[:, points.classes]
    np.testing.assert_allclose(miss @ points.features.T, -0.5 * (head.weights - start.weights), atol=2e-3)
    np.testing.assert_allclose(miss.sum(1), -0.5 * BIAS_PULL * (head.bias - start.bias), atol=2e-3)


def test_only_ratios_of_shares_matter_and_a_point_twice_is_one_of_twice_the_share():
    points, start = draw(40)
    once = fit(points, start, 1.0)
    sevenfold = Labelled(**{**vars(points), "shares": np.full(40, 7.0)})
    np.testing.assert_allclose(fit(sevenfold, start, 1.0).weights, once.weights, atol=1e-6)
    rows = np.r_[np.arange(40), np.arange(20)]
    twice = Labelled(
        features=points.features[:, rows],
        classes=points.classes[rows],
        shares=np.ones(60),
        groups=points.groups[rows],
    )
    heavy = Labelled(**{**vars(points), "shares": np.r_[np.full(20, 2.0), np.ones(20)]})
    # shares have mean 1, so 40 points weigh 40: two thirds of the sixty's penalty
    np.testing.assert_allclose(fit(heavy, start, 1.0).weights, fit(twice, start, 1.5).weights, atol=2e-3)


def test_a_strong_penalty_leaves_the_posterior():
    points, start = draw(40)
    np.testing.assert_allclose(fit(points, start, 1e9).weights, start.weights, atol=1e-6)


def test_the_penalty_is_weak_where_the_posterior_is_wrong_and_strong_where_it_is_right():
    rng = np.random.default_rng(1)
    chosen = {}
    for name in ("right", "wrong"):
        points, start = draw(120, seed=3)
        shares = shares_of(start, points)
        classes = (rng.random(120) < shares.cumsum(0)).argmax(0)
        if name == "wrong":
            classes = (classes + 1) % CLASSES
        chosen[name] = choose_ridge(Labelled(**{**vars(points), "classes": classes}), start)
    assert chosen["wrong"] < 3 < chosen["right"]


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_are_compact_and_equal(groups):
    rows, columns = (axis.ravel().astype(float) for axis in np.mgrid[:8, :16])
    found = group(rows, columns, groups)
    assert np.bincount(found).tolist() == [128 // groups] * groups
    for one in range(groups):
        inside = found == one
        assert (np.ptp(rows[inside]) + 1) * (np.ptp(columns[inside]) + 1) == 128 // groups


def test_fewer_points_than_groups_are_a_group_each():
    assert sorted(group(np.arange(3.0), np.zeros(3))) == [0, 1, 2]
    assert group(np.empty(0), np.empty(0)).tolist() == []


@pytest.mark.parametrize(("right", "number"), [(0, 12), (3, 12), (70, 100), (100, 100)])
def test_the_interval_is_wilsons(right, number):
    found = estimate_share(np.arange(number) < right, np.full(number, 5.0))
    assert found.value == pytest.approx(right / number)
    for edge in (found.low, found.high):  # the shares from which the observed one is 1.96 standard errors away
        assert abs(found.value - edge) == pytest.approx(1.959964 * (edge * (1 - edge) / number) ** 0.5, abs=1e-6)


def test_the_interval_covers_the_truth():
    truth, number = 0.7, 100
    counts = np.arange(number + 1)
    ends = [estimate_share(np.arange(number) < count, np.ones(number)) for count in counts]
    covered = sum(
        binom.pmf(c, number, truth) for c, one in zip(counts, ends, strict=True) if one.low < truth < one.high
    )
    assert 0.93 < covered < 0.97


def test_unequal_shares_widen_the_interval():
    right = np.arange(40) % 4 > 0
    even = estimate_share(right, np.ones(40))
    uneven = estimate_share(right, np.where(np.arange(40) < 20, 1.0, 5.0))
    assert uneven.high - uneven.low > even.high - even.low
