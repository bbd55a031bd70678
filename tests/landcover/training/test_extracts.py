"""Joint training on windows of many tiles, read as they are needed."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from landprior.errors import GridMismatchError, ModelError, PriorError, TrainingInterruptedError
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training import extracts as module
from landprior.landcover.training.extracts import Extracts, Source, StreamedFeed
from landprior.landcover.training.files import train_files
from landprior.landcover.training.model import load_model, save_model
from landprior.landcover.training.shares import find_shares, measure_shares
from landprior.landcover.training.tiles import measure_bands, read_tile
from landprior.run import Run
from tests.helpers import interrupted_at, on_one_core

pytestmark = pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")

SIZES = {"a": (100, 70), "b": (64, 90), "c": (50, 64)}


@pytest.fixture(autouse=True)
def _one_core():
    with on_one_core():
        yield


@pytest.fixture
def sources(make_image, make_prior):
    """Three tiles of different sizes."""
    return [Source(n, make_image(f"{n}.tif", *s), make_prior(f"{n}-prior.tif", *s)) for n, s in SIZES.items()]


@pytest.fixture
def pairs(sources):
    return [(source.image, source.prior) for source in sources]


@pytest.fixture
def _small(monkeypatch):
    """Make windows and periods small, so that a short training has several."""
    for name, value in (("SIDE", 32), ("PERIOD", 3), ("POOL", 4), ("FIXED", 6)):
        for place in (module, __import__("landprior.landcover.training.files", fromlist=["files"])):
            monkeypatch.setattr(place, name, value, raising=False)


def place_of(tile):
    name, corner = tile.name.split(" ")
    row, column = map(int, corner.split(","))
    return name, row, column


def test_windows_hold_what_the_files_hold_there(sources):
    for tile in Extracts(sources, side=32).take(100, "all"):
        name, row, column = place_of(tile)
        source = next(source for source in sources if source.name == name)
        with rasterio.open(source.image) as image, rasterio.open(source.prior) as prior:
            window = Window(column, row, *tile.shape[::-1])
            assert np.array_equal(tile.image.numpy(), image.read(window=window))
            assert np.allclose(tile.prior.float().numpy(), prior.read(window=window), atol=1e-3)
        assert tile.valid.all()


def test_all_windows_cover_all_tiles(sources):
    seen = {name: np.zeros(size, dtype=int) for name, size in SIZES.items()}
    extracts = Extracts(sources, side=32)
    for tile in extracts.take(1000, "all"):
        name, row, column = place_of(tile)
        assert tile.shape == (32, 32)
        seen[name][row : row + 32, column : column + 32] += 1
    assert min(values.min() for values in seen.values()) == 1
    assert extracts.pixels == 100 * 70 + 64 * 90 + 50 * 64


def test_windows_are_spread_over_the_tiles_in_proportion_to_their_size(make_image, make_prior):
    sizes = {"large": (320, 160), "small": (80, 80)}  # 200 and 25 windows of 16 px
    sources = [Source(n, make_image(f"{n}.tif", *s), make_prior(f"{n}-p.tif", *s)) for n, s in sizes.items()]
    counts = [
        sum(place_of(tile)[0] == "large" for tile in Extracts(sources, side=16).take(45, f"{key}")) for key in range(5)
    ]
    assert counts == [40] * 5
    rows = [place_of(t)[1] for t in Extracts(sources, side=16).take(45, "rows") if place_of(t)[0] == "large"]
    assert np.bincount(np.array(rows) // 80, minlength=4).tolist() == [10] * 4


def test_the_choice_depends_on_seed_and_key_only(sources):
    def take(order, seed, key):
        return [tile.name for tile in Extracts(order, side=16, seed=seed).take(8, key)]

    first = take(sources, 0, "x")
    assert take(sources[::-1], 0, "x") == first
    assert take(sources, 0, "y") != first
    assert take(sources, 1, "x") != first


def test_windows_without_data_are_left_out_and_others_drawn(make_image, make_prior):
    holes = np.ones((320, 320), dtype=bool)
    holes[:32, :160] = False  # 20 of 400 windows have data
    source = Source("a", make_image("a.tif", 320, 320, holes=holes), make_prior("p.tif", 320, 320))
    found = Extracts([source], side=16).take(40, "x")
    assert len(found) > 5
    assert all(tile.valid.any() for tile in found)
    assert len({tile.name for tile in found}) == len(found)
    nothing = Source("a", source.image, make_prior("n.tif", 320, 320, holes=~holes))
    with pytest.raises(PriorError, match="a: there is no pixel where image and prior both have data"):
        Extracts([nothing], side=16).take(40, "x")


@pytest.mark.usefixtures("_small")
def test_an_empty_tile_does_not_stop_a_joint_training(sources, make_image, quick, tmp_path):
    """At the edge of a place an image may have no data at all where the prior has."""
    empty = make_image("e.tif", 50, 64, holes=np.ones((50, 64), dtype=bool))
    pairs = [(source.image, source.prior) for source in sources[:2]] + [(empty, sources[2].prior)]
    model = train_files(pairs, tmp_path / "m.safetensors", names=["a", "b", "c"], settings=quick(), held=0)
    assert model.record["tiles"] == ["a", "b", "c"]


def test_a_prior_on_another_grid_is_refused(sources):
    mixed = [Source("a", sources[0].image, sources[1].prior)]
    with pytest.raises(GridMismatchError, match="different grids"):
        Extracts(mixed)


@pytest.mark.usefixtures("_small")
def test_the_batch_of_a_step_depends_on_the_step_only(sources):
    extracts = Extracts(sources, side=32)
    fixed = extracts.take(6, "fixed")
    how = {"extracts": extracts, "patch_size": 24, "batch_size": 2, "seed": 3}
    feed = StreamedFeed(fixed, measure_bands(fixed), **how)
    batches = [feed(step) for step in range(9)]
    other = StreamedFeed(fixed, measure_bands(fixed), **how)
    for step in (8, 2, 3, 0, 5):
        assert torch.equal(other(step).inputs, batches[step].inputs)
        assert torch.equal(other(step).log_prior, batches[step].log_prior)
    assert batches[0].inputs.shape == (2, 4, 24, 24)


@pytest.mark.usefixtures("_small")
def test_windows_are_replaced_and_no_more_are_held(sources, monkeypatch):
    taken = []
    take = Extracts.take
    monkeypatch.setattr(Extracts, "take", lambda self, count, key: taken.append((count, key)) or take(self, count, key))
    extracts = Extracts(sources, side=32)
    fixed = extracts.take(6, "fixed")
    feed = StreamedFeed(fixed, measure_bands(fixed), extracts=extracts, patch_size=24, batch_size=2)
    for step in range(7):
        feed(step)
    feed._pool.shutdown()
    assert taken == [(6, "fixed"), (4, "period 0"), (4, "period 1"), (4, "period 2"), (4, "period 3")]


@pytest.mark.usefixtures("_small")
def test_a_streamed_training_is_reproducible_in_any_order(pairs, quick, tmp_path):
    found = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        path = tmp_path / f"{number}.safetensors"
        names = [f"t{index}" for index in order]
        train_files([pairs[index] for index in order], path, names=names, settings=quick(), held=0)
        found.append(path.read_bytes())
    assert found[0] == found[1]
    held = train_files(pairs, tmp_path / "held.safetensors", names=["t0", "t1", "t2"], settings=quick())
    assert held.record["tiles"] == load_model(path).record["tiles"] == ["t0", "t1", "t2"]
    assert held.digest() != load_model(path).digest()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("changes", [{}, {"members": 2}], ids=["one", "members"])
def test_an_interrupted_training_resumes_to_the_same_model(pairs, quick, tmp_path, monkeypatch, changes):
    settings = quick(**changes)
    train_files(pairs, tmp_path / "whole.safetensors", settings=settings, held=0)
    path = tmp_path / "stopped.safetensors"
    with interrupted_at(monkeypatch, StreamedFeed, 7), pytest.raises(TrainingInterruptedError):
        train_files(pairs, path, settings=settings, held=0)
    assert not path.exists()
    train_files(pairs, path, settings=settings, held=0)
    one, other = (load_model(p) for p in (tmp_path / "whole.safetensors", path))
    assert one.digest() == other.digest()
    assert one.record["shares"] == other.record["shares"]
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_changed_files_are_noticed_wherever_they_change(sources, make_prior):
    before = Extracts(sources).identify()
    assert Extracts(sources[::-1]).identify() == before
    make_prior("c-prior.tif", *SIZES["c"], overwrite=True)
    assert Extracts(sources).identify() != before


# -- shares of the classes ---------------------------------------------------------------------------


def test_shares_are_those_of_the_whole_maps(sources, pairs, quick, tmp_path, monkeypatch):
    """However large the blocks in which they are summed."""
    model = train_files(pairs, tmp_path / "m.safetensors", names=list(SIZES), settings=quick())
    q, named, prior, pixels = 0.0, 0.0, 0.0, 0
    for source in sources:
        tile = read_tile(source.image, source.prior)
        with torch.inference_mode():
            x = model.statistics.standardise(tile.image, tile.valid)[None]
            values = model.network(x)[0].exp().double().numpy()
        q = q + values.sum((1, 2))
        named = named + np.bincount(values.argmax(0).ravel(), minlength=5)
        prior = prior + tile.prior.double().numpy().sum((1, 2))
        pixels += values[0].size
    shares = model.record["shares"]
    assert np.allclose(shares["q"], q / pixels, atol=1e-6)
    assert np.allclose(shares["named"], named / pixels, atol=1e-3)
    assert np.allclose(shares["prior"], prior / pixels, atol=1e-3)
    monkeypatch.setattr("landprior.landcover.training.shares._BLOCK", 20)
    tiles = [read_tile(source.image, source.prior) for source in sources]
    again = measure_shares(model.network, tiles, model.statistics)
    assert np.allclose(again["q"], shares["q"], atol=1e-6)


def test_shares_count_valid_pixels_only(make_image, make_prior, make_model):
    holes = np.zeros((60, 60), dtype=bool)
    holes[:, 40:] = True
    whole = read_tile(make_image("w.tif", 60, 60), make_prior("p.tif", 60, 60))
    part = read_tile(make_image("h.tif", 60, 60, holes=holes), make_prior("h-p.tif", 60, 60))
    model = make_model()
    found = measure_shares(model.network, [part], model.statistics)
    assert sum(found["named"]) == pytest.approx(1)
    assert np.allclose(found["prior"], part.prior[:, part.valid].double().mean(1), atol=1e-6)
    assert found != measure_shares(model.network, [whole], model.statistics)


def test_shares_belong_to_the_tiles_of_a_joint_model(pairs, quick, tmp_path):
    one = train_files(pairs[:1], tmp_path / "one.safetensors", names=["a"], settings=quick())
    assert find_shares(one.record, "a") is None
    both = train_files(pairs, tmp_path / "m.safetensors", names=["a", "b", "c"], settings=quick())
    assert np.shape(find_shares(both.record, "b")) == (3, 5)
    assert find_shares(both.record, "d") is None
    joined = train_files(pairs, tmp_path / "two.safetensors", names=["a", "b", "c"], settings=quick(members=2))
    assert not np.allclose(find_shares(joined.record, "a")[0], find_shares(both.record, "a")[0], atol=1e-9)


def test_a_map_with_the_shares_of_its_own_image_is_the_usual_one(pairs, quick, tmp_path):
    """Given-up classes included: the three rows are what the first pass of predict gathers."""
    image, prior = pairs[0]
    model = train_files([(image, prior)], tmp_path / "one.safetensors", settings=quick())
    tile = read_tile(image, prior)
    shares = measure_shares(model.network, [tile], model.statistics)
    maps = []
    for marginal in (None, [shares["q"], shares["named"], shares["prior"]]):
        path = tmp_path / "map.tif"
        predict(image, path, model, posterior=prior, marginal=marginal, force=True, run=Run(overwrite=True))
        with rasterio.open(path) as src:
            maps.append((src.read(), src.tags(ns="landprior").get("given_up")))
    assert (maps[0][0] == maps[1][0]).mean() > 0.999
    assert maps[0][1] == maps[1][1]


@pytest.mark.parametrize("shares", [{"q": [0.5, 0.5], "named": [1, 0], "prior": [1, 0]}, {"q": [1]}, [1]])
def test_damaged_shares_are_refused(make_model, tmp_path, shares):
    path = tmp_path / "m.safetensors"
    model = make_model(record={"shares": shares})
    save_model(model, path)
    with pytest.raises(ModelError, match="shares"):
        load_model(path)
