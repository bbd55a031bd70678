"""P(class | NLCD code): reading, measuring and writing cooccurrence matrices.

The matrix turns a coarse code into a belief over fine classes [Rolf et al. 2022, E.1.2]. The matrix is
measured once, where fine labels exist, and used where they do not.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import ConfigError, CooccurrenceWarning, InputError, PriorError
from landprior.inputs import read_array
from landprior.landcover.prior.coarse import NLCD_NODATA, read_nlcd
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_codes, open_on_grid
from landprior.raster.outputs import replacing
from landprior.raster.scheme import IGNORED_INDEX, MAP_NODATA, ClassScheme, load_scheme, plain_name
from landprior.raster.windows import Block, stream
from landprior.resources import find_config
from landprior.sources.tables import Row, Table, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from landprior.raster.codes import CodeRaster

# The layout of the published .npy matrices: rows are EnviroAtlas's eleven classes, columns NLCD's seventeen.
_PUBLISHED_NLCD = (0, 11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95)
_PUBLISHED_ENVIROATLAS = (0, 10, 20, 30, 40, 52, 70, 80, 82, 91, 92)
_SHRUB, _TREES = 52, 40

USUAL_SPREAD = 2 / 3
"""Standard deviation of a class's share between the cells of a code, relative to sqrt(p (1 - p)), its value if each
cell had one class. The mean over Maryland's codes (Table 4 of "Label super-resolution networks") is 0.66."""

_SHOWN = 8
"""Maximum number of unknown codes listed in a message."""

_STD, _LOW, _HIGH = "std", "low", "high"
"""Column suffixes, after the class name, for its standard deviation and for the ends of an interval of its share."""


@dataclass(frozen=True, kw_only=True)
class Cooccurrence:
    """P(class | coarse code) for some codes.

    Parameters
    ----------
    scheme
        The fine classes, the columns.
    probabilities
        Coarse code -> probabilities, shape (C,), sum 1.
    pixels
        Coarse code -> number of fine pixels behind the row; empty if unknown.
    spread
        Coarse code -> standard deviation, over its 30 m cells, of each class's share of a cell, shape (C,); empty if
        unknown.
    cells
        Coarse code -> number of cells behind the spread.
    source
        Where the matrix comes from, for messages and metadata.
    """

    scheme: ClassScheme
    probabilities: Mapping[int, NDArray[np.float64]]
    pixels: Mapping[int, int] = field(default_factory=dict)
    spread: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    cells: Mapping[int, int] = field(default_factory=dict)
    source: str = ""

    def table(self, codes: Iterable[int] | Mapping[int, int]) -> NDArray[np.float32]:
        """Return a lookup table, shape (256, C): row = code, zeros for no data.

        Parameters
        ----------
        codes
            The codes that occur, optionally with their pixel counts. An NLCD code that is not in the matrix gets the
            row of the shipped default (or, without one, the mean of the matrix's rows), with a warning.

        Returns
        -------
        ndarray of float32
            Shape (256, C); a row sums to one, or is 0 for no data.

        Raises
        ------
        PriorError
            If a code is not an NLCD code.
        """
        table = np.zeros((256, len(self.scheme)), dtype=np.float32)
        wanted = sorted(set(codes) - set(NLCD_NODATA))
        nlcd = set(load_scheme("nlcd").codes.tolist())
        unknown = [code for code in wanted if code not in nlcd and code not in self.probabilities]
        if unknown:
            pixels = codes if isinstance(codes, Mapping) else {}
            shown = [f"{code} ({pixels[code]} px)" if code in pixels else str(code) for code in unknown[:_SHOWN]]
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            msg = (
                f"code(s) {', '.join(shown)}{more} are neither NLCD codes nor in the matrix {self.source}; is this the "
                "original NLCD legend? Resampling by averaging or interpolation creates such codes: "
                f"use nearest neighbour (-r near). For another legend, give a matrix that has these codes: "
                "--cooccurrence FILE.csv. If they mean no data, set that: gdal_translate -a_nodata CODE FILE marked.tif"
            )
            raise PriorError(msg)
        missing = [code for code in wanted if code not in self.probabilities]
        fallback = self._fallback(missing)
        for code in wanted:
            table[code] = self.probabilities[code] if code in self.probabilities else fallback[code]
        return table

    def spread_table(self, codes: Iterable[int]) -> NDArray[np.float32]:
        """Return the standard deviations of class shares between cells as a lookup table, shape (256, C).

        Parameters
        ----------
        codes
            The codes that occur. One without a measured spread gets :data:`USUAL_SPREAD` times that of a single pixel,
            sqrt(p (1 - p)), with a warning.

        Returns
        -------
        ndarray of float32
            Shape (256, C).
        """
        table = np.zeros((256, len(self.scheme)), dtype=np.float32)
        wanted = sorted(set(codes) - set(NLCD_NODATA))
        means = self.table(wanted)
        unknown = [code for code in wanted if code not in self.spread]
        for code in wanted:
            rule = USUAL_SPREAD * np.sqrt(means[code] * (1 - means[code]))
            table[code] = self.spread.get(code, rule)
        if unknown:
            warnings.warn(
                f"the matrix {self.source} has no spread between cells of NLCD code(s) "
                f"{', '.join(map(str, unknown))}; using a typical value (measure it with: landprior cooccurrence "
                "--spread)",
                CooccurrenceWarning,
                stacklevel=2,
            )
        return table

    def _fallback(self, missing: Sequence[int]) -> dict[int, NDArray[np.float64]]:
        if not missing:
            return {}
        rows: dict[int, NDArray[np.float64]] = {}
        default = find_default(self.scheme)
        weights = [max(self.pixels.get(code, 1), 1) for code in self.probabilities]
        mean = np.average(list(self.probabilities.values()), axis=0, weights=weights)
        for code in missing:
            known = default.probabilities.get(code) if default is not None and default is not self else None
            rows[code] = mean if known is None else known
        known_codes = set() if default is None else set(default.probabilities)
        kind = "the shipped default's rows" if set(missing) <= known_codes else "the mean of its rows"
        warnings.warn(
            f"the matrix {self.source} has no row for NLCD code(s) {', '.join(map(str, missing))}; using {kind}",
            CooccurrenceWarning,
            stacklevel=3,
        )
        return rows


