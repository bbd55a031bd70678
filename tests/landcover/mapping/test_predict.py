"""Prediction: windows do not matter, products are correct, bad input is refused and nothing is left behind."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rio_cogeo.cogeo import cog_validate

from landprior.errors import (
    GridMismatchError,
    HarmWarning,
    InputError,
    MissingInputError,
    ModelError,
    OutputExistsError,
    RasterReadError,
    SchemeError,
)
from landprior.implicit.networks import Ensemble, log_prior
from landprior.implicit.posterior import log_posterior
from landprior.landcover.assessment.scores import scheme_of_map
from landprior.landcover.mapping.finish import GuidedFilter, leave_out
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.training.model import load_model, save_model
from landprior.raster.scheme import MAP_NODATA
from landprior.run import Run

SIZES = [(61, 83), (64, 64), (7, 130), (131, 17), (1, 1)]


def holes_of(height, width, rng):
    """A nodata block, single pixels and a whole corner."""
    mask = rng.random((height, width)) < 0.02
    mask[height // 3 : height // 2, width // 4 : width // 2] = True
    mask[: height // 5, : width // 5] = True
    if height * width == 1:
        mask[:] = False
    return mask


def whole_q(model, image, holes):
    """Return q of the whole image at once, (C, H, W)."""
    with rasterio.open(image) as src:
        values = torch.from_numpy(src.read())
    x = model.statistics.standardise(values, torch.from_numpy(~holes))[None]
    with torch.no_grad():
        return model.network(x)[0]


def read(path):
    with rasterio.open(path) as src:
        return src.read()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("window", [16, 23, 512])
def test_windows_do_not_matter(tmp_path, make_image, make_model, rng, height, width, window):
    holes = holes_of(height, width, rng)
    image, model = make_image("image.tif", height, width, holes=holes), make_model()
    options = MapOptions(finish="none", probabilities=True, encoding="float32")
    predict(image, tmp_path / "map.tif", model, options=options, window_size=window)
    expected = whole_q(model, image, holes).exp().numpy()
    found = read(tmp_path / "map_probabilities.tif")
    assert np.isnan(found[:, holes]).all()
    np.testing.assert_allclose(found[:, ~holes], expected[:, ~holes], atol=1e-5)
    codes = read(tmp_path / "map.tif")[0]
    assert (codes[holes] == MAP_NODATA).all()
    sure = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 1e-5
    np.testing.assert_array_equal(codes[~holes & sure], model.scheme.codes[expected.argmax(0)][~holes & sure])


@pytest.mark.parametrize("window", [16, 37, 512])
def test_posterior_uses_the_sums_of_the_whole_image(tmp_path, make_image, make_prior, make_model, rng, window):
    holes = holes_of(61, 83, rng)
    unbelieved = np.zeros_like(holes)
    unbelieved[40:50, 60:] = True
    image, prior = make_image("image.tif", 61, 83, holes=holes), make_prior("prior.tif", 61, 83, holes=unbelieved)
    model = make_model()
    options = MapOptions(finish="none", probabilities=True, encoding="float32")
    predict(image, tmp_path / "map.tif", model, posterior=prior, options=options, window_size=window)
    log_q = whole_q(model, image, holes)[None]
    log_p = log_prior(torch.from_numpy(np.nan_to_num(read(prior)))[None])
    r = log_posterior(log_q, log_p, torch.from_numpy(~holes)[None])[0].exp().numpy()
    found = read(tmp_path / "map_probabilities.tif")
    both = ~holes & ~unbelieved
    np.testing.assert_allclose(found[:, both], r[:, both], atol=1e-5)
    only_q = ~holes & unbelieved
    np.testing.assert_allclose(found[:, only_q], log_q[0].exp().numpy()[:, only_q], atol=1e-5)
    assert np.abs(r - log_q[0].exp().numpy())[:, both].max() > 0.05


def finish(shares, valid, model, image, pixel=(1.0, 1.0)):
    """The whole image's probabilities, (C, H, W), finished in one piece."""
    with rasterio.open(image) as src:
        values = torch.from_numpy(src.read())
    guide = model.statistics.standardise(values, torch.from_numpy(valid))
    return GuidedFilter.of(pixel).apply(shares.float(), torch.from_numpy(valid), guide, (0, 0)).numpy()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("window", [16, 23, 512])
