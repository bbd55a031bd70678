"""Priors drawn by hand: colours that mark sets of allowed classes, or polygons with class weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from matplotlib import colormaps
from matplotlib.colors import to_hex

from landprior.errors import ConfigError, GridMismatchError, InputError, PriorError, SchemeError
from landprior.raster.cog import encode_probabilities, encoding_options, write_raster
from landprior.raster.grid import Grid, require_same_grid
from landprior.raster.pixels import read_mask, read_window
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme, LandClass
from landprior.sources.burning import burn
from landprior.sources.labels import is_raster
from landprior.sources.vectors import read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray

SOFTNESS = 0.2
"""Constant added to the weight of every class, even excluded ones, as in the authors' example."""

CLASS_FIELD, WEIGHT_FIELD = "class", "weight"
_SHOWN = 8
"""Maximum number of colours listed in a message."""


@dataclass(frozen=True)
class Palette:
    """The meaning of the colours of a drawing.

    Parameters
    ----------
    scheme
        The classes with their colours.
    sets
        Additional colours, (red, green, blue) -> positions of the allowed classes.
    """

    scheme: ClassScheme
    sets: Mapping[tuple[int, int, int], tuple[int, ...]]

    def colours(self) -> dict[tuple[int, int, int], tuple[int, ...]]:
        """Return every colour with the classes it allows.

        A class's own colour allows only that class. Colours add up like light: if red is sky and green is ship,
        yellow allows both, unless the sum is already a class or set, or two sets have the same sum. White and
        explicit sets (:attr:`sets`) take precedence.
        """
        found: dict[tuple[int, int, int], tuple[int, ...]] = {c.rgb: (i,) for i, c in enumerate(self.scheme.classes)}
        sums: dict[tuple[int, int, int], set[tuple[int, ...]]] = {}
        for size in range(2, len(self.scheme) + 1):
            for some in combinations(range(len(self.scheme)), size):
                red, green, blue = np.minimum(self.scheme.colours[list(some)].astype(int).sum(0), 255).tolist()
                sums.setdefault((red, green, blue), set()).add(some)
        for colour, meant in sums.items():
            if colour not in found and len(meant) == 1:
                found[colour] = next(iter(meant))
        return found | dict(self.sets)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Turn ``#rrggbb``, or a name known to matplotlib, into red, green, blue.

    Raises
    ------
    ConfigError
        If it is not a colour.
    """
    try:
        code = to_hex(text.strip())
    except ValueError as error:
        msg = f"{text!r} is not a colour; give #rrggbb or a name such as red"
        raise ConfigError(msg) from error
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def make_palette(classes: Sequence[str], sets: Sequence[str] = ()) -> Palette:
    """Build a palette from texts.

    Parameters
    ----------
    classes
        ``"sky=#0000ff"`` or ``"sky"``, which gets the next of ten colours; the order defines the codes, from 1.
    sets
        ``"#ffff00=sky|ship"``: the classes allowed by an additional colour.

    Returns
    -------
    Palette
        The classes, and the colours of sets of classes.

    Raises
    ------
    ConfigError
        If a colour is invalid, a name occurs twice, or there are fewer than two classes.
    SchemeError
        If a set names an unknown class.
    """
    cycle = [to_hex(colour) for colour in colormaps["tab10"](range(10))]
    parts = [text.partition("=") for text in classes]
    names = [part[0].strip() for part in parts]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        msg = f"a drawing needs at least two classes with different names, not {', '.join(names) or 'none'}"
        raise ConfigError(msg)
    scheme = ClassScheme(
        name="drawn",
        classes=tuple(
            LandClass(
                code=number + 1,
                name=names[number],
                colour="#{:02x}{:02x}{:02x}".format(*parse_colour(colour or cycle[number % len(cycle)])),
            )
            for number, (_, _, colour) in enumerate(parts)
        ),
    )
    found = {}
    for text in sets:
        colour, _, allowed = text.partition("=")
        positions = tuple(scheme.index(part) for part in allowed.split("|") if part.strip())
        if not positions:
            msg = f"{text!r} allows no classes; give a colour and classes, as in '#ffff00=sky|ship'"
            raise ConfigError(msg)
        found[parse_colour(colour)] = positions
    return Palette(scheme, found)


def is_vector(path: str | Path) -> bool:
    """Say whether a prior is a file of polygons."""
    return not is_raster(path)


def read_drawing(
    path: str | Path, palette: Palette, grid: Grid, *, softness: float = SOFTNESS, pixels: bool = False
) -> NDArray[np.float32]:
    """Read a prior drawn by hand.

    Parameters
    ----------
    path
        A picture of the image's size (:func:`read_colours`), or polygons (:func:`read_polygons`).
    palette
        The classes.
    grid
        Grid of the image.
    softness
        Constant added to the weights, 0 or 1, of all classes; 0 makes excluded classes impossible.
    pixels
        Read polygons in pixels even if the image is georeferenced.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        The prior, which sums to 1.

    Raises
    ------
    MissingInputError, InputError, GridMismatchError, PriorError, SchemeError
        If it is missing or does not match the image.
    """
    if not softness >= 0:
        msg = f"the softness must be 0 or more, as it is added to weights, not {softness}"
        raise PriorError(msg)
    if is_vector(path):
        weights = read_polygons(path, palette.scheme, grid, pixels=pixels)
    else:
        weights = read_colours(path, palette, grid)
    weights = weights + np.float32(softness)
    return np.asarray(weights / weights.sum(axis=0, dtype=np.float32), dtype=np.float32)


def read_colours(path: str | Path, palette: Palette, grid: Grid) -> NDArray[np.float32]:
    """Read a picture whose colours mark sets of classes (:meth:`Palette.colours`).

    Transparent pixels (alpha 0) and those without data allow all classes.

    Parameters
    ----------
    path
        The picture.
    palette
        The meaning of the colours.
    grid
        Grid of the image.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        1 where a class is allowed, otherwise 0.

    Raises
    ------
    GridMismatchError
        If its size or its place on the ground differs from the image's.
    SchemeError
        If a colour has no meaning.
    """
    values, clear = _read_picture(path, grid)
    weights: NDArray[np.float32] = np.zeros((len(palette.scheme), *grid.shape), np.float32)
    weights[:, clear] = 1
    known = palette.colours()
    packed = (values[0].astype(np.int32) << 16) | (values[1].astype(np.int32) << 8) | values[2]
    there, places = np.unique(packed, return_inverse=True)
    places = places.reshape(packed.shape)
    counts = np.bincount(places[~clear], minlength=len(there))
    rows: NDArray[np.float32] = np.zeros((len(there), len(palette.scheme)), np.float32)
    unknown = []
    for index, colour in enumerate(there.tolist()):
        allowed = known.get((colour >> 16, colour >> 8 & 255, colour & 255))
        if allowed is not None:
            rows[index, list(allowed)] = 1
        elif counts[index]:
            unknown.append(index)
    if unknown:
        raise SchemeError(_describe_unknown(path, palette, there, counts, unknown, places))
    drawn = ~clear
    weights[:, drawn] = rows[places[drawn]].T
    return weights


def _read_picture(path: str | Path, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the colours, (3 or more, H, W), of a picture on the image's grid, and its transparency, (H, W)."""
    with open_raster(path) as src:
        own = Grid.of(src)
        if own.shape != grid.shape:
            sizes = f"{own.width} x {own.height} px and the image {grid.width} x {grid.height}"
            msg = f"{path} has {sizes}; a drawn prior must be as large as its image: draw it on a copy of the image"
            raise GridMismatchError(msg)
        if own.crs is not None and grid.crs is not None:
            require_same_grid(grid, own, names=("the image", str(path)))
        if src.dtypes[0] != "uint8":
            msg = f"{path} has {src.dtypes[0]} numbers; a drawn prior must be a picture with 8 bits per band"
            raise InputError(msg)
        values = np.asarray(read_window(src), dtype=np.uint8)
        table = src.colormap(1) if src.count == 1 and src.colorinterp[0].name == "palette" else None
        clear = ~read_mask(src, band=None)
    if table is not None:
        entries = np.zeros((256, 4), np.uint8)
        for index, entry in table.items():
            entries[index] = entry
        values = entries[values[0]].transpose(2, 0, 1)
        clear |= values[3] == 0
    elif values.shape[0] in (1, 2):
        values = np.repeat(values[:1], 3, axis=0)
    return values, clear


