"""Partial labels on digits and photographs: ``python -m benchmarks.partial_labels -o FOLDER``.

Parts: ``losses`` (one negative label, batches of 256), ``late`` (QR at a constant rate), ``batches`` (the paper's
Table B.1), ``thinned`` (digits 0-4 thinned to 10 % in training) and ``cifar`` (one to nine negative labels on the
subset of CIFAR-10). Every finished training is a line in FOLDER; the same command resumes. The exit status is 1
if a required value is missed.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.accuracy.cases import data_folder
from landprior.domains.imagery.formats import read_images
from landprior.domains.imagery.report import summarise, to_markdown, write_report
from landprior.domains.partial.settings import PartialSettings, Sweep
from landprior.domains.partial.sweep import SweepRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from landprior.domains.imagery.images import ImageSplits
    from landprior.domains.imagery.report import Line

PARTS = ("losses", "batches", "late", "thinned", "cifar")
RQ_BAR = 95.0
RUNNING_BAR = 95.0
WORSE_BAR = 0.3
THINNED = {str(digit): 0.1 for digit in range(5)}


def sweeps(part: str, epochs: int | None, seeds: int) -> list[Sweep]:
    """Return the training runs of a part, the most important one for its required values first."""
    base = {"seeds": seeds}
    settings = PartialSettings(epochs=epochs or {"losses": 12, "late": 24, "cifar": 20}.get(part, 8))
    if part == "losses":
        return [
            Sweep(losses=("rq", "ce", "nll-union", "qr-kl"), training=settings, **base),
            Sweep(losses=("rq",), marginals=("running",), training=settings, **base),
        ]
    if part == "late":
        constant = settings.model_copy(update={"schedule": "constant"})
        return [Sweep(losses=("qr-kl", "rq"), training=constant, **base)]
    if part == "batches":
        both = ("running", "batch")
        return [
            Sweep(losses=("rq",), marginals=both, batch_sizes=(8, 256, 16, 64), training=settings, **base),
            Sweep(losses=("nll-union",), batch_sizes=(8, 256, 16, 64), training=settings, **base),
            Sweep(losses=("rq",), marginals=("uniform",), batch_sizes=(8, 256), training=settings, **base),
        ]
    if part == "thinned":
        thin = {"thin": THINNED, "batch_sizes": (8,)}
        return [
            Sweep(losses=("rq",), marginals=("running", "batch"), training=settings, **thin, **base),
            Sweep(losses=("nll-union",), training=settings, **thin, **base),
            Sweep(losses=("rq",), marginals=("uniform",), training=settings, **thin, **base),
        ]
    counts = (1, 3, 5, 7, 9)
    return [
        Sweep(losses=("rq", "nll-union", "qr-kl", "ce"), negatives=counts, training=settings, **base),
        Sweep(losses=("rq",), marginals=("running",), negatives=counts, training=settings, **base),
    ]


def run_part(part: str, data: ImageSplits, folder: Path, wanted: Sequence[Sweep], *, only_show: bool) -> list[Line]:
    """Train the missing runs of a part and print its table."""
    runners = [SweepRunner(data, sweep, folder / part) for sweep in wanted]
    for runner in runners if not only_show else ():
        runner.run()
    runs = {run.key: run for runner in runners for run in runner.done()}
    cells = sum(len(runner.cells()) for runner in runners)
    lines = summarise(list(runs.values()))
    if runs:
        write_report(folder / part, list(runs.values()), missing=cells - len(runs))
    print(f"\n## {part}\n\n{to_markdown(lines, missing=cells - len(runs))}", flush=True)
    return lines


def find(lines: Sequence[Line], **row: str) -> float | None:
    """Return the accuracy of a line at its chosen epochs; None if it is not finished."""
    return next((line.chosen for line in lines if row.items() <= line.row.items()), None)


def check(part: str, lines: Sequence[Line]) -> bool:
    """Print the required values of a part; return whether all are reached."""

    def rq(marginal: str, batch: int) -> float | None:
        return find(lines, loss="rq", marginal=marginal, batch=str(batch))

    def other(loss: str, batch: int = 256) -> float | None:
        return find(lines, loss=loss, batch=str(batch))

    bars: list[tuple[str, list[float | None], Callable[..., bool]]] = []
    if part == "losses":
        bars = [
            (f"RQ at least {RQ_BAR}", [rq("batch", 256)], lambda a: a >= RQ_BAR),
            ("CE at least 3 below RQ", [other("ce"), rq("batch", 256)], lambda a, b: a <= b - 3),
            (
                f"running at most {WORSE_BAR} below batch at 256",
                [rq("running", 256), rq("batch", 256)],
                lambda a, b: a >= b - WORSE_BAR,
            ),
        ]
    if part == "late":
        late = next((line for line in lines if line.row["loss"] == "qr-kl"), None)
        bars = [
            (
                "QR ends at least 1 below its peak",
                [late.final if late else None, late.peak if late else None],
                lambda a, b: a <= b - 1,
            )
        ]
    if part == "batches":
        bars = [
            (f"running at 8 at least {RUNNING_BAR}", [rq("running", 8)], lambda a: a >= RUNNING_BAR),
            ("running above batch at 8", [rq("running", 8), rq("batch", 8)], lambda a, b: a > b),
            ("batch falls from 256 to 8", [rq("batch", 8), rq("batch", 256)], lambda a, b: a < b),
            (
                f"running at most {WORSE_BAR} below batch at 256",
                [rq("running", 256), rq("batch", 256)],
                lambda a, b: a >= b - WORSE_BAR,
            ),
        ]
    if part == "thinned":
        bars = [
            ("running above batch", [rq("running", 8), rq("batch", 8)], lambda a, b: a > b),
            ("running above NLL (union)", [rq("running", 8), other("nll-union", 8)], lambda a, b: a > b),
            ("running above a uniform denominator", [rq("running", 8), rq("uniform", 8)], lambda a, b: a > b),
        ]
    good = True
    for text, figures, met in bars:
        values = [value for value in figures if value is not None]
        if len(values) < len(figures):
            print(f"{text}: not yet measured")
            continue
        fine = met(*values)
        good &= fine
        print(f"{text}: {' against '.join(f'{value:.2f}' for value in values)}, {'met' if fine else 'MISSED'}")
    return good


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("partial-labels-results"))
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Parts to run.  [default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", type=int, help="Epochs, in place of each part's own.")
@click.option("--show", is_flag=True, help="Train nothing; print the results so far.")
def main(*, output: Path, parts: tuple[str, ...], seeds: int, epochs: int | None, show: bool) -> None:
    """Train the missing runs and print the tables."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    root = data_folder().parent
    good = True
    for part in parts or PARTS:
        data = read_images(root / "cifar10" if part == "cifar" else root / "mnist" / "mnist.npz")
        lines = run_part(part, data, output, sweeps(part, epochs, seeds), only_show=show)
        good &= check(part, lines)
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
