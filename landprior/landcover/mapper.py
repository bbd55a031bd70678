"""Computing maps window by window: what is read for one, log q of the network, the posterior, the products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from rasterio.windows import Window

from landprior.errors import InputError
from landprior.implicit.networks import OUTPUT_SMOOTHING, log_prior
from landprior.implicit.posterior import log_posterior
from landprior.landcover.engine import make_engine
from landprior.raster.files import GDAL_CACHE_BYTES

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.layers import ImageLayer, PriorLayer
    from landprior.landcover.model import LandcoverModel
    from landprior.raster.windows import Block

CONFIDENCE_LEVELS = 250
"""Confidence 0..1 is stored as 0..250 with the scale in the file; 255 is no data."""

CONFIDENCE_NODATA = 255

SAMPLE_SIDE, SAMPLE_GRID = 128, 4
"""Windows of the image on which int8 is calibrated: their side in pixels, and how many each way."""

MOST_KEPT = 2**30
"""Unless told otherwise: enough for a NAIP quarter quad, and little enough for several workers on one machine."""

WORKING_BYTES = 300 * 2**20
"""What libraries take besides, once they compute: buffers of threads, windows that wait, the layout of the COG."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """What is read for a block.

    Parameters
    ----------
    values, valid
        Image, shape (B, H, W), and where it has data, (H, W), of the outer window.
    extra
        The prior as the model's input, (C, H, W).
    """

    values: NDArray[np.generic]
    valid: NDArray[np.bool_]
    extra: NDArray[np.float32] | None = None


Belief = tuple["NDArray[np.float32]", "NDArray[np.bool_]"]
"""A prior, (C, h, w), and where there is one, (h, w), of a block's core."""


def _corner(block: Block) -> tuple[int, int]:
    return int(block.core.row_off), int(block.core.col_off)


def _send(values: NDArray[np.generic], device: torch.device | None) -> Tensor:
    """Return an array as a tensor on a device; through pinned memory, so that a GPU need not wait."""
    tensor = torch.from_numpy(values)
    if device is None or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _argmax(values: Tensor) -> NDArray[np.integer]:
    """Return the position of the largest value along the first axis."""
    if values.device.type != "cpu":
        return values.argmax(0).to(torch.uint8).cpu().numpy()
    return np.asarray(values.numpy().argmax(axis=0))  # faster than torch's


def memory_to_keep(memory: int | None, model: LandcoverModel, window: int) -> int:
    """Return how many bytes of log q may be kept, by what the process may take in all.

    Raises
    ------
    InputError
        If it is less than what the libraries and one window need.
    """
    if memory is None:
        return min(int(psutil.virtual_memory().available / 4), MOST_KEPT)
    own = psutil.Process().memory_info().rss
    side = window + 2 * model.network.halo
    activations = 4 * 4 * max(model.filters, len(model.scheme)) * side * side
    needed = own + GDAL_CACHE_BYTES + activations + WORKING_BYTES
    if memory * 2**20 < needed:
        msg = f"--memory {memory} is too little for this model: give {math.ceil(needed / 2**20)} or more (MB)"
        raise InputError(msg)
    return int(memory * 2**20 - needed)