def _describe_unknown(
    path: str | Path,
    palette: Palette,
    there: NDArray[np.int32],
    counts: NDArray[np.int64],
    unknown: Sequence[int],
    places: NDArray[np.int64],
) -> str:
    frequent = sorted(unknown, key=lambda index: -counts[index])
    row, column = np.argwhere(places == frequent[0])[0]
    shown = ", ".join(f"#{int(there[i]):06x} ({100 * counts[i] / counts.sum():.2g} %)" for i in frequent[:_SHOWN])
    more = f" and {len(frequent) - _SHOWN} more" if len(frequent) > _SHOWN else ""
    named = ", ".join(f"{c.name} {c.colour}" for c in palette.scheme.classes)
    return (
        f"{path} has colours without a class, the first at row {row}, column {column}: {shown}{more}. "
        f"The classes are {named}; draw without soft edges, save as PNG, or define the colour: "
        f"--set '#{int(there[frequent[0]]):06x}={'|'.join(palette.scheme.names[:2])}'"
    )


def list_colours(path: str | Path) -> list[str]:
    """Return the colours of a drawn prior, the most frequent first, as ``#rrggbb``; for messages."""
    with open_raster(path) as src:
        values = read_window(src)
    values = np.repeat(values[:1], 3, axis=0) if values.shape[0] < 3 else values[:3]
    packed = (values[0].astype(np.int32) << 16) | (values[1].astype(np.int32) << 8) | values[2]
    there, counts = np.unique(packed, return_counts=True)
    return [f"#{int(there[index]):06x}" for index in np.argsort(-counts)[:_SHOWN]]


