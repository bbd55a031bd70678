"""A trained land-cover model as one file: weights, class scheme, band statistics and a record of its training.

The file is safetensors (no pickle); everything except the weights is JSON in its metadata under the key
``landprior``. Nothing else is needed to load it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

import landprior
from landprior.errors import MissingInputError, ModelError
from landprior.implicit.epitomes import build_epitome_classifier
from landprior.implicit.networks import (
    POSITION,
    Ensemble,
    PixelNetwork,
    build_fcn,
    build_positional_fcn,
    build_prior_network,
    build_unet,
)
from landprior.implicit.settings import OUTPUT_SMOOTHING
from landprior.landcover.training.head import Head
from landprior.landcover.training.model_header import (
    FORMAT,
    HEAD_FORMAT,
    KEY,
    LEARNED_PRIOR,
    parse_header,
    require_shapes,
    without_nan,
)
from landprior.raster.endings import ENDINGS, check_named_output
from landprior.raster.outputs import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.training.model_header import HeadHeader
    from landprior.raster.scheme import ClassScheme

Architecture = Literal["fcn", "unet", "epitome"]
"""Networks for images; a learned prior, which has no image input, uses its own."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Mean and standard deviation of each band over a tile's valid pixels, shape (B,), in the image's units."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def standardise(self, image: Tensor, valid: Tensor | None, extra: Tensor | None = None) -> Tensor:
        """Standardise an image.

        Parameters
        ----------
        image
            Shape (N, B, H, W) or (B, H, W).
        valid
            Mask of valid pixels, (N, H, W) or (H, W); None: everywhere.
        extra
            Additional channels of the same height and width, appended as they are.

        Returns
        -------
        Tensor
            float32; invalid pixels are 0, which is the mean.
        """
        mean, scale = self._tensors(image.device)
        values = image.to(torch.float32, copy=True).sub_(mean).mul_(scale)  # in place, to save memory
        if extra is not None:
            values = torch.cat([values, extra.float()], dim=-3)
        return values if valid is None else values.masked_fill_(~valid.unsqueeze(-3), 0.0)

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and the inverse of the standard deviation, (B, 1, 1), on a device; copied there once."""
        if device not in self._on_device:
            self._on_device[device] = tuple(  # type: ignore[assignment]
                torch.as_tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)
                for values in (self.mean, 1 / self.std)
            )
        return self._on_device[device]


@dataclass(frozen=True, kw_only=True)
class LandcoverModel:
    """A network with everything needed to map with it.

    Parameters
    ----------
    network
        Network that predicts log q of a standardised image.
    scheme
        The classes.
    statistics
        Statistics for standardising the bands.
    filters
        Width of the network.
    architecture
        Kind of network, unless the model is a learned prior.
    options
        Other numbers that define the network, of :func:`landprior.implicit.networks.build_fcn` or
        :class:`landprior.implicit.epitomes.EpitomeClassifier`.
    extras
        Inputs besides the image's bands, in order: ``"prior"`` (a model on image and prior), or the coarse layers of a
        learned prior, ``"nlcd"`` (the blurred, remapped NLCD) first. Those two have one channel per class.
        ``"position"``, row and column, has two channels; the network encodes them as waves.
    record
        Record of the training: settings, inputs, history, the verdict on harm.
    head
        What was fitted to labelled points, if anything was (:func:`landprior.landcover.adaptation.adapt.adapt`); its
        probabilities are mapped in place of q and r.
    """

    network: PixelNetwork
    scheme: ClassScheme
    statistics: BandStatistics
    filters: int
    architecture: Architecture = "fcn"
    options: dict[str, int] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    head: Head | None = None

    @property
    def bands(self) -> int:
        """Number of image bands of the input; 0 for a learned prior."""
        return len(self.statistics.mean)

    @property
    def channels(self) -> int:
        """Number of channels of the network's input: bands and extras."""
        return count_channels(self.bands, self.scheme, self.extras)

    @property
    def kind(self) -> str:
        """The architecture, or ``"prior-fcn"`` for a learned prior."""
        return self.architecture if self.bands else LEARNED_PRIOR

    @property
    def ensemble(self) -> bool:
        """Whether the model averages several networks."""
        return isinstance(self.network, Ensemble)

    @property
    def members(self) -> list[PixelNetwork]:
        """The networks; most models have one."""
        return list(self.network.members) if isinstance(self.network, Ensemble) else [self.network]  # type: ignore[arg-type]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the classes left out of r as unsupported by the network, if the recipe asks for it."""
        if not self.record.get("settings", {}).get("drop_unsupported", False):
            return ()
        return tuple(self.record.get("verdict", {}).get("unsupported", ()))

    @property
    def supervised(self) -> bool:
        """Whether it was trained on labels."""
        return bool(self.record.get("labelled", False))

    @property
    def loss(self) -> str:
        """Name of the loss it was trained with."""
        return str(self.record.get("settings", {}).get("training", {}).get("loss", "unknown"))

    def digest(self) -> str:
        """Return a short hash of weights and scheme, for the tags of its maps."""
        sha = hashlib.sha256(self.scheme.model_dump_json().encode())
        for name, value in sorted(self.network.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        for value in () if self.head is None else vars(self.head).values():
            sha.update(np.ascontiguousarray(value, dtype=np.float64).tobytes())
        return sha.hexdigest()[:16]


PER_CLASS = ("prior", "nlcd")
"""Extra inputs with one channel per class; the others have one."""


def count_channels(bands: int, scheme: ClassScheme, extras: Sequence[str]) -> int:
    """Count the channels of a network's input.

    Parameters
    ----------
    bands
        Number of bands of the image.
    scheme
        The classes; some inputs have one channel per class.
    extras
        Names of the additional inputs.

    Returns
    -------
    int
        Channels of the image and all inputs.
    """
    wide = {"position": POSITION, **dict.fromkeys(PER_CLASS, len(scheme))}
    return bands + sum(wide.get(name, 1) for name in extras)


def build_network(
    bands: int,
    scheme: ClassScheme,
    extras: Sequence[str] = (),
    *,
    filters: int,
    smoothing: float = OUTPUT_SMOOTHING,
    architecture: str = "fcn",
    options: Mapping[str, int] | None = None,
) -> PixelNetwork:
    """Build one network for an image's bands and extra inputs.

    Parameters
    ----------
    bands, scheme, extras, filters
        See :class:`LandcoverModel`.
    smoothing
        Constant added to every class of q.
    architecture
        ``"fcn"``, ``"unet"`` or ``"epitome"``; without bands, the network of a learned prior.
    options
        Options of an epitome (size, patch and number) or of the FCN (its receptive field, 11 without it).

    Returns
    -------
    PixelNetwork
        The network, with random weights.

    Raises
    ------
    ValueError
        If there is no such architecture, or it has no such option.
    InputError
        If it needs an extra that is not installed.
    """
    channels = count_channels(bands, scheme, extras)
    if architecture == "epitome":
        return build_epitome_classifier(channels, len(scheme), smoothing=smoothing, **(options or {}))
    builders = {"fcn": build_fcn, "unet": build_unet, LEARNED_PRIOR: build_prior_network}
    kind = architecture if bands else LEARNED_PRIOR
    if extras[-1:] == ("position",) and kind == "fcn":
        return build_positional_fcn(channels - POSITION, len(scheme), filters=filters, smoothing=smoothing)
    if kind not in builders:
        msg = f"unknown network {kind!r}; choose from {', '.join(builders)} and epitome"
        raise ValueError(msg)
    if options and kind != "fcn":
        msg = f"the network {kind} has no options, such as {', '.join(options)}"
        raise ValueError(msg)
    try:
        return builders[kind](channels, len(scheme), filters=filters, smoothing=smoothing, **(options or {}))
    except TypeError as error:
        msg = f"the network {kind} has no such options: {', '.join(options or {})}"
        raise ValueError(msg) from error


def save_model(model: LandcoverModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model.

    Parameters
    ----------
    model
        The model to write.
    path, overwrite
        A file that ends in ``.safetensors``, and whether it may replace an existing one.

    Returns
    -------
    Path
        The model's file.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`landprior.raster.outputs.replacing`.
    """
    from safetensors.torch import save_file

    if Path(path).suffix.lower() != ENDINGS["model"]:
        check_named_output(path, "model", overwrite=overwrite)
    metadata = {
        "format": FORMAT if model.head is None else HEAD_FORMAT,
        "version": landprior.__version__,
        "network": {
            "kind": model.kind,
            "bands": model.bands,
            "extras": list(model.extras),
            "classes": len(model.scheme),
            "filters": model.filters,
            "smoothing": model.network.smoothing,
            **({"options": model.options} if model.options else {}),
            **({"members": len(model.members), "flips": model.network.flips} if model.ensemble else {}),
        },
        "scheme": model.scheme.model_dump(mode="json", exclude_defaults=True),
        "statistics": {"mean": model.statistics.mean.tolist(), "std": model.statistics.std.tolist()},
        "record": without_nan(model.record),
        **({} if model.head is None else {"head": {name: value.tolist() for name, value in vars(model.head).items()}}),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    with replacing(path, overwrite=overwrite) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(metadata, allow_nan=False)})
    return Path(path)


def load_model(path: str | Path) -> LandcoverModel:
    """Load a model file.

    Parameters
    ----------
    path
        A .safetensors file that landprior wrote.

    Returns
    -------
    LandcoverModel
        The model on the CPU, ready to predict.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ModelError
        If the file was not written by landprior, is damaged, has a newer format, or contains NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        msg = f"{path} is a folder; give the path of a model file"
        raise ModelError(msg)
    if not Path(path).is_file():
        msg = f"no model at {path}; train one with: landprior train --image IMAGE --prior PRIOR -o {path}"
        raise MissingInputError(msg)
    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get(KEY)
            shapes = {}
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                part = handle.get_slice(name)
                shapes[name] = (tuple(part.get_shape()), str(part.get_dtype()))
            header, scheme = parse_header(text, path)
            shape = header.network
            extras = tuple(shape.extras)

            def build() -> PixelNetwork:
                return build_network(
                    shape.bands,
                    scheme,
                    extras,
                    filters=shape.filters,
                    smoothing=shape.smoothing,
                    architecture=shape.kind,
                    options=shape.options or None,
                )

            require_shapes(build, shape.members, shapes, path)
            state = {name: handle.get_tensor(name) for name in shapes}
    except ModelError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        msg = f"{path} is not a safetensors model, or is damaged ({' '.join(str(error).split())})"
        raise ModelError(msg) from error
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        msg = f"{path} cannot be used: its weights hold NaN or infinity ({broken[0]}); train the model again"
        raise ModelError(msg)
    members = [build() for _ in range(shape.members or 1)]
    network = members[0] if shape.members is None else Ensemble(members, flips=shape.flips)
    network.load_state_dict(state)
    network.eval()
    return LandcoverModel(
        network=network,
        scheme=scheme,
        statistics=BandStatistics(mean=np.array(header.statistics.mean), std=np.array(header.statistics.std)),
        filters=shape.filters,
        architecture="fcn" if shape.bands == 0 or shape.kind == LEARNED_PRIOR else shape.kind,
        options=dict(shape.options),
        extras=extras,
        record=header.record,
        head=None if header.head is None else _build_head(header.head),
    )


def _build_head(header: HeadHeader) -> Head:
    numbers = {name: np.array(value, dtype=np.float64) for name, value in vars(header).items() if name != "left_out"}
    return Head(**numbers, left_out=np.array(header.left_out, dtype=np.intp))
