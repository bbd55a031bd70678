"""Confusion matrices over time, as in Figure 4 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.domains.imagery.records import Look, RunRecord

_PANELS = 6
"""Matrices side by side, at most."""


def write_confusions(folder: Path, runs: Sequence[RunRecord], classes: Sequence[str]) -> list[Path]:
    """Draw ``confusion-KEY.png`` for each run that has confusion matrices.

    Parameters
    ----------
    folder
        Where the pictures go.
    runs
        Those that are done.
    classes
        Names of the ranks, ascending.

    Returns
    -------
    list of Path
        The pictures.
    """
    paths = []
    for run in runs:
        looks = choose_looks(run.looks, run.chosen)
        if not looks:
            continue
        path = folder / f"confusion-{run.key}.png"
        with replacing(path, overwrite=True) as temporary:
            draw_confusions(temporary, looks, classes)
        paths.append(path)
    return paths


def choose_looks(looks: Sequence[Look], chosen: int) -> list[Look]:
    """Return those after epochs 1, 2, 4, 8 and so on and the chosen one, the first few of them if there are more."""
    there = [look for look in looks if look.confusion is not None]
    early = [look for look in there if look.epoch & (look.epoch - 1) == 0 and look.epoch != chosen]
    last = [look for look in there if look.epoch == chosen]
    return sorted([*early[: _PANELS - len(last)], *last], key=lambda look: look.epoch)


def draw_confusions(path: Path, looks: Sequence[Look], classes: Sequence[str]) -> None:
    """Draw confusion matrices in a row: shares of each true class (rows) by predicted class.

    Parameters
    ----------
    path
        The picture to write.
    looks
        Each with its confusion matrix.
    classes
        Names of the ranks, ascending.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(0.6 + 2.0 * len(looks), 2.6), layout="constrained")
        axes = figure.subplots(1, len(looks), squeeze=False, sharey=True)[0]
        for axis, look in zip(axes, looks, strict=True):
            counts = np.array(look.confusion, dtype=float)
            axis.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
            axis.set_title(f"epoch {look.epoch}: {look.test:.1f} %")
            axis.set_xlabel("predicted")
            axis.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
            axis.set_yticks(range(len(classes)), classes)
        axes[0].set_ylabel("true")
        figure.savefig(path, dpi=150)
