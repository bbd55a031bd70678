"""Self-epitomic super-resolution, compared with its definition in float64."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landprior.cli import main
from landprior.errors import GridMismatchError, InputError, OutputExistsError, PriorError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.raster.reading import open_raster
from landprior.superres import posteriors as module
from landprior.superres.posteriors import Dense, Posteriors, Sparse
from landprior.superres.self_epitome import (
    Spreader,
    draw_corners,
    find_usable,
    map_by_self_epitome,
    resolve_tile,
    scale_image,
)
from landprior.superres.settings import SelfEpitomeSettings


@pytest.fixture
def picture():
    """A smooth half and a rough half, 3 bands from 0 to 1, with a gap."""
    rng = np.random.default_rng(8)
    image = np.full((3, 24, 26), 0.3) + rng.normal(0, 0.02, (3, 24, 26))
    image[:, :, 13:] = 0.6 + rng.normal(0, 0.15, (3, 24, 13))
    valid = np.ones((24, 26), dtype=bool)
    valid[10, 12] = False
    image = np.where(valid, image.clip(0, 1), 0)
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(valid)


def brute(image, usable, corners, *, patch, variance, own):
    """Return p(s|x), (P, S), in float64."""
    image = image.double().numpy()
    height, width = usable.shape
    windows = np.stack([image[:, r : r + patch, c : c + patch].ravel() for r in range(height) for c in range(width)])
    found = []
    for corner in corners.tolist():
        exponent = -((windows - windows[corner]) ** 2).sum(1) / (2 * variance)
        exponent[~usable.flatten().numpy()] = -np.inf
        if own is not None:
            exponent[corner] = -np.inf
        weight = np.exp(exponent - exponent.max())
        weight *= (1 - (own or 0)) / weight.sum()
        weight[corner] += own or 0
        found.append(weight)
    return np.stack(found)


def collect(found, count, positions):
    out = np.full((count, positions), np.nan)
    kinds = set()
    for block in found.blocks():
        kinds.add(type(block))
        out[block.rows] = block.gather(torch.eye(positions)).numpy()
    return out, kinds


@pytest.mark.parametrize("own", [0.0, 0.3, None])
@pytest.mark.parametrize(("dense", "kind"), [(0.0, Dense), (1.1, Sparse)])
def test_posteriors_match_the_definition(picture, monkeypatch, own, dense, kind):
    monkeypatch.setattr(module, "DENSE", dense)
    monkeypatch.setattr(module, "ROWS", 32)
    monkeypatch.setattr(module, "LEAF", 50)
    image, valid = picture
    usable = find_usable(valid, 5)
    assert int((~usable).sum()) == 25
    corners = draw_corners(usable, 100, 3)
    options = {"patch": 5, "variance": 0.01, "own": own}
    found = Posteriors(image, usable, corners, **options)
    expected = brute(image, usable, corners, **options)
    for _ in range(2):  # from the cache, and recomputed
        values, kinds = collect(found, len(corners), usable.numel())
        assert kinds == {kind}
        np.testing.assert_allclose(values, expected, atol=2e-5)
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("dense", [0.0, 0.3, 1.1])
@pytest.mark.parametrize("cache", [True, False])
def test_counts_spreading_and_smoothing_match_the_definition(picture, monkeypatch, cache, dense):
    monkeypatch.setattr(module, "DENSE", dense)
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(module, "LEAF", 60)
    if not cache:
        monkeypatch.setattr(module, "CACHED_ENTRIES", 0)
        monkeypatch.setattr(module, "CACHED_PATCHES", 0)
        monkeypatch.setattr(module, "MERGED_ENTRIES", 500)
    image, valid = picture
    usable = find_usable(valid, 5)
    corners = draw_corners(usable, 60, 1)
    index = (np.indices(valid.shape)[1] // 9).astype(np.int64)
    index[0, 0] = -1
    settings = SelfEpitomeSettings(patch=5, own_match=0.2)
    options = {"patch": 5, "variance": 0.01, "own": 0.2}
    spreader = Spreader(image, usable, corners, index, settings)
    assert 0 < int(spreader.pure.sum()) < len(corners)
    p = brute(image, usable, corners, **options)
    one_hot = np.stack([index == c for c in range(3)], -1).astype(float)
    rows, columns = corners.numpy() // usable.shape[1], corners.numpy() % usable.shape[1]
    windows = np.stack([one_hot[r : r + 5, c : c + 5] for r, c in zip(rows, columns, strict=True)])

    def put(windows):
        out = settings.own_code * one_hot
        for s in range(usable.numel()):
            r, c = divmod(s, usable.shape[1])
            out[r : r + 5, c : c + 5] += np.einsum("x,xijc->ijc", p[:, s], windows)
        return out

    def fetch(values):
        height, width = usable.shape
        table = np.stack([values[r : r + 5, c : c + 5] for r in range(height) for c in range(width)])
        return np.einsum("xs,sijc->xijc", p, table)

    counts = spreader.count(3)
    np.testing.assert_allclose(counts.numpy(), put(windows), atol=2e-4)
    shares = put(windows) / put(windows).sum(2, keepdims=True).clip(1e-12)
    np.testing.assert_allclose(spreader.travel(counts).numpy(), put(fetch(shares)), atol=2e-3)
    total, number = np.zeros(one_hot.shape), np.zeros(valid.shape)
    for x, (r, c) in enumerate(zip(rows, columns, strict=True)):
        total[r : r + 5, c : c + 5] += fetch(one_hot)[x]
        number[r : r + 5, c : c + 5] += 1
    expected = np.where(number[..., None] > 0, total / number.clip(1)[..., None], one_hot)
    np.testing.assert_allclose(spreader.smooth(torch.from_numpy(one_hot).float()).numpy(), expected, atol=1e-4)


@pytest.fixture
def noisy():
    """Two kinds of ground in stripes, and coarse codes that are right in 70 % of the cells."""
    rng = np.random.default_rng(2)
    truth = (np.indices((60, 64))[1] // 16) % 2
    image = np.where(truth, 150, 60)[None] + rng.normal(0, 6, (3, 60, 64))
    codes = np.where(truth, 41, 11)
    cells = np.kron(rng.random((8, 8)) < 0.3, np.ones((8, 8), dtype=bool))[:60, :64]
    codes = np.where(cells, 52 - codes, codes)
    table = np.zeros((256, 2), dtype=np.float32)
    table[11], table[41] = (0.8, 0.2), (0.2, 0.8)
    return image.clip(1, 255).astype(np.uint8), truth, codes, table


@pytest.mark.parametrize("shrink", [1, 2, 3])
def test_it_corrects_codes_and_labels_every_valid_pixel(noisy, shrink):
    image, truth, codes, table = noisy
    valid = np.ones(truth.shape, dtype=bool)
    valid[:, 30] = False
    valid[40:, :3] = False
    valid[50, 1] = True  # an isolated pixel
    found = resolve_tile(image, valid, codes, table, SelfEpitomeSettings(shrink=shrink))
    assert found.dtype == np.float32
    assert np.isnan(found[:, ~valid]).all()
    np.testing.assert_allclose(found[:, valid].sum(0), 1, atol=1e-5)
    right = (found.argmax(0) == truth)[valid].mean()
    assert right > (codes == np.where(truth, 41, 11))[valid].mean() + 0.07
    again = resolve_tile(image, valid, codes, table, SelfEpitomeSettings(shrink=shrink))
    np.testing.assert_array_equal(found, again)


def test_scales():
    image = np.array([[[100.0, 300, 999]], [[5, 5, 5]]])
    valid = np.array([[True, True, False]])
    np.testing.assert_allclose(scale_image(image, valid), [[[0, 1, 0]], [[0, 0, 0]]])
    assert scale_image(np.full((1, 1, 1), 51, np.uint8), np.ones((1, 1), bool)).item() == pytest.approx(0.2)


def test_bad_input_is_refused(noisy):
    image, truth, codes, table = noisy
    valid = np.ones(truth.shape, dtype=bool)
    with pytest.raises(InputError, match="do not match"):
        resolve_tile(image, valid, codes[1:], table)
    with pytest.raises(InputError, match="no valid pixel"):
        resolve_tile(image, ~valid, codes, table)
    with pytest.raises(PriorError, match="coarse code"):
        resolve_tile(image, valid, np.zeros_like(codes), table)
    with pytest.raises(InputError, match="without a gap"):
        resolve_tile(image[:, :6, :6], valid[:6, :6], codes[:6, :6], table)


def test_files_and_command(noisy, make_raster, make_grid, chesapeake, tmp_path):
    image, _, codes, _ = noisy
    holes = image.copy()
    holes[:, :5, :5] = 0
    picture = make_raster("image.tif", holes, nodata=0)
    cells = make_raster("nlcd.tif", codes[::10, ::10].astype(np.uint8), grid=make_grid(6, 7, pixel=10.0))
    matrix = load_cooccurrence(None, chesapeake)
    options = {
        "scheme": chesapeake,
        "cooccurrence": matrix,
        "options": MapOptions(probabilities=True, encoding="float32"),
    }
    path = map_by_self_epitome(picture, cells, tmp_path / "map.tif", **options)
    with open_raster(path) as src, open_raster(tmp_path / "map_probabilities.tif") as shares:
        found, probabilities = src.read(1), shares.read()
        assert src.tags(ns="landprior")["method"] == "self-epitome"
    assert (found[:5, :5] == 255).all()
    assert np.isnan(probabilities[:, :5, :5]).all()
    np.testing.assert_array_equal(chesapeake.codes[np.nan_to_num(probabilities).argmax(0)][10:], found[10:])
    with pytest.raises(OutputExistsError):
        map_by_self_epitome(picture, cells, path, **options)
    far = make_raster("far.tif", codes.astype(np.uint8), grid=make_grid(60, 64, left=900_000.0))
    with pytest.raises(GridMismatchError):
        map_by_self_epitome(picture, far, tmp_path / "far-map.tif", **options)
    arguments = ["self-epitome", str(picture), "--nlcd", str(cells), "--scheme", "chesapeake-4", "--shrink", "2"]
    result = CliRunner().invoke(main, ["-q", *arguments, "-o", str(tmp_path / "cli.tif")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["-q", *arguments, "-o", str(tmp_path / "cli.tif")])
    assert result.exit_code == 1


@pytest.mark.realdata
def test_a_real_tile(real_data, chesapeake, tmp_path):
    folder = real_data / "epitome-demo"
    path = map_by_self_epitome(
        folder / "naip_rgb_214.tif",
        folder / "nlcd_214.tif",
        tmp_path / "map.tif",
        scheme=chesapeake,
        cooccurrence=load_cooccurrence(None, chesapeake),
    )
    with open_raster(path) as src, open_raster(folder / "lc_214.tif") as labels:
        right = (src.read(1) == chesapeake.codes[labels.read(1)]).mean()
    assert right >= 0.8
