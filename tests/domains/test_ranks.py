"""Rankings: the joint prior and posterior, pairs, training, and the command."""

from __future__ import annotations

import csv
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landprior.cli import main
from landprior.domains.imagery.formats import read_images
from landprior.domains.imagery.images import LabelledImages
from landprior.domains.imagery.records import EpochScores, read_runs
from landprior.domains.ranks import training as training_module
from landprior.domains.ranks.figures import choose_epochs
from landprior.domains.ranks.pairs import Pairs, draw_pairs, read_pairs
from landprior.domains.ranks.posterior import (
    RELATIONS,
    log_pair_posterior,
    pair_marginals,
    pair_priors,
    rank_loss,
)
from landprior.domains.ranks.settings import RankSettings
from landprior.domains.ranks.training import PairFeed, PairJudge, PairNetwork, RankObjective, RankRunner, train_ranks
from landprior.errors import InputError, TrainingInterruptedError
from landprior.implicit.objectives import Batch
from tests.helpers import interrupted_at

from .shared import draw_logs

draw = partial(draw_logs, scale=2)
REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = RankSettings(epochs=3, filters=8, batch_size=4, learning_rate=2e-2, precision="fp32")


# -- prior and posterior -----------------------------------------------------------------------------


def test_ten_classes_have_55_pairs():
    at_least, above, equal = pair_priors(10)
    assert int((at_least > 0).sum()) == 55
    torch.testing.assert_close(at_least[at_least > 0], torch.full((55,), 1 / 55))
    assert bool((at_least.triu(1) == 0).all())
    torch.testing.assert_close(above[above > 0], torch.full((45,), 1 / 45))
    assert bool((above.triu() == 0).all())
    torch.testing.assert_close(equal, torch.eye(10) / 10)


def test_the_weight_of_ties():
    half, excluded = pair_priors(4, "half")[0], pair_priors(4, "excluded")
    torch.testing.assert_close(half.diagonal(), torch.full((4,), 0.5 / 8))
    torch.testing.assert_close(half[3, 1], torch.tensor(1 / 8))
    assert torch.equal(excluded[0], excluded[1])


def test_half_matches_the_frequency_of_ties_in_drawn_pairs():
    """Two random items of equally frequent classes, put in order; ties stay in the order drawn."""
    labels = torch.arange(4).repeat(500)
    pairs = draw_pairs(labels, torch.arange(2000), 200_000, ties="half", seed=1)
    counts = torch.bincount(labels[pairs.first] * 4 + labels[pairs.second], minlength=16).reshape(4, 4)
    torch.testing.assert_close(counts / 200_000, pair_priors(4, "half")[0], atol=0.003, rtol=0)


@pytest.mark.parametrize("own", [False, True])
def test_the_posterior_against_a_loop(own):
    """In float64, term by term, with the marginals of the batch and with given ones."""
    items, classes = 7, 5
    log_q1, log_q2 = draw((items, classes), 1), draw((items, classes), 2)
    prior = pair_priors(classes)[torch.arange(items) % 3].double()
    q1, q2 = log_q1.exp().numpy(), log_q2.exp().numpy()
    marginal1, marginal2 = (draw((1, classes), s)[0] for s in (3, 4))
    options = {"log_marginal1": marginal1, "log_marginal2": marginal2} if own else {}
    found = log_pair_posterior(log_q1, log_q2, prior.log(), **options).exp().numpy()
    first = marginal1.exp().numpy() if own else q1.mean(0)
    second = marginal2.exp().numpy() if own else q2.mean(0)
    expected = np.zeros((items, classes, classes))
    for i in range(items):
        for one in range(classes):
            for two in range(classes):
                weight = q1[i, one] * q2[i, two] / (first[one] * second[two])
                expected[i, one, two] = float(prior[i, one, two]) * weight
        expected[i] /= expected[i].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    marginals = [values.exp().numpy() for values in pair_marginals(torch.from_numpy(expected).log())]
    np.testing.assert_allclose(marginals[0], expected.sum(2))
    np.testing.assert_allclose(marginals[1], expected.sum(1))
    divergence = sum(
        r[i, c] * math.log(r[i, c] / q[i, c])
        for r, q in zip(marginals, (q1, q2), strict=True)
        for i in range(items)
        for c in range(classes)
        if r[i, c] > 0
    )
    loss = rank_loss(log_q1, log_q2, prior.log(), **options)
    assert float(loss) == pytest.approx(divergence / items, rel=1e-9)
    joint = sum(
        expected[i, a, b] * math.log(expected[i, a, b] / (q1[i, a] * q2[i, b]))
        for i in range(items)
        for a in range(classes)
        for b in range(classes)
        if expected[i, a, b] > 0
    )
    assert float(rank_loss(log_q1, log_q2, prior.log(), fit="joint", **options)) == pytest.approx(joint / items)


