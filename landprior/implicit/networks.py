"""Networks and the smoothing of their output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

OUTPUT_SMOOTHING = 1e-4
"""Added to every class probability of the land-cover network, then renormalised [R E.1.3]."""

SUPERVISED_SMOOTHING = 1e-8
"""The same for supervised runs."""


class SmoothedNetwork(nn.Module):
    """A network whose output is log q with q = (softmax + s) / (1 + C s).

    Parameters
    ----------
    body
        Gives logits, class axis 1.
    smoothing
        The constant s.
    halo
        How many pixels around a pixel its output depends on.
    """

    def __init__(self, body: nn.Module, *, smoothing: float = OUTPUT_SMOOTHING, halo: int = 0) -> None:
        super().__init__()
        self.body = body
        self.smoothing = smoothing
        self.halo = halo

    def forward(self, x: Tensor) -> Tensor:
        """Return log q, same layout as the body's logits, in float32 or wider."""
        logits = self.body(x)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        log_q = torch.log_softmax(logits, dim=1)
        if self.smoothing == 0:
            return log_q
        return torch.log((log_q.exp() + self.smoothing) / (1 + log_q.shape[1] * self.smoothing))


class Ensemble(nn.Module):
    """The mean of the predictions of several networks, each also on the mirrored input if asked.

    Parameters
    ----------
    members
        Networks of one shape that give log q.
    flips
        Also predict the input mirrored left to right, top to bottom, and both, and mirror back.
    """

    def __init__(self, members: Sequence[SmoothedNetwork], *, flips: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.flips = flips
        self.smoothing = members[0].smoothing
        self.halo = members[0].halo

    def forward(self, x: Tensor) -> Tensor:
        """Return log of the mean q, (N, C, H, W)."""
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
    """
    total = prior.sum(dim=1, keepdim=True) + prior.shape[1] * smoothing
    smooth = prior + smoothing
    return smooth.div_(total.clamp_min_(math.ulp(0.0))).log_()  # in place: this is most of what cutting a patch costs
