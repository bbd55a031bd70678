"""Figure of an epitome and its labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landprior.errors import ModelError
from landprior.implicit.epitomes import EpitomeClassifier
from landprior.landcover.assessment.figures import stretch
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from landprior.landcover.training.model import LandcoverModel


def draw_epitome(model: LandcoverModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw the means of an epitome (first three bands), its labels and the use of its positions.

    Several epitomes are drawn as rows. Labels are means of the class colours, weighted by p(l|s).

    Parameters
    ----------
    model
        Model whose architecture is an epitome.
    path, overwrite
        The figure to write (.png, .pdf, ...), and whether it may replace an existing one.

    Returns
    -------
    Path
        The figure's path.

    Raises
    ------
    ModelError
        If the model is not an epitome.
    OutputExistsError
        See :func:`landprior.raster.outputs.replacing`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    network = model.network
    if not isinstance(network, EpitomeClassifier):
        msg = f"this model is not an epitome but {model.architecture}; train one with: landprior train --method epitome"
        raise ModelError(msg)
    scale = (model.statistics.std[:, None, None], model.statistics.mean[:, None, None])
    means = network.epitome.mean.detach().cpu().numpy() * scale[0] + scale[1]
    labels = network.labels.cpu().numpy()
    visits = network.epitome.visits.cpu().numpy()
    pictures = stretch(means.transpose(1, 0, 2, 3).reshape(means.shape[1], -1, means.shape[3]))
    rows = len(means)
    side = 3.4
    with replacing(path, overwrite=overwrite) as temporary, mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(3 * side, side * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, 3, squeeze=False)
        size = network.epitome.size
        for row in range(rows):
            panels = (
                ("means" if row == 0 else "", pictures[row * size : (row + 1) * size]),
                ("labels" if row == 0 else "", model.scheme.blend(labels[:, row])),
                ("uses in training, log" if row == 0 else "", np.log1p(visits[row])),
            )
            for axis, (title, picture) in zip(axes[row], panels, strict=True):
                axis.imshow(picture, interpolation="nearest", cmap="magma")
                axis.set_title(title)
                axis.set_axis_off()
        handles = [Patch(facecolor=c.colour, edgecolor="0.4", label=c.name) for c in model.scheme.classes]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(temporary, dpi=150)
    return Path(path)
