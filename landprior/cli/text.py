"""``landprior text``."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import click

from landprior.cli import options as shared
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_options, make_checked, pick_given
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.domains.text.settings import TextSettings

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from landprior.domains.text.documents import Documents, Tree
    from landprior.run import Run

logger = logging.getLogger(__name__)

FIELDS = ("loss", "epochs", "warmup_epochs", "batch_size", "learning_rate", "marginal", "seed")
"""Fields of the settings that are options."""


@click.command(name="text", cls=Command, former={"--labels": "--label-by"})
@click.argument("documents", type=INPUT)
@grouped(
    "Documents",
    click.option(
        "--tree", required=True, type=INPUT, help="Fine classes below each coarse label, a JSON or YAML file."
    ),
    click.option(
        "--text-column",
        "text",
        multiple=True,
        help="Column of the text; may be repeated to join several.  [default: text]",
    ),
    click.option("--coarse-column", "coarse", default="coarse", show_default=True, help="Column of the coarse label."),
    click.option(
        "--fine-column", "fine", help="Column of the fine label, for scores only.  [default: fine, if there is one]"
    ),
    click.option("--id-column", "identity", help="Column that names a document.  [default: id, if there is one]"),
)
@grouped(
    "Prior",
    click.option("--prior", type=INPUT, help="Prior of your own (.npz, .csv), or one written by --save-prior."),
    click.option("--embeddings", type=INPUT, help="Sentence embeddings, or their cosines with the classes (.npz)."),
    click.option(
        "--model",
        metavar="PATH|NAME",
        help="Causal language model: a folder, a .gguf file, or a Hugging Face name.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        default=0.05,
        show_default=True,
        help="Temperature that cosines are divided by, for --embeddings.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=8),
        default=128,
        show_default=True,
        help="Number of tokens of a document that --model sees; longer texts are truncated.",
    ),
    click.option(
        "--save-prior", type=OUTPUT, help="File (.npz) to write the prior to, for --prior; a model takes minutes."
    ),
)
@grouped("Training", *field_options(TextSettings, *FIELDS))
@shared.choice_option(
    "--label-by",
    "which",
    choices=["q", "r"],
    default="q",
    help="Probabilities that choose the label: the network's, or the posterior's, which are closer to the prior.",
)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Predictions to write: .csv or .jsonl.")
@shared.run_options("device", "overwrite")
@shared.json_option
def command(
    *,
    documents: Path,
    tree: Path,
    prior: Path | None,
    embeddings: Path | None,
    model: str | None,
    output: Path,
    which: Literal["q", "r"],
    text: tuple[str, ...],
    coarse: str,
    fine: str | None,
    identity: str | None,
    temperature: float,
    max_tokens: int,
    save_prior: Path | None,
    run: Run,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the fields of the settings
) -> None:
    """Sort documents with a coarse label into the fine classes below it, without fine labels.

    \b
    landprior text docs.jsonl --tree labels.json --model gpt2 --save-prior prior.npz -o predictions.csv
    landprior text docs.jsonl --tree labels.json --prior prior.npz --seed 1 -o predictions_1.csv
    landprior text docs.csv.gz --tree labels.yaml --embeddings emb.npz --loss rq -o predictions.jsonl
    landprior text docs.csv --text-column title --text-column body --tree labels.yaml --prior mine.csv -o out.csv

    A tree is a file such as {"sports": ["hockey", "tennis"], "arts": ["dance", "music"]}. The prior over the classes
    below a document's label comes from a language model (how likely is the class's name after the text and "Topic:"),
    from sentence embeddings or from you; logistic regression on letter trigrams is trained against it. Where
    documents have fine labels, the prior and the result are scored. docs/weak-labels/text.md has the formats.
    """  # noqa: D301
    if sum(source is not None for source in (prior, embeddings, model)) != 1:
        msg = "give one of --prior FILE, --embeddings FILE and --model PATH: the source of the prior"
        raise click.UsageError(msg)
    settings = make_checked(TextSettings, "the training", **pick_given(options))
    if settings.warmup_epochs is not None and settings.warmup_epochs >= settings.epochs:
        msg = f"--warmup-epochs {settings.warmup_epochs} leaves no epochs of --epochs {settings.epochs} for the loss"
        raise click.UsageError(msg)
    if save_prior is not None and save_prior.suffix != ".npz":
        msg = f"--save-prior {save_prior}: a prior is written as .npz"
        raise click.UsageError(msg)
    from landprior.domains.text.classification import classify
    from landprior.domains.text.documents import read_documents, read_tree
    from landprior.domains.text.features import trigram_features
    from landprior.domains.text.prior import read_prior
    from landprior.domains.text.prior import save_prior as write_prior
    from landprior.domains.text.results import check_predictions, score, write_predictions
    from landprior.raster.locks import claiming
    from landprior.raster.outputs import check_outputs, checkpoint_path

    check_predictions(output)
    wanted = [output, *([] if save_prior is None else [save_prior])]
    target = check_outputs(wanted, overwrite=run.overwrite, inputs=(documents, tree, prior, embeddings))[0]
    classes = read_tree(tree)
    found = read_documents(documents, classes, text=text or ("text",), coarse=coarse, fine=fine, identity=identity)
    file = prior or embeddings
    if file is not None:
        table = read_prior(file, found, classes, temperature=temperature)
    else:
        table = _score_names(str(model), found, classes, max_tokens=max_tokens, run=run)
    if save_prior is not None:
        write_prior(save_prior, table, found, classes, overwrite=run.overwrite)
        logger.info("written: %s", save_prior)
    checkpoint = checkpoint_path(target)
    features = trigram_features(found.texts)
    with claiming(target):
        result = classify(features, table, found, classes, settings, checkpoint=checkpoint, run=run)
        write_predictions(target, result, found, classes, which=which, overwrite=run.overwrite)
        checkpoint.unlink(missing_ok=True)
    scores = {
        name: score(labels, found)
        for name, labels in (
            ("prior", table.argmax(axis=1)),
            ("q", result.labels("q")),
            ("r", result.labels("r")),
        )
    }
    if as_json:
        record = {
            "output": str(output),
            "documents": len(found),
            "loss": settings.loss,
            "labels_of": which,
            "prior": {
                "information": result.judgement.information,
                "weak": result.judgement.weak,
                "loose": result.judgement.loose,
            },
            "scores": {name: vars(each) for name, each in scores.items() if each is not None},
        }
        click.echo(json.dumps(record))
        return
    for name, each in scores.items():
        if each is not None:
            what = f"{name} (the labels written)" if name == which else name
            click.echo(
                f"{what:<24} micro-F1 {each.micro_f1:.4f}  macro-F1 {each.macro_f1:.4f}  {each.documents} documents"
            )
    click.echo(str(output))


def _score_names(model: str, documents: Documents, tree: Tree, *, max_tokens: int, run: Run) -> NDArray[np.float64]:
    from landprior.domains.text.language_model import load_language_model, score_names
    from landprior.domains.text.prior import prior_from_scores

    language = load_language_model(model, device=run.device)
    scores = score_names(documents, tree, language, max_tokens=max_tokens, progress=run.progress)
    return prior_from_scores(scores, documents, tree)
