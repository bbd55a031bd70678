"""Area-weighted accuracy, compared with published figures, brute force, and real truth."""

import geopandas
import numpy as np
import pytest
from shapely.geometry import Point

from landprior.errors import InputError, SchemeError
from landprior.landcover.assessment.estimation import estimate_areas, evaluate_points
from landprior.landcover.assessment.sampling import allocate, draw_sample, write_sample
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme


def make_scheme(*names):
    classes = [{"code": i, "name": name, "colour": f"#0000{i:02x}"} for i, name in enumerate(names, start=1)]
    return ClassScheme.model_validate({"name": "test", "classes": classes})


def spread(counts):
    """Turn a matrix of counts (rows: map, columns: reference) into one entry per point."""
    rows, columns = np.indices(np.shape(counts))
    times = np.ravel(counts)
    return np.repeat(rows.ravel(), times), np.repeat(columns.ravel(), times)


def margins_by_equation_7(counts, sizes):
    """Half widths of the intervals of producer's accuracy, by equation 7 of Olofsson et al. 2014 verbatim."""
    n, size = np.array(counts, dtype=float), np.array([sizes[i] for i in range(len(counts))], dtype=float)
    drawn = n.sum(1)
    margins = []
    for j in range(len(n)):
        there = (size * n[:, j] / drawn).sum()
        users, producers = n[j, j] / drawn[j], size[j] * n[j, j] / drawn[j] / there
        own = size[j] ** 2 * (1 - producers) ** 2 * users * (1 - users) / (drawn[j] - 1)
        others = sum(
            size[i] ** 2 * n[i, j] / drawn[i] * (1 - n[i, j] / drawn[i]) / (drawn[i] - 1)
            for i in range(len(n))
            if i != j
        )
        margins.append(1.96 * np.sqrt(own + producers**2 * others) / there)
    return margins


def test_the_worked_example_published_with_the_method():
    # Olofsson et al. 2014, section 5: Table 8 (points), Table 9 and the text (estimates); pixels of 30 m
    scheme = make_scheme("deforestation", "forest gain", "stable forest", "stable non-forest")
    counts = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
    mapped, reference = spread(counts)
    sizes = {0: 200_000, 1: 150_000, 2: 3_200_000, 3: 6_450_000}
    found = estimate_areas(mapped, reference, mapped, sizes, scheme, hectares=10_000_000 * 0.09)

    assert found.counts.tolist() == counts
    assert [round(s.value * found.hectares) for s in found.shares] == [21_158, 11_686, 285_770, 581_386]
    margins = [s.margin * found.hectares for s in found.shares]
    assert margins == pytest.approx([6_158, 3_756, 15_510, 16_282], rel=5e-4)
    assert [round(u.value, 2) for u in found.users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(u.margin, 2) for u in found.users] == [0.07, 0.10, 0.04, 0.02]
    assert [round(p.value, 2) for p in found.producers] == [0.75, 0.85, 0.93, 0.96]
    assert [p.margin for p in found.producers] == pytest.approx(margins_by_equation_7(counts, sizes), rel=1e-3)
    assert round(found.producers[0].margin, 2) == 0.21
    assert round(found.overall.value, 2) == 0.95
    assert round(found.overall.margin, 2) == 0.02


def test_strata_other_than_the_map_agree_with_repeated_sampling(rng):
    # a population with strata that are neither the map nor the truth: over many samples the estimates are unbiased
    # and their mean variance equals the observed variance
    size = 6_000
    truth = rng.integers(0, 3, size)
    mapped = np.where(rng.random(size) < 0.7, truth, rng.integers(0, 3, size))
    strata = np.where(rng.random(size) < 0.6, truth, rng.integers(0, 3, size)) % 2
    sizes = {h: int((strata == h).sum()) for h in (0, 1)}
    scheme = make_scheme("a", "b", "c")
    values, variances = [], []
    for _ in range(600):
        drawn = np.concatenate([rng.choice(np.flatnonzero(strata == h), 60, replace=False) for h in sizes])
        found = estimate_areas(mapped[drawn], truth[drawn], strata[drawn], sizes, scheme)
        row = [found.overall, found.users[0], found.producers[1], found.shares[2]]
        values.append([e.value for e in row])
        variances.append([e.error**2 for e in row])
    right = mapped == truth
    exact = [right.mean(), right[mapped == 0].mean(), right[truth == 1].mean(), (truth == 2).mean()]
    values = np.array(values)
    assert values.mean(0) == pytest.approx(exact, abs=4 * values.std(0).max() / np.sqrt(600))
    assert np.mean(variances, axis=0) == pytest.approx(values.var(0), rel=0.2)


