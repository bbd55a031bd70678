"""Training on tiles and files: seeds, joint models, starting points, resuming, the verdict."""

import numpy as np
import pytest
import torch

from landprior.errors import HarmWarning, InputError, MissingInputError, ModelError, OutputExistsError
from landprior.landcover.model import load_model
from landprior.landcover.tiles import PatchFeed, read_tile
from landprior.landcover.training import TileSettings, train_files, train_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::landprior.errors.HarmWarning", "ignore::landprior.errors.CollapseWarning"
)


@pytest.fixture
def pair(make_image, make_prior):
    return make_image("image.tif", 48, 56), make_prior("prior.tif", 48, 56)


@pytest.fixture
def easy(make_raster, enviroatlas, rng):
    """An image that tells two classes by brightness, and a coarse prior that mostly knows."""
    truth = np.kron(rng.integers(0, 2, (6, 6)), np.ones((12, 12), int))
    image = np.where(truth, 180, 70) + rng.integers(-20, 20, (3, 72, 72))
    prior = np.full((5, 72, 72), 0.005, np.float32)
    said = np.where(rng.random((72, 72)) < 0.8, truth, 1 - truth)
    prior[1] += np.where(said == 1, 0.78, 0.195)
    prior[4] += np.where(said == 0, 0.78, 0.195)
    tags = {"scheme": enviroatlas.model_dump_json()}
    files = make_raster("easy.tif", image.astype(np.uint8)), make_raster("p.tif", prior / prior.sum(0), tags=tags)
    return files, truth


def test_same_seed_same_model_whatever_the_order_of_tiles(make_image, make_prior, quick):
    tiles = [read_tile(make_image(f"{n}.tif", 48, 56), make_prior(f"{n}p.tif", 48, 56), name=n) for n in ("one", "two")]
    first, again = train_model(tiles, quick()), train_model(tiles, quick())
    assert first.digest() == again.digest()
    assert train_model(tiles, quick(training={"seed": 1})).digest() != first.digest()
    assert first.record["tiles"] == ["one", "two"]


def test_the_seed_comes_from_the_name_of_the_tile(pair, quick):
    models = [train_model([read_tile(*pair, name=name)], quick()) for name in ("a", "a", "b")]
    assert models[0].digest() == models[1].digest() != models[2].digest()


def test_a_model_says_how_it_was_made(tmp_path, pair, quick):
    path = tmp_path / "model.safetensors"
    train_files([pair], path, quick())
    model = load_model(path)
    assert model.loss == "qr"
    assert model.record["tiles"] == ["image.tif"]
    assert model.record["history"]["steps"] == 12
    assert [look["step"] for look in model.record["history"]["looks"]] == [4, 8, 12]
    assert model.record["verdict"]["decision"] in ("kept", "abstained")
    assert TileSettings.model_validate(model.record["settings"]) == quick()
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_learns_from_the_prior_and_is_kept(easy):
    files, truth = easy
    settings = TileSettings(filters=8, patch_size=32, batch_size=8)
    settings = settings.model_copy(
        update={
            "training": settings.training.model_copy(
                update={"steps": 150, "warmup_steps": 50, "ramp_steps": 10, "learning_rate": 1e-2}
            )
        }
    )
    tile = read_tile(*files)
    model = train_model([tile], settings)
    x = model.statistics.standardise(tile.image, tile.valid)[None]
    with torch.no_grad():
        best = model.network(x)[0].argmax(0).numpy()
    assert (best == np.where(truth, 1, 4)).mean() > 0.95
    assert model.record["verdict"]["decision"] == "kept"
    assert model.record["verdict"]["estimate"] > 0.85


def test_an_image_that_tells_nothing_is_given_up(pair, quick):
    """Noise: no class has a hold in it."""
    with pytest.warns(HarmWarning, match=r"looks worse than its prior.*hand back the prior"):
        model = train_model([read_tile(*pair)], quick())
    assert model.record["verdict"]["decision"] == "abstained"


def test_the_run_ends_when_the_map_has_settled(pair, quick):
    still = {"steps": 40, "learning_rate": 1e-9}
    model = train_model([read_tile(*pair)], quick(training=still, settled=0.01))
    assert model.record["history"]["stopped"] == "the map has settled"
    assert model.record["history"]["steps"] == 20  # half of the steps
    assert train_model([read_tile(*pair)], quick(training=still)).record["history"]["steps"] == 40


