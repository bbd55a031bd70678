"""Density classes of blocks: tables, priors, scores, blur, training, maps, and the command."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from scipy.stats import mannwhitneyu

from landprior.cli import main
from landprior.domains.density import blocks, mapping, points, project, training
from landprior.domains.density.images import find_images
from landprior.domains.density.priors import (
    mean_prior,
    measure_priors,
    read_priors,
    relate_priors,
    spread_priors,
    write_prior,
)
from landprior.errors import (
    DirectionWarning,
    InputError,
    MissingInputError,
    ModelError,
    OutputExistsError,
    PriorError,
    TableWarning,
)
from landprior.implicit.posterior import log_posterior
from landprior.landcover.mapping.blur import BlurredNetwork, blur_model
from landprior.landcover.training.model import load_model
from landprior.raster.grid import Grid

SIDE, BLOCK = 120, 40
DATA = Path(os.environ.get("LANDPRIOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "pathology"


def write_image(path: Path, values: np.ndarray, **profile: object) -> Path:
    with (
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=values.shape[0],
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            **profile,
        ) as dst,
    ):
        dst.write(values)
    return path


def make_scene(
    folder: Path, number: int, *, stain: float = 1.0, side: int = SIDE
) -> tuple[Path, list[dict], list[str]]:
    """Discs on a pale background: dark blue ones are the target, red ones are not; numbers vary by block."""
    rng = np.random.default_rng(number)
    image = np.full((3, side, side), 225.0) + rng.normal(0, 4, (3, side, side))
    rows, columns = np.mgrid[:side, :side]
    counts, lines = [], []
    for row in range(-(-side // BLOCK)):
        for col in range(-(-side // BLOCK)):
            target = int(rng.integers(0, 8))
            for kind, many in (("blue", target), ("red", 8 - target)):
                for _ in range(many):
                    y, x = (rng.uniform(at * BLOCK + 4, min((at + 1) * BLOCK, side) - 4) for at in (row, col))
                    disc = np.hypot(rows + 0.5 - y, columns + 0.5 - x) < 3.5
                    colour = (60, 40, 150) if kind == "blue" else (190, 60, 60)
                    image[:, disc] = np.array(colour)[:, None] + rng.normal(0, 6, (3, int(disc.sum())))
                    lines.append(f"scene{number},{x:.2f},{y:.2f},{kind}")
            counts.append({"row": row, "col": col, "count": target})
    path = write_image(folder / f"scene{number}.tif", np.clip(image * stain, 0, 255).astype(np.uint8))
    return path, counts, lines


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, the counts of their blocks and their points."""
    folder = tmp_path_factory.mktemp("scenes")
    table, places = ["image,row,col,count"], ["image,x,y,type"]
    for number in range(6):
        _, counts, lines = make_scene(folder, number, stain=1 - 0.06 * number)
        table += [f"scene{number},{c['row']},{c['col']},{c['count']}" for c in counts]
        places += lines
    (folder / "counts.csv").write_text("\n".join(table) + "\n")
    (folder / "points.csv").write_text("\n".join(places) + "\n")
    return folder


QUICK = training.DensitySettings(steps=120, filters=8, patch_size=20, batch_size=8, loss="ce", learning_rate=1e-2)


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    output = tmp_path_factory.mktemp("model") / "model.safetensors"
    project.train_images(images, labels, spread_priors(5), output, QUICK)
    return project.load_density_model(output)


def grid(height: int = 100, width: int = 100) -> Grid:
    return Grid(width=width, height=height, transform=Affine.identity())


# -- tables --------------------------------------------------------------------------------------------


def test_counts_become_classes_by_quantiles():
    counts = np.array([0, 0, *range(1, 10)], dtype=float)
    assert blocks.rank_counts(counts, 10).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert blocks.rank_counts(np.array([0, 1, 1, 1, 5.0]), 3).tolist() == [0, 1, 1, 1, 2]  # equal counts, one class
    assert blocks.rank_counts(np.array([0.2, 0.0]), 2).tolist() == [1, 0]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(any), st.integers(2, 12))
