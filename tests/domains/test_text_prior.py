"""Priors of documents: by hand, from files, and from language models, compared with a slow loop."""

import logging

import numpy as np
import pytest
import torch

from landprior.domains.text.documents import Documents, make_tree
from landprior.domains.text.language_model import LanguageModel, load_language_model, score_names
from landprior.domains.text.prior import (
    calibrate,
    normalise_scores,
    prior_from_scores,
    prior_from_similarity,
    prior_from_table,
    read_prior,
    save_prior,
)
from landprior.errors import InputError, MissingInputError, ModelError, PriorError

pytestmark = pytest.mark.needs("transformers")

TREE = make_tree(
    {"hockey": "sports", "dance": "arts", "tennis": "sports", "golf": "sports", "music": "arts", "sale": "sale"},
    {"hockey": "ice hockey", "dance": "ballet"},
)
DOCUMENTS = Documents(
    texts=("Pucks on ice", "A long evening of song. " * 12, "x", "Strings", "Rackets for sale, balls", "Buy!"),
    coarse=np.array([0, 1, 0, 1, 0, 2]),
    ids=("a", "b", "c", "d", "e", "f"),
)
ALLOWED = DOCUMENTS.allowed(TREE)


# -- by hand -------------------------------------------------------------------------------------


def test_scores_are_normalised_over_the_children():
    scores = np.log([[1.0, 9.0, 3.0], [5.0, 2.0, 2.0]])
    allowed = np.array([[True, False, True], [True, True, True]])
    np.testing.assert_allclose(normalise_scores(scores - 2000, allowed), [[0.25, 0, 0.75], [5 / 9, 2 / 9, 2 / 9]])


def test_calibration_by_hand():
    # two documents with one label, whose mean is (0.75, 0.25), and a single one with another, which has no effect
    prior = np.array([[0.9, 0.1, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.8, 0.2]])
    found = calibrate(prior, np.array([0, 0, 1]))
    first, second = np.array([0.9 / 0.75, 0.1 / 0.25]), np.array([0.6 / 0.75, 0.4 / 0.25])
    np.testing.assert_allclose(found[0, :2], first / first.sum())
    np.testing.assert_allclose(found[1, :2], second / second.sum())
    np.testing.assert_allclose(found[2], [0, 0, 0.5, 0.5])
    assert (found[prior == 0] == 0).all()


def test_similarity_is_a_softmax_with_a_temperature():
    tree = make_tree({"x": "a", "y": "a", "z": "b"})
    documents = Documents(texts=("1", "2"), coarse=np.array([0, 0]))
    cosine = np.array([[0.3, 0.1, 0.9], [0.1, 0.3, 0.9]])
    sharp = np.exp(0.2 / 0.05)
    expected = sharp / (1 + sharp)
    np.testing.assert_allclose(prior_from_similarity(cosine, documents, tree)[0], [expected, 1 - expected, 0])
    flat = prior_from_similarity(cosine, documents, tree, temperature=0.5)
    np.testing.assert_allclose(flat[0, 0] / flat[0, 1], np.exp(0.2 / 0.5))
    with pytest.raises(InputError, match="must be positive"):
        prior_from_similarity(cosine, documents, tree, temperature=0)


def test_zeros_stay_zeros(rng):
    scores = rng.normal(size=ALLOWED.shape)
    for prior in (
        prior_from_scores(scores, DOCUMENTS, TREE),
        prior_from_similarity(scores, DOCUMENTS, TREE),
        prior_from_table(np.exp(scores), DOCUMENTS, TREE),
    ):
        assert (prior[~ALLOWED] == 0).all()
        assert (prior[ALLOWED] > 0).all()
        np.testing.assert_allclose(prior.sum(axis=1), 1)


def test_invalid_tables_and_scores(rng):
    table = rng.random(ALLOWED.shape)
    for value, said in ((-1.0, "document 2 has negative"), (np.nan, "document 2 has negative, infinite or NaN")):
        wrong = table.copy()
        wrong[1, 1] = value
        with pytest.raises(PriorError, match=said):
            prior_from_table(wrong, DOCUMENTS, TREE)
    wrong = np.where(np.arange(6)[:, None] == 3, ~ALLOWED, table)
    with pytest.raises(PriorError, match="document 4 is 0 for all classes below 'arts'"):
        prior_from_table(wrong, DOCUMENTS, TREE)
    for value, said in ((-np.inf, "document 6 has no score"), (np.nan, "document 6 have NaN"), (np.inf, "infinite")):
        scores = table.copy()
        scores[5] = value
        with pytest.raises(PriorError, match=said):
            normalise_scores(scores, ALLOWED)