def test_a_class_that_does_not_occur_has_no_accuracy():
    scheme = make_scheme("a", "b", "c")
    mapped, reference = spread([[5, 1, 0], [1, 5, 0], [0, 0, 0]])
    found = estimate_areas(mapped, reference, mapped, {0: 50, 1: 50}, scheme)
    assert np.isnan(found.users[2].value)
    assert found.shares[2].value == 0
    assert found.to_dict()["classes"][2]["users_accuracy"]["value"] is None
    assert found.to_dict()["classes"][0]["hectares"] is None
    assert "-" in found.to_text().splitlines()[3]


def test_a_stratum_with_one_point_is_refused():
    scheme = make_scheme("a", "b")
    with pytest.raises(InputError, match=r"at least two .* too few in: 1 \(1\)"):
        estimate_areas(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 0, 1]), {0: 9, 1: 9}, scheme)


@pytest.fixture
def chart(make_raster, rng):
    """A map with three classes and its truth, on disk."""
    scheme = make_scheme("a", "b", "c")
    truth = np.kron(rng.integers(1, 4, (12, 15)), np.ones((8, 8), dtype=np.int64)).astype(np.uint8)
    mapped = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(1, 4, truth.shape)).astype(np.uint8)
    mapped[:3] = 255
    return scheme, make_raster("map.tif", mapped, nodata=255, scheme=scheme), mapped, truth


def interpret(sample, truth, scheme, grid_top=4_500_000.0, left=600_000.0):
    rows = np.floor(grid_top - sample.geometry.y).astype(int)
    columns = np.floor(sample.geometry.x - left).astype(int)
    return sample.assign(reference=[scheme.names[truth[r, c] - 1] for r, c in zip(rows, columns, strict=True)])


def test_from_a_sample_to_estimates(tmp_path, chart):
    scheme, path, mapped, truth = chart
    sample = interpret(draw_sample(path, scheme, count=400, least=80, seed=3), truth, scheme)
    sample.to_crs(4326).to_file(tmp_path / "points.gpkg")
    found = evaluate_points(path, tmp_path / "points.gpkg", scheme)
    known = mapped != 255
    assert found.hectares == pytest.approx(known.sum() / 1e4)
    assert found.overall.value == pytest.approx((mapped == truth)[known].mean(), abs=2 * found.overall.margin)
    mapped_shares = [(mapped[known] == code).mean() for code in (1, 2, 3)]
    assert found.proportions.sum(1) == pytest.approx(mapped_shares)  # weighted by the strata
    assert [int(row.sum()) for row in found.counts] == sample["stratum"].value_counts().sort_index().tolist()


def test_points_without_strata_are_stratified_by_the_map(tmp_path, chart, caplog):
    scheme, path, mapped, truth = chart
    sample = interpret(draw_sample(path, scheme, count=200, seed=1), truth, scheme)
    plain = sample[["reference", "geometry"]]
    plain.to_file(tmp_path / "plain.gpkg")
    with caplog.at_level("INFO"):
        found = evaluate_points(path, tmp_path / "plain.gpkg", scheme)
    assert "simple random sample" in caplog.text
    counts = [int((mapped == code).sum()) for code in (1, 2, 3)]
    assert found.proportions.sum(1) == pytest.approx(np.array(counts) / sum(counts))


