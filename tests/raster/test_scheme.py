from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landprior.errors import ConfigError, InputError, MissingInputError, SchemeError
from landprior.raster.scheme import ClassScheme, load_scheme, parse_label_map


def test_shipped_schemes_have_their_published_codes():
    assert load_scheme("enviroatlas-5").codes.tolist() == [10, 20, 30, 40, 70]
    assert load_scheme("chesapeake-4").codes.tolist() == [1, 2, 3, 4]
    nlcd = {11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95}
    assert set(load_scheme("nlcd").codes.tolist()) == nlcd


def test_encode_merges_ignores_and_keeps_shape(chesapeake):
    labels = np.array([[1, 2, 3], [4, 5, 6], [0, 15, 255]])
    expected = [[0, 1, 2], [3, 3, 3], [-1, -1, -1]]
    assert chesapeake.encode(labels).tolist() == expected


def test_encode_applies_the_label_map_first(chesapeake):
    zero_based = np.array([0, 1, 2, 3])
    mapped = chesapeake.encode(zero_based, label_map={0: 1, 1: 2, 2: 3, 3: 4})
    assert mapped.tolist() == [0, 1, 2, 3]
    # mapping to an ignored code leaves pixels out
    assert chesapeake.encode(np.array([1, 2]), label_map={1: 15}).tolist() == [-1, 1]


def test_encode_names_unknown_codes_and_suggests_a_label_map(enviroatlas):
    with pytest.raises(SchemeError, match=r"map\.tif has code\(s\) 5, 99 .*--label-map"):
        enviroatlas.encode(np.array([10, 5, 99]), where="map.tif")


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=50))
def test_decode_is_the_inverse_of_encode(positions):
    scheme = load_scheme("chesapeake-4")
    array = np.array(positions)
    assert scheme.encode(scheme.decode(array)).tolist() == positions


def test_index_accepts_names_codes_and_merged_codes(chesapeake):
    assert [chesapeake.index(k) for k in ("Water", 2, "3", " impervious ", 6)] == [0, 1, 2, 3, 3]
    with pytest.raises(SchemeError, match="it has: 1 water"):
        chesapeake.index("swamp")


def test_a_custom_scheme_from_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nclasses:\n"
        '  - {code: 1, name: wet, colour: "#0000ff", role: water}\n'
        '  - {code: 7, name: dry, colour: "#ff0000", merge: [8, 9]}\n'
        "ignored: [0]\n"
    )
    scheme = load_scheme(path)
    assert scheme.names == ["wet", "dry"]
    assert scheme.encode(np.array([1, 8, 9, 0])).tolist() == [0, 1, 1, -1]
    assert scheme.role_index("water") == 0
    assert scheme.role_index("impervious") is None
    assert ClassScheme.model_validate_json(scheme.model_dump_json(exclude_defaults=True)) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: []", "name"),
        ("name: a\nclasses:\n  - {code: 255, name: x, colour: '#000000'}", "code"),
        (
            "name: a\nclasses:\n  - {code: 1, name: x, colour: '#000000'}\n  - {code: 2, name: y, colour: red}",
            "colour",
        ),
        (
            "name: a\nclasses:\n  - {code: 1, name: x, colour: '#000000'}\n  - {code: 2, name: x, colour: '#000001'}",
            "occurs twice",
        ),
        (
            (
                "name: a\nclasses:\n  - {code: 1, name: x, colour: '#000000'}\n"
                "  - {code: 2, name: y, colour: '#000001', merge: [1]}"
            ),
            "line 3: classes: a code may stand for only one class; 1 stands for 'x' and 'y'",
        ),
        (
            (
                "name: a\nclasses:\n  - {code: 1, name: x, colour: '#000000'}\n"
                "  - {code: 2, name: y, colour: '#000001'}\nignored: [0, 0]"
            ),
            r"ignored lists \[0\] twice",
        ),
        ("- 1", "mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_scheme_is_a_one_line_error_with_the_file(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SchemeError, match=message) as caught:
        load_scheme(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_missing_files():
    with pytest.raises(ConfigError, match="chesapeake-4, enviroatlas-5, nlcd"):
        load_scheme("enviroatlas-6")
    with pytest.raises(MissingInputError, match="no such file"):
        load_scheme("nowhere/mine.yaml")


def test_label_maps():
    assert parse_label_map("10:1, 20:2") == {10: 1, 20: 2}
    with pytest.raises(InputError, match="FROM:TO"):
        parse_label_map("10=1")
    with pytest.raises(InputError, match="both 1 and 2"):
        parse_label_map("10:1,10:2")


def test_blend_is_the_mean_of_class_colours(chesapeake):
    probabilities = np.zeros((4, 1, 3), np.float32)
    probabilities[0, 0, 0] = 1
    probabilities[:2, 0, 1] = 0.5
    probabilities[:, 0, 2] = np.nan
    rgb = chesapeake.blend(probabilities)
    assert rgb[0, 0].tolist() == [0, 197, 255]
    assert rgb[0, 1].tolist() == [19, 156, 128]
    assert rgb[0, 2].tolist() == [255, 255, 255]


def test_render_leaves_other_codes_transparent(chesapeake):
    rgba = chesapeake.render(np.array([[1, 255]]))
    assert rgba.tolist() == [[[0, 197, 255, 255], [0, 0, 0, 0]]]