def test_windows_do_not_matter_to_a_finished_map(tmp_path, make_image, make_model, rng, height, width, window):
    holes = holes_of(height, width, rng)
    image, model = make_image("image.tif", height, width, holes=holes), make_model()
    options = MapOptions(probabilities=True, confidence=True, encoding="float32")
    path = predict(image, tmp_path / "map.tif", model, options=options, window_size=window)
    expected = finish(whole_q(model, image, holes).exp(), ~holes, model, image)
    found = read(tmp_path / "map_probabilities.tif")
    np.testing.assert_allclose(found[:, ~holes], expected[:, ~holes], atol=1e-5)
    assert (read(path)[0][holes] == MAP_NODATA).all()
    assert (read(tmp_path / "map_confidence.tif")[:, holes] == 255).all()
    np.testing.assert_allclose(read(tmp_path / "map_confidence.tif")[0, ~holes] / 250, found.max(0)[~holes], atol=3e-3)
    with rasterio.open(path) as src:
        assert src.tags(ns="landprior")["finish"] == "edge 9 m"


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("window", [16, 37, 512])
def test_a_class_that_was_given_up_leaves_r(
    tmp_path, make_image, make_prior, make_model, rng, monkeypatch, window, memory
):
    """By hand over the whole image, with what the first pass computes kept and not kept."""
    if memory is not None:
        monkeypatch.setattr("landprior.landcover.mapping.predict.compute_budget", lambda *_: memory)
    holes, unbelieved = holes_of(61, 83, rng), np.zeros((61, 83), bool)
    unbelieved[40:50, 60:] = True
    image, prior = make_image("image.tif", 61, 83, holes=holes), make_prior("prior.tif", 61, 83, holes=unbelieved)
    model, both = make_model(), ~holes & ~unbelieved
    log_q = whole_q(model, image, holes)[None]
    shares = np.nan_to_num(read(prior))
    named = np.bincount(log_q[0].numpy().argmax(0)[both], minlength=5) / both.sum()
    given_up = np.flatnonzero(named < 0.5 * shares[:, both].mean(1) / shares[:, both].sum(0).mean())
    assert 0 < len(given_up) < 5
    log_p = leave_out(log_prior(torch.from_numpy(shares)[None]), given_up.tolist())
    r = log_posterior(log_q, log_p, torch.from_numpy(~holes)[None], check=False)[0].exp()
    r = torch.where(torch.from_numpy(unbelieved), log_q[0].exp(), r)
    options = MapOptions(probabilities=True, encoding="float32")
    path = predict(image, tmp_path / "map.tif", model, posterior=prior, options=options, window_size=window)
    found = read(tmp_path / "map_probabilities.tif")
    np.testing.assert_allclose(found[:, ~holes], finish(r, ~holes, model, image)[:, ~holes], atol=2e-5)
    with rasterio.open(path) as src:
        assert src.tags(ns="landprior")["given_up"] == ",".join(model.scheme.names[index] for index in given_up)


def test_the_map_is_a_valid_cog_with_names_colours_and_tags(tmp_path, make_image, make_model):
    image, model = make_image("image.tif", 700, 600), make_model(record={"settings": {"training": {"loss": "qr"}}})
    path = predict(image, tmp_path / "map.tif", model, options=MapOptions(tags={"note": "test"}))
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as src:
        assert src.dtypes == ("uint8",)
        assert src.nodata == MAP_NODATA
        tags = src.tags(ns="landprior")
        assert tags["model"] == model.digest()
        assert tags["loss"] == "qr"
        assert tags["maps"] == "q"
        assert tags["note"] == "test"
        assert json.loads(tags["scheme"])["name"] == "enviroatlas-5"
        table = src.colormap(1)
        for c in model.scheme.classes:
            assert table[c.code][:3] == c.rgb
        with rasterio.open(image) as original:
            assert src.transform == original.transform
            assert src.crs == original.crs
        assert src.overviews(1) == [2]


