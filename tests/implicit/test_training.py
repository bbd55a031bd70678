"""The training loop: determinism, resuming, stopping, the degenerate solution."""

import itertools
import warnings

import pytest
import torch
from lightning.fabric import Fabric
from pydantic import ValidationError
from torch import nn

from landprior.errors import (
    CheckpointWarning,
    CollapseWarning,
    ProbabilityError,
    TrainingError,
    TrainingInterruptedError,
)
from landprior.implicit.losses import ce, em, qr
from landprior.implicit.networks import SmoothedNetwork
from landprior.implicit.objectives import Batch
from landprior.implicit.posterior import log_posterior
from landprior.implicit.settings import TrainingSettings
from landprior.implicit.training import fit, make_fabric

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])


def make_network(seed=0, classes=3):
    torch.manual_seed(seed)
    return SmoothedNetwork(nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(), nn.Linear(16, classes)), smoothing=1e-4)


def make_batch(step, *, noise=0.6, count=256):
    """Three blobs in the plane; the prior names the right class with probability ``noise``, and otherwise another."""
    generator = torch.Generator().manual_seed(step)
    truth = torch.randint(0, 3, (count,), generator=generator)
    inputs = MEANS[truth] + 0.5 * torch.randn((count, 2), generator=generator)
    said = torch.where(torch.rand(count, generator=generator) < noise, truth, (truth + 1) % 3)
    prior = torch.full((count, 3), 0.2)
    prior[torch.arange(count), said] = 0.6
    return Batch(inputs=inputs, log_prior=prior.log()), truth


def feed(step):
    return make_batch(step)[0]


def feed_until_25(step):
    """Raise KeyboardInterrupt in the middle of the third epoch."""
    if step == 25:
        raise KeyboardInterrupt
    return feed(step)


def settings(**changes):
    return TrainingSettings(**{"steps": 60, "warmup_steps": 20, "epoch_steps": 10, "learning_rate": 1e-2} | changes)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_training_learns_classes_from_a_noisy_prior():
    network = make_network()
    fit(network, feed, settings(steps=200), fabric=make_fabric("fp32", "cpu"))
    batch, truth = make_batch(10_000, count=4000)
    best = network(batch.inputs).argmax(1)
    assert (batch.log_prior.argmax(1) == truth).float().mean() < 0.65
    assert (best == truth).float().mean() > 0.95


def test_same_seed_same_weights_regardless_of_the_global_generator():
    first, second = make_network(3), make_network(3)
    fit(first, feed, settings())
    torch.manual_seed(99)
    fit(second, feed, settings())
    for name, value in weights(first).items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, schedule):
    chosen = settings(schedule=schedule, plateau_epochs=1)
    whole, torn = make_network(), make_network()
    history = fit(whole, feed, chosen)
    path = tmp_path / "state"

    def interrupted(step):
        if step == 37:
            raise KeyboardInterrupt
        return feed(step)

    with pytest.raises(TrainingInterruptedError, match=r"after 37 of 60 steps; .*resumes from there"):
        fit(torn, interrupted, chosen, checkpoint=path)
    assert path.exists()
    seen = []

    def recording(step):
        seen.append(step)
        return feed(step)

    again = fit(make_network(seed=7), recording, chosen, checkpoint=tmp_path / "absent")
    assert [e.step for e in again.epochs] == [10, 20, 30, 40, 50, 60]
    seen.clear()
    fresh = make_network(seed=8)  # the weights come from the checkpoint
    resumed = fit(fresh, recording, chosen, checkpoint=path)
    assert seen == list(range(30, 60))
    assert [e.loss for e in resumed.epochs] == [e.loss for e in history.epochs]
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, fresh.state_dict()[name], rtol=0, atol=0)


