"""Pictures of the results: probabilities as colours, classes over the image, and the legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from landprior.landcover.assessment.figures import stretch
from landprior.landcover.training.layers import ImageLayer
from landprior.raster.outputs import replacing
from landprior.raster.pixels import read_shrunk
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme

SIDE = 2048
"""Maximum side of pictures, pixels."""

OPACITY = 0.45
"""Opacity of the classes over the image."""


def draw_probabilities(path: Path, source: Path, scheme: ClassScheme) -> Path:
    """Draw probabilities as the mean of the classes' colours.

    Parameters
    ----------
    path, source
        The picture to write, and a raster with one band per class.
    scheme
        Scheme with the colours.

    Returns
    -------
    Path
        ``path``.
    """
    with open_raster(source) as src:
        shares = read_shrunk(src, SIDE).astype(np.float32)
    return _write(path, scheme.blend(shares))


def draw_overlay(path: Path, image: Path, classes: Path, scheme: ClassScheme) -> Path:
    """Draw the classes of a map over the image, with their borders in black.

    Parameters
    ----------
    path
        The picture to write.
    image, classes, scheme
        Rasters of the same size, and the scheme with the colours.

    Returns
    -------
    Path
        ``path``.
    """
    with ImageLayer(image) as layer, open_raster(classes) as src:
        values = read_shrunk(layer.src, SIDE, layer.indexes)
        codes = read_shrunk(src, SIDE)[0]
    plain = values.dtype == np.uint8 and len(values) >= 3
    picture = values[:3].transpose(1, 2, 0).astype(np.uint8) if plain else stretch(values)
    colours = scheme.render(codes)
    strength = OPACITY * (colours[..., 3:] / 255)
    mixed = (1 - strength) * picture + strength * colours[..., :3]
    size = (3, 3)
    mixed[ndimage.maximum_filter(codes, size) != ndimage.minimum_filter(codes, size)] *= 0.3
    return _write(path, np.rint(mixed).astype(np.uint8))


def draw_legend(path: Path, scheme: ClassScheme) -> Path:
    """Draw the classes with their colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    with mpl.rc_context({"font.size": 10}), replacing(path, overwrite=True) as temporary:
        figure = Figure(figsize=(2.4, 0.3 + 0.25 * len(scheme)))
        handles = [Patch(facecolor=c.colour, edgecolor="0.4", label=c.name) for c in scheme.classes]
        figure.legend(handles=handles, loc="center", frameon=False)
        figure.savefig(temporary, dpi=150)
    return path


def _write(path: Path, picture: NDArray[np.uint8]) -> Path:
    from matplotlib.image import imsave

    with replacing(path, overwrite=True) as temporary:
        imsave(temporary, picture)
    return path
