"""The design of a sample: the strata of points drawn by ``landprior sample``, read back from any common format.

Formats cut column names to ten letters, change their case, or add a prefix. The design is never
guessed and never silently lost: it is complete, or absent, or an error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.sources.points import CUT, find_column, is_blank, name_feature
from landprior.sources.tables import parse_number

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

REFERENCE = "reference"
"""Column in which the interpreter enters the class."""
STRATUM = "stratum"
PIXELS = "stratum_pixels"
HECTARES = "stratum_hectares"
COLUMNS = (STRATUM, PIXELS, HECTARES)
"""Columns hidden from the interpreter."""

PURPOSE, ADAPT = "purpose", "adapt"
"""Column that marks points proposed for an adaptation, which are no probability sample, and its value."""

_LARGEST = 2**53
_ALIKE = 7
"""Minimum common prefix of columns whose names a format has cut and numbered."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The strata of points, each shape (n,).

    Parameters
    ----------
    strata
        Code of the stratum of each point.
    pixels
        Number of pixels in its stratum.
    hectares
        Area of its stratum; NaN if unknown.
    """

    strata: NDArray[np.int64]
    pixels: NDArray[np.int64]
    hectares: NDArray[np.float64]

    @property
    def sizes(self) -> dict[int, int]:
        """Return the pixels of each stratum, in the order of the points."""
        return dict(zip(self.strata.tolist(), self.pixels.tolist(), strict=True))

    @property
    def areas(self) -> dict[int, float] | None:
        """Return the hectares of each stratum; None if any is unknown."""
        found = dict(zip(self.strata.tolist(), self.hectares.tolist(), strict=True))
        return found if all(area > 0 for area in found.values()) else None

    def take(self, chosen: NDArray[np.bool_]) -> Design:
        """Return the design of some points."""
        return Design(strata=self.strata[chosen], pixels=self.pixels[chosen], hectares=self.hectares[chosen])

    def shares(self) -> NDArray[np.float64]:
        """Return the number of pixels each point represents: its stratum's pixels divided by its points."""
        _, inverse, counts = np.unique(self.strata, return_inverse=True, return_counts=True)
        return np.asarray(self.pixels / counts[inverse], dtype=np.float64)


def find_proposed(frame: geopandas.GeoDataFrame, where: str | Path) -> NDArray[np.bool_]:
    """Return which points were proposed for an adaptation (``landprior sample --for adapt``).

    Parameters
    ----------
    frame
        The points.
    where
        The file, for errors.

    Returns
    -------
    ndarray of bool
        Shape (n,).
    """
    column = find_column(frame.columns, PURPOSE, where)
    if column is None:
        return np.zeros(len(frame), dtype=bool)
    return np.array([str(value).strip().lower() == ADAPT for value in frame[column].tolist()], dtype=bool)


def read_design(frame: geopandas.GeoDataFrame, where: str | Path) -> Design | None:
    """Read the sample design from the columns of points.

    Parameters
    ----------
    frame
        The points, each a feature of its own.
    where
        The file, for errors.

    Returns
    -------
    Design or None
        None if there is no design.

    Raises
    ------
    InputError
        If a part of it is missing, empty or damaged, the columns contradict each other, or it belongs to several
        samples.
    """
    found = _read_columns(frame, where)
    if found is None:
        return None
    if frame.index.has_duplicates:
        msg = (
            f"{where} has points of a sample that were merged into MultiPoints, each with one stratum; give the "
            "points as drawn, one feature each"
        )
        raise InputError(msg)
    for name, values in (("sizes", found.pixels), ("areas", found.hectares)):
        for stratum in np.unique(found.strata):
            here = values[found.strata == stratum]
            if not np.allclose(here, here[0], rtol=1e-3 if name == "areas" else 0, atol=0, equal_nan=True):
                low, high = np.nanmin(here), np.nanmax(here)
                msg = (
                    f"{where} has several {name} for stratum {stratum}, {low:.10g} and {high:.10g}; are there "
                    "several samples in one file?"
                )
                raise InputError(msg)
    if (found.pixels < 1).any():
        msg = f"{where} has no pixels for stratum {found.strata[np.argmin(found.pixels)]}; give the file as drawn"
        raise InputError(msg)
    return found


def _read_columns(frame: geopandas.GeoDataFrame, where: str | Path) -> Design | None:
    """Read the three columns; None if there are none."""
    columns = _find_columns(frame, where)
    if columns is None:
        return None
    strata = _whole(frame, columns[STRATUM], where)
    pixels = _whole(frame, columns[PIXELS], where)
    hectares = np.full(len(frame), np.nan)
    if HECTARES in columns:
        hectares = np.array([_number(value) for value in frame[columns[HECTARES]].tolist()], dtype=np.float64)
        if not ((hectares > 0) | np.isnan(hectares)).all():
            msg = f"{where}: {columns[HECTARES]} must be an area in hectares, not {np.nanmin(hectares):g}"
            raise InputError(msg)
    return Design(strata=strata, pixels=pixels, hectares=hectares)


def _find_columns(frame: geopandas.GeoDataFrame, where: str | Path) -> dict[str, str] | None:
    """Return the columns of the design by their original names; None if there is no design."""
    try:
        columns = _find_names(frame, where)
    except InputError:
        found = _find_values(frame)
        if found is None:
            raise
        columns = found
    else:
        columns = columns or _find_values(frame)
        if columns is None:
            _refuse_cut(frame, where)
    changed = {name: column for name, column in (columns or {}).items() if name != column}
    if changed:
        logger.info("%s: reading the sample design from columns %s", where, ", ".join(changed.values()))
    return columns


