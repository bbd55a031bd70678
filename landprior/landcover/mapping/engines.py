"""Engines that run a network for prediction: torch on any device, or OpenVINO on a CPU (extra ``landprior[cpu]``).

OpenVINO fuses convolutions with the layers that follow them. In int8, with scales calibrated on windows of the mapped
image, it uses the integer instructions of recent CPUs. ``benchmarks/engines.py`` compares the engines.
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
"""Windows with fewer rows are not cut into strips: the halos would cost more than the strips save."""

STRIP_BYTES = 10_000_000
"""Activations of one layer that torch computes at a time on a CPU. Above this size the allocator requests fresh
memory from the system for every layer, which takes a third of the time of a narrow network."""

WORTHWHILE = 2_000_000
"""Below this many pixels ``auto`` uses torch, because preparing OpenVINO takes some seconds."""


_FULL_PRECISION = (r".*backbone\.0/.*", r".*body\.last/.*")
"""First and last layer of the FCN: in int8 they would cost most of the agreement and save little time."""


class Strip(NamedTuple):
    """Rows ``top`` to ``bottom`` of a window; with the halo, rows ``first`` to ``last``."""

    top: int
    bottom: int
    first: int
    last: int

    @property
    def inside(self) -> slice:
        """Rows of the strip within the result computed for it with its halo."""
        return slice(self.top - self.first, self.bottom - self.first)


def iter_strips(rows: int, count: int, halo: int, stride: int = 1) -> Iterator[Strip]:
    """Cut a window into strips of about equal height, each with as much halo as the window has.

    Strips start at multiples of the stride, and so do their halos if the halo is a multiple of it.

    Parameters
    ----------
    rows
        Rows of the window.
    count
        Maximum number of strips.
    halo
        Rows above and below that a result depends on.
    stride
        Stride of the network, rows.

    Yields
    ------
    Strip
        Strips from the top down.
    """
    edges = [*(rows * number // count // stride * stride for number in range(count)), rows]
    for top, bottom in pairwise(sorted(set(edges))):
        yield Strip(top, bottom, max(top - halo, 0), min(bottom + halo, rows))


class Engine(Protocol):
    """A network prepared for prediction."""

    name: str
    precision: str
    device: torch.device
    """Device of the result."""
    overlaps: bool
    """Whether work continues in the background after :meth:`start`, on cores that the waiting caller may also use."""

    def start(self, x: Tensor) -> Callable[[], Tensor]:
        """Start on standardised inputs, shape (1, channels, H, W); call the returned function to wait for log q.

        Log q is float32 with shape (1, C, H, W). More windows may be started in the meantime.
        """


class TorchEngine:
    """The network itself, channels last; on a CPU it runs strip by strip, so that activations stay small.

    Parameters
    ----------
    network
        Network that predicts log q.
    device
        Device to run on.
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
        """Start computing log q; on a GPU the work may still be running when this returns."""
        log_q = self._compute(x.to(self.device).contiguous(memory_format=torch.channels_last))
        return lambda: log_q

    def _compute(self, x: Tensor) -> Tensor:
        if self.device.type != "cpu" or not self._width:  # a wrapper without layers is not cut into strips
            return self._forward(x)
        rows, columns = x.shape[2:]
        high = STRIP_BYTES // (4 * self._width * columns) - 2 * self._halo
        # the halo is at most a third of the strip, or it would cost more than it saves
        least = max(high, LEAST_STRIP, 6 * self._halo)
        strips = iter_strips(rows, math.ceil(rows / least), self._halo, self._stride)
        parts = [self._forward(x[:, :, strip.first : strip.last])[:, :, strip.inside] for strip in strips]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found: Tensor = self._network(x)
        return found


class OpenVinoEngine:
    """The network compiled by OpenVINO for the local CPU, for windows of any size.

    A window is cut into as many strips as there are threads, each with the network's halo and its own thread: this uses
    less memory at a time, and threads need not wait for each other after each layer. The next window may be started
    before the last is done, so that threads do not idle between windows either.

    Parameters
    ----------
    network
        Network that predicts log q.
    samples
        Example inputs, each (1, channels, H, W); the int8 scales are calibrated on them.
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
            warnings.simplefilter("ignore")  # torch's warnings about tracing, which OpenVINO's converter uses
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
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",  # with int8: for the layers that stay floating point
        }
        self._compiled = core.compile_model(model, "CPU", options)
        self._idle: deque[Any] = deque()  # requests to be reused

    def start(self, x: Tensor) -> Callable[[], Tensor]:
        """Pass the strips of a window to the threads."""
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
            log_q = torch.cat(parts, dim=2)  # copies, because the requests' memory is reused
            self._idle.extend(request for request, _ in under_way)
            return log_q

        return wait


def _quantise(model: object, samples: Sequence[NDArray[np.float32]]) -> object:
    """Return the model in int8, except its first and last layers, calibrated on samples."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # its import warns that there is no CUDA
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would change every handler of the process
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # hide its progress bars
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
    """Prepare a network for prediction.

    Parameters
    ----------
    network
        Network that predicts log q.
    samples
        Function that returns samples, called for OpenVINO and for CUDA; see :class:`OpenVinoEngine`.
    name
        ``"auto"``: OpenVINO on a CPU, if it is installed and the image is large enough to benefit.
    precision
        ``"auto"``: bf16 on CUDA; on a CPU int8 with OpenVINO and fp32 with torch.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    pixels
        Pixels in the image.

    Returns
    -------
    Engine
        The prepared engine.

    Raises
    ------
    InputError
        If OpenVINO is requested but not installed, or the choices are incompatible.
    """
    place = choose_device(device)
    there = installed() and only_convolves(network)
    if name == "auto":
        wanted = place.type == "cpu" and there and (precision == "int8" or pixels >= WORTHWHILE)
        name = "openvino" if wanted else "torch"
    if name == "openvino":
        if place.type != "cpu":
            msg = "OpenVINO runs only on the CPU; give --device cpu with --engine openvino"
            raise InputError(msg)
        if not only_convolves(network):
            msg = "OpenVINO supports only the FCN; use --engine torch, or auto, for this network"
            raise InputError(msg)
        if not there:
            msg = "OpenVINO is not installed; install it with: pip install 'landprior[cpu]', or use --engine torch"
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
    """Return whether a network consists of convolutions at full resolution, as OpenVINO requires here."""
    return network.stride == 1 and any(isinstance(layer, nn.Conv2d) for layer in network.modules())


def installed() -> bool:
    """Return whether OpenVINO and NNCF are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))