def test_classes_keep_the_order_of_counts(counts, classes):
    found = blocks.rank_counts(np.array(counts, dtype=float), classes)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert ((found == 0) == (np.array(counts) == 0)).all()
    assert found.max() < classes
    assert len({(c, f) for c, f in zip(counts, found.tolist(), strict=True)}) == len(set(counts))


@pytest.mark.parametrize("counts", [[0.0, 0.0], [-1.0, 2.0]])
def test_useless_counts_are_refused(counts):
    with pytest.raises(InputError, match="counts"):
        blocks.rank_counts(np.array(counts))


def test_image_names_in_blocks_may_lack_the_extension(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("image,row,col,class\na,0,0,2\na.png,1,2,0\nb,0,0,1\n")
    labels = blocks.read_blocks(table, {"a.png": grid(150, 250), "b.tif": grid(), "c.tif": grid()}, block=100)
    assert labels.count == 3
    assert labels.classes["a.png"].tolist() == [[2, -1, -1], [-1, -1, 0]]  # the last row and column are cut
    assert labels.classes["b.tif"].tolist() == [[1]]
    assert "c.tif" not in labels.classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,row,col\na,0,0\n", "column class .* or count"),
        ("image,row,class\na,0,0\n", "no column col"),
        ("image,row,col,class\n", "no row"),
        ("image,row,col,class\na,0,0,\n", "line 2: class is empty"),
        ("image,row,col,class\na,0,0,1.5\n", "line 2: class is .*1.5.*, not a whole number"),
        ("image,row,col,class\na,0,-1,1\n", "line 2: col is"),
        ("image,row,col,class\na,0,0,many\n", "line 2: class is 'many'"),
        (
            "image,row,col,class\na,2,0,1\n",
            r"row 2, column 0 of a.png, which has 2 x 3 blocks of 100 px \(250 x 150 px\)",
        ),
        ("image,row,col,class\na,0,0,1\na.png,0,0,1\n", "row 0, column 0 of a.png twice"),
        ("image,row,col,class\nz,0,0,1\n", "names none of the images: it has z, the first image is a.png"),
        ("image,row,col,class\na,0,0,11\n", "has class 11, but there are 10"),
        ("image,row,col,count\na,0,0,0\n", "all counts are 0"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, text: str, message: str):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        blocks.read_blocks(table, {"a.png": grid(150, 250)}, block=100, count=10)
    assert "\n" not in str(error.value)


def test_missing_tables_and_unknown_images_are_errors(tmp_path: Path):
    with pytest.raises(MissingInputError, match="no such file"):
        blocks.read_blocks(tmp_path / "none.csv", {"a.png": grid()})
    table = tmp_path / "t.csv"
    table.write_text("image,row,col,class\na,0,0,1\nz,0,0,1\n")
    with pytest.warns(TableWarning, match="rows of z, which are not among the images"):
        blocks.read_blocks(table, {"a.png": grid()})


# -- priors --------------------------------------------------------------------------------------------


def test_priors_are_those_of_the_paper_unless_given(tmp_path: Path):
    assert spread_priors(10) == pytest.approx(np.arange(0.05, 1, 0.1))
    table = tmp_path / "p.csv"
    table.write_text("class,probability\n1,0.5\n0,0.125\n")
    assert read_priors(table, 2).tolist() == [0.125, 0.5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,0.5\n1,1.5\n", "class 1 is 1.5"),
        ("0,0.5\n", "each class from 0 to 1"),
        ("0,0.5\n1,0.5\n", "carry no information"),
    ],
)
def test_bad_priors_are_refused(tmp_path: Path, rows: str, message: str):
    (tmp_path / "p.csv").write_text("class,probability\n" + rows)
    with pytest.raises(PriorError, match=message):
        read_priors(tmp_path / "p.csv", 2)


