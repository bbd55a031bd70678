"""The losses, compared with closed forms, reference implementations and identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landprior.implicit.losses import LOSSES, ce, nll_union, qr, qr_kl, rq
from landprior.implicit.posterior import log_class_marginal, log_evidence, log_joint, log_posterior

SHAPES = [(7, 3), (2, 4, 5, 6)]


def probabilities(shape, seed, *, concentration=1.0):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-6)
    raw = (-torch.log(raw)) ** (1 / concentration)
    return raw / raw.sum(dim=1, keepdim=True)


def logs(shape, seed):
    return probabilities(shape, seed).log(), probabilities(shape, seed + 1000).log()


# -- closed forms ------------------------------------------------------------------------------------

Q = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
P = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)


def test_posterior_by_hand():
    # class sums 1.2 and 0.8; r proportional to p q / sum
    first = [0.5 * 0.8 / 1.2, 0.5 * 0.2 / 0.8]
    second = [0.9 * 0.4 / 1.2, 0.1 * 0.6 / 0.8]
    expected = torch.tensor([[v / sum(row) for v in row] for row in (first, second)])
    torch.testing.assert_close(log_posterior(Q.log(), P.log()).exp(), expected.double())
    evidence = torch.tensor([sum(first), sum(second)]).double().log()
    torch.testing.assert_close(log_evidence(Q.log(), P.log()), evidence)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_joint_is_the_posterior_up_to_a_constant(shape):
    log_q, log_p = logs(shape, 5)
    difference = log_joint(log_q, log_p) - log_posterior(log_q, log_p)
    torch.testing.assert_close(difference, difference[:, :1].expand(shape))
    marginal = torch.rand(shape[1], dtype=torch.float64).add(0.1).log()
    joint = log_joint(log_q, log_p, log_marginal=marginal)
    torch.testing.assert_close(joint, log_q + log_p - marginal.reshape(-1, *[1] * (len(shape) - 2)))


def test_free_energy_by_hand():
    bar = [0.6, 0.4]
    expected = sum(b * math.log(b) for b in bar) - 0.5 * (
        0.8 * math.log(0.5) + 0.2 * math.log(0.5) + 0.4 * math.log(0.9) + 0.6 * math.log(0.1)
    )
    assert qr(Q.log(), P.log()).item() == pytest.approx(expected, abs=1e-12)


def test_baselines_by_hand():
    expected = {
        "ce": -0.5 * (0.5 * math.log(0.8) + 0.5 * math.log(0.2) + 0.9 * math.log(0.4) + 0.1 * math.log(0.6)),
        "ce-argmax": -0.5 * (math.log(0.8) + math.log(0.4)),
        "squared-error": 0.5 * (2 * 0.3**2 + 2 * 0.5**2),
        "nll-union": -0.5 * (math.log(0.5 * 0.8 + 0.5 * 0.2) + math.log(0.9 * 0.4 + 0.1 * 0.6)),
    }
    for name, value in expected.items():
        assert LOSSES[name](Q.log(), P.log()).item() == pytest.approx(value, abs=1e-12), name


def test_kl_forms_by_hand():
    r = log_posterior(Q.log(), P.log()).exp()
    forward = (Q * (Q / r).log()).sum(1).mean()
    backward = (r * (r / Q).log()).sum(1).mean()
    assert qr_kl(Q.log(), P.log()).item() == pytest.approx(forward.item(), abs=1e-12)
    assert rq(Q.log(), P.log()).item() == pytest.approx(backward.item(), abs=1e-12)


# -- references --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_parity_with_torchgeo(seed):
    from torchgeo.losses import QRLoss, RQLoss

    log_q, log_p = logs((3, 5, 8, 9), seed)
    assert qr(log_q, log_p).item() == pytest.approx(QRLoss()(log_q.exp(), log_p.exp()).item(), abs=1e-6)
    assert rq(log_q, log_p).item() == pytest.approx(RQLoss()(log_q.exp(), log_p.exp()).item(), abs=1e-6)


# -- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_the_values(name, shape, masked):
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    log_p = probabilities(shape, 4).log()
    mask = torch.rand((shape[0], *shape[2:]), generator=torch.Generator().manual_seed(5)) < 0.6 if masked else None
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](torch.log_softmax(z, 1), log_p, mask), (logits,), atol=1e-6)


def test_the_gradient_flows_through_the_posterior():
    """With r held fixed, the gradient of RQ would differ."""
    logits = torch.randn((6, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    log_p = probabilities((6, 3), 2).log()
    through = torch.autograd.grad(rq(torch.log_softmax(logits, 1), log_p), logits)[0]
    log_q = torch.log_softmax(logits, 1)
    r = log_posterior(log_q, log_p).detach().exp()
    around = torch.autograd.grad((r * (r.log() - log_q)).sum(1).mean(), logits)[0]
    assert (through - around).abs().max() > 1e-3


# -- identities --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES), masked=st.booleans())
def test_free_energy_is_kl_minus_evidence(seed, shape, masked):
    log_q, log_p = logs(shape, seed)
    mask = probabilities(shape, seed + 7)[:, 0] < 0.4 if masked else None
    if masked and not mask.any():
        mask[(0,) * mask.ndim] = True
    count = mask.sum() if masked else log_q.numel() / shape[1]
    evidence = log_evidence(log_q, log_p, mask)
    mean_evidence = evidence[mask].mean() if masked else evidence.mean()
    # qbar is a mean, but the evidence has a sum: the value shifts by log N
    expected = qr_kl(log_q, log_p, mask) - mean_evidence - math.log(count)
    assert qr(log_q, log_p, mask).item() == pytest.approx(expected.item(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(LOSSES)))
def test_the_order_of_items_does_not_matter(seed, name):
    log_q, log_p = logs((2, 4, 5, 6), seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))

    def shuffled(values):
        return values.permute(0, 2, 3, 1).reshape(60, 4)[order]

    expected = LOSSES[name](log_q, log_p).item()
    assert LOSSES[name](shuffled(log_q), shuffled(log_p)).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(LOSSES)))
def test_a_mask_is_equivalent_to_leaving_items_out(seed, name):
    log_q, log_p = logs((9, 4), seed)
    mask = torch.rand(9, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[0] = True
    spoiled = torch.where(mask[:, None], log_q, torch.log(torch.tensor([0.97, 0.01, 0.01, 0.01]).double()))
    kept = log_q.requires_grad_()
    expected = LOSSES[name](kept[mask], log_p[mask])
    wanted = torch.autograd.grad(expected, kept)[0][mask]
    spoiled.requires_grad_()
    found = LOSSES[name](spoiled, log_p, mask)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    gradient = torch.autograd.grad(found, spoiled)[0]
    torch.testing.assert_close(gradient[mask], wanted)
    assert (gradient[~mask] == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rq_is_cross_entropy_for_one_hot_priors(seed):
    log_q, _ = logs((8, 4), seed)
    labels = torch.randint(4, (8,), generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(labels, 4).double().log()
    expected = torch.nn.functional.nll_loss(log_q, labels).item()
    for loss in (rq, ce, nll_union):
        assert loss(log_q, one_hot).item() == pytest.approx(expected, abs=1e-9)


def uniform_marginal(seed, count=4):
    """q with a uniform class marginal: each item with all its cyclic shifts."""
    q = probabilities((5, count), seed)
    return torch.cat([q.roll(k, dims=1) for k in range(count)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rq_is_nll_minus_log_support_when_the_marginal_is_uniform(seed):
    q = uniform_marginal(seed)
    generator = torch.Generator().manual_seed(seed)
    support = torch.rand(q.shape, generator=generator) < 0.5
    support[torch.arange(len(q)), torch.randint(4, (len(q),), generator=generator)] = True
    size = support.sum(1, keepdim=True)
    prior = support.double() / size
    expected = nll_union(q.log(), prior.log()) - size.double().log().mean()
    assert rq(q.log(), prior.log()).item() == pytest.approx(expected.item(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rq_is_nll_plus_expected_log_prior_when_the_marginal_is_uniform(seed):
    q = uniform_marginal(seed)
    log_p = probabilities(q.shape, seed + 1).log()
    r = log_posterior(q.log(), log_p).exp()
    expected = nll_union(q.log(), log_p) + (r * log_p).sum(1).mean()
    assert rq(q.log(), log_p).item() == pytest.approx(expected.item(), abs=1e-9)


# -- zeros -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_hard_zeros_give_finite_values_and_gradients(name):
    logits = torch.randn((6, 3), generator=torch.Generator().manual_seed(0), requires_grad=True)
    prior = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0.2, 0.3, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    loss = LOSSES[name](torch.log_softmax(logits, 1), prior.log())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_an_excluded_class_stays_excluded():
    log_q, _ = logs((20, 3), 0)
    prior = torch.tensor([[0.0, 0.4, 0.6]] * 20).double()
    r = log_posterior(log_q, prior.log()).exp()
    assert (r[:, 0] == 0).all()
    torch.testing.assert_close(r.sum(1), torch.ones(20).double())


def test_a_class_that_q_has_given_up_stays_finite():
    log_q = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    log_p = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    for name in LOSSES:
        assert torch.isfinite(LOSSES[name](log_q, log_p)), name


def test_given_class_sums_replace_those_of_the_batch():
    log_q, log_p = logs((8, 4), 3)
    sums = log_class_marginal(log_q) + 2.5  # any constant factor
    torch.testing.assert_close(log_posterior(log_q, log_p, log_marginal=sums), log_posterior(log_q, log_p))


def test_a_misshapen_mask_is_refused():
    log_q, log_p = logs((2, 4, 5, 6), 0)
    with pytest.raises(ValueError, match="without axis 1"):
        qr(log_q, log_p, torch.ones(2, 5, dtype=torch.bool))


def test_qr_separates_classes_that_cross_entropy_averages():
    """Two kinds of items, each with two priors that disagree: QR decides, CE averages."""
    kinds = torch.tensor([0, 0, 1, 1] * 8)
    prior = torch.tensor([[0.6, 0.4], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]]).repeat(8, 1)
    found = {}
    for name in ("qr", "ce"):
        torch.manual_seed(0)
        table = (0.1 * torch.randn(2, 2)).requires_grad_()
        optimiser = torch.optim.Adam([table], lr=0.1)
        for _ in range(200):
            loss = LOSSES[name](torch.log_softmax(table[kinds], 1), prior.log())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found[name] = torch.softmax(table, 1)[0].max().item()
    assert found["qr"] > 0.99
    assert found["ce"] == pytest.approx(0.525, abs=0.01)
