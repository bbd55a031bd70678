"""Blurring predicted log-likelihoods with a wrapper around the network, so that any map can use it."""

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
"""Side of the averaging window, pixels [R F.2]."""


def check_side(side: int) -> None:
    """Raise an error if the averaging window has no central pixel.

    Raises
    ------
    InputError
        If the side is not odd.
    """
    if side < 1 or side % 2 == 0:
        msg = f"the blur needs an odd number of pixels, such as {BLUR}, or 1 for none, not {side}"
        raise InputError(msg)


def box_mean(values: Tensor, side: int) -> Tensor:
    """Average over a square window around each pixel, (N, C, H, W); at the edges, over the pixels inside the image."""
    radius = side // 2
    for kernel, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        values = nn.functional.avg_pool2d(values, kernel, 1, padding, count_include_pad=False)
    return values


def blur_log(log_q: Tensor, side: int) -> Tensor:
    """Average log-probabilities, (N, C, H, W), over a square window around each pixel, and normalise them."""
    return torch.log_softmax(box_mean(log_q, side), dim=1) if side > 1 else log_q


class BlurredNetwork(PixelNetwork):
    """A network whose log-likelihoods are averaged over a square window around each pixel.

    The paper averages log q(l) - log qbar(l) [R F.2]. The second term is constant, so averaging log q is equivalent:
    a posterior made from the result divides by qbar once. At the edges of the image the mean is over the pixels
    inside it.

    Parameters
    ----------
    network
        Network that predicts log q.
    *sides
        Sides of the windows, pixels, odd. With several, the results are stacked along the class axis.

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
        # a multiple of the stride, so that windows with their halo start at one too
        self.halo = network.halo + -(-radius // network.stride) * network.stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of log q over the window, normalised, (N, C, H, W), or (N, sides * C, H, W) for several."""
        log_q: Tensor = self.network(x)
        if len(self.sides) == 1:
            return blur_log(log_q, self.sides[0])
        return torch.cat([blur_log(log_q, side) for side in self.sides], dim=1)


def blur_model(model: LandcoverModel, side: int = BLUR) -> LandcoverModel:
    """Return a model whose predictions are blurred; a side of 1 leaves it unchanged.

    Raises
    ------
    InputError
        If the side is not odd.
    """
    blurred = BlurredNetwork(model.network, side)
    return model if side == 1 else replace(model, network=blurred.eval())
