"""Training on tiles and files: seeds, joint models, initial weights, resuming, the verdict."""

import numpy as np
import pytest
import rasterio
import torch
from pydantic import ValidationError

from landprior.errors import HarmWarning, InputError, MissingInputError, ModelError, OutputExistsError
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.ensemble import train_best
from landprior.landcover.training.files import train_files
from landprior.landcover.training.model import load_model
from landprior.landcover.training.patches import PatchFeed
from landprior.landcover.training.settings import TileSettings, make_settings
from landprior.landcover.training.tiles import measure_bands, read_labelled_tile, read_tile
from landprior.landcover.training.trainer import train_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::landprior.errors.HarmWarning", "ignore::landprior.errors.CollapseWarning"
)


@pytest.fixture
def pair(make_image, make_prior):
    return make_image("image.tif", 48, 56), make_prior("prior.tif", 48, 56)


@pytest.fixture
def easy(make_raster, enviroatlas, rng):
    """An image with two classes that differ in brightness, and a coarse prior that is mostly right."""
    truth = np.kron(rng.integers(0, 2, (6, 6)), np.ones((12, 12), int))
    image = np.where(truth, 180, 70) + rng.integers(-20, 20, (3, 72, 72))
    prior = np.full((5, 72, 72), 0.005, np.float32)
    said = np.where(rng.random((72, 72)) < 0.8, truth, 1 - truth)
    prior[1] += np.where(said == 1, 0.78, 0.195)
    prior[4] += np.where(said == 0, 0.78, 0.195)
    tags = {"scheme": enviroatlas.model_dump_json()}
    files = make_raster("easy.tif", image.astype(np.uint8)), make_raster("p.tif", prior / prior.sum(0), tags=tags)
    return files, truth


def test_same_seed_same_model_for_any_order_of_tiles(make_image, make_prior, quick):
    tiles = [read_tile(make_image(f"{n}.tif", 48, 56), make_prior(f"{n}p.tif", 48, 56), name=n) for n in ("one", "two")]
    first, again = train_model(tiles, quick()), train_model(tiles, quick())
    assert first.digest() == again.digest()
    assert train_model(tiles, quick(training={"seed": 1})).digest() != first.digest()
    assert first.record["tiles"] == ["one", "two"]


def test_the_seed_comes_from_the_name_of_the_tile(pair, quick):
    models = [train_model([read_tile(*pair, name=name)], quick()) for name in ("a", "a", "b")]
    assert models[0].digest() == models[1].digest() != models[2].digest()


