# noqa: INP001 - a script, no module of a package
"""Draw the pictures of docs/tutorial.md from the files that its commands make.

Run the tutorial's commands in a folder, then::

    python docs/pictures.py FOLDER
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.assessment.figures import stretch
from landprior.raster.pixels import read_shrunk
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES = Path(__file__).parent / "images"
SIDE = 480
"""Pixels along the side of a panel."""

SCHEME, NLCD = load_scheme("enviroatlas-5"), load_scheme("nlcd")
LAYERS = {"waterbodies": "#4f9ed6", "waterways": "#1f6fb2", "roads": "#8c2d19", "buildings": "#f2a33c"}


def read(path: Path) -> NDArray[np.generic]:
    """Read a raster at the size of a panel, (bands, rows, columns)."""
    with open_raster(path) as src:
        return read_shrunk(src, SIDE)


def draw_layers(folder: Path) -> NDArray[np.uint8]:
    """Draw roads, buildings and water in one picture."""
    drawn = np.full((*read(folder / "roads.tif")[0].shape, 3), 250, dtype=np.uint8)
    for name, colour in LAYERS.items():
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        drawn[read(folder / f"{name}.tif")[0] > 0] = rgb
    return drawn


def save(figure: Figure, name: str) -> None:
    """Save a picture with few colours, so that it is small."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    IMAGES.mkdir(exist_ok=True)
    picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"{name}.png", optimize=True)


def show(panels: dict[str, NDArray[np.uint8]], legend: dict[str, str], columns: int = 4) -> Figure:
    """Put pictures side by side, over a legend."""
    figure = Figure(figsize=(3.0 * len(panels), 3.7), layout="constrained")
    for axis, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axis.imshow(panel)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    handles = [Patch(facecolor=colour, edgecolor="#666666", label=name) for name, colour in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def draw_inputs(folder: Path) -> None:
    """Draw image, NLCD and layers."""
    codes = read(folder / "nlcd.tif")[0]
    present = {one.name: one.colour for one in NLCD.classes if one.code in np.unique(codes)}
    image = stretch(read(folder / "naip.tif")[:3])
    panels = {
        "naip.tif": image,
        "nlcd.tif": NLCD.render(codes)[..., :3],
        "roads, buildings, water": draw_layers(folder),
    }
    save(show(panels, present | LAYERS), "inputs")


def draw_prior(folder: Path) -> None:
    """Draw the prior: all classes blended, and two of its bands."""
    shares = read(folder / "prior.tif").astype(np.float32)
    grey = {}
    for name in ("trees", "impervious"):
        band = shares[[one.name for one in SCHEME.classes].index(name)]
        grey[f"p({name})"] = np.repeat((255 * (1 - band))[..., None], 3, axis=-1).astype(np.uint8)
    panels = {"prior.tif, classes blended": SCHEME.blend(shares)[..., :3], **grey}
    save(show(panels, {one.name: one.colour for one in SCHEME.classes}, 5), "prior")


def draw_map(folder: Path) -> None:
    """Draw the map between the prior's best guess and the truth."""
    guess = read(folder / "prior.tif").argmax(0)
    codes = np.array([one.code for one in SCHEME.classes], dtype=np.uint8)[guess]
    panels = {
        "the prior's best guess": SCHEME.render(codes)[..., :3],
        "map.tif": SCHEME.render(read(folder / "map.tif")[0])[..., :3],
        "truth": SCHEME.render(read(folder / "labels.tif")[0])[..., :3],
    }
    save(show(panels, {one.name: one.colour for one in SCHEME.classes}, 5), "map")


def draw_adapted(folder: Path) -> None:
    """Draw the map without points, with them, and the truth."""
    files = {"map.tif": "map.tif", "adapted to 300 points": "better_map.tif", "truth": "labels.tif"}
    panels = {title: SCHEME.render(read(folder / name)[0])[..., :3] for title, name in files.items()}
    save(show(panels, {one.name: one.colour for one in SCHEME.classes}, 5), "adapted")


def draw_points(folder: Path) -> None:
    """Draw the points to label over the image."""
    points = geopandas.read_file(folder / "points.gpkg")
    with open_raster(folder / "naip.tif") as src:
        left, bottom, right, top = src.bounds
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(stretch(read(folder / "naip.tif")[:3]), extent=(left, right, bottom, top))
    axis.scatter(points.geometry.x, points.geometry.y, s=28, facecolors="none", edgecolors="yellow", linewidths=1)
    axis.set_axis_off()
    save(figure, "points")


def draw_areas(folder: Path) -> None:
    """Draw hectares of each class: counted on the map, estimated from the points, true."""
    codes = [one.code for one in SCHEME.classes]
    counts = {name: read_areas(folder / name, codes) for name in ("map.tif", "labels.tif")}
    estimate = evaluate_points(folder / "map.tif", folder / "points.gpkg", SCHEME)
    shares = [(share.value * estimate.hectares, share.margin * estimate.hectares) for share in estimate.shares]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(codes))
    axis.bar(place - 0.25, counts["map.tif"], 0.25, label="counted on the map", color="#b8b8b8")
    values, margins = zip(*shares, strict=True)
    options = {"yerr": margins, "color": "#3b7ea1", "capsize": 3}
    axis.bar(place, values, 0.25, label="estimated from 300 points, 95 %", **options)
    axis.bar(place + 0.25, counts["labels.tif"], 0.25, label="truth", color="#2e6b34")
    axis.set_xticks(place, [one.name for one in SCHEME.classes])
    axis.set_ylabel("hectares")
    axis.legend(frameon=False, fontsize=9)
    save(figure, "areas")


def read_areas(path: Path, codes: list[int]) -> list[float]:
    """Return the hectares of each code on a raster of 1 m."""
    with open_raster(path) as src:
        values = src.read(1)
    return [float((values == code).sum()) / 10_000 for code in codes]


if __name__ == "__main__":
    here = Path(sys.argv[1])
    for draw in (draw_inputs, draw_prior, draw_map, draw_adapted, draw_points, draw_areas):
        draw(here)
