"""The user's own sparse labels: points and polygons that sharpen a prior in place.

A label says one class (``trees``), several allowed ones (``trees|grass``), or an excluded class
(``!water``); names or codes of the scheme. At its pixels the prior becomes

    p <- (1 - W) p + W p restricted to the allowed classes, renormalised,

so W = 1 means certainty and W = 0 changes nothing. If the prior gives the allowed classes no mass they
share W equally.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.features import geometry_mask
from shapely.geometry import box

from landprior.errors import InputError, SchemeError
from landprior.sources.points import blanks, explain_outside, find_column, locate, name_feature, single_points
from landprior.sources.sample_design import REFERENCE, find_proposed, read_design
from landprior.sources.vectors import read_everything

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

COLUMN = "class"
"""Column with the label."""


@dataclass(frozen=True, kw_only=True)
class SparseLabels:
    """Labelled geometries in the CRS of a grid.

    Parameters
    ----------
    frame
        Geometries with the columns ``allowed``, a tuple of allowed class positions; ``share``, the area that a
        point of a stratified sample represents (1 for other points); and ``proposed``, whether it was proposed for an
        adaptation, and so is no part of a random sample.
    weight
        W, in 0..1.
    source
        The file, for metadata.
    designed
        Whether the points carry their strata.
    """

    frame: geopandas.GeoDataFrame
    weight: float
    source: str = ""
    designed: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the labels' entries for a prior's metadata."""
        return {"source": self.source, "weight": self.weight, "count": len(self.frame)}

    def locate_points(self, grid: Grid) -> geopandas.GeoDataFrame:
        """Return the points on a grid that have exactly one class.

        Parameters
        ----------
        grid
            The grid.

        Returns
        -------
        GeoDataFrame
            With the columns ``row`` and ``column`` of the pixel, ``position`` of the class, ``share`` and ``proposed``;
            its index is that of the file's features.
        """
        single = self.frame.geometry.geom_type.eq("Point") & self.frame["allowed"].map(len).eq(1)
        frame = self.frame[single]
        if len(frame) < len(self.frame):
            logger.info(
                "%s: %d points have one class; %d lines, polygons or labels of several classes do not count as points",
                self.source, len(frame), len(self.frame) - len(frame),
            )  # fmt: skip
        rows, columns, inside = locate(frame, grid)
        classes = np.array([allowed[0] for allowed in frame["allowed"]], dtype=np.intp)
        return frame[["geometry", "share", "proposed"]].assign(row=rows, column=columns, position=classes)[inside]

    def points(self, grid: Grid) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Return rows, columns, class positions and shares of the points on a grid that have exactly one class."""
        found = self.locate_points(grid)
        rows, columns, classes = (found[name].to_numpy() for name in ("row", "column", "position"))
        return rows, columns, classes, found["share"].to_numpy()

    def apply(self, prior: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Sharpen the prior of a window.

        Parameters
        ----------
        prior
            Shape (C, H, W), NaN where there is none.
        grid
            Grid of the window.

        Returns
        -------
        ndarray of float32
            A new array; pixels without a label, or without a prior, are unchanged.
        """
        near = self.frame.cx[grid.bounds.left : grid.bounds.right, grid.bounds.bottom : grid.bounds.top]
        if near.empty:
            return prior
        prior = prior.copy()
        for allowed, group in near.groupby("allowed", sort=True):
            # a point labels the pixel it lies in, a polygon the pixels whose centre it contains
            points = group.geometry.geom_type.isin(["Point", "MultiPoint"])
            inside = np.zeros(prior.shape[1:], dtype=bool)
            for shapes, touched in ((group.geometry[points], True), (group.geometry[~points], False)):
                if len(shapes):
                    inside |= geometry_mask(
                        list(shapes), prior.shape[1:], grid.transform, all_touched=touched, invert=True
                    )
            prior[:, inside] = restrict(prior[:, inside], allowed, self.weight)
        return prior


def restrict(prior: NDArray[np.float32], allowed: Sequence[int], weight: float) -> NDArray[np.float32]:
    """Mix a prior with itself restricted to some classes.

    Parameters
    ----------
    prior
        Shape (C, N).
    allowed
        Positions of the classes.
    weight
        Weight of the restricted prior, from 0 to 1.

    Returns
    -------
    ndarray of float32
        Shape (C, N); where no allowed class has a prior, the allowed classes share the weight equally.
    """
    kept = np.zeros_like(prior)
    kept[list(allowed)] = prior[list(allowed)]
    mass = kept.sum(axis=0)
    kept[:, mass == 0] = 0
    kept[np.ix_(np.array(allowed), np.flatnonzero(mass == 0))] = 1
    mass = np.where(mass == 0, len(allowed), mass)
    return np.asarray((1 - weight) * prior + weight * kept / mass, dtype=np.float32)


