"""The head from a few points: what it begins as, and where the points lead it."""

import numpy as np
import pytest

from landprior.landcover.mapping.head import BIAS_PULL, RARE, Head, fit, split


def draw(number: int, seed: int = 0) -> tuple[np.ndarray, Head]:
    rng = np.random.default_rng(seed)
    q, p = rng.dirichlet(np.ones(3), number).T, rng.dirichlet(np.ones(3), number).T
    features = np.vstack([np.log(q), np.log(p), rng.normal(size=(2, number))])
    return features, Head.of_posterior(np.log(q.mean(1)), 2)


def test_without_points_it_is_the_posterior() -> None:
    features, start = draw(50)
    q, p = np.exp(features[:3]), np.exp(features[3:6])
    r = p * q / q.mean(1, keepdims=True)
    head = fit(features[:, :0], np.array([], dtype=int), start)
    np.testing.assert_allclose(np.exp(head.log_shares(features)), r / r.sum(0), rtol=1e-12)


def test_the_slope_of_the_penalised_likelihood_is_zero() -> None:
    features, start = draw(60)
    classes = np.arange(60) % 3
    head = fit(features, classes, start, ridge=0.5)
    miss = np.exp(head.log_shares(features)) - np.eye(3)[:, classes]
    pull = 0.5 * (1 + RARE / 20)
    np.testing.assert_allclose(miss @ features.T, -pull * (head.weights - start.weights), atol=1e-3)
    np.testing.assert_allclose(miss.sum(1), -pull * BIAS_PULL * (head.bias - start.bias), atol=1e-3)


def test_shares_are_relative_and_more_points_lead_further() -> None:
    features, start = draw(40)
    classes = np.arange(40) % 3
    twice = np.r_[np.arange(40), np.arange(40)]
    once = fit(features, classes, start, shares=np.full(40, 7.0))
    np.testing.assert_allclose(once.weights, fit(features, classes, start).weights, atol=1e-5)
    doubled = fit(features[:, twice], classes[twice], start)
    assert np.abs(doubled.weights - start.weights).sum() > np.abs(once.weights - start.weights).sum()


def test_a_strong_penalty_leaves_the_posterior() -> None:
    features, start = draw(40)
    head = fit(features, np.zeros(40, dtype=int), start, ridge=1e9)
    np.testing.assert_allclose(head.weights, start.weights, atol=1e-6)


@pytest.mark.parametrize("folds", [2, 8])
def test_folds_are_compact_and_equal(folds: int) -> None:
    rows, columns = (axis.ravel() for axis in np.mgrid[:8, :16])
    found = split(rows, columns, folds)
    assert np.bincount(found).tolist() == [128 // folds] * folds
    for fold in range(folds):
        inside = found == fold
        assert (np.ptp(rows[inside]) + 1) * (np.ptp(columns[inside]) + 1) == 128 // folds
