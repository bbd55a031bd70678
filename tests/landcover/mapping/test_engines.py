"""Engines that run the network: OpenVINO compared with torch, choices, memory."""

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import rasterio
import torch

from landprior.errors import InputError
from landprior.implicit.networks import Ensemble, build_fcn
from landprior.landcover.mapping import engines as engine_module
from landprior.landcover.mapping import memory
from landprior.landcover.mapping.engines import (
    LEAST_STRIP,
    EngineName,
    OpenVinoEngine,
    Precision,
    TorchEngine,
    make_engine,
)
from landprior.landcover.mapping.finish import Finish, GuidedFilter
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.raster.reading import open_raster

OPENVINO = pytest.mark.needs("openvino", "nncf")


@pytest.fixture
def samples(rng):
    return [rng.normal(size=(1, 4, 64, 64)).astype(np.float32) for _ in range(4)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_fcn(4, 5, filters=8).eval()


def expected(network, x):
    with torch.inference_mode():
        return network(x)


@OPENVINO
def test_openvino_in_single_precision_equals_torch(network, samples):
    engine = OpenVinoEngine(network, samples, "fp32")
    for shape in ((64, 64), (37, 90), (11, 11)):
        x = torch.randn(1, 4, *shape)
        torch.testing.assert_close(engine.start(x)(), expected(network, x), rtol=0, atol=1e-4)


@OPENVINO
def test_openvino_runs_ensembles_and_mirrored_images(samples):
    torch.manual_seed(0)
    network = Ensemble([build_fcn(4, 5, filters=3) for _ in range(2)], flips=True).eval()
    x = torch.randn(1, 4, 30, 41)
    found = OpenVinoEngine(network, samples, "fp32").start(x)()
    torch.testing.assert_close(found, expected(network, x), rtol=0, atol=1e-4)


@OPENVINO
def test_strips_of_openvino_leave_no_seams(network, samples, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    engine = OpenVinoEngine(network, samples, "fp32")
    for rows in (3 * LEAST_STRIP + 7, 3 * LEAST_STRIP - 1):  # three strips, and a single one
        x = torch.randn(1, 4, rows, 50)
        torch.testing.assert_close(engine.start(x)(), expected(network, x), rtol=0, atol=1e-4)


@OPENVINO
def test_windows_can_be_started_before_others_are_finished(network, samples, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine = OpenVinoEngine(network, samples, "fp32")
    windows = [torch.randn(1, 4, rows, 50) for rows in (60, 30, 200, 10)]
    waiting = [engine.start(x) for x in windows]
    for x, wait in reversed(list(zip(windows, waiting, strict=True))):
        torch.testing.assert_close(wait(), expected(network, x), rtol=0, atol=1e-4)
    assert len(engine._idle) == 5  # the third window has two strips
    engine.start(windows[0])()
    assert len(engine._idle) == 5  # reused


@pytest.mark.parametrize("rows", [1, LEAST_STRIP, 3 * LEAST_STRIP + 7])
def test_strips_of_torch_leave_no_seams(network, monkeypatch, rows):
    monkeypatch.setattr(engine_module, "STRIP_BYTES", 0)
    engine, seen = TorchEngine(network, torch.device("cpu"), "fp32"), []
    x = torch.randn(1, 4, rows, 50)
    wanted = expected(network, x)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    torch.testing.assert_close(engine.start(x)(), wanted, rtol=0, atol=1e-5)
    assert len(seen) == -(-rows // LEAST_STRIP)
    assert sum(seen) == rows + 2 * network.halo * (len(seen) - 1)


def test_strips_are_as_high_as_memory_allows(network):
    engine, seen = TorchEngine(network, torch.device("cpu"), "fp32"), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    engine.start(torch.randn(1, 4, 1000, 522))  # 8 filters
    assert len(seen) > 1
    for shape in seen:
        assert shape[2] * shape[3] * 8 * 4 <= engine_module.STRIP_BYTES


@OPENVINO
def test_int8_does_not_depend_on_the_window(network, samples):
    """The scales are fixed once, so that part of a window gives the same values."""
    engine = OpenVinoEngine(network, samples, "int8")
    x = torch.from_numpy(samples[0])
    whole, part = engine.start(x)(), engine.start(x[:, :, :40, :40])()
    torch.testing.assert_close(part[:, :, :35, :35], whole[:, :, :35, :35], rtol=0, atol=1e-6)
    assert (whole - expected(network, x)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("asked", "pixels", "there", "found"),
    [
        pytest.param({}, 10**9, True, ("openvino", "int8"), marks=OPENVINO),
        ({}, 1000, True, ("torch", "fp32")),  # preparing it would take longer than the image
        ({}, 10**9, False, ("torch", "fp32")),
        pytest.param({"precision": "int8"}, 1000, True, ("openvino", "int8"), marks=OPENVINO),
        ({"precision": "bf16"}, 1000, True, ("torch", "bf16")),
        pytest.param({"precision": "fp32"}, 10**9, True, ("openvino", "fp32"), marks=OPENVINO),
        ({"name": "torch"}, 10**9, True, ("torch", "fp32")),
        pytest.param({"name": "openvino"}, 1000, True, ("openvino", "int8"), marks=OPENVINO),
        pytest.param({"name": "openvino", "precision": "bf16"}, 1000, True, ("openvino", "bf16"), marks=OPENVINO),
    ],
)
def test_the_choice_of_engine_and_precision(network, samples, monkeypatch, asked, pixels, there, found):
    monkeypatch.setattr(engine_module, "installed", lambda: there)
    engine = make_engine(network, lambda: samples, device="cpu", pixels=pixels, **asked)
    assert (engine.name, engine.precision) == found


@pytest.mark.parametrize(
    ("asked", "there", "text"),
    [
        ({"name": "openvino"}, False, r"pip install 'landprior\[cpu\]'"),
        ({"precision": "int8"}, False, "int8 needs OpenVINO"),
        ({"name": "torch", "precision": "int8"}, True, "int8 needs OpenVINO"),
    ],
)
def test_unavailable_engines_are_errors(network, samples, monkeypatch, asked, there, text):
    monkeypatch.setattr(engine_module, "installed", lambda: there)
    with pytest.raises(InputError, match=text):
        make_engine(network, lambda: samples, device="cpu", **asked)


def test_names_match_the_choices_of_the_command():
    from landprior.cli.predict import command

    choices = {p.name: tuple(p.type.choices) for p in command.params if p.name in ("engine", "precision")}
    assert choices == {"engine": get_args(EngineName), "precision": get_args(Precision)}


def test_bf16_on_a_cpu_is_close(network):
    x = torch.randn(1, 4, 50, 50)
    found = TorchEngine(network, torch.device("cpu"), "bf16").start(x)()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(network, x), rtol=0, atol=0.02)


# -- whole maps ------------------------------------------------------------------------------------


def read(path):
    with open_raster(path) as src:
        return src.read(1)


@OPENVINO
def test_maps_of_both_engines_agree(tmp_path, make_image, make_prior, make_model):
    image, prior = make_image("image.tif", 150, 170), make_prior("prior.tif", 150, 170)
    model, options = make_model(), MapOptions(finish="none", probabilities=True)
    maps = {}
    for name, engine in {
        "torch": {"engine": "torch"},
        "fp32": {"engine": "openvino", "precision": "fp32"},
        "int8": {"engine": "openvino"},
    }.items():
        path = predict(
            image, tmp_path / f"{name}.tif", model, posterior=prior, window_size=64, options=options, **engine
        )
        maps[name] = read(path)
        with rasterio.open(path) as src:
            tags = src.tags(ns="LANDPRIOR")
        assert (tags["engine"], tags["precision"]) == (
            engine["engine"],
            engine.get("precision", "int8" if name == "int8" else "fp32"),
        )
    assert (maps["fp32"] == maps["torch"]).mean() > 0.9999
    with open_raster(tmp_path / "torch_probabilities.tif") as src:
        second, first = np.sort(src.read(), axis=0)[-2:]
    clear = first - second > 0.2  # random weights separate classes badly; benchmarks/engines.py has trained ones
    assert clear.mean() > 0.7
    assert (maps["int8"] == maps["torch"])[clear].mean() > 0.999


def test_windows_kept_from_the_first_pass_do_not_change_the_result(
    tmp_path, make_image, make_prior, make_model, monkeypatch
):
    image, prior = make_image("image.tif", 150, 170), make_prior("prior.tif", 150, 170)
    model, options = make_model(), MapOptions(finish="none", probabilities=True, encoding="float32")
    forwards = []
    call = TorchEngine.start
    monkeypatch.setattr(TorchEngine, "start", lambda self, x: forwards.append(x.shape) or call(self, x))
    found, counts = [], []
    for number, room in enumerate((0, 64 * 64 * (5 * 4 + 1) * 3, 10**9)):
        forwards.clear()
        monkeypatch.setattr("landprior.landcover.mapping.predict.compute_budget", lambda *_, room=room: room)
        path = predict(image, tmp_path / f"{number}.tif", model, posterior=prior, window_size=64, options=options)
        with open_raster(path.with_name(f"{path.stem}_probabilities.tif")) as src:
            found.append(src.read())
        counts.append(len(forwards))
    assert counts == [18, 14, 9]  # nine windows: all computed twice; the four that fit only once; all only once
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_too_little_memory_is_an_error(tmp_path, make_image, make_model):
    with pytest.raises(InputError, match=r"--memory 100 is too little for this model: give \d+ or more"):
        predict(make_image("image.tif", 40, 40), tmp_path / "map.tif", make_model(), memory=100)
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize(("free", "kept"), [(2**40, 2**30), (2**31, 2**29)])
def test_the_memory_budget_has_a_limit_for_several_workers(make_model, monkeypatch, free, kept):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert memory.compute_budget(None, make_model(), 512) == kept


def test_the_memory_budget_counts_the_finish(make_model):
    model = make_model()
    plain = memory.compute_budget(4000, model, 2048)
    finished = memory.compute_budget(4000, model, 2048, Finish.of((1.0, 1.0)))
    bands, classes, pixels = model.bands, len(model.scheme), (2048 + 2 * GuidedFilter.of((1.0, 1.0)).halo) ** 2
    least = 4 * pixels * 2 * (bands + classes)  # image, shares and results, one copy of each
    assert plain - finished > least - 4 * 4 * max(model.filters, classes) * (2048 + 2 * model.network.halo) ** 2
    assert finished < plain


def test_windows_without_data_are_not_computed(tmp_path, make_model, make_raster, rng, monkeypatch):
    values = np.zeros((4, 300, 300), dtype=np.uint8)
    values[:, 140:170, 20:50] = rng.integers(1, 255, (4, 30, 30))
    image = make_raster("image.tif", values, nodata=0)
    forwards = []
    call = TorchEngine.start
    monkeypatch.setattr(TorchEngine, "start", lambda self, x: forwards.append(x.shape) or call(self, x))
    codes = read(predict(image, tmp_path / "map.tif", make_model(), window_size=32, options=MapOptions(finish="none")))
    assert len(forwards) == 4  # out of a hundred windows
    np.testing.assert_array_equal(codes == 255, (values == 0).all(0))
