"""Blurring predicted log-likelihoods, as a network around the network, so that any map can have it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from landprior.errors import InputError
from landprior.implicit.networks import PixelNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from landprior.landcover.training.model import LandcoverModel

BLUR = 11
"""Side of the square that is averaged over, pixels [R F.2]."""


def check_side(side: int) -> None:
    """Refuse a blur that has no middle.

    Raises
    ------
    InputError
        If it is not odd.
    """
    if side < 1 or side % 2 == 0:
        msg = f"the blur needs an odd number of pixels, such as {BLUR}, or 1 for none, not {side}"
        raise InputError(msg)


def box_mean(values: Tensor, side: int) -> Tensor:
    """Average over a square around each pixel, (N, C, H, W); at the edges, over the pixels there are."""
    radius = side // 2
    for kernel, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        values = nn.functional.avg_pool2d(values, kernel, 1, padding, count_include_pad=False)
    return values


def blur_log(log_q: Tensor, side: int) -> Tensor:
    """Average log-probabilities, (N, C, H, W), over a square around each pixel, and normalise them."""
    return torch.log_softmax(box_mean(log_q, side), dim=1) if side > 1 else log_q


class BlurredNetwork(PixelNetwork):
    """Averages a network's log-likelihoods over a square around each pixel.

    What is averaged in the paper is log q(l) - log qbar(l) [R F.2]. The mean of the second, a constant, is itself, so
    it is the same to average log q: a posterior made of the result divides by qbar once. At the edges of the image the
    mean is of the pixels there are.

    Parameters
    ----------
    network
        Gives log q.
    *sides
        Of the square, pixels, odd. Of several, the results stand one after the other along the class axis.

    Raises
    ------
    InputError
        If a side is not odd.
    """

    def __init__(self, network: PixelNetwork, *sides: int) -> None:
        super().__init__()
        for side in sides:
            check_side(side)
        self.network = network
        self.sides = sides
        self.smoothing = network.smoothing
        radius = max(sides) // 2
        self.stride = network.stride
        # the halo is whole strides, so that windows with it begin at one too
        self.halo = network.halo + -(-radius // network.stride) * network.stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of log q over the square, normalised, (N, C, H, W); of several, (N, sides * C, H, W)."""
        log_q: Tensor = self.network(x)
        if len(self.sides) == 1:
            return blur_log(log_q, self.sides[0])
        return torch.cat([blur_log(log_q, side) for side in self.sides], dim=1)


def blur_model(model: LandcoverModel, side: int = BLUR) -> LandcoverModel:
    """Return a model whose predictions are blurred; 1 leaves it as it is.

    Raises
    ------
    InputError
        If the side is not odd.
    """
    blurred = BlurredNetwork(model.network, side)
    return model if side == 1 else replace(model, network=blurred.eval())
