"""Model files: what goes in comes out, alone; bad files are refused in a line."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from landprior.errors import MissingInputError, ModelError, OutputExistsError
from landprior.landcover.model import KEY, load_model, save_model


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


def test_missing_model_says_how_to_train_one(tmp_path):
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
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        metadata = json.loads(handle.metadata()[KEY])
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    change(metadata)
    save_file(state, path, metadata={KEY: json.dumps(metadata)})


def test_newer_format_is_refused(tmp_path, make_model):
    path = save_model(make_model(), tmp_path / "model.safetensors")
    edit(path, lambda m: m.update(format=99))
    with pytest.raises(ModelError, match="newer; update landprior"):
        load_model(path)


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