# -- files ---------------------------------------------------------------------------------------


def test_a_saved_prior_is_read_unchanged(tmp_path, rng):
    prior = prior_from_scores(rng.normal(size=ALLOWED.shape), DOCUMENTS, TREE)
    save_prior(tmp_path / "p.npz", prior, DOCUMENTS, TREE)
    np.testing.assert_allclose(read_prior(tmp_path / "p.npz", DOCUMENTS, TREE), prior, rtol=1e-12)
    some = DOCUMENTS.take([4, 1])
    np.testing.assert_allclose(read_prior(tmp_path / "p.npz", some, TREE), prior[[4, 1]], rtol=1e-12)


def test_files_are_put_in_the_order_of_documents_and_tree(tmp_path, rng):
    values = rng.random(ALLOWED.shape)
    rows, columns = rng.permutation(6), rng.permutation(6)
    moved = values[rows][:, columns]
    ids, fine = np.array(DOCUMENTS.ids)[rows], np.array(TREE.fine)[columns]
    for name, make in (("logprob", prior_from_scores), ("cosine", prior_from_similarity), ("prior", prior_from_table)):
        np.savez(tmp_path / "x.npz", ids=ids, fine=fine, **{name: moved})
        np.testing.assert_allclose(read_prior(tmp_path / "x.npz", DOCUMENTS, TREE), make(values, DOCUMENTS, TREE))
    rows = [",".join([name, *map(repr, row)]) for name, row in zip(ids, moved.tolist(), strict=True)]
    lines = [",".join(["id", *fine]), *rows]
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="utf-8")
    np.testing.assert_allclose(
        read_prior(tmp_path / "x.csv", DOCUMENTS, TREE), prior_from_table(values, DOCUMENTS, TREE)
    )


def test_embeddings_are_compared_by_cosine(tmp_path, rng):
    texts, classes = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    np.savez(tmp_path / "x.npz", documents=texts * 3, classes=classes)
    cosine = np.array([[t @ c / np.linalg.norm(t) / np.linalg.norm(c) for c in classes] for t in texts])
    found = read_prior(tmp_path / "x.npz", DOCUMENTS, TREE, temperature=0.2)
    np.testing.assert_allclose(found, prior_from_similarity(cosine, DOCUMENTS, TREE, temperature=0.2))