def test_confidence_has_the_largest_probability_and_the_entropy(tmp_path, make_image, make_model, rng):
    holes = holes_of(40, 50, rng)
    image, model = make_image("image.tif", 40, 50, holes=holes), make_model()
    predict(image, tmp_path / "map.tif", model, options=MapOptions(finish="none", confidence=True))
    q = whole_q(model, image, holes).exp().double().numpy()
    with rasterio.open(tmp_path / "map_confidence.tif") as src:
        stored = src.read()
        assert src.scales == pytest.approx((1 / 250, 1 / 250))
        assert src.nodata == 255
    assert (stored[:, holes] == 255).all()
    np.testing.assert_allclose(stored[0, ~holes] / 250, q.max(0)[~holes], atol=0.5 / 250 + 1e-6)
    entropy = -(q * np.log(q)).sum(0) / math.log(5)
    np.testing.assert_allclose(stored[1, ~holes] / 250, entropy[~holes], atol=0.5 / 250 + 1e-6)


def test_uint8_probabilities_are_rounded(tmp_path, make_image, make_model):
    image, model = make_image("image.tif", 40, 50), make_model()
    predict(image, tmp_path / "map.tif", model, options=MapOptions(finish="none", probabilities=True, encoding="uint8"))
    q = whole_q(model, image, np.zeros((40, 50), bool)).exp().numpy()
    with rasterio.open(tmp_path / "map_probabilities.tif") as src:
        np.testing.assert_allclose(src.read() * src.scales[0], q, atol=0.5 / 255 + 1e-6)
        assert src.descriptions == tuple(model.scheme.names)
    assert scheme_of_map(tmp_path / "map_probabilities.tif", probabilities=True) == model.scheme  # as zonal needs it


def test_style_and_quicklook(tmp_path, make_image, make_model):
    from matplotlib.image import imread

    image, model = make_image("image.tif", 40, 50), make_model()
    predict(image, tmp_path / "map.tif", model, options=MapOptions(style=True, quicklook=True))
    style = (tmp_path / "map.qml").read_text()
    for c in model.scheme.classes:
        assert f'value="{c.code}" color="{c.colour.lower()}" alpha="255" label="{c.name}"' in style
    picture = np.rint(imread(tmp_path / "map.png") * 255).astype(int)
    np.testing.assert_array_equal(picture, model.scheme.render(read(tmp_path / "map.tif")[0]))


def test_a_map_of_the_prior_itself(tmp_path, make_prior, enviroatlas):
    holes = np.zeros((30, 40), bool)
    holes[3:6, 7:9] = True
    prior = make_prior("prior.tif", 30, 40, holes=holes)
    codes = read(map_prior(prior, tmp_path / "map.tif"))[0]
    expected = enviroatlas.codes[np.nan_to_num(read(prior)).argmax(0)]
    np.testing.assert_array_equal(codes, np.where(holes, MAP_NODATA, expected))


JUDGED = {"verdict": {"decision": "abstained", "why": "a test"}}


def test_a_model_judged_worse_gives_the_prior(tmp_path, make_image, make_prior, make_model):
    image, prior = make_image("image.tif", 30, 40), make_prior("prior.tif", 30, 40)
    options = MapOptions(finish="none", probabilities=True, encoding="float32")
    with pytest.warns(HarmWarning, match=r"judged worse than its prior \(a test\).*--force"):
        path = predict(image, tmp_path / "map.tif", make_model(record=JUDGED), posterior=prior, options=options)
    np.testing.assert_array_equal(read(path), read(map_prior(prior, tmp_path / "prior_map.tif")))
    np.testing.assert_allclose(read(tmp_path / "map_probabilities.tif"), read(prior), atol=6e-4)
    with rasterio.open(path) as src:
        assert src.tags(ns="landprior")["decision"] == "abstained"


def test_force_maps_the_posterior_anyway(tmp_path, make_image, make_prior, make_model):
    image, prior = make_image("image.tif", 30, 40), make_prior("prior.tif", 30, 40)
    plain = predict(image, tmp_path / "plain.tif", make_model(), posterior=prior)
    with pytest.warns(HarmWarning):
        forced = predict(image, tmp_path / "map.tif", make_model(record=JUDGED), posterior=prior, force=True)
    np.testing.assert_array_equal(read(forced), read(plain))
    with rasterio.open(forced) as src:
        assert src.tags(ns="landprior")["decision"] == "forced"


# -- bad input ------------------------------------------------------------------------------------


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def test_other_bands_are_refused(tmp_path, make_image, make_model):
    image = make_image("image.tif", 30, 40, bands=3)
    with pytest.raises(ModelError, match="has 3 bands and the model was trained on 4; give the same bands"):
        predict(image, tmp_path / "map.tif", make_model())