class Mapper:
    """Computes q, and r where there is a prior, of any window of an image.

    Parameters
    ----------
    model, pixels, belief
        The model, the image and, for r, the prior.
    hint
        The prior as the model's input.
    abstain
        Give the prior itself where there is one.
    dropped
        Positions of classes that r leaves out.
    device, engine, precision
        See :func:`landprior.landcover.engine.make_engine`.
    memory
        Bytes of log q that :meth:`gather` may keep for :meth:`compute`.
    """

    def __init__(
        self,
        model: LandcoverModel,
        pixels: ImageLayer,
        belief: PriorLayer | None = None,
        hint: PriorLayer | None = None,
        *,
        abstain: bool = False,
        dropped: Sequence[int] = (),
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        memory: int = 0,
    ) -> None:
        self._model = model
        self.halo: int = model.network.halo
        """How many pixels around a pixel its map depends on."""
        self._pixels = pixels
        self._belief = belief
        self._hint = hint
        self._abstain = abstain
        self._dropped = list(dropped)
        self._sums = torch.zeros(len(model.scheme), dtype=torch.float64)
        self._left = memory
        self._kept: dict[tuple[int, int], tuple[Tensor, NDArray[np.bool_]]] = {}
        self.seen = False
        rows, columns = pixels.grid.shape
        self.engine = make_engine(
            model.network, self._samples, name=engine, precision=precision, device=device, pixels=rows * columns
        )

    def _samples(self) -> list[NDArray[np.float32]]:
        """Return inputs from all over the image, as the network gets them; none without data, if there is a choice."""
        rows, columns = self._pixels.grid.shape
        side = min(SAMPLE_SIDE, rows, columns)
        corners = [np.linspace(0, size - side, SAMPLE_GRID).astype(int).tolist() for size in (rows, columns)]
        read = [self._read_inputs(Window(left, top, side, side)) for top in corners[0] for left in corners[1]]
        return [self._inputs(data).numpy() for data in read if data.valid.any()] or [self._inputs(read[0]).numpy()]

    # -- reading, in a thread of its own -------------------------------------------------------------

    def read_inputs(self, block: Block) -> tuple[Pixels | None, None]:
        """Read what the network needs for a block."""
        return self._read_inputs(block.outer), None

    def read(self, block: Block) -> tuple[Pixels | None, Belief | None]:
        """Read what a block needs: the network's inputs, unless its log q is kept, and the prior."""
        pixels = None if _corner(block) in self._kept else self._read_inputs(block.outer)
        return pixels, None if self._belief is None else self._belief.read(block.core)

    def _read_inputs(self, window: Window) -> Pixels:
        values, valid = self._pixels.read(window)
        if self._hint is None:
            return Pixels(values, valid)
        shares, believed = self._hint.read(window)
        return Pixels(values, valid & believed, extra=shares)

    # -- computing -----------------------------------------------------------------------------------

    def _inputs(self, data: Pixels, device: torch.device | None = None) -> Tensor:
        """Return standardised inputs, shape (1, channels, h, w); bytes travel to the device as bytes."""
        image, valid = _send(data.values, device), _send(data.valid, device)
        extra = None if data.extra is None else _send(data.extra, device)
        return self._model.statistics.standardise(image, valid, extra)[None]

    def log_q(self, block: Block, pixels: Pixels | None) -> tuple[Tensor | None, NDArray[np.bool_]]:
        """Return log q, shape (1, C, h, w), and validity, (h, w), of a block's core; None where nothing is valid."""
        kept = self._kept.pop(_corner(block), None)
        if kept is not None:
            return kept
        pixels = pixels or self._read_inputs(block.outer)
        rows, columns = block.crop
        inside = pixels.valid[rows, columns]
        if not inside.any():
            return None, inside
        return self.engine(self._inputs(pixels, self.engine.device))[:, :, rows, columns], inside

    @torch.inference_mode()
    def gather(self, block: Block, data: tuple[Pixels | None, None]) -> dict[str, NDArray[np.generic]]:
        """Add a block to the class sums, and keep its log q if there is room."""
        log_q, valid = self.log_q(block, data[0])
        if log_q is None:
            return {}
        shares = log_q[0].exp()
        shares = shares if valid.all() else shares[:, torch.from_numpy(valid).to(shares.device)]
        self._sums += shares.reshape(len(shares), -1).sum(1, dtype=torch.float64).cpu()
        size = log_q.numel() * log_q.element_size()
        if size <= self._left and log_q.device.type == "cpu":
            self._left -= size
            self._kept[_corner(block)] = log_q.contiguous(), valid
        return {}

    @torch.inference_mode()
    def compute(
        self, block: Block, data: tuple[Pixels | None, Belief | None], wanted: Container[str] = ("map",)
    ) -> dict[str, NDArray[np.generic]]:
        """Return the products of a block that are wanted (map, probabilities, confidence), none without data."""
        log_q, valid = self.log_q(block, data[0])
        if log_q is None:
            return {}
        self.seen = True
        scheme = self._model.scheme
        log_p = self._posterior(log_q, data[1])[0]
        found: dict[str, NDArray[np.generic]] = {"map": scheme.decode(_argmax(log_p), valid)}
        if "probabilities" in wanted:
            found["probabilities"] = np.where(valid, log_p.exp().float().cpu().numpy(), np.float32(np.nan))
        if "confidence" in wanted:
            shares = log_p.exp().float()
            entropy = -(shares * log_p.clamp_min(-100)).sum(0) / math.log(len(scheme))
            levels = torch.stack([shares.amax(0), entropy.clamp(0, 1)]).mul(CONFIDENCE_LEVELS).round().cpu().numpy()
            found["confidence"] = np.where(valid, levels, CONFIDENCE_NODATA).astype(np.uint8)
        return found

    def _posterior(self, log_q: Tensor, belief: Belief | None) -> Tensor:
        """Return log r where there is a prior, log q elsewhere."""
        if belief is None:
            return log_q
        prior, believed = belief
        log_p = log_prior(torch.from_numpy(prior)[None].to(log_q.device), smoothing=OUTPUT_SMOOTHING)
        if self._dropped:
            log_p[:, self._dropped] = -torch.inf
        if self._abstain:
            log_r = log_p.to(log_q.dtype)
        else:
            log_r = log_posterior(log_q, log_p, log_marginal=self.log_marginal.to(log_q.device, log_q.dtype))
        return torch.where(torch.from_numpy(believed).to(log_q.device), log_r, log_q)

    @property
    def log_marginal(self) -> Tensor:
        """Log of the mean prediction over what was gathered, shape (C,)."""
        return torch.log(self._sums / self._sums.sum())
