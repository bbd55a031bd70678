"""The sets on which the recipe is scored, prepared as plain files: image, prior, labels.

Real data is read in place (LANDPRIOR_TEST_DATA, or ``../shared/data`` beside the repository); derived
files are written to a working folder.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.prior.cooccurrence import load_cooccurrence, measure_cooccurrence
from landprior.landcover.synthetic.demo import write_scene
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster
from landprior.raster.scheme import load_scheme
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.landcover.prior.settings import PriorSettings
    from landprior.raster.scheme import ClassScheme

REPOSITORY = Path(__file__).resolve().parents[2]
CITIES = {
    "durham": ("durham_nc-2012", "nc"),
    "pittsburgh": ("pittsburgh_pa-2010", "pa"),
    "phoenix": ("phoenix_az-2010", "az"),
}
ANOTHER = {"durham": "pa", "pittsburgh": "nc", "phoenix": "austin_tx"}
"""The other city whose matrix is used in place of a city's own."""

MATRICES = {
    "nc": "avg_nlcd_nc_whole_city_label_cooccurrences.npy",
    "pa": "avg_nlcd_pa_whole_city_label_cooccurrences.npy",
    "az": "avg_nlcd_az_whole_city_no_ag_label_cooccurrences.npy",
    "austin_tx": "avg_nlcd_austin_tx_whole_city_no_ag_label_cooccurrences.npy",
}
TOWN = 3000
"""Side of the scene with a town, metres."""

TILT = np.deg2rad(7.0)
"""Rotation of the derived 30 m cells against the image, as between Albers and UTM."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set with one prior.

    Parameters
    ----------
    name, matrix
        The set, and the source of its cooccurrence matrix.
    scheme
        Its classes.
    tiles
        (image, prior, labels) paths; several train one joint model.
    label_map
        Codes of the labels -> codes of the scheme.
    chosen_on
        Whether the recipe was chosen on it.
    local_labels
        Whether the matrix was measured with labels of the same city.
    place
        Whether the tiles are neighbours, mapped with the shares of the classes over all of them, as by ``run --joint``.
    """

    name: str
    matrix: str
    scheme: ClassScheme
    tiles: tuple[tuple[Path, Path, Path], ...]
    label_map: Mapping[int, int] = field(default_factory=dict)
    chosen_on: bool = False
    local_labels: bool = False
    place: bool = False


