"""The best recipe against plain QR, on sets not used to choose it: ``python -m benchmarks.recipe``.

Plain QR has no warm-up, one start, and the posterior r of the paper's eq. 3. The default recipe adds the warm-up; the
best one averages three networks and mirrored images and leaves out classes that the network does not support. All have
the same data, steps, learning rate and network. They were chosen on the demo scenes, Ohio and Durham, and are scored
here on the other sets.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.accuracy.sets import prepare
from landprior.errors import CollapseWarning, HarmWarning
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.training.ensemble import train_best
from landprior.landcover.training.settings import make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.accuracy.cases import Case
    from landprior.landcover.training.model import LandcoverModel

SETS = ("pittsburgh", "phoenix", "chesapeake-wv", "epitome", "pennsylvania")
MATRICES = {"pittsburgh": "own", "phoenix": "own"}
KINDS = ("prior", "plain", "default", "best")


def score(case: Case, model: LandcoverModel | None, folder: Path, *, force: bool) -> dict[str, float]:
    """Map a case's tiles with r (or the prior, without a model) and score them."""
    pairs = []
    for number, (image, prior, labels) in enumerate(case.tiles):
        path = folder / f"map-{number}.tif"
        if model is None:
            map_prior(prior, path, scheme=case.scheme, run=Run(overwrite=True))
        else:
            predict(image, path, model, posterior=prior, force=force, run=Run(overwrite=True))
        pairs.append((path, labels))
    scores = evaluate(pairs, case.scheme, label_map=case.label_map)
    return {"accuracy": scores.accuracy, "mean_iou": scores.mean_iou}


def run_case(case: Case, seed: int, filters: int, folder: Path) -> dict[str, Any]:
    """Train and score all recipes with one seed."""
    tiles = [read_tile(image, prior, scheme=case.scheme) for image, prior, _ in case.tiles]
    plain = train_best(tiles, make_settings(filters=filters, seed=seed, warmup="none", warmup_steps=0))
    best = train_best(tiles, make_settings("best", filters=filters, seed=seed))
    # the first member of the ensemble has the seed of the default recipe and is the same network
    first = replace(best, network=best.members[0], record=best.record | best.record["members"][0])
    return {
        "set": case.name,
        "seed": seed,
        "prior": score(case, None, folder, force=True),
        "plain": score(case, plain, folder, force=True),
        "default": score(case, first, folder, force=True),
        "best": score(case, best, folder, force=False),
        "dropped": [case.scheme.names[index] for index in best.dropped],
        "decision": best.record["verdict"]["decision"],
    }


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: mean over seeds, and half the spread."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["set"]].append(row)
    lines = [f"{'r, mean IoU':<16}" + "".join(f"{kind:>16}" for kind in KINDS) + f"{'best - plain':>16}"]
    better = 0
    gains = []
    for measure in ("mean_iou", "accuracy"):
        if measure == "accuracy":
            lines += ["", f"{'r, accuracy':<16}" + "".join(f"{kind:>16}" for kind in KINDS) + f"{'best - plain':>16}"]
        for name, some in groups.items():
            cells = [_spread([row[kind][measure] for row in some]) for kind in KINDS]
            gain = [row["best"][measure] - row["plain"][measure] for row in some]
            lines.append(f"{name:<16}" + "".join(f"{cell:>16}" for cell in cells) + f"{_spread(gain):>16}")
            if measure == "mean_iou":
                gains += gain
                better += statistics.mean(gain) > 0
    seeds = len(rows) // max(len(groups), 1)
    lines += ["", f"better than plain QR in mean IoU on {better} of {len(groups)} sets, {seeds} seeds each"]
    lines.append(f"mean gain in mean IoU {statistics.mean(gains):+.3f}, from {min(gains):+.3f} to {max(gains):+.3f}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ±{(max(values) - min(values)) / 2:.3f}"


@click.command()
@click.option("--sets", default=",".join(SETS), show_default=True, help="Comma-separated.")
@click.option("--seeds", default=3, show_default=True, help="Training runs of each set and recipe.")
@click.option("--filters", default=16, show_default=True, help="Width of the networks.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write every run's figures.")
def main(sets: str, seeds: int, filters: int, json_path: Path | None) -> None:
    """Compare the recipes."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", HarmWarning)
    warnings.simplefilter("ignore", CollapseWarning)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for case in prepare(Path(work), sets.split(",")):
            if case.matrix != MATRICES.get(case.name, case.matrix):
                continue
            for seed in range(seeds):
                rows.append(run_case(case, seed, filters, Path(work)))
                click.echo(json.dumps(rows[-1]), err=True)
                if json_path is not None:
                    json_path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    click.echo(report(rows))


if __name__ == "__main__":
    main()
