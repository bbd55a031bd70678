"""An epitome as a model: saving, loading, predicting, drawing."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landprior.cli import main
from landprior.errors import InputError, ModelError, PriorError
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.model import load_model, save_model
from landprior.landcover.training.tiles import Tile, label_tile
from landprior.raster.reading import open_raster
from landprior.run import Run
from landprior.superres.epitome_figure import draw_epitome
from landprior.superres.epitome_model import train_epitome_model
from landprior.superres.settings import EpitomeSettings

SETTINGS = EpitomeSettings(size=12, patch=5, steps=40, patches=32, epitomes=2, embedded=800)


@pytest.fixture
def scene(chesapeake):
    """Water on the left, trees on the right, with a gap, and the corresponding codes."""
    rng = np.random.default_rng(3)
    image = np.full((3, 50, 60), 60) + rng.normal(0, 5, (3, 50, 60))
    image[:, :, 30:] += 80 + rng.normal(0, 25, (3, 50, 30))
    image = np.clip(image, 1, 255).astype(np.uint8)
    codes = np.where(np.arange(60) < 30, 11, 41)[None].repeat(50, 0)
    valid = np.ones((50, 60), dtype=bool)
    valid[:4, :4] = False
    image[:, ~valid] = 0
    tile = Tile(
        name="scene",
        image=torch.from_numpy(image),
        prior=torch.full((4, 50, 60), 0.25, dtype=torch.float16),
        valid=torch.from_numpy(valid),
        scheme=chesapeake,
    )
    return tile, codes, load_cooccurrence(None, chesapeake).table([11, 41])


@pytest.fixture
def model(scene):
    tile, codes, table = scene
    return train_epitome_model([tile], [codes], table, SETTINGS, run=Run(device="cpu"))


def test_it_maps_the_classes_of_its_codes_also_after_saving_and_loading(scene, model, make_raster, tmp_path):
    tile, _, _ = scene
    image = make_raster("image.tif", tile.image.numpy(), nodata=0)
    path = save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(path)
    assert (loaded.architecture, loaded.loss) == ("epitome", "epitome")
    maps = {}
    for name, chosen, window in (("direct", model, None), ("file", loaded, None), ("windows", loaded, 16)):
        with open_raster(
            predict(image, tmp_path / f"{name}.tif", chosen, run=Run(device="cpu"), window_size=window)
        ) as src:
            maps[name] = src.read(1)
    np.testing.assert_array_equal(maps["direct"], maps["file"])
    np.testing.assert_array_equal(maps["direct"], maps["windows"])
    water, trees = tile.scheme.codes[:2]
    assert (maps["direct"][:4, :4] == 255).all()
    assert (maps["direct"][5:, :27] == water).mean() > 0.97
    assert (maps["direct"][5:, 33:] == trees).mean() > 0.97
    with ImageLayer(image) as layer:
        values, seen = layer.read()
    x = model.statistics.standardise(torch.from_numpy(values), torch.from_numpy(seen))
    with torch.no_grad():
        best = model.network(x[None])[0].argmax(0).numpy()
    np.testing.assert_array_equal(tile.scheme.codes[best][seen], maps["direct"][seen])


def test_labels_instead_of_codes(scene, chesapeake):
    tile, _, _ = scene
    classes = np.where(np.arange(60) < 30, 2, 3)[None].repeat(50, 0).astype(np.int16)
    labelled = label_tile("labelled", tile.image, classes, scheme=chesapeake, seen=tile.valid.numpy())
    found = train_epitome_model([labelled], settings=SETTINGS, run=Run(device="cpu"))
    assert found.supervised
    x = found.statistics.standardise(tile.image, tile.valid)
    with torch.no_grad():
        best = found.network(x[None])[0].argmax(0).numpy()
    assert (best[5:, :27] == 2).mean() > 0.97
    assert (best[5:, 33:] == 3).mean() > 0.97


def test_the_picture_and_the_command(model, make_model, tmp_path):
    path = save_model(model, tmp_path / "model.safetensors")
    picture = tmp_path / "epitome.png"
    result = CliRunner().invoke(main, ["epitome", str(path), "-o", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ModelError, match="not an epitome"):
        draw_epitome(make_model(), tmp_path / "other.png")
    result = CliRunner().invoke(main, ["epitome", str(path), "-o", str(picture)])
    assert result.exit_code == 1


def test_errors(scene):
    tile, codes, table = scene
    with pytest.raises(InputError, match="shrink"):
        train_epitome_model([tile], [codes], table, SETTINGS.model_copy(update={"shrink": 2}))
    with pytest.raises(InputError, match="coarse codes, or tiles with labels"):
        train_epitome_model([tile], settings=SETTINGS)
    with pytest.raises(InputError, match="must be on the same grid"):
        train_epitome_model([tile], [codes[:, 1:]], table, SETTINGS)
    with pytest.raises(PriorError, match="no pixel"):
        train_epitome_model([tile], [np.zeros_like(codes)], table, SETTINGS, run=Run(device="cpu"))
