"""Fixtures: small rasters drawn from a seed, and paths of the real data."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
from affine import Affine
from rasterio.crs import CRS

from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER_MEMORY = 2 << 30
"""Memory of one test process in bytes, with torch and torchgeo loaded."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes for ``-n auto`` in pyproject.toml: none if only a part of the suite is chosen.

    Processes take seconds to start and hide printed output, which is worth it for whole folders only. Slow
    tests use several threads by themselves.
    """
    option, arguments = config.option, [argument.partition("::") for argument in config.args]
    chosen = any(test or Path(path).is_file() for path, _, test in arguments)
    if chosen or option.keyword or option.capture == "no" or option.collectonly or "not slow" not in option.markexpr:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, psutil.virtual_memory().available // WORKER_MEMORY)
    if count < 2:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers: torch and BLAS use one core each
    return count


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``needs(package, ...)`` if one of the packages is not installed."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"{package} is not installed; pip install -e '.[test-all]'")


@pytest.fixture(scope="session", autouse=True)
def _loopback_only(tmp_path_factory):
    """Refuse connections that leave this machine, and use a separate cache."""
    connect = socket.socket.connect

    def checked(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            message = f"a test tried to reach {address}"
            raise OSError(message)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked)
        patch.setenv("LANDPRIOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LANDPRIOR_DEBUG", "1")  # bugs raise, instead of giving a one-line message
        yield


@pytest.fixture(autouse=True)
def _fresh_logging():
    """Undo the command line's changes to logging and warnings, including those made in a module-scoped fixture."""
    show = warnings.showwarning
    _reset_logging()
    yield
    _reset_logging()
    warnings.showwarning = show


def _reset_logging():
    logger = logging.getLogger("landprior")
    logger.propagate, logger.handlers[:] = True, []
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real land-cover sets; skips the test if they are absent."""
    folder = Path(os.environ.get("LANDPRIOR_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "landcover"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LANDPRIOR_TEST_DATA to the folder that holds landcover/")
    return folder


@pytest.fixture(scope="session")
def enviroatlas():
    return load_scheme("enviroatlas-5")


@pytest.fixture(scope="session")
def chesapeake():
    return load_scheme("chesapeake-4")


@pytest.fixture
def rng():
    return np.random.default_rng(20221)


@pytest.fixture
def make_grid():
    """Return a factory of UTM grids at 1 m."""

    def make(height=64, width=80, *, pixel=1.0, left=600_000.0, top=4_500_000.0, epsg=26917):
        crs = None if epsg is None else CRS.from_epsg(epsg)
        return Grid(width=width, height=height, transform=Affine(pixel, 0, left, 0, -pixel, top), crs=crs)

    return make


@pytest.fixture
def make_raster(tmp_path, make_grid):
    """Return a factory of rasters on disk."""

    def make(name, values, *, grid=None, **options):
        values = np.asarray(values)
        grid = grid or make_grid(*values.shape[-2:])
        return write_raster(tmp_path / name, values, grid, **options)

    return make


@pytest.fixture
def coarse(rng):
    """Return a factory of NLCD-like codes: 30-pixel cells of a few codes."""

    def make(height, width, codes=(11, 21, 22, 41, 81, 82)):
        cells = rng.choice(codes, size=(height // 30 + 1, width // 30 + 1))
        return np.kron(cells, np.ones((30, 30), dtype=np.int64))[:height, :width].astype(np.uint8)

    return make


@pytest.fixture
def make_model(enviroatlas):
    """Return a factory of models with random weights."""
    import torch

    from landprior.implicit.networks import build_fcn
    from landprior.landcover.training.model import BandStatistics, LandcoverModel

    def make(*, bands=4, filters=6, scheme=enviroatlas, seed=0, record=None):
        torch.manual_seed(seed)
        network = build_fcn(bands, len(scheme), filters=filters)
        with torch.no_grad():
            for value in network.parameters():
                value.mul_(3)  # make the classes vary in space
        statistics = BandStatistics(mean=np.full(bands, 120.0), std=np.full(bands, 70.0))
        return LandcoverModel(
            network=network.eval(), scheme=scheme, statistics=statistics, filters=filters, record=record or {}
        )

    return make


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
    """Return a factory of settings for a training that takes seconds."""
    from landprior.landcover.training.settings import TileSettings

    def make(**changes):
        loop = {"steps": 12, "warmup_steps": 6, "epoch_steps": 4} | changes.pop("training", {})
        base = TileSettings(**{"filters": 4, "patch_size": 24, "batch_size": 4, "settled": 0.0} | changes)
        return base.model_copy(update={"training": base.training.model_copy(update=loop)})

    return make
