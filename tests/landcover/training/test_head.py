"""The head of an adapted model: what it sees, what it gives, and its place in the model's file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from landprior.errors import ModelError
from landprior.landcover.training.head import REACH, SCALE, Head, describe_surroundings
from landprior.landcover.training.model import load_model, save_model


def make_head(classes=5, bands=4, seed=0):
    rng = np.random.default_rng(seed)
    start = Head.of_posterior(*np.log(rng.dirichlet(np.ones(classes), 2)), bands)
    return replace(start, weights=start.weights + rng.normal(size=start.weights.shape), bias=rng.normal(size=classes))


def test_scores_are_linear_in_what_it_sees():
    head, rng = make_head(), np.random.default_rng(2)
    log_q, log_p = np.log(rng.dirichlet(np.ones(5), (2, 6, 7))).transpose(0, 3, 1, 2)
    statistics = rng.normal(size=(8, 6, 7))
    inputs = np.concatenate([log_q - head.log_marginal[:, None, None], log_p, statistics])
    scores = np.einsum("cf,fhw->chw", head.weights, inputs) + head.bias[:, None, None]
    found = head.apply(head.features(*(torch.from_numpy(x) for x in (log_q, log_p, statistics)))).exp()
    np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(0), rtol=1e-10)


def test_classes_that_are_left_out_stay_where_the_prior_is_sure():
    head, rng = replace(make_head(), left_out=np.array([3])), np.random.default_rng(2)
    log_q = np.log(rng.dirichlet(np.ones(5), 200)).T
    p = rng.dirichlet(np.full(5, 0.4), 200).T
    inputs = head.features(*(torch.from_numpy(x) for x in (log_q, np.log(p), np.zeros((8, 200)))))
    found, whole = head.apply(inputs).exp().numpy(), make_head().apply(inputs).exp().numpy()
    sure = p[3] >= 0.51
    assert 0 < sure.sum() < 200
    np.testing.assert_allclose(found[:, sure], whole[:, sure])
    assert (found[3, ~sure] == 0).all()
    others = np.delete(whole, 3, axis=0)[:, ~sure]
    np.testing.assert_allclose(np.delete(found, 3, axis=0)[:, ~sure], others / others.sum(0))


def test_surroundings_are_means_and_deviations_of_the_pixels_that_exist():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 9, 11)).astype(np.float32)
    valid = rng.random((9, 11)) < 0.7
    found = describe_surroundings(torch.from_numpy(image), torch.from_numpy(valid)).numpy()
    for row, column in ((0, 0), (4, 5), (8, 3)):
        at = (
            slice(max(0, row - REACH), row + REACH + 1),
            slice(max(0, column - REACH), column + REACH + 1),
        )
        for band in range(2):
            near = image[band][at][valid[at]]
            assert found[band, row, column] == pytest.approx(SCALE * near.mean(), abs=1e-5)
            assert found[2 + band, row, column] == pytest.approx(SCALE * near.std(), abs=1e-4)


def test_without_holes_surroundings_are_box_means():
    image = np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    found = describe_surroundings(torch.from_numpy(image), None).numpy()
    inner = np.s_[REACH:-REACH, REACH:-REACH]
    expected = ndimage.uniform_filter(image[0].astype(float), 2 * REACH + 1)
    np.testing.assert_allclose(found[0][inner], SCALE * expected[inner], atol=1e-6)


def test_a_model_file_keeps_its_head(tmp_path, make_model):
    head = replace(make_head(), left_out=np.array([1, 4]))
    model = replace(make_model(), head=head, record={"adaptation": {"points": 30}})
    found = load_model(save_model(model, tmp_path / "model.safetensors"))
    assert found.head is not None
    for name, value in vars(head).items():
        np.testing.assert_array_equal(getattr(found.head, name), value)
    assert found.digest() == model.digest() != make_model().digest()
    assert load_model(save_model(make_model(), tmp_path / "plain.safetensors")).head is None


def rewrite(path, change):
    """Change the header of a model file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as handle:
        header = json.loads(handle.metadata()["landprior"])
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    change(header)
    save_file(state, path, metadata={"landprior": json.dumps(header)})


def test_a_head_makes_the_file_one_that_older_versions_refuse(tmp_path, make_model):
    formats = []
    for name, model in {"plain": make_model(), "head": replace(make_model(), head=make_head())}.items():
        path = save_model(model, tmp_path / f"{name}.safetensors")
        rewrite(path, lambda header: formats.append(header["format"]))
    assert formats == [1, 2]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("bias", [0.0] * 4, "its head does not fit 5 classes and 4 bands"),
        ("weights", [[0.0] * 17] * 5, "its head does not fit 5 classes and 4 bands"),
        ("weights", [[0.0] * 18] * 4, "its head does not fit 5 classes and 4 bands"),
        ("log_prior", ["a"] * 5, "log_prior"),
        ("left_out", [5], "its head leaves out classes"),
        ("left_out", [2, 2], "its head leaves out classes"),
        ("left_out", [0, 1, 2, 3, 4], "its head leaves out all classes"),
        ("left_out", [-1], "left_out"),
        ("log_marginal", None, "log_marginal"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, make_model, name, value, complaint):
    path = save_model(replace(make_model(), head=make_head()), tmp_path / "model.safetensors")
    rewrite(path, lambda header: header["head"].update({name: value}))
    with pytest.raises(ModelError, match=complaint):
        load_model(path)