def _find_names(frame: geopandas.GeoDataFrame, where: str | Path) -> dict[str, str] | None:
    columns = {name: find_column(frame.columns, name, where, joined=True) for name in (STRATUM, PIXELS, HECTARES)}
    alone = columns[STRATUM] is not None and columns[PIXELS] is None and columns[HECTARES] is None
    if alone and find_column(frame.columns, STRATUM, where) is None:
        return None  # forest_stratum: an unrelated column
    if not any(columns.values()):
        return None
    lacking = [name for name in (STRATUM, PIXELS) if columns[name] is None]
    if lacking:
        there = ", ".join(repr(column) for column in columns.values() if column is not None)
        msg = (
            f"{where} has {there} of a sample's design, but no column {lacking[0]!r}; its points cannot be weighted. "
            "Give the file that landprior sample wrote, or rename the column if it does not belong to a sample"
        )
        raise InputError(msg)
    return {name: column for name, column in columns.items() if column is not None}


def _find_values(frame: geopandas.GeoDataFrame) -> dict[str, str] | None:
    """Recognise a design by its values, if a long prefix and the limit of ten letters have destroyed its names.

    A join in QGIS renames ``stratum_pixels`` to ``points_stratum_pixels``, and a Shapefile cuts it to ``points_s_1``.
    The columns then share a prefix, in the order of a sample: few whole numbers, at least as many pixels for each as
    there are points, and hectares in proportion to the pixels (or none).
    """
    every = [str(column) for column in frame.columns if str(column) != "geometry" and len(str(column)) <= CUT]
    stems = Counter(name[:_ALIKE] for name in every)
    names = [name for name in every if stems[name[:_ALIKE]] > 1]
    if frame.empty or sum(len(name) == CUT for name in names) < 2:
        return None
    numbers = {name: np.array([_number(value) for value in frame[name].tolist()], dtype=np.float64) for name in names}
    whole = [name for name in names if (numbers[name] >= 0).all() and (numbers[name] == np.floor(numbers[name])).all()]
    for stratum, pixels in combinations(whole, 2):
        if stratum[:_ALIKE] != pixels[:_ALIKE]:
            continue
        _, first, inverse, counts = np.unique(
            numbers[stratum], return_index=True, return_inverse=True, return_counts=True
        )
        sizes = numbers[pixels][first]
        if len(counts) > len(frame) / 2 or (sizes < counts).any() or (sizes[inverse] != numbers[pixels]).any():
            continue
        for hectares in names[names.index(pixels) + 1 :]:
            ratio = numbers[hectares] / numbers[pixels]
            if hectares[:_ALIKE] == stratum[:_ALIKE] and (ratio > 0).all() and ratio.max() <= ratio.min() * (1 + 1e-3):
                return {STRATUM: stratum, PIXELS: pixels, HECTARES: hectares}
        if re.search(r"_st(r(a(t(um?)?)?)?)?_?$", stratum.lower()):
            return {STRATUM: stratum, PIXELS: pixels}
    return None


def _refuse_cut(frame: geopandas.GeoDataFrame, where: str | Path) -> None:
    """Raise an error for columns that look like a design with cut names but have other values.

    Raises
    ------
    InputError
        If there is a column such as ``points_str`` with whole numbers, and one such as ``points_s_1``.
    """
    names = [str(column) for column in frame.columns]
    for name in names:
        cut = len(name) == CUT and re.search(r"_str(a(t(um?)?)?)?$", name.lower()) is not None
        twins = [one for one in names if re.fullmatch(rf"{re.escape(name[:8])}_\d", one)]
        numbers = np.array([_number(value) for value in frame[name].tolist()]) if cut and twins else np.empty(0)
        if (numbers == np.floor(numbers)).sum() > len(numbers) / 2:
            msg = (
                f"{where}: {', '.join([name, *twins])} look like a sample design with cut names, "
                f"but their values do not fit; rename them {', '.join(COLUMNS)}, or remove them"
            )
            raise InputError(msg)


_WRITTEN = "write it without thousands separators, as landprior sample does"
_ADDED = "points added by hand do not belong to a random sample: remove them, or draw a new sample"


def _whole(frame: geopandas.GeoDataFrame, column: str, where: str | Path) -> NDArray[np.int64]:
    values = frame[column].tolist()
    numbers = np.array([_number(value) for value in values], dtype=np.float64)
    wrong = ~((numbers >= 0) & (numbers == np.round(numbers)) & (numbers <= _LARGEST))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        blank = is_blank(values[at])
        shown = "empty" if blank else repr(values[at])
        msg = (
            f"{where}, {name_feature(frame, at)}: {column} is {shown}, not a whole number from 0, so the point "
            f"cannot be weighted ({int(wrong.sum())} such points); {_ADDED if blank else _WRITTEN}"
        )
        raise InputError(msg)
    return numbers.astype(np.int64)


def _number(value: object) -> float:
    """Return a number as formats write it; NaN for anything else."""
    if is_blank(value) or isinstance(value, bool):
        return float("nan")
    if isinstance(value, str):
        found = parse_number(value.strip())
        return float("nan") if found is None else found
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number is caught
    except (TypeError, ValueError):
        return float("nan")
