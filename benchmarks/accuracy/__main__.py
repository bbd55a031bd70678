"""Score the recipe on the synthetic scene and on real windows: ``python -m benchmarks.accuracy``.

Every figure comes from maps that ``landprior`` wrote, scored by the function behind ``landprior evaluate``. Labels are
used for scoring only, never for training, early stopping or the verdict.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import torch

from benchmarks.accuracy.bars import check_bars
from benchmarks.accuracy.points import (
    EACH,
    FIRST,
    NO_POINTS,
    Plan,
    Tile,
    draw_points,
    score_adapted,
    score_chosen,
    score_classifiers,
    score_supervised,
)
from benchmarks.accuracy.sets import SETS, prepare
from landprior.errors import HarmWarning
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.prior.settings import Fusion, PriorSettings
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.shares import find_shares
from landprior.landcover.training.tiles import read_tile
from landprior.landcover.training.trainer import train_model
from landprior.raster.classes import read_classes
from landprior.raster.reading import open_raster
from landprior.raster.scheme import IGNORED_INDEX
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.accuracy.cases import Case
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.verdict import Snapshot

LOSSES = {"demo": ("qr", "ce"), "chesapeake-wv": ("qr", "rq", "ce", "ce-argmax")}
"""Losses trained besides QR in the sets where they are reported."""


@dataclass
class Row:
    """Figures of one (set, matrix, loss, seed)."""

    name: str
    matrix: str
    loss: str
    seed: int
    accuracy: dict[str, float] = field(default_factory=dict)
    mean_iou: dict[str, float] = field(default_factory=dict)
    areas: dict[str, dict[str, float]] = field(default_factory=dict)
    decision: str = ""
    best: float = float("nan")
    last: float = float("nan")
    best_step: int = 0
    stop_step: int = 0
    seconds: float = 0.0
    verdict: dict[str, object] = field(default_factory=dict)
    recall: dict[str, dict[str, float]] = field(default_factory=dict)
    truth: dict[str, float] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    supervised: float = float("nan")

    def note(self, key: str, scores: Scores) -> None:
        """Keep the figures of one map."""
        self.accuracy[key], self.mean_iou[key] = scores.accuracy, scores.mean_iou
        ratios = zip(scores.scheme.names, scores.area_ratio.tolist(), strict=True)
        self.areas[key] = {name: ratio for name, ratio in ratios if not math.isnan(ratio)}
        labelled = scores.confusion.sum(1)
        self.truth = dict(zip(scores.scheme.names, (labelled / labelled.sum()).tolist(), strict=True))
        self.recall[key] = dict(zip(scores.scheme.names, scores.recall.tolist(), strict=True))


class Watch:
    """Record the accuracy of r against the labels at every snapshot, to find the best one afterwards."""

    def __init__(self, case: Case) -> None:
        self._labels = []
        for _, _, labels in case.tiles:
            with open_raster(labels) as src:
                self._labels.append(
                    torch.from_numpy(read_classes(src, None, case.scheme, codes=case.label_map, where=labels))
                )

    def __call__(self, snapshot: Snapshot) -> Mapping[str, float]:
        """Score the crops of a snapshot."""
        right = count = 0
        for index, at, best in snapshot.maps:
            labels = self._labels[index][at]
            known = (labels != IGNORED_INDEX) & (best.cpu() != IGNORED_INDEX)
            right += int((best.cpu()[known] == labels[known]).sum())
            count += int(known.sum())
        return {"label_accuracy": right / max(count, 1)}


def run_case(
    case: Case,
    loss: str,
    seed: int,
    *,
    filters: int,
    folder: Path,
    plan: Plan = NO_POINTS,
    separate: bool = False,
    receptive_field: int | None = None,
) -> Row:
    """Train, map and score one case; then adapt the model to points. ``separate``: each tile of a place has its own."""
    started = time.monotonic()
    row = Row(case.name, case.matrix, loss, seed)
    base = TileSettings(filters=filters, receptive_field=receptive_field)
    settings = base.model_copy(update={"training": base.training.model_copy(update={"loss": loss, "seed": seed})})
    cases = [replace(case, tiles=(files,)) for files in case.tiles] if separate and case.place else [case]
    models = []
    for part in cases:
        tiles = [read_tile(image, prior, scheme=case.scheme) for image, prior, _ in part.tiles]
        models += [train_model(tiles, settings, watch=Watch(part))] * len(part.tiles)
    model = models[0]
    row.seconds = time.monotonic() - started
    row.decision = model.record["verdict"]["decision"]
    row.verdict = model.record["verdict"]
    looks = [(look["step"], look["label_accuracy"]) for look in model.record["history"]["looks"]]
    row.best_step, row.best = max(looks, key=lambda pair: pair[1])
    row.stop_step, row.last = looks[-1]
    maps: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HarmWarning)
        for number, ((image, prior, labels), model) in enumerate(zip(case.tiles, models, strict=True)):
            shared = find_shares(model.record, image.name) if case.place else None
            for key, options in {
                "prior": None,
                "q": {},
                "plain r": {
                    "posterior": prior,
                    "marginal": shared,
                    "force": True,
                    "options": MapOptions(finish="none"),
                },
                "r": {"posterior": prior, "marginal": shared, "force": True},
                "handed back": {"posterior": prior, "marginal": shared},
            }.items():
                path = folder / f"{key.replace(' ', '-')}-{number}.tif"
                if options is None:
                    map_prior(prior, path, scheme=case.scheme, run=Run(overwrite=True))
                else:
                    predict(image, path, model, run=Run(overwrite=True), **options)
                maps[key].append((path, labels))
    for key, pairs in maps.items():
        row.note(key, evaluate(pairs, case.scheme, label_map=case.label_map))
    if plan.numbers and loss == "qr" and not separate:
        _add_points(row, case, model, plan, folder)
    return row


def _add_points(row: Row, case: Case, model: LandcoverModel, plan: Plan, folder: Path) -> None:
    """Score what points add to a row."""
    tiles = [Tile.read(image, labels, case) for image, _, labels in case.tiles]
    row.supervised = score_supervised(case, tiles)
    path = folder / "points.gpkg"
    for number in plan.numbers:
        for draw in range(plan.draws):
            places = draw_points(tiles, case, number, 1000 * row.seed + draw, path)
            adapted, found = score_adapted(case, model, path, folder)
            scored = {"adapted": adapted, **dict(score_classifiers(case, tiles, places, path, draw, folder))}
            if plan.chosen and number >= FIRST + EACH:
                scored["chosen"] = score_chosen(case, model, tiles, number, 1000 * row.seed + draw, folder)
            for method, scores in scored.items():
                one = Row(row.name, row.matrix, row.loss, row.seed)
                one.note(method, scores)
                entry = {"method": method, "number": number, "draw": draw, "accuracy": scores.accuracy}
                entry |= {"mean_iou": scores.mean_iou, "areas": one.areas[method], "recall": one.recall[method]}
                entry |= {"estimate": found.adapted.value} if method == "adapted" else {}
                row.points.append(entry)


def show(rows: list[Row]) -> str:
    """Return the table: mean and spread (highest - lowest) over the seeds."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.name, row.matrix, row.loss].append(row)
    lines = [
        (
            f"{'set':<16} {'matrix':<19} {'loss':<9} {'prior':>6} {'q':>14} {'r':>14} "
            f"{'IoU prior':>9} {'IoU q':>14} {'IoU r':>14} {'gap':>6} {'kept':>5} {'s':>4}"
        )
    ]
    for (name, matrix, loss), some in groups.items():
        cells = [_spread([row.accuracy[key] for row in some]) for key in ("q", "r")]
        ious = [_spread([row.mean_iou[key] for row in some]) for key in ("q", "r")]
        gap = statistics.mean(row.best - row.last for row in some)
        kept = sum(row.decision == "kept" for row in some)
        lines.append(
            f"{name:<16} {matrix:<19} {loss:<9} {some[0].accuracy['prior']:6.3f} {cells[0]:>14} {cells[1]:>14} "
            f"{some[0].mean_iou['prior']:9.3f} {ious[0]:>14} {ious[1]:>14} {gap:6.3f} {kept:>2}/{len(some)} "
            f"{statistics.mean(row.seconds for row in some):4.0f}"
        )
    return "\n".join(lines)


