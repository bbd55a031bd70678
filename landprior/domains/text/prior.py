"""Priors over the fine classes of documents: from a language model, from sentence embeddings, or the user's own.

A score per document and fine class (the log-likelihood of the class's name, or a similarity) becomes a prior as in
the paper: normalised over the fine classes below the document's coarse label, divided by its mean over the documents
of that coarse label, and normalised again. The division takes off that a model likes some names better than others,
whatever the text. Classes elsewhere in the tree have exactly 0.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from landprior.errors import InputError, ModelError, PriorError
from landprior.implicit.devices import choose_device
from landprior.inputs import check_file, read_arrays
from landprior.progress import Progress
from landprior.raster.outputs import replacing
from landprior.sources import tables

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.domains.text.documents import Documents, Tree

logger = logging.getLogger(__name__)

TEMPERATURE = 0.05
"""By which cosines are divided: exp(20 cosine)."""

MAX_TOKENS = 128
"""Tokens of a document, its prompt and a name together; more cost time in proportion."""

MODEL_BATCH = 8
"""Documents at a time."""

PROMPT = " Topic:"
"""Between the text and " NAME"."""


# -- from scores to a prior ----------------------------------------------------------------------


def normalise_scores(scores: NDArray[Any], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the softmax of scores over the classes that each document may have.

    Parameters
    ----------
    scores
        Log-likelihoods, (N, C); minus infinity for a class that is out of the question.
    allowed
        Shape (N, C).

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        If a document has no class left, or a score that is no number.
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
        Shape (N, C), rows that sum to 1.
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


def prior_of_scores(scores: NDArray[Any], documents: Documents, tree: Tree) -> NDArray[np.float64]:
    """Turn log-likelihoods of class names into a calibrated prior.

    Parameters
    ----------
    scores
        Shape (N, C).
    documents, tree
        Coarse labels and what lies below them.

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


def prior_of_similarity(
    cosine: NDArray[Any], documents: Documents, tree: Tree, *, temperature: float = TEMPERATURE
) -> NDArray[np.float64]:
    """Turn cosines of sentence embeddings into a calibrated prior.

    Parameters
    ----------
    cosine
        Of each document with each class, shape (N, C).
    documents, tree
        Coarse labels and what lies below them.
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
    return prior_of_scores(np.asarray(cosine, dtype=np.float64) / temperature, documents, tree)


def prior_of_table(table: NDArray[Any], documents: Documents, tree: Tree) -> NDArray[np.float64]:
    """Normalise a table of the user's over the classes below each coarse label; it is not calibrated.

    Parameters
    ----------
    table
        Shape (N, C), at least 0.
    documents, tree
        Coarse labels and what lies below them.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    PriorError
        If it has negative values or NaN, or a document has nothing for any class it may have.
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
    """Return the number, from 1, of the first row that is marked."""
    return int(np.flatnonzero(rows)[0]) + 1


# -- files ---------------------------------------------------------------------------------------


def read_prior(
    path: str | Path, documents: Documents, tree: Tree, *, temperature: float = TEMPERATURE
) -> NDArray[np.float64]:
    """Read a prior, or what it is made of, from a file.

    Parameters
    ----------
    path
        A CSV with a header of fine labels and, if the documents have names, ``id``; or an ``.npz`` with one of

        - ``prior`` (N, C): a table, see :func:`prior_of_table`;
        - ``logprob`` (N, C): see :func:`prior_of_scores`;
        - ``cosine`` (N, C): see :func:`prior_of_similarity`;
        - ``documents`` (N, D) and ``classes`` (C, D): embeddings, from which cosines are computed;

        and ``fine`` (C,), the labels in their order, and ``ids`` (N,). Without ``fine`` the order is the tree's,
        without ``ids`` the documents'.
    documents, tree
        Coarse labels and what lies below them.
    temperature
        Of cosines, see :func:`prior_of_similarity`.

    Returns
    -------
    ndarray of float64
        Shape (N, C); rows sum to one.

    Raises
    ------
    MissingInputError
        If it is not there.
    PriorError
        If it cannot be read, or lacks a document or a class.
    """
    path = check_file(path, error=PriorError)
    if path.suffix.lower() == ".csv":
        return prior_of_table(_aligned(path, *_read_table(path), documents, tree), documents, tree)
    arrays = read_arrays(path, trouble="is no .npz file of numbers and texts", error=PriorError)
    kinds = [kind for kind in ("prior", "logprob", "cosine") if kind in arrays]
    if kinds:
        kind, values = kinds[0], arrays[kinds[0]]
    elif {"documents", "classes"} <= set(arrays):
        kind, values = "cosine", _cosine(path, arrays["documents"], arrays["classes"])
    else:
        msg = f"{path} has none of prior, logprob, cosine, or documents and classes; it has {', '.join(arrays)}"
        raise PriorError(msg)
    values = _aligned(path, values, _names(arrays.get("fine")), _names(arrays.get("ids")), documents, tree)
    if kind == "prior":
        return prior_of_table(values, documents, tree)
    if kind == "logprob":
        return prior_of_scores(values, documents, tree)
    return prior_of_similarity(values, documents, tree, temperature=temperature)


