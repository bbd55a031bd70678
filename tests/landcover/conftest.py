"""Fixtures: a small image and its prior on disk, quick settings."""

import numpy as np
import pytest

from landprior.landcover.training import TileSettings


@pytest.fixture
def make_prior(make_raster, enviroatlas, rng):
    """Return a factory of priors with the scheme in their tags; ``holes`` marks pixels without a prior."""

    def make(name, height, width, *, scheme=enviroatlas, holes=None, grid=None, **options):
        values = rng.dirichlet(np.ones(len(scheme)), (height, width)).transpose(2, 0, 1).astype(np.float32)
        if holes is not None:
            values[:, holes] = np.nan
        tags = {"scheme": scheme.model_dump_json(exclude_defaults=True)}
        return make_raster(name, values, dtype="float32", nodata=float("nan"), tags=tags, grid=grid, **options)

    return make


@pytest.fixture
def make_image(make_raster, rng):
    """Return a factory of 4-band images; ``holes`` marks nodata pixels."""

    def make(name, height, width, *, bands=4, holes=None, grid=None, dtype="uint8"):
        values = rng.integers(1, 255, (bands, height, width)).astype(dtype)
        if holes is not None:
            values[:, holes] = 0
        return make_raster(name, values, nodata=None if holes is None else 0, grid=grid)

    return make


@pytest.fixture
def quick():
    """Return settings of a training of seconds."""

    def make(**changes):
        loop = {"steps": 12, "warmup_steps": 6, "epoch_steps": 4} | changes.pop("training", {})
        base = TileSettings(**{"filters": 4, "patch_size": 24, "batch_size": 4, "settled": 0.0} | changes)
        return base.model_copy(update={"training": base.training.model_copy(update=loop)})

    return make
