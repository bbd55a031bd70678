"""What runs a network in prediction: torch on any device, or OpenVINO on a CPU (``pip install 'landprior[cpu]'``).

OpenVINO fuses the convolutions with what follows them; in int8, whose scales are measured on windows of the very image
that is mapped, it uses the integer instructions that recent CPUs have. ``benchmarks/engines.py`` compares the two.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import warnings
from collections import deque
from contextlib import redirect_stdout
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from landprior.errors import InputError
from landprior.implicit.devices import choose_device, compile_if_worthwhile, count_operations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.implicit.networks import PixelNetwork

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "int8"]

LEAST_STRIP = 64
"""Rows of a window below which it is not cut into strips: their halos would cost more than they bring."""

STRIP_BYTES = 10_000_000
"""Activations of one layer that torch computes at a time on a CPU. Where they are more, the allocator gets them from
the system anew for every layer, page by page, which takes a third of the time of a narrow network."""

WORTHWHILE = 2_000_000
"""Pixels below which ``auto`` stays with torch: preparing OpenVINO takes some seconds."""


_FULL_PRECISION = (r".*backbone\.0/.*", r".*body\.last/.*")
"""First and last layer of the FCN: in int8 they cost most of the agreement and spare little time."""


class Strip(NamedTuple):
    """Rows ``top`` to ``bottom`` of a window, and with their halo ``first`` to ``last``."""

    top: int
    bottom: int
    first: int
    last: int

    @property
    def inside(self) -> slice:
        """Where the strip lies within what is computed for it."""
        return slice(self.top - self.first, self.bottom - self.first)


def iter_strips(rows: int, count: int, halo: int, stride: int = 1) -> Iterator[Strip]:
    """Cut the rows of a window into strips of about equal height, each with the halo that the window has for it.

    They begin at multiples of the stride, with their halo too if that is a multiple of it.

    Parameters
    ----------
    rows
        Of the window.
    count
        Strips at most.
    halo
        Rows that a result depends on above and below.
    stride
        Of the network, rows.

    Yields
    ------
    Strip
        From the top.
    """
    edges = [*(rows * number // count // stride * stride for number in range(count)), rows]
    for top, bottom in pairwise(sorted(set(edges))):
        yield Strip(top, bottom, max(top - halo, 0), min(bottom + halo, rows))


class Engine(Protocol):
    """A network made ready to predict."""

    name: str
    precision: str
    device: torch.device
    """Where the result lies."""
    overlaps: bool
    """Whether it goes on by itself after :meth:`start`, on cores that whoever waits for it may then use too."""

    def start(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin with standardised inputs, shape (1, channels, H, W); what is returned waits for log q and gives it.

        Log q is float32 with shape (1, C, H, W). Further windows may be begun before.
        """


