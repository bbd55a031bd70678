"""Memory does not grow with the raster: commands on 5,000 x 5,000 and 20,000 x 20,000 pixels."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from landprior.implicit.networks import build_fcn
from landprior.landcover.training.model import BandStatistics, LandcoverModel, save_model
from landprior.raster.cog import CogWriter

SMALL, LARGE = 5_000, 20_000
MOST = 1.2

# Runs the command in a separate process, which prints its peak memory (KiB) at the end.
RUNNER = """
import json, sys
from landprior.cli import main
code = main(sys.argv[1:], standalone_mode=False)
# not ru_maxrss, which starts from what the parent had
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"code": code or 0, "peak": peak}))
"""


# glibc keeps freed blocks in one heap per thread. How much depends on how the threads' work happened to interleave
# (one command on one raster: 340 to 430 MiB), so where sizes are compared, freed blocks go back at once.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def measure(*args, variables=()):
    """Run a command, with further environment variables, and return its peak resident memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, "-q", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **dict(variables)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0, done.stderr
    return result["peak"] / 1024


def write(path, grid, bands, values):
    """Write a large raster strip by strip; ``values(rows, columns)`` returns one band."""
    with CogWriter(path, grid, count=bands) as writer:
        for top in range(0, grid.height, 512):
            height = min(512, grid.height - top)
            strip = values(np.arange(top, top + height)[:, None], np.arange(grid.width)).astype(np.uint8)
            writer.write(np.repeat(strip[None], bands, axis=0), Window(0, top, grid.width, height))
    return path


@pytest.mark.slow
def test_predict(tmp_path, make_grid, enviroatlas):
    network = build_fcn(4, 5, filters=8)
    statistics = BandStatistics(mean=np.full(4, 90.0), std=np.full(4, 50.0))
    model = LandcoverModel(network=network, scheme=enviroatlas, statistics=statistics, filters=8)
    weights = save_model(model, tmp_path / "model.safetensors")
    peaks = {}
    for side in (SMALL, LARGE):
        image = write(tmp_path / f"{side}.tif", make_grid(side, side), 4, lambda r, c: 1 + (r // 7 + c // 5) % 200)
        output = tmp_path / f"map-{side}.tif"
        peaks[side] = measure("predict", image, "--model", weights, "-o", output, "--device", "cpu", variables=RETURNED)
        image.unlink()
        assert output.stat().st_size > 0
    print(f"peak memory, MiB: {peaks}, ratio {peaks[LARGE] / peaks[SMALL]:.2f}")
    assert peaks[LARGE] <= MOST * peaks[SMALL], peaks


@pytest.mark.slow
def test_build_prior(tmp_path, make_grid):
    codes = np.array([11, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95, 41])
    peaks = {}
    for side in (SMALL, LARGE):
        nlcd = write(
            tmp_path / f"{side}.tif", make_grid(side, side), 1, lambda r, c: codes[(r // 30 * 7 + c // 30) % 16]
        )
        output = tmp_path / f"prior-{side}.tif"
        peaks[side] = measure(
            "build-prior", "--nlcd", nlcd, "--scheme", "enviroatlas-5", "-o", output, variables=RETURNED
        )
        assert output.stat().st_size > 0
        output.unlink()
    print(f"peak memory, MiB: {peaks}, ratio {peaks[LARGE] / peaks[SMALL]:.2f}")
    assert peaks[LARGE] <= MOST * peaks[SMALL], peaks


@pytest.mark.slow
def test_joint_training(tmp_path, make_grid, enviroatlas):
    """Of 3 and of 12 tiles of 5,000 x 5,000 px."""
    grid = make_grid(SMALL, SMALL)
    image = write(tmp_path / "image.tif", grid, 4, lambda r, c: 1 + (r // 7 + c // 5) % 200)
    prior = tmp_path / "prior.tif"
    tags = {"scheme": enviroatlas.model_dump_json(exclude_defaults=True)}
    with CogWriter(prior, grid, count=5, tags=tags) as writer:
        for top in range(0, SMALL, 512):
            rows = np.arange(top, min(top + 512, SMALL))[None, :, None]
            values = 1 + (rows // 31 + np.arange(SMALL) // 17 + np.arange(5)[:, None, None] * 9) % 50
            writer.write(values.astype(np.uint8), Window(0, top, SMALL, rows.shape[1]))
    peaks = {}
    for count in (3, 12):
        files = []
        for number in range(count):
            own = tmp_path / f"{count}-{number}.tif"
            os.link(image, own)
            files += ["--image", own, "--prior", prior]
        how = ("--steps", 60, "--warmup-steps", 20, "--filters", 8, "--device", "cpu")
        peaks[count] = measure("train", *files, "-o", tmp_path / f"{count}.safetensors", *how, variables=RETURNED)
    print(f"peak memory, MiB: {peaks}, ratio {peaks[12] / peaks[3]:.2f}")
    assert peaks[12] <= MOST * peaks[3], peaks


@pytest.mark.slow
def test_predict_takes_no_more_than_it_is_told_to(tmp_path, make_grid, enviroatlas):
    """With a posterior, whose first pass keeps as much as fits."""
    network = build_fcn(4, 5, filters=8)
    statistics = BandStatistics(mean=np.full(4, 90.0), std=np.full(4, 50.0))
    model = LandcoverModel(network=network, scheme=enviroatlas, statistics=statistics, filters=8)
    weights = save_model(model, tmp_path / "model.safetensors")
    for side, memory in ((4_000, 1_800), (9_000, 1_800), (9_000, 3_000)):
        grid = make_grid(side, side)
        image = tmp_path / f"{side}.tif"
        prior = tmp_path / f"prior-{side}.tif"
        if not image.exists():
            write(image, grid, 4, lambda r, c: 1 + (r // 7 + c // 5) % 200)
            write(prior, grid, 5, lambda r, c: 1 + (r // 31 + c // 17) % 50)
        output = tmp_path / f"map-{side}-{memory}.tif"
        peak = measure(
            *("predict", image, "--model", weights, "--posterior", prior, "-o", output),
            *("--device", "cpu", "--engine", "torch", "--memory", memory),
        )
        print(f"{side} x {side} px, --memory {memory}: peak {peak:.0f} MiB")
        assert peak <= memory


@pytest.mark.slow
def test_a_sparse_raster_beyond_four_gigabytes(tmp_path, make_grid, enviroatlas):
    """65,000 x 65,000 pixels with data in one corner: the rest is neither computed nor written."""
    grid = make_grid(65_000, 65_000)
    with CogWriter(tmp_path / "image.tif", grid, count=4, nodata=0) as writer:
        writer.write(np.full((4, 700, 900), 7, np.uint8), Window(60_000, 61_000, 900, 700))
    network = build_fcn(4, 5, filters=8)
    statistics = BandStatistics(mean=np.full(4, 90.0), std=np.full(4, 50.0))
    model = LandcoverModel(network=network, scheme=enviroatlas, statistics=statistics, filters=8)
    weights = save_model(model, tmp_path / "model.safetensors")
    output = tmp_path / "map.tif"
    peak = measure(
        "predict", tmp_path / "image.tif", "--model", weights, "-o", output, "--engine", "torch", "--memory", 2000
    )
    assert peak <= 2000
    assert output.read_bytes()[2:4] == b"+\x00"  # BigTIFF
    assert output.stat().st_size < 2**25
    with rasterio.open(output) as src:
        inside = src.read(1, window=Window(59_990, 60_990, 920, 720))
        assert (inside != 255).sum() == 700 * 900
        assert (src.read(1, window=Window(0, 0, 2000, 2000)) == 255).all()