def find_default(scheme: ClassScheme) -> Cooccurrence | None:
    """Return the matrix shipped for a scheme, or None if there is none."""
    try:
        path = find_config(scheme.name, "cooccurrence", (".csv",))
    except ConfigError:
        return None
    return _read_csv(path, scheme, source=f"shipped default for {scheme.name}")


def load_cooccurrence(path: str | Path | None, scheme: ClassScheme) -> Cooccurrence:
    """Load a matrix from a file, or the shipped default.

    Parameters
    ----------
    path
        A ``.csv`` with a column ``nlcd`` and one column per class, by name or code, plus ``CLASS std`` if the spread
        between cells is known; or ``CLASS low`` and ``CLASS high``, the interval for the class's share in the
        definition of the code. Or a ``.npy`` (see below), a shipped name, or None for the default of the scheme.
    scheme
        The fine classes.

    Returns
    -------
    Cooccurrence
        The checked matrix; each row sums to one.

    Raises
    ------
    PriorError
        If there is no default, or the file does not fit the scheme.

    Notes
    -----
    A ``.npy`` may have the published layout, shape (11, 17) (EnviroAtlas classes x NLCD classes; shrub
    is added to trees, the other left-out classes are dropped, and columns are normalised), or shape (C, 17) with
    the scheme's classes in order and NLCD's seventeen codes (0, 11, 12, ... 95) in order, or (256, C)
    with one row per code. Pickled arrays are rejected.
    """
    if path is None:
        default = find_default(scheme)
        if default is None:
            msg = (
                f"no cooccurrence matrix ships for scheme {scheme.name!r}; give one with --cooccurrence FILE "
                "(measure it with: landprior cooccurrence NLCD.tif LABELS.tif -o FILE.csv)"
            )
            raise PriorError(msg)
        return default
    if str(path).endswith(".npy"):
        return _read_npy(find_config(path, "cooccurrence", (".npy",)), scheme)
    return _read_csv(find_config(path, "cooccurrence", (".csv",)), scheme, source=str(path))


def _read_csv(path: Path, scheme: ClassScheme, *, source: str) -> Cooccurrence:
    try:
        return _checked(_parse_csv(read_table(path, comments=True), scheme, source=source), path)
    except PriorError:
        raise
    except InputError as error:
        raise PriorError(str(error)) from error


