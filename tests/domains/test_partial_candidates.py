"""Candidate sets: drawing, reading, thinning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landprior.domains.imagery.images import LabelledImages
from landprior.domains.imagery.training import split_off
from landprior.domains.partial.candidates import draw_negatives, read_candidates, thin_classes
from landprior.errors import InputError, PriorError

LABELS = torch.arange(6000) % 6


def test_the_given_number_of_classes_is_ruled_out_but_never_the_true_one():
    for count in range(1, 6):
        prior = draw_negatives(LABELS, 6, count, seed=1)
        assert prior.dtype == torch.float32
        assert bool((prior[torch.arange(6000), LABELS] > 0).all())
        assert bool(((prior == 0).sum(1) == count).all())
        torch.testing.assert_close(prior.sum(1), torch.ones(6000))
        assert prior.unique().tolist() == pytest.approx([0, 1 / (6 - count)])
    assert torch.equal(draw_negatives(LABELS, 6, 5, seed=1).argmax(1), LABELS)


def test_wrong_classes_are_ruled_out_equally_often():
    prior = draw_negatives(LABELS, 6, 2, seed=3)
    for label in range(6):
        counts = (prior[label == LABELS] == 0).sum(0)
        wrong = torch.cat([counts[:label], counts[label + 1 :]])
        # 1,000 items, with each of 5 wrong classes ruled out at a chance of 2/5: a standard deviation of 15.5
        assert counts[label] == 0
        assert bool(((wrong - 400).abs() < 65).all())


def test_draws_depend_on_the_seed_and_are_nested():
    one, three = draw_negatives(LABELS, 6, 1, seed=7), draw_negatives(LABELS, 6, 3, seed=7)
    assert torch.equal(one, draw_negatives(LABELS, 6, 1, seed=7))
    assert not torch.equal(one, draw_negatives(LABELS, 6, 1, seed=8))
    assert bool((three[one == 0] == 0).all())


@pytest.mark.parametrize("count", [0, 6])
def test_an_impossible_count(count):
    with pytest.raises(
        InputError, match=f"{count} negative labels per item cannot be drawn from 6 classes; give 1 to 5"
    ):
        draw_negatives(LABELS, 6, count, seed=0)


def test_labels_must_be_known_to_draw():
    with pytest.raises(InputError, match="some are unknown; give candidate sets"):
        draw_negatives(torch.tensor([0, -1]), 3, 1, seed=0)


@pytest.fixture
def images():
    return LabelledImages(
        images=torch.zeros((3, 1, 4, 4), dtype=torch.uint8),
        labels=torch.tensor([0, -1, 2]),
        classes=("cat", "dog", "fox"),
        names=("a.png", "b.png", "c.png"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "file,candidates\nb.png,dog|fox\na.png, cat \nc.png,cat|dog|fox\n",
        "item,cat,dog,fox\n1,0,0.5,0.5\n2,3,3,3\n0,7,,0\n",
    ],
)
def test_reading_sets_and_weights(tmp_path, images, text):
    path = tmp_path / "sets.csv"
    path.write_text(text)
    expected = [[1, 0, 0], [0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]
    torch.testing.assert_close(read_candidates(path, images), torch.tensor(expected))


def test_weights_from_npz_keep_hard_zeros(tmp_path, images):
    weights = np.array([[2, 0, 0], [0, 1e-9, 1e-9], [1, 2, 1]])
    np.savez(tmp_path / "sets.npz", candidates=weights)
    found = read_candidates(tmp_path / "sets.npz", images)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0.25, 0.5, 0.25]]))
    assert bool(((found == 0).numpy() == (weights == 0)).all())


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", InputError, "no rows, or no column 'file' or 'item'"),
        ("file,candidates\na.png,cat\n", InputError, r"has no row for b.png \(and 1 more\)"),
        ("file,candidates\na.png,cat\na.png,dog\n", InputError, "line 3: a.png already has a row"),
        ("file,candidates\nz.png,cat\n", InputError, "line 2: 'z.png' is not among the training images"),
        ("item,candidates\n3,cat\n", InputError, "line 2: the item '3' is not a position from 0 to 2"),
        ("file,candidates\na.png,cow\n", InputError, r"line 2: 'cow' is not among the classes \(cat, dog, fox\)"),
        ("file,candidates\na.png,cat\nb.png,\nc.png,fox\n", PriorError, "b.png has no candidate"),
        ("file,cat,dog\na.png,1,1\n", InputError, "nor one for the class 'fox'"),
        ("file,cat,dog,fox\na.png,1,1,x\n", InputError, "line 2: could not convert string to float: 'x'"),
        ("item,cat,dog,fox\n0,1,-1,0\n1,1,1,1\n2,1,1,1\n", PriorError, "a.png has the weight -1.0"),
        ("item,cat,dog,fox\n0,1,1,0\n1,1,nan,1\n2,1,1,1\n", PriorError, "b.png has the weight nan"),
    ],
)
def test_invalid_tables(tmp_path, images, text, error, said):
    path = tmp_path / "sets.csv"
    path.write_text(text)
    with pytest.raises(error, match=said):
        read_candidates(path, images)


def test_invalid_npz_files(tmp_path, images):
    np.savez(tmp_path / "a.npz", other=[1])
    with pytest.raises(InputError, match="must have 'candidates'"):
        read_candidates(tmp_path / "a.npz", images)
    np.savez(tmp_path / "a.npz", candidates=np.ones((2, 3)))
    with pytest.raises(InputError, match=r"of shape \(2, 3\); it must be numbers of shape \(3, 3\)"):
        read_candidates(tmp_path / "a.npz", images)


def test_thinning_keeps_shares():
    kept = thin_classes(LABELS, {0: 0.1, 4: 0.35}, seed=2)
    assert torch.bincount(LABELS[kept]).tolist() == [100, 1000, 1000, 1000, 350, 1000]
    assert torch.equal(kept, thin_classes(LABELS, {0: 0.1, 4: 0.35}, seed=2))
    assert not torch.equal(kept, thin_classes(LABELS, {0: 0.1, 4: 0.35}, seed=3))
    assert kept.tolist() == sorted(kept.tolist())


def test_the_held_out_part():
    fitted, held = split_off(1000, 0.1, seed=5)
    assert len(held) == 100
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(1000))
    assert not torch.equal(held, split_off(1000, 0.1, seed=6)[1])
    assert [len(part) for part in split_off(3, 0.01, seed=0)] == [2, 1]
    assert [len(part) for part in split_off(3, 0.0, seed=0)] == [3, 0]