def test_a_finished_run_is_not_repeated(tmp_path):
    """The caller may have failed to write the model; the checkpoint still has everything."""
    path = tmp_path / "state"

    def until(epoch):
        return "enough" if epoch.step == 40 else None

    first, again, seen = make_network(), make_network(seed=3), []
    history = fit(first, feed, settings(), until=until, checkpoint=path)
    repeated = fit(again, lambda step: seen.append(step) or feed(step), settings(), until=until, checkpoint=path)
    assert seen == []
    assert (repeated.stopped, [e.step for e in repeated.epochs]) == ("enough", [e.step for e in history.epochs])
    for name, value in weights(first).items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)


def test_the_error_without_a_checkpoint_states_that_nothing_was_saved():
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterruptedError, match="nothing was saved"):
        fit(make_network(), interrupted, settings())


def test_a_checkpoint_with_other_settings_is_not_used(tmp_path):
    path = tmp_path / "state"

    with pytest.raises(TrainingInterruptedError):
        fit(make_network(), feed_until_25, settings(), checkpoint=path)
    other, plain = make_network(), make_network()
    fit(other, feed, settings(learning_rate=2e-2), checkpoint=path)
    fit(plain, feed, settings(learning_rate=2e-2))
    for name, value in weights(other).items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=0)


def test_a_damaged_checkpoint_gives_a_warning_and_is_replaced(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"no checkpoint")
    network = make_network()
    with pytest.warns(UserWarning, match="not a usable checkpoint"):
        fit(network, feed, settings(steps=10, warmup_steps=0), checkpoint=path)
    assert torch.load(path, weights_only=True)["step"] == 10  # replaced by a valid one


def _drop(key):
    return lambda state: state.pop(key)


def _put(*keys, value):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def _damage_last_weight(state):
    name = list(state["network"])[-1]  # the other weights are valid, and must be undone
    state["network"][name] = torch.zeros(99)


