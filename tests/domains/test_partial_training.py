"""Training from candidate sets: objectives, the choice of the epoch, resumable sweeps, and the command."""

from __future__ import annotations

import csv
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

from landprior.cli import main
from landprior.domains.imagery.formats import read_images
from landprior.domains.imagery.images import ImageSplits, LabelledImages
from landprior.domains.imagery.network import build_image_network
from landprior.domains.imagery.records import read_runs
from landprior.domains.imagery.report import summarise, to_markdown
from landprior.domains.imagery.training import TEMPERATURES
from landprior.domains.partial import sweep as sweep_module
from landprior.domains.partial.candidates import draw_negatives
from landprior.domains.partial.settings import PartialSettings, Sweep
from landprior.domains.partial.sweep import SweepRunner
from landprior.domains.partial.training import FixedDenominator, judge_candidates, train_partial
from landprior.domains.ranks.settings import RankSettings
from landprior.errors import CollapseWarning, InputError, TrainingInterruptedError
from landprior.implicit.losses import LOSSES, nll_union
from landprior.implicit.objectives import Batch
from landprior.records import RESULTS
from tests.helpers import interrupted_at

from .shared import draw_logs

draw = partial(draw_logs, scale=3)
REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = PartialSettings(epochs=3, filters=8, batch_size=4, learning_rate=2e-2, precision="fp32")


