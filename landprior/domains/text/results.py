"""Scores of found classes, and predictions as files."""

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
    """Score classes found, (N,), against the fine labels that are given; None if none are.

    Macro-F1 is the mean over the classes that occur among the labels or among the classes found for them.
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
    """Write a line per document: its name, coarse label, class found, and q and r of every fine class.

    Parameters
    ----------
    path
        ``.csv``: columns ``id``, ``coarse``, ``label``, ``q:CLASS`` ..., ``r:CLASS`` ...; ``.jsonl``: the same with
        ``q`` and ``r`` as objects of the classes below the coarse label. Whole or not at all.
    result
        Of :func:`classify`.
    documents, tree
        Names, coarse labels and what lies below them.
    which
        What the class found is the most probable of.
    overwrite
        Replace an older file.

    Raises
    ------
    InputError
        If the name ends otherwise.
    OutputExistsError
        If it is there and ``overwrite`` is False.
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
    """Refuse a name for predictions that says no format.

    Raises
    ------
    InputError
        If it ends otherwise than in .csv or .jsonl.
    """
    if Path(path).suffix not in {".csv", ".jsonl"}:
        msg = f"{path}: predictions are written as .csv or .jsonl"
        raise InputError(msg)
