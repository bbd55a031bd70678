"""The U-Net: its receptive field, windows, file, and engines."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from landprior.errors import InputError, ModelError
from landprior.implicit.networks import UNET_HALO, UNET_STRIDE, Ensemble, build_unet
from landprior.landcover.mapping.engines import TorchEngine, make_engine
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.files import train_files
from landprior.landcover.training.model import load_model, save_model

pytestmark = [
    pytest.mark.needs("monai"),
    pytest.mark.filterwarnings("ignore::landprior.errors.HarmWarning", "ignore::landprior.errors.CollapseWarning"),
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build_unet(3, 4, filters=4)
    for _ in range(3):  # gives it batch statistics
        network(torch.randn((2, 3, 64, 64)))
    return network.eval()


def test_its_shape_is_that_of_the_paper():
    widths = [
        layer.out_channels
        for layer in build_unet(4, 5).modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3)
    ]
    assert (min(widths), max(widths)) == (32, 64)
    assert len(widths) == 18  # two convolutions on each of five levels down and four up


@torch.no_grad()
def test_any_size_and_probabilities(network):
    log_q = network(torch.randn((1, 3, 37, 50)))
    assert log_q.shape == (1, 4, 37, 50)
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones((1, 37, 50)))


def test_its_halo_covers_its_receptive_field(network):
    """The output at a pixel depends on nothing beyond the halo, but on pixels not far within it."""
    side = 2 * UNET_HALO + 64
    x = torch.randn((1, 3, side, side), requires_grad=True)
    middle = side // 2 // UNET_STRIDE * UNET_STRIDE
    reach = 0
    for shift in (0, 15):
        gradient = torch.autograd.grad(network(x)[0, 0, middle + shift, middle + shift], x, retain_graph=False)[0]
        rows, columns = torch.nonzero(gradient[0].abs().sum(0), as_tuple=True)
        reach = max(reach, *(int((at - middle - shift).abs().max()) for at in (rows, columns)))
    assert 80 < reach <= UNET_HALO  # the largest distance needs a single path through all maxima


@torch.no_grad()
def test_strips_leave_no_seams(network, monkeypatch):
    monkeypatch.setattr("landprior.landcover.mapping.engines.STRIP_BYTES", 1)
    x = torch.randn((1, 3, 1500, 40), generator=torch.Generator().manual_seed(1))
    engine = TorchEngine(network, torch.device("cpu"), "fp32")
    seen = []
    monkeypatch.setattr(engine, "_forward", lambda part: seen.append(part.shape[2]) or network(part))
    torch.testing.assert_close(engine.start(x)(), network(x), atol=1e-5, rtol=1e-4)
    assert seen == [496 + UNET_HALO, 496 + 2 * UNET_HALO, 508 + UNET_HALO]  # strips start at multiples of the stride


@pytest.fixture
def model(make_model, enviroatlas):
    torch.manual_seed(1)
    network = build_unet(3, len(enviroatlas), filters=4)
    network(torch.randn((4, 3, 64, 64)))
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(1.5)  # make the classes vary in space
    return replace(make_model(bands=3, filters=4), network=network.eval(), architecture="unet")


@pytest.mark.parametrize(
    ("height", "width", "window", "flips"),
    [
        (290, 333, 100, False),  # rounded to 112, a multiple of the stride
        (290, 333, 100, True),
        (288, 304, 100, True),  # a whole number of strides
        (301, 289, 160, True),
        (130, 345, 96, True),
    ],
)
def test_windows_do_not_matter(tmp_path, make_image, model, height, width, window, flips):
    image = make_image("naip.tif", height, width, bands=3)
    model = replace(model, network=Ensemble([model.network], flips=True)) if flips else model
    found = []
    for side in (1000, window):
        predict(image, tmp_path / f"{side}.tif", model, window_size=side, options=MapOptions(probabilities=True))
        with rasterio.open(tmp_path / f"{side}_probabilities.tif") as src:
            found.append(src.read().astype(np.float32))
    assert found[0].std(axis=(1, 2)).max() > 0.01
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("flips", [False, True])
@torch.no_grad()
def test_strips_of_a_mirrored_unet_leave_no_seams(network, monkeypatch, flips):
    monkeypatch.setattr("landprior.landcover.mapping.engines.STRIP_BYTES", 1)
    ensemble = Ensemble([network], flips=flips).eval()
    x = torch.randn((1, 3, 1383, 41), generator=torch.Generator().manual_seed(2))
    engine = TorchEngine(ensemble, torch.device("cpu"), "fp32")
    rows = []
    monkeypatch.setattr(engine, "_forward", lambda part: rows.append(part.shape[2]) or ensemble(part))
    torch.testing.assert_close(engine.start(x)(), ensemble(x), atol=1e-5, rtol=1e-4)
    assert len(rows) == 3


@torch.no_grad()
def test_a_mirrored_image_is_padded_before_it_is_mirrored(network):
    """By hand: pad to whole strides, mirror, predict, mirror back, remove the padding."""
    x = torch.randn((1, 3, 37, 50), generator=torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(x, (0, 14, 0, 11))
    axes = ((), (2,), (3,), (2, 3))
    found = [torch.flip(network(torch.flip(padded, axis)), axis)[..., :37, :50].exp() for axis in axes]
    torch.testing.assert_close(Ensemble([network], flips=True)(x).exp(), sum(found) / 4)


def test_round_trip(tmp_path, model):
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert (again.kind, again.network.stride, again.network.halo) == ("unet", 16, 112)
    x = torch.randn((1, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(again.network(x), model.network(x))


def test_a_unet_cannot_start_from_an_fcn(tmp_path, make_image, make_prior, quick):
    image, prior = make_image("naip.tif", 64, 64), make_prior("prior.tif", 64, 64)
    train_files([(image, prior)], tmp_path / "fcn.safetensors", settings=quick())
    with pytest.raises(ModelError, match=r"4 filters \(fcn, receptive field 7\).*4 filters \(unet\)"):
        train_files(
            [(image, prior)],
            tmp_path / "m.safetensors",
            settings=quick(network="unet"),
            init=tmp_path / "fcn.safetensors",
        )


def test_openvino_is_not_used_for_a_unet(network):
    assert make_engine(network, list, device="cpu", pixels=10**9).name == "torch"
    with pytest.raises(InputError, match="OpenVINO supports only the FCN"):
        make_engine(network, list, name="openvino", device="cpu")


def test_without_monai_the_error_suggests_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.basic_unet", None)
    with pytest.raises(InputError, match=r"pip install 'landprior\[unet\]'"):
        build_unet(3, 4)