def save_prior(
    path: str | Path, prior: NDArray[np.float64], documents: Documents, tree: Tree, *, overwrite: bool = False
) -> None:
    """Write a prior so that :func:`read_prior` gives it back.

    Parameters
    ----------
    path
        An ``.npz``.
    prior
        Shape (N, C).
    documents, tree
        Names of rows and columns.
    overwrite
        Replace an older file.

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


def _aligned(
    path: Path,
    values: NDArray[Any],
    fine: list[str] | None,
    ids: list[str] | None,
    documents: Documents,
    tree: Tree,
) -> NDArray[Any]:
    """Bring a table to the order of the documents and of the tree."""
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
            f"out of {documents.where}, or give them a row (of equal values, if nothing is known)"
        )
        raise PriorError(msg)
    return values[[rows[name] for name in documents.ids]]


# -- a language model ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer, of transformers."""

    model: Any
    tokenizer: Any


def load_language_model(name: str | Path, *, device: str = "auto") -> LanguageModel:
    """Load a causal model from a folder, a ``.gguf`` file or, by name, from the hub.

    No code of a model is run and no pickle is read: weights are safetensors or GGUF.

    Raises
    ------
    ModelError
        If transformers is not installed, or the model cannot be loaded.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as chatter
    except ImportError as error:
        msg = "language models need transformers, which is not installed; get it with: pip install 'landprior[text]'"
        raise ModelError(msg) from error
    path = Path(name)
    source = str(name)
    options: dict[str, Any] = {}
    if path.suffix.lower() == ".gguf":
        check_file(path, error=ModelError)
        source, options = str(path.parent), {"gguf_file": path.name}
    chatter.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        safe = options or {"use_safetensors": True}  # a .gguf holds no code either
        model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **safe)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"cannot load the language model {name} ({reason})"
        raise ModelError(msg) from error
    model = model if options else model.float()  # GGUF is unpacked to float32, and refuses to be told so
    return LanguageModel(model.eval().to(choose_device(device)), tokenizer)


@dataclass(frozen=True)
class _Prompts:
    """Documents of one coarse label as tokens, and the names they may have."""

    rows: list[int]
    prefixes: list[list[int]]
    classes: list[int]
    names: list[list[int]]


def score_names(
    documents: Documents,
    tree: Tree,
    language: LanguageModel,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = MODEL_BATCH,
    share: bool = True,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Return log-likelihoods of the fine classes' names after "TEXT Topic:" [R].

    Parameters
    ----------
    documents, tree
        Only names below a document's coarse label are scored; where there is one, its score is 0 without asking.
    language
        See :func:`load_language_model`.
    max_tokens
        Of text, prompt and name together. The end of a longer text is cut, so that prompt and name always fit; what was
        cut is logged.
    batch_size
        Documents at a time.
    share
        Compute a document once and keep what the model remembers of it for all names; otherwise once for every name.
        The result is the same.
    progress
        A progress bar on stderr.

    Returns
    -------
    Array, shape (N, C)
        Sums of the log-probabilities of a name's tokens; minus infinity for classes elsewhere in the tree.

    Raises
    ------
    ModelError
        If prompt and name leave no room for a text.
    """
    scores = np.full((len(documents), len(tree.fine)), -np.inf)
    groups = _tokenise(documents, tree, language, max_tokens)
    alone = tree.children[documents.coarse].sum(axis=1) == 1
    scores[alone] = np.where(documents.allowed(tree)[alone], 0.0, -np.inf)
    total = sum(len(group.rows) for group in groups)
    score = _score_shared if share else _score_whole
    with Progress(total, "language model", "document", show=progress) as bar:
        for group in groups:
            order = sorted(range(len(group.rows)), key=lambda at: len(group.prefixes[at]))
            for start in range(0, len(order), batch_size):
                some = order[start : start + batch_size]
                with torch.inference_mode():
                    found = score(language.model, [group.prefixes[at] for at in some], group.names)
                scores[np.ix_([group.rows[at] for at in some], group.classes)] = found.double().cpu().numpy()
                bar.update(len(some))
    return scores


