"""Documents into fine classes: ``python -m benchmarks.text``.

The newsgroups of the data folder, with the prior from sentence embeddings: F1 of the prior's best class and of
four losses, three seeds each, and the duration of ten epochs. All losses have the learning rate of ``TextSettings``;
cross-entropy is also run with its own best, chosen in the same way (``--choose``). The articles of the New York Times
are only an illustration: their fine labels were made by matching names. The figures are in docs/weak-labels/text.md.

``--choose`` prints the scores by which the settings were chosen: the *coarse* label of training documents is predicted
as if it were the fine one, without any fine label. ``--model`` scores names with a language model for some documents.
"""

from __future__ import annotations

import gzip
import json
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from landprior.domains.text.classification import Classification, classify
from landprior.domains.text.documents import Documents, Tree, make_tree, read_documents, read_tree
from landprior.domains.text.features import trigram_features
from landprior.domains.text.language_model import load_language_model, score_names
from landprior.domains.text.prior import calibrate, normalise_scores, prior_from_scores, read_prior
from landprior.domains.text.results import score
from landprior.domains.text.settings import TextSettings
from landprior.errors import LandpriorWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

CE_RATE = 5e-3
"""The best learning rate of cross-entropy by ``--choose``."""

RUNS: dict[str, dict[str, object]] = {
    "ce": {"loss": "ce"},
    "ce, its own rate": {"loss": "ce", "learning_rate": CE_RATE},
    "nll-union": {"loss": "nll-union"},
    "qr": {"loss": "qr"},
    "qr-kl": {"loss": "qr-kl"},
    "rq": {"loss": "rq"},
    "rq, running marginal": {"loss": "rq", "marginal": "running"},
    "rq, no warm-up": {"loss": "rq", "warmup_epochs": 0},
    "rq, warm-up 3": {"loss": "rq", "warmup_epochs": 3},
}


def data_folder() -> Path:
    """Return the folder with the texts."""
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", DATA)) / "text"
    if not folder.is_dir():
        msg = f"no texts at {folder}; set LANDPRIOR_TEST_DATA to the folder that holds text/"
        raise click.ClickException(msg)
    return folder


def read_newsgroups(folder: Path) -> tuple[Tree, Documents]:
    """Read the newsgroups: subject and text."""
    tree = read_tree(folder / "newsgroups_labels.json")
    return tree, read_documents(folder / "newsgroups.jsonl.gz", tree, text=("subject", "text"))


def read_nyt(folder: Path) -> tuple[Tree, Documents]:
    """Read the articles; their labels define the tree."""
    path = folder / "nyt_c2f.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    tree = make_tree({row["fine_machine"]: row["coarse"] for row in rows})
    return tree, read_documents(path, tree, fine="fine_machine")


def within(path: Path, documents: Documents) -> Documents:
    """Return the documents covered by a prior's file."""
    with np.load(path, allow_pickle=False) as file:
        ids = set(file["ids"].tolist())
    return documents.take([row for row, name in enumerate(documents.ids or ()) if name in ids])


def compare(name: str, prior_file: Path, tree: Tree, documents: Documents, seeds: int, runs: list[str]) -> None:
    """Print a table of losses on documents."""
    documents = within(prior_file, documents)
    prior = read_prior(prior_file, documents, tree)
    start = time.perf_counter()
    features = trigram_features(documents.texts)
    counting = time.perf_counter() - start
    click.echo(f"\n{name}, {len(documents):,} documents, {prior_file.name}; features in {counting:.1f} s")
    click.echo(f"{'':<22} {'micro-F1 of each seed':<28} {'mean':>6} {'macro':>6} {'of r':>6}  seconds")
    show("argmax of the prior", [prior.argmax(axis=1)], [prior.argmax(axis=1)], documents, [])
    for run in runs:
        found, from_r, seconds = [], [], []
        for seed in range(seeds):
            settings = TextSettings.model_validate(RUNS[run] | {"seed": seed})
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", LandpriorWarning)
                result = classify(features, prior, documents, tree, settings)
            seconds.append(time.perf_counter() - start)
            found.append(result.labels())
            from_r.append(result.labels("r"))
            for message in {str(w.message).split(":")[0] for w in caught if issubclass(w.category, LandpriorWarning)}:
                click.echo(f"  {run}, seed {seed} warns: {message}")
        show(run, found, from_r, documents, seconds)


def show(
    name: str,
    found: list[NDArray[np.int64]],
    from_r: list[NDArray[np.int64]],
    documents: Documents,
    seconds: list[float],
) -> None:
    """Print a line of the table."""
    scores = [score(each, documents) for each in found]
    others = [score(each, documents) for each in from_r]
    micro = [each.micro_f1 for each in scores if each is not None]
    macro = np.mean([each.macro_f1 for each in scores if each is not None])
    of_r = np.mean([each.micro_f1 for each in others if each is not None])
    each = "  ".join(f"{value:.4f}" for value in micro)
    took = f"{np.mean(seconds):.1f}" if seconds else ""
    click.echo(f"{name:<22} {each:<28} {np.mean(micro):.4f} {macro:.4f} {of_r:.4f}  {took}")


