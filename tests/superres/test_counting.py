"""Training by statistics matching and by expectation-maximisation, on tiles and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landprior.errors import CooccurrenceWarning, InputError, TrainingInterruptedError
from landprior.implicit.objectives import Batch
from landprior.landcover.prior.cells import Cells
from landprior.landcover.prior.cooccurrence import Cooccurrence
from landprior.landcover.training.files import TrainingTile
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import TileSettings
from landprior.landcover.training.tiles import Tile, measure_bands
from landprior.superres.counting import CellFeed, CountObjective, train_by_counts
from landprior.superres.maximisation import _expect, train_by_em
from landprior.superres.settings import CountSettings, EmSettings, MethodSettings
from landprior.superres.statistics import compare_statistics
from landprior.superres.tiles import CoarseTile
from landprior.superres.training import train_superres


@pytest.fixture
def stripes(enviroatlas):
    """Return a tile of bright and dark fields in cells of 9, with two codes that have different shares of dark fields.

    Every cell has exactly the share that the matrix gives for its code, so that the counts of whole cells have their
    optimum at the truth.
    """
    rng = np.random.default_rng(1)
    size, cell, field, trees_of_9 = 192, 24, 8, {41: 7, 23: 2}
    keys = (np.arange(size) // cell)[:, None] * 100 + (np.arange(size) // cell)[None]
    codes = np.where((keys // 100 + keys % 100) % 2 == 0, 41, 23)
    share = np.where(codes == 41, trees_of_9[41], trees_of_9[23]) / 9  # of trees; the rest is impervious
    cells = size // cell
    rank = rng.random((cells, cells, 9)).argsort(-1).argsort(-1)  # random order of the fields in a cell
    rank = rank.reshape(cells, cells, 3, 3).swapaxes(1, 2).reshape(size // field, size // field)
    trees = rank.repeat(field, 0).repeat(field, 1) < (9 * share).round()
    image = np.where(trees, 60, 180)[None] + rng.normal(0, 8, (3, size, size))
    prior = np.zeros((5, size, size), np.float16)
    prior[3], prior[1] = share, 1 - share
    tile = Tile(
        name="stripes",
        image=torch.from_numpy(image.clip(0, 255).astype(np.uint8)),
        prior=torch.from_numpy(prior),
        valid=torch.ones((size, size), dtype=torch.bool),
        scheme=enviroatlas,
    )
    coarse = CoarseTile(tile=tile, cells=Cells.of(keys, codes, area=cell**2))
    matrix = Cooccurrence(
        scheme=enviroatlas,
        probabilities={41: np.array([0, 2, 0, 7, 0]) / 9, 23: np.array([0, 7, 0, 2, 0]) / 9},
        spread={41: np.full(5, 0.1), 23: np.full(5, 0.1)},
    )
    return coarse, matrix, np.where(trees, 3, 1)


def classify(model, tile):
    x = tile.inputs(model.statistics, slice(None), slice(None))[None]
    with torch.no_grad():
        return model.network(x)[0].argmax(0).numpy()


@pytest.fixture
def small(quick):
    loop = {"steps": 100, "warmup_steps": 20, "ramp_steps": 10, "learning_rate": 1e-2, "epoch_steps": 20}
    return quick(filters=8, patch_size=82, batch_size=2, training=loop)


@pytest.mark.parametrize("seed", [0, 1])
def test_counting_alone_finds_the_classes(stripes, quick, seed):
    coarse, matrix, truth = stripes
    loop = {"steps": 100, "warmup_steps": 20, "ramp_steps": 10, "learning_rate": 3e-3, "epoch_steps": 20, "seed": seed}
    settings = quick(filters=16, patch_size=82, batch_size=2, training=loop)
    # cells cut by a patch have different shares from their code, and with such large fields they bias the result
    model = train_by_counts([coarse], matrix, settings, CountSettings(least=1))
    found = classify(model, coarse.tile)
    assert (found == truth).mean() > 0.97
    assert (model.loss, model.record["method"]["name"]) == ("sr", "sr")
    assert model.record["settings"]["training"]["loss"] == "sr"


@pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")
def test_patches_contain_whole_cells(stripes, quick, caplog):
    coarse, matrix, _ = stripes
    with caplog.at_level("INFO", logger="landprior"):
        model = train_by_counts([coarse], matrix, quick(patch_size=41, batch_size=9))
    assert model.record["settings"]["patch_size"] == 3 * 24 + 10
    assert model.record["settings"]["batch_size"] == round(9 * (41 / 82) ** 2)
    assert "2 patches of 82 px per step, to contain whole cells" in caplog.text


def feed_of(coarse, matrix, **options):
    eta, rho = matrix.table([41, 23]), matrix.spread_table([41, 23])
    tiles = [one.tile for one in coarse]
    settings = {"patch_size": 40, "batch_size": 5, "seed": 1, "halo": 5, "least": 0.25} | options
    return CellFeed(tiles, measure_bands(tiles), coarse=coarse, eta=eta, rho=rho, **settings)


def test_a_batch_contains_its_cells(stripes):
    coarse, matrix, _ = stripes
    feed = feed_of([coarse], matrix)
    batch = feed(3)
    again = feed(3)
    assert torch.equal(batch.inputs, again.inputs)
    assert not torch.equal(batch.inputs, feed(4).inputs)
    blocks = batch.extra["blocks"]
    assert blocks.shape == (5, 30, 30)
    count = len(batch.extra["eta"])
    assert sorted(blocks.unique().tolist()) == list(range(count))
    log_prior = batch.without_border().log_prior
    for block in range(count):  # the prior of a pixel gives the code of its cell
        inside = blocks == block
        assert len(inside.nonzero()[:, 0].unique()) == 1  # one patch
        trees = log_prior[:, 3][inside].exp()
        assert trees == pytest.approx(float(batch.extra["eta"][block, 3]), abs=1e-3)
    assert (batch.extra["least"] == 0.25 * 24**2).all()
    assert (batch.extra["labels"] == -1).all()


def test_rare_codes_are_drawn_as_often_as_frequent_ones(stripes):
    coarse, matrix, _ = stripes
    codes = np.full(len(coarse.cells.codes), 41, np.uint8)
    codes[:3] = 23  # 3 of 64 cells
    rare = CoarseTile(
        tile=coarse.tile, cells=Cells(index=coarse.cells.index, codes=codes, sizes=coarse.cells.sizes, area=24**2)
    )
    feed = feed_of([rare], matrix, patch_size=34, batch_size=8)
    shares = []
    for step in range(40):
        batch = feed(step)
        eta = batch.extra["eta"][batch.extra["blocks"].clamp_min(0)]
        shares.append(float((eta[..., 3] < 0.5).any(dim=2).any(dim=1).float().mean()))
    assert np.mean(shares) > 0.45


def test_nodata_is_in_no_cell(stripes):
    coarse, matrix, _ = stripes
    coarse.tile.valid[:, 70:100] = False
    feed = feed_of([coarse], matrix)
    for step in range(5):
        batch = feed(step)
        valid = batch.without_border().mask
        assert (batch.extra["blocks"][~valid] == -1).all()
        assert (batch.extra["blocks"][valid] >= 0).all()


def test_a_tile_without_valid_cells_is_an_error(stripes):
    coarse, matrix, _ = stripes
    empty = CoarseTile(
        tile=coarse.tile,
        cells=Cells(
            index=np.full((192, 192), -1, np.int32), codes=np.zeros(0, np.uint8), sizes=np.zeros(0, int), area=24**2
        ),
    )
    with pytest.raises(InputError, match="no NLCD cell overlaps valid"):
        feed_of([empty], matrix)


def test_labels_join_with_their_weight(stripes):
    coarse, matrix, truth = stripes
    labels = np.full((192, 192), -1, np.int16)
    labels[:, :96] = truth[:, :96]
    joint = CoarseTile(tile=coarse.tile, cells=coarse.cells, labels=labels)
    batch = feed_of([joint], matrix)(0).without_border()
    log_q = torch.log_softmax(torch.randn((5, 5, 30, 30), generator=torch.Generator().manual_seed(0)), dim=1)
    extra = batch.extra
    counted = compare_statistics(log_q, extra["blocks"], extra["eta"], extra["rho"], least=extra["least"])
    known = extra["labels"] >= 0
    fitted = torch.nn.functional.nll_loss(log_q, extra["labels"].long(), ignore_index=-1)
    assert 0.1 < known.float().mean() < 0.9
    found = CountObjective(CountSettings(weight=0.3))(log_q, batch)
    assert float(found) == pytest.approx(float(0.3 * counted + 0.7 * fitted), rel=1e-5)
    alone = Batch(inputs=batch.inputs, extra={**extra, "labels": torch.full_like(extra["labels"], -1)})
    assert float(CountObjective(CountSettings())(log_q, alone)) == pytest.approx(float(counted))


# -- expectation-maximisation ------------------------------------------------------------------------


def test_em_sharpens_the_prior(stripes, small):
    coarse, _, truth = stripes
    longer = small.model_copy(update={"training": small.training.model_copy(update={"steps": 240})})
    model = train_by_em([coarse.tile], longer, EmSettings(rounds=3, block=1))
    assert (classify(model, coarse.tile) == truth).mean() > 0.93
    assert (model.loss, model.record["method"]) == ("em", {"name": "em", "rounds": 3, "block": 1})


@pytest.mark.parametrize("rows", [1000, 50])
def test_targets_are_the_smoothed_posterior(stripes, make_model, enviroatlas, monkeypatch, rows):
    from scipy import ndimage

    from landprior.implicit.networks import log_prior
    from landprior.implicit.posterior import log_posterior

    monkeypatch.setattr("landprior.superres.maximisation.STRIP_ROWS", rows)
    coarse, _, _ = stripes
    tile = coarse.tile
    tile.valid[:10, :10] = False
    model = make_model(bands=3, scheme=enviroatlas)
    target = _expect(tile, model, 5)
    with torch.no_grad():
        log_q = model.network(tile.inputs(model.statistics, slice(None), slice(None))[None])
    r = log_posterior(log_q, log_prior(tile.prior[None].float(), smoothing=1e-4), tile.valid[None]).exp()[0].numpy()
    valid = tile.valid.numpy()
    weight = ndimage.uniform_filter(valid.astype(float), 5, mode="constant")
    for label in range(5):
        expected = ndimage.uniform_filter(np.where(valid, r[label], 0.0), 5, mode="constant") / np.maximum(weight, 1e-9)
        np.testing.assert_allclose(target.prior[label].numpy()[valid], expected[valid], atol=2e-3)


def test_fewer_steps_than_rounds_are_refused(stripes):
    settings = TileSettings()
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"steps": 3})})
    with pytest.raises(InputError, match="3 steps are fewer than the 4 rounds"):
        train_by_em([stripes[0].tile], settings)


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def place(make_image, make_prior, make_raster, coarse):
    codes = coarse(100, 110, codes=(21, 41, 81))
    return TrainingTile(
        image=make_image("naip.tif", 100, 110),
        prior=make_prior("prior.tif", 100, 110),
        nlcd=make_raster("nlcd.tif", codes, nodata=0),
        name="place",
    )


@pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")
@pytest.mark.parametrize("name", ["sr", "em"])
def test_an_interrupted_training_ends_with_the_same_weights(place, quick, tmp_path, monkeypatch, name):
    method = MethodSettings(name=name, rounds=EmSettings(rounds=3))
    settings = quick(training={"steps": 24, "epoch_steps": 4})
    whole = train_superres(method, [place], tmp_path / "whole.safetensors", settings)

    from landprior.landcover.training import tiles

    cut = tiles.Tile.patches
    calls: list[int] = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == (15 if name == "sr" else 19):
            raise KeyboardInterrupt
        return cut(*arguments)

    monkeypatch.setattr(tiles.Tile, "patches", stop)
    with pytest.raises(TrainingInterruptedError):
        train_superres(method, [place], tmp_path / "other.safetensors", settings)
    monkeypatch.setattr(tiles.Tile, "patches", cut)
    other = train_superres(method, [place], tmp_path / "other.safetensors", settings)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key]), key
    assert [p.name for p in tmp_path.glob(".other*")] == []
    assert load_model(tmp_path / "other.safetensors").loss == name


def test_a_missing_nlcd_is_an_error(place, quick, tmp_path):
    bare = TrainingTile(image=place.image, prior=place.prior)
    with pytest.raises(InputError, match="has no NLCD, which this method needs; give it with --nlcd"):
        train_superres(MethodSettings(name="sr"), [bare], tmp_path / "m.safetensors", quick())


@pytest.mark.filterwarnings("ignore::landprior.errors.CollapseWarning")
@pytest.mark.filterwarnings("ignore::landprior.errors.HarmWarning")
def test_a_missing_spread_is_an_error(place, quick, tmp_path):
    with pytest.warns(CooccurrenceWarning, match="--spread"):
        train_superres(MethodSettings(name="sr"), [place], tmp_path / "m.safetensors", quick())