def test_the_measured_prior_is_the_share_of_pixels_near_points():
    labels = blocks.BlockLabels(classes={"a": np.array([[0, 2]], dtype=np.int16)}, count=3, block=10)
    found = measure_priors(labels, {"a": grid(10, 20)}, {"a": np.array([[15.0, 5.0], [15.0, 5.0]])}, radius=2)
    disc = sum(np.hypot(r - 5, c - 15) <= 2 for r in range(10) for c in range(20))
    assert disc == 13
    assert found == pytest.approx([0, 0.065, 0.13])  # the class without a block is interpolated


def test_related_priors_refer_to_an_image_of_average_density():
    priors = np.array([0.1, 0.5, 0.9])
    dense, thin = np.array([[2, 2], [2, 1]]), np.array([[0, 0], [1, blocks.UNKNOWN]])
    rate = mean_prior(priors, [dense, thin])
    assert rate == pytest.approx((3 * 0.9 + 0.5 + 0.1 + 0.1 + 0.5) / 7)
    found = relate_priors(priors, dense, rate)
    odds, mean = priors / (1 - priors), 0.8
    np.testing.assert_allclose(found / (1 - found), odds * (1 - mean) / mean * rate / (1 - rate))
    np.testing.assert_allclose(relate_priors(priors, dense, mean), priors)  # an average image is left alone
    assert relate_priors(priors, thin, rate)[1] > found[1]  # dense for the thin image, thin for the dense one
    hard = np.array([0.0, 0.5, 1.0])
    assert relate_priors(hard, np.array([[0, 1, 2]]), 0.2)[[0, 2]].tolist() == [0, 1]
    np.testing.assert_array_equal(relate_priors(hard, np.array([[0, 0]]), 0.2), hard)


def test_the_prior_raster_is_constant_within_blocks(tmp_path: Path):
    classes = np.array([[0, 1], [1, blocks.UNKNOWN]], dtype=np.int16)
    scheme = training.make_scheme()
    path = write_prior(
        tmp_path / "prior.tif", classes, np.array([0.25, 0.75]), block=30, grid=grid(50, 45), scheme=scheme
    )
    with rasterio.open(path) as src:
        values = src.read()
    assert values.shape == (2, 50, 45)
    expected = np.kron([[0.25, 0.75], [0.75, np.nan]], np.ones((30, 30)))[:50, :45]
    np.testing.assert_array_equal(values[1], expected)
    np.testing.assert_array_equal(values[0], 1 - expected)


# -- scores --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_scores_equal_those_of_explicitly_counted_pairs(seed):
    rng = np.random.default_rng(seed)
    n = 25
    scores, positive, where = rng.integers(0, 6, n).astype(float), rng.random(n) < 0.4, rng.integers(0, 4, n)
    found = points.score_points(scores, positive, where)
    right = pairs = all_right = all_pairs = 0.0
    for i in range(n):
        for j in range(n):
            if positive[i] and not positive[j]:
                win = float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j])
                all_right, all_pairs = all_right + win, all_pairs + 1
                if where[i] == where[j]:
                    right, pairs = right + win, pairs + 1
    if all_pairs:
        assert found.overall == pytest.approx(all_right / all_pairs)
        statistic = mannwhitneyu(scores[positive], scores[~positive]).statistic
        assert found.overall == pytest.approx(statistic / all_pairs)
    if pairs:
        assert found.within == pytest.approx(right / pairs)
    assert found.pairs == pairs
    both = [k for k in range(4) if len(set(positive[where == k])) == 2]
    assert found.blocks == len(both)


