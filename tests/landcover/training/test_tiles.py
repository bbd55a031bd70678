"""Tiles in memory, and the patches cut from them."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from landprior.errors import GridMismatchError, InputError, PriorError, SchemeError
from landprior.implicit.seeds import derive_seed
from landprior.landcover.training.patches import PatchFeed, count_middles, turn_batch
from landprior.landcover.training.tiles import measure_bands, read_tile


@pytest.fixture
def holes():
    mask = np.zeros((70, 90), dtype=bool)
    mask[10:30, 20:50] = True
    return mask


@pytest.fixture
def tile(make_image, make_prior, holes):
    other = np.roll(holes, 25, axis=1)
    return read_tile(make_image("image.tif", 70, 90, holes=holes), make_prior("prior.tif", 70, 90, holes=other))


def test_a_tile_has_the_values_of_its_files(make_image, make_prior, holes):
    image, prior = make_image("image.tif", 70, 90, holes=holes), make_prior("prior.tif", 70, 90)
    tile = read_tile(image, prior)
    with rasterio.open(image) as src:
        np.testing.assert_array_equal(tile.image.numpy(), src.read())
    with rasterio.open(prior) as src:
        np.testing.assert_allclose(tile.prior.float().numpy(), src.read(), atol=5e-4)
    np.testing.assert_array_equal(tile.valid.numpy(), ~holes)
    assert tile.image.dtype == torch.uint8
    assert tile.prior.dtype == torch.float16


def test_bands_are_measured_over_valid_pixels_only(tile):
    statistics = measure_bands([tile])
    values = tile.image.numpy()[:, tile.valid.numpy()].astype(float)
    np.testing.assert_allclose(statistics.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std(1), rtol=1e-9)


def test_constant_band_does_not_divide_by_zero(make_raster, make_prior):
    values = np.full((2, 40, 40), 7, np.uint8)
    values[1] = np.arange(40)
    tile = read_tile(make_raster("flat.tif", values), make_prior("prior.tif", 40, 40))
    statistics = measure_bands([tile])
    x = statistics.standardise(tile.image, tile.valid)
    assert (x[0] == 0).all()
    assert x[1].std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_every_numeric_type_can_be_used_for_training(make_image, make_prior, dtype):
    tile = read_tile(make_image("image.tif", 40, 40, dtype=dtype), make_prior("prior.tif", 40, 40))
    batch = PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=2)(0)
    assert batch.inputs.dtype == torch.float32
    assert torch.isfinite(batch.inputs).all()


def test_patches_are_parts_of_the_tile(tile):
    """Every patch occurs in the tile, with its prior and mask."""
    statistics = measure_bands([tile])
    batch = PatchFeed([tile], statistics, patch_size=20, batch_size=8, seed=3, smoothing=0.0)(5)
    whole = statistics.standardise(tile.image, tile.valid)
    places = set()
    for i in range(8):
        windows = whole.unfold(1, 20, 1).unfold(2, 20, 1)  # (B, rows, columns, 20, 20)
        same = (windows == batch.inputs[i][:, None, None]).all(-1).all(-1).all(0)
        (row, column), *_ = same.nonzero().tolist()
        places.add((row, column))
        at = (slice(row, row + 20), slice(column, column + 20))
        torch.testing.assert_close(batch.mask[i], tile.valid[at])
        prior = tile.prior[(slice(None), *at)].float()
        prior = prior / prior.sum(0).clamp_min(1e-6)
        inside = batch.mask[i]
        torch.testing.assert_close(batch.log_prior[i].exp()[:, inside], prior[:, inside], atol=1e-3, rtol=0)
    assert len(places) > 4


def test_a_batch_depends_only_on_seed_and_step(tile):
    def feed(seed):
        return PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=4, seed=seed)

    one, other = feed(1), feed(1)
    one(0), one(1)
    torch.testing.assert_close(one(7).inputs, other(7).inputs, rtol=0, atol=0)
    assert not torch.equal(one(7).inputs, one(8).inputs)
    assert not torch.equal(one(7).inputs, feed(2)(7).inputs)


def test_varied_patches_are_linear_in_the_original_values(tile):
    """Each band becomes a * x + b, with a near 1 and b near 0 that depend only on seed and step."""

    def feed(**options):
        return PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=64, seed=1, **options)(7)

    plain, varied, again = feed(), feed(jitter=0.2), feed(jitter=0.2)
    torch.testing.assert_close(varied.inputs, again.inputs, rtol=0, atol=0)
    torch.testing.assert_close(varied.log_prior, plain.log_prior)
    x, y = plain.inputs.flatten(2), varied.inputs.flatten(2)
    dx, dy = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    some = dx.square().sum(-1).amin(1) > 1  # without patches in a hole
    assert some.sum() > 40
    x, y, dx, dy = x[some], y[some], dx[some], dy[some]
    factor = (dx * dy).sum(-1) / dx.square().sum(-1)
    torch.testing.assert_close(dy, factor[..., None] * dx, atol=1e-4, rtol=0)
    offset = y.mean(-1) - factor * x.mean(-1)
    assert factor.mean().item() == pytest.approx(1, abs=0.1)
    assert factor.mean(1).std().item() == pytest.approx(0.2, abs=0.07)  # the same for all bands
    assert (offset - offset.mean(1, keepdim=True)).std().item() == pytest.approx(
        0.1, abs=0.03
    )  # different for each band
    one = PatchFeed(
        [replace(tile, extra=tile.prior, extras=("prior",))], measure_bands([tile]), patch_size=16, jitter=0.2
    )
    none = PatchFeed([replace(tile, extra=tile.prior, extras=("prior",))], measure_bands([tile]), patch_size=16)
    bands = tile.image.shape[0]
    torch.testing.assert_close(one(0).inputs[:, bands:], none(0).inputs[:, bands:], rtol=0, atol=0)
    assert not torch.equal(one(0).inputs[:, :bands], none(0).inputs[:, :bands])


def test_patches_are_drawn_where_there_is_data(tile):
    valid = torch.zeros(tile.shape, dtype=torch.bool)
    valid[:20, :20] = True
    sparse = replace(tile, valid=valid, seen=torch.ones_like(valid))

    def feed(one):
        return PatchFeed([one], measure_bands([one]), patch_size=11, batch_size=64, seed=1, halo=0)(3)

    batch = feed(sparse)
    assert batch.mask[:, 5, 5].all()
    assert len({tuple(one.flatten().tolist()) for one in batch.inputs}) > 50  # from everywhere in the data
    torch.testing.assert_close(batch.inputs, feed(sparse).inputs, rtol=0, atol=0)


@pytest.mark.parametrize(("row", "column", "alike"), [(30, 30, False), (5, 30, False), (4, 30, True), (30, 0, True)])
def test_no_label_near_the_edge_is_left_out(row, column, alike):
    """Patches need data in the middle; if some pixel could then be in no patch, all positions are allowed."""
    valid = torch.zeros((64, 64), dtype=torch.bool)
    valid[row, column] = True
    found = count_middles(valid, 11)
    assert (found is None) is alike
    if found is not None:
        assert found.tolist() == [0] * (row - 5) + [1] * (54 - row + 5)
    assert count_middles(torch.ones_like(valid), 11) is None
    valid[row : row + 20, 20:50] = True  # covered by patches around other pixels
    assert (count_middles(valid, 11) is None) is (column == 0)


def test_views_are_the_same_patches_with_other_colours(tile):
    def feed(**options):
        return PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=8, seed=1, **options)(7)

    bands = tile.image.shape[0]
    once, twice = feed(), feed(views=2, jitter=0.3, tint=torch.zeros(bands, bands))
    assert twice.inputs.shape == (16, *once.inputs.shape[1:])
    assert twice.border == once.border
    for half in (slice(0, 8), slice(8, 16)):
        torch.testing.assert_close(twice.log_prior[half], once.log_prior)
        assert torch.equal(twice.mask[half], once.mask)
    first, second = twice.inputs[:8].flatten(2), twice.inputs[8:].flatten(2)
    change = (second - second.mean((1, 2), keepdim=True)).std((1, 2)) / (first - first.mean((1, 2), keepdim=True)).std(
        (1, 2)
    )
    expected = first * change[:, None, None]
    offset = (second - expected).mean((1, 2), keepdim=True)
    torch.testing.assert_close(
        second, expected + offset, atol=1e-4, rtol=0
    )  # without tint: the same change for all bands
    assert (change - 1).abs().min() > 1e-4
    assert not torch.equal(feed(tint=0.3 * torch.eye(bands)).inputs, once.inputs)  # tint alone is enough


@pytest.mark.parametrize("way", range(8))
def test_all_parts_of_a_batch_are_turned(tile, way):
    batch = PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=3)(0)
    turned = turn_batch(batch, way)
    for was, now in ((batch.inputs, turned.inputs), (batch.log_prior, turned.log_prior), (batch.mask, turned.mask)):
        expected = np.rot90(was.numpy(), way % 4, (-2, -1))
        np.testing.assert_array_equal(now.numpy(), expected[..., ::-1] if way >= 4 else expected)


def test_all_eight_orientations_occur(tile):
    def feed(*, turned):
        return PatchFeed([tile], measure_bands([tile]), patch_size=16, batch_size=1, turned=turned)

    ways = set()
    for step in range(64):
        was, now = feed(turned=False)(step), feed(turned=True)(step)
        ways |= {way for way in range(8) if torch.equal(turn_batch(was, way).inputs, now.inputs)}
    assert ways == set(range(8))


def test_the_seed_of_a_tile_comes_from_its_name():
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert derive_seed(0, "a") != derive_seed(0, "b")
    assert derive_seed(0, "a") != derive_seed(1, "a")


def test_tiles_are_drawn_in_proportion_to_valid_pixels(make_image, make_prior):
    holes = np.zeros((60, 60), dtype=bool)
    holes[:, 15:] = True  # only a quarter is valid
    full = read_tile(make_image("a.tif", 60, 60), make_prior("ap.tif", 60, 60))
    part = read_tile(make_image("b.tif", 60, 60, holes=holes), make_prior("bp.tif", 60, 60))
    feed = PatchFeed([full, part], measure_bands([full, part]), patch_size=60, batch_size=64)
    wholes = sum(int(feed(step).mask.all(-1).all(-1).sum()) for step in range(20))
    assert wholes / (20 * 64) == pytest.approx(0.8, abs=0.04)


def test_patch_side_shrinks_to_a_small_tile(make_image, make_prior):
    tile = read_tile(make_image("image.tif", 25, 90), make_prior("prior.tif", 25, 90))
    assert PatchFeed([tile], measure_bands([tile]), patch_size=64)(0).inputs.shape == (16, 4, 25, 25)


def test_tile_smaller_than_the_border_is_refused(make_image, make_prior):
    tile = read_tile(make_image("image.tif", 10, 90), make_prior("prior.tif", 10, 90))
    with pytest.raises(InputError, match="leave nothing inside the 5 px border"):
        PatchFeed([tile], measure_bands([tile]))


def test_different_grids_are_refused(make_image, make_prior, make_grid):
    image = make_image("image.tif", 40, 40)
    with pytest.raises(GridMismatchError, match="corners up to 3 px apart"):
        read_tile(image, make_prior("shifted.tif", 40, 40, grid=make_grid(40, 40, left=600_003.0)))
    with pytest.raises(GridMismatchError, match=r"CRS EPSG:26917 and EPSG:26918"):
        read_tile(image, make_prior("zone.tif", 40, 40, grid=make_grid(40, 40, epsg=26918)))
    with pytest.raises(GridMismatchError, match="40 x 40 px and 41 x 40 px"):
        read_tile(image, make_prior("wider.tif", 40, 41))


def test_prior_with_zero_mass_is_refused(make_image, make_raster, enviroatlas):
    image = make_image("image.tif", 40, 40)
    zero = make_raster("zero.tif", np.zeros((5, 40, 40), np.float32))
    with pytest.raises(PriorError, match="the prior is empty where the image is valid"):
        read_tile(image, zero, scheme=enviroatlas)


def test_prior_without_a_scheme_is_refused(make_image, make_raster):
    image = make_image("image.tif", 40, 40)
    with pytest.raises(SchemeError, match=r"has no classes in its tags; give --scheme"):
        read_tile(image, make_raster("plain.tif", np.full((5, 40, 40), 0.2, np.float32)))


def test_prior_of_another_scheme_is_refused(make_image, make_prior, chesapeake):
    with pytest.raises(SchemeError, match="was built for scheme 'enviroatlas-5', not 'chesapeake-4'"):
        read_tile(make_image("image.tif", 40, 40), make_prior("prior.tif", 40, 40), scheme=chesapeake)


def test_prior_with_another_number_of_bands_is_refused(make_image, make_raster, enviroatlas):
    with pytest.raises(PriorError, match="has 3 bands and scheme 'enviroatlas-5' has 5 classes"):
        read_tile(
            make_image("image.tif", 40, 40),
            make_raster("three.tif", np.full((3, 40, 40), 1 / 3, np.float32)),
            scheme=enviroatlas,
        )


def test_half_missing_prior_is_refused(make_image, make_raster, enviroatlas):
    values = np.full((5, 40, 40), 0.2, np.float32)
    values[2, 7, 9] = np.nan
    with pytest.raises(PriorError, match="row 7, column 9"):
        read_tile(make_image("image.tif", 40, 40), make_raster("torn.tif", values), scheme=enviroatlas)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nodata", [None, -9999.0, np.nan])
def test_nan_and_infinity_in_the_image_are_nodata(make_raster, make_prior, caplog, broken, nodata):
    values = np.ones((3, 40, 40), np.float32)
    values[1, 11, 5] = values[0, 3, 2] = broken
    image = make_raster("nan.tif", values, nodata=nodata)
    with caplog.at_level("INFO", logger="landprior"):
        tile = read_tile(image, make_prior("prior.tif", 40, 40))
    assert np.argwhere(~tile.valid.numpy()).tolist() == [[3, 2], [11, 5]]
    assert tile.image[:, 11, 5].tolist() == [0, 0, 0]
    said = [record.getMessage() for record in caplog.records if "NaN or infinite" in record.getMessage()]
    marked = np.isnan(broken) and nodata is not None and np.isnan(nodata)
    line = f"{image}: pixels that are NaN or infinite in some band: 2; they count as no data"
    assert said == ([] if marked else [line])


def test_nan_that_is_declared_nodata_is_a_hole(make_raster, make_prior):
    values = np.ones((3, 40, 40), np.float32)
    values[:, 11, 5] = np.nan
    tile = read_tile(make_raster("nan.tif", values, nodata=float("nan")), make_prior("prior.tif", 40, 40))
    assert not tile.valid[11, 5]
    assert int(tile.valid.sum()) == 1599


def test_nodata_given_by_the_user(make_raster, make_prior):
    values = np.full((3, 40, 40), 9, np.uint8)
    values[:, 0, :] = 0
    values[0, 5, 5] = 0  # dark in one band only, which is data
    tile = read_tile(make_raster("image.tif", values), make_prior("prior.tif", 40, 40), nodata=0)
    assert not tile.valid[0].any()
    assert tile.valid[1:].all()


def test_tiles_for_one_model_must_match(make_image, make_prior, chesapeake):
    one = read_tile(make_image("a.tif", 40, 40), make_prior("ap.tif", 40, 40))
    bands = read_tile(make_image("b.tif", 40, 40, bands=3), make_prior("bp.tif", 40, 40))
    classes = read_tile(make_image("c.tif", 40, 40), make_prior("cp.tif", 40, 40, scheme=chesapeake))
    with pytest.raises(InputError, match=r"b.tif has 3 bands and a.tif has 4"):
        PatchFeed([one, bands], measure_bands([one]))
    with pytest.raises(SchemeError, match="different schemes"):
        PatchFeed([one, classes], measure_bands([one]))