def some_sets(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.rand((count, classes), generator=generator) < 0.5
    sets[torch.arange(count), torch.arange(count) % classes] = True
    return sets


# -- objectives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rq", "nll-union", "ce"])
def test_with_one_candidate_the_losses_are_cross_entropy(name):
    log_q, labels = draw((20, 5), 1), torch.arange(20) % 5
    log_prior = draw_negatives(labels, 5, 4, seed=0).log()
    expected = -log_q[torch.arange(20), labels].mean()
    torch.testing.assert_close(LOSSES[name](log_q, log_prior), expected)


def test_rq_with_a_constant_denominator_is_the_likelihood_of_the_union():
    """Its value up to a constant, and its gradient: hence the identity in the docs."""
    sets = some_sets(30, 4, 2)
    log_prior = (sets.double() / sets.sum(1, keepdim=True)).log()
    found = []
    for loss in (lambda q: FixedDenominator("rq")(q, Batch(q, log_prior)), lambda q: nll_union(q, log_prior)):
        logits = draw((30, 4), 3).requires_grad_()
        value = loss(torch.log_softmax(logits, 1))
        (gradient,) = torch.autograd.grad(value, logits)
        found.append((value.detach(), gradient))
    (mine, my_gradient), (union, gradient) = found
    torch.testing.assert_close(my_gradient, gradient)
    torch.testing.assert_close(mine, union - sets.sum(1).double().log().mean())


def test_scores_against_a_loop():
    log_q, sets = draw((40, 4), 5), some_sets(40, 4, 6)
    prior = sets.double() / sets.sum(1, keepdim=True)
    found = judge_candidates(log_q, prior.log())
    q, p = log_q.exp().numpy(), prior.numpy()

    def evidence(values):
        mean = values.mean(0)
        shares = [sum(p[i, c] * max(values[i, c], 1e-300) / mean[c] for c in range(4)) for i in range(40)]
        return np.mean(np.log(shares))

    assert found["evidence"] == pytest.approx(evidence(q))
    assert found["likelihood"] == pytest.approx(np.mean(np.log((p * q).sum(1))))
    assert found["ruled_out"] == pytest.approx(100 * np.mean([p[i, q[i].argmax()] == 0 for i in range(40)]))
    assert found["top_share"] == pytest.approx(100 * np.bincount(q.argmax(1)).max() / 40)
    tempered = []
    for temperature in TEMPERATURES:
        values = q ** (1 / temperature)
        tempered.append(evidence(values / values.sum(1, keepdims=True)))
    assert found["choice"] == pytest.approx(max(tempered))


def test_confidence_does_not_change_the_choice():
    """Scaled logits lower the evidence of an imperfect network, but not the score that chooses the epoch."""
    sets, right = some_sets(400, 4, 8), torch.nn.functional.one_hot(torch.arange(400) % 4, 4)
    log_q = torch.log_softmax(draw((400, 4), 7) + 4 * right, 1)  # mostly right, and equally confident where it is wrong
    prior = (sets.double() / sets.sum(1, keepdim=True)).log()
    one = judge_candidates(log_q, prior)
    sure = judge_candidates(torch.log_softmax(10 ** (1 / 4) * log_q, 1), prior)
    assert sure["evidence"] < one["evidence"] - 0.05
    assert sure["choice"] == pytest.approx(one["choice"], abs=1e-9)


@pytest.mark.parametrize(("bands", "side", "parameters"), [(1, 28, 33_024), (3, 32, 33_636)])
def test_the_network_has_the_size_in_the_paper(bands, side, parameters):
    before = torch.random.get_rng_state()
    network = build_image_network(bands, 10, (side, side), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sum(values.numel() for values in network.parameters()) == parameters
    log_q = network(torch.randn(5, bands, side, side))
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(5))
    again = build_image_network(bands, 10, (side, side), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


# -- a training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["rq", "nll-union", "ce", "qr-kl"])
def test_classes_are_learned_from_negative_labels(data, loss):
    prior = draw_negatives(data.train.labels, 3, 1, seed=0)
    trained = train_partial(data, prior, QUICK.model_copy(update={"loss": loss, "epochs": 6}))
    look = trained.looks[trained.chosen - 1]
    assert look.test > 90
    assert look.train > 90
    assert trained.items == 162
    assert [entry.epoch for entry in trained.looks] == list(range(1, 7))
    scores = [entry.scores["choice"] for entry in trained.looks]
    assert trained.chosen == 1 + scores.index(max(scores))


def test_training_does_not_use_labels(data):
    """With other true labels the weights and the epoch are the same."""
    prior = draw_negatives(data.train.labels, 3, 1, seed=0)
    wrong = ImageSplits(
        train=LabelledImages(**vars(data.train) | {"labels": (data.train.labels + 1) % 3}),
        test=LabelledImages(**vars(data.test) | {"labels": (data.test.labels + 1) % 3}),
    )
    one, other = (train_partial(some, prior, QUICK) for some in (data, wrong))
    assert one.chosen == other.chosen
    assert one.looks[-1].test != other.looks[-1].test
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_network_is_that_of_the_chosen_epoch(data):
    prior = draw_negatives(data.train.labels, 3, 1, seed=0)
    trained = train_partial(data, prior, QUICK.model_copy(update={"epochs": 5}))
    with torch.no_grad():
        best = trained.network(trained.standardise(data.test.images)).argmax(1)
    assert 100 * float((best == data.test.labels).double().mean()) == pytest.approx(
        trained.looks[trained.chosen - 1].test
    )


def test_without_labels_there_is_no_accuracy(data):
    unknown = LabelledImages(**vars(data.train) | {"labels": torch.full((180,), -1)})
    prior = draw_negatives(data.train.labels, 3, 1, seed=0)
    trained = train_partial(ImageSplits(train=unknown), prior, QUICK)
    assert {(look.train, look.test) for look in trained.looks} == {(None, None)}


def test_sets_of_another_shape_are_refused(data):
    with pytest.raises(InputError, match=r"shape \(180, 2\), not \(180, 3\)"):
        train_partial(data, torch.ones((180, 2)), QUICK)
    with pytest.raises(InputError, match="1 images are too few"):
        train_partial(data, torch.ones((180, 3)), QUICK, items=torch.tensor([4]))


def test_a_collapse_gives_a_warning(data):
    flat = torch.full((180, 3), 1 / 3)
    with pytest.warns(CollapseWarning, match="one class has 100.0 % of the held-out items"):
        train_partial(data, flat, QUICK.model_copy(update={"loss": "ce", "learning_rate": 1e-9, "epochs": 1}))


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (PartialSettings(), 2e-3),
        (PartialSettings(batch_size=64), 1e-3),
        (PartialSettings(batch_size=4), 2.5e-4),
        (PartialSettings(batch_size=1024), 2e-3),
        (PartialSettings(batch_size=8, learning_rate=0.1), 0.1),
        (RankSettings(), 2e-3),
        (RankSettings(batch_size=8), 5e-4),
    ],
)
def test_the_rate_scales_with_the_square_root_of_the_batch_size(settings, rate):
    assert settings.loop(3, "rq").learning_rate == pytest.approx(rate)


# -- sweeps ------------------------------------------------------------------------------------------


SWEEP = Sweep(
    losses=("rq", "ce"), marginals=("batch", "running", "uniform"), batch_sizes=(8, 32), seeds=2, training=QUICK
)


