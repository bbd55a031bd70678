"""Trigrams, compared with a slow loop, and their weights, compared with scikit-learn."""

import unicodedata
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from landprior.domains.text import features
from landprior.domains.text.features import TRIGRAMS, count_trigrams, trigram_features, weigh_trigrams


def slow(text):
    found = Counter()
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not "\u0300" <= c <= "\u036f")
    letters = [ord(c) - 97 if "a" <= c <= "z" else ord(c) - 65 if "A" <= c <= "Z" else None for c in plain]
    for three in zip(letters, letters[1:], letters[2:], strict=False):
        if None not in three:
            found[(three[0] * 26 + three[1]) * 26 + three[2]] += 1
    row = np.zeros(TRIGRAMS)
    for place, count in found.items():
        row[place] = count
    return row


def test_trigrams_do_not_cross_words():
    row = count_trigrams(["The the-THE, th'e ab"]).toarray()[0]
    assert row.sum() == row[(19 * 26 + 7) * 26 + 4] == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abcXYZ é\u00df\n-ﬁ0", max_size=40) | st.text(max_size=12), max_size=6))
def test_counts_equal_those_of_a_slow_loop(texts):
    counts = count_trigrams(texts)
    assert counts.shape == (len(texts), TRIGRAMS)
    assert np.array_equal(counts.toarray(), np.array([slow(text) for text in texts]).reshape(len(texts), TRIGRAMS))


def test_counts_do_not_depend_on_chunks(monkeypatch, rng):
    texts = ["".join(rng.choice(list("abc "), 50)) for _ in range(20)] + ["", "ab"]
    whole = count_trigrams(texts)
    monkeypatch.setattr(features, "_CHUNK", 120)
    parts = count_trigrams(texts)
    assert (whole != parts).nnz == 0
    assert parts.has_sorted_indices
    assert parts.dtype == np.float32


def test_weights_match_scikit_learn(rng):
    texts = ["".join(rng.choice(list("abcd "), 80)) for _ in range(12)] + ["no"]
    counts = count_trigrams(texts)
    # scikit-learn adds 1 to every inverse document frequency
    theirs = TfidfTransformer(sublinear_tf=True, norm=None).fit(counts)
    expected = counts.copy().astype(np.float64)
    expected.data = 1 + np.log(expected.data)
    expected = expected.multiply(theirs.idf_ - 1).toarray()
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-30)
    ours = weigh_trigrams(counts)
    np.testing.assert_allclose(ours.toarray(), expected, atol=1e-6)
    assert ours[-1].nnz == 0
    assert np.array_equal(ours.toarray(), trigram_features(texts).toarray())
