"""The report of a sweep: accuracies at the chosen, best and last epochs, as Markdown, JSON and figures."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.domains.imagery.records import RunRecord

_SHORT = {"negatives": "negative labels", "batch": "batch size", "thin": "thinned"}
_NAMES = {
    "rq": "RQ",
    "qr-kl": "QR",
    "nll-union": "NLL (union)",
    "ce": "CE",
    "ranks": "RQ of marginals",
    "joint": "RQ of the joint",
}


@dataclass(frozen=True)
class Line:
    """One row of the table: percentages, means over seeds.

    Parameters
    ----------
    row
        Configuration of the training.
    chosen, peak, final
        Test accuracy at the epoch chosen without labels, at the best and at the last; None without true labels.
    spread
        Half the range of ``chosen`` over seeds.
    train
        Training accuracy at the chosen epoch.
    ruled_out
        Held-out items, at the chosen epoch, whose most probable class is not a candidate.
    by_seed
        ``chosen`` for each seed.
    epochs
        The chosen epochs.
    items
        Number of items fitted.
    seconds
        Mean duration of a training.
    """

    row: dict[str, str]
    chosen: float | None
    peak: float | None
    final: float | None
    spread: float
    train: float | None
    ruled_out: float | None
    by_seed: tuple[float, ...]
    epochs: tuple[int, ...]
    items: int
    seconds: float


def summarise(runs: Sequence[RunRecord]) -> list[Line]:
    """Return a line per row, in order of appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[tuple(run.row.items())].append(run)
    lines = []
    for row, some in groups.items():
        by_seed = tuple(value for run in some if (value := run.at_chosen()) is not None)
        lines.append(
            Line(
                row=dict(row),
                chosen=_mean(by_seed),
                peak=_mean([run.peak() for run in some]),
                final=_mean([run.final() for run in some]),
                spread=(max(by_seed) - min(by_seed)) / 2 if by_seed else 0.0,
                train=_mean([run.at_chosen("train") for run in some]),
                ruled_out=_mean([run.looks[run.chosen - 1].scores.get("ruled_out") for run in some]),
                by_seed=by_seed,
                epochs=tuple(run.chosen for run in some),
                items=some[0].items,
                seconds=statistics.mean(run.seconds for run in some),
            )
        )
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.mean(there) if there else None


