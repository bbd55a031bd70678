from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landprior.landcover.mapping.finish import RIDGE, GuidedFilter, find_given_up, leave_out

PIXEL = GuidedFilter.of((1.0, 1.0))


def make(rows, columns, *, classes=3, bands=2, seed=0, holes=0.0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(classes), (rows, columns)).transpose(2, 0, 1).astype(np.float32)
    guide = rng.normal(size=(bands, rows, columns)).astype(np.float32)
    valid = rng.random((rows, columns)) >= holes
    return torch.from_numpy(shares), torch.from_numpy(valid), torch.from_numpy(guide)


def filter_slowly(shares, valid, guide, *, width=9, side=2):
    """The filter cell by cell in float64, as the paper has it: fit, average of fits, interpolation."""
    shares, valid, guide = (np.asarray(values, dtype=float) for values in (shares, valid, guide))
    classes, (bands, rows, columns) = len(shares), guide.shape
    cells = (-(-rows // side), -(-columns // side))
    slopes, counts = np.zeros((*cells, classes, bands + 1)), np.zeros(cells)
    y, x = np.mgrid[:rows, :columns] // side

    def weigh(at, position):
        """Share of each cell that lies in the square around a cell."""
        reach = (width / side + 1) / 2 - abs(at - position)
        return np.clip(reach, 0, 1)

    for i in range(cells[0]):
        for j in range(cells[1]):
            weight = valid * weigh(y, i) * weigh(x, j)
            counts[i, j] = valid[(y == i) & (x == j)].sum()
            if not weight.sum():
                continue
            weight = weight / weight.sum()
            mean = (guide * weight).sum((1, 2))
            away = guide - mean[:, None, None]
            spread = np.einsum("bhw,chw,hw->bc", away, away, weight) + RIDGE * np.eye(bands)
            middle = (shares * weight).sum((1, 2))
            together = np.einsum("bhw,chw,hw->bc", away, shares - middle[:, None, None], weight)
            slope = np.linalg.solve(spread, together).T
            slopes[i, j] = np.column_stack([slope, middle - slope @ mean])
    averaged = np.zeros_like(slopes)
    r, c = np.mgrid[: cells[0], : cells[1]]
    for i in range(cells[0]):
        for j in range(cells[1]):
            weight = counts * weigh(r, i) * weigh(c, j)
            averaged[i, j] = np.einsum("rc,rckb->kb", weight, slopes) / max(weight.sum(), 1e-6)
    between = [np.clip((np.arange(size) + 0.5) / side - 0.5, 0, None) for size in (rows, columns)]
    low = [np.minimum(np.floor(at).astype(int), size - 1) for at, size in zip(between, cells, strict=True)]
    high = [np.minimum(at + 1, size - 1) for at, size in zip(low, cells, strict=True)]
    part = [at - first for at, first in zip(between, low, strict=True)]
    across = (
        averaged[:, low[1]] * (1 - part[1])[None, :, None, None] + averaged[:, high[1]] * part[1][None, :, None, None]
    )
    fine = across[low[0]] * (1 - part[0])[:, None, None, None] + across[high[0]] * part[0][:, None, None, None]
    found = np.einsum("hwkb,bhw->khw", fine[..., :-1], guide) + fine[..., -1].transpose(2, 0, 1)
    found = np.clip(found, 0, 1)
    found[-1] = np.clip(1 - found[:-1].sum(0), 0, 1)
    return found / found.sum(0)


@pytest.mark.parametrize(
    ("rows", "columns", "holes"), [(20, 24, 0.0), (21, 17, 0.0), (23, 26, 0.4), (5, 40, 0.1), (1, 1, 0)]
)
def test_it_is_the_guided_filter_of_the_paper(rows, columns, holes):
    shares, valid, guide = make(rows, columns, holes=holes)
    found = PIXEL.apply(shares, valid, guide, (0, 0))
    where = valid.numpy()
    assert np.abs(found.numpy() - filter_slowly(shares, valid, guide))[:, where].max(initial=0) < 2e-5


@pytest.mark.parametrize("width", [3.0, 5.0, 7.3, 9.0, 16.0])
def test_widths_are_metres_on_the_ground(width):
    shares, valid, guide = make(30, 31)
    found = GuidedFilter.of((1.0, 1.0), width).apply(shares, None, guide, (0, 0))
    assert np.abs(found.numpy() - filter_slowly(shares, valid, guide, width=width)).max() < 2e-5
    finer = GuidedFilter.of((0.5, 0.5), width / 2).apply(shares, None, guide, (0, 0))
    assert torch.equal(found, finer)


def test_pixels_that_are_not_square_have_a_square_on_the_ground():
    wide = GuidedFilter.of((2.0, 1.0), 12.0)
    assert sum(wide.rows) * 2 == pytest.approx(12)
    assert sum(wide.columns) * 4 == pytest.approx(12)


@pytest.mark.parametrize(("pixel", "width"), [((10.0, 10.0), 9.0), ((1.0, 1.0), 2.9), ((1.0, 4.0), 9.0)])
def test_a_square_of_less_than_three_pixels_smooths_nothing(pixel, width):
    assert GuidedFilter.of(pixel, width) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 70), st.integers(12, 70), st.integers(5, 40), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_windows_give_what_the_whole_gives(rows, columns, size, holes, seed):
    shares, valid, guide = make(rows, columns, holes=holes, seed=seed, bands=4, classes=5)
    given_valid = valid if holes else None
    whole = PIXEL.apply(shares, given_valid, guide, (0, 0))
    halo = PIXEL.halo
    for top in range(0, rows, size):
        for left in range(0, columns, size):
            first = (max(top - halo, 0), max(left - halo, 0))
            window = (..., slice(first[0], top + size + halo), slice(first[1], left + size + halo))
            part = PIXEL.apply(shares[window], None if given_valid is None else valid[window], guide[window], first)
            inner = part[:, top - first[0] :, left - first[1] :][:, :size, :size]
            there = valid[top : top + size, left : left + size]
            differences = (inner - whole[:, top : top + size, left : left + size]).abs()[:, there]
            assert differences.numel() == 0 or differences.max() < 1e-5


def test_results_are_probabilities():
    shares, valid, guide = make(64, 60, holes=0.5, classes=6, bands=4)
    found = PIXEL.apply(shares, valid, guide * 10, (0, 0))
    assert torch.allclose(found.sum(0), torch.ones(64, 60), atol=1e-6)
    assert found.min() >= 0


def test_what_is_not_valid_has_no_part():
    shares, valid, guide = make(40, 40, holes=0.3)
    first = PIXEL.apply(shares, valid, guide, (0, 0))
    other_shares = torch.where(valid, shares, shares.flip(0))
    other_guide = torch.where(valid, guide, torch.tensor(50.0))
    second = PIXEL.apply(other_shares, valid, other_guide, (0, 0))
    assert torch.allclose(first[:, valid], second[:, valid], atol=1e-5)


def test_noise_goes_and_the_outline_stays():
    """Two fields: shares that are 0.7 and 0.3 with noise become right all over, to the last pixel of the border."""
    rng = np.random.default_rng(1)
    right = np.zeros((60, 60))
    right[:, 31:] = 1
    noisy = np.clip(0.3 + 0.4 * right + rng.normal(0, 0.25, right.shape), 0, 1)
    shares = torch.from_numpy(np.stack([1 - noisy, noisy])).float()
    guide = torch.from_numpy(np.stack([2 * right - 1, right])).float() + 0.1 * torch.randn(2, 60, 60)
    assert ((shares.argmax(0).numpy() != right).mean()) > 0.15
    assert ((PIXEL.apply(shares, None, guide, (0, 0)).argmax(0).numpy() != right).mean()) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same():
    shares, valid, guide = make(130, 141, holes=0.2, classes=5, bands=4)
    found = PIXEL.apply(shares.cuda(), valid.cuda(), guide.cuda(), (0, 0)).cpu()
    assert torch.allclose(found[:, valid], PIXEL.apply(shares, valid, guide, (0, 0))[:, valid], atol=1e-5)


def test_a_class_is_given_up_below_half_of_its_prior():
    named = np.array([0.5, 0.049, 0.05, 0.0, 0.401])
    prior = np.array([0.4, 0.1, 0.1, 0.0, 0.4])
    assert find_given_up(named, prior) == [1]


def test_a_class_that_was_given_up_stays_where_the_prior_is_sure():
    prior = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.49, 0.51, 0.0], [0.0, 1.0, 0.0]]).T[None, :, None]
    found = leave_out(torch.log(prior), [1]).exp()[0, :, 0].T
    expected = [[0.2, 0.0, 0.3], [0.1, 0.6, 0.3], [0.49, 0.51, 0.0], [0.0, 1.0, 0.0]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_where_nothing_would_be_left_the_prior_is_as_it_was():
    log_prior = torch.tensor([math.log(0.5), math.log(0.5), -math.inf])[None, :, None, None]
    assert torch.equal(leave_out(log_prior, [0, 1]), log_prior)
