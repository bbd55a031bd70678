"""Scores of predicted classes, and writing predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.domains.text.documents import UNKNOWN
from landprior.errors import InputError
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from landprior.domains.text.classification import Classification, Which
    from landprior.domains.text.documents import Documents, Tree


@dataclass(frozen=True)
class Scores:
    """F1 against fine labels; micro-F1 is the accuracy, as every document has one class."""

    micro_f1: float
    macro_f1: float
    documents: int


def score(found: NDArray[np.int64], documents: Documents) -> Scores | None:
    """Score predicted classes, (N,), against the known fine labels; None if there are none.

    Macro-F1 is the mean over the classes that occur in the labels or the predictions for them.
    """
    if documents.fine is None:
        return None
    known = documents.fine != UNKNOWN
    truth, guess = documents.fine[known], found[known]
    size = int(max(truth.max(), guess.max())) + 1
    right = np.bincount(truth[truth == guess], minlength=size)
    either = np.bincount(truth, minlength=size) + np.bincount(guess, minlength=size)
    return Scores(
        micro_f1=float(right.sum() / len(truth)),
        macro_f1=float((2 * right[either > 0] / either[either > 0]).mean()),
        documents=len(truth),
    )


def write_predictions(
    path: str | Path,
    result: Classification,
    documents: Documents,
    tree: Tree,
    *,
    which: Which = "q",
    overwrite: bool = False,
) -> None:
    """Write a line per document: its name, coarse label, predicted class, and q and r of every fine class.

    Parameters
    ----------
    path
        ``.csv``: columns ``id``, ``coarse``, ``label``, ``q:CLASS`` ..., ``r:CLASS`` ...; ``.jsonl``: the same with
        ``q`` and ``r`` as objects of the classes below the coarse label. Written atomically.
    result
        Result of :func:`classify`.
    documents, tree
        Names, coarse labels and the fine classes below them.
    which
        Probabilities that determine the predicted class.
    overwrite
        Replace an existing file.

    Raises
    ------
    InputError
        If the name has another extension.
    OutputExistsError
        If it exists and ``overwrite`` is False.
    """
    check_predictions(path)
    ids = documents.ids or [str(number) for number in range(1, len(documents) + 1)]
    found, q, r = result.labels(which), np.exp(result.log_q), np.exp(result.log_r)
    children = tree.children
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        head: list[Any]
        if Path(path).suffix == ".csv":
            writer = csv.writer(stream, lineterminator="\n")
            names = [f"{which}:{name}" for which in ("q", "r") for name in tree.fine]
            writer.writerow(["id", "coarse", "label", *names])
            for row, name in enumerate(ids):
                head = [name, tree.coarse[documents.coarse[row]], tree.fine[found[row]]]
                writer.writerow([*head, *(f"{value:.6g}" for value in (*q[row], *r[row]))])
            return
        for row, name in enumerate(ids):
            places = np.flatnonzero(children[documents.coarse[row]])
            record = {"id": name, "coarse": tree.coarse[documents.coarse[row]], "label": tree.fine[found[row]]} | {
                key: {tree.fine[place]: float(f"{values[row, place]:.6g}") for place in places}
                for key, values in (("q", q), ("r", r))
            }
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def check_predictions(path: str | Path) -> None:
    """Raise an error for a name of predictions without a known extension.

    Raises
    ------
    InputError
        If it does not end in .csv or .jsonl.
    """
    if Path(path).suffix not in {".csv", ".jsonl"}:
        msg = f"{path}: predictions are written as .csv or .jsonl"
        raise InputError(msg)