def to_markdown(lines: Sequence[Line], *, missing: int = 0) -> str:
    """Return the table as Markdown."""
    columns = [name for name in (lines[0].row if lines else ()) if any(line.row[name] for line in lines)]
    text = [f"**{missing} trainings are still to be run.**", ""] if missing else []
    text += [
        "Percent; means over seeds, ± half their range. The epoch is chosen on held-out items without true labels.",
        "",
    ]
    head = [*(_SHORT.get(name, name) for name in columns), "seeds"]
    figures = ["test", "peak", "last", "train", "ruled out", "epoch", "seconds"]
    text.append("| " + " | ".join([*head, *figures]) + " |")
    text.append("| " + " | ".join([*("---" for _ in columns), *("---:" for _ in range(8))]) + " |")
    for line in lines:
        test = _figure(line.chosen) + (f" ±{line.spread:.2f}" if len(line.by_seed) > 1 else "")
        cells = [
            *(line.row[name] or "-" for name in columns),
            str(len(line.epochs)),
            test,
            *(_figure(value) for value in (line.peak, line.final, line.train, line.ruled_out)),
            ", ".join(map(str, line.epochs)),
            f"{line.seconds:.0f}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_report(folder: Path, runs: Sequence[RunRecord], *, missing: int = 0) -> None:
    """Write ``report.md``, ``report.json`` and, if there are true labels, ``curves.png`` and figures of sweeps.

    Parameters
    ----------
    folder
        Folder of the results.
    runs
        Finished runs.
    missing
        Number of runs still to be done, shown at the top of the report.
    """
    lines = summarise(runs)
    contents = {
        "report.md": to_markdown(lines, missing=missing),
        "report.json": json.dumps({"missing": missing, "lines": [asdict(line) for line in lines]}, indent=2) + "\n",
    }
    for name, text in contents.items():
        with replacing(folder / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if not any(line.chosen is not None for line in lines):
        return
    with replacing(folder / "curves.png", overwrite=True) as temporary:
        draw_curves(temporary, runs)
    for axis in ("negatives", "batch"):
        if len({line.row.get(axis) for line in lines}) > 1:
            with replacing(folder / f"{axis}.png", overwrite=True) as temporary:
                draw_sweep(temporary, runs, axis)


def method_of(row: dict[str, str]) -> str:
    """Return the label of a line in a figure: loss and marginal."""
    name = _NAMES.get(row.get("loss", ""), row.get("loss", ""))
    marginal = row.get("marginal", "")
    return f"{name}, {marginal}" if marginal and marginal != "batch" else name


def draw_curves(path: Path, runs: Sequence[RunRecord]) -> None:
    """Draw test (solid) and training accuracy (dotted) over epochs, means over seeds; a panel for each setting."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        rest = ", ".join(
            f"{_SHORT.get(name, name)} {value}"
            for name, value in run.row.items()
            if value and name not in ("loss", "marginal")
        )
        panels[rest][method_of(run.row)].append(run)
    methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(0.6 + 3.6 * columns, 0.8 + 2.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            for method, some in panel.items():
                colour = f"C{methods.index(method)}"
                epochs = range(1, 1 + min(len(run.looks) for run in some))
                for split, style in (("test", "-"), ("train", ":")):
                    curves = [[getattr(look, split) for look in run.looks[: len(epochs)]] for run in some]
                    if any(value is None for curve in curves for value in curve):
                        continue
                    means = [statistics.mean(values) for values in zip(*curves, strict=True)]
                    axis.plot(epochs, means, style, color=colour, linewidth=1.2)
                    if split == "test" and len(curves) > 1:
                        low, high = ([f(values) for values in zip(*curves, strict=True)] for f in (min, max))
                        axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(color="0.9")
        axes[0].set_ylabel("accuracy, %")
        handles = [axes[0].plot([], [], color=f"C{i}", label=name)[0] for i, name in enumerate(methods)]
        handles += [axes[0].plot([], [], s, color="0.3", label=n)[0] for s, n in (("-", "test"), (":", "training"))]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(path, dpi=150)


def draw_sweep(path: Path, runs: Sequence[RunRecord], axis_name: str) -> None:
    """Draw accuracy against one setting: at the chosen epoch (filled) and the best (ring), bars over seeds.

    Parameters
    ----------
    path
        The figure to write.
    runs
        Runs with test labels.
    axis_name
        The setting, with integer values.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = [line for line in summarise(runs) if line.chosen is not None]
    places = sorted({int(line.row[axis_name]) for line in lines})
    others = {
        name
        for name in lines[0].row
        if name not in (axis_name, "loss", "marginal") and len({line.row[name] for line in lines}) > 1
    }
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        rest = "".join(f", {_SHORT.get(name, name)} {line.row[name]}" for name in sorted(others))
        groups[method_of(line.row) + rest].append(line)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axis = figure.subplots()
        for number, (name, some) in enumerate(groups.items()):
            some.sort(key=lambda line: int(line.row[axis_name]))
            at = [places.index(int(line.row[axis_name])) for line in some]
            axis.errorbar(
                at,
                [line.chosen or 0.0 for line in some],
                yerr=[line.spread for line in some],
                fmt="o-",
                color=f"C{number}",
                markersize=4,
                linewidth=1,
                label=name,
            )
            axis.plot(at, [line.peak or 0.0 for line in some], "o", mfc="none", mec=f"C{number}", markersize=7)
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set_xlabel(_SHORT.get(axis_name, axis_name))
        axis.set_ylabel("test accuracy, %")
        axis.grid(axis="y", color="0.9")
        axis.legend(frameon=False)
        figure.savefig(path, dpi=150)
