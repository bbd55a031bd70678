"""The demo, end to end."""

import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from landprior.landcover.synthetic.demo import run_demo, write_scene


def test_a_scene_on_disk_is_a_tile_of_a_workspace(tmp_path):
    tile = write_scene(tmp_path, size=128, seed=2)
    assert tile.id == "temperate/seed-2"
    assert sorted(p.name for p in tile.path.glob("*.tif")) == [
        "buildings.tif",
        "labels.tif",
        "naip.tif",
        "nlcd.tif",
        "roads.tif",
        "waterbodies.tif",
        "waterways.tif",
    ]
    with rasterio.open(tile.file("naip")) as src:
        assert src.count == 4
        assert "alpha" not in [kind.name for kind in src.colorinterp]


@pytest.mark.slow
def test_the_demo_reaches_the_promised_accuracy(tmp_path):
    """r is at least ten points above the prior's most probable class, and QR is above cross-entropy."""
    result = run_demo(tmp_path)
    scores = {name: score.accuracy for name, score in result.scores.items()}
    assert scores["QR r"] >= scores["prior (most probable)"] + 0.10
    assert scores["QR r"] > scores["CE"]
    assert scores["QR r"] > scores["QR r, not finished"]
    assert scores["QR q"] > scores["CE"]
    assert scores["QR r, 100 points"] >= max(scores["QR r"] + 0.01, 0.865)
    assert cog_validate(result.map, strict=True, quiet=True)[0]
    assert result.figure.stat().st_size > 100_000
