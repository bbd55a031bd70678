"""Labels on an epitome, compared with explicit loops and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landprior.errors import InputError, PriorError
from landprior.implicit.epitomes import build_epitome
from landprior.superres.embedding import embed_classes, embed_codes, invert_matrix, resolve_labels


@torch.no_grad()
def by_loop(epitome, image, codes, count, *, valid=None):
    """Return n(s, c) from its definition."""
    w, size = epitome.patch, epitome.size
    n = np.zeros((epitome.epitomes, size, size, count))
    for r in range(image.shape[1] - w + 1):
        for c in range(image.shape[2] - w + 1):
            if valid is not None and not valid[r : r + w, c : c + w].all():
                continue
            p = epitome(image[None, :, r : r + w, c : c + w]).softmax(1).reshape(epitome.epitomes, size, size).numpy()
            for i in range(w):
                for j in range(w):
                    if codes[r + i, c + j] >= 0:
                        n[..., int(codes[r + i, c + j])] += np.roll(p, (i, j), (1, 2))
    return n.reshape(-1, count)


def test_counts_equal_those_of_an_explicit_loop():
    epitome = build_epitome(2, seed=1, size=5, patch=3, epitomes=2).double()
    torch.manual_seed(2)
    image, codes = torch.randn(2, 7, 8, dtype=torch.float64), torch.randint(-1, 3, (7, 8))
    valid = torch.ones(7, 8, dtype=torch.bool)
    valid[1, 2] = False
    found = embed_codes(epitome, [image], [codes], 3, valid=[valid])
    expected = by_loop(epitome, image, codes, 3, valid=valid)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    both = embed_codes(epitome, [image, image], [codes, codes], 3, valid=[valid, valid])
    np.testing.assert_allclose(both.numpy(), 2 * expected, atol=2e-4)


def test_classes_are_shares_and_the_mean_at_unmatched_positions():
    epitome = build_epitome(1, seed=1, size=5, patch=1)
    with torch.no_grad():
        epitome.mean.copy_(torch.arange(25.0).reshape(1, 1, 5, 5))
        epitome.log_variance.fill_(-20)
    epitome.floor.fill_(1e-4)
    image = epitome.mean.detach()[0, :, :2, :].clone()  # only the first two rows are matched
    labels = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = embed_classes(epitome, [image], [labels], 2).reshape(5, 5, 2)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(found[3, 3], torch.tensor([0.2, 0.8], dtype=torch.float64))
    with pytest.raises(InputError, match="cannot be labelled"):
        embed_classes(epitome, [image], [labels - 5], 2)


def test_strides_thin_the_patches():
    epitome = build_epitome(1, seed=1, size=5, patch=3)
    image, codes = torch.randn(1, 9, 9), torch.zeros(9, 9, dtype=torch.int64)
    assert embed_codes(epitome, [image], [codes], 1).sum().item() == pytest.approx(49 * 9, rel=1e-4)
    assert embed_codes(epitome, [image], [codes], 1, stride=3).sum().item() == pytest.approx(9 * 9, rel=1e-4)


def test_bayes():
    matrix, shares = np.array([[0.8, 0.2], [0.1, 0.9]]), np.array([0.25, 0.75])
    np.testing.assert_allclose(
        invert_matrix(matrix, shares), [[0.2 / 0.275, 0.05 / 0.725], [0.075 / 0.275, 0.675 / 0.725]]
    )
    with pytest.raises(PriorError, match="row 1"):
        invert_matrix(np.array([[1, 0], [0.1, 0.2]]), shares)


@st.composite
def problems(draw):
    codes, classes, positions = draw(st.integers(1, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    counts = rng.gamma(0.3, size=(positions, codes)) * (rng.random((positions, codes)) < 0.7)
    matrix = rng.dirichlet(np.full(classes, draw(st.sampled_from([0.1, 1.0, 5.0]))), size=codes)
    counts[0, 0] += 1e-3
    return counts, matrix


@given(problems())
def test_em_never_lowers_its_objective_and_returns_distributions(problem):
    counts, matrix = problem
    found = resolve_labels(counts, matrix, iterations=30, tolerance=0, chunk=2)
    steps = np.diff(found.objective)
    assert (steps >= -1e-9 * max(1.0, abs(found.objective[0]))).all()
    assert (found.labels >= 0).all()
    np.testing.assert_allclose(found.labels.sum(1), 1)
    likelihood = invert_matrix(matrix, counts.sum(0) / counts.sum())
    own = found.labels[counts.sum(1) > 0]
    n = counts[counts.sum(1) > 0]
    value = (n * np.log(np.where(n > 0, own @ likelihood.T, 1).clip(1e-300))).sum()
    assert value == pytest.approx(found.objective[-1], rel=1e-6, abs=1e-6)


def test_em_finds_the_optimum_and_stops():
    # with codes that determine the class, p(l|s) equals the shares of the codes
    counts = np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    found = resolve_labels(counts, np.eye(2))
    np.testing.assert_allclose(found.labels, [[0.75, 0.25], [0, 1], [0.5, 0.5]], atol=1e-6)
    assert len(found.objective) < 10
    # three of the first code: its likelihood 0.8 of class 0 beats 0.2, so the optimum is a corner
    mixed = resolve_labels(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.2], [0.2, 0.8]]), iterations=500)
    np.testing.assert_allclose(mixed.labels, np.eye(2), atol=1e-4)


def test_wrong_shapes_and_empty_counts_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        resolve_labels(np.ones((3, 2)), np.eye(3))
    with pytest.raises(InputError, match="no position"):
        resolve_labels(np.zeros((3, 2)), np.eye(2))