def show_areas(rows: list[Row]) -> str:
    """Return the area of each class on the maps relative to the truth: means over the seeds."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.areas:
            groups[row.name, row.matrix, row.loss].append(row)
    lines = ["area of each class, map / truth (1 is right; classes without a label are left out):"]
    for (name, matrix, loss), some in groups.items():
        for key in ("prior", "r"):
            shown = [f"{c} {statistics.mean(r.areas[key][c] for r in some):.2f}" for c in some[0].areas[key]]
            lines.append(f"{name:<16} {matrix:<19} {loss:<9} {key:<5} {', '.join(shown)}")
    return "\n".join(lines)


def show_points(rows: list[Row]) -> str:
    """Return what points add: means over seeds and draws, areas, and how often a class lost half of its recall."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.points:
            groups[row.name, row.matrix].append(row)
    lines = [
        "labelled points, drawn at random (accuracy / mean IoU; plain r: not finished; supervised: a forest that is",
        "trained on half of each tile and scored on the other; halved: classes of 1 % and more whose recall fell below",
        "half of that without points, over all draws; estimate: the mean cross-validated accuracy that adapt prints):",
    ]
    for (name, matrix), some in groups.items():
        means = []
        for key in ("prior", "plain r", "r"):
            accuracy, iou = (
                statistics.mean(getattr(row, what)[key] for row in some) for what in ("accuracy", "mean_iou")
            )
            means.append(f"{key} {accuracy:.3f}/{iou:.3f}")
        supervised = statistics.mean(row.supervised for row in some)
        lines.append(f"{name} ({matrix}): {', '.join(means)}, supervised {supervised:.3f}")
        for number, method in sorted({(p["number"], p["method"]) for row in some for p in row.points}):
            found = [(row, p) for row in some for p in row.points if (p["number"], p["method"]) == (number, method)]
            figures = [statistics.mean(p[key] for _, p in found) for key in ("accuracy", "mean_iou")]
            names = list(found[0][1]["areas"])
            areas = ", ".join(f"{c} {statistics.mean(p['areas'][c] for _, p in found):.2f}" for c in names)
            text = f"  {number:4d} points, {method:<9} {figures[0]:.3f}/{figures[1]:.3f}   area {areas}"
            if method == "adapted":
                halved = sum(
                    p["recall"][c] < row.recall["r"][c] / 2
                    for row, p in found
                    for c in names
                    if row.truth.get(c, 0) >= 0.01
                )
                estimate = statistics.mean(p["estimate"] for _, p in found)
                text += f"; halved {halved} in {len(found)} draws; estimate {estimate:.3f}"
            lines.append(text)
    return "\n".join(lines)


