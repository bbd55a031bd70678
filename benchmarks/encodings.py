"""Effect of the prior's encoding on the map: ``python -m benchmarks.encodings``.

The same prior (Durham, hand-coded, the city's own matrix) in single floats, half floats, uint8 rounded and uint8
truncated as in the paper; QR is trained on each. The last two differ in how many probabilities become zero.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from pathlib import Path
from typing import get_args

import click
import numpy as np

from benchmarks.accuracy.__main__ import run_case
from benchmarks.accuracy.cases import Case, data_folder
from benchmarks.accuracy.sets import prepare
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.training.layers import PriorLayer
from landprior.raster.cog import Encoding, write_raster
from landprior.run import Run

CITY, MATRIX = "durham_nc-2012", "avg_nlcd_nc_whole_city_label_cooccurrences.npy"


def encode(case: Case, folder: Path) -> dict[str, Path]:
    """Write the case's prior in every encoding."""
    source = data_folder() / "enviroatlas-4city-notebook"
    found = {}
    for encoding in get_args(Encoding):
        found[encoding] = build_prior(
            source / f"{CITY}_nlcd.tif",
            folder / f"{encoding}.tif",
            cooccurrence=load_cooccurrence(data_folder() / "enviroatlas-cooccurrence" / MATRIX, case.scheme),
            layers={name: source / f"{CITY}_{name}.tif" for name in LAYERS},
            encoding=encoding,
            run=Run(overwrite=True),
        )
    with PriorLayer(found["float32"]) as layer:
        values, _ = layer.read()
        cut = np.floor(values * 255).astype(np.uint8)
        tags = {"scheme": case.scheme.model_dump_json(exclude_defaults=True)}
        found["uint8 truncated"] = write_raster(folder / "cut.tif", cut, layer.grid, tags=tags, overwrite=True)
    return found


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Training runs of each encoding.")
@click.option("--filters", default=16, show_default=True, help="Width of the network.")
def main(seeds: int, filters: int) -> None:
    """Print size, error, zeros and the accuracy of QR's r for each encoding."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        case = next(case for case in prepare(folder, ["durham"]) if case.matrix == "own")
        paths = encode(case, folder)
        with PriorLayer(paths["float32"]) as layer:
            exact, valid = layer.read()
        print(f"{'encoding':<16} {'KiB':>6} {'largest error':>13} {'zeros':>7} {'r accuracy':>14} {'r mean IoU':>11}")
        for name in ("float32", "float16", "uint8", "uint8 truncated"):
            with PriorLayer(paths[name], scheme=case.scheme) as layer:
                values, _ = layer.read()
            image, _, labels = case.tiles[0]
            same = Case(name=case.name, matrix=name, scheme=case.scheme, tiles=((image, paths[name], labels),))
            rows = [run_case(same, "qr", seed, filters=filters, folder=folder) for seed in range(seeds)]
            accuracies = [row.accuracy["r"] for row in rows]
            half = (max(accuracies) - min(accuracies)) / 2
            print(
                f"{name:<16} {paths[name].stat().st_size / 1024:6.0f} {np.abs(values - exact)[:, valid].max():13.5f} "
                f"{(values[:, valid] == 0).mean():7.1%} {statistics.mean(accuracies):7.3f} ±{half:.3f} "
                f"{statistics.mean(row.mean_iou['r'] for row in rows):11.3f}"
            )


if __name__ == "__main__":
    main()
