"""Devices: which one, in which precision, whether to compile for it, and how data gets there and back."""

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
"""Operations of a run on a GPU from which compiling, some tens of seconds, is expected to pay."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the device for ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    ModelError
        If CUDA is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        msg = "no CUDA device was found; use --device cpu (landprior doctor says what is there)"
        raise ModelError(msg)
    return torch.device("cuda" if device == "cuda" or (device == "auto" and there) else "cpu")


def make_fabric(precision: Precision = "auto", device: str = "auto") -> Fabric:
    """Pick device and precision: CUDA with bf16 where there is one, otherwise CPU with fp32.

    Parameters
    ----------
    precision
        ``"bf16"`` also works on a CPU and is faster on those that have it in hardware.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    Fabric
        Of one device, ready to use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's own deprecations on import
        from lightning.fabric import Fabric

    accelerator = choose_device(device).type
    for part in ("fabric", "pytorch"):  # either announces the precision on stderr
        logging.getLogger(f"lightning.{part}.utilities.rank_zero").setLevel(logging.WARNING)
    half = precision == "bf16" or (precision == "auto" and accelerator == "cuda")
    return Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if half else "32-true")


@contextmanager
def subnormals_flushed(device: torch.device) -> Iterator[None]:
    """Take numbers too small for full precision as 0 in this block, on a CPU; a GPU does not mind them.

    Gradients become so small once predictions are sure, and a CPU computes with them 13 to 30 times as slowly. The
    calling thread changes, and those that it starts.
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
    """Return the floating-point operations of a forward pass (a multiply-add is two), of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(inputs)
    return int(counter.get_total_flops())


def compile_if_worthwhile(
    network: nn.Module, operations: float, device: torch.device, wanted: Compile = "auto"
) -> bool:
    """Compile a network in place, if it is asked for or expected to pay; its weights keep their names.

    Parameters
    ----------
    network
        Compiled when it is first called.
    operations
        Of the whole run, see :func:`count_operations`.
    device
        Where it runs; ``"auto"`` compiles for CUDA only.
    wanted
        ``"auto"``: from :data:`WORTH_COMPILING` operations on.

    Returns
    -------
    bool
        Whether it will be compiled.
    """
    if wanted == "off" or (wanted == "auto" and (device.type != "cuda" or operations < WORTH_COMPILING)):
        return False
    logger.info("compiling the network (%.1e operations)", operations)
    network.compile()
    return True


@dataclass(frozen=True)
class Transfer:
    """Tensors on their way to a device; :meth:`wait` gives them to whoever computes."""

    tensors: tuple[Tensor | None, ...]
    event: torch.cuda.Event | None = None

    def wait(self) -> tuple[Tensor | None, ...]:
        """Return the tensors; what is computed with them on the device waits for them there, the caller does not."""
        if self.event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.event)
            for tensor in self.tensors:
                if tensor is not None:
                    tensor.record_stream(stream)
        return self.tensors


class Uploader:
    """Sends arrays to a device.

    On CUDA they go from pinned memory on a stream of its own, so that a window travels while another is computed.

    Parameters
    ----------
    device
        Where they go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, *arrays: NDArray[np.generic] | None) -> Transfer:
        """Send arrays; may be called in another thread than the one that computes."""
        tensors = tuple(None if values is None else torch.from_numpy(values) for values in arrays)
        if self._stream is None:
            return Transfer(tensors)
        with torch.cuda.stream(self._stream):
            moving = tuple(t if t is None else t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
            return Transfer(moving, self._stream.record_event())

    def to_device(self, values: NDArray[np.generic]) -> Tensor:
        """Send one array and return it as a tensor there, for whoever computes."""
        (tensor,) = self.send(values).wait()
        return cast("Tensor", tensor)
