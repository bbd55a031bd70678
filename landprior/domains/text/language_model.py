"""Scoring class names with a language model that reads the document."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from landprior.errors import ModelError
from landprior.implicit.devices import choose_device
from landprior.inputs import check_file
from landprior.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.domains.text.documents import Documents, Tree
logger = logging.getLogger(__name__)


MAX_TOKENS = 128
"""Maximum tokens of a document, its prompt and a name; time is proportional to it."""


MODEL_BATCH = 8
"""Number of documents at a time."""


PROMPT = " Topic:"
"""Between the text and " NAME"."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer, from transformers."""

    model: Any
    tokenizer: Any


def load_language_model(name: str | Path, *, device: str = "auto") -> LanguageModel:
    """Load a causal model from a folder, a ``.gguf`` file or, by name, from the Hugging Face hub.

    No model code is run and no pickle is read: weights must be safetensors or GGUF.

    Raises
    ------
    ModelError
        If transformers is not installed, or the model cannot be loaded.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as chatter
    except ImportError as error:
        msg = (
            "language models need transformers, which is not installed; install it with: pip install 'landprior[text]'"
        )
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
        safe = options or {"use_safetensors": True}  # a .gguf contains no code either
        model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **safe)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"cannot load the language model {name} ({reason})"
        raise ModelError(msg) from error
    model = model if options else model.float()  # GGUF is unpacked to float32, and does not accept the option
    return LanguageModel(model.eval().to(choose_device(device)), tokenizer)


@dataclass(frozen=True)
class _Prompts:
    """Documents of one coarse label as tokens, and their possible names."""

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
        Only names below a document's coarse label are scored; a single name gets score 0 without running the model.
    language
        See :func:`load_language_model`.
    max_tokens
        Maximum number of tokens of text, prompt and name together. Longer texts are truncated so that prompt and name
        always fit; the amount is logged.
    batch_size
        Number of documents at a time.
    share
        Process a document once and reuse the model's cache for all names; otherwise once for every name.
        The result is the same.
    progress
        Show a progress bar on stderr.

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
    """Return the prompts of every coarse label with several fine classes, truncated."""

    def tokens(text: str) -> list[int]:
        # verbose, or it would warn about long texts, which are truncated below
        return [int(token) for token in language.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    begin = getattr(language.tokenizer, "bos_token_id", None)
    first = list(language.tokenizer("a")["input_ids"])[:1]
    head = [begin] if begin is not None and first == [begin] else []  # if the model was trained with one
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
            "%d of %d documents are longer than %d tokens allow; they are truncated, leaving out %.0f%% of all tokens",
            cut, count, limit, 100 * lost / whole,
        )  # fmt: skip
    return groups


def _pad(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tokens, padded on the right, and a mask of the real ones."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(width, device=device) < lengths[:, None]


def _sum_of_names(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Sum the log-probabilities of the real targets, (B, L); logits (B, L, V)."""
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return -torch.where(real, losses, 0.0).sum(dim=1)


def _score_whole(model: Any, prefixes: list[list[int]], names: list[list[int]]) -> Tensor:  # noqa: ANN401
    """Score every name with a separate forward pass over text, prompt and name."""
    columns = []
    for name in names:
        tokens, real = _pad([prefix + name for prefix in prefixes], model.device)
        ends = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
        at = (
            ends[:, None] - 1 + torch.arange(len(name), device=model.device)
        )  # each token is predicted by the previous one
        positions = (real.long().cumsum(dim=1) - 1).clamp_min(0)
        logits = model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, use_cache=False).logits
        targets = torch.tensor([name] * len(prefixes), device=model.device)
        chosen = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
        columns.append(_sum_of_names(chosen, targets, torch.ones_like(targets, dtype=torch.bool)))
    return torch.stack(columns, dim=1)


def _score_shared(model: Any, prefixes: list[list[int]], names: list[list[int]]) -> Tensor:  # noqa: ANN401
    """Score all names after one forward pass over text and prompt, whose keys and values are cached.

    The prompt's last token is part of the second pass, where it predicts a name's first token, so the first pass needs
    no logits. Padding lies between the two; it is masked in attention and not counted in positions.
    """
    tokens, real = _pad([prefix[:-1] for prefix in prefixes], model.device)
    positions = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
    # the name of the cache depends on the version of transformers
    called = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    first = model.base_model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, use_cache=True)
    memory: Any = getattr(first, called, None)
    if not hasattr(memory, "batch_repeat_interleave"):  # a model or version with another form of cache
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