def test_a_model_records_how_it_was_made(tmp_path, pair, quick):
    path = tmp_path / "model.safetensors"
    train_files([pair], path, settings=quick())
    model = load_model(path)
    assert model.loss == "qr"
    assert model.record["tiles"] == ["image.tif"]
    assert model.record["history"]["steps"] == 12
    assert [look["step"] for look in model.record["history"]["looks"]] == [4, 8, 12]
    assert model.record["verdict"]["decision"] in ("kept", "abstained")
    assert TileSettings.model_validate(model.record["settings"]) == quick(receptive_field=7)
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("side", [3, 5, 7, 9, 11])
def test_the_receptive_field_is_as_asked_for_and_kept(tmp_path, pair, quick, side):
    path = tmp_path / "model.safetensors"
    trained = train_files([pair], path, settings=quick(receptive_field=side, filters=3))
    model = load_model(path)
    assert model.network.halo == side // 2
    x = torch.zeros(1, 4, 25, 25, requires_grad=True)
    model.network(x)[0, 0, 12, 12].backward()
    seen = torch.nonzero(x.grad.abs().sum((0, 1)))
    assert seen.min(0).values.tolist() == [12 - side // 2] * 2
    assert seen.max(0).values.tolist() == [12 + side // 2] * 2
    again = train_files([pair], tmp_path / "again.safetensors", settings=quick(filters=3), init=path)
    assert again.options == model.options == trained.options == ({} if side == 11 else {"receptive_field": side})
    other = quick(filters=3, receptive_field=5 if side == 3 else 3)
    with pytest.raises(
        ModelError, match=rf"3 filters \(fcn, receptive field {side}\).*3 filters \(fcn, receptive field [35]\)"
    ):
        train_files([pair], tmp_path / "other.safetensors", settings=other, init=path)


@pytest.mark.parametrize(("side", "why"), [(6, "odd"), (1, "3"), (13, "11")])
def test_no_other_receptive_field(side, why):
    with pytest.raises(ValidationError, match=why):
        TileSettings(receptive_field=side)


def test_a_unet_has_its_own_receptive_field():
    with pytest.raises(ValidationError, match="unet has its own"):
        TileSettings(network="unet", receptive_field=5)
    assert make_settings("paper", network="unet").network_options() == {}


def test_labels_and_the_paper_have_the_papers_receptive_field():
    assert TileSettings().network_options() == {"receptive_field": 7}
    assert [s.network_options() for s in (TileSettings.paper(), TileSettings.supervised())] == [{}, {}]
    assert make_settings(labelled=True).network_options() == {}
    assert TileSettings(network="unet").network_options() == TileSettings().network_options(0) == {}


def test_a_model_learns_from_the_prior_and_is_kept(easy):
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


def test_an_image_without_information_is_abstained_from(pair, quick):
    """With noise, no class can be learned."""
    with pytest.warns(HarmWarning, match=r"looks worse than its prior.*map the prior instead"):
        model = train_model([read_tile(*pair)], quick())
    assert model.record["verdict"]["decision"] == "abstained"


@pytest.mark.parametrize("kind", ["frame", "nothing in common"])
def test_a_tile_valid_only_along_its_border_is_refused(tmp_path, make_image, make_prior, quick, kind):
    """No pixel would count in any batch: the loss would be 0, and the verdict would have no pixels."""
    holes = np.zeros((48, 56), dtype=bool)
    holes[3:-3, 3:-3] = True
    other = np.zeros_like(holes)
    if kind == "nothing in common":
        holes[:] = False
        holes[:24] = True
        other[29:43] = True
        other[24:, 3:-3] = True
    image, prior = make_image("i.tif", 48, 56, holes=holes), make_prior("p.tif", 48, 56, holes=other)
    with pytest.raises(
        InputError, match=r"i.tif has no valid pixel more than 3 px away from its border.*nothing to train"
    ):
        train_files([(image, prior)], tmp_path / "m.safetensors", settings=quick())
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_that_cannot_be_judged_gives_the_prior(tmp_path, make_image, make_prior, quick):
    holes = np.ones((48, 56), dtype=bool)
    holes[20:25, 20:30] = False
    image, prior = make_image("i.tif", 48, 56, holes=holes), make_prior("p.tif", 48, 56)
    with pytest.warns(
        HarmWarning, match=r"cannot be judged \(there are too few pixels to judge the map: 50 of at least 100"
    ):
        model = train_files([(image, prior)], tmp_path / "m.safetensors", settings=quick(starts=2))
    with pytest.warns(HarmWarning, match="could not be judged"):
        predict(image, tmp_path / "map.tif", model, posterior=prior)
    with rasterio.open(tmp_path / "map.tif") as src:
        assert src.tags(ns="LANDPRIOR")["decision"] == "abstained"


def test_training_without_smoothing_on_a_tile_with_gaps(make_image, make_prior, quick):
    holes = np.zeros((48, 56), dtype=bool)
    holes[10:20, 10:30] = True
    tile = read_tile(make_image("i.tif", 48, 56, holes=holes), make_prior("p.tif", 48, 56, holes=np.roll(holes, 5, 0)))
    for loss in ("qr", "rq", "qr-kl", "ce", "nll-union"):
        model = train_model([tile], quick(smoothing=0.0, training={"loss": loss}))
        assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())
        assert model.record["verdict"]["pixels"] > 1000


def test_the_run_ends_when_the_map_has_settled(pair, quick):
    still = {"steps": 40, "learning_rate": 1e-9}
    model = train_model([read_tile(*pair)], quick(training=still, settled=0.01))
    assert model.record["history"]["stopped"] == "the map has settled"
    assert model.record["history"]["steps"] == 20  # half the steps
    assert train_model([read_tile(*pair)], quick(training=still)).record["history"]["steps"] == 40


def test_watch_sees_every_snapshot_and_changes_nothing(pair, quick):
    steps = []
    watched = train_model(
        [read_tile(*pair)], quick(), watch=lambda look: {"seen": float(len(steps.append(look) or steps))}
    )
    assert [look["seen"] for look in watched.record["history"]["looks"]] == [1, 2, 3]
    assert watched.digest() == train_model([read_tile(*pair)], quick()).digest()


def test_starting_from_another_model(tmp_path, pair, quick):
    first = train_files([pair], tmp_path / "first.safetensors", settings=quick())
    still = quick(training={"learning_rate": 1e-12, "weight_decay": 0.0})
    second = train_files([pair], tmp_path / "second.safetensors", settings=still, init=tmp_path / "first.safetensors")
    for name, value in first.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, atol=1e-6, rtol=0)
    with pytest.raises(ModelError, match=r"4 filters .*this run has 4 bands, 6 filters"):
        train_files([pair], tmp_path / "x.safetensors", settings=quick(filters=6), init=tmp_path / "first.safetensors")
    with pytest.raises(MissingInputError, match="no model at"):
        train_files([pair], tmp_path / "x.safetensors", settings=quick(), init=tmp_path / "none.safetensors")


