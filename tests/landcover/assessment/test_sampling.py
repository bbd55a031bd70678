"""Stratified random samples of a map."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landprior.errors import InputError, OutputExistsError
from landprior.landcover.assessment.sampling import allocate, draw_sample, measure_classes, write_sample


@pytest.fixture
def chart(make_raster, enviroatlas, rng):
    codes = rng.choice([10, 20, 40, 70], p=[0.02, 0.2, 0.3, 0.48], size=(700, 600)).astype(np.uint8)
    codes[:, :40] = 255
    return make_raster("map.tif", codes, nodata=255, scheme=enviroatlas), codes


def look_up(sample, codes, left=600_000.0, top=4_500_000.0):
    rows, columns = (top - sample.geometry.y).to_numpy(), (sample.geometry.x - left).to_numpy()
    assert np.allclose(rows % 1, 0.5)  # pixel centres
    assert np.allclose(columns % 1, 0.5)
    return rows.astype(int), columns.astype(int), codes[rows.astype(int), columns.astype(int)]


def test_points_are_in_their_stratum_and_distinct(chart, enviroatlas):
    path, codes = chart
    sample = draw_sample(path, enviroatlas, count=300, seed=5)
    rows, columns, here = look_up(sample, codes)
    assert (here == sample["stratum"]).all()
    assert len(set(zip(rows, columns, strict=True))) == 300
    sizes = {int(code): int((codes == code).sum()) for code in (10, 20, 40, 70)}
    assert sample.groupby("stratum")["stratum_pixels"].unique().explode().to_dict() == sizes
    assert sample["id"].tolist() == list(range(1, 301))
    assert sample["stratum"].is_monotonic_increasing is False  # in random order


def test_the_same_seed_gives_the_same_points(chart, enviroatlas):
    path, _ = chart
    one, same, other = (draw_sample(path, enviroatlas, count=100, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same)
    assert not one.geometry.equals(other.geometry)


def test_every_pixel_of_a_stratum_has_the_same_chance(make_raster, enviroatlas):
    codes = np.full((40, 1100), 40, dtype=np.uint8)  # over several windows
    codes[:, ::2] = 10
    path = make_raster("map.tif", codes, nodata=255, scheme=enviroatlas)
    columns = np.concatenate(
        [look_up(draw_sample(path, enviroatlas, count=100, seed=seed), codes)[1] for seed in range(30)]
    )
    counts, _ = np.histogram(columns, bins=4, range=(0, 1100))
    # 3,000 points in four parts: chi-square with 3 degrees of freedom exceeds 16.3 once in a thousand times
    assert ((counts - 750) ** 2 / 750).sum() < 16.3


@given(
    pixels=st.lists(st.integers(0, 10_000), min_size=2, max_size=8).filter(lambda n: sum(v > 0 for v in n) >= 1),
    count=st.integers(16, 400),
    allocation=st.sampled_from(["balanced", "proportional", "equal"]),
)
def test_allocation_stays_within_its_bounds(pixels, count, allocation):
    pixels = np.array(pixels)
    points = allocate(pixels, count, allocation)
    assert (points <= pixels).all()
    assert (points >= np.minimum(pixels, 2)).all()
    assert points.sum() == min(count, pixels.sum())


def test_each_allocation_by_hand():
    pixels = np.array([100_000, 300_000, 600_000, 0])
    assert allocate(pixels, 100, "proportional").tolist() == [10, 30, 60, 0]
    assert allocate(pixels, 99, "equal").tolist() == [33, 33, 33, 0]
    assert allocate(np.array([1_000, 399_000, 600_000]), 300, "balanced", least=50).tolist() == [50, 100, 150]


def test_too_few_points(chart, enviroatlas):
    with pytest.raises(InputError, match="7 points are too few for 4 classes"):
        draw_sample(chart[0], enviroatlas, count=7)


def test_a_map_without_classes(make_raster, enviroatlas):
    path = make_raster("empty.tif", np.full((20, 20), 255, np.uint8), nodata=255, scheme=enviroatlas)
    with pytest.raises(InputError, match="no classified pixel"):
        measure_classes(path, enviroatlas)


def test_the_style_offers_the_classes_and_hides_the_map(tmp_path, chart, enviroatlas):
    sample = draw_sample(chart[0], enviroatlas, count=30)
    write_sample(sample, tmp_path / "points.gpkg", enviroatlas)
    style = ET.parse(tmp_path / "points.qml").getroot()  # noqa: S314 - written by landprior
    fields = {field.get("name"): field.find("editWidget") for field in style.iter("field")}
    assert {name: widget.get("type") for name, widget in fields.items()} == {
        "reference": "ValueMap",
        "stratum": "Hidden",
        "stratum_pixels": "Hidden",
        "stratum_hectares": "Hidden",
    }
    offered = [option.get("value") for option in fields["reference"].iter("Option") if option.get("value")]
    assert offered == enviroatlas.names


def test_existing_samples_and_styles_are_not_replaced(tmp_path, chart, enviroatlas):
    sample = draw_sample(chart[0], enviroatlas, count=30)
    write_sample(sample, tmp_path / "points.gpkg", enviroatlas)
    with pytest.raises(OutputExistsError):
        write_sample(sample, tmp_path / "points.gpkg", enviroatlas)
    (tmp_path / "map.qml").write_text("the map's own style")
    with pytest.raises(OutputExistsError, match=r"map\.qml"):
        write_sample(sample, tmp_path / "map.gpkg", enviroatlas)
    assert (tmp_path / "map.qml").read_text() == "the map's own style"
    assert not (tmp_path / "map.gpkg").exists()
    with pytest.raises(InputError, match=r"as a GeoPackage; use a name that ends in \.gpkg"):
        write_sample(sample, tmp_path / "points.shp", enviroatlas)
