"""Computing maps window by window: reading the inputs, log q of the network, the posterior and the products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from rasterio.windows import Window

from landprior.implicit.devices import Transfer, Uploader
from landprior.implicit.networks import log_prior
from landprior.implicit.posterior import log_joint, log_posterior
from landprior.implicit.settings import OUTPUT_SMOOTHING
from landprior.landcover.mapping.class_sums import ClassSums, arrived, count_named
from landprior.landcover.mapping.confidence import CONFIDENCE_NODATA, measure_confidence
from landprior.landcover.mapping.engines import make_engine
from landprior.landcover.mapping.finish import leave_out
from landprior.landcover.training.head import REACH, describe_surroundings
from landprior.raster.cog import Encoding, encode_probabilities
from landprior.raster.windows import Block, grow_window

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.mapping.finish import Finish
    from landprior.landcover.training.head import Head
    from landprior.landcover.training.layers import ImageLayer, PositionLayer, PriorLayer
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.windows import Found

SAMPLE_SIDE, SAMPLE_GRID = 128, 4
"""Windows of the image on which int8 is calibrated: side in pixels, and number in each direction."""


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Surroundings:
    """What smoothing a block needs besides its probabilities.

    Parameters
    ----------
    guide
        Returns the standardised bands of the core and its margin, (B, h, w).
    valid
        Where there is data, (h, w).
    core
        Rows and columns of the core.
    corner
        Row and column of the raster at which the margin begins.
    """

    guide: Callable[[], Tensor]
    valid: NDArray[np.bool_]
    core: tuple[slice, slice]
    corner: tuple[int, int]


def _corner(block: Block) -> tuple[int, int]:
    return int(block.core.row_off), int(block.core.col_off)


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
        self._head = None if abstain else model.head
        self.finish = None if abstain else finish
        self._smoothing = None if self.finish is None else self.finish.smoothing
        stride = model.network.stride  # windows begin at multiples of it
        self._margin = 0 if self._smoothing is None else -(-self._smoothing.halo // stride) * stride
        around = max(model.network.halo, REACH if self._head is not None else 0)
        self.halo: int = -(-around // stride) * stride + self._margin
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

    def release(self) -> None:
        """Free the network and its engine; :meth:`smooth` still works."""
        del self.engine

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
        if not kept or self._smoothing is not None:  # a model with a head keeps nothing
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
            return sums if data[1] is None else torch.stack([sums, *count_named(shares, data[1], inside)])

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
        around = self._surround(block, data[0], valid)
        valid = valid[around.core]
        if not valid.any():
            return {}
        self.seen = True
        shares_wanted = "probabilities" in wanted or "confidence" in wanted

        @cache
        @torch.inference_mode()
        def compute() -> dict[str, Tensor]:
            log_p = self._map(wait(), block, data, normalised=shares_wanted and self._smoothing is None)
            shares = self.smooth(log_p, around)
            found = {"map": (log_p if shares is None else shares).max(0).indices.to(torch.uint8)}
            if "probabilities" in wanted:
                found["probabilities"] = log_p.exp().float() if shares is None else shares
            if "confidence" in wanted:
                found["confidence"] = measure_confidence(log_p if shares is None else shares.log())
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

    def _map(
        self, log_q: Tensor, block: Block, data: tuple[Pixels | None, Belief | None], *, normalised: bool
    ) -> Tensor:
        """Return log probabilities of a block's core and margin, (C, h, w), before they are smoothed."""
        if self._head is not None:
            return self._head.apply(self._features(self._head, log_q, block, data))
        return self._posterior(log_q, data[1], normalised=normalised)[0]

    @torch.inference_mode()
    def see(
        self, head: Head, block: Block, data: tuple[Pixels | None, Belief | None]
    ) -> tuple[Tensor, Surroundings] | None:
        """Return what a head sees of a block, to fit it.

        Parameters
        ----------
        head
            The head that the fit begins with.
        block, data
            As for :meth:`compute`.

        Returns
        -------
        tuple or None
            Features of the block's core and margin, (F, h, w), and what :meth:`smooth` needs; None if no pixel of the
            core is valid.
        """
        wait, valid = self._log_q(block, data[0])
        around = self._surround(block, data[0], valid)
        if wait is None or not valid[around.core].any():
            return None
        return self._features(head, wait(), block, data), around

    def _features(self, head: Head, log_q: Tensor, block: Block, data: tuple[Pixels | None, Belief | None]) -> Tensor:
        """Return the features of a block's core and margin, (F, h, w)."""
        pixels = data[0] or self._read(block.outer, self._uploader)
        image = self.inputs(pixels)[0, : self._model.bands]
        inside = None if pixels.valid.all() else self._uploader.to_device(pixels.valid)
        statistics = describe_surroundings(image, inside)[:, *self._around(block).crop]
        mean = torch.from_numpy(head.log_prior).to(log_q.device, torch.float32)[:, None, None]
        if data[1] is None:
            log_p = mean.expand(log_q.shape[1:])
        else:
            prior, has_prior = arrived(data[1])
            log_p = torch.where(has_prior, log_prior(prior[None], smoothing=OUTPUT_SMOOTHING)[0], mean)
        return head.features(log_q[0].float(), log_p, statistics)

    def _surround(self, block: Block, pixels: Pixels | None, valid: NDArray[np.bool_]) -> Surroundings:
        """Return what smoothing a block needs; ``valid`` is of its core and margin."""
        around = self._around(block)
        return Surroundings(
            guide=partial(self._guide, around, pixels),
            valid=valid,
            core=Block(core=block.core, outer=around.core).crop,
            corner=(int(around.core.row_off), int(around.core.col_off)),
        )

    def _guide(self, around: Block, pixels: Pixels | None) -> Tensor:
        """Return the standardised bands of a block's core and margin, (B, h, w)."""
        pixels = pixels or self._read(around.core, self._uploader)
        image = self.inputs(pixels)[0, : self._model.bands]
        # what was read for the network is cut to it
        return image if pixels.valid.shape == (around.core.height, around.core.width) else image[:, *around.crop]

    @torch.inference_mode()
    def smooth(self, log_p: Tensor, around: Surroundings) -> Tensor | None:
        """Return smoothed probabilities of a block's core, (C, h, w), from log p of core and margin; None: as it is."""
        if self._smoothing is None:
            return None
        inside = None if around.valid.all() else self._uploader.to_device(around.valid)
        shares = self._smoothing.apply(torch.softmax(log_p.float(), 0), inside, around.guide(), around.corner)
        return shares[:, *around.core]

    def _posterior(self, log_q: Tensor, belief: Belief | None, *, normalised: bool) -> Tensor:
        """Return log r where there is a prior, log q elsewhere; not normalised if only the largest class matters."""
        if belief is None:
            return log_q
        prior, has_prior = arrived(belief)
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
