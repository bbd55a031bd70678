"""Classifying documents: the feed, training, warnings, scores, files, the command, and the newsgroups."""

import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import f1_score

from landprior.cli import main
from landprior.domains.text.classification import DocumentFeed, SparseLinear, SparseRows, classify, judge
from landprior.domains.text.documents import UNKNOWN, Documents, make_tree, read_documents, read_tree
from landprior.domains.text.features import trigram_features
from landprior.domains.text.prior import read_prior, save_prior
from landprior.domains.text.results import score, write_predictions
from landprior.domains.text.settings import TextSettings
from landprior.errors import HarmWarning, InputError, OutputExistsError, TrainingInterruptedError
from landprior.implicit.posterior import log_posterior
from landprior.run import Run

TREE = make_tree({"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"})


def make_corpus(count=900, *, seed=0, right=0.6):
    """Return documents whose words determine the class, and a prior that is right for some of them."""
    rng = np.random.default_rng(seed)
    syllables = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(120)]
    favourites = [rng.choice(120, 12, replace=False) for _ in TREE.fine]
    fine = rng.integers(0, len(TREE.fine), count)
    texts = []
    for label in fine:
        words = np.concatenate([rng.choice(favourites[label], 6), rng.integers(0, 120, 12)])
        texts.append(" ".join(syllables[word] for word in rng.permutation(words)))
    documents = Documents(
        texts=tuple(texts), coarse=TREE.parent[fine], fine=fine, ids=tuple(f"d{n}" for n in range(count))
    )
    allowed = documents.allowed(TREE)
    prior = np.where(allowed, 0.5, 0.0)
    for row, label in enumerate(fine):
        children = np.flatnonzero(allowed[row])
        prior[row, label if rng.random() < right else rng.choice(children)] += 1
    return documents, prior / prior.sum(axis=1, keepdims=True)


CORPUS = make_corpus()
FEATURES = trigram_features(CORPUS[0].texts)


def run(settings=None, *, corpus=CORPUS, features=FEATURES, **options):
    documents, prior = corpus
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HarmWarning)
        return classify(features, prior, documents, TREE, settings, run=Run(device="cpu"), **options)


def accuracy(found, documents=CORPUS[0]):
    return score(found, documents).micro_f1


# -- parts ---------------------------------------------------------------------------------------


def test_sparse_rows_equal_those_of_the_matrix(rng):
    rows = SparseRows(FEATURES)
    chosen = torch.from_numpy(rng.integers(0, 900, 20))
    assert np.array_equal(rows.take(chosen).to_dense().numpy(), FEATURES[chosen.numpy()].toarray())
    layer = SparseLinear(FEATURES.shape[1], 3)
    assert (layer(rows.take(chosen)) == 0).all()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rng.normal(size=layer.weight.shape)))
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = FEATURES[chosen.numpy()] @ layer.weight.detach().numpy() + [1, 2, 3]
    np.testing.assert_allclose(layer(rows.take(chosen)).detach(), expected, atol=1e-5)


def test_sparse_and_dense_rows_have_the_same_gradient(rng):
    x = SparseRows(FEATURES).take(torch.arange(30))
    weights = torch.from_numpy(rng.normal(size=(30, 3))).float()
    grads = []
    for inputs in (x, x.to_dense()):
        layer = SparseLinear(FEATURES.shape[1], 3)
        logits = layer(inputs) if inputs.is_sparse else inputs @ layer.weight + layer.bias
        (logits * weights).sum().backward()
        grads.append((layer.weight.grad, layer.bias.grad))
    for one, other in zip(*grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 256, 5000])
def test_every_document_is_seen_once_per_epoch(batch_size):
    matrix = trigram_features([f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}z" for n in range(57)])
    log_prior = torch.arange(57.0)[:, None].expand(-1, 2)
    feed = DocumentFeed(SparseRows(matrix), log_prior, batch_size=batch_size, seed=3)
    assert feed.epoch_steps == -(-57 // batch_size)
    epochs = [[feed(epoch * feed.epoch_steps + step) for step in range(feed.epoch_steps)] for epoch in range(2)]
    orders = [torch.cat([batch.log_prior[:, 0] for batch in epoch]).tolist() for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(57))
    assert orders[0] != orders[1]
    sizes = {len(batch.log_prior) for batch in epochs[0]}
    assert max(sizes) - min(sizes) <= 1
    for batch in epochs[0]:
        rows = batch.log_prior[:, 0].long().numpy()
        assert np.array_equal(batch.inputs.to_dense().numpy(), matrix[rows].toarray())
    again = DocumentFeed(SparseRows(matrix), log_prior, batch_size=batch_size, seed=3)
    assert torch.equal(again(feed.epoch_steps).log_prior, epochs[1][0].log_prior)  # depends only on the step


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "least"), [("rq", 0.9), ("qr", 0.9), ("ce", 0.9), ("nll-union", 0.93)])
def test_training_beats_its_prior(loss, least):
    documents, prior = CORPUS
    assert 0.75 < accuracy(prior.argmax(axis=1)) < 0.83
    result = run(TextSettings(loss=loss, epochs=20))
    assert accuracy(result.labels()) > least
    allowed = documents.allowed(TREE)
    for log_p in (result.log_q, result.log_r):
        assert np.array_equal(np.isfinite(log_p), allowed)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-5)
    assert len(result.history.epochs) == 20


