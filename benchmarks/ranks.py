"""Digits from ranks of pairs: ``python -m benchmarks.ranks -o FOLDER``.

Of each pair of digits only the greater (or equal) one is known. The test accuracy by seed at the epoch chosen without
labels is printed; the confusion matrices over time are drawn. Parts: ``marginals`` (each q fitted to its marginal
of r, batch and running marginal), ``joint`` (the divergence of the joint), ``own`` (denominators of first and second
items apart), ``small`` (8 pairs a step) and ``ties``. Every finished training is a line in FOLDER; the same command
resumes. The exit status is 1 if a required value is missed.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from benchmarks.accuracy.cases import data_folder
from landprior.domains.imagery.formats import read_images
from landprior.domains.imagery.report import summarise, to_markdown, write_report
from landprior.domains.ranks.figures import write_confusions
from landprior.domains.ranks.settings import RankSettings
from landprior.domains.ranks.training import RankRunner

PARTS = ("marginals", "joint", "own", "small", "ties")
BAR = 96.0
STUCK = 80.0


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("ranks-results"))
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Parts to run.  [default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", type=int, default=12, show_default=True)
@click.option("--show", is_flag=True, help="Train nothing; print the results so far.")
def main(*, output: Path, parts: tuple[str, ...], seeds: int, epochs: int, show: bool) -> None:
    """Train the missing runs and print the tables."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    data = read_images(data_folder().parent / "mnist" / "mnist.npz")
    good = True
    for part in parts or PARTS:
        settings = RankSettings(
            epochs=4 if part == "small" else epochs, denominators="own" if part == "own" else "common"
        )
        runners = [
            RankRunner(
                data,
                settings if part != "ties" else settings.model_copy(update={"ties": ties}),
                output / (part if part != "ties" else f"ties-{ties}"),
                fits=("joint",) if part == "joint" else ("marginals",),
                marginals=("batch", "running") if part in ("marginals", "small") else ("batch",),
                batch_sizes=(8,) if part == "small" else (128,),
                seeds=seeds if part == "marginals" else 1,
            )
            for ties in (("half", "excluded") if part == "ties" else ("included",))
        ]
        for runner in runners if not show else ():
            runner.run()
        runs = [run for runner in runners for run in runner.done()]
        missing = sum(len(runner.cells()) for runner in runners) - len(runs)
        lines = summarise(runs)
        for runner in runners:
            if found := runner.done():
                write_report(runner.folder, found)
                write_confusions(runner.folder, found, data.train.classes)
        print(f"\n## {part}\n\n{to_markdown(lines, missing=missing)}", flush=True)
        for line in lines:
            if line.chosen is None:
                continue
            by_seed = ", ".join(f"{value:.2f}" for value in line.by_seed)
            if part == "marginals":
                fine = line.chosen >= BAR
                good &= fine
                print(f"{line.row['marginal']}: {by_seed}; at least {BAR}: {'met' if fine else 'MISSED'}")
            elif part in ("joint", "own"):
                print(f"{part}: {by_seed}; sticks below {STUCK}: {'yes' if line.chosen < STUCK else 'no'}")
            else:
                print(f"{line.row['marginal']}, ties {line.row['ties']}: {by_seed}")
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
