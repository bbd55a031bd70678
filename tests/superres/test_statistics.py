"""Statistics matching, compared with closed forms, quadrature and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from landprior.superres.statistics import (
    CRITERIA,
    BlockStatistics,
    compare_statistics,
    count_blocks,
    interval,
    kl,
    l1,
    l2,
    match,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    log_q = torch.log_softmax(torch.randn((2, 3, 6, 7), generator=generator, dtype=torch.float64), dim=1)
    blocks = torch.randint(-1, 5, (2, 6, 7), generator=generator)
    eta = torch.softmax(torch.randn((5, 3), generator=generator, dtype=torch.float64), dim=1)
    rho = 0.05 + 0.3 * torch.rand((5, 3), generator=generator, dtype=torch.float64)
    return log_q, blocks, eta, rho


def slow_statistics(log_q, blocks, count):
    means, variances, sizes = np.zeros((count, log_q.shape[1])), np.zeros((count, log_q.shape[1])), np.zeros(count)
    for block in range(count):
        pixels = [
            log_q[n, :, r, c].exp().numpy()
            for n in range(log_q.shape[0])
            for r in range(log_q.shape[2])
            for c in range(log_q.shape[3])
            if blocks[n, r, c] == block
        ]
        sizes[block] = len(pixels)
        if pixels:
            means[block] = sum(pixels) / len(pixels)
            variances[block] = sum(p * (1 - p) for p in pixels) / len(pixels) ** 2
    return means, variances, sizes


def test_counts_equal_those_of_a_slow_loop(batch):
    log_q, blocks, _, _ = batch
    found = count_blocks(log_q, blocks, 5)
    for mine, slow in zip(found, slow_statistics(log_q, blocks, 5), strict=True):
        np.testing.assert_allclose(mine.numpy(), slow, rtol=1e-12, atol=1e-15)


def test_the_variance_equals_that_of_drawn_classes():
    """The share of a class among pixels drawn from q has the variance of equation 4."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(3), 40)
    drawn = (rng.random((20_000, 40, 1)) > q.cumsum(1)[:, :-1]).sum(-1)
    log_q = torch.log(torch.from_numpy(q))
    found = count_blocks(log_q, torch.zeros(40, dtype=torch.long), 1)
    for label in range(3):
        shares = (drawn == label).mean(1)
        assert float(found.mean[0, label]) == pytest.approx(shares.mean(), abs=3e-3)
        assert float(found.variance[0, label]) == pytest.approx(shares.var(), rel=0.05)


def one(mean, variance):
    return BlockStatistics(torch.tensor([mean]), torch.tensor([variance]), torch.ones(1))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 0.25), st.floats(0.02, 0.5))
@settings(max_examples=40, deadline=None)
def test_matching_is_the_overlap_of_two_gaussians(mu, eta, variance, rho):
    """Minus the log of the integral in equation 5, by quadrature."""
    sigma = math.sqrt(variance)
    near = [mu, eta, (mu * rho**2 + eta * variance) / (rho**2 + variance)]
    overlap, _ = quad(
        lambda c: norm.pdf(c, mu, sigma) * norm.pdf(c, eta, rho), -6, 7, points=near, limit=400, epsabs=0, epsrel=1e-9
    )
    found = match(one([mu], [variance]), torch.tensor([[eta]]), torch.tensor([[rho]]))
    if overlap > 1e-250:
        assert float(found) == pytest.approx(-math.log(overlap), rel=1e-4, abs=1e-4)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-3, 0.25), st.floats(0.05, 0.5))
@settings(max_examples=40, deadline=None)
def test_the_kl_form_matches_torch(mu, eta, variance, rho):
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, math.sqrt(variance)), torch.distributions.Normal(eta, rho)
    )
    found = kl(one([mu], [variance]), torch.tensor([[eta]]), torch.tensor([[rho]]))
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


def test_the_simple_criteria_by_hand():
    statistics = one([0.2, 0.8], [0.1, 0.1])
    eta, rho = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.1, 0.4]])
    assert float(l1(statistics, eta, rho)) == pytest.approx(0.6)
    assert float(l2(statistics, eta, rho)) == pytest.approx(0.18)
    assert float(interval(statistics, eta, rho)) == pytest.approx(0.2**2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradients_are_right(batch, criterion):
    log_q, blocks, eta, rho = batch
    logits = log_q.clone().requires_grad_()

    def loss(values):
        return compare_statistics(torch.log_softmax(values, 1), blocks, eta, rho, criterion=criterion, least=4)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_blocks_are_weighted_by_pixels_and_small_ones_ignored(batch):
    log_q, blocks, eta, rho = batch
    statistics = count_blocks(log_q, blocks, 5)
    values, sizes = match(statistics, eta, rho), statistics.sizes
    whole = compare_statistics(log_q, blocks, eta, rho)
    assert float(whole) == pytest.approx(float((values * sizes).sum() / sizes.sum()))
    least = float(sizes.sort().values[2])
    kept = sizes >= least
    some = compare_statistics(log_q, blocks, eta, rho, least=least)
    assert 0 < int(kept.sum()) < 5
    assert float(some) == pytest.approx(float((values * sizes)[kept].sum() / sizes[kept].sum()))


def test_a_confident_network_matches_best_if_cells_differ():
    """With a wide rho, a confident network that is right on average beats one that predicts eta everywhere."""
    eta, rho = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.3, 0.3]])
    blocks = torch.zeros(4, dtype=torch.long)
    sure = torch.log(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).clamp_min(1e-12))
    vague = torch.log(torch.full((4, 2), 0.5))
    assert compare_statistics(sure, blocks, eta, rho) < compare_statistics(vague, blocks, eta, rho)
    assert compare_statistics(sure, blocks, eta, rho, criterion="l2") == pytest.approx(
        float(compare_statistics(vague, blocks, eta, rho, criterion="l2")), abs=1e-6
    )


def test_no_blocks_give_zero_loss():
    log_q = torch.log(torch.full((1, 2, 3, 3), 0.5))
    nothing = torch.full((1, 3, 3), -1)
    eta = torch.full((1, 2), 0.5)
    assert float(compare_statistics(log_q, nothing, eta, eta)) == 0.0