def test_gradients_are_finite_and_right():
    log_prior = pair_priors(4).double().log()[torch.tensor([0, 1, 2, 0, 1])]
    logits = [draw((5, 4), seed).requires_grad_() for seed in (1, 2)]

    def loss(one, two, fit):
        return rank_loss(torch.log_softmax(one, 1), torch.log_softmax(two, 1), log_prior, fit=fit)

    for fit in ("marginals", "joint"):
        assert torch.autograd.gradcheck(lambda one, two, fit=fit: loss(one, two, fit), logits)


def test_with_two_classes_the_loss_is_cross_entropy():
    """The order determines both: the greater item has the second class and the smaller the first."""
    log_q1, log_q2 = draw((6, 2), 1), draw((6, 2), 2)
    found = rank_loss(log_q1, log_q2, pair_priors(2)[RELATIONS.index(">")].double().log())
    torch.testing.assert_close(found, -(log_q1[:, 1] + log_q2[:, 0]).mean())


# -- pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", ["included", "half", "excluded"])
def test_drawing_pairs(ties):
    labels = torch.arange(300) % 3
    items = torch.arange(0, 300, 2)
    pairs = draw_pairs(labels, items, 4000, ties=ties, seed=3)
    one, other = labels[pairs.first], labels[pairs.second]
    assert len(pairs) == 4000
    assert bool((pairs.first != pairs.second).all())
    assert bool((pairs.first % 2 == 0).all())
    assert bool((pairs.second % 2 == 0).all())
    assert bool((one >= other).all())
    equal = float((one == other).double().mean())
    assert equal == 0 if ties == "excluded" else equal == pytest.approx(1 / 3, abs=0.03)
    assert set(pairs.relation.tolist()) == {RELATIONS.index(">" if ties == "excluded" else ">=")}
    again = draw_pairs(labels, items, 4000, ties=ties, seed=3)
    assert torch.equal(pairs.first, again.first)
    assert not torch.equal(pairs.first, draw_pairs(labels, items, 4000, ties=ties, seed=4).first)


def test_pairs_that_cannot_be_drawn():
    labels = torch.tensor([1, 1, 1, -1])
    with pytest.raises(InputError, match="only ties"):
        draw_pairs(labels, torch.arange(3), 5, ties="excluded", seed=0)
    with pytest.raises(InputError, match="some are unknown; give the pairs"):
        draw_pairs(labels, torch.arange(4), 5, ties="included", seed=0)
    with pytest.raises(InputError, match="5 pairs cannot be drawn from 1 images"):
        draw_pairs(labels, torch.arange(1), 5, ties="included", seed=0)


def test_pairs_from_a_table(tmp_path, data):
    path = tmp_path / "pairs.csv"
    path.write_text("first,second,relation\ntrain/3,train/5,\n1,0,<\n7,train/8,=\n2,9,<=\n4,6,>\n")
    found = read_pairs(path, data.train)
    assert found.first.tolist() == [3, 0, 7, 9, 4]
    assert found.second.tolist() == [5, 1, 8, 2, 6]
    assert [RELATIONS[code] for code in found.relation] == [">=", ">", "=", ">=", ">"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("first,second\n", "has no pairs"),
        ("first,other\n1,2\n", "no column 'second'"),
        ("first,second\n1,180\n", "line 2: '180' is neither a training image nor a position from 0 to 179"),
        ("first,second\n1,1\n", "line 2: 1 is paired with itself"),
        ("first,second,relation\n1,2,=>\n", "line 2: the relation '=>' is not one of"),
    ],
)
def test_invalid_tables(tmp_path, data, text, said):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_pairs(path, data.train)


