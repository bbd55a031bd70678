"""City presets: what ships loads, and a user's own file is checked."""

import pytest

from landprior.errors import ConfigError, MissingInputError
from landprior.raster.scheme import load_scheme
from landprior.sources.areas import list_cities, load_city

PAPER = {"austin": (2012, 26914), "durham": (2012, 26917), "phoenix": (2010, 26912), "pittsburgh": (2010, 26917)}


def test_the_papers_four_cities_ship():
    assert list_cities() == sorted(PAPER)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_preset_has_the_papers_years_zone_and_rates(name):
    city = load_city(name)
    assert (city.naip_year, city.epsg) == PAPER[name]
    assert load_scheme(city.scheme).name == "enviroatlas-5"
    assert city.paper is not None
    assert city.paper.learning_rates == {"qr": 1e-4, "rq": 1e-3, "fine-tuning": 1e-5}
    assert (city.paper.filters, city.paper.batch_size, city.paper.patch_size) == (128, 128, 128)
    left, bottom, right, top = city.bounds
    zone = int((left + 180) // 6) + 1
    assert city.epsg == 26900 + zone
    assert right - left < 1.2
    assert top - bottom < 1.2


def test_an_unknown_city_lists_what_ships():
    with pytest.raises(ConfigError, match="austin, durham, phoenix, pittsburgh"):
        load_city("atlantis")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "ithaca.yaml"
    path.write_text(
        "name: ithaca\ntitle: Ithaca NY\nbounds: [-76.6, 42.4, -76.4, 42.5]\nnaip_year: 2021\nnlcd_year: 2021\n"
        "epsg: 26918\nscheme: chesapeake-4\n"
    )
    assert load_city(path).paper is None
    with pytest.raises(MissingInputError, match="no such file"):
        load_city(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bounds: [-76.4, 42.4, -76.6, 42.5]", "left, bottom, right, top in degrees"),
        ("naip_year: soon", "naip_year"),
        ("zone: 18", "zone"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(tmp_path, line, message):
    lines = {
        "name": "name: x",
        "title": "title: x",
        "bounds": "bounds: [-76.6, 42.4, -76.4, 42.5]",
        "naip_year": "naip_year: 2021",
        "nlcd_year": "nlcd_year: 2021",
        "epsg": "epsg: 26918",
        "scheme": "scheme: chesapeake-4",
    }
    lines[line.split(":")[0]] = line
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines.values()))
    with pytest.raises(ConfigError, match=message) as caught:
        load_city(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