def stop_at(monkeypatch, step):
    """Interrupt the next training at a given step."""
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
            train_files([pair], path, settings=quick())
    assert not path.exists()
    assert (tmp_path / ".model.safetensors.checkpoint").exists()
    resumed = train_files([pair], path, settings=quick())
    assert resumed.digest() == train_files([pair], tmp_path / "whole.safetensors", settings=quick()).digest()
    assert not (tmp_path / ".model.safetensors.checkpoint").exists()


@pytest.mark.parametrize("members", [1, 2])
def test_a_full_disk_at_the_end_loses_no_training(tmp_path, pair, quick, members):
    from landprior.errors import RasterWriteError
    from landprior.landcover.training import files

    path, original = tmp_path / "model.safetensors", files.save_model

    def full(model, target, **options):
        if target == path:
            msg = "no space left"
            raise RasterWriteError(msg)
        return original(model, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "save_model", full)
        with pytest.raises(RasterWriteError):
            train_files([pair], path, settings=quick(members=members))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0)  # any further training would be interrupted
        train_files([pair], path, settings=quick(members=members))
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_other_data_is_not_resumed(tmp_path, pair, make_prior, quick):
    from landprior.errors import TrainingInterruptedError

    path = tmp_path / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(TrainingInterruptedError):
            train_files([pair], path, settings=quick())
    other = (pair[0], make_prior("other.tif", 48, 56))
    fresh = train_files([other], tmp_path / "fresh.safetensors", settings=quick())
    assert train_files([other], path, settings=quick()).digest() == fresh.digest()


def test_of_several_starts_the_one_with_the_largest_evidence_is_kept(tmp_path, pair, quick):
    tile = [read_tile(*pair, name="image.tif")]
    settings = quick(starts=3)
    each = [train_model(tile, settings, start=start) for start in range(3)]
    assert len({model.digest() for model in each}) == 3
    evidence = [model.record["verdict"]["evidence"] for model in each]
    best = train_files([pair], tmp_path / "model.safetensors", settings=settings)
    assert best.digest() == each[int(np.argmax(evidence))].digest()
    assert best.record["starts"] == {"evidence": evidence, "chosen": int(np.argmax(evidence))}
    assert not list(tmp_path.glob(".model*"))


def test_an_interrupted_start_keeps_the_finished_ones(tmp_path, pair, quick, monkeypatch):
    from landprior.errors import TrainingInterruptedError
    from landprior.landcover.training import ensemble

    path, settings = tmp_path / "model.safetensors", quick(starts=2)
    calls = []

    def counted(*args, start=0, **options):
        calls.append(start)
        if len(calls) == 2:
            raise TrainingInterruptedError
        return train_model(*args, start=start, **options)

    monkeypatch.setattr(ensemble, "train_model", counted)
    with pytest.raises(TrainingInterruptedError):
        train_files([pair], path, settings=settings)
    model = train_files([pair], path, settings=settings)
    assert calls == [0, 1, 1]
    assert len(model.record["starts"]["evidence"]) == 2
    assert not list(tmp_path.glob(".model*"))