def data_folder() -> Path:
    """Return the folder of the real land-cover sets."""
    return Path(os.environ.get("LANDPRIOR_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "landcover"


def prepare_demo(folder: Path, seed: int = 0, *, settings: PriorSettings | None = None) -> Iterator[Case]:
    """Make the scene of the demo: a village in farmland."""
    yield _make_scene_case(folder, "demo", seed, settings)


def prepare_town(folder: Path, seed: int = 0, *, settings: PriorSettings | None = None) -> Iterator[Case]:
    """Make a scene of a town and its country, 3 x 3 km."""
    yield _make_scene_case(folder, "town", seed, settings, size=TOWN)


def _make_scene_case(folder: Path, name: str, seed: int, settings: PriorSettings | None, **options: int) -> Case:
    scheme = load_scheme("enviroatlas-5")
    tile = write_scene(folder, seed=seed, overwrite=True, **options)
    layers = tile.present(tuple(LAYERS))
    prior = folder / f"prior-{seed}.tif"
    build_prior(
        tile.file("nlcd"),
        prior,
        cooccurrence=load_cooccurrence(None, scheme),
        layers=layers,
        settings=settings,
        run=Run(overwrite=True),
    )
    return Case(
        name=name,
        matrix="default",
        scheme=scheme,
        tiles=((tile.file("naip"), prior, tile.file("labels")),),
        chosen_on=True,
    )


def prepare_city(folder: Path, city: str, *, settings: PriorSettings | None = None) -> Iterator[Case]:
    """Take a city's window, with its own matrix, the default and another city's."""
    scheme = load_scheme("enviroatlas-5")
    stem, own = CITIES[city]
    source = data_folder() / "enviroatlas-4city-notebook"
    matrices = data_folder() / "enviroatlas-cooccurrence"
    choices = {
        "own": load_cooccurrence(matrices / MATRICES[own], scheme),
        "default": load_cooccurrence(None, scheme),
        f"of {ANOTHER[city]}": load_cooccurrence(matrices / MATRICES[ANOTHER[city]], scheme),
    }
    for kind, matrix in choices.items():
        prior = folder / f"prior-{kind.replace(' ', '-')}.tif"
        build_prior(
            source / f"{stem}_nlcd.tif",
            prior,
            cooccurrence=matrix,
            layers={name: source / f"{stem}_{name}.tif" for name in LAYERS},
            settings=settings,
            run=Run(overwrite=True),
        )
        yield Case(
            name=city,
            matrix=kind,
            scheme=scheme,
            tiles=((source / f"{stem}_naip-rgb.tif", prior, source / f"{stem}_highres_labels.tif"),),
            chosen_on=city == "durham",
            local_labels=kind == "own",
        )


def prepare_west_virginia(folder: Path) -> Iterator[Case]:
    """Take the patches of West Virginia, as one joint model."""
    scheme = load_scheme("chesapeake-4")
    source = data_folder() / "chesapeake-wv-patches"
    matrix = load_cooccurrence(None, scheme)
    tiles = []
    for image in sorted(source.glob("*_naip-new.tif")):
        stem = image.name.removesuffix("_naip-new.tif")
        prior = folder / f"{stem}_prior.tif"
        build_prior(source / f"{stem}_nlcd.tif", prior, cooccurrence=matrix, run=Run(overwrite=True))
        tiles.append((image, prior, source / f"{stem}_lc.tif"))
    yield Case(name="chesapeake-wv", matrix="default (Maryland)", scheme=scheme, tiles=tuple(tiles))


def prepare_epitome(folder: Path) -> Iterator[Case]:
    """Take the window of the epitome's demo."""
    scheme = load_scheme("chesapeake-4")
    source = data_folder() / "epitome-demo"
    prior = folder / "prior.tif"
    build_prior(source / "nlcd_214.tif", prior, cooccurrence=load_cooccurrence(None, scheme), run=Run(overwrite=True))
    yield Case(
        name="epitome",
        matrix="default (Maryland)",
        scheme=scheme,
        tiles=((source / "naip_rgb_214.tif", prior, source / "lc_214.tif"),),
        label_map={0: 1, 1: 2, 2: 3, 3: 4},
    )


def prepare_pennsylvania(folder: Path) -> Iterator[Case]:  # noqa: ARG001 - the makers' signature
    """Use the paper's own window of a Pennsylvania tile with its prior, shrunk to 3.7 m; for the recipes only."""
    source = data_folder() / "chesapeake-ny-pa-notebook"
    stem = "pa_m_3907614_ne_18_1"
    files = tuple(source / f"{stem}_{layer}.tif" for layer in ("naip-rgb", "prior", "highres_labels"))
    yield Case(
        name="pennsylvania",
        matrix="the paper's prior",
        scheme=load_scheme("chesapeake-4"),
        tiles=((files[0], files[1], files[2]),),
        label_map={0: 1, 1: 2, 2: 3, 3: 4},
    )


def prepare_ohio(folder: Path, clusters: tuple[int, ...] = (3, 15)) -> Iterator[Case]:
    """Merge each cluster of neighbouring tiles into one tile; coarse codes are derived from the masks.

    The matrix of a cluster is measured on all other clusters.
    """
    scheme = load_scheme(REPOSITORY / "benchmarks" / "accuracy" / "ohio-5.yaml")
    files = {number: make_mosaic(folder, number, ids) for number, ids in list_clusters().items()}
    for number in clusters:
        image, codes, labels = files[number]
        others = [(nlcd, mask) for other, (_, nlcd, mask) in files.items() if other != number]
        matrix: Cooccurrence = measure_cooccurrence(others, scheme)
        prior = folder / f"prior-{number}.tif"
        build_prior(codes, prior, cooccurrence=matrix, run=Run(overwrite=True))
        yield Case(
            name=f"ohio-{number}",
            matrix="other clusters",
            scheme=scheme,
            tiles=((image, prior, labels),),
            chosen_on=True,
        )


def list_clusters() -> dict[int, list[str]]:
    """Return the tiles of each spatial cluster."""
    found: dict[int, list[str]] = defaultdict(list)
    with (data_folder() / "naip-ohio-6class" / "tiles.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            found[int(row["spatial_cluster"])].append(row["tile_id"])
    return dict(found)


def make_mosaic(folder: Path, number: int, ids: list[str]) -> tuple[Path, Path, Path]:
    """Merge the tiles of a cluster; 255 marks pixels outside every tile."""
    source = data_folder() / "naip-ohio-6class"
    images, masks, places = [], [], []
    for one in ids:
        with open_raster(next((source / "img").glob(f"*{one}.*"))) as src:
            images.append(src.read())
            places.append(src.transform)
            crs = src.crs
        with open_raster(next((source / "mask").glob(f"*{one}.*"))) as src:
            masks.append(src.read(1))
    pixel = places[0].a
    left, top = min(t.c for t in places), max(t.f for t in places)
    corners = [(round((top - t.f) / pixel), round((t.c - left) / pixel)) for t in places]
    height = max(r + m.shape[0] for (r, _), m in zip(corners, masks, strict=True))
    width = max(c + m.shape[1] for (_, c), m in zip(corners, masks, strict=True))
    image, mask = np.zeros((4, height, width), np.uint8), np.full((height, width), 255, np.uint8)
    for (r, c), some, codes in zip(corners, images, masks, strict=True):
        image[:, r : r + codes.shape[0], c : c + codes.shape[1]] = np.maximum(some, 1)  # 0 marks no data
        mask[r : r + codes.shape[0], c : c + codes.shape[1]] = codes
    grid = Grid(width=width, height=height, transform=Affine(pixel, 0, left, 0, -pixel, top), crs=crs)
    options = {"overwrite": True}
    return (
        write_raster(folder / f"image-{number}.tif", image, grid, nodata=0, **options),
        write_raster(
            folder / f"nlcd-{number}.tif", derive_codes(mask, grid), grid, nodata=0, overviews="mode", **options
        ),
        write_raster(folder / f"labels-{number}.tif", mask, grid, nodata=255, overviews="mode", **options),
    )


def derive_codes(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Derive NLCD-like codes from a mask by NLCD's own rules, on rotated 30 m cells.

    24, 23, 22, 21 where at least 80, 50, 20, 5 % of a cell are impervious; otherwise that of its most frequent class.
    """
    cell, counts = count_cells(mask, grid)
    total = np.maximum(counts.sum(1), 1)
    impervious = (counts[:, 1] + counts[:, 2]) / total
    majority = np.array([81, 24, 24, 82, 41, 11])[np.argmax(counts, axis=1)]  # by mask code 0..5
    codes = np.select(
        [impervious >= 0.8, impervious >= 0.5, impervious >= 0.2, impervious >= 0.05], [24, 23, 22, 21], majority
    )
    return np.where(mask != 255, codes[cell], 0).astype(np.uint8)


def count_cells(mask: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Cut a mask into rotated 30 m cells; return each pixel's cell and each cell's pixels per code 0..5."""
    rows, columns = np.indices(mask.shape)
    x, y = grid.transform.c + columns * grid.transform.a, grid.transform.f + rows * grid.transform.e
    across = np.floor((x * np.cos(TILT) + y * np.sin(TILT)) / 30).astype(np.int64)
    down = np.floor((-x * np.sin(TILT) + y * np.cos(TILT)) / 30).astype(np.int64)
    across, down = across - across.min(), down - down.min()
    _, cell = np.unique(across * (down.max() + 1) + down, return_inverse=True)
    cell = cell.reshape(mask.shape)
    valid = mask != 255
    counts = np.zeros((cell.max() + 1, 6))
    np.add.at(counts, (cell[valid], mask[valid]), 1)
    return cell, counts