def test_the_feed_depends_only_on_the_step(data):
    pairs = draw_pairs(data.train.labels, torch.arange(180), 50, ties="included", seed=0)
    feed = PairFeed(data.train.images, pairs, lambda x: x.float(), batch_size=8, seed=1)
    some = pairs.take(feed.order(4))
    batch = feed(4)
    assert torch.equal(batch.inputs, data.train.images[torch.cat([some.first, some.second])].float())
    assert torch.equal(batch.inputs, feed(4).inputs)
    assert batch.extra["relation"].shape == (8,)


# -- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("denominators", ["common", "own"])
def test_the_objective_takes_both_halves_and_running_marginals(denominators):
    network = PairNetwork(torch.nn.Identity(), 4, 1e9, denominators)
    log_priors = pair_priors(4).double().log()
    objective = RankObjective(network, log_priors, "marginals")
    batches = [(draw((6, 4), seed), torch.tensor([0, 1, 2, 0, 1, 0])) for seed in (1, 2)]
    batches = [(q, relation[:3]) for q, relation in batches]
    for log_q, relation in batches:
        found = objective(log_q, Batch(log_q, extra={"relation": relation}))
    halves = (slice(6), slice(6)) if denominators == "common" else (slice(3), slice(3, 6))
    first, second = (torch.cat([q[half] for q, _ in batches]).exp().mean(0).log() for half in halves)
    log_q, relation = batches[1]
    expected = rank_loss(log_q[:3], log_q[3:], log_priors[relation], log_marginal1=first, log_marginal2=second)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    own = PairNetwork(torch.nn.Identity(), 4, None, denominators)
    assert not own.marginals
    torch.testing.assert_close(own.log_marginals(log_q)[1], log_q[halves[1]].exp().mean(0).log())


def test_scores_of_pairs(data):
    """A confident and correct network that takes the class from the brightest band of rows."""

    class Sure(torch.nn.Module):
        def forward(self, x):
            rows = x.mean((1, 3)).reshape(len(x), 3, 4).mean(2)
            return torch.log_softmax(50.0 * (rows == rows.max(1, keepdim=True).values), 1)

    pairs = draw_pairs(data.train.labels, torch.arange(180), 200, ties="included", seed=0)
    scores = PairJudge(data.train.images, pairs, pair_priors(3).log(), lambda x: x.float())(Sure())
    assert scores["ruled_out"] == 0
    assert scores["top_share"] == pytest.approx(100 / 3, abs=3)
    swapped = Pairs(pairs.second, pairs.first, pairs.relation)
    worse = PairJudge(data.train.images, swapped, pair_priors(3).log(), lambda x: x.float())(Sure())
    different = float((data.train.labels[pairs.first] != data.train.labels[pairs.second]).double().mean())
    assert worse["ruled_out"] == pytest.approx(100 * different)
    assert worse["choice"] < scores["choice"]


def test_ranks_are_learned_from_pairs(data):
    settings = QUICK.model_copy(update={"epochs": 4, "ties": "half", "pairs": 400, "batch_size": 16})
    trained = train_ranks(data, settings)
    look = trained.looks[trained.chosen - 1]
    assert look.test > 90
    confusion = np.array(look.confusion)
    assert confusion.shape == (3, 3)
    assert confusion.sum(1).tolist() == [20, 20, 20]
    assert 100 * confusion.trace() / 60 == pytest.approx(look.test)


@pytest.mark.filterwarnings("ignore::landprior.errors.CollapseWarning")
@pytest.mark.parametrize("marginal", ["batch", "running"])
def test_an_interrupted_training_ends_with_the_same_results(data, tmp_path, monkeypatch, marginal):
    """The state of running marginals is resumed too."""
    options = {"marginals": (marginal,), "batch_sizes": (4,)}
    whole = RankRunner(data, QUICK, tmp_path / "whole", **options).run()
    interruption = pytest.raises(TrainingInterruptedError, match="resumes from there")
    with interrupted_at(monkeypatch, PairFeed, 90), interruption:
        RankRunner(data, QUICK, tmp_path / "cut", **options).run()
    (checkpoint,) = (tmp_path / "cut" / "models").glob("*.checkpoint")
    assert torch.load(checkpoint, weights_only=True)["step"] == 80
    assert RankRunner(data, QUICK, tmp_path / "cut", **options).run() == whole
    assert read_runs(tmp_path / "cut") == whole
    monkeypatch.setattr(training_module, "train_ranks", None)
    assert RankRunner(data, QUICK, tmp_path / "cut", **options).run() == whole
    with pytest.raises(InputError, match="give another folder"):
        RankRunner(data, QUICK.model_copy(update={"epochs": 4}), tmp_path / "cut", **options).run()