def test_r_is_the_posterior_with_the_marginal_of_all_documents():
    result = run(TextSettings(epochs=2))
    with torch.no_grad():
        log_q = result.network(SparseRows(FEATURES).take(torch.arange(900)))
    expected = log_posterior(log_q, torch.from_numpy(CORPUS[1]).log().float())
    np.testing.assert_allclose(result.log_r, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_result():
    one, two, other = (run(TextSettings(epochs=2, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.log_q, two.log_q)
    assert not np.array_equal(one.log_q, other.log_q)


def test_training_does_not_use_fine_labels():
    documents, prior = CORPUS
    blind = Documents(texts=documents.texts, coarse=documents.coarse, ids=documents.ids)
    assert np.array_equal(run(TextSettings(epochs=2)).log_r, run(TextSettings(epochs=2), corpus=(blind, prior)).log_r)


def test_small_batches_learn_with_the_running_marginal():
    settings = TextSettings(epochs=4, batch_size=8, learning_rate=5e-3, marginal="running")
    assert accuracy(run(settings).labels()) > 0.9


def test_an_interrupted_run_ends_with_the_same_result(tmp_path, monkeypatch):
    settings = TextSettings(epochs=4, batch_size=100)
    whole = run(settings)
    checkpoint = tmp_path / "state"
    take = SparseRows.take
    count = 0

    def interrupted(self, rows):
        nonlocal count
        count += 1
        if count == 24:  # in the third epoch
            raise KeyboardInterrupt
        return take(self, rows)

    monkeypatch.setattr(SparseRows, "take", interrupted)
    with pytest.raises(TrainingInterruptedError, match="the same command resumes"):
        run(settings, checkpoint=checkpoint)
    monkeypatch.setattr(SparseRows, "take", take)
    resumed = run(settings, checkpoint=checkpoint)
    assert np.array_equal(resumed.log_q, whole.log_q)
    assert [epoch.step for epoch in resumed.history.epochs] == [9, 18, 27, 36]


def test_settings_without_steps_for_the_loss():
    with pytest.raises(InputError, match="4 epochs of warm-up leave no epochs of 4 for rq"):
        run(TextSettings(epochs=4, warmup_epochs=4))
    assert run(TextSettings(loss="ce", epochs=1, warmup_epochs=4)).history.epochs  # ce has no warm-up
    with pytest.raises(InputError, match=r"do not match \(900, 6\)"):
        run(features=FEATURES[:10])


# -- warnings ------------------------------------------------------------------------------------


def test_a_weak_prior_gives_a_warning_and_a_warm_up():
    documents, prior = CORPUS
    allowed = documents.allowed(TREE)
    flat = 0.15 * prior + 0.85 * allowed / allowed.sum(axis=1, keepdims=True)
    with pytest.warns(HarmWarning, match="the prior is weak: it removes 0% of the fine classes' entropy"):
        weak = classify(FEATURES, flat, documents, TREE, TextSettings(epochs=10), run=Run(device="cpu"))
    assert weak.judgement.weak
    with pytest.warns(HarmWarning, match="weak"):
        warmed = classify(
            FEATURES, flat, documents, TREE, TextSettings(epochs=10, warmup_epochs=3), run=Run(device="cpu")
        )
    assert np.array_equal(weak.log_q, warmed.log_q)
    settings = TextSettings()
    assert (settings.warm(weak=True), settings.warm(weak=False)) == (3, 0)
    assert TextSettings(epochs=3).warm(weak=True) == 0
    assert TextSettings(loss="ce").warm(weak=True) == 0


def test_swapped_classes_are_detected_without_labels():
    documents, _ = CORPUS
    sharp = make_corpus(right=0.9)[1] ** 4
    sharp /= sharp.sum(axis=1, keepdims=True)
    right = judge(sharp, documents.fine, documents, TREE)
    assert not right.loose
    assert not right.weak
    turned = np.array([1, 2, 0, 4, 3, 5])[documents.fine]
    wrong = judge(sharp, turned, documents, TREE)
    assert wrong.loose
    assert wrong.mean_prior < wrong.chance < right.mean_prior
    alone = Documents(texts=("x",), coarse=np.array([2]))
    assert not judge(np.eye(6)[[5]], np.array([5]), alone, TREE).loose


# -- scores and files ----------------------------------------------------------------------------


def test_f1_matches_scikit_learn(rng):
    fine, found = rng.integers(0, 6, 200), rng.integers(1, 5, 200)
    fine[fine == 3] = 2
    documents = Documents(
        texts=("x",) * 200, coarse=TREE.parent[fine], fine=np.where(rng.random(200) < 0.3, UNKNOWN, fine)
    )
    known = documents.fine != UNKNOWN
    scores = score(found, documents)
    assert scores.documents == known.sum()
    assert scores.micro_f1 == pytest.approx(f1_score(fine[known], found[known], average="micro"))
    assert scores.macro_f1 == pytest.approx(f1_score(fine[known], found[known], average="macro", zero_division=0))
    assert score(found, Documents(texts=documents.texts, coarse=documents.coarse)) is None


def test_predictions_are_written_completely_or_not_at_all(tmp_path):
    documents, _ = CORPUS
    result = run(TextSettings(epochs=2))
    write_predictions(tmp_path / "p.csv", result, documents, TREE)
    write_predictions(tmp_path / "p.jsonl", result, documents, TREE)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = result.labels()
    assert len(rows) == len(lines) == 900
    for place in (0, 17, 899):
        row, line = rows[place], lines[place]
        assert row["id"] == line["id"] == documents.ids[place]
        assert row["label"] == line["label"] == TREE.fine[labels[place]]
        assert row["coarse"] == line["coarse"] == TREE.coarse[documents.coarse[place]]
        for number, name in enumerate(TREE.fine):
            for key, log_p in (("q", result.log_q), ("r", result.log_r)):
                expected = np.exp(log_p[place, number])
                assert float(row[f"{key}:{name}"]) == pytest.approx(expected, rel=1e-4)
                assert line[key].get(name, 0.0) == pytest.approx(expected, rel=1e-4)
    before = (tmp_path / "p.csv").read_bytes()
    with pytest.raises(OutputExistsError):
        write_predictions(tmp_path / "p.csv", result, documents, TREE)
    with pytest.raises(IndexError):
        write_predictions(tmp_path / "p.csv", result, documents, make_tree({"a1": "a", "a2": "a"}), overwrite=True)
    assert (tmp_path / "p.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.jsonl"]
    with pytest.raises(InputError, match=r"written as \.csv or \.jsonl"):
        write_predictions(tmp_path / "p.txt", result, documents, TREE)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    documents, prior = CORPUS
    rows = [
        {"id": name, "text": text, "coarse": TREE.coarse[coarse], "fine": TREE.fine[fine]}
        for name, text, coarse, fine in zip(
            documents.ids, documents.texts, documents.coarse, documents.fine, strict=True
        )
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = {coarse: [fine for fine, at in zip(TREE.fine, TREE.parent, strict=True) if TREE.coarse[at] == coarse]
            for coarse in TREE.coarse}  # fmt: skip
    (tmp_path / "tree.json").write_text(json.dumps(tree), encoding="utf-8")
    save_prior(tmp_path / "prior.npz", prior, documents, TREE)
    return tmp_path


def call(files, *arguments):
    documents, tree = (str(files / name) for name in ("docs.jsonl", "tree.json"))
    return CliRunner().invoke(main, ["-q", "text", documents, "--tree", tree, *map(str, arguments)])


def test_the_command_end_to_end(files):
    prior = ("--prior", files / "prior.npz", "--epochs", 20)
    done = call(files, *prior, "-o", files / "p.csv", "--json", "--save-prior", files / "again.npz")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["documents"] == 900
    assert record["labels_of"] == "q"
    assert record["scores"]["q"]["micro_f1"] > record["scores"]["prior"]["micro_f1"] + 0.1
    with (files / "p.csv").open(encoding="utf-8", newline="") as stream:
        labels = [TREE.fine.index(row["label"]) for row in csv.DictReader(stream)]
    assert accuracy(np.array(labels)) == pytest.approx(record["scores"]["q"]["micro_f1"])
    assert not list(files.glob(".*checkpoint"))
    again = call(files, "--prior", files / "again.npz", "--epochs", 20, "-o", files / "q.csv")
    assert again.exit_code == 0, again.output
    assert "q (the labels written)" in again.stdout
    assert (files / "q.csv").read_bytes() == (files / "p.csv").read_bytes()
    refused = call(files, *prior, "-o", files / "p.csv")
    assert (refused.exit_code, "--overwrite" in refused.output) == (1, True)


@pytest.mark.needs("transformers")
def test_the_command_uses_a_language_model(files):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(files / "model")
    config = transformers.GPT2Config(n_positions=40, n_embd=8, n_layer=1, n_head=1, vocab_size=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(files / "model")
    with (files / "docs.jsonl").open(encoding="utf-8") as stream:
        some = "".join(next(stream) for _ in range(40))
    (files / "docs.jsonl").write_text(some, encoding="utf-8")
    options = ("--model", files / "model", "--max-tokens", 30, "--epochs", 4, "--save-prior", files / "saved.npz")
    done = call(files, *options, "-o", files / "p.jsonl")
    assert done.exit_code == 0, done.output
    assert "the prior is weak" in done.stderr
    again = call(files, "--prior", files / "saved.npz", "--epochs", 4, "-o", files / "q.jsonl")
    assert again.exit_code == 0, again.output
    assert (files / "q.jsonl").read_bytes() == (files / "p.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give one of --prior FILE, --embeddings FILE and --model PATH"),
        (["--prior", "x", "--model", "y"], 2, "give one of --prior"),
        (["--prior", "x", "--warmup-epochs", "10"], 2, "leaves no epochs of --epochs 10"),
        (["--prior", "x", "--save-prior", "x.csv"], 2, "a prior is written as .npz"),
        (["--prior", "nothing.npz"], 1, "Error: no such file: nothing.npz"),
        (["--prior", "nothing.npz", "--text-column", "body"], 1, "line 1: there is no column 'body'"),
    ],
)
def test_the_command_refuses_in_one_line(files, arguments, code, said):
    done = call(files, *arguments, "-o", files / "p.csv")
    assert done.exit_code == code
    assert said in done.output
    assert not (files / "p.csv").exists()


# -- real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts():
    """Return the folder with the real texts, next to that of the real land-cover sets."""
    root = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", root)) / "text"
    if not folder.is_dir():
        pytest.skip(f"no real texts at {folder}; set LANDPRIOR_TEST_DATA to the folder that holds text/")
    return folder


@pytest.mark.realdata
@pytest.mark.slow
def test_the_newsgroups(texts):
    tree = read_tree(texts / "newsgroups_labels.json")
    documents = read_documents(texts / "newsgroups.jsonl.gz", tree, text=("subject", "text"))
    assert len(documents) == 11_748
    prior = read_prior(texts / "newsgroups_minilm.npz", documents, tree)
    features = trigram_features(documents.texts)
    micro = {
        loss: score(
            classify(features, prior, documents, tree, TextSettings(loss=loss), run=Run(device="cpu")).labels(),
            documents,
        ).micro_f1
        for loss in ("rq", "ce")
    }
    base = score(prior.argmax(axis=1), documents).micro_f1
    assert base == pytest.approx(0.729, abs=0.001)
    assert micro["rq"] > base + 0.05
    assert micro["rq"] > micro["ce"] + 0.03


@pytest.mark.realdata
def test_the_weak_prior_gives_a_warning(texts):
    import gzip

    with gzip.open(texts / "nyt_c2f.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    tree = make_tree({row["fine_machine"]: row["coarse"] for row in rows})
    documents = read_documents(texts / "nyt_c2f.jsonl.gz", tree, fine="fine_machine")
    prior = read_prior(texts / "nyt_c2f_smollm2.npz", documents, tree)
    features = trigram_features(documents.texts)
    with pytest.warns(HarmWarning, match="weak"):
        warmed = classify(features, prior, documents, tree, TextSettings(), run=Run(device="cpu"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collapsed = classify(features, prior, documents, tree, TextSettings(warmup_epochs=0), run=Run(device="cpu"))
    said = [str(warning.message) for warning in caught if warning.category is HarmWarning]
    assert len(said) == 2
    assert "drifted from the prior" in said[0]
    assert "the prior is weak" in said[1]
    assert score(warmed.labels(), documents).micro_f1 > score(collapsed.labels(), documents).micro_f1 + 0.2