def test_existing_model_is_refused_before_any_work(tmp_path, pair, quick, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    stop_at(monkeypatch, 0)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        train_files([pair], path, settings=quick())
    assert path.read_bytes() == b"old"


def test_no_tiles(quick):
    with pytest.raises(InputError, match="no tile"):
        train_model([], quick())


def test_the_schedule_of_the_paper():
    paper = TileSettings.paper("rq")
    assert (paper.filters, paper.patch_size, paper.batch_size) == (128, 128, 128)
    assert (paper.training.learning_rate, paper.training.schedule, paper.training.warmup) == (1e-3, "plateau", "none")
    assert TileSettings.paper("qr").training.learning_rate == 1e-4


@pytest.fixture
def labelled(easy, make_raster):
    """The easy image, its prior, and its labels with a third missing."""
    (image, prior), truth = easy
    codes = np.where(truth, 20, 70)
    codes[:, 48:] = 0
    return image, prior, make_raster("labels.tif", codes.astype(np.uint8)), truth


def supervised(**changes):
    training = {"steps": 80, "ramp_steps": 5, "learning_rate": 1e-2, "epoch_steps": 20} | changes.pop("training", {})
    return TileSettings.supervised(filters=8, patch_size=32, batch_size=8, training=training, **changes)


def score(path, truth):
    with rasterio.open(path) as src:
        return (src.read(1) == np.where(truth, 20, 70)).mean()


def test_labels_are_fitted_without_a_prior(tmp_path, labelled, enviroatlas):
    image, _, labels, truth = labelled
    model = train_files(
        [(image, None)], tmp_path / "hr.safetensors", settings=supervised(), labels=[labels], scheme=enviroatlas
    )
    assert model.extras == ()
    assert model.supervised
    assert "verdict" not in model.record
    assert model.network.smoothing == 1e-8
    predict(image, tmp_path / "map.tif", load_model(tmp_path / "hr.safetensors"))
    assert score(tmp_path / "map.tif", truth) > 0.97  # also at pixels without a label


def test_pixels_without_a_label_are_visible_but_do_not_count(labelled, enviroatlas):
    image, _, labels, _ = labelled
    tile = read_labelled_tile(image, labels, scheme=enviroatlas)
    assert tile.visible.all()
    assert tile.valid[:, :48].all()
    assert not tile.valid[:, 48:].any()
    assert (tile.prior.sum(0)[:, :48] == 1).all()
    batch = PatchFeed([tile], measure_bands([tile]), patch_size=60, batch_size=2)(0)
    assert (batch.inputs[~batch.mask.unsqueeze(1).expand_as(batch.inputs)] != 0).all()


def test_the_prior_can_be_an_input(tmp_path, labelled, enviroatlas):
    image, prior, labels, truth = labelled
    path = tmp_path / "aux.safetensors"
    model = train_files([(image, prior)], path, settings=supervised(), labels=[labels], scheme=enviroatlas)
    assert model.extras == ("prior",)
    assert next(iter(model.network.parameters())).shape[1] == 3 + 5
    again = load_model(path)
    predict(image, tmp_path / "map.tif", again, prior=prior)
    assert score(tmp_path / "map.tif", truth) > 0.97
    with pytest.raises(ModelError, match="give the prior of this image with --prior"):
        predict(image, tmp_path / "b.tif", again)
    with pytest.raises(ModelError, match="takes only the image"):
        predict(
            image,
            tmp_path / "c.tif",
            train_files([(image, prior)], tmp_path / "q.safetensors", settings=supervised()),
            prior=prior,
        )


def test_the_prior_as_an_input_has_its_own_values(labelled, enviroatlas):
    """The prior's values are unchanged, after the standardised bands."""
    image, prior, labels, _ = labelled
    tile = read_labelled_tile(image, labels, scheme=enviroatlas, prior=prior)
    batch = PatchFeed([tile], measure_bands([tile]), patch_size=60, batch_size=2)(0)
    assert batch.inputs.shape[1] == 3 + 5
    np.testing.assert_allclose(batch.inputs[:, 3:].sum(1), 1, atol=2e-3)
    assert abs(float(batch.inputs[:, :3].mean())) < 0.2


def test_from_labels_elsewhere_to_the_prior_here(tmp_path, labelled, enviroatlas):
    image, prior, labels, truth = labelled
    hr = tmp_path / "hr.safetensors"
    train_files([(image, None)], hr, settings=supervised(), labels=[labels], scheme=enviroatlas)
    settings = TileSettings(filters=8, patch_size=32, batch_size=8)
    loop = {"steps": 30, "warmup": "none", "learning_rate": 1e-4, "ramp_steps": 5}
    settings = settings.model_copy(update={"training": settings.training.model_copy(update=loop)})
    model = train_files([(image, prior)], tmp_path / "qr.safetensors", settings=settings, init=hr)
    assert model.loss == "qr"
    predict(image, tmp_path / "map.tif", model, posterior=prior, force=True)
    assert score(tmp_path / "map.tif", truth) > 0.95
    aux = tmp_path / "aux.safetensors"
    train_files([(image, prior)], aux, settings=supervised(training={"steps": 4}), labels=[labels], scheme=enviroatlas)
    with pytest.raises(ModelError, match=r"3 bands, prior as input, 8 filters .*; this run has 3 bands, 8 filters"):
        train_files([(image, prior)], tmp_path / "x.safetensors", settings=settings, init=aux)


def test_labels_and_losses_that_do_not_fit_together(tmp_path, labelled, enviroatlas, make_raster):
    image, prior, labels, _ = labelled
    target = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="qr fits a prior, not labels"):
        train_files([(image, prior)], target, settings=TileSettings(filters=4), labels=[labels], scheme=enviroatlas)
    with pytest.raises(InputError, match="labels need --scheme"):
        train_files([(image, None)], target, settings=supervised(), labels=[labels])
    with pytest.raises(InputError, match="neither prior nor labels"):
        train_files([(image, None)], target, settings=supervised())
    none = make_raster("none.tif", np.zeros((72, 72), np.uint8))
    with pytest.raises(InputError, match="no label where"):
        train_files([(image, None)], target, settings=supervised(), labels=[none], scheme=enviroatlas)
    assert not target.exists()


