"""Devices: choice of device, precision, compilation, and data transfer."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from landprior.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from lightning.fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from landprior.implicit.settings import Compile, Precision

logger = logging.getLogger(__name__)


WORTH_COMPILING = 10**16
"""Operations of a run on a GPU above which compiling, which takes some tens of seconds, is expected to pay off."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the device for ``"auto"`` (CUDA if available), ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    ModelError
        If CUDA is requested but not available.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        msg = "no CUDA device was found; use --device cpu (landprior doctor lists the devices)"
        raise ModelError(msg)
    return torch.device("cuda" if device == "cuda" or (device == "auto" and there) else "cpu")


def make_fabric(precision: Precision = "auto", device: str = "auto") -> Fabric:
    """Choose device and precision: CUDA with bf16 if available, otherwise CPU with fp32.

    Parameters
    ----------
    precision
        ``"bf16"`` also works on a CPU and is faster on those that have it in hardware.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    Fabric
        A Fabric with one device, ready to use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's own deprecations on import
        from lightning.fabric import Fabric

    accelerator = choose_device(device).type
    for part in ("fabric", "pytorch"):  # both announce the precision on stderr
        logging.getLogger(f"lightning.{part}.utilities.rank_zero").setLevel(logging.WARNING)
    half = precision == "bf16" or (precision == "auto" and accelerator == "cuda")
    return Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if half else "32-true")


@contextmanager
def subnormals_flushed(device: torch.device) -> Iterator[None]:
    """Flush subnormal numbers to 0 within the block, on a CPU; a GPU is not slowed by them.

    Gradients become subnormal once predictions are certain, and a CPU computes 13 to 30 times more slowly with them.
    The setting applies to the calling thread and those it starts.
    """
    if device.type != "cpu":
        yield
        return
    before = bool((torch.tensor([1e-40]) * 1 == 0).all())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def count_operations(network: nn.Module, inputs: Tensor) -> int:
    """Return the floating-point operations of a forward pass (a multiply-add is two), for products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(inputs)
    return int(counter.get_total_flops())


def compile_if_worthwhile(
    network: nn.Module, operations: float, device: torch.device, wanted: Compile = "auto"
) -> bool:
    """Compile a network in place, if requested or expected to pay off; its weights keep their names.

    Parameters
    ----------
    network
        Network, compiled on its first call.
    operations
        Operations of the whole run; see :func:`count_operations`.
    device
        Device of the run; ``"auto"`` compiles only for CUDA.
    wanted
        Whether to compile; ``"auto"``: with at least :data:`WORTH_COMPILING` operations.

    Returns
    -------
    bool
        Whether the network will be compiled.
    """
    if wanted == "off" or (wanted == "auto" and (device.type != "cuda" or operations < WORTH_COMPILING)):
        return False
    logger.info("compiling the network (%.1e operations)", operations)
    network.compile()
    return True


@dataclass(frozen=True)
class Transfer:
    """Tensors on their way to a device; :meth:`wait` returns them for computation."""

    tensors: tuple[Tensor | None, ...]
    event: torch.cuda.Event | None = None

    def wait(self) -> tuple[Tensor | None, ...]:
        """Return the tensors; computations on the device wait for them, the caller does not."""
        if self.event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.event)
            for tensor in self.tensors:
                if tensor is not None:
                    tensor.record_stream(stream)
        return self.tensors


class Uploader:
    """Send arrays to a device.

    On CUDA they go from pinned memory on a separate stream, so that one window is transferred while another is
    computed.

    Parameters
    ----------
    device
        The target device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, *arrays: NDArray[np.generic] | None) -> Transfer:
        """Send arrays; may be called in a thread other than the computing one."""
        tensors = tuple(None if values is None else torch.from_numpy(values) for values in arrays)
        if self._stream is None:
            return Transfer(tensors)
        with torch.cuda.stream(self._stream):
            moving = tuple(t if t is None else t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
            return Transfer(moving, self._stream.record_event())

    def to_device(self, values: NDArray[np.generic]) -> Tensor:
        """Send one array and return it as a tensor on the device."""
        (tensor,) = self.send(values).wait()
        return cast("Tensor", tensor)