def _tokenise(documents: Documents, tree: Tree, language: LanguageModel, max_tokens: int) -> list[_Prompts]:
    """Return the prompts of every coarse label with several fine classes, cut to length."""

    def tokens(text: str) -> list[int]:
        # verbose: else it warns of long texts, which are cut below
        return [int(token) for token in language.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    begin = getattr(language.tokenizer, "bos_token_id", None)
    first = list(language.tokenizer("a")["input_ids"])[:1]
    head = [begin] if begin is not None and first == [begin] else []  # where the model was trained with one
    prompt = tokens(PROMPT)
    limit = getattr(language.model.config, "max_position_embeddings", None) or max_tokens
    limit = min(limit, max_tokens)
    groups: list[_Prompts] = []
    cut = lost = whole = 0
    for label, children in enumerate(tree.children):
        rows = np.flatnonzero(documents.coarse == label).tolist()
        classes = np.flatnonzero(children).tolist()
        if not rows or len(classes) < 2:
            continue
        names = [tokens(f" {tree.names[place]}") for place in classes]
        room = limit - len(head) - len(prompt) - max(len(name) for name in names)
        if room < 1 or not all(names):
            msg = (
                f"{limit} tokens leave no room for a text before {PROMPT!r} and the names below {tree.coarse[label]!r}"
            )
            raise ModelError(msg)
        texts = [tokens(documents.texts[row]) for row in rows]
        cut += sum(len(text) > room for text in texts)
        lost += sum(max(0, len(text) - room) for text in texts)
        whole += sum(len(text) for text in texts)
        groups.append(_Prompts(rows, [[*head, *text[:room], *prompt] for text in texts], classes, names))
    if cut:
        count = sum(len(group.rows) for group in groups)
        logger.info(
            "%d of %d documents are longer than %d tokens allow; their ends, %.0f%% of all tokens, are not read",
            cut, count, limit, 100 * lost / whole,
        )  # fmt: skip
    return groups


def _pad(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tokens, padded on the right, and which of them are real."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(width, device=device) < lengths[:, None]


def _sum_of_names(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Add up the log-probabilities of the real targets, (B, L); logits (B, L, V)."""
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return -torch.where(real, losses, 0.0).sum(dim=1)


def _score_whole(model: Any, prefixes: list[list[int]], names: list[list[int]]) -> Tensor:  # noqa: ANN401
    """Score every name with a forward pass of its own over text, prompt and name."""
    columns = []
    for name in names:
        tokens, real = _pad([prefix + name for prefix in prefixes], model.device)
        ends = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
        at = ends[:, None] - 1 + torch.arange(len(name), device=model.device)  # a token is predicted by the one before
        positions = (real.long().cumsum(dim=1) - 1).clamp_min(0)
        logits = model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, use_cache=False).logits
        targets = torch.tensor([name] * len(prefixes), device=model.device)
        chosen = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
        columns.append(_sum_of_names(chosen, targets, torch.ones_like(targets, dtype=torch.bool)))
    return torch.stack(columns, dim=1)


def _score_shared(model: Any, prefixes: list[list[int]], names: list[list[int]]) -> Tensor:  # noqa: ANN401
    """Score all names after one forward pass over text and prompt, whose keys and values are kept.

    The prompt's last token is left to the second pass, where it predicts a name's first; so the first needs no logits.
    Padding lies between the two; nobody attends to it, and positions are counted without it.
    """
    tokens, real = _pad([prefix[:-1] for prefix in prefixes], model.device)
    positions = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
    # what the memory is called depends on the version of transformers
    called = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    first = model.base_model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, use_cache=True)
    memory: Any = getattr(first, called, None)
    if not hasattr(memory, "batch_repeat_interleave"):  # a model, or a version, that keeps it in another form
        return _score_whole(model, prefixes, names)
    memory.batch_repeat_interleave(len(names))
    targets, named = (each.repeat(len(prefixes), 1) for each in _pad(names, model.device))
    last = torch.tensor([prefix[-1] for prefix in prefixes], device=model.device).repeat_interleave(len(names))
    mask = torch.cat([real.repeat_interleave(len(names), 0), torch.ones_like(named[:, :1]), named[:, :-1]], dim=1)
    start = real.sum(dim=1).repeat_interleave(len(names))
    logits = model(
        input_ids=torch.cat([last[:, None], targets[:, :-1]], dim=1),
        attention_mask=mask.long(),
        position_ids=start[:, None] + torch.arange(targets.shape[1], device=model.device),
        use_cache=True,
        **{called: memory},
    ).logits
    return _sum_of_names(logits, targets, named).reshape(len(prefixes), len(names))