def test_a_constant_within_blocks_scores_one_half_there():
    where = np.repeat(np.arange(5), 6)
    positive = np.tile([True, False, False], 10)
    assert points.score_points(where.astype(float), positive, where).within == 0.5
    alone = points.score_points(np.arange(3.0), np.array([True, True, True]), np.zeros(3, int))
    assert np.isnan(alone.overall)
    assert alone.to_dict()["within"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x,y\na,1,1\n", "no column type"),
        ("image,x,y,type\na,101,1,blue\n", r"line 2: \(101, 1\) is outside a.png \(100 x 100 px\)"),
        ("image,x,y,type\na,1,-2,blue\n", "outside"),
        ("image,x,y,type\na,1,nowhere,blue\n", "line 2: y is"),
        ("image,x,y,type\na,1,1,red\n", "no point of type 'blue'; it has red"),
    ],
)
def test_bad_points_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        points.read_points(tmp_path / "p.csv", {"a.png": grid()}, positive=["blue"])


def test_points_on_the_last_edge_belong_to_the_last_pixel(tmp_path: Path):
    (tmp_path / "p.csv").write_text("image,x,y,type\na,100,99.9,blue\na,3.7,4.2,red\na,5,5,odd\n")
    found = points.read_points(tmp_path / "p.csv", {"a.png": grid()}, positive=["blue"], ignored=["odd"])["a.png"]
    assert found.columns.tolist() == [99, 3]
    assert found.rows.tolist() == [99, 4]
    assert found.positive.tolist() == [True, False]


# -- the blur ------------------------------------------------------------------------------------------


class _Given(torch.nn.Module):
    """Returns a given log q for any input."""

    halo, stride, smoothing = 5, 1, 1e-4

    def __init__(self, log_q: torch.Tensor) -> None:
        super().__init__()
        self.log_q = log_q

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self.log_q


def test_the_blur_is_the_mean_of_log_likelihoods():
    torch.manual_seed(0)
    log_q = torch.log_softmax(3 * torch.randn(1, 2, 40, 30), dim=1)
    network = BlurredNetwork(_Given(log_q), 11)  # type: ignore[arg-type]
    assert network.halo == 10
    found = network(log_q)
    assert found.exp().sum(1) == pytest.approx(np.ones((1, 40, 30)), abs=1e-5)
    odds = (log_q[0, 1] - log_q[0, 0]).double().numpy()
    blurred = (found[0, 1] - found[0, 0]).numpy()
    np.testing.assert_allclose(blurred[5:-5, 5:-5], uniform_filter(odds, 11)[5:-5, 5:-5], atol=1e-4)
    assert blurred[0, 0] == pytest.approx(odds[:6, :6].mean(), abs=1e-4)  # at the edge, the mean of the existing pixels


def test_the_posterior_of_blurred_predictions_matches_the_paper():
    """F.2: the prior times exp of the blurred log q - log qbar, with qbar from the unblurred predictions."""
    torch.manual_seed(1)
    log_q = torch.log_softmax(torch.randn(1, 2, 20, 20), dim=1)
    log_p = torch.log_softmax(torch.randn(1, 2, 20, 20), dim=1)
    qbar = log_q.exp().mean((0, 2, 3))
    found = log_posterior(BlurredNetwork(_Given(log_q), 3)(log_q), log_p, log_marginal=qbar.log())  # type: ignore[arg-type]
    likelihood = log_q - qbar.log()[None, :, None, None]
    mean = torch.nn.functional.avg_pool2d(likelihood, 3, 1)
    expected = torch.log_softmax(log_p[:, :, 1:-1, 1:-1] + mean, dim=1)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], expected)


@pytest.mark.parametrize("side", [0, 2, -1])
def test_even_blurs_are_refused(side: int):
    with pytest.raises(InputError, match="odd number of pixels"):
        BlurredNetwork(_Given(torch.zeros(1)), side)  # type: ignore[arg-type]


# -- training ------------------------------------------------------------------------------------------


