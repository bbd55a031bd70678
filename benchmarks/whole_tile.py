"""A tile from layers to a finished map, now and as in version 0.1: ``python -m benchmarks.whole_tile``.

Both build the prior, train and map r, alternately, on the same synthetic tile and cores, with the default recipe. That
of version 0.1 has a receptive field of 11 x 11 px and does not finish the map.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import click
import torch

from benchmarks.feed import make_tile
from benchmarks.whole_path import enlarge
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.training.files import train_files
from landprior.landcover.training.settings import make_settings
from landprior.raster.scheme import load_scheme
from landprior.run import Run

KINDS = {"0.1": (11, "none"), "now": (None, "edge")}
"""Receptive field and finish of each."""


def time_chain(image: Path, nlcd: Path, folder: Path, kind: str) -> dict[str, float]:
    """Return the seconds of each step."""
    field, finish = KINDS[kind]
    prior, model, run = folder / "prior.tif", folder / "model.safetensors", Run(overwrite=True)
    seconds = {}
    start = time.perf_counter()
    matrix = load_cooccurrence(None, load_scheme("enviroatlas-5"))
    build_prior(nlcd, prior, cooccurrence=matrix, run=run)
    seconds["build-prior"] = time.perf_counter() - start
    start = time.perf_counter()
    # both do all steps: when a map has settled would be chance
    train_files([(image, prior)], model, settings=make_settings(receptive_field=field, settled=0.0), run=run)
    seconds["train"] = time.perf_counter() - start
    start = time.perf_counter()
    options = MapOptions(finish=finish)  # type: ignore[arg-type]  # one of KINDS
    predict(image, folder / "map.tif", model, posterior=prior, force=True, options=options, run=run)
    seconds["predict"] = time.perf_counter() - start
    return seconds


@click.command()
@click.option("--width", default=7000, show_default=True)
@click.option("--height", default=6000, show_default=True)
@click.option("--rounds", default=1, show_default=True)
def main(width: int, height: int, rounds: int) -> None:
    """Time the whole chain."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        small, _ = make_tile(folder, 1000)
        image = enlarge(small, folder / "image.tif", width, height)
        nlcd = enlarge(folder / "nlcd.tif", folder / "codes.tif", width, height)
        for _ in range(rounds):
            for kind, some in found.items():
                some.append(time_chain(image, nlcd, folder, kind))
    click.echo(f"{width} x {height} px, {torch.get_num_threads()} threads, medians of {rounds}")
    for kind, some in found.items():
        steps = ", ".join(f"{step} {statistics.median(one[step] for one in some):.0f} s" for step in some[0])
        click.echo(f"{kind:<4} {steps}")
    ratios = [sum(now.values()) / sum(before.values()) for now, before in zip(*reversed(found.values()), strict=True)]
    click.echo(f"now / 0.1: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
