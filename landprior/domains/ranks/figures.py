"""Confusion matrices over time, as in Figure 4 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.domains.imagery.records import EpochScores, RunRecord

_PANELS = 6
"""Maximum number of matrices side by side."""


def write_confusions(folder: Path, runs: Sequence[RunRecord], classes: Sequence[str]) -> list[Path]:
    """Draw ``confusion-KEY.png`` for each run that has confusion matrices.

    Parameters
    ----------
    folder
        Folder for the figures.
    runs
        Finished runs.
    classes
        Names of the ranks, ascending.

    Returns
    -------
    list of Path
        Paths of the figures.
    """
    paths = []
    for run in runs:
        epochs = choose_epochs(run.looks, run.chosen)
        if not epochs:
            continue
        path = folder / f"confusion-{run.key}.png"
        with replacing(path, overwrite=True) as temporary:
            draw_confusions(temporary, epochs, classes)
        paths.append(path)
    return paths


def choose_epochs(epochs: Sequence[EpochScores], chosen: int) -> list[EpochScores]:
    """Return the looks after epochs 1, 2, 4, 8 and so on and after the chosen one, up to the maximum number."""
    there = [one for one in epochs if one.confusion is not None]
    early = [one for one in there if one.epoch & (one.epoch - 1) == 0 and one.epoch != chosen]
    last = [one for one in there if one.epoch == chosen]
    return sorted([*early[: _PANELS - len(last)], *last], key=lambda one: one.epoch)


def draw_confusions(path: Path, epochs: Sequence[EpochScores], classes: Sequence[str]) -> None:
    """Draw confusion matrices in a row: shares of each true class (rows) by predicted class.

    Parameters
    ----------
    path
        The figure to write.
    epochs
        Looks with confusion matrices.
    classes
        Names of the ranks, ascending.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(0.6 + 2.0 * len(epochs), 2.6), layout="constrained")
        axes = figure.subplots(1, len(epochs), squeeze=False, sharey=True)[0]
        for axis, one in zip(axes, epochs, strict=True):
            counts = np.array(one.confusion, dtype=float)
            axis.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
            axis.set_title(f"epoch {one.epoch}: {one.test:.1f} %")
            axis.set_xlabel("predicted")
            axis.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
            axis.set_yticks(range(len(classes)), classes)
        axes[0].set_ylabel("true")
        figure.savefig(path, dpi=150)
