"""The memory of mapping: the side of the windows, and how much of log q may be kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import psutil

from landprior.errors import InputError
from landprior.implicit.devices import choose_device
from landprior.raster.reading import GDAL_CACHE_BYTES
from landprior.raster.windows import BLOCK

if TYPE_CHECKING:
    from landprior.landcover.mapping.finish import Finish
    from landprior.landcover.training.model import LandcoverModel

MOST_KEPT = 2**30
"""Default limit: enough for a NAIP quarter quad, and little enough for several workers on one machine."""

GPU_WINDOW = 4 * BLOCK
"""Side of the windows on a GPU: large enough to keep it busy and make the cost of a launch negligible."""

WORKING_BYTES = 300 * 2**20
"""Memory used by the libraries while they compute: thread buffers, waiting windows, the layout of the COG."""


def choose_window(device: str) -> int:
    """Return a suitable window size for a device."""
    return BLOCK if choose_device(device).type == "cpu" else GPU_WINDOW


def compute_budget(memory: int | None, model: LandcoverModel, window: int, finish: Finish | None = None) -> int:
    """Return how many bytes of log q may be kept within the memory limit.

    Parameters
    ----------
    memory
        Memory limit of the process in megabytes; None: a quarter of the free memory, at most :data:`MOST_KEPT`.
    model
        The model to be run.
    window
        Side of the windows, pixels.
    finish
        How the map is finished.

    Returns
    -------
    int
        Bytes, at least 0.

    Raises
    ------
    InputError
        If the limit is less than the libraries and one window need.
    """
    if memory is None:
        return min(int(psutil.virtual_memory().available / 4), MOST_KEPT)
    own = psutil.Process().memory_info().rss
    smoothing = None if finish is None else finish.smoothing
    inner = window + 2 * (0 if smoothing is None else smoothing.halo)
    side = inner + 2 * model.network.halo
    activations = 4 * 4 * max(model.filters, len(model.scheme)) * side * side
    if smoothing is not None:  # it begins when the network is done
        activations = max(activations, smoothing.count_bytes(model.bands, len(model.scheme), inner * inner))
    needed = own + GDAL_CACHE_BYTES + activations + WORKING_BYTES
    if memory * 2**20 < needed:
        msg = f"--memory {memory} is too little for this model: give {math.ceil(needed / 2**20)} or more (MB)"
        raise InputError(msg)
    return int(memory * 2**20 - needed)
