"""Priors over the fine classes of documents: from a language model, from sentence embeddings, or the user's own.

A score per document and fine class (the log-likelihood of the class's name, or a similarity) becomes a prior as in
the paper: normalised over the fine classes below the document's coarse label, divided by its mean over the documents
of that coarse label, and normalised again. The division removes a model's preference for some names,
independent of the text. Classes elsewhere in the tree have exactly 0.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from landprior.errors import InputError, PriorError
from landprior.inputs import check_file, read_arrays
from landprior.raster.outputs import replacing
from landprior.sources import tables

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.domains.text.documents import Documents, Tree


TEMPERATURE = 0.05
"""Divisor of cosines: exp(20 cosine)."""


# -- from scores to a prior ----------------------------------------------------------------------


def normalise_scores(scores: NDArray[Any], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the softmax of scores over the classes that each document may have.

    Parameters
    ----------
    scores
        Log-likelihoods, (N, C); minus infinity for an impossible class.
    allowed
        Mask of possible classes, shape (N, C).

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        If a document has no class left, or a score is not a number.
    """
    scores = np.where(allowed, np.asarray(scores, dtype=np.float64), -np.inf)
    wrong = np.isnan(scores) | (scores == np.inf)
    if wrong.any():
        msg = f"the scores of document {_first(wrong.any(1))} have NaN or infinite values"
        raise PriorError(msg)
    best = scores.max(axis=1, keepdims=True)
    if np.isneginf(best).any():
        msg = f"document {_first(np.isneginf(best[:, 0]))} has no score for any class below its coarse label"
        raise PriorError(msg)
    likelihoods = np.exp(scores - best)
    return np.asarray(likelihoods / likelihoods.sum(axis=1, keepdims=True))


