"""Report of an experiment: published figures, ours and the difference, as Markdown, JSON and a picture."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landprior.landcover.assessment.scores import Scores
from landprior.raster.outputs import replacing
from landprior.raster.scheme import load_scheme

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.landcover.experiments.config import Experiment, View
    from landprior.landcover.experiments.results import Result

_VIEWS = {"all": "all classes", "merged": "merged", "reassigned": "reassigned"}


@dataclass(frozen=True)
class Line:
    """One line of a table, in percent: the mean over seeds and half their range."""

    row: str
    mode: str
    map: str
    region: str
    view: View
    accuracy: float
    accuracy_spread: float
    mean_iou: float
    mean_iou_spread: float
    published: tuple[float | None, float | None]
    seeds: int
    tiles: int
    learning_rates: tuple[float, ...]

    def differences(self) -> tuple[float | None, float | None]:
        """Return our figures minus the published ones, in percentage points."""
        ours = (self.accuracy, self.mean_iou)
        pairs = zip(ours, self.published, strict=True)
        return tuple(None if theirs is None else mine - theirs for mine, theirs in pairs)  # type: ignore[return-value]


def view_scores(scores: Scores, view: View, merge: tuple[str, str] | None) -> Scores:
    """Rescore a confusion matrix by another view (Table E.2).

    Parameters
    ----------
    scores
        Scores over all classes.
    view
        ``"merged"``: the second class of ``merge`` counts as the first, in labels and map. ``"reassigned"``: confusion
        between these two classes counts as correct; all classes stay.
    merge
        Names of the two classes: (into, from).

    Returns
    -------
    Scores
        Scores of the same pixels.
    """
    if view == "all" or merge is None:
        return scores
    into, other = (scores.scheme.index(name) for name in merge)
    counts = scores.confusion.copy()
    if view == "reassigned":
        for one, another in ((into, other), (other, into)):
            counts[one, one] += counts[one, another]
            counts[one, another] = 0
        return Scores(scheme=scores.scheme, confusion=counts)
    counts[into] += counts[other]
    counts[:, into] += counts[:, other]
    counts[other] = 0
    counts[:, other] = 0  # absent on both sides, so left out of the mean
    return Scores(scheme=scores.scheme, confusion=counts)


def summarise(experiment: Experiment, results: Sequence[Result]) -> list[Line]:
    """Return the lines of the report, in the order of the rows."""
    scheme = load_scheme(experiment.scheme)
    groups: dict[tuple[str, str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.row, result.mode, result.map, result.region].append(result)
    lines = []
    for view in experiment.views:
        for row in experiment.rows:
            for (name, mode, kind, region), some in groups.items():
                if name != row.name:
                    continue
                scores = [view_scores(result.scores(scheme), view, experiment.merge) for result in some]
                accuracy, mean_iou = ([100 * getattr(s, field) for s in scores] for field in ("accuracy", "mean_iou"))
                key = kind if view == "all" else f"{kind} {view}"
                lines.append(
                    Line(
                        row=name,
                        mode=mode,
                        map=kind,
                        region=region,
                        view=view,
                        accuracy=statistics.mean(accuracy),
                        accuracy_spread=(max(accuracy) - min(accuracy)) / 2,
                        mean_iou=statistics.mean(mean_iou),
                        mean_iou_spread=(max(mean_iou) - min(mean_iou)) / 2,
                        published=row.published.get(region, {}).get(key, (None, None)),
                        seeds=len(some),
                        tiles=some[0].tiles,
                        learning_rates=tuple(sorted({r.learning_rate for r in some if r.learning_rate is not None})),
                    )
                )
    return lines


def write_report(folder: Path, experiment: Experiment, results: Sequence[Result], *, missing: int = 0) -> list[Path]:
    """Write ``report.md``, ``report.json`` and ``report.png``; the same results always give the same files.

    Parameters
    ----------
    folder
        Folder of the experiment.
    experiment, results
        The experiment and its results.
    missing
        Number of cells still to be run, shown at the top of the report.

    Returns
    -------
    list of Path
        The files written.
    """
    lines = summarise(experiment, results)
    contents = {
        "report.md": to_markdown(experiment, lines, missing=missing),
        "report.json": json.dumps(to_dict(experiment, lines, missing=missing), indent=2) + "\n",
    }
    paths = []
    for name, text in contents.items():
        with replacing(folder / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(folder / name)
    if lines:
        with replacing(folder / "report.png", overwrite=True) as temporary:
            draw_dots(temporary, experiment, lines)
        paths.append(folder / "report.png")
    return paths


def to_dict(experiment: Experiment, lines: Sequence[Line], *, missing: int = 0) -> dict[str, Any]:
    """Return the report as a dictionary.

    Parameters
    ----------
    experiment
        The experiment.
    lines
        Lines of the tables.
    missing
        Number of cells still to be run.

    Returns
    -------
    dict
        The report, ready for JSON.
    """
    return {
        "title": experiment.title,
        "source": experiment.source,
        "settings": experiment.settings.model_dump(mode="json"),
        "missing_cells": missing,
        "lines": [vars(line) | {"difference": line.differences()} for line in lines],
    }


def to_markdown(experiment: Experiment, lines: Sequence[Line], *, missing: int = 0) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    experiment, lines, missing
        See :func:`to_dict`.

    Returns
    -------
    str
        One table per view.
    """
    settings = {name: value for name, value in experiment.settings.model_dump().items() if value is not None}
    text = [f"# {experiment.title}", ""]
    text += [experiment.about.strip(), ""] if experiment.about else []
    text += [f"Trained with: {', '.join(f'{name} {value}' for name, value in settings.items())}."]
    text += [f"**{missing} cells are still to be run.**"] if missing else []
    text += [f"Published figures: {experiment.source.strip()}"] if experiment.source else []
    text += ["Accuracy and mean IoU in percent, pooled over tiles; ± half the spread over seeds.", ""]
    for view in experiment.views:
        some = [line for line in lines if line.view == view]
        if not some:
            continue
        title = _VIEWS[view] + (
            f": {experiment.merge[1]} with {experiment.merge[0]}" if experiment.merge and view != "all" else ""
        )
        text += [f"## {title}", ""] if len(experiment.views) > 1 else []
        text += [
            "| row | model | learning rate | map | region | tiles | accuracy | mean IoU | published | difference |",
            "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for line in some:
            title = experiment.regions[line.region].title or line.region
            mode = "-" if line.map == "prior" else {"joint": "joint", "tile": "per tile"}[line.mode]
            rates = ", ".join(f"{rate:g}" for rate in line.learning_rates) or "-"
            accuracy = _figure(line.accuracy, line.accuracy_spread, line.seeds)
            mean_iou = _figure(line.mean_iou, line.mean_iou_spread, line.seeds)
            text.append(
                f"| {line.row} | {mode} | {rates} | {line.map} | {title} | {line.tiles} | {accuracy} | {mean_iou} "
                f"| {_pair(line.published, '')} | {_pair(line.differences(), '+')} |"
            )
        text.append("")
    return "\n".join(text)


def _figure(value: float, spread: float, seeds: int) -> str:
    return f"{value:.1f}" + (f" ±{spread:.1f}" if seeds > 1 else "")


def _pair(values: tuple[float | None, float | None], sign: str) -> str:
    if values == (None, None):
        return ""
    return " / ".join("-" if value is None else f"{value:{sign}.1f}" for value in values)


def draw_dots(path: Path, experiment: Experiment, lines: Sequence[Line]) -> None:
    """Draw accuracy and mean IoU of every line, one panel per region: ours as dots, published figures as rings.

    Parameters
    ----------
    path
        The figure to write.
    experiment, lines
        See :func:`to_dict`; only lines of the first view are drawn.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [line for line in lines if line.view == experiment.views[0]]
    regions = [name for name in experiment.columns if any(line.region == name for line in shown)]
    labels = list(dict.fromkeys(_label(line) for line in shown))
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(2.6 + 2.6 * len(regions), 1.2 + 0.24 * len(labels)), layout="constrained")
        axes = figure.subplots(1, len(regions), squeeze=False, sharey=True, sharex=True)[0]
        for axis, region in zip(axes, regions, strict=True):
            for line in (line for line in shown if line.region == region):
                at = len(labels) - 1 - labels.index(_label(line))
                ours, spreads = (line.accuracy, line.mean_iou), (line.accuracy_spread, line.mean_iou_spread)
                for value, spread, theirs, colour in zip(ours, spreads, line.published, ("C0", "C1"), strict=True):
                    axis.errorbar(value, at, xerr=spread, fmt="o", color=colour, markersize=4)
                    if theirs is not None:
                        axis.plot(theirs, at, "o", mfc="none", mec=colour, markersize=7)
            axis.set_title(experiment.regions[region].title or region)
            axis.set_yticks(range(len(labels)), labels[::-1])
            axis.grid(axis="x", color="0.9")
        legend = [("C0", "C0", "accuracy"), ("C1", "C1", "mean IoU")]
        legend += [("none", "0.4", "published")] if any(line.published != (None, None) for line in shown) else []
        handles = [
            axes[0].plot([], [], "o", mfc=fill, mec=colour, color=colour, label=label)[0]
            for fill, colour, label in legend
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=150)


def _label(line: Line) -> str:
    mode = " (per tile)" if line.mode == "tile" else ""
    return line.row if line.map == "prior" else f"{line.row}{mode}: {line.map}"
