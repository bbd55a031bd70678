"""Scoring maps against labels with a pooled confusion matrix and the scores derived from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.features import geometry_mask
from rasterio.windows import Window

from landprior.errors import InputError, SchemeError
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.reading import TAG_DOMAIN, open_raster
from landprior.raster.scheme import IGNORED_INDEX, ClassScheme, parse_scheme
from landprior.raster.windows import Block, stream
from landprior.sources.burning import grow_shapes
from landprior.sources.labels import is_raster
from landprior.sources.vectors import parse_source, read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.codes import CodeRaster


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores derived from a confusion matrix.

    Parameters
    ----------
    scheme
        The classes.
    confusion
        Pixel counts, shape (C, C); rows are labels, columns are the map.
    """

    scheme: ClassScheme
    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, mapped: NDArray[np.integer], labels: NDArray[np.integer], scheme: ClassScheme) -> Scores:
        """Return the scores of class positions.

        Parameters
        ----------
        mapped, labels
            Positions 0..C-1, of the same shape; pixels with -1 in either are left out.
        scheme
            The classes.

        Returns
        -------
        Scores
            Scores of these pixels.
        """
        return cls(scheme=scheme, confusion=count_pairs(mapped, labels, len(scheme)))

    def __add__(self, other: Scores) -> Scores:
        """Return the pooled scores of two sets of pixels."""
        return Scores(scheme=self.scheme, confusion=self.confusion + other.confusion)

    @property
    def pixels(self) -> int:
        """Number of pixels compared."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of pixels that are correct."""
        return float(np.trace(self.confusion) / max(self.pixels, 1))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which classes occur in the labels or the map, shape (C,)."""
        return np.asarray((self.confusion.sum(0) + self.confusion.sum(1)) > 0)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class, shape (C,); NaN for a class in neither."""
        right = np.diag(self.confusion)
        return _ratio(right, self.confusion.sum(0) + self.confusion.sum(1) - right)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the pixels mapped as a class that are correct (user's accuracy), shape (C,)."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the pixels labelled as a class that are mapped as it (producer's accuracy), shape (C,)."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def area_ratio(self) -> NDArray[np.float64]:
        """Area of each class on the map relative to the labels, shape (C,); NaN for a class that has no label."""
        return _ratio(self.confusion.sum(0), self.confusion.sum(1))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in the labels or the map."""
        return float(self.iou[self.present].mean()) if self.present.any() else float("nan")

    @property
    def absent(self) -> list[str]:
        """Names of the classes in neither labels nor map, which are left out of the mean."""
        return [name for name, here in zip(self.scheme.names, self.present, strict=True) if not here]

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as a dictionary for JSON; NaN becomes None."""
        classes = [
            {
                "code": c.code,
                "name": c.name,
                "iou": _plain(self.iou[i]),
                "precision": _plain(self.precision[i]),
                "recall": _plain(self.recall[i]),
                "label_pixels": int(self.confusion[i].sum()),
                "map_pixels": int(self.confusion[:, i].sum()),
            }
            for i, c in enumerate(self.scheme.classes)
        ]
        return {
            "scheme": self.scheme.name,
            "pixels": self.pixels,
            "accuracy": self.accuracy,
            "mean_iou": _plain(self.mean_iou),
            "absent": self.absent,
            "classes": classes,
            "confusion": self.confusion.tolist(),
        }

    def to_text(self) -> str:
        """Return the scores as a table for the terminal."""
        width = max(len("class"), *(len(name) for name in self.scheme.names))
        lines = [f"{'class':<{width}}     IoU  precision  recall   label px     map px"]
        for i, name in enumerate(self.scheme.names):
            values = f"{self.iou[i]:8.3f} {self.precision[i]:10.3f} {self.recall[i]:7.3f}".replace("nan", "  -")
            lines.append(f"{name:<{width}} {values} {self.confusion[i].sum():10d} {self.confusion[:, i].sum():10d}")
        lines.append("")
        lines.append(f"accuracy {self.accuracy:.4f}   mean IoU {self.mean_iou:.4f}   {self.pixels} pixels")
        if self.absent:
            lines.append(f"not in labels or map, left out of the mean: {', '.join(self.absent)}")
        lines.extend(["", "confusion (rows: labels, columns: map)"])
        columns = [max(len(name), 9) for name in self.scheme.names]
        lines.append(" " * width + "".join(f" {n:>{w}}" for n, w in zip(self.scheme.names, columns, strict=True)))
        for name, row in zip(self.scheme.names, self.confusion, strict=True):
            lines.append(f"{name:<{width}}" + "".join(f" {v:>{w}d}" for v, w in zip(row, columns, strict=True)))
        return "\n".join(lines)