def test_tiles_contain_blocks_and_are_made_the_same_way(scenes: Path):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    paths = [images.paths[name] for name in images.names]
    priors = spread_priors(5)
    tiles = training.read_tiles(paths, images.grids, labels, priors, scheme=training.make_scheme())
    assert len(tiles) == 6

    def read_with(**changes: Any) -> training.Tile:
        quick = training.DensitySettings(**changes)
        return training.read_tiles(paths, images.grids, labels, priors, scheme=training.make_scheme(), settings=quick)[
            0
        ]

    for tile in tiles:
        assert tile.image.float().mean((1, 2)).abs().max() < 1e-3
        assert tile.image.float().std((1, 2)) == pytest.approx(np.ones(3), abs=1e-2)
    mine = labels.classes["scene0.tif"]
    mean = mean_prior(priors, labels.classes.values())
    for tile, expected in (
        (tiles[0], relate_priors(priors, mine, 0.1)),
        (read_with(share=None), relate_priors(priors, mine, mean)),
        (read_with(relative=False), priors),
    ):
        np.testing.assert_allclose(tile.prior[1], np.kron(expected[mine], np.ones((BLOCK, BLOCK))), atol=1e-3)
    few = training.read_tiles(
        paths,
        images.grids,
        labels,
        priors,
        scheme=training.make_scheme(),
        settings=training.DensitySettings(most_pixels=3 * SIDE * SIDE),
    )
    assert len(few) == 3


def test_priors_of_images_with_a_single_block_are_not_made_relative(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """If each image is one block, only the differences between images carry information."""
    paths = [write_image(tmp_path / f"crop{i}.tif", np.full((3, BLOCK, BLOCK), 9 + i, np.uint8)) for i in range(3)]
    labels = blocks.BlockLabels(
        classes={path.name: np.array([[i]], dtype=np.int16) for i, path in enumerate(paths)}, count=3, block=BLOCK
    )
    priors = np.array([0.1, 0.4, 0.9])
    tiles = training.read_tiles(
        paths, {path.name: grid(BLOCK, BLOCK) for path in paths}, labels, priors, scheme=training.make_scheme()
    )
    assert [tile.prior[1].float().mean().item() for tile in tiles] == pytest.approx(priors, abs=1e-3)
    assert "used unchanged" in caplog.text


def test_large_images_are_cut_into_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "PIECE", 90)  # two blocks of 40
    path, _, _ = make_scene(tmp_path, 3, side=110)
    labels = blocks.BlockLabels(
        classes={path.name: np.array([[0, 1, 1], [1, 0, 1], [1, 1, -1]], dtype=np.int16)}, count=2, block=BLOCK
    )
    tiles = training.read_tiles(
        [path],
        {path.name: grid(110, 110)},
        labels,
        np.array([0.2, 0.8]),
        scheme=training.make_scheme(),
        settings=training.DensitySettings(relative=False),
    )
    assert [tile.shape for tile in tiles] == [(80, 80), (80, 30), (30, 80)]  # the piece without a class is left out
    assert tiles[1].prior[1, :40].float().mean() == pytest.approx(0.8, abs=1e-3)


def test_the_direction_check_recognises_an_inverted_model(scenes: Path, model):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    tiles = training.read_tiles(
        [images.paths[n] for n in images.names],
        images.grids,
        labels,
        spread_priors(5),
        scheme=training.make_scheme(),
    )
    right = training.check_direction(model, tiles, BLOCK)
    assert right.correlation > 0.5
    assert not right.inverted
    assert sum(right.marginal) == pytest.approx(1)
    assert model.record["density"]["direction"] == pytest.approx(right.correlation, abs=1e-3)

    class Swapped(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x).flip(1)

    wrong = training.check_direction(replace(model, network=Swapped(model.network)), tiles, BLOCK)
    assert wrong.correlation == pytest.approx(-right.correlation, abs=1e-6)
    assert wrong.inverted


