"""The running class marginal: its value, its gradient, and training with it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landprior.errors import TrainingInterruptedError
from landprior.implicit.losses import IMPLICIT_LOSSES, LOSSES
from landprior.implicit.posterior import RunningMarginal, log_class_marginal
from landprior.implicit.settings import MEMORY, TrainingSettings
from landprior.implicit.training import fit

from .test_training import feed, make_batch, make_network, weights

SHAPES = [(6, 3), (2, 4, 5, 6)]


def draw(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(shape, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMPLICIT_LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_without_memory_it_equals_the_marginal_of_the_batch(shape, name, masked):
    """Value and gradient of every loss, regardless of earlier batches."""
    mask = torch.rand((shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    marginal = RunningMarginal(1.0)
    marginal(draw(shape, 5))
    log_p = draw(shape, 9)
    found, expected = [], []
    for use in (True, False):
        logits = draw(shape, 2).requires_grad_()
        log_q = torch.log_softmax(logits, 1)
        options = {"log_marginal": marginal(log_q, mask)} if use else {}
        loss = IMPLICIT_LOSSES[name](log_q, log_p, mask, **options)
        (gradient,) = torch.autograd.grad(loss, logits)
        (found if use else expected).extend([loss.detach(), gradient])
    torch.testing.assert_close(found, expected)


@given(st.floats(1, 50), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_value_is_the_decayed_mean(memory, sizes, seed):
    """Compared with an explicit sum over all items seen, each with its remaining weight."""
    marginal = RunningMarginal(memory)
    items, left = [], []
    for number, size in enumerate(sizes):
        log_q = draw((size, 3), seed * 100 + number)
        found = marginal(log_q)
        keep = max(0.0, 1 - size / memory)
        left = [weight * keep for weight in left] + [1.0] * size
        items += list(log_q.exp())
        expected = sum(w * q for w, q in zip(left, items, strict=True)) / sum(left)
        torch.testing.assert_close(found.exp(), expected)


def test_the_first_batch_is_exact_and_so_is_every_full_batch():
    log_q = draw((8, 3), 1)
    torch.testing.assert_close(RunningMarginal(1000.0)(log_q), log_class_marginal(log_q))
    marginal = RunningMarginal(8.0)
    marginal(draw((8, 3), 2))
    torch.testing.assert_close(marginal(log_q), log_class_marginal(log_q))


def test_it_is_unbiased_on_a_stream():
    """The mean of many runs, at every step, is the mean of the stream."""
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    found = torch.zeros((6, 3), dtype=torch.float64)
    runs = 3000
    for _ in range(runs):
        marginal = RunningMarginal(20.0)
        for step in range(6):
            drawn = torch.multinomial(share, 4, replacement=True, generator=generator)
            q = torch.nn.functional.one_hot(drawn, 3).double().clamp_min(1e-9)
            found[step] += marginal(q.log()).exp() / runs
    error = math.sqrt(0.25 / 4 / runs)
    torch.testing.assert_close(found, share.expand(6, 3), atol=5 * error, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_the_batch_at_full_weight(shape):
    """d log m(l) = d qbar(l) / m(l), as derived in docs/concepts/small-batches.md."""
    marginal = RunningMarginal(500.0)
    marginal(draw(shape, 3))
    logits = draw(shape, 4).requires_grad_()
    log_m = marginal(torch.log_softmax(logits, 1))
    mean = log_m.detach().exp()
    weights_ = torch.tensor([1.0, -2.0, 0.5, 3.0][: shape[1]], dtype=torch.float64)
    (found,) = torch.autograd.grad((weights_ * log_m).sum(), logits)
    qbar = log_class_marginal(torch.log_softmax(logits, 1)).exp()
    (expected,) = torch.autograd.grad((weights_ / mean * qbar).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_a_small_batch_keeps_its_gradient():
    """With one item and its own marginal, r is the prior for every q; with a running marginal it is not."""
    log_q, log_p = draw((1, 3), 7), draw((1, 3), 8)
    alone = LOSSES["rq"](log_q, log_p)
    torch.testing.assert_close(alone, (log_p.exp() * (log_p - log_q)).sum())
    marginal = RunningMarginal(1e4)
    marginal(draw((500, 3), 9))
    together = IMPLICIT_LOSSES["rq"](log_q, log_p, log_marginal=marginal(log_q))
    assert abs(float(together - alone)) > 1e-3


@pytest.mark.parametrize(("name", "tolerance"), [("qr", 1e-6), ("rq", 0.15)])
def test_gradients_summed_over_several_batches_equal_those_of_one_large_batch(name, tolerance):
    # after many items; in qr items interact only through the marginal, in rq each also weights its change
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1200, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    log_prior = torch.log_softmax(torch.randn(1200, 3, dtype=torch.float64, generator=generator), 1)

    def differentiate(parts):
        marginal = RunningMarginal(1e12, classes=3)
        marginal.total = 1e9 * torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        marginal.weight = torch.tensor(1e9, dtype=torch.float64)
        log_q = torch.log_softmax(logits, 1)
        pairs = zip(log_q.chunk(parts), log_prior.chunk(parts), strict=True)
        losses = [IMPLICIT_LOSSES[name](q, prior, log_marginal=marginal(q)) for q, prior in pairs]
        return torch.autograd.grad(torch.stack(losses).mean(), logits)[0]

    whole = differentiate(1)
    assert (differentiate(4) - whole).norm() < tolerance * whole.norm()


def test_a_memory_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive number of items"):
        RunningMarginal(0)


# -- in training -------------------------------------------------------------------------------------


def few(step, count=8):
    return make_batch(step, count=count)[0]


def loop(**changes):
    changes = {"steps": 400, "warmup": "none", "epoch_steps": 50, "learning_rate": 1e-2} | changes
    return TrainingSettings(**changes)


def accuracy(network):
    batch, truth = make_batch(10_000, count=4000)
    return float((network(batch.inputs).argmax(1) == truth).float().mean())


@pytest.mark.filterwarnings("ignore::landprior.errors.CollapseWarning")
def test_small_batches_learn_with_a_running_marginal():
    """With RQ, batches of 2 items need the running marginal to learn as well as large batches."""
    found = {}
    for marginal in ("batch", "running"):
        network = make_network()
        fit(network, lambda step: few(step, 2), loop(loss="rq", marginal=marginal, memory=512))
        found[marginal] = accuracy(network)
    assert found["running"] > 0.95
    assert found["running"] > found["batch"] + 0.02


def test_large_batches_give_the_same_with_both_marginals():
    networks = make_network(), make_network()
    for network, marginal in zip(networks, ("batch", "running"), strict=True):
        fit(network, feed, loop(steps=30, marginal=marginal, memory=256))
    for name, value in weights(networks[0]).items():
        torch.testing.assert_close(weights(networks[1])[name], value, atol=1e-5, rtol=1e-4)
    assert MEMORY > 256


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    choice = loop(steps=40, epoch_steps=10, loss="rq", marginal="running", memory=100)
    whole, other = make_network(), make_network()
    fit(whole, few, choice)

    def cut(step):
        if step == 25:
            raise KeyboardInterrupt
        return few(step)

    with pytest.raises(TrainingInterruptedError):
        fit(other, cut, choice, checkpoint=tmp_path / "state")
    other = make_network()
    fit(other, few, choice, checkpoint=tmp_path / "state")
    for name, value in weights(whole).items():
        assert torch.equal(weights(other)[name], value), name
