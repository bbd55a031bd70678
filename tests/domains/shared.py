"""Random inputs for tests of candidate sets and ranks."""

import torch

from landprior.domains.imagery.images import LabelledImages


def make_images(count, *, classes=3, seed=0, names="train"):
    """Draw pictures with a bright band of rows whose position is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    values = torch.randint(0, 70, (count, 1, 12, 12), generator=generator)
    for row, label in enumerate(labels.tolist()):
        values[row, :, label * 4 : label * 4 + 4] += 120
    return LabelledImages(
        images=values.to(torch.uint8),
        labels=labels,
        classes=tuple(map(str, range(classes))),
        names=tuple(f"{names}/{i}" for i in range(count)),
    )


def draw_logs(shape, seed, *, scale):
    """Draw log-probabilities over axis 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(shape, generator=generator, dtype=torch.float64), dim=1)
