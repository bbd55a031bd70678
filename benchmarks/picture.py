"""The README's picture, a real place with its prior and its map: ``python -m benchmarks.picture``.

The place is one of the patches of ``chesapeake-wv``: 256 m of West Virginia, NAIP's four bands at 1 m. As in
``benchmarks.accuracy`` the prior has the matrix that ships with the scheme, and one model is trained on all patches.
Their labels are used for the printed scores only and are not drawn. NAIP (USDA) and NLCD (USGS) are in the public
domain.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image

from benchmarks.accuracy.sets import prepare
from landprior.landcover.assessment.figures import draw_panels, stretch
from landprior.landcover.assessment.scores import evaluate
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.training.files import train_files
from landprior.landcover.training.settings import make_settings
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.accuracy.cases import Case

PLACE = "m_3708020_sw_17_1-0"
"""Woods, fields, a farm and its road; of the eleven patches, the one whose accuracy is nearest to that of all."""
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "west-virginia.jpg"
QUALITY = 90
"""Quality of the JPEG, which stays under 300 kB."""


def map_patches(case: Case, folder: Path, *, filters: int, seed: int) -> dict[str, list[Path]]:
    """Train one model on all patches; return the maps of the prior's best guess and of the posterior."""
    pairs = [(image, prior) for image, prior, _ in case.tiles]
    model = train_files(pairs, folder / "model.safetensors", settings=make_settings(filters=filters, seed=seed))
    return {
        "prior": [map_prior(prior, folder / f"prior-{image.name}", scheme=case.scheme) for image, prior in pairs],
        "map": [predict(image, folder / f"map-{image.name}", model, posterior=prior) for image, prior in pairs],
    }


def draw(path: Path, case: Case, index: int, mapped: Path) -> None:
    """Draw image, prior and map of a patch side by side, as a JPEG."""

    def read(file: Path) -> NDArray[np.generic]:
        with open_raster(file) as src:
            return np.asarray(src.read())

    image, prior, _ = case.tiles[index]
    panels = [
        ("NAIP image, 1 m", stretch(read(image))),
        ("prior, from NLCD at 30 m", case.scheme.blend(read(prior).astype(np.float32))),
        ("map, 1 m", case.scheme.render(read(mapped)[0])[..., :3]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draw_panels(Path(folder) / "picture.png", panels, case.scheme)
        with Image.open(Path(folder) / "picture.png") as picture:
            picture.convert("RGB").save(path, quality=QUALITY, subsampling=0, optimize=True)


@click.command()
@click.option("--filters", default=16, show_default=True, help="Width of the network.")
@click.option("--seed", default=0, show_default=True, help="Seed of the training.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=PICTURE, help="The picture to write.")
def main(filters: int, seed: int, output: Path) -> None:
    """Draw image, prior and map of a real place, and print the accuracy of the map."""
    logging.getLogger("landprior").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        case = next(prepare(Path(work), ["chesapeake-wv"]))
        names = [image.name.removesuffix("_naip-new.tif") for image, _, _ in case.tiles]
        maps = map_patches(case, Path(work), filters=filters, seed=seed)
        draw(output, case, names.index(PLACE), maps["map"][names.index(PLACE)])
        for which, paths in maps.items():
            pairs = list(zip(paths, (labels for _, _, labels in case.tiles), strict=True))
            of_all = evaluate(pairs, case.scheme, label_map=case.label_map)
            click.echo(f"{which:<6} accuracy {of_all.accuracy:.3f}  mean IoU {of_all.mean_iou:.3f}")
            for name, pair in zip(names, pairs, strict=True):
                click.echo(f"  {name} {evaluate([pair], case.scheme, label_map=case.label_map).accuracy:.3f}")
    click.echo(f"{output} ({output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
