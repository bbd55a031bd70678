"""Ambiguous YAML is an error that names the line, wherever YAML is read."""

import pytest

from landprior.domains.text.documents import read_tree
from landprior.errors import ConfigError, LandpriorError, SchemeError
from landprior.landcover.experiments.config import load_experiment
from landprior.raster.scheme import load_scheme
from landprior.resources import read_yaml
from landprior.sources.cities import load_city
from landprior.strict_yaml import find_line, parse_yaml
from landprior.superres.comparison import load_comparison


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no", "true or false"),
        ("Yes", "true or false"),
        ("on", "true or false"),
        ("OFF", "true or false"),
        ("010", "another number"),
        ("0b11", "another number"),
        ("1_000", "another number"),
        ("1:30", "another number"),
        ("1:30.5", "another number"),
        ("1_0.5", "another number"),
        ("2019-01-01", "a date"),
        ("2019-01-01 10:00:00", "a date"),
    ],
)
def test_values_that_yaml_reads_differently_are_errors_with_their_line(value, reason):
    with pytest.raises(ConfigError, match=rf"^a\.yaml, line 3.*{reason}"):
        parse_yaml(f"a: 1\nb:\n  - {value}\n", "a.yaml")


def test_the_same_values_in_quotes_and_plain_ones_are_read():
    text = "a: 'no'\nb: \"010\"\nc: [0, -3, 0x0A, 1.5, .5, 1.0e-3, true, False, null, ~]\nd: 1e3\n"
    expected = {"a": "no", "b": "010", "c": [0, -3, 10, 1.5, 0.5, 0.001, True, False, None, None], "d": "1e3"}
    assert parse_yaml(text, "a") == expected


def test_duplicate_keys_name_both_lines_at_any_depth():
    with pytest.raises(ConfigError, match=r"a\.yaml, line 4: the key 'b' already occurs on line 2"):
        parse_yaml("a:\n  b: 1\n  c: 2\n  b: 1\n", "a.yaml")
    with pytest.raises(ConfigError, match=r"line 1: the key 'x' already occurs on line 1"):
        parse_yaml("a: [{x: 1, x: 2}]", "a.yaml")


def test_merge_keys_work_but_bombs_and_cycles_do_not():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", "a")["b"] == {"x": 1, "y": 3}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_yaml(bomb, "a.yaml")
    with pytest.raises(ConfigError, match="line 1: an alias"):
        parse_yaml("a: &a [1, *a]\n", "a.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: !!python/object:os.system x\n", "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        parse_yaml("a: " + "[" * 3000, "a.yaml")


def test_lines_of_values():
    text = "name: a\nclasses:\n  - code: 1\n    name: x\n  - {code: 2}\n"
    assert find_line(text, ("classes", 0, "name")) == 4
    assert find_line(text, ("classes", 1, "name")) == 5
    assert find_line(text, ("nothing",)) is None


@pytest.mark.parametrize("read", [load_scheme, load_city, load_experiment, load_comparison, read_tree, read_yaml])
def test_every_configuration_is_read_by_the_same_loader(tmp_path, read):
    path = tmp_path / "mine.yaml"
    for text in ("name: a\nname: b\n", "name: a\ntitle: no\n"):
        path.write_text(text)
        with pytest.raises(LandpriorError, match=r"mine\.yaml, line 2") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes("name: a\ntitle: forêt\n".encode("latin-1"))
    with pytest.raises(LandpriorError, match=r"mine\.yaml, line 2: the byte 0xea is not UTF-8"):
        read(path)


def test_a_scheme_in_utf_16_or_with_a_byte_order_mark_is_read(tmp_path):
    text = (
        'name: a\nclasses:\n  - {code: 1, name: forêt, colour: "#000000"}\n  - {code: 2, name: y, colour: "#000001"}\n'
    )
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding=encoding)
        assert load_scheme(path).names == ["forêt", "y"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("water", "Water"), "differ only in case"),
        (("tree canopy", "tree  canopy"), "occurs twice"),
        (("for\u00eat", "fore\u0302t"), "differ only in case, spaces or accents"),
        (("water", "\uff37ater"), "differ only in case"),
        (("3", "trees"), "another code"),
        (("2.0", "trees"), "another code"),
        (("a|b", "trees"), r"may not contain \|"),
        (("!wet", "trees"), "start with !"),
        (("  ", "trees"), "the name is empty"),
    ],
)
def test_class_names_that_labels_cannot_distinguish_are_refused(tmp_path, names, reason):
    path = tmp_path / "mine.yaml"
    lines = [f'  - {{code: {i}, name: "{name}", colour: "#00000{i}"}}' for i, name in enumerate(names, 1)]
    path.write_text("name: a\nclasses:\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(SchemeError, match=rf"mine\.yaml, line \d: .*{reason}"):
        load_scheme(path)


def test_a_code_both_ignored_and_a_class_is_refused_and_a_misspelt_key_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    two = '  - {code: 1, name: x, colour: "#000000"}\n  - {code: 2, name: y, %s: "#000001", merge: [7]}\n'
    path.write_text("name: a\nclasses:\n" + two % "colour" + "ignored: [0, 7]\n")
    with pytest.raises(SchemeError, match=r"\[7\] do both"):
        load_scheme(path)
    path.write_text("name: a\nclasses:\n" + two % "color")
    with pytest.raises(SchemeError, match=r"line 4: classes\.1\.color"):
        load_scheme(path)


def test_labels_match_classes_despite_case_blanks_and_unicode_form(chesapeake):
    for text in ("Tree Canopy", " TREE  CANOPY ", "tree\u00a0canopy", "2", "2.0", " 2 ", "2,0", "\uff54ree canopy"):
        assert chesapeake.index(text) == 1, text
    for text in ("tree_canopy", "2.5", "nan", ""):
        with pytest.raises(SchemeError):
            chesapeake.index(text)


def test_names_of_shipped_schemes_ignore_case():
    assert load_scheme("EnviroAtlas-5") == load_scheme("enviroatlas-5")


def test_infinite_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"a\.yaml, line 2: 9{20} has more than 15 digits"):
        parse_yaml("a: 1\nseeds: 99999999999999999999\n", "a.yaml")
    assert parse_yaml("a: 999999999999999\n", "a.yaml") == {"a": 999_999_999_999_999}