def read_polygons(path: str | Path, scheme: ClassScheme, grid: Grid, *, pixels: bool = False) -> NDArray[np.float32]:
    """Read polygons with class weights.

    Each has either the attribute ``class`` (a name or code) and optionally ``weight`` (1 by default), or an attribute
    for some of the classes, by name, with its weight. Where polygons overlap, the later one is used. Elsewhere all
    classes have weight 1.

    Parameters
    ----------
    path
        Any vector file.
    scheme
        The classes.
    grid
        Grid of the image. If it has no CRS, or ``pixels``, coordinates are pixels: x to the right, y down, from the
        upper left corner; otherwise they are in the file's CRS (GeoJSON: degrees).
    pixels
        Read coordinates as pixels, whatever the file's CRS.

    Returns
    -------
    ndarray of float32, shape (C, H, W)

    Raises
    ------
    MissingInputError, InputError
        If it cannot be read, or no polygon lies on the image.
    SchemeError
        If it has an unknown class.
    PriorError
        If a weight is negative or not a number.
    """
    plain = pixels or grid.crs is None
    place = Grid(crs=None, transform=Affine.identity(), height=grid.height, width=grid.width) if plain else grid
    frame = read_vectors(path, grid=place)
    weights: NDArray[np.float32] = np.ones((len(scheme), *grid.shape), np.float32)
    hit = 0
    for number, (row, shape) in enumerate(zip(frame.to_dict("records"), frame.geometry, strict=True)):
        mask = burn([shape], place).astype(bool)
        hit += int(mask.sum())
        weights[:, mask] = _weigh(row, scheme, f"{path}, feature {number + 1}")[:, None]
    if not hit:
        msg = f"no polygon of {path} lies on the image; are its coordinates {_where(frame, plain=plain)}?"
        raise InputError(msg)
    return weights


def list_classes(path: str | Path) -> list[str]:
    """Return the values of the attribute ``class`` of polygons, sorted."""
    frame = read_vectors(path)
    return sorted({str(name) for name in frame[CLASS_FIELD].dropna()}) if CLASS_FIELD in frame else []


def _where(frame: GeoDataFrame, *, plain: bool) -> str:
    if plain:
        return "pixels, x to the right and y down"
    return f"in {frame.crs.name if frame.crs is not None else 'its own CRS'} (for pixels give --pixels)"


def _weigh(row: Mapping[object, object], scheme: ClassScheme, where: str) -> NDArray[np.float32]:
    """Return the weights of the classes, (C,), of one feature."""
    found: NDArray[np.float32] = np.zeros(len(scheme), np.float32)
    if not _missing(row.get(CLASS_FIELD)):
        weight = row.get(WEIGHT_FIELD)
        given = {scheme.index(str(row[CLASS_FIELD])): 1.0 if _missing(weight) else weight}
    else:
        given = {i: row[name] for i, name in enumerate(scheme.names) if not _missing(row.get(name))}
    if not given:
        msg = f"{where}: neither an attribute {CLASS_FIELD!r} nor one named as a class ({', '.join(scheme.names)})"
        raise SchemeError(msg)
    for index, value in given.items():
        try:
            number = float(value)  # type: ignore[arg-type]  # what is no number is said
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            msg = f"{where}: the weight {value!r} of {scheme.names[index]} is not a number from 0"
            raise PriorError(msg)
        found[index] = number
    if not found.sum():
        msg = f"{where}: all its weights are 0; at least one class must be allowed"
        raise PriorError(msg)
    return found


def _missing(value: object) -> bool:
    """Say whether a feature lacks an attribute that others have."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def write_prior(
    path: str | Path, prior: NDArray[np.float32], palette: Palette, grid: Grid, *, overwrite: bool = False
) -> Path:
    """Write a prior as a raster for ``train`` and ``predict --posterior``.

    Parameters
    ----------
    path, overwrite
        The file to write, and whether it may replace an older one.
    prior
        Shape (C, H, W).
    palette, grid
        Palette with its classes, and the grid of the image.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.cog.write_raster`.
    """
    scheme = palette.scheme
    tags = {"kind": "prior", "scheme": scheme.model_dump_json(exclude_defaults=True), "encoding": "float16"}
    return write_raster(
        path,
        encode_probabilities(prior, "float16"),
        grid,
        descriptions=scheme.names,
        tags=tags,
        overwrite=overwrite,
        **encoding_options("float16"),
    )