class TorchEngine:
    """The network itself, channels last; on a CPU strip by strip, so that its activations stay in memory at hand.

    Parameters
    ----------
    network
        Gives log q.
    device
        Where it runs.
    precision
        ``"fp32"`` or ``"bf16"``.
    """

    name = "torch"
    overlaps = False

    def __init__(self, network: PixelNetwork, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self._halo, self._stride = network.halo, network.stride
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        widths = (layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
        self._width = max(widths, default=0)

    def start(self, x: Tensor) -> Callable[[], Tensor]:
        """Compute log q; on a GPU it is under way when this returns."""
        log_q = self._compute(x.to(self.device).contiguous(memory_format=torch.channels_last))
        return lambda: log_q

    def _compute(self, x: Tensor) -> Tensor:
        if self.device.type != "cpu" or not self._width:  # what has no layers of its own sees to its memory itself
            return self._forward(x)
        rows, columns = x.shape[2:]
        high = STRIP_BYTES // (4 * self._width * columns) - 2 * self._halo
        # a halo of a third of the strip at most, or it costs more than it brings
        least = max(high, LEAST_STRIP, 6 * self._halo)
        strips = iter_strips(rows, math.ceil(rows / least), self._halo, self._stride)
        parts = [self._forward(x[:, :, strip.first : strip.last])[:, :, strip.inside] for strip in strips]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found: Tensor = self._network(x)
        return found


class OpenVinoEngine:
    """The network compiled by OpenVINO for this CPU, for windows of any size.

    A window is cut into as many strips as there are threads, each with the network's halo and a thread of its own: less
    memory is touched at a time, and no thread waits for another layer by layer. The next window may be begun before the
    last is done, so that no thread waits for the end of one either.

    Parameters
    ----------
    network
        Gives log q.
    samples
        Inputs it will see, each (1, channels, H, W): an example, and what the scales of int8 are measured on.
    precision
        ``"fp32"``, ``"bf16"`` or ``"int8"``.
    """

    name = "openvino"
    overlaps = True

    def __init__(self, network: PixelNetwork, samples: Sequence[NDArray[np.float32]], precision: str) -> None:
        import openvino

        self.device, self.precision = torch.device("cpu"), precision
        self._halo, self._threads = network.halo, torch.get_num_threads()
        example = torch.from_numpy(samples[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of tracing, which OpenVINO's converter still uses
            model = openvino.convert_model(
                network.to("cpu").eval(), example_input=example, input=[1, example.shape[1], -1, -1]
            )
        if precision == "int8":
            model = _quantise(model, samples)
        core = openvino.Core()
        half = precision == "bf16" or (
            precision == "int8" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        )
        options = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": self._threads,
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",  # of int8: of the layers that stay real numbers
        }
        self._compiled = core.compile_model(model, "CPU", options)
        self._idle: deque[Any] = deque()  # requests, to be used again

    def start(self, x: Tensor) -> Callable[[], Tensor]:
        """Hand the strips of a window to the threads."""
        values = x.numpy()
        rows = values.shape[2]
        count = self._threads if rows >= self._threads * LEAST_STRIP else 1
        under_way = []
        for strip in iter_strips(rows, count, self._halo):
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
            request.start_async({0: np.ascontiguousarray(values[:, :, strip.first : strip.last])})
            under_way.append((request, strip))

        def wait() -> Tensor:
            parts = []
            for request, strip in under_way:
                request.wait()
                parts.append(torch.from_numpy(request.get_output_tensor().data[:, :, strip.inside]))
            log_q = torch.cat(parts, dim=2)  # copies: the requests' memory is used again
            self._idle.extend(request for request, _ in under_way)
            return log_q

        return wait


def _quantise(model: object, samples: Sequence[NDArray[np.float32]]) -> object:
    """Return the model in int8 but for its ends, its scales measured on samples."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says that there is no CUDA, on import
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would change every handler of the program
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # its progress bars
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(patterns=list(_FULL_PRECISION), validate=False),
        )


def make_engine(
    network: PixelNetwork,
    samples: Callable[[], Sequence[NDArray[np.float32]]],
    *,
    name: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    pixels: int = 0,
) -> Engine:
    """Make a network ready to predict.

    Parameters
    ----------
    network
        Gives log q.
    samples
        Called for OpenVINO and for CUDA; see :class:`OpenVinoEngine`.
    name
        ``"auto"``: OpenVINO on a CPU, where it is installed and the image is large enough for it to pay.
    precision
        ``"auto"``: bf16 on CUDA; on a CPU int8 with OpenVINO and fp32 with torch.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    pixels
        Of the image.

    Returns
    -------
    Engine
        Ready to compute log q.

    Raises
    ------
    InputError
        If OpenVINO is asked for and is not installed, or what is asked for does not go together.
    """
    place = choose_device(device)
    there = installed() and only_convolves(network)
    if name == "auto":
        wanted = place.type == "cpu" and there and (precision == "int8" or pixels >= WORTHWHILE)
        name = "openvino" if wanted else "torch"
    if name == "openvino":
        if place.type != "cpu":
            msg = "OpenVINO runs on the CPU here; give --device cpu with --engine openvino"
            raise InputError(msg)
        if not only_convolves(network):
            msg = "OpenVINO runs the FCN only; use --engine torch, or auto, for this network"
            raise InputError(msg)
        if not there:
            msg = "OpenVINO is not installed; get it with: pip install 'landprior[cpu]', or use --engine torch"
            raise InputError(msg)
        chosen = "int8" if precision == "auto" else precision
        logger.info("predicting with OpenVINO in %s", chosen)
        return OpenVinoEngine(network, samples(), chosen)
    if precision == "int8":
        msg = "int8 needs OpenVINO on a CPU: pip install 'landprior[cpu]', or use --precision fp32 or bf16"
        raise InputError(msg)
    chosen = ("bf16" if place.type == "cuda" else "fp32") if precision == "auto" else precision
    if place.type == "cuda":
        sample = torch.from_numpy(samples()[0])
        each = count_operations(network.to("cpu"), sample) / (sample.shape[2] * sample.shape[3])
        compile_if_worthwhile(network, each * pixels, place)
    return TorchEngine(network, place, chosen)


def only_convolves(network: PixelNetwork) -> bool:
    """Say whether a network is convolutions at full resolution, which is what OpenVINO is given."""
    return network.stride == 1 and any(isinstance(layer, nn.Conv2d) for layer in network.modules())


def installed() -> bool:
    """Say whether OpenVINO and its quantisation are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))