def _parse_csv(table: Table, scheme: ClassScheme, *, source: str) -> Cooccurrence:
    path, header = table.path, [plain_name(name) for name in table.header]
    if not header or header[0] not in ("nlcd", "nlcd_code", "code"):
        msg = f"{path}: the first column must be 'nlcd' (the coarse code); it is {header[:1] or 'missing'}"
        raise PriorError(msg)
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        msg = f"{path}: two columns are named {twice[0]!r} in its header; keep one"
        raise PriorError(msg)
    means, deviations = _find_columns(header, scheme, path)
    counts = {name: header.index(name) for name in ("pixels", "cells") if name in header}
    found: dict[int, NDArray[np.float64]] = {}
    spread: dict[int, NDArray[np.float64]] = {}
    numbers: dict[str, dict[int, int]] = {"pixels": {}, "cells": {}}
    lines: dict[int, int] = {}
    for row in table.rows:
        where, code = table.where(row), _code_of(row, table, lines)
        values = np.array([[table.number(row, i) for i in some] for some in means]).mean(axis=1)
        widths = np.array([[table.number(row, i) if row.cells[i] else math.nan for i in some] for some in deviations])
        for name, at in counts.items():
            numbers[name][code] = table.integer(row, at)
        if (values < 0).any():
            msg = f"{where}: the probabilities of code {code} must be finite and not negative, not {values.min():g}"
            raise PriorError(msg)
        if values.sum() > 0:
            found[code] = values / values.sum()
        if widths.size and not np.isnan(widths).any():
            # for an interval, the standard deviation of a share uniformly distributed in it
            spread[code] = widths[:, 0] if widths.shape[1] == 1 else (widths[:, 1] - widths[:, 0]) / math.sqrt(12)
            if (spread[code] < 0).any():
                msg = f"{where}: a spread of code {code} is negative, or an interval's high is below its low"
                raise PriorError(msg)
    return Cooccurrence(scheme=scheme, probabilities=found, spread=spread, source=source, **numbers)


def _code_of(row: Row, table: Table, lines: dict[int, int]) -> int:
    """Return the code of a row, and record its line."""
    code = table.integer(row, 0)
    if not 0 <= code <= MAP_NODATA:
        msg = f"{table.where(row)}: the code {row.cells[0]} is not within 0 to {MAP_NODATA}"
        raise PriorError(msg)
    if code in lines:
        msg = f"{table.where(row)}: code {code} already has a row, on line {lines[code]}; keep one of them"
        raise PriorError(msg)
    lines[code] = row.line
    return code