def test_prior_on_another_grid_is_refused(tmp_path, make_image, make_prior, make_model, make_grid):
    image = make_image("image.tif", 30, 40)
    elsewhere = make_prior("prior.tif", 30, 40, grid=make_grid(30, 40, epsg=26918))
    with pytest.raises(GridMismatchError, match="CRS EPSG:26917 and EPSG:26918"):
        predict(image, tmp_path / "map.tif", make_model(), posterior=elsewhere)


def test_prior_of_another_scheme_is_refused(tmp_path, make_image, make_prior, make_model, chesapeake):
    prior = make_prior("prior.tif", 30, 40, scheme=chesapeake)
    with pytest.raises(SchemeError, match="was built for scheme 'chesapeake-4'"):
        predict(make_image("image.tif", 30, 40), tmp_path / "map.tif", make_model(), posterior=prior)


def test_image_of_nodata_only_is_refused_and_nothing_is_left(tmp_path, make_image, make_model):
    image = make_image("image.tif", 30, 40, holes=np.ones((30, 40), bool))
    before = left(tmp_path)
    with pytest.raises(InputError, match="no valid pixel"):
        predict(image, tmp_path / "map.tif", make_model())
    assert left(tmp_path) == before


def test_existing_map_is_kept_without_overwrite(tmp_path, make_image, make_model):
    image = make_image("image.tif", 30, 40)
    path = tmp_path / "map.tif"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        predict(image, path, make_model())
    assert path.read_bytes() == b"old"
    predict(image, path, make_model(), run=Run(overwrite=True))
    assert read(path).shape == (1, 30, 40)


def test_a_folder_is_refused(tmp_path, make_image, make_model):
    with pytest.raises(RasterReadError, match="is a folder; give the path of a raster file"):
        predict(tmp_path, tmp_path / "map.tif", make_model())
    with pytest.raises(InputError, match="is a folder; give the path of a file to write"):
        predict(make_image("image.tif", 30, 40), tmp_path, make_model())


def test_missing_image(tmp_path, make_model):
    with pytest.raises(MissingInputError, match="no such file"):
        predict(tmp_path / "none.tif", tmp_path / "map.tif", make_model())


def test_truncated_image_leaves_the_old_map(tmp_path, make_image, make_model):
    image = make_image("image.tif", 1200, 1200)
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    path = tmp_path / "map.tif"
    path.write_bytes(b"old")
    before = left(tmp_path)
    with pytest.raises(RasterReadError, match=r"image\.tif.*(damaged|complete)"):
        predict(image, path, make_model(), run=Run(overwrite=True))
    assert path.read_bytes() == b"old"
    assert left(tmp_path) == before


def test_interruption_while_writing_leaves_the_old_map(tmp_path, make_image, make_model, monkeypatch):
    from landprior.landcover.mapping.mapper import Mapper

    image = make_image("image.tif", 90, 90)
    path = predict(image, tmp_path / "map.tif", make_model(seed=1))
    old, before = path.read_bytes(), left(tmp_path)
    compute, calls = Mapper.compute, []

    def interrupted(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, *arguments, **options)

    monkeypatch.setattr(Mapper, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(image, path, make_model(seed=2), run=Run(overwrite=True), window_size=32)
    assert path.read_bytes() == old
    assert left(tmp_path) == before


def test_near_infrared_declared_as_alpha_is_a_band(tmp_path, rng, make_grid, make_model):
    """GDAL declares it so in four bands of bytes, and so do most NAIP files."""
    values = rng.integers(1, 255, (4, 30, 40)).astype(np.uint8)
    grid, path = make_grid(30, 40), tmp_path / "naip.tif"
    profile = {"driver": "GTiff", "height": 30, "width": 40, "count": 4, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, transform=grid.transform, crs=grid.crs) as dst:
        dst.write(values)
    with rasterio.open(path) as src:
        assert src.colorinterp[3].name == "alpha"
    predict(
        path,
        tmp_path / "map.tif",
        make_model(),
        options=MapOptions(finish="none", probabilities=True, encoding="float32"),
    )
    expected = whole_q(make_model(), path, np.zeros((30, 40), bool)).exp().numpy()
    np.testing.assert_allclose(read(tmp_path / "map_probabilities.tif"), expected, atol=1e-5)


def test_a_true_alpha_band_is_a_mask(tmp_path, rng, make_grid, make_model):
    values = rng.integers(1, 255, (4, 30, 40)).astype(np.uint8)
    values[3] = np.where(rng.random((30, 40)) < 0.3, 0, 255)
    grid, path = make_grid(30, 40), tmp_path / "rgba.tif"
    profile = {"driver": "GTiff", "height": 30, "width": 40, "count": 4, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, transform=grid.transform, crs=grid.crs) as dst:
        dst.write(values)
    predict(path, tmp_path / "map.tif", make_model(bands=3))
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0] == MAP_NODATA, values[3] == 0)