def test_an_inverted_model_is_retrained_with_a_longer_warm_up(scenes: Path, monkeypatch: pytest.MonkeyPatch):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    tiles = training.read_tiles(
        [images.paths["scene0.tif"]], images.grids, labels, spread_priors(5), scheme=training.make_scheme()
    )
    seen = []
    answers = iter([-0.4, 0.3])
    real = training.train_model

    def watched(tiles, settings, **options):
        seen.append(settings.training)
        return real(tiles, settings, **options)

    monkeypatch.setattr(training, "train_model", watched)
    monkeypatch.setattr(training, "check_direction", lambda *_: training.Direction(next(answers), (0.5, 0.5)))
    quick = training.DensitySettings(loss="rq", steps=8, warmup_steps=4, filters=4, patch_size=16, batch_size=2)
    with pytest.warns(DirectionWarning, match="the model is inverted .*-0.40"):
        found = training.train_density(tiles, BLOCK, quick)
    assert [(s.warm_end, s.warmup) for s in seen] == [(4, "ce"), (6, "ce")]
    assert seen[0].seed != seen[1].seed
    assert found.record["density"]["attempts"] == 2
    assert found.record["density"]["direction"] == 0.3


def test_if_all_models_are_inverted_the_best_is_kept_with_a_warning(scenes: Path, monkeypatch: pytest.MonkeyPatch):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    tiles = training.read_tiles(
        [images.paths["scene0.tif"]], images.grids, labels, spread_priors(5), scheme=training.make_scheme()
    )
    answers = iter([-0.4, -0.1, float("nan")])
    monkeypatch.setattr(training, "check_direction", lambda *_: training.Direction(next(answers), (0.5, 0.5)))
    quick = training.DensitySettings(loss="rq", steps=3, filters=4, patch_size=16, batch_size=2)
    with (
        pytest.warns(DirectionWarning, match=r"does not agree with its prior \(correlation -0.10"),
        pytest.warns(DirectionWarning, match="training again"),
    ):
        found = training.train_density(tiles, BLOCK, quick)
    assert found.record["density"]["attempts"] == 3
    assert found.record["density"]["direction"] == -0.1


def test_the_target_is_found_within_blocks(scenes: Path, model):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    places = points.read_points(scenes / "points.csv", images.grids, positive=["blue"])
    rows = project.score_images(images, places, model, labels, block=BLOCK, groups={"all": images.names}, blurs=(1, 5))
    scores = {row.what: row.scores for row in rows}
    assert scores["density class"].within == 0.5
    assert scores["q"].within > 0.9
    assert scores["q, blur 5"].within > 0.8
    assert scores["r"].within == pytest.approx(scores["q"].within, abs=1e-9)  # the prior is constant in a block
    assert scores["r"].overall > 0.8
    text = project.to_text(rows)
    assert "within" in text.splitlines()[0]
    assert len(text.splitlines()) == 1 + len(rows)


# -- maps ----------------------------------------------------------------------------------------------


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


@pytest.mark.parametrize("blur", [1, 11])
def test_windows_do_not_change_a_map(scenes: Path, model, tmp_path: Path, blur: int):
    image = scenes / "scene5.tif"
    mapping.map_density(image, tmp_path / "whole.tif", model, blur=blur)
    mapping.map_density(image, tmp_path / "parts.tif", model, blur=blur, window_size=37)
    assert (read(tmp_path / "whole.tif") == read(tmp_path / "parts.tif")).all()
    whole, parts = (read(tmp_path / f"{name}_probabilities.tif") for name in ("whole", "parts"))
    np.testing.assert_allclose(whole, parts, atol=1e-3)  # half-precision floats
    assert whole.sum(0) == pytest.approx(np.ones((SIDE, SIDE)), abs=2e-3)
    assert np.ptp(whole[1]) > 0.1


