"""Losses and posteriors with masked items, hard zeros and half-precision floats, and the inputs that they refuse."""

from __future__ import annotations

import pytest
import torch

from landprior.domains.ranks.posterior import log_pair_joint, log_pair_posterior, pair_marginals, pair_priors, rank_loss
from landprior.errors import InputError, ProbabilityError
from landprior.implicit import checks
from landprior.implicit.losses import LOSSES, em
from landprior.implicit.networks import log_prior as take_log
from landprior.implicit.posterior import (
    RunningMarginal,
    log_class_marginal,
    log_evidence,
    log_joint,
    log_posterior,
)
from landprior.superres.statistics import compare_statistics, count_blocks

SHAPES = [(7, 3), (2, 4, 5, 6)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALL = {**LOSSES, "em": em}
FUNCTIONS = {**ALL, "posterior": log_posterior, "joint": log_joint, "evidence": log_evidence}


def draw(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.softmax(torch.randn(shape, generator=generator).double(), 1)


def draw_mask(shape, seed):
    mask = torch.rand((shape[0], *shape[2:]), generator=torch.Generator().manual_seed(seed)) < 0.5
    mask.view(-1)[:2] = torch.tensor([True, False])
    return mask


def spoil(values, mask, what):
    return torch.where(mask.unsqueeze(1), values, torch.tensor(what, dtype=values.dtype))


# -- masked items ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_masked_items_change_neither_value_nor_gradient(name, shape, dtype):
    logits, prior = draw(shape, 3, dtype)
    mask = draw_mask(shape, 5)
    log_q, log_p = torch.log_softmax(logits, 1), prior.to(dtype).log()
    expected = ALL[name](log_q, log_p, mask)
    gradient = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    assert torch.isfinite(gradient).all()
    assert gradient.movedim(1, -1)[mask].abs().max() > 0
    assert (gradient.movedim(1, -1)[~mask] == 0).all()
    for what in (float("nan"), float("inf"), -float("inf")):
        bad_q, bad_p = spoil(log_q, mask, what), spoil(log_p, mask, what)
        for given in ((bad_q, log_p), (log_q, bad_p), (bad_q, bad_p)):
            found = ALL[name](*given, mask)
            assert found.item() == expected.item()
            again = torch.autograd.grad(found, logits, retain_graph=True)[0]
            torch.testing.assert_close(again, gradient, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_summed_in_full_precision(name, dtype):
    """Sums over 100,000 items exceed the range of half-precision floats."""
    logits, prior = draw((100_000, 3), 1, dtype)
    mask = draw_mask((100_000, 3), 2)
    expected = ALL[name](torch.log_softmax(logits.double(), 1), prior.log(), mask)
    found = ALL[name](torch.log_softmax(logits, 1), prior.log().to(dtype), mask)
    assert found.item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.parametrize("name", ALL)
def test_a_fully_masked_batch_has_zero_loss_and_zero_gradient(name):
    logits, prior = draw((5, 3), 1)
    loss = ALL[name](torch.log_softmax(logits, 1), prior.log(), torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_q_and_prior_have_finite_gradients(name, dtype):
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [1.0, 0.0, -torch.inf]], dtype=dtype, requires_grad=True)
    prior = torch.tensor(
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype
    )  # the last item allows only the class that q rules out
    log_q = torch.log_softmax(logits, 1)
    log_q.retain_grad()
    loss = ALL[name](log_q, prior.log())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_q.grad).all()


def test_a_running_marginal_is_not_affected_by_masked_items():
    logits, _ = draw((9, 4), 1)
    mask = draw_mask((9, 4), 2)
    log_q = torch.log_softmax(logits, 1)
    found = RunningMarginal(100.0)(spoil(log_q, mask, float("nan")), mask)
    torch.testing.assert_close(found, log_class_marginal(log_q[mask]))
    gradient = torch.autograd.grad(found.sum(), logits)[0]
    assert torch.isfinite(gradient).all()


def test_a_class_without_items_gives_the_marginal_a_finite_gradient():
    log_q = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]], requires_grad=True)
    marginal = log_class_marginal(log_q)
    assert marginal.tolist() == [0, -torch.inf]
    assert torch.autograd.grad(marginal.exp().sum(), log_q)[0].tolist() == [[0.5, 0], [0.5, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prior_without_mass_does_not_become_nan(dtype):
    prior = torch.tensor([[0.0, 0.25], [0.0, 0.75]], dtype=dtype)[None]
    found = take_log(prior.clone(), smoothing=0)
    assert found[0, :, 0].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(found[0, :, 1].exp(), torch.tensor([0.25, 0.75], dtype=dtype))


# -- refused inputs ----------------------------------------------------------------------------------


def good(shape=(6, 4, 5, 3)):
    logits, prior = draw(shape, 1, torch.float32)
    return torch.log_softmax(logits, 1).detach(), prior.float().log()


LOG_Q, LOG_P = good()
LAST = [values.movedim(1, -1).contiguous() for values in (LOG_Q, LOG_P)]
ONE_NAN = LOG_P.clone()
ONE_NAN[3, 2, 1, 1] = float("nan")
EMPTY_ITEM = LOG_P.clone()
EMPTY_ITEM[3, :, 1, 1] = -torch.inf
UNNORMALISED_ITEM = LOG_P.clone()
UNNORMALISED_ITEM[3, :, 1, 1] -= 1

SLIPS = {
    "logits": (3 * LOG_Q + 2, LOG_P, "log_q .* looks like logits .*log_softmax"),
    "negative logits": (LOG_Q - 5, LOG_P, "log_q does not sum to one .*log_softmax"),
    "softmax": (LOG_Q.exp(), LOG_P, r"log_q .* looks like probabilities; give their logs \(torch.log\)"),
    "prior not in logs": (LOG_Q, LOG_P.exp(), r"log_prior .* looks like probabilities.*torch\.log\(prior\)"),
    "one-hot prior": (LOG_Q, torch.softmax(1e9 * LOG_P, 1), "log_prior .* looks like probabilities"),
    "255 p": (LOG_Q, 255 * LOG_P.exp(), "log_prior .* counts or scaled probabilities"),
    "log of counts": (LOG_Q, LOG_P - 3, "log_prior does not sum to one"),
    "NaN prior": (LOG_Q, ONE_NAN, r"log_prior contains NaN \(1 of 360 values\)"),
    "NaN q": (LOG_Q * float("nan"), LOG_P, "log_q contains NaN"),
    "infinity": (LOG_Q, -LOG_P * float("inf"), "log_prior contains infinity"),
    "an item without a class": (LOG_Q, EMPTY_ITEM, "log_prior excludes every class"),
    "one item": (LOG_Q, UNNORMALISED_ITEM, "log_prior does not sum to one"),
    "class axis last": (*LAST, r"sums to one over axis 3 .*log_q.movedim\(3, 1\)"),
    "class axis of the prior last": (LOG_Q, LAST[1], r"log_prior has shape \(6, 5, 3, 4\) and log_q \(6, 4, 5, 3\)"),
    "one prior for all": (LOG_Q, LOG_P[:1], "expand_as"),
    "labels": (LOG_Q, torch.zeros((6, 5, 3), dtype=torch.int64), "log_prior is of int64, like labels"),
    "no class axis": (LOG_Q[:, 0, 0, 0], LOG_P, r"log_q has shape \(6,\)"),
    "numpy": (LOG_Q.numpy(), LOG_P, "log_q is of type ndarray; give a tensor"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_common_mistakes_are_refused_in_one_line(slip):
    log_q, log_p, message = SLIPS[slip]
    for function in FUNCTIONS.values():
        with pytest.raises(ProbabilityError, match=message) as caught:
            function(log_q, log_p)
        assert isinstance(caught.value, InputError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slip", ["logits", "negative logits", "softmax", "NaN q", "no class axis"])
def test_the_marginal_is_checked_too(slip):
    log_q, _, message = SLIPS[slip]
    running = RunningMarginal(100.0)
    for function in (log_class_marginal, running):
        with pytest.raises(ProbabilityError, match=message):
            function(log_q)
    assert running.weight == 0


@pytest.mark.parametrize("name", ["qr", "qr-kl", "rq", "em", "posterior", "joint"])
@pytest.mark.parametrize(
    ("marginal", "message"),
    [
        (torch.zeros(3), r"log_marginal has shape \(3,\); give one value per class, shape \(4,\)"),
        (torch.tensor([0, 0, float("nan"), 0]), "log_marginal contains NaN"),
        (torch.full((4,), float("inf")), "log_marginal contains NaN or infinity"),
        (LOG_Q.exp().mean(dim=(0, 2, 3)), r"log_marginal looks like probabilities; .* log_marginal\.log\(\)"),
    ],
)
def test_a_marginal_that_does_not_fit_is_refused(name, marginal, message):
    with pytest.raises(ProbabilityError, match=message):
        FUNCTIONS[name](LOG_Q, LOG_P, log_marginal=marginal)


def test_class_sums_are_refused_where_a_mean_is_needed():
    sums = log_class_marginal(LOG_Q) + 3
    with pytest.raises(ProbabilityError, match=r"log_marginal does not sum to one.*log_class_marginal\(log_q\)"):
        FUNCTIONS["qr"](LOG_Q, LOG_P, log_marginal=sums)
    torch.testing.assert_close(FUNCTIONS["qr"](LOG_Q, LOG_P, log_marginal=sums - 3), FUNCTIONS["qr"](LOG_Q, LOG_P))
    torch.testing.assert_close(FUNCTIONS["rq"](LOG_Q, LOG_P, log_marginal=sums), FUNCTIONS["rq"](LOG_Q, LOG_P))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_of_another_shape_or_type_is_refused(name):
    with pytest.raises(ProbabilityError, match="without axis 1"):
        FUNCTIONS[name](LOG_Q, LOG_P, torch.ones((6, 5), dtype=torch.bool))
    with pytest.raises(ProbabilityError, match=r"the mask is of float32; .*mask.bool\(\)"):
        FUNCTIONS[name](LOG_Q, LOG_P, torch.ones((6, 5, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_valid_inputs_are_accepted(name, dtype):
    """Hard zeros, rounding to half precision, one item, many classes, and invalid values under the mask."""
    for shape in ((1, 2), (300, 150), (2, 5, 40, 30)):
        logits, prior = draw(shape, 4, dtype)
        log_q = torch.log_softmax(8 * logits, 1)
        hard = torch.nn.functional.one_hot(prior.argmax(1), shape[1]).movedim(-1, 1)
        for p in (prior, hard):
            FUNCTIONS[name](log_q, p.to(dtype).log())
    mask = torch.ones((6, 5, 3), dtype=torch.bool)
    mask[3, 1, 1] = False
    for spoiled in (ONE_NAN, EMPTY_ITEM, UNNORMALISED_ITEM):
        FUNCTIONS[name](LOG_Q, spoiled, mask)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_check_false_skips_all_checks(name, monkeypatch):
    monkeypatch.setattr(checks, "_summarise", lambda *_: pytest.fail("looked"))
    FUNCTIONS[name](LOG_Q.exp(), LOG_P.exp(), check=False)


def test_sums_are_checked_on_a_sample_of_many_items(monkeypatch):
    seen = []
    real = torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda values, **more: seen.append(values.shape) or real(values, **more))
    log_q = torch.log_softmax(torch.zeros((3, 4, 700, 900)), 1)
    checks.require_logs(log_q, "log_q", checks.LOG_Q_EXAMPLE)
    count, classes, rows, columns = seen[0]
    assert classes == 4
    assert checks.SAMPLE / 2 <= count * rows * columns <= checks.SAMPLE
    log_q[2, 1, 601, 7] = float("nan")  # NaN is found anywhere
    with pytest.raises(ProbabilityError, match="NaN"):
        checks.require_logs(log_q, "log_q", checks.LOG_Q_EXAMPLE)


@pytest.mark.parametrize("name", ["qr", "rq", "ce"])
def test_compiled_losses_are_not_checked(name):
    """A check would break the graph."""
    compiled = torch.compile(LOSSES[name], backend="eager", fullgraph=True)
    assert compiled(LOG_Q, LOG_P).item() == pytest.approx(LOSSES[name](LOG_Q, LOG_P).item(), abs=1e-6)


# -- pairs, and counts in blocks ---------------------------------------------------------------------

PAIR = pair_priors(4)[0]


@pytest.mark.parametrize("function", [log_pair_joint, log_pair_posterior, rank_loss])
def test_pairs_are_checked(function):
    one, two = (values[:, :, 0, 0] for values in (LOG_Q, LOG_P))
    assert torch.isfinite(function(one, two, PAIR.log()).exp()).all()
    assert torch.isfinite(function(one, two, PAIR.log().expand(6, 4, 4)).exp()).all()
    for args, message in (
        ((one.exp(), two, PAIR.log()), "log_q1 .* looks like probabilities"),
        ((one, 9 * two, PAIR.log()), "log_q2 does not sum to one"),
        ((one, two, PAIR), r"log_prior .* looks like probabilities.*torch\.log\(prior\)"),
        ((one, two, torch.log(4 * PAIR)), "log_prior does not sum to one"),
        ((one, two, PAIR[0].log()), r"log_prior has shape \(4,\); give the joint prior"),
        ((one, two[:3], PAIR.log()), r"log_q2 \(3, 4\)"),
    ):
        with pytest.raises(ProbabilityError, match=message):
            function(*args)
    with pytest.raises(ProbabilityError, match="log_marginal2 contains NaN"):
        function(one, two, PAIR.log(), log_marginal2=torch.full((4,), float("nan")))


def test_marginals_of_pairs_are_checked():
    log_r = PAIR.log().expand(6, 4, 4)
    assert pair_marginals(log_r)[0].exp().sum(1).tolist() == pytest.approx([1] * 6)
    with pytest.raises(ProbabilityError, match=r"log_r .* looks like probabilities"):
        pair_marginals(log_r.exp())
    with pytest.raises(ProbabilityError, match=r"log_r has shape \(6, 4\)"):
        pair_marginals(log_r[:, 0])


def test_counts_in_blocks_are_checked():
    blocks = torch.zeros((6, 5, 3), dtype=torch.int64)
    blocks[3, 1, 1] = -1
    eta, rho = torch.full((1, 4), 0.25), torch.full((1, 4), 0.1)
    fine = compare_statistics(LOG_Q, blocks, eta, rho)
    spoiled = spoil(LOG_Q, blocks >= 0, float("nan"))
    assert compare_statistics(spoiled, blocks, eta, rho).item() == fine.item()
    with pytest.raises(ProbabilityError, match=r"log_q .* looks like probabilities"):
        compare_statistics(LOG_Q.exp(), blocks, eta, rho)
    with pytest.raises(ProbabilityError, match="log_q does not sum to one"):
        count_blocks(LOG_Q - 2, blocks, 1)
    with pytest.raises(ProbabilityError, match="eta has values that are not shares"):
        compare_statistics(LOG_Q, blocks, eta.log(), rho)
    with pytest.raises(ProbabilityError, match="rho has negative"):
        compare_statistics(LOG_Q, blocks, eta, -rho)
    with pytest.raises(ProbabilityError, match=r"give \(blocks, 4\)"):
        compare_statistics(LOG_Q, blocks, eta[:, :3], rho[:, :3])