def count_pairs(mapped: NDArray[np.integer], labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Count pairs of labelled and mapped class.

    Parameters
    ----------
    mapped, labels
        Class positions, of the same shape; pairs with -1 are left out.
    count
        Number of classes, C.

    Returns
    -------
    ndarray of int64
        Shape (C, C): rows are labels, columns are the map.
    """
    keep = (mapped != IGNORED_INDEX) & (labels != IGNORED_INDEX)
    both = labels[keep].astype(np.int64) * count + mapped[keep]
    return np.bincount(both, minlength=count * count).reshape(count, count)


def evaluate(
    pairs: Sequence[tuple[str | Path, str | Path]],
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    map_map: Mapping[int, int] | None = None,
    exclude: str | Path | None = None,
    buffer: float = 0.0,
    on_labels: bool = False,
    progress: bool = False,
) -> Scores:
    """Score maps against labels, pooled over all pairs, window by window.

    Parameters
    ----------
    pairs
        (map, labels) rasters. If their grids differ, the labels are resampled to the map's grid (nearest neighbour).
    scheme
        The classes to score. A code on either side that is not in the scheme, merged, mapped or ignored is an error.
    label_map, map_map
        Codes of the labels and of the map -> codes of the scheme; see :meth:`ClassScheme.encode`.
    exclude, buffer
        A vector file, and a buffer in metres around its features: pixels to leave out (for example labels the map was
        trained on).
    on_labels
        If the grids differ, put the map on the labels' grid instead: for maps from other sources, of any resolution and
        extent.
    progress
        Show progress bars on stderr.

    Returns
    -------
    Scores
        Pooled scores: every pixel has the same weight, whichever pair it belongs to.

    Raises
    ------
    GridMismatchError
        If the rasters of a pair cannot be brought to the same grid.
    SchemeError
        If a code is unknown.
    InputError
        If the labels of a pair are all nodata or ignored, or the map has no data where there are labels.
    """
    total = Scores(scheme=scheme, confusion=np.zeros((len(scheme), len(scheme)), dtype=np.int64))
    for map_path, label_path in pairs:
        base = label_path if on_labels else map_path
        with open_raster(base) as src:
            grid = Grid.of(src)
        outside = None if exclude is None else read_exclusion(exclude, grid, buffer=buffer)
        with open_on_grid(map_path, grid, like=base) as mapped, open_on_grid(label_path, grid, like=base) as labels:
            total += _score_pair(
                mapped,
                labels,
                scheme,
                codes=(map_map or {}, label_map or {}),
                names=(map_path, label_path),
                exclusion=outside,
                progress=progress,
            )
    return total


@dataclass(frozen=True)
class Exclusion:
    """Shapes in a grid's CRS; the pixels they touch are not counted."""

    shapes: geopandas.GeoSeries

    def covers(self, grid: Grid) -> NDArray[np.bool_]:
        """Return which pixels of a window's grid are touched, shape (H, W)."""
        bounds = grid.bounds
        near = self.shapes.cx[bounds.left : bounds.right, bounds.bottom : bounds.top]
        if near.empty:
            return np.zeros(grid.shape, dtype=bool)
        mask = geometry_mask(list(near), grid.shape, grid.transform, all_touched=True, invert=True)
        return np.asarray(mask, dtype=bool)


def read_exclusion(path: str | Path, grid: Grid, *, buffer: float = 0.0) -> Exclusion:
    """Read the shapes of a vector file, buffered by some metres, in the CRS of a map's grid.

    Parameters
    ----------
    path
        The vector file, optionally with a layer: ``file.gpkg|layername=x``.
    grid
        Grid of the map.
    buffer
        Buffer around the shapes, metres on the ground.

    Returns
    -------
    Exclusion
        Includes shapes outside the map whose buffers reach into it.

    Raises
    ------
    InputError
        If the file cannot be read, or the size of the map's pixels is unknown.
    """
    around = grid
    if buffer:
        t = grid.transform
        sides = (math.hypot(t.a, t.d), math.hypot(t.b, t.e)) if grid.crs is None else grid.pixel_size(where="the map")
        reach = math.ceil(buffer * (1 + grid.unevenness()) / min(sides))  # pixels
        around = grid.window(Window(-reach, -reach, grid.width + 2 * reach, grid.height + 2 * reach))
    shapes = read_vectors(path, grid=around).geometry
    return Exclusion(grow_shapes(shapes, buffer, grid) if buffer else shapes)


def _score_pair(
    mapped: CodeRaster,
    labels: CodeRaster,
    scheme: ClassScheme,
    *,
    codes: tuple[Mapping[int, int], Mapping[int, int]],
    names: tuple[str | Path, str | Path],
    exclusion: Exclusion | None,
    progress: bool,
) -> Scores:
    """Score a map against labels on the same grid; ``codes`` and ``names`` are those of map and labels."""
    grid = mapped.grid
    counts = np.zeros((len(scheme), len(scheme)), dtype=np.int64)
    labelled = 0

    def count(block: Block) -> dict[str, NDArray[np.generic]]:
        nonlocal labelled
        found = read_classes(mapped, block.core, scheme, codes=codes[0], where=names[0])
        truth = read_classes(labels, block.core, scheme, codes=codes[1], where=names[1])
        labelled += int((truth != IGNORED_INDEX).sum())
        if exclusion is not None:
            truth = np.where(exclusion.covers(grid.window(block.core)), IGNORED_INDEX, truth)
        counts[:] += count_pairs(found, truth, len(scheme))
        return {}

    stream(count, grid=grid, sinks={}, label="evaluate", progress=progress)
    if not labelled:
        msg = f"{names[1]} has no usable label on the grid of {names[0]}: all are nodata or ignored"
        raise InputError(msg)
    if not counts.sum():
        msg = f"{names[0]} has no data where {names[1]} has labels"
        raise InputError(msg)
    return Scores(scheme=scheme, confusion=counts)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def scheme_of_map(path: str | Path, *, probabilities: bool = False) -> ClassScheme:
    """Return the class scheme stored in the tags of a map written by landprior.

    ``probabilities``: the probabilities beside a map, or a prior, will do too.

    Raises
    ------
    SchemeError
        If the map has no such tags.
    InputError
        If it is not a map but the probabilities or the confidence beside one.
    """
    with open_raster(path) as src:
        tags = src.tags(ns=TAG_DOMAIN)
    text = tags.get("scheme")
    if tags.get("kind") == "confidence" or (tags.get("kind") in ("prior", "probabilities") and not probabilities):
        what = "confidence" if tags["kind"] == "confidence" else "probabilities"
        msg = f"{path} has {what} and not classes; give the map itself"
        raise InputError(msg)
    if text is None:
        msg = f"{path} has no classes in its tags; give --scheme (a shipped name or a YAML file)"
        raise SchemeError(msg)
    return parse_scheme(text, path)


def refuse_swapped(map_path: str | Path, labels: str | Path, *, scheme: bool = False) -> None:
    """Raise an error if a map and labels are given in the wrong order.

    They look swapped if the map is vector data and the labels are not, or if only the labels have classes in their
    tags, as maps written by landprior do.

    Parameters
    ----------
    map_path, labels
        The two paths.
    scheme
        Whether a class scheme is given, so that the map needs no tags.

    Raises
    ------
    InputError
        If they look swapped.
    """
    if not is_raster(labels):
        return
    advice = f"are the two swapped? Try: landprior evaluate {labels} {map_path}"
    place = parse_source(map_path).path
    if (place.is_file() or place.suffix.lower() == ".gdb") and not is_raster(map_path):
        msg = f"{map_path} is not a raster but {labels} is, and the map must come first: {advice}"
        raise InputError(msg)
    if not scheme and not _names_classes(map_path) and _names_classes(labels):
        msg = (
            f"{map_path} has no classes in its tags but {labels} has, as maps written by landprior do: {advice}; "
            "else give --scheme"
        )
        raise InputError(msg)


def _names_classes(path: str | Path) -> bool:
    with open_raster(path) as src:
        return "scheme" in src.tags(ns=TAG_DOMAIN)