def test_classes_without_support_are_left_out_of_r(tmp_path, make_image, make_prior, make_model):
    """r has only the other classes, a tag names those left out, and --force maps all classes."""
    image, prior = make_image("image.tif", 40, 50), make_prior("prior.tif", 40, 50)
    verdict = {"decision": "kept", "why": "a test", "unsupported": [1, 3]}
    model = make_model(record={"verdict": verdict, "settings": {"drop_unsupported": True}})
    assert make_model(record={"verdict": verdict}).dropped == ()  # in the paper, r has all classes
    full = predict(
        image,
        tmp_path / "all.tif",
        model,
        posterior=prior,
        force=True,
        options=MapOptions(finish="none", probabilities=True),
    )
    some = predict(
        image, tmp_path / "some.tif", model, posterior=prior, options=MapOptions(finish="none", probabilities=True)
    )
    with rasterio.open(full) as src:
        assert "dropped" not in src.tags(ns="landprior")
    with rasterio.open(some) as src:
        assert src.tags(ns="landprior")["dropped"] == "impervious,trees"
    whole, rest = (read(path.with_name(f"{path.stem}_probabilities.tif")) for path in (full, some))
    assert set(np.unique(read(some))) <= {10, 30, 70}
    kept = whole[[0, 2, 4]] / whole[[0, 2, 4]].sum(0)
    np.testing.assert_allclose(rest[[0, 2, 4]], kept, atol=3e-3)
    assert rest[[1, 3]].max() == 0
    plain = predict(image, tmp_path / "q.tif", model, options=MapOptions(finish="none"))  # q has all classes
    assert {20, 40} & set(np.unique(read(plain)))


def test_an_ensemble_averages_members_and_mirrored_images(tmp_path, make_image, make_model):
    """In windows and loaded from a file, it equals the mean over networks and mirrored images, computed by hand."""
    image = make_image("image.tif", 40, 52)
    models = [make_model(seed=seed) for seed in (0, 1)]
    ensemble = replace(models[0], network=Ensemble([m.network for m in models], flips=True).eval())
    save_model(ensemble, tmp_path / "two.safetensors")
    again = load_model(tmp_path / "two.safetensors")
    assert again.digest() == ensemble.digest()
    assert again.network.flips
    assert len(again.members) == 2
    path = predict(
        image,
        tmp_path / "map.tif",
        again,
        window_size=16,
        options=MapOptions(finish="none", probabilities=True, encoding="float32"),
    )
    with rasterio.open(image) as src:
        values = torch.from_numpy(src.read())
    x = models[0].statistics.standardise(values, torch.ones(values.shape[1:], dtype=torch.bool))[None]
    with torch.no_grad():
        each = [m.network(x.flip(axes)).flip(axes).exp() for m in models for axes in ((), (2,), (3,), (2, 3))]
    expected = torch.stack(each).mean(0)[0].numpy()
    found = read(path.with_name("map_probabilities.tif"))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("place", ["nowhere", "no CRS", "known"])
def test_a_map_without_a_georeference_is_logged(make_raster, make_grid, make_model, rng, tmp_path, caplog, place):
    grid = make_grid(40, 40, epsg=None) if place == "no CRS" else make_grid(40, 40)
    grid = replace(grid, crs=None, transform=Affine.identity()) if place == "nowhere" else grid
    image = make_raster("image.tif", rng.integers(1, 255, (4, 40, 40)).astype(np.uint8), grid=grid)
    with caplog.at_level("INFO", logger="landprior"):
        predict(image, tmp_path / "map.tif", make_model())
    said = [r.getMessage() for r in caplog.records if "its map will have none" in r.getMessage()]
    expected = {"nowhere": ["georeference"], "no CRS": ["CRS"], "known": []}[place]
    assert said == [f"{image} has no {lack}, so its map will have none" for lack in expected]