def parse_allowed(text: str, scheme: ClassScheme) -> tuple[int, ...]:
    """Turn ``"trees"``, ``"trees|grass"`` or ``"!water"`` into allowed class positions.

    Raises
    ------
    SchemeError
        If a name or code is not in the scheme, or no class is left.
    """
    text = text.strip()
    if text.startswith("!"):
        excluded = {scheme.index(part) for part in text[1:].split("|")}
        allowed = tuple(i for i in range(len(scheme)) if i not in excluded)
    else:
        allowed = tuple(sorted({scheme.index(part) for part in text.split("|")}))
    if not allowed:
        msg = f"{text!r} excludes every class of scheme {scheme.name!r}"
        raise SchemeError(msg)
    return allowed


def read_sparse_labels(
    path: str | Path,
    scheme: ClassScheme,
    grid: Grid,
    *,
    weight: float = 0.9,
    column: str | None = COLUMN,
    layer: str | None = None,
    needed: bool = True,
) -> SparseLabels:
    """Read labelled points or polygons (any vector file GDAL reads, or a CSV with coordinates) for a grid.

    Parameters
    ----------
    path
        The file, optionally with a layer: ``file.gpkg|layername=x``.
    scheme
        The classes.
    grid
        Grid of the prior.
    weight
        W, above 0 and at most 1.
    column
        Column with the label; also recognised in another case or cut to ten letters. None: ``class``, or ``reference``
        if there is no such column.
    layer
        Layer of the file, if it has several.
    needed
        Whether it is an error if no label lies on the grid.

    Returns
    -------
    SparseLabels
        The labels on the grid.

    Raises
    ------
    MissingInputError, InputError
        If the file is missing, has no such column or no usable feature, or lies outside the grid, or if its sample
        design is damaged.
    SchemeError
        If a label is not in the scheme.
    """
    if not 0 < weight <= 1:
        msg = f"the label weight must be above 0 and at most 1, not {weight}"
        raise InputError(msg)
    frame = single_points(read_everything(path, layer=layer, grid=grid), path)
    if column is None:
        column = COLUMN if find_column(frame.columns, COLUMN, path) is not None else REFERENCE
    found = find_column(frame.columns, column, path, joined=column == REFERENCE)
    if found is None:
        names = ", ".join(str(name) for name in frame.columns if name != "geometry")
        msg = f"{path} has no column {column!r} with the label (it has {names or 'none'}); name it with --class-column"
        raise InputError(msg)
    if found != column:
        logger.info("%s: reading labels from column %r", path, found)
    labelled = frame[~blanks(frame, found)]
    design = read_design(labelled, path)
    shares = np.ones(len(labelled)) if design is None else design.shares()
    left, bottom, right, top = grid.bounds
    on_grid = labelled.intersects(box(left, bottom, right, top)).to_numpy()
    near = labelled[on_grid]
    if labelled.empty or (near.empty and needed):
        if labelled.empty:
            msg = f"no feature of {path} has a label in its column {found!r}"
        else:
            bounds = tuple(round(b, 1) for b in grid.bounds)
            msg = (
                f"no labelled feature of {path} lies on the prior's grid {bounds}; check its CRS: "
                f"{explain_outside(labelled, grid)}"
            )
        raise InputError(msg)
    allowed = [_parse(near, found, position, scheme, path) for position in range(len(near))]
    logger.info(
        "%s: %d features; %d with a label on the grid, %d outside it, %d without a label",
        path, len(frame), len(near), len(labelled) - len(near), len(frame) - len(labelled),
    )  # fmt: skip
    return SparseLabels(
        frame=near[["geometry"]].assign(allowed=allowed, share=shares[on_grid], proposed=find_proposed(near, path)),
        weight=weight,
        source=str(path),
        designed=design is not None,
    )


def _parse(
    frame: geopandas.GeoDataFrame, column: str, position: int, scheme: ClassScheme, path: str | Path
) -> tuple[int, ...]:
    try:
        return parse_allowed(_text(frame[column].iloc[position]), scheme)
    except SchemeError as error:
        msg = f"{path}, {name_feature(frame, position)}: {error}"
        raise SchemeError(msg) from error


def _text(label: object) -> str:
    """Return a label as text; numeric columns are read as floats."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