def calibrate(prior: NDArray[np.float64], coarse: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide a prior by its mean over the documents of the same coarse label, and normalise again [R].

    Parameters
    ----------
    prior
        Shape (N, C), with rows that sum to 1.
    coarse
        Coarse label of each document, shape (N,).

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.
    """
    result = np.zeros_like(prior)
    for label in np.unique(coarse):
        rows = coarse == label
        mean = prior[rows].mean(axis=0)
        result[rows] = np.divide(prior[rows], mean, where=mean > 0, out=np.zeros_like(prior[rows]))
    return np.asarray(result / result.sum(axis=1, keepdims=True))


def prior_from_scores(scores: NDArray[Any], documents: Documents, tree: Tree) -> NDArray[np.float64]:
    """Turn log-likelihoods of class names into a calibrated prior.

    Parameters
    ----------
    scores
        Log-likelihoods, shape (N, C).
    documents, tree
        Coarse labels and the fine classes below them.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        See :func:`normalise_scores`.
    """
    return calibrate(normalise_scores(scores, documents.allowed(tree)), documents.coarse)


def prior_from_similarity(
    cosine: NDArray[Any], documents: Documents, tree: Tree, *, temperature: float = TEMPERATURE
) -> NDArray[np.float64]:
    """Turn cosines of sentence embeddings into a calibrated prior.

    Parameters
    ----------
    cosine
        Cosine of each document with each class, shape (N, C).
    documents, tree
        Coarse labels and the fine classes below them.
    temperature
        Above 0: the prior is a softmax of cosine / temperature.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    InputError
        If the temperature is not positive.
    PriorError
        See :func:`normalise_scores`.
    """
    if not temperature > 0:
        msg = f"the temperature must be positive, not {temperature}"
        raise InputError(msg)
    return prior_from_scores(np.asarray(cosine, dtype=np.float64) / temperature, documents, tree)


def prior_from_table(table: NDArray[Any], documents: Documents, tree: Tree) -> NDArray[np.float64]:
    """Normalise the user's own table over the classes below each coarse label, without calibrating it.

    Parameters
    ----------
    table
        Shape (N, C), at least 0.
    documents, tree
        Coarse labels and the fine classes below them.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        If it has negative values or NaN, or is zero for all possible classes of a document.
    """
    table = np.asarray(table, dtype=np.float64)
    wrong = ~np.isfinite(table) | (table < 0)
    if wrong.any():
        msg = f"the prior of document {_first(wrong.any(1))} has negative, infinite or NaN values"
        raise PriorError(msg)
    kept = np.where(documents.allowed(tree), table, 0.0)
    total = kept.sum(axis=1, keepdims=True)
    if (total <= 0).any():
        row = _first(total[:, 0] <= 0)
        msg = f"the prior of document {row} is 0 for all classes below {tree.coarse[documents.coarse[row - 1]]!r}"
        raise PriorError(msg)
    return np.asarray(kept / total)


def _first(rows: NDArray[np.bool_]) -> int:
    """Return the number, from 1, of the first True row."""
    return int(np.flatnonzero(rows)[0]) + 1


# -- files ---------------------------------------------------------------------------------------


def read_prior(
    path: str | Path, documents: Documents, tree: Tree, *, temperature: float = TEMPERATURE
) -> NDArray[np.float64]:
    """Read a prior, or the scores it is made from, from a file.

    Parameters
    ----------
    path
        A CSV with a header of fine labels and, if the documents have names, ``id``; or an ``.npz`` with one of

        - ``prior`` (N, C): a table, see :func:`prior_from_table`;
        - ``logprob`` (N, C): see :func:`prior_from_scores`;
        - ``cosine`` (N, C): see :func:`prior_from_similarity`;
        - ``documents`` (N, D) and ``classes`` (C, D): embeddings, from which cosines are computed;

        and ``fine`` (C,), the labels in order, and ``ids`` (N,). Without ``fine`` the order is the tree's,
        without ``ids`` the documents'.
    documents, tree
        Coarse labels and the fine classes below them.
    temperature
        Divisor of cosines; see :func:`prior_from_similarity`.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    PriorError
        If it cannot be read, or lacks a document or a class.
    """
    path = check_file(path, error=PriorError)
    if path.suffix.lower() == ".csv":
        return prior_from_table(_align(path, *_read_table(path), documents, tree), documents, tree)
    arrays = read_arrays(path, trouble="is not a .npz file of numbers and texts", error=PriorError)
    kinds = [kind for kind in ("prior", "logprob", "cosine") if kind in arrays]
    if kinds:
        kind, values = kinds[0], arrays[kinds[0]]
    elif {"documents", "classes"} <= set(arrays):
        kind, values = "cosine", _cosine(path, arrays["documents"], arrays["classes"])
    else:
        msg = f"{path} has none of prior, logprob, cosine, or documents and classes; it has {', '.join(arrays)}"
        raise PriorError(msg)
    values = _align(path, values, _names(arrays.get("fine")), _names(arrays.get("ids")), documents, tree)
    if kind == "prior":
        return prior_from_table(values, documents, tree)
    if kind == "logprob":
        return prior_from_scores(values, documents, tree)
    return prior_from_similarity(values, documents, tree, temperature=temperature)


def save_prior(
    path: str | Path, prior: NDArray[np.float64], documents: Documents, tree: Tree, *, overwrite: bool = False
) -> None:
    """Write a prior for :func:`read_prior`.

    Parameters
    ----------
    path
        The ``.npz`` to write.
    prior
        Shape (N, C).
    documents, tree
        Names of rows and columns.
    overwrite
        Replace an existing file.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.outputs.replacing`.
    """
    ids = {} if documents.ids is None else {"ids": np.array(documents.ids)}
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, prior=prior, fine=np.array(tree.fine), **ids)  # type: ignore[arg-type]


def _names(values: NDArray[Any] | None) -> list[str] | None:
    return None if values is None else [str(value) for value in values]


def _read_table(path: Path) -> tuple[NDArray[np.float64], list[str], list[str] | None]:
    try:
        table = tables.read_table(path)
        at = table.header.index("id") if "id" in table.header else None
        places = [place for place in range(len(table.header)) if place != at]
        table.require_whole_rows()
        values = np.array([[table.number(row, place) for place in places] for row in table.rows], dtype=np.float64)
    except InputError as error:
        raise PriorError(str(error)) from error
    ids = None if at is None else [row.cells[at] for row in table.rows]
    return values.reshape(len(table.rows), len(places)), [table.header[place] for place in places], ids


def _cosine(path: Path, documents: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.float64]:
    if documents.ndim != 2 or classes.ndim != 2 or documents.shape[1] != classes.shape[1]:
        msg = f"{path}: documents {documents.shape} and classes {classes.shape} must be (N, D) and (C, D)"
        raise PriorError(msg)
    one, other = (np.asarray(values, dtype=np.float64) for values in (documents, classes))
    one, other = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (one, other))
    return np.asarray(one @ other.T)


def _align(
    path: Path,
    values: NDArray[Any],
    fine: list[str] | None,
    ids: list[str] | None,
    documents: Documents,
    tree: Tree,
) -> NDArray[Any]:
    """Return a table in the order of the documents and of the tree."""
    classes = list(tree.fine) if fine is None else fine
    expected = (len(documents) if ids is None else len(ids), len(classes))
    if values.shape != expected:
        msg = f"{path}: the table has shape {values.shape}, not {expected} (documents, fine classes)"
        raise PriorError(msg)
    for kind, names in (("class", classes), ("document", ids or [])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            msg = f"{path} has {kind} {twice[0]!r} twice; keep one"
            raise PriorError(msg)
    columns = {name: number for number, name in enumerate(classes)}
    missing = [name for name in tree.fine if name not in columns]
    if missing:
        msg = f"{path} has no class {missing[0]!r}, which is in the tree ({len(missing)} such)"
        raise PriorError(msg)
    values = values[:, [columns[name] for name in tree.fine]]
    if ids is None:
        return values
    if documents.ids is None:
        if len(ids) != len(documents):
            msg = f"{path} names {len(ids)} documents, {documents.where} has {len(documents)} without names; give --id"
            raise PriorError(msg)
        return values
    rows = {name: number for number, name in enumerate(ids)}
    absent = [name for name in documents.ids if name not in rows]
    if absent:
        msg = (
            f"{path} lacks {len(absent)} of the {len(documents)} documents, the first is {absent[0]!r}; leave them "
            f"out of {documents.where}, or give them a row (of equal values, if unknown)"
        )
        raise PriorError(msg)
    return values[[rows[name] for name in documents.ids]]


# -- a language model ----------------------------------------------------------------------------
