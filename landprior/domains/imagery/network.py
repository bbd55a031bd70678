"""A small network for images: four 3 x 3 convolutions with stride 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from landprior.domains.imagery.settings import FILTERS
from landprior.implicit.networks import SmoothedNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from landprior.domains.imagery.feeding import Standardiser


LAYERS = 4
STRIDE = 2
_BATCH = 512
"""Number of images predicted at a time, to fit into a CPU's cache."""


def build_image_network(
    bands: int, classes: int, size: tuple[int, int], *, filters: int = FILTERS, seed: int = 0
) -> SmoothedNetwork:
    """Build the network of [R section 4.1]: four 3 x 3 convolutions of stride 2, leaky ReLU, one linear layer.

    Parameters
    ----------
    bands, classes
        Input channels and output classes.
    size
        Rows and columns of the images.
    filters
        Channels of the inner layers.
    seed
        Seed of the weights; the global random state is not changed.

    Returns
    -------
    SmoothedNetwork
        Network that predicts log q, (N, classes), without smoothing.
    """
    rows, columns = size
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(LAYERS):
            layers += [nn.Conv2d(bands, filters, 3, stride=STRIDE, padding=1), nn.LeakyReLU(inplace=True)]
            bands, rows, columns = filters, -(-rows // STRIDE), -(-columns // STRIDE)
        body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * rows * columns, classes))
    # on a CPU, channels last takes three quarters of the time
    return SmoothedNetwork(body, smoothing=0.0).to(memory_format=torch.channels_last)


def predict_images(network: nn.Module, images: Tensor, standardise: Standardiser) -> Tensor:
    """Predict images, a batch at a time.

    Parameters
    ----------
    network
        Network that predicts log q.
    images
        uint8, shape (N, bands, H, W).
    standardise
        Standardisation of the images.

    Returns
    -------
    Tensor
        log q, float32, shape (N, C), on the CPU.
    """
    with torch.no_grad():
        return torch.cat([network(standardise(some)).float().cpu() for some in torch.split(images, _BATCH)])
