"""Run all benchmarks with ``python -m benchmarks`` (hours), or some, ``python -m benchmarks feed engines``."""

from __future__ import annotations

import importlib
import time

import click

BENCHMARKS = {
    "startup": "how long landprior --help takes",
    "prior_speed": "building a prior against the published recipe",
    "fetch_speed": "burning and warping against rasterio's own commands",
    "time_to_accuracy": "pixel-steps of the default recipe against the paper's schedule",
    "feed": "the training feed against a fixed batch, and against torchgeo's sampler",
    "engines": "OpenVINO against torch",
    "whole_path": "predict from file to file against the network alone",
    "whole_tile": "a tile from layers to map, against version 0.1",
    "polygons": "a map as polygons, and its small patches removed: time and memory",
    "finish": "smoothing a map along edges against a naive filter",
    "gpu": "how much of a device's matrix rate training and prediction reach",
    "many_tiles": "the overhead of a plan; two workers against one",
    "encodings": "the effect of how probabilities are stored",
    "zonal": "areas per polygon against exactextract's own",
    "accuracy": "the default recipe on all sets",
    "recipe": "the best recipe against plain QR",
    "points": "the gain from a hundred labelled points",
    "ohio": "QR against labels",
    "methods": "all methods of landprior compare on real sets",
    "self_epitome": "self-epitomic super-resolution: speed, cost, accuracy",
    "epitome": "a large epitome with and without location promotion",
    "text": "fine topics of documents by RQ, against its prior and cross-entropy",
    "partial_labels": "partial labels of digits and pictures, by loss, batch and marginal",
    "paint": "parts of a picture from a rough drawing",
    "clustering": "clusters without labels, assigned from 400 points, against k-means and logistic regression",
    "density": "a target per pixel from density classes of blocks, against cross-entropy",
    "ranks": "digits from pairs of which only the order is known",
    "same_maps": "checksums of the output of every command, to compare two versions",
    "learned_prior": "pictures of learned priors against the published panels",
}
PACKAGES = {"accuracy", "same_maps"}


@click.command(epilog="Each benchmark has its own options: python -m benchmarks.NAME --help")
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--list", "listed", is_flag=True, help="List the benchmarks and exit.")
def main(names: tuple[str, ...], *, listed: bool) -> None:
    """Run the benchmarks NAMES, all by default, one after another, with their default options."""
    if listed:
        for name, text in BENCHMARKS.items():
            click.echo(f"{name:<14} {text}")
        return
    for name in names or BENCHMARKS:
        module = f"benchmarks.{name}.__main__" if name in PACKAGES else f"benchmarks.{name}"
        click.echo(f"== {name}: {BENCHMARKS[name]}")
        start = time.perf_counter()
        importlib.import_module(module).main(args=[], standalone_mode=False)
        click.echo(f"({time.perf_counter() - start:.0f} s)\n")


if __name__ == "__main__":
    main()
