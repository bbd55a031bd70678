"""Pictures of our learned priors against the published panels: ``python -m benchmarks.learned_prior``.

The same measure as for the golden priors: the mean difference in grey levels (of 255) between the prior, drawn as the
mean of the class colours, and the panel of the paper's figure, more than 45 px from the border. Ours are learned on one
half of a window and drawn on the other; the published network saw five whole tiles of the city and its weights were not
published. For scale, the panels of the hand-coded and of the learned prior are also compared with each other.
"""

from __future__ import annotations

import logging
from pathlib import Path

import click
import numpy as np

from benchmarks.accuracy.cases import CITIES, data_folder
from landprior.landcover.experiments.config import load_experiment
from landprior.landcover.experiments.runner import Runner
from landprior.landcover.training.layers import PriorLayer
from landprior.raster.reading import open_raster

ROWS = ("prior hand-coded", "prior learned on the other half", "prior learned elsewhere")
BORDER = 45


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("landprior-experiments/city-windows"),
    show_default=True,
    help="Folder of the experiment city-windows; existing results are used.",
)
@click.option("--seeds", type=int, help="Seeds of the experiment in the folder, if it was run.")
def main(output: Path, seeds: int | None) -> None:
    """Draw the priors and compare."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    root = data_folder() / "enviroatlas-4city-notebook"
    experiment = load_experiment("city-windows", **({} if seeds is None else {"seeds": seeds}))
    runner = Runner(experiment, root, output)
    click.echo(f"{'grey levels':<12}" + "".join(f"{row:>36}" for row in (*ROWS, "panels: learned - hand-coded")))
    for region in experiment.columns:
        errors = []
        learned, by_hand = (_panel(root, region, kind) for kind in ("learned", "hand-coded"))
        for row in ROWS:
            panel = by_hand if row == "prior hand-coded" else learned
            parts = []
            for place, path in runner.priors(row, region):
                with PriorLayer(path) as belief:
                    drawn = belief.scheme.blend(belief.read()[0]).astype(float)
                middle = panel.shape[1] // 2
                half = panel[:, :middle] if place.name == "left" else panel[:, middle:]
                parts.append(np.abs(drawn - half)[BORDER:-BORDER, BORDER:-BORDER].ravel())
            errors.append(np.concatenate(parts).mean())
        errors.append(np.abs(learned - by_hand)[BORDER:-BORDER, BORDER:-BORDER].mean())
        click.echo(f"{region:<12}" + "".join(f"{error:36.2f}" for error in errors))


def _panel(root: Path, region: str, kind: str) -> np.ndarray:
    with open_raster(root / f"{CITIES[region][0]}_prior-{kind}_rgb.tif") as src:
        return src.read().transpose(1, 2, 0).astype(float)


if __name__ == "__main__":
    main()
