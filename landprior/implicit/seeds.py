"""Seeds of the parts of a run, derived from the run's seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, name: str) -> int:
    """Derive the seed of a part (a tile, an order, a draw) from the run's seed and its name, not its position."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
