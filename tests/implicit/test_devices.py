"""Devices: which networks are compiled, and how arrays are transferred."""

import numpy as np
import pytest
import torch
from torch import nn

from landprior.errors import ModelError
from landprior.implicit import devices, training
from landprior.implicit.devices import (
    WORTH_COMPILING,
    Uploader,
    choose_device,
    compile_if_worthwhile,
    count_operations,
    subnormals_flushed,
)
from landprior.implicit.networks import build_fcn
from landprior.implicit.objectives import Batch
from landprior.implicit.settings import TrainingSettings
from landprior.implicit.training import fit, make_fabric

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_an_error():
    assert choose_device("auto") == CPU
    for ask in (lambda: choose_device("cuda"), lambda: make_fabric(device="cuda")):
        with pytest.raises(ModelError, match="no CUDA device"):
            ask()


def test_operations_of_a_convolution_and_a_product():
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Flatten(2), nn.Linear(70, 4))
    # two per multiply-add: 3 x 5 x 5 of these for each of 8 x 10 x 7 values, and 70 for each of 8 x 4
    assert count_operations(network, torch.zeros(1, 3, 10, 7)) == 2 * (75 * 8 * 70 + 70 * 8 * 4)


@pytest.mark.parametrize(
    ("operations", "device", "wanted", "compiled"),
    [
        (WORTH_COMPILING, CUDA, "auto", True),
        (WORTH_COMPILING - 1, CUDA, "auto", False),
        (WORTH_COMPILING, CPU, "auto", False),
        (0, CPU, "on", True),
        (WORTH_COMPILING, CUDA, "off", False),
    ],
)
def test_which_networks_are_compiled(monkeypatch, operations, device, wanted, compiled):
    seen = []
    network = nn.Linear(2, 2)
    monkeypatch.setattr(network, "compile", lambda: seen.append(network), raising=False)
    assert compile_if_worthwhile(network, operations, device, wanted) is compiled
    assert len(seen) == compiled


@pytest.mark.filterwarnings("ignore::landprior.errors.CollapseWarning")  # only three steps
def test_a_compiled_network_trains_the_same_and_keeps_its_names(monkeypatch):
    """With a stand-in for torch's compiler, which needs a C++ compiler."""
    calls = []

    def count(graph, _):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", _compile_with(count))
    found = {}
    for wanted in ("off", "on"):
        torch.manual_seed(0)
        network = build_fcn(2, 3, filters=4)
        batch = Batch(inputs=torch.randn(2, 2, 16, 16), log_prior=torch.full((2, 3, 16, 16), 1 / 3).log())
        options = {"steps": 3, "warmup_steps": 1, "warmup": "ce", "epoch_steps": 3, "compile": wanted}
        fit(network, lambda _, batch=batch: batch, TrainingSettings(**options), fabric=make_fabric("fp32", "cpu"))
        found[wanted] = network.state_dict()
        assert bool(calls) is (wanted == "on")
    assert found["on"].keys() == found["off"].keys()
    for name, values in found["on"].items():
        torch.testing.assert_close(values, found["off"][name])


def _compile_with(backend):
    original = nn.Module.compile

    def compile_module(self):
        return original(self, backend=backend)

    return compile_module


def test_a_long_run_on_a_gpu_is_compiled_before_it_starts(monkeypatch):
    """The device only claims to be a CUDA device."""
    asked = []
    monkeypatch.setattr(
        training,
        "compile_if_worthwhile",
        lambda _, operations, device, wanted: asked.append((operations, device, wanted)),
    )
    network = nn.Conv2d(1, 2, 3, padding=1)
    batch = Batch(inputs=torch.zeros(5, 1, 8, 8), log_prior=torch.zeros(5, 2, 8, 8))

    class Fabric:
        device = CUDA

        @staticmethod
        def to_device(values):
            return values

    monkeypatch.setattr(network, "to", lambda _: network)
    training._compile(network, lambda _: batch, TrainingSettings(steps=100, warmup_steps=10), Fabric())
    assert asked == [(3 * 100 * 5 * 2 * (9 * 2 * 64), CUDA, "auto")]


def test_subnormal_numbers_are_zero_only_during_training_on_a_cpu():
    def product():
        return float(torch.tensor([1e-30]) * torch.tensor([1e-10]))

    assert product() > 0
    with subnormals_flushed(CUDA):
        assert product() > 0
    with subnormals_flushed(CPU):
        assert product() == 0
        with subnormals_flushed(CPU):
            assert product() == 0
        assert product() == 0
    assert product() > 0
    seen = []

    def feed(step):
        seen.append((step, product()))
        if step == 2:
            raise ZeroDivisionError
        return Batch(torch.zeros(1, 2, 12, 12), torch.full((1, 3, 12, 12), 1 / 3).log())

    settings = TrainingSettings(loss="ce", steps=5, precision="fp32")
    with pytest.raises(ZeroDivisionError):
        fit(build_fcn(2, 3, filters=4), feed, settings, fabric=make_fabric("fp32", "cpu"))
    assert seen == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert product() > 0


def test_arrays_are_sent_unchanged():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    uploader = Uploader(CPU)
    image, nothing = uploader.send(values, None).wait()
    assert nothing is None
    np.testing.assert_array_equal(image.numpy(), values)
    np.testing.assert_array_equal(uploader.to_device(values).numpy(), values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_arrays_sent_to_a_gpu_during_other_transfers():
    uploader, rng = Uploader(devices.choose_device("cuda")), np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (4, 1000, 1000), dtype=np.uint8) for _ in range(8)]
    transfers = [uploader.send(values) for values in arrays]
    doubled = [one.wait()[0].float().mul(2) for one in transfers]
    for values, found in zip(arrays, doubled, strict=True):
        np.testing.assert_array_equal(found.cpu().numpy(), 2.0 * values)
