"""The header of a model file, checked before anything is built from it, as model files come from strangers.

Numbers have bounds, and the network they describe is built without memory (torch's meta device) and compared
with the shapes in the file, so that a header cannot make the program allocate more than the file holds.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from landprior.errors import InputError, ModelError
from landprior.implicit.settings import OUTPUT_SMOOTHING
from landprior.raster.scheme import ClassScheme, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

KEY = "landprior"
"""Key in the safetensors metadata."""

FORMAT = 1

HEAD_FORMAT = 2
"""Format of a model with a head, which version 0.1 would map without it."""

LEARNED_PRIOR: Final = "prior-fcn"
"""Kind of the network without image bands."""

_MOST = 65_535
"""Maximum numbers of bands and filters; the shapes in the file are checked as well."""

_MOST_TEXT = 64 * 2**20
"""Maximum size of the header in bytes."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_OTHERS = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class NetworkHeader(_Part):
    """Description of the network."""

    kind: Literal["fcn", "unet", "epitome", "prior-fcn"] = "fcn"
    bands: int = Field(ge=0, le=_MOST)
    extras: list[str] = Field([], max_length=64)
    classes: int = Field(ge=1, le=256)
    filters: int = Field(ge=0, le=_MOST)
    smoothing: float = Field(OUTPUT_SMOOTHING, ge=0, le=1, allow_inf_nan=False)
    options: dict[str, Annotated[int, Field(ge=0, le=_MOST)]] = Field({}, max_length=16)
    members: int | None = Field(None, ge=1, le=1024)
    flips: bool = False


class StatisticsHeader(_Part):
    """Mean and standard deviation of each band."""

    mean: list[_Finite]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class HeadHeader(_Part):
    """What was fitted to labelled points (:class:`landprior.landcover.training.head.Head`)."""

    weights: list[list[_Finite]]
    bias: list[_Finite]
    log_marginal: list[_Finite]
    log_prior: list[_Finite]
    left_out: list[Annotated[int, Field(ge=0)]] = []

    def require(self, classes: int, bands: int) -> None:
        """Raise a ValueError if it is not for these numbers of classes and bands."""
        rows = {len(row) for row in self.weights}
        counts = {len(self.weights), len(self.bias), len(self.log_marginal), len(self.log_prior)}
        if counts != {classes} or rows != {2 * classes + 2 * bands}:
            msg = f"its head does not fit {classes} classes and {bands} bands"
            raise ValueError(msg)
        if len(set(self.left_out)) != len(self.left_out) or max(self.left_out, default=-1) >= classes:
            msg = f"its head leaves out classes {self.left_out} of {classes}"
            raise ValueError(msg)
        if len(self.left_out) == classes:
            msg = "its head leaves out all classes"
            raise ValueError(msg)


class _Verdict(_Part):
    model_config = ConfigDict(extra="allow")

    decision: Literal["kept", "abstained"]
    why: str
    pixels: int = Field(0, ge=0)
    unsupported: list[Annotated[int, Field(ge=0)]] = []


class _Settings(_Part):
    model_config = ConfigDict(extra="allow")

    training: dict[str, Any] = {}
    drop_unsupported: bool = False


class _Density(_Part):
    model_config = ConfigDict(extra="allow")

    marginal: list[_Finite] | None = None
    priors: list[_Finite] | list[list[_Finite]] | None = None


class _Shares(_Part):
    """Shares of the classes over the tiles of a joint training."""

    q: list[Annotated[float, Field(gt=0, le=1)]]
    named: list[Annotated[float, Field(ge=0, le=1)]]
    prior: list[Annotated[float, Field(ge=0, le=1)]]


class _Record(_Part):
    """The part of the training record that is read back."""

    model_config = ConfigDict(extra="allow")

    settings: _Settings = _Settings()
    verdict: _Verdict | None = None
    shares: _Shares | None = None
    labelled: bool = False
    history: dict[str, Any] = {}
    prior: dict[str, Any] = {}
    image: dict[str, Any] | None = None
    density: _Density | None = None
    clustering: dict[str, Any] | None = None