def test_labels_with_other_codes_are_mapped(tmp_path, labelled, enviroatlas, make_raster):
    image, _, _, truth = labelled
    labels = make_raster("ones.tif", np.where(truth, 1, 2).astype(np.uint8))
    target = tmp_path / "m.safetensors"
    train_files(
        [(image, None)], target, settings=supervised(), labels=[labels], scheme=enviroatlas, label_map={1: 20, 2: 70}
    )
    predict(image, tmp_path / "map.tif", load_model(target))
    assert score(tmp_path / "map.tif", truth) > 0.97


def test_members_are_all_kept_and_judged_together(tmp_path, pair, quick):
    tile = read_tile(*pair)
    joint = train_best([tile], quick(members=2, flips=True))
    single = [train_model([tile], quick(members=2, flips=True), start=start) for start in (0, 1)]
    for member, model in zip(joint.members, single, strict=True):
        for name, value in model.network.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, atol=0, rtol=0)
    assert joint.network.flips
    assert len(joint.record["members"]) == 2
    assert joint.record["members"][0]["verdict"] == single[0].record["verdict"]
    assert joint.record["verdict"] != single[0].record["verdict"]
    assert list(tmp_path.glob(".*")) == []


def test_flips_alone_need_one_member(pair, quick):
    tile = read_tile(*pair)
    assert len(train_best([tile], quick(flips=True)).members) == 1
    assert train_best([tile], quick(flips=True)).ensemble


def test_recipes():
    assert make_settings() == TileSettings()
    assert make_settings("best") == TileSettings.best()
    assert make_settings("paper", loss="rq") == TileSettings.paper("rq")
    best = make_settings("best", steps=90, filters=8, seed=None)
    assert (best.members, best.flips, best.training.steps, best.filters, best.training.seed) == (3, True, 90, 8, 0)
    warm = make_settings("paper", warmup_steps=200).training
    assert (warm.warmup, warm.warm_end, warm.schedule) == ("ce-em", 200, "plateau")
    labelled = make_settings(labelled=True, learning_rate=1e-2)
    assert (labelled.training.loss, labelled.smoothing, labelled.settled) == ("ce", 1e-8, 0.0)
    with pytest.raises(ValidationError, match="give only one of the two"):
        make_settings("best", starts=2)
