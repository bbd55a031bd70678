"""Counts of alphabetic trigrams, 26^3 = 17,576 of them [R, text experiment], and their weights.

Letters are those of a to z, upper or lower case; accents are removed (é is e). Trigrams lie within words: anything
other than a letter ends a word. The weights are (1 + log count) log((1 + N) / (1 + documents with it)), each document
scaled to length 1. Both were chosen on the coarse labels of a training split (``docs/weak-labels/text.md``).
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LETTERS = 26
TRIGRAMS = LETTERS**3
"""Columns; that of "abc" is (0 * 26 + 1) * 26 + 2."""

_CHUNK = 1 << 24
"""Number of characters counted at a time."""

_LETTER = np.full(256, LETTERS, dtype=np.uint8)
_LETTER[ord("a") : ord("z") + 1] = _LETTER[ord("A") : ord("Z") + 1] = np.arange(LETTERS)

_MARKS = re.compile("[\u0300-\u036f]+")


def count_trigrams(texts: Sequence[str]) -> sparse.csr_matrix:
    """Count the trigrams of every text.

    Parameters
    ----------
    texts
        N texts.

    Returns
    -------
    scipy.sparse.csr_matrix, shape (N, 17576), float32
        Counts, sorted, without duplicates.
    """
    parts = [_count(chunk) for chunk in _chunks([_to_ascii(text) for text in texts])]
    if not parts:
        return sparse.csr_matrix((0, TRIGRAMS), dtype=np.float32)
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def weigh_trigrams(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Weight counts as described in the module docstring; a document without trigrams stays zero.

    Parameters
    ----------
    counts
        Shape (N, 17576), sorted and without duplicates.

    Returns
    -------
    scipy.sparse.csr_matrix, shape (N, 17576), float32
        Weights, with rows of length 1.
    """
    found = np.bincount(counts.indices, minlength=TRIGRAMS)
    rarity = np.log((1 + counts.shape[0]) / (1 + found))
    values = (1 + np.log(counts.data)) * rarity[counts.indices]
    documents = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    lengths = np.sqrt(np.bincount(documents, weights=values**2, minlength=counts.shape[0]))
    values /= np.maximum(lengths, np.finfo(np.float64).tiny)[documents]
    return sparse.csr_matrix((values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def trigram_features(texts: Sequence[str]) -> sparse.csr_matrix:
    """Return the weighted trigrams of texts, (N, 17576), with rows of length 1."""
    return weigh_trigrams(count_trigrams(texts))


def _to_ascii(text: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    return _MARKS.sub("", unicodedata.normalize("NFKD", text)).encode("ascii", "replace")


def _chunks(texts: list[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _count(texts: list[bytes]) -> sparse.csr_matrix:
    letters = _LETTER[np.frombuffer(b"\n".join(texts) + b"\n\n", dtype=np.uint8)].astype(np.int32)
    inside = letters < LETTERS
    starts = np.flatnonzero(inside[:-2] & inside[1:-1] & inside[2:])
    columns = (letters[starts] * LETTERS + letters[starts + 1]) * LETTERS + letters[starts + 2]
    ends = np.cumsum([len(text) + 1 for text in texts])
    rows = np.concatenate([[0], np.searchsorted(starts, ends)])
    counts = sparse.csr_matrix((np.ones(len(columns), np.float32), columns, rows), shape=(len(texts), TRIGRAMS))
    counts.sum_duplicates()
    return counts