def test_too_few_pairs(data):
    one = Pairs(*(torch.tensor([value]) for value in (1, 2, 0)))
    with pytest.raises(InputError, match="1 pairs are too few"):
        train_ranks(data, QUICK, pairs=one)


def test_which_epochs_are_drawn():
    looks = [EpochScores(epoch, 0.0, {}, test=1.0, confusion=[[1]]) for epoch in range(1, 13)]
    assert [look.epoch for look in choose_epochs(looks, 11)] == [1, 2, 4, 8, 11]
    assert [look.epoch for look in choose_epochs(looks, 2)] == [1, 2, 4, 8]
    assert choose_epochs([EpochScores(1, 0.0, {})], 1) == []


# -- the command -------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(main, ["-q", *map(str, arguments)])


@pytest.fixture
def archive(tmp_path, data):
    path = tmp_path / "bands.npz"
    arrays = {f"x_{part}": getattr(data, part).images[:, 0].numpy() for part in ("train", "test")}
    np.savez(path, **arrays, **{f"y_{part}": getattr(data, part).labels.numpy() for part in ("train", "test")})
    return path


def test_the_command_end_to_end(tmp_path, archive):
    out = tmp_path / "out"
    arguments = ["--epochs", 4, "--filters", 8, "--learning-rate", 0.02, "--device", "cpu", "--draw", 400]
    result = call("rank", archive, *arguments, "--batch-size", 16, "--ties", "half", "--predictions", "-o", out)
    assert result.exit_code == 0, result.output
    (run,) = read_runs(out)
    assert f"| ranks | {run.row['marginal']} | half | 16 | 400 | 1 | {run.at_chosen():.2f} |" in result.output
    assert run.at_chosen() > 90
    assert {"report.md", "curves.png", f"confusion-{run.key}.png"} <= {path.name for path in out.iterdir()}
    with (out / "predictions" / f"{run.key}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(row["label"] == row["predicted"] for row in rows) > 216


def test_given_pairs_without_any_labels(tmp_path, data):
    path, table, out = tmp_path / "mine.npz", tmp_path / "pairs.csv", tmp_path / "out"
    unknown = LabelledImages(**vars(data.train) | {"labels": torch.full((180,), -1)})
    np.savez(path, x=unknown.images[:, 0].numpy())
    pairs = draw_pairs(data.train.labels, torch.arange(180), 500, ties="half", seed=2)
    rows = [f"{a},{b}" for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    table.write_text("\n".join(["first,second", *rows]))
    options = ["--epochs", 4, "--filters", 8, "--learning-rate", 0.02, "--device", "cpu", "--batch-size", 16]
    options += ["--ties", "half", "--predictions", "-o", out]
    result = call("rank", path, "--classes", "low,mid,high", "--pairs", table, *options)
    assert result.exit_code == 0, result.output
    (predictions,) = (out / "predictions").iterdir()
    with predictions.open() as stream:
        found = [row["predicted"] for row in csv.DictReader(stream)]
    names = np.array(["low", "mid", "high"])[data.train.labels.numpy()]
    assert np.mean(np.array(found) == names) > 0.9


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "DATA is missing"),
        (["{}", "--pairs", "x.csv", "--draw", "9"], 2, "are mutually exclusive"),
        (["{}", "--pairs", "x.csv"], 1, "no such file: x.csv"),
        (["{}", "--ties", "never"], 2, "Invalid value for '--ties'"),
    ],
)
def test_mistakes_give_one_line(tmp_path, archive, arguments, code, said):
    given = [str(archive) if text == "{}" else text for text in arguments]
    result = call("rank", *given, "-o", tmp_path / "out")
    assert result.exit_code == code, result.output
    assert said in result.output


@pytest.mark.realdata
@pytest.mark.slow
def test_real_digits_from_ranks():
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no digits at {folder}; set LANDPRIOR_TEST_DATA to the folder that holds mnist/")
    trained = train_ranks(read_images(folder / "mnist.npz"), RankSettings(epochs=6))
    assert trained.looks[trained.chosen - 1].test >= 96.0
