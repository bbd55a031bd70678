"""Figures that show the image, prior, maps and labels side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import InputError
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.raster.classes import read_classes
from landprior.raster.codes import open_on_grid
from landprior.raster.grid import Grid
from landprior.raster.outputs import check_output, replacing
from landprior.raster.pixels import read_shrunk
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from landprior.raster.scheme import ClassScheme

SIDE = 640
"""Maximum width of a panel, pixels."""


def draw_comparison(
    path: str | Path,
    scheme: ClassScheme,
    *,
    maps: Mapping[str, str | Path],
    labels: str | Path | None = None,
    label_map: Mapping[int, int] | None = None,
    image: str | Path | None = None,
    prior: str | Path | None = None,
    model: str | Path | None = None,
    overwrite: bool = True,
) -> Path:
    """Draw the image, prior, maps and labels side by side with a legend.

    Parameters
    ----------
    path, overwrite
        The figure to write (.png, .pdf, ...), and whether it may replace an existing one.
    scheme
        The classes.
    maps
        Class maps by title.
    labels, label_map
        The labels and the meaning of their codes.
    image, prior
        Rasters on the map's grid.
    model
        With an image: also draw the network's prediction q and, with a prior, the posterior r.

    Returns
    -------
    Path
        The figure's path.

    Raises
    ------
    InputError
        If a model is given without an image.
    """
    check_output(path, overwrite=overwrite, inputs=(*maps.values(), labels, image, prior, model))
    panels: list[tuple[str, NDArray[np.uint8]]] = []
    first = next(iter(maps.values()))
    with open_raster(first) as src:
        grid = Grid.of(src)
    if image is not None:
        with ImageLayer(image) as layer:
            panels.append(("image", stretch(read_shrunk(layer.src, SIDE, layer.indexes))))
    if prior is not None:
        with PriorLayer(prior, scheme=scheme) as belief:
            shares = read_shrunk(belief.src, SIDE).astype(np.float32)
            panels.append(("prior", scheme.blend(shares)))
    with tempfile.TemporaryDirectory() as folder:
        shown: Mapping[str, str | Path] = maps
        if model is not None:
            if image is None:
                msg = "the figure needs --image to draw the model's q and r"
                raise InputError(msg)
            shown = _map_model(Path(folder), image, prior, model)
        for title, one in shown.items():
            with open_raster(one) as src:
                panels.append((title, _on_white(scheme.render(read_shrunk(src, SIDE)[0]))))
    if labels is not None:
        with open_on_grid(labels, grid, like=first) as src:
            positions = read_classes(src, None, scheme, codes=label_map, where=labels)
            codes = scheme.decode(np.maximum(positions, 0), positions >= 0)
            step = max(1, round(max(codes.shape) / SIDE))
            panels.append(("labels", _on_white(scheme.render(codes[::step, ::step]))))
    with replacing(path, overwrite=overwrite) as temporary:
        draw_panels(temporary, panels, scheme)
    return Path(path)


def _map_model(folder: Path, image: str | Path, prior: str | Path | None, model: str | Path) -> dict[str, Path]:
    from landprior.landcover.mapping.predict import predict
    from landprior.landcover.training.model import load_model

    loaded = load_model(model)
    extra_input = prior if "prior" in loaded.extras else None
    found = {"q": predict(image, folder / "q.tif", loaded, prior=extra_input)}
    if prior is not None:
        found["r"] = predict(image, folder / "r.tif", loaded, posterior=prior, prior=extra_input, force=True)
    return found


def draw_panels(path: Path, panels: Sequence[tuple[str, NDArray[np.uint8]]], scheme: ClassScheme) -> None:
    """Draw titled pictures in a row, with a legend of the classes below.

    Parameters
    ----------
    path
        The figure to write.
    panels
        Title and pixels of each picture, (H, W, 3) or (H, W, 4), all of the same shape.
    scheme
        The classes of the legend.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = panels[0][1].shape[:2]
    side = 3.2
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(side * len(panels), side * height / width + 0.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, picture) in zip(axes, panels, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title)
            axis.set_axis_off()
        handles = [Patch(facecolor=c.colour, edgecolor="0.4", label=c.name) for c in scheme.classes]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(path, dpi=150)


def stretch(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Turn the first three bands (or the first) into a picture, stretched between the 2nd and 98th percentiles."""
    bands = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = np.percentile(bands, [2, 98])
    scaled = (bands.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), dtype=np.uint8).transpose(1, 2, 0)


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255)).astype(np.uint8)
