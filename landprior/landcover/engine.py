"""What runs a network in prediction: torch on any device, or OpenVINO on a CPU (``pip install 'landprior[cpu]'``).

OpenVINO fuses the convolutions with what follows them; in int8, whose scales are measured on windows of the very image
that is mapped, it uses the integer instructions that recent CPUs have. ``benchmarks/engines.py`` compares the two.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from contextlib import redirect_stdout
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch

from landprior.errors import InputError
from landprior.implicit.training import choose_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from landprior.implicit.networks import Ensemble, SmoothedNetwork

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)

LEAST_STRIP = 64
"""Rows of a window below which a thread gets no strip of its own: its halo would cost more than it brings."""

WORTHWHILE = 2_000_000
"""Pixels below which ``auto`` stays with torch: preparing OpenVINO takes some seconds."""


_FULL_PRECISION = (r".*backbone\.0/.*", r".*body\.last/.*")
"""First and last layer of the FCN: in int8 they cost most of the agreement and spare little time."""


class Engine(Protocol):
    """A network made ready to predict."""

    name: str
    precision: str
    device: torch.device
    """Where the result lies."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return log q, float32, shape (1, C, H, W), of standardised inputs, shape (1, channels, H, W)."""


class TorchEngine:
    """The network itself, channels last.

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

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()

    def __call__(self, x: Tensor) -> Tensor:
        """Return log q."""
        x = x.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found: Tensor = self._network(x)
        return found


class OpenVinoEngine:
    """The network compiled by OpenVINO for this CPU, for windows of any size.

    A window is cut into as many strips as there are threads, each with the network's halo and a thread of its own: less
    memory is touched at a time, and no thread waits for another layer by layer.

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

    def __init__(
        self, network: SmoothedNetwork | Ensemble, samples: Sequence[NDArray[np.float32]], precision: str
    ) -> None:
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
        compiled = core.compile_model(model, "CPU", options)
        self._classes = compiled.output(0).partial_shape[1].get_length()
        self._queue = openvino.AsyncInferQueue(compiled, self._threads)
        self._queue.set_callback(_take)

    def __call__(self, x: Tensor) -> Tensor:
        """Return log q."""
        values = x.numpy()
        rows, columns = values.shape[2:]
        found = np.empty((1, self._classes, rows, columns), dtype=np.float32)
        strips = self._threads if rows >= self._threads * LEAST_STRIP else 1
        edges = np.linspace(0, rows, strips + 1).astype(int).tolist()
        for top, bottom in pairwise(edges):
            first, last = max(top - self._halo, 0), min(bottom + self._halo, rows)
            part = np.ascontiguousarray(values[:, :, first:last])
            self._queue.start_async({0: part}, (found[:, :, top:bottom], top - first))
        self._queue.wait_all()
        return torch.from_numpy(found)


def _take(request: Any, target: tuple[NDArray[np.float32], int]) -> None:  # noqa: ANN401 - openvino has no types
    """Copy a strip's result, without its halo, to its place."""
    place, top = target
    place[:] = request.get_output_tensor().data[:, :, top : top + place.shape[2]]


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
    network: SmoothedNetwork | Ensemble,
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
        Called if OpenVINO is chosen; see :class:`OpenVinoEngine`.
    name
        ``"auto"``: OpenVINO on a CPU, where it is installed and the image is large enough for it to pay.
    precision
        ``"auto"``: bf16 on CUDA; on a CPU int8 with OpenVINO and fp32 with torch.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    pixels
        Of the image.

    Raises
    ------
    InputError
        If OpenVINO is asked for and is not installed, or what is asked for does not go together.
    """
    place = choose_device(device)
    there = installed()
    if name == "auto":
        wanted = place.type == "cpu" and there and (precision == "int8" or pixels >= WORTHWHILE)
        name = "openvino" if wanted else "torch"
    if name == "openvino":
        if place.type != "cpu":
            msg = "OpenVINO runs on the CPU here; give --device cpu with --engine openvino"
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
    return TorchEngine(network, place, chosen)


def installed() -> bool:
    """Say whether OpenVINO and its quantisation are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))
