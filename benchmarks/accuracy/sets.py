"""The names of the sets, and what prepares each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.accuracy.cases import (
    prepare_city,
    prepare_demo,
    prepare_epitome,
    prepare_ohio,
    prepare_pennsylvania,
    prepare_town,
    prepare_west_virginia,
)
from benchmarks.accuracy.places import prepare_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.accuracy.cases import Case
    from landprior.landcover.prior.settings import PriorSettings

SETS: dict[str, Callable[..., Iterator[Case]]] = {
    "demo": prepare_demo,
    "town": prepare_town,
    "ohio": prepare_ohio,
    "ohio-place": prepare_places,
    "durham": partial(prepare_city, city="durham"),
    "pittsburgh": partial(prepare_city, city="pittsburgh"),
    "phoenix": partial(prepare_city, city="phoenix"),
    "chesapeake-wv": prepare_west_virginia,
    "epitome": prepare_epitome,
    "pennsylvania": prepare_pennsylvania,
}


LAYERED = ("demo", "town", "ohio-place", "durham", "pittsburgh", "phoenix")
"""The sets with roads, buildings or water, which may be fused in several ways."""


def prepare(work: Path, names: list[str], settings: PriorSettings | None = None) -> Iterator[Case]:
    """Yield the cases of the named sets; without a name all but Pennsylvania's, which is for the recipes only."""
    for name in names or [name for name in SETS if name != "pennsylvania"]:
        (work / name).mkdir(parents=True, exist_ok=True)
        options = {"settings": settings} if name in LAYERED else {}
        yield from SETS[name](work / name, **options)
