"""Learned priors: the network's field of view, learning, and refused inputs."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from landprior.errors import InputError, ModelError, PriorError
from landprior.implicit.networks import build_prior_network
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.coarse import CoarseLayers
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.fusion import PriorModel
from landprior.landcover.prior.learned import LabelledPlace, LearnedPrior, learn_prior, settings_of
from landprior.landcover.prior.settings import PriorSettings, prior_settings
from landprior.landcover.training.layers import PriorLayer
from landprior.landcover.training.model import load_model
from landprior.raster.windows import iter_blocks

pytestmark = pytest.mark.filterwarnings("ignore::landprior.errors.CollapseWarning")  # trainings of only eight steps

NARROW = PriorSettings(blur_sigma=5, blur_radius=8)


def quick(**training):
    return prior_settings(filters=4, patch_size=40, batch_size=4, training={"steps": 8, "epoch_steps": 4} | training)


@pytest.fixture
def place(make_raster, enviroatlas, coarse):
    """Coarse layers of 90 x 110 px, and labels: impervious within 3 px of roads, water in water bodies, else NLCD."""
    codes = coarse(90, 110, codes=(41, 81))
    roads, water = np.zeros((2, 90, 110), dtype=bool)
    roads[30], roads[:, 70] = True, True
    water[60:80, 10:40] = True
    wide = sum(np.roll(roads, (d, e), (0, 1)) for d in range(-3, 4) for e in range(-3, 4)) > 0
    labels = np.where(codes == 41, 40, 70)
    labels[wide], labels[water] = 20, 10
    labels[:, 100:] = 0  # not labelled
    files = {"nlcd": codes, "roads": roads, "waterbodies": water, "labels": labels}
    paths = {name: make_raster(f"{name}.tif", values.astype(np.uint8)) for name, values in files.items()}
    return LabelledPlace(
        nlcd=paths["nlcd"],
        labels=paths["labels"],
        layers={name: paths[name] for name in ("waterbodies", "roads")},
        cooccurrence=load_cooccurrence(None, enviroatlas),
    )


@pytest.fixture
def learned(tmp_path, place):
    return learn_prior([place], tmp_path / "learned.safetensors", quick(), prior=NARROW)


def build(place, output, model, **changes):
    options = {"cooccurrence": place.cooccurrence, "layers": place.layers, "learned": model} | changes
    build_prior(place.nlcd, output, **options)
    with PriorLayer(output) as belief:
        return belief.read()


def test_the_network_sees_exactly_ten_pixels_around():
    torch.manual_seed(0)
    network = build_prior_network(3, 4, filters=6).eval()
    assert network.halo == 10
    x = torch.randn(1, 3, 41, 41)
    y = x.clone()
    y[0, :, 20, 20] += 5
    with torch.no_grad():
        change = (network(x) - network(y)).abs().amax((0, 1)) > 0
    rows, columns = torch.nonzero(change, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 10, 30)


def test_it_learns_the_classes_from_the_layers(tmp_path, place, enviroatlas):
    settings = prior_settings(filters=16, patch_size=48, batch_size=8, training={"steps": 300, "learning_rate": 1e-2})
    model = learn_prior([place], tmp_path / "learned.safetensors", settings, prior=NARROW)
    assert model.bands == 0
    assert model.extras == ("nlcd", "roads", "waterbodies")  # in a fixed order, regardless of the order given
    assert model.supervised
    assert "verdict" not in model.record
    learnt, _ = build(place, tmp_path / "learned.tif", model)
    by_hand, _ = build(place, tmp_path / "hand.tif", None, settings=NARROW)
    with rasterio.open(place.labels) as src:
        truth = enviroatlas.encode(src.read(1))
    known = truth >= 0
    assert (learnt.argmax(0) == truth)[known].mean() > 0.95
    assert (learnt.argmax(0) == truth)[known].mean() > (by_hand.argmax(0) == truth)[known].mean() + 0.03


def test_windows_give_the_same_as_the_whole(place, learned):
    with CoarseLayers(place.nlcd, place.layers) as coarse:
        base = PriorModel.of(coarse, place.cooccurrence, settings=NARROW)
        prior = LearnedPrior(learned, base, device="cpu")
        assert prior.halo == base.halo + 10
        (whole,) = iter_blocks(coarse.grid, size=4096, halo=prior.halo)
        expected = prior.window(whole, *coarse.read(whole.outer))
        found = np.full_like(expected, np.nan)
        for block in iter_blocks(coarse.grid, size=32, halo=prior.halo):
            found[(slice(None), *block.core.toslices())] = prior.window(block, *coarse.read(block.outer))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_nodata_in_nlcd_stays_nodata(tmp_path, place, learned, make_raster, coarse):
    codes = coarse(90, 110, codes=(41, 81))
    codes[:, 60:] = 0
    path = make_raster("holes.tif", codes)
    prior, valid = build(replace(place, nlcd=path), tmp_path / "prior.tif", learned)
    assert valid[:, :60].all()
    assert not valid[:, 60 + 8 :].any()  # beyond the blur
    np.testing.assert_allclose(prior.sum(0), valid, atol=1e-3)


def test_the_file_records_the_model_and_its_settings(tmp_path, place, learned):
    build(place, tmp_path / "prior.tif", learned)
    with rasterio.open(tmp_path / "prior.tif") as src:
        tags = src.tags(ns="LANDPRIOR")
    assert tags["learned"] == learned.digest()
    assert PriorSettings.model_validate_json(tags["settings"]) == NARROW  # the widths of the model


def test_a_learned_prior_is_the_same_after_saving_and_loading(tmp_path, place, learned):
    again = load_model(tmp_path / "learned.safetensors")
    assert again.digest() == learned.digest()
    assert again.extras == learned.extras
    assert settings_of(again) == NARROW
    first, _ = build(place, tmp_path / "a.tif", learned)
    second, _ = build(place, tmp_path / "b.tif", again)
    np.testing.assert_array_equal(first, second)


def test_mismatched_layers_settings_and_models_are_refused(
    tmp_path, place, learned, chesapeake, make_image, make_model
):
    output = tmp_path / "prior.tif"
    with pytest.raises(PriorError, match="NLCD and roads, waterbodies: give --waterbodies"):
        build(place, output, learned, layers={"roads": place.layers["roads"]})
    with pytest.raises(PriorError, match="drop --buildings"):
        build(place, output, learned, layers={**place.layers, "buildings": place.layers["roads"]})
    with pytest.raises(PriorError, match="learned for scheme 'enviroatlas-5', not 'chesapeake-4'"):
        build(place, output, learned, cooccurrence=load_cooccurrence(None, chesapeake))
    with pytest.raises(PriorError, match="blur of sigma 5 m and radius 8 m"):
        build(place, output, learned, settings=PriorSettings())
    with pytest.raises(PriorError, match="leave --fusion conserving out"):
        build(place, output, learned, settings=PriorSettings(fusion="conserving"))
    with pytest.raises(ModelError, match="made with: landprior learn-prior"):
        build(place, output, make_model())
    with pytest.raises(ModelError, match="build-prior --learned"):
        predict(make_image("image.tif", 20, 20), tmp_path / "map.tif", learned)
    assert not output.exists()


def test_tiles_need_the_same_layers_and_labels(tmp_path, place, make_raster):
    other = replace(place, layers={"roads": place.layers["roads"]}, name="other")
    with pytest.raises(InputError, match="different inputs or targets"):
        learn_prior([place, other], tmp_path / "x.safetensors", quick(), prior=NARROW)
    empty = replace(place, labels=make_raster("none.tif", np.zeros((90, 110), np.uint8)))
    with pytest.raises(InputError, match="no label where"):
        learn_prior([empty], tmp_path / "x.safetensors", quick(), prior=NARROW)
    with pytest.raises(InputError, match="no labelled tile"):
        learn_prior([], tmp_path / "x.safetensors", quick())


def test_the_same_tiles_give_the_same_prior(tmp_path, place, learned):
    again = learn_prior([place], tmp_path / "again.safetensors", quick(), prior=NARROW)
    assert again.digest() == learned.digest()
    assert learn_prior([place], tmp_path / "b.safetensors", quick(seed=1), prior=NARROW).digest() != again.digest()
