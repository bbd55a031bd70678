"""Networks and the smoothing of their output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from landprior.errors import InputError
from landprior.implicit.settings import OUTPUT_SMOOTHING, SUPERVISED_SMOOTHING, WIDEST_FIELD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class PixelNetwork(nn.Module):
    """A network that predicts log q, class axis 1, for every pixel; used for mapping."""

    halo: int
    """Pixels around a pixel that its output depends on."""
    smoothing: float
    """Constant added to every class probability."""
    stride: int = 1
    """Windows must start at multiples of this to match the result of the whole image; 1 without pooling."""


class SmoothedNetwork(PixelNetwork):
    """A network whose output is log q with q = (softmax + s) / (1 + C s).

    Parameters
    ----------
    body
        Network that predicts logits, class axis 1.
    smoothing
        The constant s.
    halo, stride
        See :class:`PixelNetwork`.
    """

    def __init__(self, body: nn.Module, *, smoothing: float = OUTPUT_SMOOTHING, halo: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.body = body
        self.smoothing = smoothing
        self.halo = halo
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return log q, same layout as the body's logits, in float32 or wider."""
        logits = self.body(x)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        log_q = torch.log_softmax(logits, dim=1)
        if self.smoothing == 0:
            return log_q
        return torch.log((log_q.exp() + self.smoothing) / (1 + log_q.shape[1] * self.smoothing))


