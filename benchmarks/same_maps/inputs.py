"""A place of a few fields, pictures, tables and documents, drawn from a seed and written without landprior."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from pathlib import Path

CODES, NLCD = (10, 20, 40, 70), (11, 23, 41, 81)
"""Classes of the place, in enviroatlas-5 and as NLCD."""
CHESAPEAKE = (1, 4, 2, 3)
"""The same classes in chesapeake-4."""
COLOURS = ((40, 60, 90, 20), (140, 135, 130, 110), (60, 90, 50, 150), (120, 150, 90, 190))


def write_raster(path: Path, values: np.ndarray, *, left: float = 600_000.0, nodata: float | None = None) -> None:
    """Write a raster at 1 m, without landprior."""
    import rasterio
    from affine import Affine

    values = values if values.ndim == 3 else values[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"nodata": nodata, "compress": "deflate", "crs": "EPSG:26917"}
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    place = Affine(1, 0, left, 0, -1, 4_500_000.0)
    with rasterio.open(path, "w", driver="GTiff", dtype=values.dtype, transform=place, **shape, **options) as target:
        target.write(values)


def draw_place(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw fields of four classes: an image in their colours, labels, NLCD of their majority, layers."""
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 4, (height // 12 + 1, width // 12 + 1)).repeat(12, 0).repeat(12, 1)[:height, :width]
    fields[height // 3 : height // 3 + 4] = 1  # a road
    image = np.array(COLOURS)[fields].transpose(2, 0, 1) + rng.integers(-20, 21, (4, height, width))
    nlcd = np.empty_like(fields)
    for top in range(0, height, 30):
        for left in range(0, width, 30):
            at = np.s_[top : top + 30, left : left + 30]
            nlcd[at] = NLCD[np.bincount(fields[at].ravel(), minlength=4).argmax()]
    road = np.zeros_like(fields)
    road[height // 3 : height // 3 + 4] = 1
    arrays = {
        "naip": image.clip(1, 255),
        "nlcd": nlcd,
        "labels": np.array(CODES)[fields],
        "labels4": np.array(CHESAPEAKE)[fields],
        "roads": road,
        "buildings": (fields == 1) & (road == 0) & (rng.random((height, width)) < 0.8),
        "waterways": (fields == 0) & (np.arange(width) % 12 == 5),
        "waterbodies": fields == 0,
    }
    return {name: values.astype(np.uint8) for name, values in arrays.items()}


def write_place(folder: Path, height: int, width: int, *, seed: int = 0, left: float = 600_000.0) -> None:
    """Write a place's layers as files, except labels of another scheme."""
    for name, values in draw_place(height, width, seed).items():
        if name != "labels4":
            write_raster(folder / f"{name}.tif", values, left=left)


def _write_points(folder: Path, labels: np.ndarray) -> None:
    """Write points as a table and as interpreted points of a map."""
    import geopandas

    rng = np.random.default_rng(5)
    rows, columns = (rng.integers(0, side, 60) for side in labels.shape)
    codes = labels[rows, columns]
    x, y = 600_000.5 + columns, 4_500_000.0 - 0.5 - rows
    lines = [f"{a},{b},{c}" for a, b, c in zip(x, y, codes, strict=True)]
    (folder / "points.csv").write_text("\n".join(["x,y,class", *lines]) + "\n")
    points = geopandas.GeoDataFrame({"reference": codes}, geometry=geopandas.points_from_xy(x, y), crs=26917)
    points.to_file(folder / "points.gpkg", engine="pyogrio")


def write_inputs(folder: Path) -> None:
    """Write the inputs of all steps."""
    from matplotlib.image import imsave

    rng = np.random.default_rng(7)
    write_place(folder, 80, 96)
    place = draw_place(80, 96)
    write_raster(folder / "labels4.tif", place["labels4"])
    write_raster(folder / "east.tif", draw_place(80, 96, 1)["naip"], left=700_000.0)
    prior = np.random.default_rng(3).dirichlet(np.ones(5), (80, 96)).transpose(2, 0, 1).astype(np.float32)
    write_raster(folder / "east_prior.tif", prior, left=700_000.0, nodata=float("nan"))
    for tile, seed in (("west", 2), ("east", 3)):
        write_place(folder / "data" / "town" / tile, 64, 64, seed=seed, left=600_000.0 + 54 * (tile == "east"))
        write_place(folder / "data" / "village" / tile, 48, 48, seed=seed, left=600_000.0 + 40 * (tile == "east"))
    _write_points(folder, place["labels"])

    methods = ["prior", "qr", "sr", {"method": "epitome", "options": {"size": 16, "steps": 6, "patches": 16}}]
    settings = {"steps": 8, "filters": 2, "patch_size": 40, "batch_size": 2}
    comparison = {
        "scheme": "chesapeake-4",
        "files": {"image": "{tile}.tif", "nlcd": "nlcd.tif", "labels": "labels4.tif"},
        "places": {"here": ["naip"]},
        "methods": methods,
        "seeds": 1,
        "settings": settings,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(comparison))
    rows = [
        {"name": "prior", "method": "prior", "prior": "nlcd", "published": {"here": {"prior": [50, 20]}}},
        {"name": "QR", "method": "weak", "prior": "nlcd"},
    ]
    data = {"kind": "files", "layers": {"image": "{split}.tif", "nlcd": "nlcd.tif", "labels": "labels.tif"}}
    experiment = {
        "title": "Rows",
        "scheme": "enviroatlas-5",
        "data": data | {"halves": True},
        "regions": {"here": {"splits": {"test": ["naip"]}}},
        "rows": rows,
        "settings": settings | {"patch_size": 24},
    }
    (folder / "rows.yaml").write_text(yaml.safe_dump(experiment))

    picture = rng.random((48, 64, 3)) * 0.3
    picture[:, 32:] += 0.5
    drawing = np.full((48, 64, 3), (1.0, 0, 1))
    drawing[:, :24], drawing[:, 40:] = (1, 0, 0), (0, 0, 1)
    imsave(folder / "picture.png", picture)
    imsave(folder / "drawing.png", drawing)

    blocks = [f"naip,{row},{column},{(row + column) % 3}" for row in range(4) for column in range(4)]
    (folder / "blocks.csv").write_text("\n".join(["image,row,col,class", *blocks]) + "\n")
    cells = [f"naip,{x},{y},{('cell', 'other')[n % 2]}" for n, (x, y) in enumerate(rng.integers(1, 79, (40, 2)))]
    (folder / "cells.csv").write_text("\n".join(["image,x,y,type", *cells]) + "\n")

    tree = {"sports": ["hockey", "tennis"], "arts": ["dance", "music"]}
    parents = {fine: coarse for coarse, some in tree.items() for fine in some}
    fine = [list(parents)[n] for n in rng.integers(0, 4, 80)]
    words = rng.integers(0, 9, (80, 6))
    texts = [f"{name[:4]} " + " ".join(f"word{n}" for n in some) for name, some in zip(fine, words, strict=True)]
    documents = [
        {"id": f"d{n}", "text": text, "coarse": parents[name], "fine": name}
        for n, (text, name) in enumerate(zip(texts, fine, strict=True))
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "tree.json").write_text(json.dumps(tree))
    weights = np.array([[parents[name] == row["coarse"] for name in parents] for row in documents], dtype=float)
    weights *= rng.random(weights.shape) + 0.5
    np.savez(folder / "prior.npz", prior=weights / weights.sum(axis=1, keepdims=True), fine=list(parents))

    digits = np.arange(160) % 3
    images = (rng.random((160, 12, 12)) * 80).astype(np.uint8)
    for row, digit in enumerate(digits):
        images[row, 4 * digit : 4 * digit + 4] += 150
    np.savez(
        folder / "digits.npz", x_train=images[:120], y_train=digits[:120], x_test=images[120:], y_test=digits[120:]
    )