def _find_columns(header: Sequence[str], scheme: ClassScheme, path: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Return the columns of each class's mean (two for an interval), and of its spread, if any."""
    means, deviations = [], []
    for c in scheme.classes:
        names = (plain_name(c.name), str(c.code))
        name = next((n for n in names if n in header), None)
        if len(set(names)) > 1 and all(n in header for n in names):
            msg = f"{path} has two columns for class {c.name!r}, {c.name!r} and '{c.code}'; keep one"
            raise PriorError(msg)
        ends = next((n for n in names if f"{n} {_LOW}" in header and f"{n} {_HIGH}" in header), None)
        if name is not None:
            means.append([header.index(name)])
            deviations += [[header.index(f"{name} {_STD}")]] if f"{name} {_STD}" in header else []
        elif ends is not None:
            means.append([header.index(f"{ends} {end}") for end in (_LOW, _HIGH)])
            deviations.append(means[-1])
        else:
            msg = (
                f"{path} has no column for class {c.name!r} of scheme {scheme.name!r}; its columns are "
                f"{', '.join(header)}"
            )
            raise PriorError(msg)
    whole = len(deviations) == len(scheme) and len({len(some) for some in deviations}) == 1
    return means, deviations if whole else []


def _read_npy(path: Path, scheme: ClassScheme) -> Cooccurrence:
    array = read_array(path, trouble="is not a plain .npy array", error=PriorError)
    count = len(scheme)
    if array.ndim == 2 and np.issubdtype(array.dtype, np.number) and np.isfinite(array).all():
        array = array.astype(np.float64)
        published = (len(_PUBLISHED_ENVIROATLAS), len(_PUBLISHED_NLCD))
        if array.shape == published and count != published[0]:
            rows = {code: array[i].copy() for i, code in enumerate(_PUBLISHED_ENVIROATLAS)}
            rows[_TREES] += rows[_SHRUB]
            absent = [c for c in scheme.codes.tolist() if c not in rows]
            if not absent:
                by_class = np.stack([rows[c] for c in scheme.codes.tolist()])
                return _from_columns(by_class, _PUBLISHED_NLCD, scheme, path)
        elif array.shape == (count, len(_PUBLISHED_NLCD)):
            return _from_columns(array, _PUBLISHED_NLCD, scheme, path)
        elif array.shape == (256, count):
            return _from_columns(array.T, range(256), scheme, path)
    msg = (
        f"{path} has shape {array.shape}; a .npy matrix for scheme {scheme.name!r} is (11, 17) as published for "
        f"EnviroAtlas, ({count}, 17), or (256, {count}); a .csv with names is safer"
    )
    raise PriorError(msg)


def _from_columns(by_class: NDArray[np.float64], codes: Iterable[int], scheme: ClassScheme, path: Path) -> Cooccurrence:
    sums = by_class.sum(axis=0)
    table = {
        int(code): by_class[:, j] / sums[j] for j, code in enumerate(codes) if sums[j] > 0 and code not in NLCD_NODATA
    }
    return _checked(Cooccurrence(scheme=scheme, probabilities=table, source=str(path)), path)


def _checked(matrix: Cooccurrence, path: Path) -> Cooccurrence:
    if not matrix.probabilities:
        msg = f"{path} has no row with a positive probability"
        raise PriorError(msg)
    return matrix


def measure_cooccurrence(
    pairs: Sequence[tuple[str | Path, str | Path]],
    scheme: ClassScheme,
    *,
    label_map: Mapping[int, int] | None = None,
    progress: bool = False,
) -> Cooccurrence:
    """Measure P(class | NLCD code) where fine labels exist.

    Reads window by window: memory does not depend on the size or number of rasters. An NLCD raster on another grid
    is resampled to the grid of the labels (nearest neighbour) as it is read.

    Parameters
    ----------
    pairs
        (NLCD raster, label raster) paths; an NLCD raster may serve several label rasters.
    scheme
        The classes of the labels.
    label_map
        See :meth:`ClassScheme.encode`.
    progress
        Show progress bars on stderr.

    Returns
    -------
    Cooccurrence
        With the number of pixels of each code.

    Raises
    ------
    GridMismatchError
        If a pair cannot be brought to one grid (no CRS and different grids).
    InputError
        If a pair does not overlap, or nothing is labelled.
    SchemeError
        If the labels have codes that are not in the scheme.
    """
    counts = np.zeros((256, len(scheme)), dtype=np.int64)
    for nlcd_path, labels_path in pairs:
        before = counts.sum()
        with ExitStack() as stack:
            labels = stack.enter_context(open_codes(labels_path))
            nlcd = stack.enter_context(open_on_grid(nlcd_path, labels.grid, like=labels_path))

            def count(
                block: Block, labels: CodeRaster = labels, nlcd: CodeRaster = nlcd, path: str | Path = labels_path
            ) -> dict[str, NDArray[np.generic]]:
                fine = read_classes(labels, block.core, scheme, codes=label_map, where=path)
                coarse = read_nlcd(nlcd, block.core)
                good = (fine != IGNORED_INDEX) & ~np.isin(coarse, NLCD_NODATA)
                both = coarse[good].astype(np.intp) * len(scheme) + fine[good]
                counts.ravel()[:] += np.bincount(both, minlength=counts.size)
                return {}

            stream(count, grid=labels.grid, sinks={}, label=Path(labels_path).name, progress=progress)
        if counts.sum() == before:
            msg = f"{nlcd_path} and {labels_path} share no pixel with both an NLCD code and a label"
            raise InputError(msg)
    table = {code: counts[code] / counts[code].sum() for code in np.flatnonzero(counts.sum(1)).tolist()}
    pixels = {code: int(counts[code].sum()) for code in table}
    return Cooccurrence(scheme=scheme, probabilities=table, pixels=pixels, source="measured")


def write_cooccurrence(matrix: Cooccurrence, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a matrix: codes, probabilities to six digits, spread if known, and pixel counts.

    Parameters
    ----------
    matrix, path
        The matrix to write, and a file that ends in ``.csv``.
    overwrite
        Replace an existing file.

    Raises
    ------
    InputError
        If the name does not end in ``.csv``.
    LandpriorError
        See :func:`landprior.raster.outputs.replacing`.
    """
    if Path(path).suffix != ".csv":
        msg = f"{path}: a cooccurrence matrix is written as .csv"
        raise InputError(msg)
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        out.write(f"# P(class | NLCD code) for {matrix.scheme.name}; {matrix.source}\n")
        writer = csv.writer(out, lineterminator="\n")
        deviations = [f"{name} {_STD}" for name in matrix.scheme.names] if matrix.spread else []
        writer.writerow(["nlcd", *matrix.scheme.names, "pixels", *deviations, *(["cells"] if matrix.spread else [])])
        for code, row in sorted(matrix.probabilities.items()):
            line = [code, *(f"{p:.6f}" for p in row), matrix.pixels.get(code, 0)]
            if matrix.spread:
                own = matrix.spread.get(code)
                line += [""] * len(row) if own is None else [f"{value:.6f}" for value in own]
                line.append(matrix.cells.get(code, 0))
            writer.writerow(line)
