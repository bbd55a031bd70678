"""Fixtures: small pictures whose classes or ranks a network learns in seconds."""

import pytest

from landprior.domains.imagery.images import ImageSplits

from .shared import make_images


@pytest.fixture(scope="module")
def data():
    return ImageSplits(train=make_images(180), test=make_images(60, seed=1, names="test"))
