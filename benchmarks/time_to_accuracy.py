"""Compute of the default recipe for the accuracy of the paper's schedule: ``python -m benchmarks.time_to_accuracy``.

The paper's schedule (AdamW, 1e-4, no warm-up, plateau, patches of 128 px) and the default recipe train networks of the
same width on the same tile. Compute is measured in pixel-steps: steps times the pixels of a batch. The target is the
final accuracy of r with the paper's schedule; it is reached at the first of three checks in a row that have it. On a
CPU the schedule is shortened (16 patches a batch, and ``--steps``), so that a pair of training runs takes 20 minutes;
the full one, with 128 patches and 128 filters, needs a GPU (``--patches 128 --filters 128 --steps 20000``).
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.accuracy.__main__ import Watch
from benchmarks.accuracy.sets import prepare
from landprior.errors import CollapseWarning, HarmWarning
from landprior.landcover.training.settings import TileSettings, make_settings
from landprior.landcover.training.tiles import read_tile
from landprior.landcover.training.trainer import train_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.accuracy.cases import Case

SETS = ("demo", "durham", "chesapeake-wv")
IN_A_ROW = 3
BAR = 0.25


def reach(looks: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the compute of the first of three checks in a row, or of the last ones, that reach the target."""
    for number, (compute, _) in enumerate(looks):
        if all(accuracy >= target for _, accuracy in looks[number : number + IN_A_ROW]):
            return compute
    return None


def train(case: Case, settings: TileSettings) -> tuple[list[tuple[float, float]], float]:
    """Return pixel-steps and accuracy of r at every check, and the total seconds."""
    start = time.perf_counter()
    tiles = [read_tile(image, prior, scheme=case.scheme) for image, prior, _ in case.tiles]
    model = train_model(tiles, settings, watch=Watch(case))
    pixels = settings.batch_size * settings.patch_size**2
    looks = [(look["step"] * pixels, look["label_accuracy"]) for look in model.record["history"]["looks"]]
    return looks, time.perf_counter() - start


@click.command()
@click.option("--sets", default=",".join(SETS), show_default=True, help="Comma-separated.")
@click.option("--steps", default=2000, show_default=True, help="Steps of the paper's schedule.")
@click.option("--default-steps", default=600, show_default=True, help="Steps of the default recipe.")
@click.option("--patches", default=16, show_default=True, help="Patches per batch of the paper's schedule.")
@click.option("--filters", default=32, show_default=True, help="Width of both networks.")
@click.option("--precision", default="auto", show_default=True, help="Precision of both runs: auto, fp32 or bf16.")
@click.option("--seed", default=0, show_default=True)
def main(sets: str, steps: int, default_steps: int, patches: int, filters: int, precision: str, seed: int) -> None:
    """Compare the default recipe with the paper's schedule."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", HarmWarning)
    warnings.simplefilter("ignore", CollapseWarning)
    common = {"filters": filters, "precision": precision, "seed": seed}
    recipes = {
        "paper": make_settings("paper", steps=steps, batch_size=patches, **common),
        "default": make_settings(settled=0.0, steps=default_steps, **common),
    }
    click.echo(
        f"{filters} filters; the paper's schedule: {steps} steps of {patches} patches of 128 px; compute in millions "
        "of pixel-steps"
    )
    with tempfile.TemporaryDirectory() as work:
        seen = set()
        for case in prepare(Path(work), sets.split(",")):
            if case.name in seen:  # with another matrix
                continue
            seen.add(case.name)
            looks, seconds = {}, {}
            for name, settings in recipes.items():
                looks[name], seconds[name] = train(case, settings)
            whole, target = looks["paper"][-1]
            short, end = looks["default"][-1]
            click.echo(
                f"{case.name}: r of the paper's schedule {target:.4f} after {whole / 1e6:.0f} in "
                f"{seconds['paper']:.0f} s, of the default recipe {end:.4f} after {short / 1e6:.0f} in "
                f"{seconds['default']:.0f} s"
            )
            for whose, level in (("paper's", target), ("default's", end)):
                ours, theirs = (reach(looks[name], level) for name in ("default", "paper"))
                cells = [
                    f"{name} {'never' if compute is None else f'after {compute / 1e6:.0f}'}"
                    for name, compute in (("default", ours), ("paper", theirs))
                ]
                share = "" if ours is None else f", {ours / whole:.3f} of the paper's whole (bar: {BAR})"
                click.echo(f"  the {whose} end is reached by the {cells[0]}, by the {cells[1]}{share}")


if __name__ == "__main__":
    main()