def test_a_large_pyramid_is_read_in_windows(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from landprior.landcover.training.layers import ImageLayer

    side = 700
    path, _, _ = make_scene(tmp_path, 2)
    values = np.tile(read(path), (1, 6, 6))[:, :side, :side]
    big = write_image(tmp_path / "slide.tif", values, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    with rasterio.open(big, "r+") as dst:
        dst.build_overviews([2, 4])
    sizes = []
    real = ImageLayer.read

    def watched(self, window=None):
        sizes.append((side, side) if window is None else (int(window.height), int(window.width)))
        return real(self, window)

    monkeypatch.setattr(ImageLayer, "read", watched)
    mapping.map_density(big, tmp_path / "map.tif", model, window_size=128)
    assert max(max(size) for size in sizes) <= 512  # windows of the statistics; those of the map are 128 + 2 x 10
    assert sum(max(size) <= 148 for size in sizes) >= (-(-side // 128)) ** 2
    monkeypatch.undo()
    mapping.map_density(big, tmp_path / "whole.tif", model, window_size=1024)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))


def test_points_have_the_probabilities_of_the_map(scenes: Path, model, tmp_path: Path):
    images = find_images([scenes])
    labels = blocks.read_blocks(scenes / "counts.csv", images.grids, block=BLOCK, count=5)
    places = points.read_points(scenes / "points.csv", images.grids, positive=["blue"])["scene1.tif"]
    project.map_images(images, ["scene1.tif"], model, tmp_path, labels=labels, blur=5)
    shares = read(tmp_path / "scene1_probabilities.tif")[1][places.rows, places.columns]
    odds = mapping.predict_points(scenes / "scene1.tif", places, model, blurs=(5, 1), window_size=50)[0]
    classes = labels.classes["scene1.tif"][places.rows // BLOCK, places.columns // BLOCK]
    r = mapping.posterior_odds(odds, np.array(model.record["density"]["priors"])[classes], model)
    np.testing.assert_allclose(1 / (1 + np.exp(-r)), shares, atol=2e-3)
    with rasterio.open(tmp_path / "scene1.tif") as src:
        assert src.tags(ns="landprior")["maps"] == "r"


def test_a_different_stain_is_compensated(scenes: Path, model, tmp_path: Path):
    """Scaled and shifted bands give the same map, because each image is standardised separately."""
    values = read(scenes / "scene0.tif").astype(np.float32)
    write_image(tmp_path / "other.tif", values * np.array([0.5, 0.8, 1.2], dtype=np.float32)[:, None, None] + 7)
    write_image(tmp_path / "same.tif", values)
    for name in ("other", "same"):
        mapping.map_density(tmp_path / f"{name}.tif", tmp_path / f"{name}-map.tif", model)
    found = [read(tmp_path / f"{name}-map_probabilities.tif") for name in ("other", "same")]
    np.testing.assert_allclose(*found, atol=2e-3)


def test_other_models_are_refused(scenes: Path, model, tmp_path: Path):

    from landprior.landcover.training.model import save_model

    save_model(replace(model, record={}), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="not trained on density classes"):
        project.load_density_model(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="not trained on density classes"):
        mapping.ready_model(load_model(tmp_path / "m.safetensors"), scenes / "scene0.tif")
    gray = write_image(tmp_path / "gray.tif", np.ones((1, 30, 30), np.uint8))
    with pytest.raises(InputError, match="1 bands and the model was trained on 3"):
        mapping.ready_model(model, gray)
    assert blur_model(model, 1) is model


# -- the command ---------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["-q", "density", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


TRAIN = ("--steps", 30, "--filters", 4, "--patch-size", 24, "--loss", "ce", "--block", BLOCK, "--classes", 5)


def test_the_command_trains_maps_scores_and_resumes(scenes: Path, tmp_path: Path):
    arguments = (
        scenes, "--coarse", scenes / "counts.csv", *TRAIN, "--hold-out", 0.5, "--blur", 3, "--reference",
        scenes / "points.csv", "--positive", "blue", "-o", tmp_path / "out",
    )  # fmt: skip
    report = json.loads(run(*arguments, "--json"))
    groups = {row["images"] for row in report["scores"]}
    assert groups == {"trained", "other"}
    whats = {row["score"] for row in report["scores"]}
    assert whats == {"density class", "darkness", "q", "r", "q, blur 3", "r, blur 3"}
    assert len(report["maps"]) == 6
    assert sorted(p.name for p in (tmp_path / "out").glob("scene0*")) == [
        "scene0.qml", "scene0.tif", "scene0.tif.aux.xml", "scene0_probabilities.tif",
    ]  # fmt: skip
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tif")}
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "scene3.tif").unlink()
    text = run(*arguments)
    assert "within" in text
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tif")}
    assert {p for p in after if after[p] != before.get(p)} == {
        tmp_path / "out" / "scene3.tif", tmp_path / "out" / "scene3_probabilities.tif",
    }  # fmt: skip
    assert "--overwrite" in run(*arguments, "--seed", 1, code=1)
    run(scenes / "scene1.tif", "--model", tmp_path / "out" / "model.safetensors", "-o", tmp_path / "new")
    np.testing.assert_allclose(read(tmp_path / "new" / "scene1_probabilities.tif").shape, (2, SIDE, SIDE))


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ((), 2, "--coarse is missing"),
        (("--coarse", "{}/counts.csv", "--reference", "{}/points.csv"), 2, "--positive is missing"),
        (("--coarse", "{}/counts.csv", "--blur", 4), 1, "odd number"),
        (("--coarse", "{}/counts.csv", "--block", 60), 1, "has row 0, column 2 of scene0.tif"),
        (("--coarse", "{}/counts.csv", "--names", "one"), 2, "two names"),
        (("--coarse", "{}/counts.csv", "--names", "a,a"), 1, "need different names"),
        (("--coarse", "{}/none.csv"), 1, "no such file"),
        (("--coarse", "{}/counts.csv", "--block", BLOCK, "--steps", 10, "--warmup-steps", 10), 2, "warmup_steps"),
        (("--coarse", "{}/counts.csv", "--prior", "p.csv", "--measure", "q.csv", "--positive", "x"), 2, "exclusive"),
        (("--model", "{}/points.csv", "--posterior"), 2, "--posterior needs --coarse"),
        (("--model", "{}/points.csv"), 1, "safetensors"),
    ],
)
def test_errors_of_the_command(scenes: Path, tmp_path: Path, more: tuple, code: int, message: str):
    text = run(scenes, *(str(part).format(scenes) for part in more), "-o", tmp_path / "out", code=code)
    assert message in text
    assert "Traceback" not in text


