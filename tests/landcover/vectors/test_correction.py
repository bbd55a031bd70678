"""Corrected areas per polygon: against the estimators they generalise, closed forms, and simulated samples of Ohio."""

import csv

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from landprior.errors import InputError
from landprior.landcover.assessment.estimation import evaluate_points
from landprior.landcover.assessment.sampling import allocate, draw_sample
from landprior.landcover.vectors.correction import AreaCorrection, Members
from landprior.landcover.vectors.zonal import AreaOptions, measure_areas, write_areas
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster


def members_of(polygons, sizes, chosen=None):
    """Return whole points in polygons, from the polygon of each point (-1: none)."""
    points = np.arange(len(polygons)) if chosen is None else chosen
    order = np.argsort(polygons, kind="stable")
    order = order[polygons[order] >= 0]
    inside = polygons[order]
    return Members(polygons=inside, points=points[order], parts=np.ones(len(order)), sizes=np.asarray(sizes)[inside])


# -- files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, enviroatlas):
    """A map of 400 x 300 m that errs in a fifth of the blocks, its truth, and an interpreted sample of it."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("place")
    truth = np.kron(rng.integers(0, 5, (30, 40)), np.ones((10, 10), dtype=int))
    wrong = np.kron(rng.random((60, 80)) < 0.2, np.ones((5, 5), dtype=bool))
    mapped = np.where(wrong, np.kron(rng.integers(0, 5, (60, 80)), np.ones((5, 5), dtype=int)), truth)
    grid = Grid(width=400, height=300, transform=Affine(1, 0, 6e5, 0, -1, 4.5e6), crs=CRS.from_epsg(26917))
    path = write_raster(
        folder / "map.tif", enviroatlas.codes[mapped], grid, nodata=255, overviews="mode", scheme=enviroatlas
    )
    sample = interpret(draw_sample(path, enviroatlas, count=400, seed=1), truth, enviroatlas)
    sample.to_file(folder / "points.gpkg")
    return path, folder / "points.gpkg", truth


def interpret(sample, truth, scheme):
    rows = (4.5e6 - sample.geometry.y).astype(int)
    columns = (sample.geometry.x - 6e5).astype(int)
    names = [scheme.names[position] for position in truth[rows, columns]]
    return sample.assign(reference=names, notes="")


def square(left, top, width, height):
    return shapely.box(6e5 + left, 4.5e6 - top - height, 6e5 + left + width, 4.5e6 - top)


def test_a_polygon_of_the_whole_map_has_the_areas_of_evaluate(place, enviroatlas):
    path, points, _ = place
    frame = geopandas.GeoDataFrame(geometry=[square(0, 0, 400, 300)], crs=26917)
    found = measure_areas(path, frame, options=AreaOptions(points=points)).iloc[0]
    expected = evaluate_points(path, points, enviroatlas)
    assert (found["estimator"], found["points"]) == ("assisted", 400)
    for name, share in zip(enviroatlas.names, expected.shares, strict=True):
        assert found[f"{name}_corrected_ha"] == pytest.approx(share.value * 12, rel=1e-6)
        margin = (found[f"{name}_high_ha"] - found[f"{name}_low_ha"]) / 2
        assert margin == pytest.approx(share.margin * 12, rel=0.03)


def test_estimators_are_named_and_few_points_give_no_interval(place, enviroatlas):
    path, points, truth = place
    shapes = [square(0, 0, 200, 150), square(250, 200, 20, 20), square(5000, 0, 9, 9)]
    frame = geopandas.GeoDataFrame({"id": [1, 2, 3]}, geometry=shapes, crs=26917)
    found = measure_areas(path, frame, options=AreaOptions(points=points, identity="id"))
    assert found["estimator"].tolist() == ["assisted", "synthetic", "none"]
    low, high = (found[[f"{name}_{end}_ha" for name in enviroatlas.names]] for end in ("low", "high"))
    exact = np.bincount(truth[:150, :200].ravel(), minlength=5) / 1e4
    assert (low.iloc[0].to_numpy() <= exact).all()
    assert (exact <= high.iloc[0].to_numpy()).all()
    assert low.iloc[1:].isna().all(axis=None)  # much smaller than the polygon with pairs of points
    corrected = found[[f"{name}_corrected_ha" for name in enviroatlas.names]].sum(axis=1)
    assert corrected.iloc[1] == pytest.approx(0.04)
    assert found["trees_corrected_ha"].isna().tolist() == [False, False, True]


def test_points_count_with_the_part_of_their_pixel_in_the_polygon(place):
    path, points, _ = place
    sample = geopandas.read_file(points)
    x, y = sample.geometry.x[0], sample.geometry.y[0]
    shapes = [shapely.box(x, y - 0.5, x + 100, y + 0.5), shapely.box(x + 0.5, y - 0.5, x + 0.6, y + 0.5)]
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=26917)
    found = measure_areas(path, frame, options=AreaOptions(points=points))
    inside = sample.geometry.buffer(0.49, cap_style="square").intersects(shapes[0]).sum()
    assert found["points"].tolist() == [inside, 0]


def test_points_that_cannot_be_used(tmp_path, place, enviroatlas):
    path, points, _ = place
    frame = geopandas.GeoDataFrame(geometry=[square(0, 0, 400, 300)], crs=26917)
    sample = geopandas.read_file(points)
    changes = {
        "proposed where a map is unsure": sample.assign(purpose="adapt"),
        "no column 'reference'": sample.drop(columns="reference"),
        "too few in: 10": sample.assign(reference=sample["reference"].where(sample["stratum"] != 10)),
    }
    for text, changed in changes.items():
        changed.to_file(tmp_path / "bad.gpkg")
        with pytest.raises(InputError, match=text):
            measure_areas(path, frame, options=AreaOptions(points=tmp_path / "bad.gpkg"))
    certain = np.full((5, 300, 400), 0.2, dtype=np.float32)
    with open_raster(path) as src:
        grid = Grid.of(src)
    shares = write_raster(tmp_path / "p.tif", certain, grid, scheme=enviroatlas, tags={"kind": "probabilities"})
    with pytest.raises(InputError, match="points correct a map of classes"):
        measure_areas(shares, frame, options=AreaOptions(points=points))
    with pytest.raises(InputError, match="is the input"):
        write_areas(path, frame, points, options=AreaOptions(points=points))


def test_points_without_strata_are_a_simple_random_sample(tmp_path, place, caplog):
    path, points, _ = place
    sample = geopandas.read_file(points)[["reference", "geometry"]]
    sample.to_file(tmp_path / "plain.gpkg")
    frame = geopandas.GeoDataFrame(geometry=[square(0, 0, 400, 300)], crs=26917)
    found = measure_areas(path, frame, options=AreaOptions(points=tmp_path / "plain.gpkg"))
    assert "assume a simple random sample" in caplog.text
    assert found["estimator"].tolist() == ["assisted"]


# -- estimators -----------------------------------------------------------------------------------


def test_the_synthetic_estimate_is_the_mapped_areas_times_the_shares_of_the_sample():
    mapped = np.repeat([0, 1], [10, 20])
    reference = np.r_[np.repeat([0, 1], [8, 2]), np.repeat([0, 1], [5, 15])]
    found = AreaCorrection(mapped, reference, np.ones(30), 2, members=members_of(np.full(30, -1), [1.0]))
    result = found.estimate(0, np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]]))
    assert result.values[:2] == pytest.approx(np.array([[3 * 0.8 + 0.25, 3 * 0.2 + 0.75], [0.5, 1.5]]))
    assert result.estimators.tolist() == ["synthetic", "synthetic", "none"]
    assert np.isnan(result.low).all()  # no pairs of points in a polygon
    assert np.isnan(result.values[2]).all()


def test_the_assisted_estimate_adds_the_weighted_mean_residual_of_its_own_points():
    rng = np.random.default_rng(1)
    mapped, weights = rng.integers(0, 3, 300), rng.uniform(1, 2, 300)
    reference = np.where(rng.random(300) < 0.7, mapped, rng.integers(0, 3, 300))
    polygons = np.r_[np.zeros(60, int), np.full(240, -1)]
    found = AreaCorrection(mapped, reference, weights, 3, members=members_of(polygons, [1.0]))
    areas = np.array([[40.0, 30.0, 20.0]])
    result = found.estimate(0, areas)
    residuals = np.eye(3)[reference[:60]] - found.shares[mapped[:60]]
    mean = np.average(residuals, axis=0, weights=weights[:60])
    assert result.values[0] == pytest.approx(areas[0] @ found.shares + 90 * mean)
    assert result.values.sum() == pytest.approx(90)
    assert (result.estimators.tolist(), result.points.tolist()) == (["assisted"], [60])
    assert (result.low < result.values).all()
    assert (result.values < result.high).all()


def test_classes_without_points_leave_the_area_as_mapped_and_no_interval():
    rng = np.random.default_rng(1)
    mapped, reference = rng.integers(0, 2, (2, 100))
    found = AreaCorrection(mapped, reference, np.ones(100), 3, members=members_of(np.zeros(100, int), [1.0]))
    result = found.estimate(0, np.array([[1.0, 1.0, 2.0]]))
    assert np.isnan(result.low).all()
    assert found.shares[2].tolist() == [0, 0, 1]


def test_the_likeness_of_residuals_is_that_of_the_population():
    # polygons with error rates of a beta distribution, whose intraclass correlation is 1 / (a + b + 1)
    rng = np.random.default_rng(5)
    a, b, count, each = 2.0, 6.0, 400, 8
    rates = rng.beta(a, b, count)
    polygons = np.repeat(np.arange(count), each)
    mapped = rng.integers(0, 2, count * each)
    reference = np.where(rng.random(len(mapped)) < rates[polygons], 1 - mapped, mapped)
    found = AreaCorrection(mapped, reference, np.ones(len(mapped)), 2, members=members_of(polygons, np.ones(count)))
    # the residuals of the two map classes have opposite signs in a polygon, so only those of one class are alike
    one = AreaCorrection(
        np.zeros_like(mapped), (reference != mapped).astype(int), np.ones(len(mapped)), 2,
        members=members_of(polygons, np.ones(count)),
    )  # fmt: skip
    assert one.alike == pytest.approx(1 / (a + b + 1), abs=0.02)
    assert found.pairs == pytest.approx(count * each * (each - 1) / 2)


# -- simulated samples of Ohio --------------------------------------------------------------------

MAPS = {50: "30 m", 25: "15 m", 12: "7 m"}
"""Side in pixels of 0.6 m of the squares of a map, all of the most frequent class in the masks."""


@pytest.fixture(scope="module")
def ohio(real_data):
    """The masks, shape (n, 256, 256), and the spatial cluster of each tile."""
    folder = real_data / "naip-ohio-6class"
    with (folder / "tiles.csv").open(encoding="utf-8") as stream:
        clusters = {row["tile_id"]: int(row["spatial_cluster"]) for row in csv.DictReader(stream)}
    masks, groups = [], []
    for path in sorted((folder / "mask").iterdir()):
        with open_raster(path) as src:
            masks.append(src.read(1))
        groups.append(next(cluster for tile, cluster in clusters.items() if tile in path.stem))
    return np.stack(masks).astype(np.int64), np.array(groups)


def coarsen(truth, side):
    """Return a map: the most frequent class of each square, two pixels off."""
    mapped = np.empty_like(truth)
    for top in range(0, 256, side):
        for left in range(0, 256, side):
            at = (slice(None), slice(top, top + side), slice(left, left + side))
            mapped[at] = np.stack([(truth[at] == c).sum((1, 2)) for c in range(6)]).argmax(0)[:, None, None]
    return np.roll(mapped, 2, axis=2)


def simulate(truth, mapped, polygons, *, draws, count, seed):
    """Return the coverage of the whole place, and for each estimator that of polygons with an interval."""
    rng = np.random.default_rng(seed)
    each = polygons.max() + 1
    flat_map, flat_truth = mapped.ravel(), truth.ravel()
    flat = np.repeat(polygons, truth[0].size)
    areas, exact = np.zeros((each, 6)), np.zeros((each, 6))
    np.add.at(areas, (flat, flat_map), 1.0)
    np.add.at(exact, (flat, flat_truth), 1.0)
    sizes = np.bincount(flat_map, minlength=6)
    there = [np.flatnonzero(flat_map == c) for c in range(6)]
    points = allocate(sizes, count, "balanced")
    weights = sizes / points
    whole, covered = [], {"assisted": [], "synthetic": []}
    for _ in range(draws):
        chosen = np.concatenate([rng.choice(there[c], points[c], replace=False) for c in range(6)])
        sample = (flat_map[chosen], flat_truth[chosen], weights[flat_map[chosen]], 6)
        found = AreaCorrection(*sample, members=members_of(flat[chosen], areas.sum(1))).estimate(0, areas)
        right = (found.low <= exact) & (exact <= found.high)
        for name, some in covered.items():
            some.append(right[(found.estimators == name) & ~np.isnan(found.low[:, 0])])
        one = AreaCorrection(*sample, members=members_of(np.zeros(len(chosen), int), [areas.sum()]))
        place = one.estimate(0, areas.sum(0)[None])
        whole.append((place.low[0] <= exact.sum(0)) & (exact.sum(0) <= place.high[0]))
    return np.mean(whole), {name: np.concatenate(some) for name, some in covered.items()}


def check_coverage(ohio, *, draws):
    """Print and check the coverage, averaged over three maps and three layers of polygons."""
    truth, clusters = ohio
    zones = np.arange(len(truth)) * 22 // len(truth)
    layers = {"groups of tiles": zones, "clusters": np.unique(clusters, return_inverse=True)[1]}
    layers["tiles"] = np.arange(len(truth))
    whole, every = [], {"assisted": [], "synthetic": []}
    for side, name in MAPS.items():
        mapped = coarsen(truth, side)
        for layer, polygons in layers.items():
            place, found = simulate(truth, mapped, polygons, draws=draws, count=1000, seed=side)
            whole.append(place)
            for kind, right in found.items():
                if len(right) > 10 * draws:
                    every[kind].append(right.mean())
                    print(
                        f"{name:>5} {layer:<16} {kind:<10} {len(right) / draws:6.1f} polygons, "
                        f"{right.mean():.3f} covered ({right.mean(0).min():.3f} of the worst class); whole {place:.3f}"
                    )
    return np.mean(whole), {kind: np.mean(some) for kind, some in every.items()}


@pytest.mark.realdata
def test_intervals_cover_the_true_areas_of_polygons_in_ohio(ohio):
    truth, _ = ohio
    groups, tiles = np.arange(len(truth)) * 22 // len(truth), np.arange(len(truth))
    mapped = coarsen(truth, 25)
    whole, found = simulate(truth, mapped, groups, draws=60, count=1000, seed=1)
    assert 0.92 <= whole <= 0.98
    assert 0.93 <= found["assisted"].mean() <= 0.98
    _, found = simulate(truth, mapped, tiles, draws=20, count=1000, seed=1)
    assert 0.92 <= found["synthetic"].mean() <= 0.98


@pytest.mark.realdata
@pytest.mark.slow
def test_intervals_cover_in_93_to_97_of_100_samples_of_ohio(ohio):
    whole, found = check_coverage(ohio, draws=500)
    print(f"whole place {whole:.3f}, assisted {found['assisted']:.3f}, synthetic {found['synthetic']:.3f}")
    assert 0.93 <= whole <= 0.97
    assert 0.93 <= found["assisted"] <= 0.97
    assert 0.93 <= found["synthetic"] <= 0.97