class Header(_Part):
    """Everything in a model file except its weights."""

    format: int = Field(1, ge=1)
    version: str = ""
    network: NetworkHeader
    scheme: dict[str, Any]
    statistics: StatisticsHeader
    record: dict[str, Any] = {}
    head: HeadHeader | None = None

    @model_validator(mode="after")
    def _fits(self) -> Header:
        network, count = self.network, {len(self.statistics.mean), len(self.statistics.std)}
        if count != {network.bands}:
            msg = f"statistics of {len(self.statistics.mean)} bands do not fit a network of {network.bands}"
            raise ValueError(msg)
        if network.kind == LEARNED_PRIOR and network.bands:
            msg = f"a learned prior sees no image, but this one has {network.bands} bands"
            raise ValueError(msg)
        if self.head is not None:
            self.head.require(network.classes, network.bands)
        record = _Record.model_validate(self.record)
        wrong = [index for index in (record.verdict.unsupported if record.verdict else []) if index >= network.classes]
        if wrong:
            msg = f"the verdict names class {wrong[0]}, but there are {network.classes}"
            raise ValueError(msg)
        shares = record.shares
        if shares is not None and {len(shares.q), len(shares.named), len(shares.prior)} != {network.classes}:
            msg = f"the shares of the classes are not those of {network.classes} classes"
            raise ValueError(msg)
        return self


def parse_header(text: str | None, path: str | Path) -> tuple[Header, ClassScheme]:
    """Read the JSON of a model file, ``text`` is None if it has none.

    Raises
    ------
    ModelError
        If it is not a JSON object, of a newer format, or a field is missing, malformed or out of its bounds.
    """
    if text is None:
        msg = f"{path} was not written by landprior (its metadata lacks {KEY!r})"
        raise ModelError(msg)
    if len(text) > _MOST_TEXT:
        msg = f"{path} is damaged: its metadata has {len(text)} characters"
        raise ModelError(msg)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        msg = f"{path} is damaged: its metadata is not a JSON object"
        raise ModelError(msg)
    number = data.get("format", 1)
    if type(number) is int and number > HEAD_FORMAT:
        version = str(data.get("version"))[:40]
        msg = f"{path} was written by landprior {version}, which is newer; update landprior"
        raise ModelError(msg)
    try:
        header = Header.model_validate(data)
        scheme = ClassScheme.model_validate(header.scheme)
    except ValidationError as error:
        raise ModelError(_in_a_line(explain(error, str(path)))) from error
    except (ValueError, RecursionError, OverflowError) as error:
        msg = f"{path} is damaged: {_in_a_line(str(error))}"
        raise ModelError(msg) from error
    if len(scheme) != header.network.classes:
        msg = f"{path} is damaged: {len(scheme)} classes in its scheme, but {header.network.classes} in its network"
        raise ModelError(msg)
    return header, scheme


def _in_a_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 400 else f"{line[:400]}..."


def require_shapes(
    build: Callable[[], nn.Module],
    members: int | None,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    path: str | Path,
) -> None:
    """Compare the network that a header describes with the tensors of a file, without allocating memory for either.

    Parameters
    ----------
    build
        Builds one network.
    members
        Number of networks in an ensemble.
    shapes
        Shape and type (safetensors' name) of each tensor.
    path
        The file, named in error messages.

    Raises
    ------
    ModelError
        If they do not match.
    """
    try:
        with torch.device("meta"):
            one = build().state_dict()
    except InputError as error:
        msg = f"{path}: {error}"
        raise ModelError(msg) from error
    except (ValueError, RuntimeError, TypeError, OverflowError, KeyError, ZeroDivisionError) as error:
        msg = f"{path} is damaged: its network cannot be built ({_in_a_line(str(error))})"
        raise ModelError(msg) from error
    if (members or 1) * len(one) != len(shapes):
        msg = f"{path} is damaged: it holds {len(shapes)} tensors, but its network has {(members or 1) * len(one)}"
        raise ModelError(msg)
    for prefix in [""] if members is None else [f"members.{index}." for index in range(members)]:
        for name, wanted in one.items():
            shape, kind = shapes.get(f"{prefix}{name}", (None, ""))
            if shape != tuple(wanted.shape):
                there = "is not there" if shape is None else f"has shape {shape}"
                msg = (
                    f"{path} is damaged: its metadata and weights do not fit "
                    f"({prefix}{name} {there}, its network's has {tuple(wanted.shape)})"
                )
                raise ModelError(msg)
            fits = kind in _FLOATS if wanted.is_floating_point() else _OTHERS.get(kind) == wanted.dtype
            if not fits:
                msg = f"{path} is damaged: {prefix}{name} is of type {kind}, its network's of {wanted.dtype}"
                raise ModelError(msg)


def without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a value with None for NaN and infinity, which JSON does not allow."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
