"""Groups of neighbouring tiles."""

from itertools import product

import numpy as np
import pytest

from landprior.errors import InputError, MissingInputError
from landprior.landcover.workspace.groups import Group, divide_tiles, make_groups
from landprior.landcover.workspace.item import TileFolder
from landprior.raster.cog import write_raster


@pytest.fixture
def grids(make_grid):
    """Return a factory of grids of tiles in rows and columns, 90 m apart."""

    def make(rows, columns):
        places = product(range(rows), range(columns))
        return {f"{r}{c}": make_grid(100, 100, left=600_000.0 + 90 * c, top=4.5e6 - 90 * r) for r, c in places}

    return make


@pytest.fixture
def town(tmp_path, make_grid):
    """Three tiles in a row that overlap by 10 m, and one 200 m to the south."""
    tiles = []
    for name, x, y in (("a", 0, 0), ("b", 90, 0), ("c", 180, 0), ("d", 180, -300)):
        folder = TileFolder(path=tmp_path / "town" / name, city="town")
        folder.path.mkdir(parents=True)
        grid = make_grid(100, 100, left=600_000.0 + x, top=4.5e6 + y)
        write_raster(folder.file("naip"), np.ones((4, 100, 100), np.uint8), grid)
        tiles.append(folder)
    return tiles


def test_four_by_four_tiles_are_four_quarters(grids):
    quarters = [("00", "01", "10", "11"), ("02", "03", "12", "13"), ("20", "21", "30", "31"), ("22", "23", "32", "33")]
    assert divide_tiles(grids(4, 4), 4) == quarters


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 12, 34, 35, 36, None])
def test_each_tile_is_in_one_group_and_no_group_is_too_large(grids, size):
    tiles = grids(5, 7)
    groups = divide_tiles(tiles, size)
    assert sorted(name for names in groups for name in names) == sorted(tiles)
    sizes = [len(names) for names in groups]
    assert len(groups) == -(-35 // (size or 35))  # as few as possible
    assert max(sizes) <= (size or 35)
    assert max(sizes) - min(sizes) <= 2
    shuffled = {name: tiles[name] for name in reversed(tiles)}
    assert divide_tiles(shuffled, size) == groups


def test_groups_are_compact(grids):
    """The tiles of a group of 8 x 8 tiles are at most half as far apart as those in the order of their names."""

    def spread(groups):
        places = [np.array([divmod(int(name, 8), 8) for name in names]) for names in groups]
        return np.mean([np.hypot(*(p.max(0) - p.min(0))) for p in places])

    tiles = grids(8, 8)
    by_name = [sorted(tiles)[start : start + 16] for start in range(0, 64, 16)]
    found = divide_tiles(tiles, 16)
    assert spread(found) == pytest.approx(np.hypot(3, 3))
    assert spread(by_name) == pytest.approx(np.hypot(1, 7))
    assert spread(found) < 0.61 * spread(by_name)


def test_tiles_without_a_crs_are_grouped_by_their_coordinates(make_grid):
    tiles = {f"{n}": make_grid(10, 10, left=10.0 * n, epsg=None) for n in range(4)}
    assert divide_tiles(tiles, 2) == [("0", "1"), ("2", "3")]
    with pytest.raises(InputError, match="4 has no CRS, so its place among the other tiles is unknown"):
        divide_tiles({"5": make_grid(10, 10), "4": tiles["1"]})


def test_a_group_has_a_tile(grids):
    with pytest.raises(InputError, match="at least one tile, not 0"):
        divide_tiles(grids(1, 2), 0)


def test_one_group_has_the_model_of_the_place_and_several_have_numbers(town, tmp_path):
    (whole,) = make_groups(town)
    assert whole == Group(tuple(town), tmp_path / "town" / "model.safetensors")
    assert whole.name == "town/model"
    pairs = make_groups(town[::-1], 2)
    assert [[tile.name for tile in group.tiles] for group in pairs] == [["a", "b"], ["c", "d"]]
    assert [group.model.name for group in pairs] == ["model-1.safetensors", "model-2.safetensors"]


def test_neighbours_lie_within_reach(town):
    (group,) = make_groups(town)
    a, b, c, d = town

    def near(tile, reach):
        return [other.name for other in group.find_neighbours(tile, reach)]

    assert near(a, 0) == ["b"]
    assert near(b, 0) == ["a", "c"]
    assert near(a, 79) == ["b"]
    assert near(a, 81) == ["b", "c"]
    assert near(a, 199) == ["b", "c"]
    assert near(d, 201) == ["a", "b", "c"]
    assert near(d, 199) == []
    assert near(c, 0) == ["b"]


def test_a_tile_without_a_crs_has_no_neighbours(town, make_grid):
    for number, tile in enumerate(town):
        grid = make_grid(100, 100, left=90.0 * number, epsg=None)
        write_raster(tile.file("naip"), np.ones((4, 100, 100), np.uint8), grid, overwrite=True)
    (group,) = make_groups(town)
    assert group.find_neighbours(town[0], 50) == []


def test_a_missing_model_is_named_with_the_command_that_trains_it(town):
    with pytest.raises(MissingInputError, match=r"model\.safetensors is missing; .* --city town --joint --only model"):
        make_groups(town)[0].require_model()
