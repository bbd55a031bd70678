"""Reading the state of an interrupted training, checked completely before it is used."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from landprior.implicit.history import Epoch, History

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def partial_path(checkpoint: Path) -> Path:
    """Return the temporary path of a checkpoint: always the same, so that none is left behind."""
    return checkpoint.with_name(f"{checkpoint.name}.part")


DAMAGE = (
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    pickle.UnpicklingError,
)
"""Exceptions raised when reading a damaged checkpoint."""


class RunProgress(NamedTuple):
    """Contents of a checkpoint besides weights."""

    step: int
    history: History
    plateau: tuple[float, int, int]
    stopped: bool
    counted: bool


def read_progress(state: Mapping[str, Any], steps: int) -> RunProgress:
    """Read the progress of a run; raises one of :data:`DAMAGE` if it is invalid."""
    step, record = state["step"], state["history"]
    history = History([Epoch(**epoch) for epoch in record["epochs"]], str(record["stopped"]))
    lowest, since, cuts = state["plateau"]
    if type(step) is not int or not 0 < step <= steps or not history.epochs or history.epochs[-1].step != step:
        msg = f"step {step!r} of {steps} does not fit its history"
        raise ValueError(msg)
    return RunProgress(
        step,
        history,
        (float(lowest), int(since), int(cuts)),
        bool(state["stopped"]),
        bool(state.get("counted", True)),
    )


def read_marginal(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read the sums and the weight of a running marginal; raises one of :data:`DAMAGE` if they are invalid."""
    total, weight = state["total"].double(), state["weight"].double()
    require_finite((total, weight))
    if total.ndim != 1 or weight.ndim != 0:
        msg = "its running marginal has another shape"
        raise ValueError(msg)
    return total, weight


def read_moments(state: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> Mapping[int, Mapping[str, Tensor]]:
    """Return the optimiser's moments of each parameter, checked here as torch would check only at the next step."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments: Mapping[int, Mapping[str, Tensor]] = state["state"]
    if sorted(moments) != list(range(len(parameters))):
        msg = f"its optimiser has {len(moments)} parameters, the network {len(parameters)}"
        raise ValueError(msg)
    for index, parameter in enumerate(parameters):
        require_finite(moments[index].values())
        if any(moments[index][name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
            msg = "its optimiser belongs to another network"
            raise ValueError(msg)
        if bool((moments[index]["exp_avg_sq"] < 0).any()) or float(moments[index]["step"]) < 1:
            msg = "its optimiser's moments are invalid"
            raise ValueError(msg)
    return moments


def require_finite(values: Iterable[Tensor]) -> None:
    """Raise ValueError for NaN and infinity."""
    if not all(bool(torch.isfinite(value).all()) for value in values):
        msg = "it holds NaN or infinity"
        raise ValueError(msg)
