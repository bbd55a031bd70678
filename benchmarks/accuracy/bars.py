"""The accuracy required on each set, and whether it was reached."""

from __future__ import annotations

import statistics
from typing import Any


def check_bars(rows: list[dict[str, Any]]) -> str:
    """Compare means over seeds with the required values; skip those without figures."""
    lines = ["bars (means over seeds):"]

    def mean(name: str, matrix: str, key: str, *, what: str = "accuracy", loss: str = "qr") -> float | None:
        found = [r[what][key] for r in rows if (r["name"], r["matrix"], r["loss"]) == (name, matrix, loss)]
        return statistics.mean(found) if found else None

    def bar(text: str, value: float | None, least: float | None) -> None:
        if value is not None and least is not None:
            verdict = "met" if value >= least else "MISSED"
            lines.append(f"  {verdict:<6} {text}: {value:.4f}, bar {least:.4f}")

    def plus(value: float | None, more: float) -> float | None:
        return None if value is None else value + more

    demo = ("demo", "default")
    bar("demo: r at least 10 points above the prior", mean(*demo, "r"), plus(mean(*demo, "prior"), 0.10))
    bar("demo: QR r above CE", mean(*demo, "r"), mean(*demo, "q", loss="ce"))
    virginia = ("chesapeake-wv", "default (Maryland)")
    bar("chesapeake-wv: q", mean(*virginia, "q"), 0.899)
    bar("chesapeake-wv: r not below q", mean(*virginia, "r"), mean(*virginia, "q"))
    prior_iou = mean(*virginia, "prior", what="mean_iou")
    bar("chesapeake-wv: mean IoU of q above the prior's", mean(*virginia, "q", what="mean_iou"), prior_iou)
    bar("chesapeake-wv: mean IoU of r above the prior's", mean(*virginia, "r", what="mean_iou"), prior_iou)
    for city, least in (("pittsburgh", 0.74), ("durham", 0.75), ("phoenix", 0.77)):
        bar(f"{city}, own matrix: r", mean(city, "own", "r"), least)
    better = []
    for city in ("pittsburgh", "durham", "phoenix"):
        pairs = [
            (mean(city, "default", "r", what=w), mean(city, "default", "prior", what=w))
            for w in ("accuracy", "mean_iou")
        ]
        if all(a is not None for a, _ in pairs):
            better.append(all(a > b for a, b in pairs if a is not None and b is not None))
    if better:
        bar("cities, default matrix: r above its prior in accuracy and mean IoU in at least 2 of 3", sum(better), 2)
    epitome = ("epitome", "default (Maryland)")
    bar("epitome: r", mean(*epitome, "r"), 0.835)
    bar("epitome: mean IoU of r", mean(*epitome, "r", what="mean_iou"), 0.58)
    return "\n".join(lines)