def test_files_that_do_not_fit_are_explained(tmp_path, rng):
    path = tmp_path / "x.npz"
    values = rng.random((6, 6))
    with pytest.raises(MissingInputError, match="no such file"):
        read_prior(path, DOCUMENTS, TREE)
    for arrays, said in (
        ({"other": values}, "has none of prior, logprob, cosine"),
        ({"prior": values[:5]}, r"shape \(5, 6\), not \(6, 6\)"),
        ({"prior": values[:, :5], "fine": np.array(TREE.fine[:5])}, "has no class 'sale'"),
        ({"prior": values[:5], "ids": np.array(["a", "b", "c", "d", "z"])}, "lacks 2 of the 6 documents, .* 'e'"),
        ({"documents": values, "classes": values[:, :2]}, r"must be \(N, D\) and \(C, D\)"),
        ({"prior": np.array([{}])}, "is not a .npz file of numbers"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(PriorError, match=said):
            read_prior(path, DOCUMENTS, TREE)
    path.write_bytes(b"nothing")
    with pytest.raises(PriorError, match=r"is not a \.npz file"):
        read_prior(path, DOCUMENTS, TREE)
    table = tmp_path / "x.csv"
    header = ",".join(TREE.fine)
    for text, said in (
        (f"{header}\n1,1,1,1,1,1\n1,1\n", "line 3: 2 columns where the header has 6"),
        (f"{header}\n1,1,1,a,1,1\n", "line 2: .* 'a', not a finite number"),
        ("", "x.csv is empty"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(PriorError, match=said):
            read_prior(table, DOCUMENTS, TREE)
    np.savez(path, prior=values[:5], ids=np.array(list("abcde")))
    nameless = Documents(texts=DOCUMENTS.texts, coarse=DOCUMENTS.coarse)
    with pytest.raises(PriorError, match="names 5 documents"):
        read_prior(path, nameless, TREE)


# -- language models -----------------------------------------------------------------------------


def make_tokenizer(*, begin):
    """Return a byte tokenizer with a few merges that can put a start token before a text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "c"), ("ic", "e"), ("Ġ", "T"), ("ĠT", "o"), ("Ġ", "m"), ("s", "t")]
    words = ["<s>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    ends = dict.fromkeys(("bos_token", "eos_token"), "<s>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def make_language(kind):
    """Return a small model with random weights, large enough for likelihoods to differ."""
    import transformers

    tokenizer = make_tokenizer(begin=kind == "llama")
    size = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "gpt2":
            config = transformers.GPT2Config(n_positions=96, n_embd=16, n_layer=2, n_head=2, **size)
            model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.LlamaConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=96, **size,
            )  # fmt: skip
            model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim == 2:
                    value.mul_(15)
    return LanguageModel(model.eval(), tokenizer)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(request):
    return make_language(request.param)


def slow_scores(documents, tree, language, *, max_tokens):
    """One document and one name at a time, without padding, mask, positions or cache."""

    def tokens(text):
        return language.tokenizer(text, add_special_tokens=False)["input_ids"]

    head = language.tokenizer("")["input_ids"]
    scores = np.full((len(documents), len(tree.fine)), -np.inf)
    for row, text in enumerate(documents.texts):
        places = np.flatnonzero(tree.parent == documents.coarse[row])
        longest = max(len(tokens(" " + tree.names[place])) for place in places)
        room = max_tokens - len(head) - len(tokens(" Topic:")) - longest
        for place in places:
            name = tokens(" " + tree.names[place])
            whole = [*head, *tokens(text)[:room], *tokens(" Topic:"), *name]
            with torch.no_grad():
                log_p = language.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores[row, place] = sum(
                log_p[at - 1, whole[at]].item() for at in range(len(whole) - len(name), len(whole))
            )
        if len(places) == 1:
            scores[row, places] = 0.0
    return scores


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("max_tokens", "batch_size"), [(96, 8), (96, 1), (40, 2)])
def test_the_language_model_is_exact(language, share, max_tokens, batch_size):
    expected = slow_scores(DOCUMENTS, TREE, language, max_tokens=max_tokens)
    found = score_names(DOCUMENTS, TREE, language, max_tokens=max_tokens, batch_size=batch_size, share=share)
    assert np.array_equal(np.isfinite(found), ALLOWED)
    np.testing.assert_allclose(found[ALLOWED], expected[ALLOWED], atol=1e-4)
    assert np.ptp(found[0][ALLOWED[0]]) > 0.1  # the scores do differ


def test_truncation_is_logged_and_the_prompt_always_fits(language, caplog):
    with caplog.at_level(logging.INFO, logger="landprior"):
        score_names(DOCUMENTS, TREE, language, max_tokens=5000)  # limited by the model
    assert "1 of 5 documents are longer than 96 tokens allow" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="landprior"):
        score_names(DOCUMENTS.take([0, 2]), TREE, language)
    assert "longer" not in caplog.text
    with pytest.raises(ModelError, match="12 tokens leave no room for a text"):
        score_names(DOCUMENTS, TREE, language, max_tokens=12)


def test_a_model_is_loaded_from_a_folder_but_not_from_pickles(tmp_path):
    language = make_language("gpt2")
    language.model.save_pretrained(tmp_path / "safe")
    language.tokenizer.save_pretrained(tmp_path / "safe")
    loaded = load_language_model(tmp_path / "safe", device="cpu")
    ours, theirs = (score_names(DOCUMENTS, TREE, each, max_tokens=60) for each in (language, loaded))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    weights = tmp_path / "safe" / "model.safetensors"
    torch.save(language.model.state_dict(), tmp_path / "safe" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load the language model"):
        load_language_model(tmp_path / "safe", device="cpu")


def test_a_missing_gguf(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        load_language_model(tmp_path / "model.gguf")
