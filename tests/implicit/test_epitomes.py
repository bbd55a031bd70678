"""Epitomes, compared with explicit loops in float64."""

import math

import pytest
import torch

from landprior.errors import InputError
from landprior.implicit.epitomes import Epitome, EpitomeClassifier, build_epitome, build_epitome_classifier


def make(*, bands=2, size=5, patch=3, epitomes=2, dtype=torch.float64, offset=0.0):
    torch.manual_seed(3)
    epitome = Epitome(bands, size=size, patch=patch, epitomes=epitomes, variance_floor=0.05).to(dtype)
    with torch.no_grad():
        epitome.mean.normal_().add_(offset)
        epitome.log_variance.uniform_(-1.5, 0.5)
        epitome.log_prior.normal_()
    return epitome


def by_loop(epitome, patches):
    """Return log p(x, s) from its definition, position by position, in float64."""
    mean, variance = epitome.mean.double(), epitome.variance.double()
    prior = torch.log_softmax(epitome.log_prior.double().flatten(), 0)
    out = torch.empty(len(patches), epitome.positions, dtype=torch.float64)
    side, w = epitome.size, epitome.patch
    for n, x in enumerate(patches.double()):
        for k in range(epitome.epitomes):
            for row in range(side):
                for column in range(side):
                    total = prior[(k * side + row) * side + column].clone()
                    for b in range(epitome.bands):
                        for i in range(w):
                            for j in range(w):
                                at = (k, b, (row + i) % side, (column + j) % side)
                                v = variance[at]
                                total += -0.5 * (math.log(2 * math.pi) + v.log() + (x[b, i, j] - mean[at]) ** 2 / v)
                    out[n, (k * side + row) * side + column] = total
    return out


@torch.no_grad()
def test_the_joint_density_equals_that_of_an_explicit_loop_with_wrap_around():
    epitome = make()
    patches = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(epitome(patches), by_loop(epitome, patches), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_an_offset_of_data_and_means_keeps_single_precision():
    epitome = make(dtype=torch.float32, offset=500.0)
    patches = torch.randn(3, 2, 3, 3) + 500
    torch.testing.assert_close(epitome(patches).double(), by_loop(epitome, patches), rtol=1e-4, atol=2e-3)


@torch.no_grad()
def test_it_is_a_density():
    epitome = Epitome(1, size=3, patch=1, epitomes=2).double()
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    mass = epitome(x).exp().sum(1).sum() * (24 / 4000)
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_gradients():
    epitome = make(bands=1, size=3, epitomes=1)
    patches = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def density(patches, mean, log_variance, log_prior):
        parameters = {"mean": mean, "log_variance": log_variance, "log_prior": log_prior}
        return torch.func.functional_call(epitome, parameters, (patches,))

    inputs = [value.detach().clone().requires_grad_() for value in epitome.parameters()]
    assert torch.autograd.gradcheck(density, (patches, *inputs))


def test_marks_wrap_around_and_reset():
    epitome = Epitome(1, size=5, patch=3)
    epitome.mark(torch.tensor([0, 0]), window=3, share=0.95)
    used = epitome.used[0]
    assert used[0, 0] == used[4, 4] == used[0, 4] == used[1, 1] == 2
    assert int((used > 0).sum()) == 9
    assert epitome.visits[0, 0, 0] == 2
    assert int(epitome.visits.sum()) == 2
    epitome.mark(torch.arange(25), window=1, share=0.95)
    assert int(epitome.used.sum()) == 0
    assert int(epitome.resets) == 1
    assert int(epitome.visits.sum()) == 27


@torch.no_grad()
def test_the_classifier_is_the_posterior_mean_of_labels():
    epitome = make(bands=2, size=6, patch=3)
    network = EpitomeClassifier(epitome, 3, smoothing=1e-3).double()
    labels = torch.rand(epitome.positions, 3, dtype=torch.float64)
    labels /= labels.sum(1, keepdim=True)
    network.embed(labels)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    found = network(x).exp()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    table = labels.reshape(2, 6, 6, 3)
    for row in range(4):
        for column in range(5):
            p = by_loop(epitome, padded[:, :, row : row + 3, column : column + 3]).softmax(1).reshape(2, 6, 6)
            q = torch.zeros(3, dtype=torch.float64)
            for k in range(2):
                for r in range(6):
                    for c in range(6):
                        q += p[k, r, c] * table[k, (r + 1) % 6, (c + 1) % 6]
            expected = (q + 1e-3) / (1 + 3e-3)
            torch.testing.assert_close(found[0, :, row, column], expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_chunks_do_not_change_the_result(monkeypatch):
    network = EpitomeClassifier(build_epitome(2, seed=1, size=9, patch=3), 3, smoothing=1e-4)
    network.embed(torch.rand(81, 3).softmax(1))
    x = torch.randn(1, 2, 13, 11)
    whole = network(x)
    monkeypatch.setattr("landprior.implicit.epitomes.CHUNK_VALUES", 900)
    torch.testing.assert_close(network(x), whole, rtol=1e-5, atol=1e-6)
    assert whole.exp().sum(1).sub(1).abs().max() < 1e-5


def test_same_seed_same_epitome_and_the_state_is_complete():
    one, two = (build_epitome(2, seed=4, size=7, patch=3) for _ in range(2))
    assert torch.equal(one.mean, two.mean)
    network = build_epitome_classifier(2, 4, size=7, patch=3, smoothing=0.1)
    other = build_epitome_classifier(2, 4, size=7, patch=3, smoothing=0.1)
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(network(x), other(x))
    assert network.halo == 1


@pytest.mark.parametrize("wrong", [{"patch": 4}, {"patch": 9, "size": 7}, {"epitomes": 0}, {"variance": 1e-3}])
def test_impossible_epitomes_are_refused(wrong):
    with pytest.raises(InputError):
        Epitome(3, **wrong)


def test_patches_and_labels_of_another_shape_are_refused():
    epitome = build_epitome(3, seed=0, size=7, patch=3)
    with pytest.raises(InputError, match="3 bands"):
        epitome(torch.zeros(1, 4, 3, 3))
    with pytest.raises(InputError, match="49 positions"):
        EpitomeClassifier(epitome, 2).embed(torch.zeros(3, 2))