DAMAGE = {
    "a weight's shape": _damage_last_weight,
    "a weight is NaN": lambda state: next(reversed(state["network"].values())).fill_(float("nan")),
    "a weight is missing": lambda state: state["network"].popitem(),
    "no optimiser": _drop("optimiser"),
    "an optimiser of another shape": _put("optimiser", "state", 3, "exp_avg", value=torch.zeros(5)),
    "moments of NaN": lambda state: state["optimiser"]["state"][3]["exp_avg"].fill_(float("nan")),
    "negative variances": lambda state: state["optimiser"]["state"][3]["exp_avg_sq"].fill_(-1.0),
    "fewer moments": lambda state: state["optimiser"]["state"].pop(3),
    "an optimiser that is a number": _put("optimiser", value=7),
    "a history of other fields": _put("history", "epochs", value=[{"nonsense": 1}]),
    "no history": _put("history", "epochs", value=[]),
    "a step beyond the end": _put("step", value=1000),
    "a step that is a text": _put("step", value="two"),
    "a plateau of two": _put("plateau", value=[1.0, 2]),
    "no plateau": _drop("plateau"),
    "no marginal": _drop("marginal"),
    "a marginal of NaN": _put("marginal", "total", value=torch.full((3,), float("nan"))),
    "a list": None,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return settings that give all kinds of states, the checkpoint, and the weights of a run without a checkpoint."""
    chosen = settings(marginal="running", steps=30, warmup_steps=10, epoch_steps=10)
    path, whole = tmp_path_factory.mktemp("run") / "state", make_network()

    with pytest.raises(TrainingInterruptedError):
        fit(make_network(), feed_until_25, chosen, checkpoint=path)
    fit(whole, feed, chosen)
    return chosen, path, weights(whole)


@pytest.mark.parametrize("how", DAMAGE)
def test_an_unusable_checkpoint_changes_no_weight(tmp_path, stopped, how):
    """The run ends with the same weights as one without a checkpoint."""
    chosen, good, expected = stopped
    state = torch.load(good, weights_only=True)
    if DAMAGE[how] is None:
        state = [1, 2]
    else:
        DAMAGE[how](state)
    path = tmp_path / "state"
    torch.save(state, path)
    network = make_network()
    with pytest.warns(CheckpointWarning, match="not a usable checkpoint .*starting over"):
        fit(network, feed, chosen, checkpoint=path)
    for name, value in expected.items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


def test_a_checkpoint_with_damaged_bytes_is_not_used_in_part(tmp_path, stopped):
    chosen, good, expected = stopped
    data = good.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        broken = bytearray(data)
        for place in torch.randint(len(data), (20,), generator=generator).tolist():
            broken[place] ^= 0xFF
        path = tmp_path / f"{number}"
        path.write_bytes(broken[: len(data) // 2] if number % 5 == 0 else broken)
        network = make_network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)
            fit(network, feed, chosen, checkpoint=path)
        for name, value in expected.items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


def test_a_run_without_a_valid_item_is_an_error():
    def masked(step):
        batch = feed(step)
        return Batch(batch.inputs, batch.log_prior, torch.zeros(len(batch.inputs), dtype=torch.bool))

    with pytest.raises(TrainingError, match="in 20 steps no batch had a valid pixel or item"):
        fit(make_network(), masked, settings(steps=20, warmup_steps=5))


def test_the_first_batch_is_checked():
    def in_percent(step):
        batch = feed(step)
        return Batch(batch.inputs, 100 * batch.log_prior.exp())

    with pytest.raises(ProbabilityError, match="log_prior has values from 20 to 60"):
        fit(make_network(), in_percent, settings())
    with pytest.raises(ProbabilityError, match=r"log_q .* logits"):
        fit(nn.Linear(2, 3), feed, settings())


def test_a_loss_that_is_not_finite_stops_with_advice():
    def broken(step):
        batch = feed(step)
        return Batch(inputs=batch.inputs * float("nan"), log_prior=batch.log_prior)

    with pytest.raises(TrainingError, match=r"loss became nan at step 10; lower --learning-rate"):
        fit(make_network(), broken, settings())


def test_collapse_gives_a_warning():
    network = make_network()
    with torch.no_grad():
        network.body[2].bias[:] = torch.tensor([50.0, 0.0, 0.0])
    with pytest.warns(CollapseWarning, match=r"one class 100.*Try another --seed"):
        fit(network, feed, settings(loss="ce", steps=10, learning_rate=1e-6))


def test_no_collapse_warning_if_the_prior_has_one_class_too():
    def one_sided(step):
        batch = feed(step)
        prior = torch.tensor([0.98, 0.01, 0.01]).log().expand_as(batch.log_prior)
        return Batch(inputs=batch.inputs, log_prior=prior)

    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        fit(make_network(), one_sided, settings(loss="ce", steps=100))


def test_patience_stops_early():
    history = fit(make_network(), feed, settings(steps=1000, learning_rate=1e-12, warmup_steps=0, patience=3))
    assert history.epochs[-1].step < 1000
    assert "no progress" in history.stopped


def test_plateau_cuts_the_rate_by_ten():
    history = fit(
        make_network(),
        feed,
        settings(steps=200, schedule="plateau", plateau_epochs=2, learning_rate=1e-12, warmup_steps=0),
    )
    rates = [e.learning_rate for e in history.epochs]
    assert rates[0] == pytest.approx(1e-12)
    assert rates[-1] < 1e-14
    assert {round(a / b) for a, b in itertools.pairwise(rates)} <= {1, 10}


def test_cosine_rises_and_falls():
    history = fit(make_network(), feed, settings(steps=60, epoch_steps=1, ramp_steps=10, learning_rate=1.0))
    rates = [e.learning_rate for e in history.epochs]
    assert rates[0] == pytest.approx(0.1, rel=0.02)
    assert max(rates) == pytest.approx(rates[9], rel=0.01)
    assert rates[-1] < 0.01


def test_until_ends_the_run_after_the_warm_up():
    asked = []

    def until(epoch):
        asked.append(epoch.step)
        return "enough" if epoch.extra["seen"] >= 40 else None

    history = fit(make_network(), feed, settings(), monitor=lambda _: {"seen": len(asked) * 10 + 30}, until=until)
    assert asked == [30, 40]
    assert history.epochs[-1].step == 40
    assert history.stopped == "enough"


def test_a_monitor_that_compares_states_resumes_exactly(tmp_path):
    """On resuming, the monitor is given the last state that it saw, so that its differences stay the same."""

    def differences():
        last = []

        def monitor(network):
            now = network.body[0].weight.detach().clone()
            change = (now - last[-1]).abs().sum().item() if last else float("nan")
            last.append(now)
            return {"change": change}

        return monitor

    whole = fit(make_network(), feed, settings(), monitor=differences())
    path = tmp_path / "state"

    with pytest.raises(TrainingInterruptedError):
        fit(make_network(), feed_until_25, settings(), monitor=differences(), checkpoint=path)
    resumed = fit(make_network(5), feed, settings(), monitor=differences(), checkpoint=path)
    assert [e.extra["change"] for e in resumed.epochs[1:]] == [e.extra["change"] for e in whole.epochs[1:]]


@pytest.mark.parametrize(
    ("warmup", "first", "later"),
    [("ce-em", ce, em), ("ce", ce, ce), ("em", em, em), ("none", qr, qr)],
)
def test_the_objective_of_each_phase(warmup, first, later):
    """With a tiny learning rate the recorded loss is the objective at the initial weights."""
    history = fit(
        make_network(), feed, settings(warmup=warmup, warmup_steps=20, steps=30, epoch_steps=1, learning_rate=1e-15)
    )
    expected = [first] * 10 + [later] * 10 + [qr] * 10
    with torch.no_grad():
        for epoch, loss in zip(history.epochs, expected, strict=True):
            batch = feed(epoch.step - 1)
            assert epoch.loss == pytest.approx(loss(make_network()(batch.inputs), batch.log_prior).item(), abs=1e-5)


def test_losses_without_a_warm_up():
    history = fit(make_network(), feed, settings(loss="squared-error", steps=1, epoch_steps=1))
    batch = feed(0)
    q = make_network()(batch.inputs).exp()
    expected = (q - batch.log_prior.exp()).square().sum(1).mean().item()
    assert history.epochs[0].loss == pytest.approx(expected, abs=1e-6)


def test_em_is_cross_entropy_with_a_fixed_posterior():
    network = make_network()
    batch = feed(0)
    log_q = network(batch.inputs)
    em(log_q, batch.log_prior).backward()
    own = network.body[0].weight.grad.clone()
    network.zero_grad()
    r = log_posterior(log_q.detach(), batch.log_prior).exp()
    (-(r * network(batch.inputs)).sum(1).mean()).backward()
    torch.testing.assert_close(own, network.body[0].weight.grad)


def test_masked_items_and_borders_do_not_train():
    """Garbage under the mask and in the border does not change the trained weights."""

    def conv(seed=0):
        torch.manual_seed(seed)
        return SmoothedNetwork(nn.Conv2d(2, 3, 1), halo=0)

    def patches(garbage):
        def cut(step):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn((4, 2, 12, 12), generator=generator)
            p = torch.softmax(torch.randn((4, 3, 12, 12), generator=generator), 1)
            mask = torch.ones(4, 12, 12, dtype=torch.bool)
            mask[:, 5:7, 5:7] = False
            x[:, :, 5:7, 5:7] = garbage
            x[:, :, :2] = garbage
            x[..., -2:] = garbage
            return Batch(inputs=x, log_prior=p.log(), mask=mask, border=2)

        return cut

    one, other = conv(), conv()
    fit(one, patches(0.0), settings())
    fit(other, patches(37.0), settings())
    for name, value in weights(one).items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_bf16_trains_too():
    """Convolutions in half precision, like those of the land-cover network; q and the loss stay in float32."""

    def cut(step):
        batch, _ = make_batch(step)
        return Batch(inputs=batch.inputs.T.reshape(1, 2, 16, 16), log_prior=batch.log_prior.T.reshape(1, 3, 16, 16))

    torch.manual_seed(0)
    network = SmoothedNetwork(nn.Sequential(nn.Conv2d(2, 16, 1), nn.LeakyReLU(), nn.Conv2d(16, 3, 1)))
    fit(network, cut, settings(steps=200), fabric=make_fabric("bf16", "cpu"))
    batch, truth = make_batch(10_000)
    log_q = network(batch.inputs.T.reshape(1, 2, 16, 16))
    assert log_q.dtype == torch.float32
    assert (log_q.argmax(1).flatten() == truth).float().mean() > 0.95


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        TrainingSettings(loss="hinge")
    with pytest.raises(ValidationError):
        TrainingSettings(stepz=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_like_the_cpu():
    network = make_network()
    fit(network, feed, settings(steps=200), fabric=make_fabric("auto", "cuda"))
    batch, truth = make_batch(10_000, count=2000)
    assert (network.cpu()(batch.inputs).argmax(1) == truth).float().mean() > 0.95


# -- custom objectives -------------------------------------------------------------------------------


def test_a_custom_objective_replaces_the_loss_after_the_warm_up():
    seen = []

    def objective(output, batch):
        seen.append((batch.border, sorted(batch.extra), output.shape))
        return qr(output, batch.log_prior, batch.mask)

    def with_extra(step):
        batch = feed(step)
        return Batch(inputs=batch.inputs, log_prior=batch.log_prior, extra={"more": torch.ones(3)})

    first, second = make_network(), make_network()
    fit(first, with_extra, settings(loss="sr"), objective=objective)
    fit(second, feed, settings(loss="qr"))
    assert seen == [(0, ["more"], (256, 3))] * 40
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])


def test_a_custom_objective_does_not_see_the_border():
    network = SmoothedNetwork(nn.Conv2d(2, 3, 1), halo=2)
    values = torch.arange(2.0 * 2 * 9 * 9).reshape(2, 2, 9, 9)
    batch = Batch(inputs=values / 100, log_prior=values[:, :1].expand(2, 3, 9, 9), mask=values[:, 0] > 40, border=2)
    shapes = []

    def objective(output, batch):
        shapes.append((output.shape, batch.log_prior.shape, batch.mask.shape))
        assert torch.equal(batch.mask, (values[:, 0] > 40)[:, 2:-2, 2:-2])
        return output.square().mean()

    fit(network, lambda _: batch, settings(loss="sr", warmup="none", steps=2), objective=objective)
    assert shapes == [((2, 3, 5, 5), (2, 3, 5, 5), (2, 5, 5))] * 2


def test_batches_may_have_no_prior():
    network = nn.Linear(2, 1)
    history = fit(
        network,
        lambda step: Batch(inputs=torch.full((4, 2), float(step % 3))),
        settings(loss="epitome", warmup="none", steps=30),
        objective=lambda output, _: (output - 1).square().mean(),
    )
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert all(torch.isnan(torch.tensor(epoch.entropy)) for epoch in history.epochs)


def test_several_devices_are_refused():
    fabric = Fabric(accelerator="cpu", devices=2)  # does not launch anything yet
    with pytest.raises(ValueError, match="one device, not on 2"):
        fit(make_network(), feed, settings(), fabric=fabric)


def test_losses_that_need_an_objective_or_a_prior_raise():
    with pytest.raises(ValueError, match="sr needs more than log q and log prior"):
        fit(make_network(), feed, settings(loss="sr"))
    with pytest.raises(ValueError, match="need a prior in every batch"):
        fit(make_network(), lambda step: Batch(inputs=feed(step).inputs), settings(loss="ce"))