def test_classes_with_too_few_points_in_a_random_sample_are_merged(tmp_path, make_raster, caplog):
    scheme = make_scheme("a", "b", "c", "d")
    mapped = np.ones((40, 40), dtype=np.uint8)
    mapped[30:, :20], mapped[39, 39], mapped[0, 38:] = 2, 3, 4
    path = make_raster("map.tif", mapped, nodata=255, scheme=scheme)
    rows, columns = np.array([2, 5, 9, 12, 31, 33]), np.array([3, 30, 8, 20, 4, 9])
    points = geopandas.GeoDataFrame(
        {"reference": ["a", "a", "b", "a", "b", "b"]},
        geometry=geopandas.points_from_xy(600_000.5 + columns, 4_500_000 - rows - 0.5),
        crs=26917,
    )
    points.to_file(tmp_path / "points.gpkg")
    found = evaluate_points(path, tmp_path / "points.gpkg", scheme)
    assert "too few points in class 3, 4 of the map" in caplog.text
    # classes c and d (three pixels) are merged into b, the smallest with points: 203 of 1,600 px, all points right
    assert found.overall.value == pytest.approx((1397 * 3 / 4 + 203) / 1600)


def test_a_stratum_of_one_pixel_needs_only_one_point():
    scheme = make_scheme("a", "b")
    strata = np.array([0, 0, 0, 1])
    found = estimate_areas(strata, np.array([0, 0, 1, 1]), strata, {0: 99, 1: 1}, scheme)
    assert found.shares[1].value == pytest.approx(0.99 / 3 + 0.01)
    assert found.users[1].margin == 0
    alone = estimate_areas(strata[:3], np.array([0, 0, 1]), strata[:3], {0: 99}, scheme)
    assert found.shares[0].error == pytest.approx(0.99 * alone.shares[0].error)


def test_hectares_are_those_of_the_sampled_map(tmp_path, chart, make_raster, make_grid):
    """Another map of the same place, with pixels of 8 m, is evaluated with the points of the 1 m map."""
    scheme, path, mapped, truth = chart
    sample = interpret(draw_sample(path, scheme, count=90, seed=1), truth, scheme)
    write_sample(sample, tmp_path / "points.gpkg", scheme)
    coarse = make_raster("coarse.tif", truth[4::8, 4::8], grid=make_grid(12, 15, pixel=8), nodata=255, scheme=scheme)
    found = evaluate_points(coarse, tmp_path / "points.gpkg", scheme)
    assert found.overall.value == 1
    assert found.hectares == pytest.approx((mapped != 255).sum() / 1e4)
    stated = evaluate_points(path, tmp_path / "points.gpkg", scheme, pixel_size=2)
    assert stated.hectares == pytest.approx(4 * found.hectares)


def test_a_map_without_a_crs_from_the_sample_to_the_estimate(tmp_path, make_raster, make_grid):
    scheme = make_scheme("a", "b")
    mapped = np.kron([[1, 2], [2, 1]], np.ones((20, 20))).astype(np.uint8)
    path = make_raster("local.tif", mapped, grid=make_grid(40, 40, epsg=None), nodata=255, scheme=scheme)
    sample = draw_sample(path, scheme, count=20)
    sample["reference"] = [scheme.names[scheme.index(int(code))] for code in sample["stratum"]]
    write_sample(sample, tmp_path / "points.gpkg", scheme)
    found = evaluate_points(path, tmp_path / "points.gpkg", scheme)
    assert found.overall.value == 1


def test_points_without_a_class_are_left_out_and_counted(tmp_path, chart, caplog):
    scheme, path, _, truth = chart
    sample = interpret(draw_sample(path, scheme, count=90, seed=1), truth, scheme)
    sample.loc[sample.index[:7], "reference"] = None
    sample.to_file(tmp_path / "points.gpkg")
    found = evaluate_points(path, tmp_path / "points.gpkg", scheme)
    assert found.counts.sum() == 83
    assert "7 of 90 points have no class" in caplog.text


