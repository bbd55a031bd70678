"""Model files: saving and loading, and bad files, which are refused in one line."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from landprior.errors import MissingInputError, ModelError, OutputExistsError
from landprior.landcover.training.model import KEY, load_model, save_model


def test_round_trip(tmp_path, make_model):
    model = make_model(record={"settings": {"training": {"loss": "rq"}}})
    path = save_model(model, tmp_path / "model.safetensors")
    again = load_model(path)
    x = torch.randn(1, 4, 20, 21)
    torch.testing.assert_close(again.network(x), model.network(x), rtol=0, atol=0)
    assert again.scheme == model.scheme
    assert again.bands == 4
    assert again.loss == "rq"
    assert again.network.halo == 5
    np.testing.assert_array_equal(again.statistics.mean, model.statistics.mean)
    assert again.digest() == model.digest()


def test_digest_changes_with_a_weight(make_model):
    model = make_model()
    before = model.digest()
    with torch.no_grad():
        next(model.network.parameters()).flatten()[0] += 1e-3
    assert model.digest() != before


def test_existing_model_is_kept(tmp_path, make_model):
    path = save_model(make_model(seed=1), tmp_path / "model.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        save_model(make_model(seed=2), path)
    assert path.read_bytes() == before
    save_model(make_model(seed=2), path, overwrite=True)
    assert path.read_bytes() != before


def test_the_error_for_a_missing_model_suggests_train(tmp_path):
    with pytest.raises(MissingInputError, match=r"no model at .*landprior train --image"):
        load_model(tmp_path / "none.safetensors")


def test_pickled_model_is_refused(tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(ModelError, match="not a safetensors model"):
        load_model(path)


def test_truncated_model_is_refused(tmp_path, make_model):
    path = save_model(make_model(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        load_model(path)


def test_foreign_safetensors_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="not written by landprior"):
        load_model(path)


def edit(path, change):
    with safe_open(path, framework="pt") as handle:
        metadata = json.loads(handle.metadata()[KEY])
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dictionary
    change(metadata)
    save_file(state, path, metadata={KEY: json.dumps(metadata)})


def test_newer_format_is_refused(tmp_path, make_model):
    path = save_model(make_model(), tmp_path / "model.safetensors")
    edit(path, lambda m: m.update(format=99))
    with pytest.raises(ModelError, match="newer; update landprior"):
        load_model(path)


HOSTILE = {
    "format as text": (lambda m: m.update(format="2"), "format"),
    "format of none": (lambda m: m.update(format=None), "format"),
    "format 0": (lambda m: m.update(format=0), "format"),
    "filters to fill the memory": (lambda m: m["network"].update(filters=60_000), "metadata and weights do not fit"),
    "filters beyond bounds": (lambda m: m["network"].update(filters=10**12), "network.filters"),
    "filters of 400 digits": (lambda m: m["network"].update(filters=10**400), "network.filters"),
    "filters as text": (lambda m: m["network"].update(filters="6"), "network.filters"),
    "negative filters": (lambda m: m["network"].update(filters=-1), "network.filters"),
    "bands": (
        lambda m: (
            m["network"].update(bands=50_000),
            m.update(statistics={"mean": [1.0] * 50_000, "std": [1.0] * 50_000}),
        ),
        "metadata and weights do not fit",
    ),
    "members": (
        lambda m: m["network"].update(members=1000, flips=True),
        "10 tensors, but its network has 12000|tensors",
    ),
    "members beyond bounds": (lambda m: m["network"].update(members=10**9, flips=True), "network.members"),
    "no members": (lambda m: m["network"].update(members=0), "network.members"),
    "a huge epitome": (
        lambda m: m["network"].update(kind="epitome", options={"size": 60_000, "patch": 7, "epitomes": 60_000}),
        "damaged",
    ),
    "an epitome of nothing": (lambda m: m["network"].update(kind="epitome", options={"size": 0}), "epitome"),
    "options of another": (lambda m: m["network"].update(kind="epitome", options={"nonsense": 1}), "cannot be built"),
    "another network": (lambda m: m["network"].update(kind="unet"), "tensors"),
    "no network": (lambda m: m["network"].update(kind="os.system"), "network.kind"),
    "a learned prior of bands": (lambda m: m["network"].update(kind="prior-fcn"), "learned prior"),
    "a network that is a list": (lambda m: m.update(network=[1]), "network"),
    "extras that are numbers": (lambda m: m["network"].update(extras=[3]), "extras"),
    "an extra": (lambda m: m["network"].update(extras=["prior"]), "do not fit"),
    "smoothing of NaN": (lambda m: m["network"].update(smoothing=float("nan")), "network.smoothing"),
    "negative smoothing": (lambda m: m["network"].update(smoothing=-0.1), "network.smoothing"),
    "a mean of NaN": (lambda m: m["statistics"].update(mean=[float("nan")] * 4), "statistics.mean"),
    "a deviation of 0": (lambda m: m["statistics"].update(std=[0.0] * 4), "statistics.std"),
    "an infinite deviation": (lambda m: m["statistics"].update(std=[float("inf")] * 4), "statistics.std"),
    "a record that is a list": (lambda m: m.update(record=[]), "record"),
    "settings that are text": (lambda m: m.update(record={"settings": "best"}), "settings"),
    "a verdict that is text": (lambda m: m.update(record={"verdict": "kept"}), "verdict"),
    "a verdict without a reason": (lambda m: m.update(record={"verdict": {"decision": "abstained"}}), "why"),
    "another decision": (lambda m: m.update(record={"verdict": {"decision": "maybe", "why": ""}}), "decision"),
    "a class there is not": (
        lambda m: m.update(record={"verdict": {"decision": "kept", "why": "", "unsupported": [9]}}),
        "names class 9, but there are 5",
    ),
    "no scheme": (lambda m: m.update(scheme=None), "scheme"),
    "a scheme without classes": (lambda m: m["scheme"].update(classes=[]), "classes"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_an_invalid_model_file_is_refused_in_one_line(tmp_path, make_model, how, monkeypatch):
    """Nothing is allocated from its metadata."""
    change, message = HOSTILE[how]
    path = save_model(make_model(), tmp_path / "model.safetensors")
    edit(path, change)
    real = torch.empty
    with torch.device("meta"):  # the first call looks up torch's functions
        real(1)

    def empty(*size, **more):
        found = real(*size, **more)
        assert found.is_meta or found.numel() < 100_000
        return found

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_metadata_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={KEY: "[" * 100_000 + "]" * 100_000})
    with pytest.raises(ModelError, match="metadata is not a JSON object"):
        load_model(path)


@pytest.mark.parametrize("length", [0, 7, 2**40, 2**63, 2**64 - 1, 100_000_001])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a": 1}' * 20)
    with pytest.raises(ModelError, match="not a safetensors model, or is damaged"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, make_model, value):
    model = make_model()
    with torch.no_grad():
        next(model.network.parameters())[0, 0, 0, 0] = value
    path = save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"weights hold NaN or infinity \(body"):
        load_model(path)


def test_weights_of_another_type_or_shape_are_refused(tmp_path, make_model):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dictionary
    name = min(state)
    for other, message in (
        (state[name].to(torch.int64), "is of type I64"),
        (state[name].flatten()[:1], "do not fit"),
    ):
        save_file(state | {name: other}, path, metadata=metadata)
        with pytest.raises(ModelError, match=message):
            load_model(path)
    save_file(state | {name: state[name].half()}, path, metadata=metadata)
    assert load_model(path).network.state_dict()[name].dtype == torch.float32


def test_nan_in_a_record_is_null_in_the_file(tmp_path, make_model):
    record = {"history": {"entropy": float("nan"), "looks": [{"change": float("inf")}]}}
    path = save_model(make_model(record=record), tmp_path / "m.safetensors")
    assert load_model(path).record == {"history": {"entropy": None, "looks": [{"change": None}]}}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["network"].update(filters=7),
        lambda m: m.pop("statistics"),
        lambda m: m["scheme"]["classes"].pop(),
        lambda m: m["scheme"]["classes"][0].update(colour="blue"),
        lambda m: m["statistics"].update(mean=[1.0]),
    ],
    ids=["filters", "statistics", "classes", "colour", "bands"],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, make_model, change):
    path = save_model(make_model(), tmp_path / "model.safetensors")
    edit(path, change)
    with pytest.raises(ModelError, match=str(path)):
        load_model(path)
