"""Reading documents and class trees, and the errors for invalid ones."""

import gzip
import json

import numpy as np
import pytest

from landprior.domains.text.documents import UNKNOWN, make_tree, read_documents, read_tree
from landprior.errors import ConfigError, InputError, MissingInputError

TREE = make_tree({"hockey": "sports", "tennis": "sports", "dance": "arts"})


def test_the_children_in_a_tree():
    assert TREE.coarse == ("sports", "arts")
    assert TREE.fine == TREE.names == ("hockey", "tennis", "dance")
    assert TREE.children.tolist() == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tree.json", '{"sports": {"hockey": "ice hockey", "tennis": "tennis"}, "arts": ["dance"]}'),
        ("tree.yaml", "sports:\n  hockey: ice hockey\n  tennis: tennis\narts: [dance]\n"),
        (
            "tree.json",
            '{"coarse_of": {"hockey":"sports", "tennis":"sports","dance":"arts"}, "name_of": {"hockey": "ice hockey"}}',
        ),
    ],
)
def test_a_tree_is_read_in_every_form(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    tree = read_tree(tmp_path / name)
    assert (tree.coarse, tree.fine, tree.parent.tolist()) == (TREE.coarse, TREE.fine, [0, 0, 1])
    assert tree.names == ("ice hockey", "tennis", "dance")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "is not a tree"),
        ("{", "cannot be parsed"),
        ('{"a": ["x", "y"], "a": ["z"]}', "'a' occurs twice"),
        ('{"a": "x"}', "below 'a' there must be a list"),
        ('{"a": []}', "below 'a' there must be a list"),
        ('{"a": ["x", 3]}', "3 is not text or is twice there"),
        ('{"a": ["x", "x"]}', "is not text or is twice there"),
        ('{"a": ["x"], "b": ["x", "y"]}', "'x' lies below both 'a' and 'b'"),
        ('{"a": ["x"]}', "at least two fine classes"),
        ('{"a": {"x": "", "y": "y"}}', "'' in a is not text"),
        ('{"coarse_of": {"x": "a", "y": "a"}, "name_of": {"z": "zed"}}', "name_of has 'z'"),
        ('{"coarse_of": ["x"]}', "coarse_of must map texts to texts"),
    ],
)
def test_an_invalid_tree_is_explained_in_one_line(tmp_path, text, said):
    path = tmp_path / "tree.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tree\.json") as error:
        read_tree(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_tree(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_tree(tmp_path / "tree.json")


ROWS = [
    {"id": "a", "coarse": "sports", "fine": "hockey", "title": "One", "text": "Pucks, and\nice."},
    {"id": "b", "coarse": "arts", "fine": "", "title": "", "text": "Tanz in Köln"},
    {"id": "c", "coarse": "sports", "fine": "tennis", "title": "Three", "text": "Rackets"},
]


def write(path, rows):
    import csv

    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        if ".csv" in path.name:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.jsonl", "d.jsonl.gz", "d.ndjson"])
def test_documents_are_read_in_every_format(tmp_path, name):
    documents = read_documents(write(tmp_path / name, ROWS), TREE, text=("title", "text"))
    assert documents.texts == ("One. Pucks, and\nice.", "Tanz in Köln", "Three. Rackets")
    assert documents.coarse.tolist() == [0, 1, 0]
    assert documents.fine.tolist() == [0, UNKNOWN, 1]
    assert documents.ids == ("a", "b", "c")
    assert documents.allowed(TREE)[1].tolist() == [False, False, True]
    some = documents.take([2, 0])
    assert (some.ids, some.fine.tolist(), len(some)) == (("c", "a"), [1, 0], 2)


def test_the_names_of_columns_can_be_given(tmp_path):
    rows = [{"body": row["text"], "section": row["coarse"], "topic": row["fine"]} for row in ROWS]
    path = write(tmp_path / "d.jsonl", rows)
    documents = read_documents(path, TREE, text=("body",), coarse="section")
    assert documents.fine is None
    assert documents.ids is None
    documents = read_documents(path, TREE, text=("body",), coarse="section", fine="topic")
    assert documents.fine.tolist() == [0, UNKNOWN, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz"])
def test_documents_are_read_in_all_forms_that_excel_writes(tmp_path, name, delimiter, encoding):
    cells = (("ID", "Coarse ", "TEXT", ""), ("a", "sports", '"Pucks; and, ice\tx"', ""), ("", "", "", ""))
    content = "\r\n".join(delimiter.join(row) for row in cells).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    documents = read_documents(tmp_path / name, TREE)
    assert documents.texts == ("Pucks; and, ice\tx",)
    assert documents.coarse.tolist() == [0]
    assert documents.ids == ("a",)


def test_a_document_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    rows = [ROWS[0] | {"text": "word " * 60_000}]
    assert len(read_documents(write(tmp_path / "d.csv", rows), TREE).texts[0]) == 299_999


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coarse": "sport"}, "coarse label 'sport' is not in the tree, which has sports, arts"),
        ({"text": "  "}, "the text (text) is empty"),
        ({"text": None}, "the text (text) is empty"),
        ({"fine": "dance"}, "fine label 'dance' lies below 'arts', not 'sports'"),
        ({"fine": "ballet"}, "fine label 'ballet' is not in the tree"),
        ({"text": ["a"]}, "text is not text but list"),
        ({"id": "b"}, "id 'b' already occurs on line 2"),
    ],
)
def test_the_error_names_an_invalid_line(tmp_path, change, said):
    path = write(tmp_path / "d.jsonl", [*ROWS[:2], ROWS[2] | change])
    with pytest.raises(InputError) as error:
        read_documents(path, TREE)
    assert str(error.value) == f"{path}, line 3: {said}"


def test_the_error_for_a_missing_column_lists_the_others(tmp_path):
    path = write(tmp_path / "d.csv", ROWS)
    with pytest.raises(InputError, match=r"line 3: there is no column 'body'; it has id, coarse, fine, title, text"):
        read_documents(path, TREE, text=("body",))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_documents(tmp_path / "d.csv", TREE)
    for name, content, said in (
        ("d.txt", b"x", "documents must be"),
        ("d.jsonl", b'{"text": "x", "coarse"\n', "line 1 is not JSON"),
        ("e.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("f.jsonl", b"\n", "has no documents"),
        ("g.jsonl", b'{"text": "\xff"}\n', "cannot be read: line 1 is not UTF-8"),
        ("h.jsonl.gz", b"no gzip", "cannot be read"),
        ("i.csv", b"text,coarse\na,sports,3\n", r"line 2: more values than the header has columns \(3, not 2\)"),
        ("j.csv", b'text,coarse\n"a,sports\n', "unexpected end of data"),
        ("k.csv", b"text,coarse\na\n", "line 2: 1 columns where the header has 2"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_documents(tmp_path / name, TREE)


def test_empty_fine_labels_count_as_none(tmp_path):
    assert read_documents(write(tmp_path / "d.jsonl", [ROWS[1]]), TREE).fine is None
    assert np.array_equal(read_documents(write(tmp_path / "e.jsonl", ROWS[:1]), TREE).fine, [0])