def test_a_stratum_whose_points_were_all_left_out_is_an_error(tmp_path, chart):
    scheme, path, _, truth = chart
    sample = interpret(draw_sample(path, scheme, count=90, seed=1), truth, scheme)
    sample.loc[sample["stratum"] == 2, "reference"] = ""
    sample.to_file(tmp_path / "points.gpkg")
    with pytest.raises(InputError, match=r"too few in: 2 \(0\)"):
        evaluate_points(path, tmp_path / "points.gpkg", scheme)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda f: f.drop(columns="reference"), InputError, "no column 'reference'"),
        (lambda f: f.assign(reference=None), InputError, "no point .* has a class"),
        (lambda f: f.assign(reference="swamp"), SchemeError, "'swamp' is not a class"),
        (lambda f: f.assign(geometry=f.geometry.translate(1e5, 0)), InputError, "outside the map"),
        (lambda f: f.assign(geometry=f.geometry.buffer(2)), InputError, "points are needed"),
        (lambda f: f.assign(geometry=Point(600_001.5, 4_499_999.5)), InputError, "has no class; is it the right map"),
        (lambda f: f.assign(stratum_pixels=range(len(f))), InputError, "several sizes"),
    ],
)
def test_points_that_cannot_be_used(tmp_path, chart, change, error, text):
    scheme, path, _, truth = chart
    sample = interpret(draw_sample(path, scheme, count=60, seed=1), truth, scheme)
    change(sample).to_file(tmp_path / "points.gpkg")
    with pytest.raises(error, match=text):
        evaluate_points(path, tmp_path / "points.gpkg", scheme)


@pytest.mark.realdata
def test_intervals_cover_the_true_areas_on_ohio(real_data, rng):
    """In about 95 of 100 draws of 1,000 balanced points: the 30 m majority map against all 215 hand-drawn masks."""
    masks = []
    for path in sorted((real_data / "naip-ohio-6class" / "mask").iterdir()):
        with open_raster(path) as src:
            masks.append(src.read(1))
    truth = np.stack(masks).astype(np.int64)
    mapped = np.empty_like(truth)
    for top, left in np.ndindex(6, 6):
        at = (slice(None), slice(50 * top, 50 * top + 50), slice(50 * left, 50 * left + 50))
        counts = np.stack([(truth[at] == c).sum((1, 2)) for c in range(6)])
        mapped[at] = counts.argmax(0)[:, None, None]
    truth, mapped = truth.ravel(), mapped.ravel()
    scheme = make_scheme("background", "building", "road", "bare", "forest", "water")
    sizes = {c: int((mapped == c).sum()) for c in range(6)}
    members = {c: np.flatnonzero(mapped == c) for c in sizes}
    points = allocate(np.array(list(sizes.values())), 1000, "balanced")
    exact = np.append([(truth == c).mean() for c in range(6)], (mapped == truth).mean())
    covered = []
    for _ in range(200):
        chosen = np.concatenate([rng.choice(members[c], points[c], replace=False) for c in sizes])
        found = estimate_areas(mapped[chosen], truth[chosen], mapped[chosen], sizes, scheme)
        every = (*found.shares, found.overall)
        covered.append(np.abs([e.value for e in every] - exact) <= [e.margin for e in every])
    assert 0.93 <= np.mean(covered) <= 0.97
    assert (np.mean(covered, axis=0) >= 0.90).all()


def test_written_points_are_read_unchanged(tmp_path, chart):
    scheme, path, _, _ = chart
    sample = draw_sample(path, scheme, count=60, seed=1)
    write_sample(sample, tmp_path / "points.gpkg", scheme)
    again = geopandas.read_file(tmp_path / "points.gpkg")
    assert list(again.columns) == [
        "id",
        "reference",
        "notes",
        "stratum",
        "stratum_pixels",
        "stratum_hectares",
        "geometry",
    ]
    assert again.geometry.geom_equals(sample.geometry.set_crs(again.crs, allow_override=True)).all()
    assert again["reference"].isna().all()
    assert again.crs.to_epsg() == 26917
