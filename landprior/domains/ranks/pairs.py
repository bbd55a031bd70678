"""Pairs of items and their relations: drawn from true ranks, or read from a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from landprior.domains.imagery.images import UNKNOWN, read_table
from landprior.domains.ranks.posterior import RELATIONS
from landprior.errors import InputError
from landprior.implicit.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from landprior.domains.imagery.images import LabelledImages
    from landprior.domains.ranks.settings import Ties

_MIRRORED = {"<=": ">=", "<": ">"}
_ROUNDS = 100
"""Maximum number of redraws to get enough pairs without ties."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of items, ordered so that the first is never known to be smaller.

    Parameters
    ----------
    first, second
        Positions of items, int64, (P,).
    relation
        Positions in :data:`RELATIONS`, int64, (P,).
    """

    first: Tensor
    second: Tensor
    relation: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def take(self, index: Tensor) -> Self:
        """Return some of the pairs."""
        return type(self)(self.first[index], self.second[index], self.relation[index])


def draw_pairs(labels: Tensor, items: Tensor, count: int, *, ties: Ties, seed: int) -> Pairs:
    """Draw pairs of different items at random, with the greater first; ties keep the order of the draw.

    Parameters
    ----------
    labels
        True ranks of all items, int64, (N,).
    items
        Positions of the items to draw from.
    count
        Pairs to draw.
    ties
        ``"excluded"``: no pairs of equal rank are drawn, and the relation is greater; otherwise it is greater or equal.
    seed
        Seed of the draw.

    Returns
    -------
    Pairs
        ``count`` pairs.

    Raises
    ------
    InputError
        If ranks are unknown, or there are no two items to draw.
    """
    if len(items) < 2 or count < 1:
        msg = f"{count} pairs cannot be drawn from {len(items)} images"
        raise InputError(msg)
    if bool((labels[items] == UNKNOWN).any()):
        msg = "pairs are drawn from true ranks, but some are unknown; give the pairs (--pairs)"
        raise InputError(msg)
    if ties == "excluded" and bool((labels[items] == labels[items[0]]).all()):
        msg = "all images have the same rank, so there are only ties"
        raise InputError(msg)
    generator = torch.Generator().manual_seed(derive_seed(seed, "pairs"))
    found: list[Tensor] = []
    missing = count
    for _ in range(_ROUNDS):
        one = torch.randint(len(items), (missing,), generator=generator)
        other = (one + torch.randint(1, len(items), (missing,), generator=generator)) % len(items)
        drawn = torch.stack([items[one], items[other]])
        if ties == "excluded":
            drawn = drawn[:, labels[drawn[0]] != labels[drawn[1]]]
        found.append(drawn)
        missing -= drawn.shape[1]
        if not missing:
            break
    one, other = torch.cat(found, dim=1)
    smaller = labels[one] < labels[other]
    relation = RELATIONS.index(">" if ties == "excluded" else ">=")
    return Pairs(torch.where(smaller, other, one), torch.where(smaller, one, other), torch.full_like(one, relation))


def read_pairs(path: str | Path, images: LabelledImages) -> Pairs:
    """Read pairs from a CSV.

    Parameters
    ----------
    path
        Columns ``first`` and ``second``, names of items or positions from 0, and optionally ``relation``, of first to
        second: >=, >, =, <, <=; by default >=.
    images
        The items.

    Returns
    -------
    Pairs
        Pairs in the order of the file.

    Raises
    ------
    MissingInputError, RasterReadError
        If the file does not exist or is damaged.
    InputError
        If an item or a relation is unknown.
    """
    path = Path(path)
    rows = read_table(path, ("first", "second"), optional=("relation",))
    if not rows:
        msg = f"{path} has no pairs"
        raise InputError(msg)
    where = {name: position for position, name in enumerate(images.names)}
    found: list[tuple[int, int, int]] = []
    for row in rows:
        place = f"{path}, line {row.line}"
        one, other = (_find(row[name], where, place) for name in ("first", "second"))
        relation = row.get("relation", "").strip() or ">="
        if one == other:
            msg = f"{place}: {row['first']} is paired with itself"
            raise InputError(msg)
        if relation in _MIRRORED:
            one, other, relation = other, one, _MIRRORED[relation]
        if relation not in RELATIONS:
            msg = f"{place}: the relation {relation!r} is not one of >=, >, =, <, <="
            raise InputError(msg)
        found.append((one, other, RELATIONS.index(relation)))
    return Pairs(*torch.tensor(found, dtype=torch.int64).unbind(1))


def _find(text: str, where: Mapping[str, int], place: str) -> int:
    text = text.strip()
    if text in where:
        return where[text]
    if text.isdecimal() and int(text) < len(where):
        return int(text)
    msg = f"{place}: {text!r} is neither a training image nor a position from 0 to {len(where) - 1}"
    raise InputError(msg)