def test_cells_of_a_sweep(data, tmp_path):
    cells = SweepRunner(data, SWEEP, tmp_path).cells()
    assert len(cells) == 2 * 2 * (3 + 1)
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    assert {cell.row()["marginal"] for cell in cells if cell.loss == "ce"} == {""}


@pytest.mark.parametrize("marginal", ["batch", "running", "uniform"])
def test_an_interrupted_sweep_ends_with_the_same_results(data, tmp_path, monkeypatch, marginal):
    """After an interruption in the second epoch of the second training, results and weights are the same."""
    sweep = Sweep(marginals=(marginal,), batch_sizes=(8,), seeds=2, training=QUICK)
    whole = SweepRunner(data, sweep, tmp_path / "whole").run()
    feed = sweep_module.train_partial.__globals__["CandidateFeed"]
    interruption = pytest.raises(TrainingInterruptedError, match="the same command resumes from there")
    with interrupted_at(monkeypatch, feed, 3 * 20 + 45), interruption:
        SweepRunner(data, sweep, tmp_path / "cut").run()
    assert len(read_runs(tmp_path / "cut")) == 1
    assert len(list((tmp_path / "cut" / "models").glob("*.checkpoint"))) == 1
    again = SweepRunner(data, sweep, tmp_path / "cut").run()
    assert again == whole
    assert not list((tmp_path / "cut" / "models").glob("*.checkpoint"))
    from safetensors.torch import load_file

    for path in (tmp_path / "whole" / "models").glob("*.safetensors"):
        mine, theirs = load_file(path), load_file(tmp_path / "cut" / "models" / path.name)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_finished_trainings_are_not_repeated(data, tmp_path, monkeypatch):
    sweep = Sweep(batch_sizes=(8,), training=QUICK)
    first = SweepRunner(data, sweep, tmp_path).run()
    monkeypatch.setattr(sweep_module, "train_partial", None)
    assert SweepRunner(data, sweep, tmp_path).run() == first
    other = sweep.model_copy(update={"training": QUICK.model_copy(update={"epochs": 9})})
    with pytest.raises(InputError, match=r"results of other data or settings .*; give another folder with -o"):
        SweepRunner(data, other, tmp_path).run()


def test_the_error_names_a_damaged_line(data, tmp_path):
    (tmp_path / RESULTS).write_text('{"row": 3}\n')
    with pytest.raises(InputError, match=r"results.jsonl.*; delete that line"):
        SweepRunner(data, SWEEP, tmp_path).done()


def test_thinning_in_a_sweep(data, tmp_path):
    sweep = Sweep(thin={"0": 0.5, "2": 0.1}, batch_sizes=(2,), training=QUICK)
    (run,) = SweepRunner(data, sweep, tmp_path).run()
    assert run.items == 96 - 10  # 30 + 60 + 6, minus a tenth
    assert run.row["thin"] == "0x0.5+2x0.1"
    with pytest.raises(InputError, match="'7' to thin is not among the classes"):
        SweepRunner(data, Sweep(thin={"7": 0.5}), tmp_path)
    with pytest.raises(ValidationError, match="the share of 0 to keep"):
        Sweep(thin={"0": 0.0})


def test_the_report_has_the_chosen_the_best_and_the_last_epoch(data, tmp_path):
    runs = SweepRunner(data, Sweep(batch_sizes=(8,), seeds=2, training=QUICK), tmp_path).run()
    (line,) = summarise(runs)
    curves = [[look.test for look in run.looks] for run in runs]
    assert line.peak == pytest.approx(np.mean([max(curve) for curve in curves]))
    assert line.final == pytest.approx(np.mean([curve[-1] for curve in curves]))
    assert line.by_seed == tuple(curve[run.chosen - 1] for curve, run in zip(curves, runs, strict=True))
    text = to_markdown([line], missing=3)
    assert "**3 trainings are still to be run.**" in text
    assert f"| rq | batch | 1 | 8 | 2 | {line.chosen:.2f} ±{line.spread:.2f} |" in text


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, data):
    path = tmp_path / "bands.npz"
    arrays = {f"x_{part}": getattr(data, part).images[:, 0].numpy() for part in ("train", "test")}
    np.savez(path, **arrays, **{f"y_{part}": getattr(data, part).labels.numpy() for part in ("train", "test")})
    return path


def call(*arguments):
    return CliRunner().invoke(main, ["-q", *map(str, arguments)])