def choose(folder: Path, seeds: int) -> None:
    """Print the scores of settings that predict the coarse label of training documents; no fine label is used.

    All documents are put below one root; the prior of a coarse label is the sum of those of its fine classes.
    """
    tree, everything = read_newsgroups(folder)
    with gzip.open(folder / "newsgroups.jsonl.gz", "rt", encoding="utf-8") as stream:
        documents = everything.take([row for row, line in enumerate(stream) if json.loads(line)["split"] == "train"])
    with np.load(folder / "newsgroups_minilm.npz", allow_pickle=False) as file:
        rows = {name: row for row, name in enumerate(file["ids"].tolist())}
        columns = [file["fine"].tolist().index(name) for name in tree.fine]
        cosine = file["cosine"].astype(np.float64)[[rows[name] for name in documents.ids or ()]][:, columns]
    flat = normalise_scores(20 * cosine, np.ones_like(cosine, dtype=bool))
    root = np.zeros(len(documents), dtype=np.int64)
    prior = calibrate(flat @ tree.children.T.astype(np.float64), root)
    surrogate = Documents(texts=documents.texts, coarse=root, fine=documents.coarse)
    above = make_tree(dict.fromkeys(tree.coarse, "root"))
    features = trigram_features(documents.texts)
    base = score(prior.argmax(axis=1), surrogate)
    click.echo(f"coarse labels of {len(documents):,} training documents; argmax of the prior {base.micro_f1:.4f}")  # type: ignore[union-attr]
    for loss in ("ce", "nll-union", "qr", "rq"):
        for rate in (5e-3, 1e-2, 2e-2, 4e-2):
            for warm in (0, 2) if loss in ("qr", "rq") else (0,):
                for marginal in ("batch", "running") if loss == "rq" else ("batch",):
                    options = {"loss": loss, "learning_rate": rate, "warmup_epochs": warm, "marginal": marginal}
                    results = []
                    for seed in range(seeds):
                        settings = TextSettings.model_validate(options | {"seed": seed})
                        results.append(quietly(features, prior, surrogate, above, settings))
                    kinds = [np.mean([f1(each.labels(which), surrogate) for each in results]) for which in ("q", "r")]
                    options_text = f"rate {rate:g}, warm-up {warm}, {marginal} marginal"
                    click.echo(f"{loss:<10} {options_text:<42} q {kinds[0]:.4f}  r {kinds[1]:.4f}")


def quietly(
    features: object, prior: NDArray[np.float64], documents: Documents, tree: Tree, settings: TextSettings
) -> Classification:
    """Classify without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandpriorWarning)
        return classify(features, prior, documents, tree, settings)


def f1(found: NDArray[np.int64], documents: Documents) -> float:
    """Return the micro-F1."""
    scores = score(found, documents)
    return float("nan") if scores is None else scores.micro_f1


def ask(name: str, tree: Tree, documents: Documents, prior_file: Path, model: Path, count: int) -> None:
    """Score names with a language model for some documents in both ways, and compare with the stored prior."""
    documents = within(prior_file, documents)
    chosen = np.sort(np.random.default_rng(0).permutation(len(documents))[:count])
    documents = documents.take(chosen)
    language = load_language_model(model)
    timings, scores = [], []
    for share in (True, False):
        start = time.perf_counter()
        scores.append(score_names(documents, tree, language, share=share))
        timings.append(time.perf_counter() - start)
    finite = np.isfinite(scores[0])
    several = tree.children[documents.coarse].sum(axis=1) > 1
    prior = prior_from_scores(scores[0], documents, tree)
    raw = normalise_scores(scores[0], documents.allowed(tree))
    stored = read_prior(prior_file, documents, tree)
    assert documents.fine is not None  # these sets have fine labels
    rights = [np.mean(p.argmax(axis=1)[several] == documents.fine[several]) for p in (raw, prior, stored)]
    click.echo(
        f"\n{name}, {model.name}, {len(documents)} documents ({int(several.sum())} with several classes): "
        f"{timings[0]:.0f} s, {timings[1]:.0f} s with a pass for every name; largest difference "
        f"{np.abs(scores[0][finite] - scores[1][finite]).max():.1e} nats\n"
        f"right, of those with several classes: {rights[0]:.3f} raw, {rights[1]:.3f} divided by the mean, "
        f"{rights[2]:.3f} the stored one"
    )


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--choose", "choosing", is_flag=True, help="Print how settings were chosen instead.")
@click.option("--model", type=click.Path(path_type=Path), help="Score some documents with this language model instead.")
@click.option("--documents", "count", default=300, show_default=True, help="Number of documents for --model.")
def main(seeds: int, *, choosing: bool, model: Path | None, count: int) -> None:
    """Compare losses on the newsgroups."""
    folder = data_folder()
    if choosing:
        choose(folder, seeds)
        return
    newsgroups, nyt = read_newsgroups(folder), read_nyt(folder)
    if model is not None:
        ask("newsgroups", *newsgroups, folder / "newsgroups_smollm2.npz", model, count)
        return
    full = [name for name in RUNS if name != "rq, no warm-up"]  # it is the default there
    compare("newsgroups", folder / "newsgroups_minilm.npz", *newsgroups, seeds, full)
    click.echo("\nFor illustration only:")
    short = ["ce, its own rate", "rq", "rq, no warm-up", "rq, warm-up 3"]
    compare("newsgroups", folder / "newsgroups_smollm2.npz", *newsgroups, seeds, short)
    compare("nyt_c2f", folder / "nyt_c2f_minilm.npz", *nyt, seeds, short)
    compare("nyt_c2f", folder / "nyt_c2f_smollm2.npz", *nyt, seeds, short)


if __name__ == "__main__":
    main()
