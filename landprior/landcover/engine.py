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
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch

from landprior.errors import InputError
from landprior.implicit.training import choose_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)

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

    def __init__(self, network: nn.Module, samples: Sequence[NDArray[np.float32]], precision: str) -> None:
        import openvino

        self.device, self.precision = torch.device("cpu"), precision
        example = torch.from_numpy(samples[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of tracing, which OpenVINO's converter still uses
            model = openvino.convert_model(
                network.to("cpu").eval(), example_input=example, input=[1, example.shape[1], -1, -1]
            )
        if precision == "int8":
            model = _quantise(model, samples)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if precision != "int8":
            options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def __call__(self, x: Tensor) -> Tensor:
        """Return log q."""
        return torch.from_numpy(self._compiled(x.contiguous().numpy())[0])


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
    network: nn.Module,
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