def test_the_command_measures_a_prior(scenes: Path, tmp_path: Path):
    report = json.loads(
        run(
            scenes, "--coarse", scenes / "counts.csv", *TRAIN[2:], "--steps", 2, "--measure", scenes / "points.csv",
            "--positive", "blue", "--radius", 3.5, "--no-maps", "-o", tmp_path, "--json",
        )
    )  # fmt: skip
    priors = report["density"]["priors"]
    assert priors[0] < 0.02
    assert np.diff(priors).min() > 0
    assert report["density"]["settings"]["share"] is None  # a measured prior includes the share
    assert report["maps"] == []


def test_images_with_the_same_name_are_refused(scenes: Path, tmp_path: Path):
    write_image(tmp_path / "scene0.png.tif", np.ones((3, 20, 20), np.uint8)).rename(tmp_path / "scene0.tiff")
    with pytest.raises(InputError, match="have the same name"):
        find_images([scenes, tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="has no image"):
        find_images([tmp_path / "empty"])
    with pytest.raises(OutputExistsError):
        project.train_images(
            find_images([scenes]),
            blocks.BlockLabels(classes={}, count=2, block=BLOCK),
            spread_priors(2),
            tmp_path / "scene0.tiff",
        )


@pytest.mark.realdata
def test_counts_of_nuclei_match_the_provenance():
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    from benchmarks.density import count_blocks

    counts = count_blocks(DATA / "nuclei.csv")
    assert len(counts) == 67 * 25
    assert int((counts["count"] == 0).sum()) == 975
    assert int((counts["count"] == 1).sum()) == 172
    assert int((counts["count"] == 2).sum()) == 105
    assert counts["count"].sum() == 4238
