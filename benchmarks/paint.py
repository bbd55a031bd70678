"""Parts of a picture from a rough drawing: ``python -m benchmarks.paint``.

A collage whose true classes are known: sky, a ship and the sea, which differ in texture more than in colour, with wavy
borders; and a drawing of it in rectangles, whose most probable class is right in less than 80 % of the pixels. Printed
are the accuracies of the drawing, q and r, with and without positions, by seed. The exit status is 1 if r with the
usual settings (positions off) has less than 97 % on average. ``--pictures FOLDER`` maps the pictures of a folder that
have a drawing (``NAME.jpg`` and ``NAME_prior.png``, red, green and blue for sky, ship and sea), for visual inspection.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from scipy import ndimage

from landprior.cli.options import training_settings
from landprior.domains.painting.drawing import make_palette
from landprior.domains.painting.painting import WARMUP, Picture, paint
from landprior.raster.reading import open_raster
from landprior.run import Run

BAR, PRIOR_BAR = 0.97, 0.80
CLASSES = ("sky=red", "ship=lime", "sea=blue")


def make_collage(seed: int, side: int = 256) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image, uint8 (3, H, W), its classes, (H, W), and a drawing of it, uint8 (3, H, W)."""
    rng = np.random.default_rng(seed)

    def noise(sigma: float) -> np.ndarray:
        values = ndimage.gaussian_filter(rng.normal(size=(side, side)), sigma)
        return np.asarray(values / values.std())

    rows, columns = np.mgrid[:side, :side] / side
    truth = np.zeros((side, side), int)
    truth[rows > 0.68 + 0.04 * noise(12)] = 2
    hull = ((columns - 0.48) / 0.24) ** 2 + ((rows - 0.52) / 0.3) ** 2 + 0.35 * noise(10) < 0.85
    truth[hull] = 1
    colours = np.array([[165, 170, 190], [120, 130, 150], [105, 130, 160]], float)
    textures = [
        10 * noise(6),
        28 * np.sin(2 * np.pi * (columns * side / 5 + 0.5 * noise(8))),
        25 * np.sin(2 * np.pi * (rows * side / 6 + 0.5 * noise(8))),
    ]
    image = colours[truth].transpose(2, 0, 1) + np.choose(truth, textures) + 12 * rng.normal(size=(3, side, side))
    drawing = np.zeros((3, side, side), np.uint8)
    drawing[0, rows < 0.8] = 255
    drawing[2, rows > 0.6] = 255
    at = np.argwhere(hull)
    (top, left), (bottom, right) = np.maximum(at.min(0) - 12, 0), at.max(0) + 12
    drawing[1, top:bottom, left:right] = 255
    return np.clip(image, 0, 255).astype(np.uint8), truth, drawing


def write_picture(path: Path, values: np.ndarray) -> Path:
    """Write a PNG."""
    from matplotlib.image import imsave

    imsave(path, values.transpose(1, 2, 0))
    return path


def score(folder: Path, seed: int, *, position: bool, start: int, steps: int, filters: int) -> tuple[float, ...]:
    """Return accuracies of prior, q and r on one collage."""
    image, truth, drawing = make_collage(seed)
    picture = Picture(write_picture(folder / "collage.png", image), write_picture(folder / "drawing.png", drawing))
    settings = training_settings("default", loss="rq", warmup=WARMUP, steps=steps, filters=filters, seed=start)
    done = paint(
        [picture],
        folder / "out",
        palette=make_palette(CLASSES),
        settings=settings,
        position=position,
        run=Run(overwrite=True),
    )[0]
    found = []
    for path in (done.prior, done.q, done.classes):
        with open_raster(path) as src:
            values = src.read()
        classes = values[0] - 1 if len(values) == 1 else values[:3].argmax(0)  # q.png: red, green, blue
        found.append(float((classes == truth).mean()))
    return tuple(found)


@click.command()
@click.option("--collages", default=3, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--filters", default=16, show_default=True)
@click.option("--pictures", type=click.Path(path_type=Path), help="Map the pictures of this folder instead.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("landprior-paint"), show_default=True)
def main(*, collages: int, steps: int, filters: int, pictures: Path | None, output: Path) -> None:
    """Print the table."""
    logging.getLogger("landprior").setLevel(logging.ERROR)
    if pictures is not None:
        pairs = [
            Picture(path, drawn)
            for path in sorted(pictures.glob("*.jpg"))
            if (drawn := path.with_name(f"{path.stem}_prior.png")).is_file()
        ]
        for one in paint(pairs, output, palette=make_palette(CLASSES), position=True, run=Run(overwrite=True)):
            print(one.overlay, flush=True)
        return
    print(f"{'collage':>7} {'positions':>9} {'prior':>6} {'q':>6} {'r':>6}")
    with tempfile.TemporaryDirectory() as folder:
        table = {}
        for position in (False, True):
            for seed in range(collages):
                found = score(Path(folder), seed, position=position, start=seed, steps=steps, filters=filters)
                table[position, seed] = found
                print(f"{seed:7d} {'yes' if position else 'no':>9} " + " ".join(f"{v:6.3f}" for v in found), flush=True)
    mean = statistics.mean(table[False, seed][2] for seed in range(collages))
    highest = max(found[0] for found in table.values())
    met = mean >= BAR and highest <= PRIOR_BAR
    print(f"r {mean:.3f} (at least {BAR}), drawing at most {highest:.3f} ({PRIOR_BAR}): {'met' if met else 'MISSED'}")
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