class Ensemble(PixelNetwork):
    """The mean of the predictions of several networks, optionally also on the mirrored input.

    Parameters
    ----------
    members
        Networks of the same shape that predict log q.
    flips
        Also predict the input mirrored left to right, top to bottom, and both, and mirror back.
    """

    def __init__(self, members: Sequence[PixelNetwork], *, flips: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.flips = flips
        self.smoothing = members[0].smoothing
        self.halo = members[0].halo
        self.stride = members[0].stride

    def forward(self, x: Tensor) -> Tensor:
        """Return log of the mean q, (N, C, H, W)."""
        rows, columns = x.shape[-2:]
        if self.flips and self.stride > 1:  # pad before mirroring: strides start at the image's first pixel
            x = _pad_to_strides(x, self.stride)
        total: Tensor | None = None
        axes = ((), (2,), (3,), (2, 3)) if self.flips else ((),)
        for member in self.members:
            for axis in axes:
                log_q = member(torch.flip(x, axis) if axis else x)
                log_q = torch.flip(log_q, axis) if axis else log_q
                total = log_q if total is None else torch.logaddexp(total, log_q)  # one at a time, to save memory
        if total is None:  # pragma: no cover - there is always a member
            msg = "an ensemble needs at least one member"
            raise ValueError(msg)
        if self.flips and self.stride > 1:
            total = total[..., :rows, :columns]
        return total - math.log(len(self.members) * len(axes))


FCN_HALO = WIDEST_FIELD // 2
"""Half of the largest receptive field of the FCN, 11 x 11."""

_WIDE = {11: (0, 1, 2, 3, 4), 9: (0, 1, 2, 3), 7: (0, 2, 4), 5: (0, 2), 3: (0,)}
"""Which of the FCN's five convolutions are 3 x 3, by the receptive field; the others are 1 x 1."""


def build_fcn(
    bands: int,
    classes: int,
    *,
    filters: int = 128,
    smoothing: float = OUTPUT_SMOOTHING,
    receptive_field: int = WIDEST_FIELD,
) -> SmoothedNetwork:
    """Build the land-cover network [R E.1.3]: five convolutions and a 1 x 1 head.

    With the paper's receptive field of 11 x 11 all five are 3 x 3. A smaller one keeps outlines where they are: pixels
    beside a road do not see it.

    Parameters
    ----------
    bands, classes
        Channels in and out.
    filters
        Channels of the inner layers; 128 in the paper.
    smoothing
        See :class:`SmoothedNetwork`.
    receptive_field
        Side of the square of pixels that a prediction depends on: 3, 5, 7, 9 or 11.

    Returns
    -------
    SmoothedNetwork
        ``torchgeo.models.FCN`` with smoothed log-probabilities.

    Raises
    ------
    ValueError
        If there is no such receptive field.
    """
    from torchgeo.models import FCN

    if receptive_field not in _WIDE:
        msg = f"the receptive field must be one of {', '.join(map(str, sorted(_WIDE)))} px, not {receptive_field}"
        raise ValueError(msg)
    network = FCN(bands, classes, filters)
    for index in set(_WIDE[WIDEST_FIELD]) - set(_WIDE[receptive_field]):
        network.backbone[2 * index] = nn.Conv2d(filters, filters, 1)  # between them are the activations
    return SmoothedNetwork(network, smoothing=smoothing, halo=receptive_field // 2)


POSITION = 2
"""Channels for the position of a pixel: its row and column."""

WAVES = 16
"""Number of waves that encode positions."""


WAVE_HEIGHT = 0.1
"""Amplitude of the waves, for bands with a standard deviation of 1, so that appearance matters more than position. With
1 a network explains a drawing by position alone."""


class _Waves(nn.Module):
    """Encode the last two channels, positions, as sines and cosines of learned frequencies; keep the others."""

    def __init__(self, waves: int, scale: float = WAVE_HEIGHT) -> None:
        super().__init__()
        self.frequencies = nn.Conv2d(POSITION, waves, 1)
        nn.init.normal_(self.frequencies.weight)  # initially less than one wave across the image
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, bands + 2 waves, H, W) from (N, bands + 2, H, W)."""
        phase = self.frequencies(x[:, -POSITION:])
        return torch.cat([x[:, :-POSITION], self.scale * torch.sin(phase), self.scale * torch.cos(phase)], dim=1)


def build_positional_fcn(
    bands: int, classes: int, *, filters: int = 128, waves: int = WAVES, smoothing: float = OUTPUT_SMOOTHING
) -> SmoothedNetwork:
    """Build the land-cover network for an image and two channels of positions, encoded as learned Fourier features.

    Parameters
    ----------
    bands, classes
        Input channels, without the two last ones for positions, from -1 to 1 over the image; output channels.
    filters, smoothing
        See :func:`build_fcn`.
    waves
        Learned frequencies (Li et al. 2021, "Learnable Fourier features"): twice as many channels.

    Returns
    -------
    SmoothedNetwork
        The network; predicts log q, (N, classes, H, W).
    """
    from torchgeo.models import FCN

    body = nn.Sequential(_Waves(waves), FCN(bands + 2 * waves, classes, filters))
    return SmoothedNetwork(body, smoothing=smoothing, halo=FCN_HALO)


UNET_FILTERS = (1, 1, 2, 2, 2, 1)
"""Channels of the U-Net's levels and last layer, in multiples of the first: 32 to 64 at the usual width."""

UNET_STRIDE = 16
"""Four levels, each of half the resolution."""

UNET_HALO = 112
"""Its receptive field: two 3 x 3 convolutions per level, down and up, reach 92 px, and pooling 15 more; a multiple of
the stride, so that windows with their halo start at one too."""


class _WholeStrides(nn.Module):
    """Pads an image on the right and at the bottom to a multiple of the stride, and crop the result."""

    def __init__(self, body: nn.Module, stride: int) -> None:
        super().__init__()
        self.body, self._stride = body, stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[-2:]
        found: Tensor = self.body(_pad_to_strides(x, self._stride))
        return found[..., :rows, :columns]


def _pad_to_strides(x: Tensor, stride: int) -> Tensor:
    rows, columns = x.shape[-2:]
    return nn.functional.pad(x, (0, -columns % stride, 0, -rows % stride))


def build_unet(bands: int, classes: int, *, filters: int = 32, smoothing: float = OUTPUT_SMOOTHING) -> SmoothedNetwork:
    """Build the U-Net of label super-resolution networks: four levels down and up, 32 to 64 filters.

    Parameters
    ----------
    bands, classes, smoothing
        As for :func:`build_fcn`.
    filters
        Channels of the outermost level.

    Returns
    -------
    SmoothedNetwork
        ``monai.networks.nets.BasicUNet`` with smoothed log-probabilities; its stride is 16.

    Raises
    ------
    InputError
        If MONAI is not installed.
    """
    try:
        from monai.networks.nets.basic_unet import BasicUNet
    except ImportError as error:
        msg = "the U-Net comes with MONAI, which is not installed; install it with: pip install 'landprior[unet]'"
        raise InputError(msg) from error
    body = BasicUNet(
        spatial_dims=2,
        in_channels=bands,
        out_channels=classes,
        features=[filters * times for times in UNET_FILTERS],
        norm=("batch", {}),  # statistics per window would make the map depend on the windows
        upsample="deconv",  # and so would interpolation between a window's corners
    )
    return SmoothedNetwork(_WholeStrides(body, UNET_STRIDE), smoothing=smoothing, halo=UNET_HALO, stride=UNET_STRIDE)


PRIOR_KERNELS = (11, 7, 5)
"""Kernel sizes of the prior network [R E.1.2]."""


def build_prior_network(
    channels: int, classes: int, *, filters: int = 128, smoothing: float = SUPERVISED_SMOOTHING
) -> SmoothedNetwork:
    """Build the network of the learned prior [R E.1.2]: kernels 11, 7, 5, leaky ReLU, and a 1 x 1 head.

    Parameters
    ----------
    channels, classes
        Channels in (coarse classes and layers) and out.
    filters
        Channels of the inner layers; 128 in the paper.
    smoothing
        See :class:`SmoothedNetwork`.

    Returns
    -------
    SmoothedNetwork
        The network, with a halo of 10 pixels.
    """
    layers: list[nn.Module] = []
    for kernel in PRIOR_KERNELS:
        layers += [nn.Conv2d(channels, filters, kernel, padding=kernel // 2), nn.LeakyReLU(inplace=True)]
        channels = filters
    body = nn.Sequential(*layers, nn.Conv2d(filters, classes, 1))
    return SmoothedNetwork(body, smoothing=smoothing, halo=sum(kernel // 2 for kernel in PRIOR_KERNELS))


def log_prior(prior: Tensor, *, smoothing: float = OUTPUT_SMOOTHING) -> Tensor:
    """Smooth a prior and take its log, as the paper's loader does [R E.1.3].

    Parameters
    ----------
    prior
        Probabilities, class axis 1.
    smoothing
        Constant added to every class before normalising; 0 keeps hard zeros.

    Returns
    -------
    Tensor
        Logs, with the prior's shape; minus infinity for excluded classes.
    """
    total = prior.sum(dim=1, keepdim=True) + prior.shape[1] * smoothing
    smooth = prior + smoothing
    return smooth.div_(
        total.clamp_min_(torch.finfo(smooth.dtype).tiny)
    ).log_()  # in place: this is most of the cost of cutting a patch