def test_watch_sees_every_look_and_changes_nothing(pair, quick):
    steps = []
    watched = train_model(
        [read_tile(*pair)], quick(), watch=lambda look: {"seen": float(len(steps.append(look) or steps))}
    )
    assert [look["seen"] for look in watched.record["history"]["looks"]] == [1, 2, 3]
    assert watched.digest() == train_model([read_tile(*pair)], quick()).digest()


def test_starting_from_another_model(tmp_path, pair, quick):
    first = train_files([pair], tmp_path / "first.safetensors", quick())
    still = quick(training={"learning_rate": 1e-12, "weight_decay": 0.0})
    second = train_files([pair], tmp_path / "second.safetensors", still, init=tmp_path / "first.safetensors")
    for name, value in first.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, atol=1e-6, rtol=0)
    with pytest.raises(ModelError, match=r"4 filters .*this run has 4 bands, 6 filters"):
        train_files([pair], tmp_path / "x.safetensors", quick(filters=6), init=tmp_path / "first.safetensors")
    with pytest.raises(MissingInputError, match="no model at"):
        train_files([pair], tmp_path / "x.safetensors", quick(), init=tmp_path / "none.safetensors")


def stop_at(monkeypatch, step):
    """Interrupt the next training at a step."""
    original = PatchFeed.__call__

    def interrupted(self, at):
        if at == step:
            raise KeyboardInterrupt
        return original(self, at)

    monkeypatch.setattr(PatchFeed, "__call__", interrupted)


def test_interrupted_and_resumed_gives_the_same_model(tmp_path, pair, quick):
    from landprior.errors import TrainingInterruptedError

    path = tmp_path / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(TrainingInterruptedError, match="after 9 of 12 steps"):
            train_files([pair], path, quick())
    assert not path.exists()
    assert (tmp_path / ".model.safetensors.checkpoint").exists()
    resumed = train_files([pair], path, quick())
    assert resumed.digest() == train_files([pair], tmp_path / "whole.safetensors", quick()).digest()
    assert not (tmp_path / ".model.safetensors.checkpoint").exists()


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tmp_path, pair, make_prior, quick):
    from landprior.errors import TrainingInterruptedError

    path = tmp_path / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(TrainingInterruptedError):
            train_files([pair], path, quick())
    other = (pair[0], make_prior("other.tif", 48, 56))
    fresh = train_files([other], tmp_path / "fresh.safetensors", quick())
    assert train_files([other], path, quick()).digest() == fresh.digest()


def test_of_several_starts_the_likeliest_is_kept(tmp_path, pair, quick):
    tile = [read_tile(*pair, name="image.tif")]
    settings = quick(starts=3)
    each = [train_model(tile, settings, start=start) for start in range(3)]
    assert len({model.digest() for model in each}) == 3
    evidence = [model.record["verdict"]["evidence"] for model in each]
    best = train_files([pair], tmp_path / "model.safetensors", settings)
    assert best.digest() == each[int(np.argmax(evidence))].digest()
    assert best.record["starts"] == {"evidence": evidence, "chosen": int(np.argmax(evidence))}
    assert not list(tmp_path.glob(".model*"))


def test_an_interrupted_start_leaves_the_finished_ones(tmp_path, pair, quick, monkeypatch):
    from landprior.errors import TrainingInterruptedError
    from landprior.landcover import training

    path, settings = tmp_path / "model.safetensors", quick(starts=2)
    calls = []

    def counted(*args, start=0, **options):
        calls.append(start)
        if len(calls) == 2:
            raise TrainingInterruptedError
        return train_model(*args, start=start, **options)

    monkeypatch.setattr(training, "train_model", counted)
    with pytest.raises(TrainingInterruptedError):
        train_files([pair], path, settings)
    model = train_files([pair], path, settings)
    assert calls == [0, 1, 1]
    assert len(model.record["starts"]["evidence"]) == 2
    assert not list(tmp_path.glob(".model*"))


def test_existing_model_is_refused_before_any_work(tmp_path, pair, quick, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    stop_at(monkeypatch, 0)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        train_files([pair], path, quick())
    assert path.read_bytes() == b"old"


def test_no_tiles(quick):
    with pytest.raises(InputError, match="no tile"):
        train_model([], quick())


def test_the_papers_schedule():
    paper = TileSettings.paper("rq")
    assert (paper.filters, paper.patch_size, paper.batch_size) == (128, 128, 128)
    assert (paper.training.learning_rate, paper.training.schedule, paper.training.warmup) == (1e-3, "plateau", "none")
    assert TileSettings.paper("qr").training.learning_rate == 1e-4
