"""Computing maps window by window: reading the inputs, log q of the network, the posterior and the products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from rasterio.windows import Window

from landprior.errors import InputError
from landprior.implicit.devices import Transfer, Uploader, choose_device
from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import log_joint, log_posterior
from landprior.implicit.settings import OUTPUT_SMOOTHING
from landprior.landcover.mapping.engines import make_engine
from landprior.landcover.mapping.finish import find_given_up, leave_out
from landprior.raster.cog import Encoding, encode_probabilities
from landprior.raster.reading import GDAL_CACHE_BYTES
from landprior.raster.windows import BLOCK, Block, grow_window

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.mapping.finish import Finish, GuidedFilter
    from landprior.landcover.training.layers import ImageLayer, PositionLayer, PriorLayer
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.windows import Found

CONFIDENCE_LEVELS = 250
"""Confidence 0..1 is stored as 0..250 with the scale in the file; 255 is no data."""

CONFIDENCE_NODATA = 255

SAMPLE_SIDE, SAMPLE_GRID = 128, 4
"""Windows of the image on which int8 is calibrated: side in pixels, and number in each direction."""

MOST_KEPT = 2**30
"""Default limit: enough for a NAIP quarter quad, and little enough for several workers on one machine."""

GPU_WINDOW = 4 * BLOCK
"""Side of the windows on a GPU: large enough to keep it busy and make the cost of a launch negligible."""

WORKING_BYTES = 300 * 2**20
"""Memory used by the libraries while they compute: thread buffers, waiting windows, the layout of the COG."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """The image data read for a block.

    Parameters
    ----------
    valid
        Mask of valid pixels, shape (H, W), of the outer window.
    transfer
        Arrays on their way to the device: the image, (B, H, W); its valid mask, (H, W), or None if all is valid; and
        the prior as the model's input, (C, H, W), or None. None if nothing is valid.
    """

    valid: NDArray[np.bool_]
    transfer: Transfer | None = None


Belief = Transfer
"""A prior on its way to the device, (C, h, w), and the mask of where it exists, (h, w), for a core and its margin."""


def _corner(block: Block) -> tuple[int, int]:
    return int(block.core.row_off), int(block.core.col_off)


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


class ClassSums:
    """Class sums over a map, added up block by block; a sink for :func:`landprior.raster.windows.stream`.

    There are three rows: the sums of q; the number of pixels where the class is the most probable by q; and the sums of
    the prior. The last two count only pixels with a prior, and stay 0 if :meth:`Mapper.gather` is not asked for them.
    """

    def __init__(self, classes: int) -> None:
        self._total = np.zeros((3, classes))

    def write(self, values: NDArray[np.generic], window: Window | None = None) -> None:  # noqa: ARG002 - a sink's
        """Add the sums of a block, shape (C,) or (3, C)."""
        rows = np.atleast_2d(values.astype(np.float64))
        self._total[: len(rows)] += rows

    def log_shares(self) -> Tensor:
        """Return the log of the mean prediction over the gathered blocks, shape (C,), float64."""
        predicted = self._total[0]
        return torch.log(torch.from_numpy(predicted / predicted.sum()))

    def given_up(self) -> list[int]:
        """Return the classes that the training gave up (:func:`landprior.landcover.mapping.finish.find_given_up`)."""
        _, named, prior = self._total
        return find_given_up(named / named.sum(), prior / prior.sum()) if named.any() else []


class Mapper:
    """Compute q, and r if there is a prior, for any window of an image.

    Parameters
    ----------
    model, pixels, belief
        The model, the image and, for r, the prior.
    extra_input
        The model's additional input: the prior, or positions.
    abstain
        Return the prior itself where there is one.
    dropped
        Positions of classes to leave out of r.
    finish
        How to finish q or r; None to leave them as they are.
    device, engine, precision
        See :func:`landprior.landcover.mapping.engines.make_engine`.
    memory
        Bytes of log q that :meth:`gather` may keep for :meth:`compute`.
    """

    def __init__(
        self,
        model: LandcoverModel,
        pixels: ImageLayer,
        belief: PriorLayer | None = None,
        extra_input: PriorLayer | PositionLayer | None = None,
        *,
        abstain: bool = False,
        dropped: Sequence[int] = (),
        finish: Finish | None = None,
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        memory: int = 0,
    ) -> None:
        self._model = model
        self.finish = None if abstain else finish
        self._smoothing = None if self.finish is None else self.finish.smoothing
        stride = model.network.stride  # windows begin at multiples of it
        self._margin = 0 if self._smoothing is None else -(-self._smoothing.halo // stride) * stride
        self.halo: int = model.network.halo + self._margin
        """Pixels around a pixel that its map depends on."""
        self._pixels = pixels
        self._belief = belief
        self._extra_input = extra_input
        self._abstain = abstain
        self._dropped = list(dropped)
        self._kept: dict[tuple[int, int], tuple[Callable[[], Tensor], NDArray[np.bool_] | None]] = {}
        self._room = torch.empty(0)
        self._used = 0
        self.seen = False
        rows, columns = pixels.grid.shape
        self.engine = make_engine(
            model.network, self._samples, name=engine, precision=precision, device=device, pixels=rows * columns
        )
        device_ = self.engine.device
        self._uploader = Uploader(device_)
        self.sums = ClassSums(len(model.scheme))
        # on a GPU, kept blocks stay on the device
        self._left = memory if device_.type == "cpu" else torch.cuda.mem_get_info(device_)[0] // 2

    def _samples(self) -> list[NDArray[np.float32]]:
        """Return input windows from all over the image, leaving out windows without data if possible."""
        rows, columns = self._pixels.grid.shape
        side = min(SAMPLE_SIDE, rows, columns)
        corners = [np.linspace(0, size - side, SAMPLE_GRID).astype(int).tolist() for size in (rows, columns)]
        uploader = Uploader(torch.device("cpu"))
        read = [self._read(Window(left, top, side, side), uploader) for top in corners[0] for left in corners[1]]
        seen = [pixels for pixels in read if pixels.transfer is not None]
        if not seen:
            return [np.zeros((1, self._model.channels, side, side), dtype=np.float32)]
        return [self.inputs(pixels).numpy() for pixels in seen]

    # -- reading, in a thread of its own -------------------------------------------------------------

    def _around(self, block: Block) -> Block:
        """Return the block whose core has the margin that smoothing needs."""
        return Block(core=grow_window(block.core, self._margin, self._pixels.grid), outer=block.outer)

    def read_for_sums(self, block: Block) -> tuple[Pixels, Belief | None]:
        """Read what :meth:`gather` needs: the network's inputs, and the prior where classes may be given up."""
        pixels = self._read(block.outer, self._uploader)
        if self.finish is None or self._belief is None:
            return pixels, None
        return pixels, self._uploader.send(*self._belief.read(block.core))

    def read(self, block: Block) -> tuple[Pixels | None, Belief | None]:
        """Read what a block needs: the image, unless its log q is kept and nothing else needs it, and the prior."""
        core, kept = self._around(block).core, _corner(block) in self._kept
        pixels = None
        if not kept or self._smoothing is not None:
            pixels = self._read(core if kept else block.outer, self._uploader)
        return pixels, None if self._belief is None else self._uploader.send(*self._belief.read(core))

    def _read(self, window: Window, uploader: Uploader) -> Pixels:
        values, valid = self._pixels.read(window)
        extra = None
        if self._extra_input is not None:
            extra, has_prior = self._extra_input.read(window)
            valid = valid & has_prior
        if not valid.any():
            return Pixels(valid)
        return Pixels(valid, uploader.send(values, None if valid.all() else valid, extra))

    # -- computing -----------------------------------------------------------------------------------

    def inputs(self, pixels: Pixels) -> Tensor:
        """Return standardised inputs, shape (1, channels, h, w), of a window with data, where it was sent to."""
        image, valid, extra = pixels.transfer.wait() if pixels.transfer is not None else (None, None, None)
        if image is None:
            msg = "a window without data has no inputs"
            raise ValueError(msg)
        return self._model.statistics.standardise(image, valid, extra)[None]

    def _log_q(self, block: Block, pixels: Pixels | None) -> tuple[Callable[[], Tensor] | None, NDArray[np.bool_]]:
        """Start computing a block; return a function that waits for its log q, (1, C, h, w), and validity, (h, w).

        Both cover the core and its margin. The first is None if nothing is valid.
        """
        around = self._around(block)
        kept = self._kept.pop(_corner(block), None)
        if kept is not None:
            wait, inside = kept
            return wait, np.ones((around.core.height, around.core.width), dtype=bool) if inside is None else inside
        pixels = pixels or self._read(block.outer, self._uploader)
        rows, columns = around.crop
        inside = pixels.valid[rows, columns]
        if not inside.any():
            return None, inside
        inside = inside.copy()  # a kept view would keep the whole window in memory
        wait = self.engine.start(self.inputs(pixels))
        return lambda: wait()[:, :, rows, columns], inside

    @torch.inference_mode()
    def gather(self, block: Block, data: tuple[Pixels | None, Belief | None]) -> dict[str, Found]:
        """Return the sums of a block (sums), for :attr:`sums`, and keep its log q if there is room."""
        wait, valid = self._log_q(block, data[0])
        if wait is None:
            return {}
        core = Block(core=block.core, outer=self._around(block).core).crop

        @cache
        @torch.inference_mode()
        def compute() -> Tensor:
            log_q = wait()
            size = log_q.nbytes + valid.nbytes
            if size <= self._left:
                self._left -= size
                self._kept[_corner(block)] = self._keep(log_q, block.core), None if valid.all() else valid
            inside = None if valid[core].all() else self._uploader.to_device(valid[core])
            shares = log_q[0][:, *core].exp()
            if inside is not None:
                shares *= inside
            sums = shares.sum((1, 2), dtype=torch.float64)
            return sums if data[1] is None else torch.stack([sums, *_name(shares, data[1], inside)])

        if not self.engine.overlaps:
            compute()
        return {"sums": lambda: compute().cpu().numpy()}

    def _keep(self, log_q: Tensor, core: Window) -> Callable[[], Tensor]:
        """Keep a copy of a block's log q, and return a function that gives it back.

        On a CPU all copies go to one large block of memory, whose pages are allocated when they are written. Blocks
        allocated one by one would fragment the allocator's heap.
        """
        if log_q.device.type != "cpu":
            kept = log_q.contiguous()
            return lambda: kept
        if not self._used:
            sizes = zip(self._pixels.grid.shape, (core.height, core.width), strict=True)
            rows, columns = (whole + 2 * self._margin * math.ceil(whole / part) for whole, part in sizes)
            self._room = torch.empty(min(self._left + log_q.nbytes, 4 * log_q.shape[1] * rows * columns) // 4)
        start, stop, shape = self._used, self._used + log_q.numel(), tuple(log_q.shape)
        self._room[start:stop].view(shape).copy_(log_q)
        self._used = stop
        return lambda: self._room[start:stop].view(shape)

    @torch.inference_mode()
    def compute(
        self,
        block: Block,
        data: tuple[Pixels | None, Belief | None],
        wanted: Container[str] = ("map",),
        *,
        encoding: Encoding = "float32",
    ) -> dict[str, Found]:
        """Compute the products of a block.

        Parameters
        ----------
        block
            The window with its surroundings.
        data
            Pixels and prior of the block, as :meth:`read` returns them; None if there are none.
        wanted
            Some of ``map``, ``probabilities`` and ``confidence``.
        encoding
            How probabilities are stored.

        Returns
        -------
        dict
            Name -> a function that returns the array; nothing for a block without data.
        """
        wait, valid = self._log_q(block, data[0])
        if wait is None:
            return {}
        valid = valid[Block(core=block.core, outer=self._around(block).core).crop]
        if not valid.any():
            return {}
        self.seen = True
        shares_wanted = "probabilities" in wanted or "confidence" in wanted

        @cache
        @torch.inference_mode()
        def compute() -> dict[str, Tensor]:
            log_p = self._posterior(wait(), data[1], normalised=shares_wanted and self._smoothing is None)[0]
            shares = None if self._smoothing is None else self._smooth(self._smoothing, log_p, block, data[0])
            found = {"map": (log_p if shares is None else shares).max(0).indices.to(torch.uint8)}
            if "probabilities" in wanted:
                found["probabilities"] = log_p.exp().float() if shares is None else shares
            if "confidence" in wanted:
                found["confidence"] = _confidence(log_p if shares is None else shares.log())
            return found

        def encode(name: str) -> NDArray[np.generic]:
            values = compute()[name].cpu().numpy()
            if name == "map":
                return self._model.scheme.decode(values, valid)
            if name == "probabilities":
                return encode_probabilities(np.where(valid, values, np.float32(np.nan)), encoding)
            return np.where(valid, values, np.uint8(CONFIDENCE_NODATA))

        if not self.engine.overlaps:
            compute()
        return {name: partial(encode, name) for name in ("map", "probabilities", "confidence") if name in wanted}

    def _smooth(self, smoothing: GuidedFilter, log_p: Tensor, block: Block, pixels: Pixels | None) -> Tensor:
        """Return smoothed probabilities of a block's core, (C, h, w), from log p of the core and its margin."""
        around = self._around(block)
        pixels = pixels or self._read(around.core, self._uploader)
        image, valid = self.inputs(pixels)[0, : self._model.bands], pixels.valid
        if valid.shape != log_p.shape[1:]:  # what was read for the network
            rows, columns = around.crop
            image, valid = image[:, rows, columns], valid[rows, columns]
        inside = None if valid.all() else self._uploader.to_device(valid)
        corner = (int(around.core.row_off), int(around.core.col_off))
        shares = smoothing.apply(torch.softmax(log_p.float(), 0), inside, image, corner)
        rows, columns = Block(core=block.core, outer=around.core).crop
        return shares[:, rows, columns]

    def _posterior(self, log_q: Tensor, belief: Belief | None, *, normalised: bool) -> Tensor:
        """Return log r where there is a prior, log q elsewhere; not normalised if only the largest class matters."""
        if belief is None:
            return log_q
        prior, has_prior = belief.wait()
        if prior is None or has_prior is None:  # pragma: no cover - both are always sent
            msg = "the prior was not sent"
            raise ValueError(msg)
        log_p = log_prior(prior[None], smoothing=OUTPUT_SMOOTHING)
        if self._dropped:
            log_p[:, self._dropped] = -torch.inf
        log_p = leave_out(log_p, self.given_up)
        if self._abstain:
            log_r = log_p.to(log_q.dtype)
        else:
            combine = log_posterior if normalised else log_joint
            log_r = combine(log_q, log_p, log_marginal=self.log_marginal.to(log_q.dtype), check=False)
        return torch.where(has_prior, log_r, log_q)

    @cached_property
    def log_marginal(self) -> Tensor:
        """Log of the mean prediction over the gathered blocks, shape (C,); read it once they are complete."""
        return self.sums.log_shares().to(self.engine.device)

    @cached_property
    def given_up(self) -> list[int]:
        """Classes that r leaves out except where the prior is sure of them; read it once the sums are complete."""
        return [] if self.finish is None else self.sums.given_up()


def _name(shares: Tensor, belief: Belief, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how many pixels have each class as the most probable, and the sums of the prior, where there is one."""
    prior, has_prior = belief.wait()
    if prior is None or has_prior is None:  # pragma: no cover - both are always sent
        msg = "the prior was not sent"
        raise ValueError(msg)
    counted = has_prior if inside is None else has_prior & inside
    named = torch.bincount(shares.argmax(0)[counted], minlength=len(shares))
    return named.double(), (prior * counted).sum((1, 2), dtype=torch.float64)


def _confidence(log_p: Tensor) -> Tensor:
    """Return largest probability and normalised entropy as levels, uint8, shape (2, H, W)."""
    shares = log_p.exp().float()
    entropy = -(shares * log_p.clamp_min(-100)).sum(0) / math.log(len(shares))
    return torch.stack([shares.amax(0), entropy.clamp(0, 1)]).mul(CONFIDENCE_LEVELS).round().to(torch.uint8)
