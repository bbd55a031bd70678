"""A joint training does not depend on the order in which its tiles are given."""

from itertools import permutations

import pytest

from landprior.landcover.training.files import train_files
from landprior.landcover.training.model import load_model
from landprior.landcover.training.tile_sets import order_tiles
from landprior.landcover.training.tiles import read_tile

pytestmark = pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")


@pytest.fixture
def pairs(make_image, make_prior):
    """Three tiles of different sizes, two with the same file name."""
    found = []
    for folder, name, size in (("x", "b.tif", 40), ("y", "a.tif", 44), ("z", "a.tif", 48)):
        found.append((make_image(f"{folder}/{name}", size, 40), make_prior(f"{folder}/prior.tif", size, 40)))
    return found


@pytest.mark.parametrize("changes", [{}, {"members": 2}, {"starts": 2}], ids=["one", "members", "starts"])
def test_every_order_of_files_gives_the_same_weights(pairs, quick, tmp_path, changes):
    settings = quick(training={"steps": 4, "warmup_steps": 2, "epoch_steps": 2}, **changes)
    found = {}
    for number, order in enumerate(permutations(pairs) if not changes else [pairs, pairs[::-1]]):
        path = tmp_path / f"{number}.safetensors"
        train_files(order, path, settings=settings)
        found[number] = path.read_bytes()
    assert len(set(found.values())) == 1
    assert load_model(tmp_path / "0.safetensors").record["tiles"] == ["a.tif", "a.tif", "b.tif"]


def test_tiles_with_the_same_name_are_ordered_by_content(pairs):
    tiles = [read_tile(image, prior, name="same") for image, prior in pairs]
    first = [tiles[index].shape for index in order_tiles(tiles)]
    for order in permutations(tiles):
        assert [order[index].shape for index in order_tiles(order)] == first
    named = [read_tile(image, prior, name=name) for (image, prior), name in zip(pairs, "cab", strict=True)]
    assert order_tiles(named) == [1, 2, 0]


def test_a_tile_given_twice_counts_twice_with_a_warning(pairs, quick, tmp_path, caplog):
    once = train_files(list(pairs[:2]), tmp_path / "once.safetensors", settings=quick())
    assert "more than once" not in caplog.text
    twice = train_files([pairs[0], pairs[1], pairs[0]], tmp_path / "twice.safetensors", settings=quick())
    assert "b.tif is given more than once, and is weighted accordingly in training" in caplog.text
    assert len(twice.record["tiles"]) == 3
    assert len(once.record["tiles"]) == 2
    assert twice.digest() != once.digest()