def show_verdicts(rows: list[Row]) -> str:
    """Return a summary of the verdicts: harm caught and missed, gains kept and lost."""
    counts: dict[str, int] = defaultdict(int)
    points: dict[str, float] = defaultdict(float)
    for row in rows:
        gain = row.accuracy["r"] - row.accuracy["prior"]
        kind = ("gain" if gain >= 0 else "harm") + (" kept" if row.decision == "kept" else " handed back")
        counts[kind] += 1
        points[kind] += gain
    lines = ["verdict over all sets, losses and seeds (accuracy of r less the prior's, summed in points):"]
    for kind, meaning in (
        ("gain kept", "right"),
        ("gain handed back", "gains lost"),
        ("harm handed back", "harm caught"),
        ("harm kept", "harm missed"),
    ):
        lines.append(f"  {kind:<17} {counts[kind]:3d} runs {100 * points[kind]:+8.1f} points   ({meaning})")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ±{(max(values) - min(values)) / 2:.3f}"


def report(rows: list[Row], filters: int) -> str:
    """Return all tables."""
    seeds = len({row.seed for row in rows})
    return "\n".join(
        [
            f"{filters} filters, {seeds} seeds: mean ± half the spread; gap: best accuracy of r less its final one;",
            "kept: share of runs that kept the posterior. 'own' matrices were measured with the city's labels.",
            show(rows),
            "",
            show_areas(rows),
            "",
            show_verdicts(rows),
            "",
            *([show_points(rows), ""] if any(row.points for row in rows) else []),
            check_bars([asdict(row) for row in rows]),
        ]
    )


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file written with ``--json``."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


