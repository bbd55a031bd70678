"""Networks and the smoothing of their output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from landprior.errors import InputError
from landprior.implicit.settings import OUTPUT_SMOOTHING, SUPERVISED_SMOOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class PixelNetwork(nn.Module):
    """A network that gives log q, class axis 1, for every pixel: what maps are computed with."""

    halo: int
    """How many pixels around a pixel its output depends on."""
    smoothing: float
    """Added to every class probability."""
    stride: int = 1
    """Windows must begin at multiples of it to give what the whole image gives; 1 without pooling."""


class SmoothedNetwork(PixelNetwork):
    """A network whose output is log q with q = (softmax + s) / (1 + C s).

    Parameters
    ----------
    body
        Gives logits, class axis 1.
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
    """The mean of the predictions of several networks, each also on the mirrored input if asked.

    Parameters
    ----------
    members
        Networks of one shape that give log q.
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
        if self.flips and self.stride > 1:  # before it is mirrored: the strides begin at the image's first pixel
            x = _pad_to_strides(x, self.stride)
        total: Tensor | None = None
        axes = ((), (2,), (3,), (2, 3)) if self.flips else ((),)
        for member in self.members:
            for axis in axes:
                log_q = member(torch.flip(x, axis) if axis else x)
                log_q = torch.flip(log_q, axis) if axis else log_q
                total = log_q if total is None else torch.logaddexp(total, log_q)  # one at a time: memory
        if total is None:  # pragma: no cover - there is always a member
            msg = "an ensemble needs a member"
            raise ValueError(msg)
        if self.flips and self.stride > 1:
            total = total[..., :rows, :columns]
        return total - math.log(len(self.members) * len(axes))


FCN_HALO = 5
"""Half of the FCN's receptive field of 11 x 11."""


def build_fcn(bands: int, classes: int, *, filters: int = 128, smoothing: float = OUTPUT_SMOOTHING) -> SmoothedNetwork:
    """Build the land-cover network [R E.1.3]: five 3 x 3 convolutions and a 1 x 1 head.

    Parameters
    ----------
    bands, classes
        Channels in and out.
    filters
        Channels in between; the paper's 128.
    smoothing
        See :class:`SmoothedNetwork`.

    Returns
    -------
    SmoothedNetwork
        ``torchgeo.models.FCN`` with smoothed log-probabilities; receptive field 11 x 11.
    """
    from torchgeo.models import FCN

    return SmoothedNetwork(FCN(bands, classes, filters), smoothing=smoothing, halo=FCN_HALO)


POSITION = 2
"""Channels that say where a pixel is: its row and column."""

WAVES = 16
"""Waves in which a network with positions sees them."""


WAVE_HEIGHT = 0.1
"""Of the waves, where bands have a standard deviation of 1: what is seen counts first, and where it is second. With 1 a
network explains a drawing by places alone."""


class _Waves(nn.Module):
    """Turns the last two channels, positions, into sines and cosines of learned frequencies; others go through."""

    def __init__(self, waves: int, scale: float = WAVE_HEIGHT) -> None:
        super().__init__()
        self.frequencies = nn.Conv2d(POSITION, waves, 1)
        nn.init.normal_(self.frequencies.weight)  # less than a wave across the image, at first
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, bands + 2 waves, H, W) from (N, bands + 2, H, W)."""
        phase = self.frequencies(x[:, -POSITION:])
        return torch.cat([x[:, :-POSITION], self.scale * torch.sin(phase), self.scale * torch.cos(phase)], dim=1)


def build_positional_fcn(
    bands: int, classes: int, *, filters: int = 128, waves: int = WAVES, smoothing: float = OUTPUT_SMOOTHING
) -> SmoothedNetwork:
    """Build the land-cover network for an image and two channels of positions, seen as learned Fourier features.

    Parameters
    ----------
    bands, classes
        Channels in, without the two of positions, which come last and run from -1 to 1 over the image; channels out.
    filters, smoothing
        See :func:`build_fcn`.
    waves
        Learned frequencies (Li et al. 2021, "Learnable Fourier features"): twice as many channels.

    Returns
    -------
    SmoothedNetwork
        Gives log q, (N, classes, H, W).
    """
    from torchgeo.models import FCN

    body = nn.Sequential(_Waves(waves), FCN(bands + 2 * waves, classes, filters))
    return SmoothedNetwork(body, smoothing=smoothing, halo=FCN_HALO)


UNET_FILTERS = (1, 1, 2, 2, 2, 1)
"""Channels of the U-Net's levels and of its last, in multiples of the first: 32 to 64 at the usual width."""

UNET_STRIDE = 16
"""Four levels, each of half the resolution."""

UNET_HALO = 112
"""Its receptive field: two 3 x 3 convolutions a level, down and up, reach 92 px, and pooling 15 more; a multiple of
the stride, so that windows with their halo begin at one too."""


class _WholeStrides(nn.Module):
    """Pads an image on the right and at the bottom to whole strides, and cuts the result back."""

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
    bands, classes
        Channels in and out.
    filters
        Channels of the outermost level.
    smoothing
        See :class:`SmoothedNetwork`.

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
        msg = "the U-Net comes with MONAI, which is not installed; get it with: pip install 'landprior[unet]'"
        raise InputError(msg) from error
    body = BasicUNet(
        spatial_dims=2,
        in_channels=bands,
        out_channels=classes,
        features=[filters * times for times in UNET_FILTERS],
        norm=("batch", {}),  # statistics of a window would make the map depend on the windows
        upsample="deconv",  # so would interpolation between a window's corners
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
        Channels in between; the paper's 128.
    smoothing
        See :class:`SmoothedNetwork`.

    Returns
    -------
    SmoothedNetwork
        Its halo is 10 pixels.
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
        Added to every class, then renormalised; 0 keeps hard zeros.

    Returns
    -------
    Tensor
        Logs, of the prior's shape; minus infinity where a class is ruled out.
    """
    total = prior.sum(dim=1, keepdim=True) + prior.shape[1] * smoothing
    smooth = prior + smoothing
    return smooth.div_(
        total.clamp_min_(torch.finfo(smooth.dtype).tiny)
    ).log_()  # in place: this is most of what cutting a patch costs
