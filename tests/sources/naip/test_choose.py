"""Choosing NAIP images by year and place."""

from __future__ import annotations

import pytest
from shapely.geometry import box
from shapely.ops import unary_union

from landprior.sources.naip.choose import choose_images

from .shared import PLACE, make_image

WEST, EAST = (-80.0, 40.0, -79.95, 40.1), (-79.952, 40.0, -79.9, 40.1)


def names(choices):
    return [choice.image.id for choice in choices]


@pytest.mark.parametrize(
    ("year", "expected"),
    [(2010, 2010), (2005, 2010), (2011, 2012), (2012, 2012), (2013, 2012), (2016, 2018), (2030, 2018), (None, 2018)],
)
def test_the_nearest_year_is_chosen_and_the_later_of_two(year, expected):
    images = [make_image(f"{y}", PLACE.bounds, y) for y in (2010, 2012, 2018)]
    if year == 2016:
        images = [image for image in images if image.year != 2012] + [make_image("2014", PLACE.bounds, 2014)]
    for order in (images, images[::-1]):
        (choice,), covered = choose_images(order, PLACE, year)
        assert choice.image.year == expected
        assert covered == pytest.approx(1.0)
        assert choice.part.equals(PLACE)


def test_gaps_at_a_state_border_are_filled_from_the_nearest_other_year():
    images = [make_image("w12", WEST, 2012), make_image("w14", WEST, 2014), make_image("e13", EAST, 2013)]
    images += [make_image("e09", EAST, 2009)]
    choices, covered = choose_images(images, PLACE, 2012)
    assert names(choices) == ["w12", "e13"]
    assert covered == pytest.approx(1.0)
    assert choices[1].part.bounds == pytest.approx(EAST)


def test_of_two_equally_near_years_only_one_is_used():
    """The footprints of two surveys differ slightly, which must not lead to a mixture of years."""
    images = [make_image("w11", WEST, 2011), make_image("e13", EAST, 2013)]
    images += [make_image("w13", (-79.99999, *WEST[1:]), 2013), make_image("e11", EAST, 2011)]
    choices, _ = choose_images(images, PLACE, 2012)
    assert {choice.image.year for choice in choices} == {2013}


def test_copies_of_an_image_are_used_only_once():
    images = [make_image(name, WEST, 2012) for name in ("va_a", "md_a", "va_a_2")] + [make_image("b", EAST, 2012)]
    for order in (images, images[::-1]):
        choices, _ = choose_images(order, PLACE, 2012)
        assert sorted(names(choices)) == ["b", "md_a"]


def test_the_covered_share_is_returned_and_slivers_do_not_count():
    choices, covered = choose_images([make_image("w", WEST, 2012)], PLACE, 2012)
    assert names(choices) == ["w"]
    assert covered == pytest.approx(0.5, abs=0.001)
    sliver = make_image("s", (-79.95, 40.0, -79.94999, 40.1), 2012)
    choices, _ = choose_images([make_image("w", WEST, 2012), sliver], PLACE, 2012)
    assert names(choices) == ["w"]
    assert choose_images([], PLACE, 2012) == ([], 0.0)
    assert choose_images([make_image("far", (10, 50, 11, 51), 2012)], PLACE, None) == ([], 0.0)


def test_an_image_is_not_used_for_parts_that_it_does_not_cover():
    place = unary_union([box(-80.0, 40.0, -79.98, 40.02), box(-79.95, 40.05, -79.9, 40.1)])
    (choice,), _ = choose_images([make_image("w", WEST, 2012)], place, 2012)
    assert choice.part.equals(box(-80.0, 40.0, -79.98, 40.02))


def test_images_without_a_year_fill_gaps_of_the_year():
    images = [make_image("unknown", PLACE.bounds, None), make_image("w12", WEST, 2012), make_image("e10", EAST, 2010)]
    assert names(choose_images(images, PLACE, 2012)[0]) == ["w12", "unknown"]
    assert names(choose_images(images[:1], PLACE, None)[0]) == ["unknown"]