OPTIONS = ("--epochs", 6, "--filters", 6, "--learning-rate", 0.01, "--device", "cpu")


def test_the_command_end_to_end(tmp_path, archive):
    out = tmp_path / "out"
    arguments = ["partial-labels", archive, *OPTIONS, "--batch-size", 8, "--batch-size", 16, "--loss", "rq"]
    arguments += ["--loss", "ce", "--marginal", "batch", "--marginal", "running", "--predictions", "-o", out]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "| rq | running | 1 | 8 | 1 |" in result.output
    names = {path.name for path in out.iterdir()}
    assert names == {
        "results.jsonl", "report.md", "report.json", "curves.png", "batch.png", "models", "predictions",
    }  # fmt: skip
    assert len(list((out / "models").iterdir())) == len(list((out / "predictions").iterdir())) == 6
    with (out / "predictions" / "loss_rq-marginal_running-negatives_1-batch_8-seed_0.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 240
    assert sum(row["label"] == row["predicted"] for row in rows) > 230
    assert all(sum(float(row[name]) for name in "012") == pytest.approx(1, abs=1e-5) for row in rows)
    again = call(*arguments, "--json")
    assert again.exit_code == 0, again.output
    lines = json.loads(again.stdout)
    assert [line["row"]["loss"] for line in lines] == ["rq", "rq", "ce"] * 2
    assert lines[0]["chosen"] > 90


def test_given_sets_without_any_labels(tmp_path, data):
    """With only images, class names and sets, r of the training images is the result."""
    path, sets = tmp_path / "mine.npz", tmp_path / "sets.csv"
    np.savez(path, x=data.train.images[:, 0].numpy())
    prior = draw_negatives(data.train.labels, 3, 1, seed=5)
    names = np.array(["low", "mid", "high"])
    lines = [f"{i},{'|'.join(names[row > 0])}" for i, row in enumerate(prior.numpy())]
    sets.write_text("\n".join(["item,candidates", *lines]))
    out = tmp_path / "out"
    arguments = ["partial-labels", path, "--classes", "low,mid,high", "--candidates", sets, *OPTIONS]
    result = call(*arguments, "--batch-size", 8, "--predictions", "-o", out)
    assert result.exit_code == 0, result.output
    assert "| - | - | - | - |" in result.output
    (predictions,) = (out / "predictions").iterdir()
    with predictions.open() as stream:
        rows = list(csv.DictReader(stream))
    right = [row["predicted"] == names[label] for row, label in zip(rows, data.train.labels.tolist(), strict=True)]
    assert sum(right) > 170
    ruled_out = [float(row[name]) for row, set_ in zip(rows, prior, strict=True) for name in names[set_.numpy() == 0]]
    assert set(ruled_out) == {0.0}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "DATA is missing"),
        (["nowhere.npz"], 1, "no such file or folder: nowhere.npz"),
        (["{}", "--candidates", "x.csv", "--negatives", "1"], 2, "are mutually exclusive"),
        (["{}", "--candidates", "x.csv"], 1, "no such file: x.csv"),
        (["{}", "--negatives", "3"], 1, "3 negative labels per item cannot be drawn from 3 classes; give 1 to 2"),
        (["{}", "--thin", "0"], 2, "'0' is not CLASS:SHARE"),
        (["{}", "--thin", "0:2"], 2, "the share of 0 to keep"),
        (["{}", "--thin", "9:0.5"], 1, "'9' to thin is not among the classes"),
        (["{}", "--classes", "a,a"], 1, "give at least two classes, each once"),
        (["{}", "--download", "mnist", "--classes", "a,b"], 2, "--download cannot be used with"),
    ],
)
def test_mistakes_give_one_line(tmp_path, archive, arguments, code, said):
    given = [str(archive) if text == "{}" else text for text in arguments]
    result = call("partial-labels", *given, "-o", tmp_path / "out")
    assert result.exit_code == code, result.output
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.realdata
@pytest.mark.slow
def test_real_digits_from_one_negative_label():
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no digits at {folder}; set LANDPRIOR_TEST_DATA to the folder that holds mnist/")
    digits = read_images(folder / "mnist.npz")
    prior = draw_negatives(digits.train.labels, 10, 1, seed=0)
    trained = train_partial(digits, prior, PartialSettings(epochs=12))
    assert trained.looks[trained.chosen - 1].test >= 95.0