@click.command()
@click.option("--sets", default="", help="Comma-separated: " + ",".join(SETS) + ".")
@click.option("--seeds", default=3, show_default=True, help="Training runs of each case.")
@click.option("--filters", default=16, show_default=True, help="Width of the network (the tool's default is 32).")
@click.option("--receptive-field", type=int, help="Of the network, pixels.  [default: the recipe's]")
@click.option("--fusion", type=click.Choice(get_args(Fusion)), default="added", show_default=True)
@click.option("--points", default="", help="Comma-separated numbers of labelled points to adapt to, such as 30,100.")
@click.option("--draws", default=5, show_default=True, help="Draws of the points.")
@click.option("--chosen", is_flag=True, help="Also score points that are proposed by rounds, instead of random ones.")
@click.option("--separate", is_flag=True, help="Train a model for each tile of a place, instead of one for all.")
@click.option("--matrix", "matrices", multiple=True, help="Only rows with this matrix, such as default; repeatable.")
@click.option("--loss", "losses", multiple=True, help="Only this loss of a set; repeatable.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Also write every run's figures; runs that the file already has are not repeated.",
)
@click.option(
    "--show", "shown", multiple=True, type=click.Path(path_type=Path), help="Only print the tables of --json files."
)
def main(
    *,
    sets: str,
    seeds: int,
    filters: int,
    receptive_field: int | None,
    fusion: Fusion,
    points: str,
    draws: int,
    chosen: bool,
    separate: bool,
    matrices: tuple[str, ...],
    losses: tuple[str, ...],
    json_path: Path | None,
    shown: tuple[Path, ...],
) -> None:
    """Train and score the one recipe on every set."""
    if shown:
        click.echo(report([row for path in shown for row in read_rows(path)], filters))
        return
    logging.getLogger("landprior").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", HarmWarning)
    started = time.monotonic()
    rows = read_rows(json_path) if json_path is not None and json_path.exists() else []
    done = {(row.name, row.matrix, row.loss, row.seed) for row in rows}
    plan = Plan(tuple(int(text) for text in points.split(",") if text), draws, chosen)
    with tempfile.TemporaryDirectory() as work:
        for case in prepare(Path(work), [name for name in sets.split(",") if name], PriorSettings(fusion=fusion)):
            if matrices and case.matrix not in matrices:
                continue
            for loss in [one for one in LOSSES.get(case.name, ("qr",)) if not losses or one in losses]:
                for seed in range(seeds):
                    if (case.name, case.matrix, loss, seed) in done:
                        continue
                    how: dict[str, Any] = {"filters": filters, "plan": plan, "separate": separate}
                    how["receptive_field"] = receptive_field
                    row = run_case(case, loss, seed, folder=Path(work), **how)
                    rows.append(row)
                    click.echo(
                        f"{case.name} ({case.matrix}) {loss} seed {seed}: prior {row.accuracy['prior']:.3f} "
                        f"q {row.accuracy['q']:.3f} r {row.accuracy['r']:.3f} {row.decision} {row.seconds:.0f} s",
                        err=True,
                    )
                    if json_path is not None:
                        json_path.write_text(json.dumps([asdict(r) for r in rows], indent=2), encoding="utf-8")
    click.echo(report(rows, filters))
    click.echo(f"took {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
