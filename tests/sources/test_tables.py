"""Tables from Excel, pandas and QGIS are read if they are unambiguous, and give a one-line error otherwise."""

import numpy as np
import pytest

from landprior.domains.density.priors import read_priors
from landprior.domains.imagery.images import read_table as read_image_table
from landprior.errors import InputError, MissingInputError, PriorError
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.sources.tables import parse_table, read_table

ROWS = [
    ("11", ".95", ".01", ".03", ".01"),
    ("41", "0.00", "0.90", "0.09", "0.01"),
    ("81", "0.01", "0.09", "0.895", "0.005"),
]
HEADER = ("nlcd", "water", "tree canopy", "low vegetation", "impervious")


def lines(separator=",", header=HEADER, rows=ROWS, *, comma=False):
    text = "\n".join(separator.join(row) for row in (header, *rows)) + "\n"
    return text.replace(".", ",") if comma else text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (lines(), "utf-8"),
        (lines(), "utf-8-sig"),
        (lines(), "utf-16"),
        (lines().replace("\n", "\r\n"), "utf-8"),
        (lines().replace("\n", "\r"), "utf-8"),
        (lines(";"), "utf-8-sig"),
        (lines("\t"), "utf-16"),
        (lines("\t", comma=True), "utf-8"),
        (lines(";", comma=True), "utf-8"),
        ("sep=;\n" + lines(";", comma=True), "utf-8"),
        ("# P(class | code); of here, by hand\n" + lines(";", comma=True), "utf-8"),
        ('"# P(class | code); of here, by hand";;;;\n' + lines(";", comma=True), "utf-8"),
        (lines(rows=[(row[0] + ".0", *row[1:]) for row in ROWS]), "utf-8"),
        (lines(rows=[(f" {row[0]} ", *row[1:]) for row in ROWS]), "utf-8"),
        (lines(header=("NLCD ", "Water", " TREE\u00a0CANOPY", "Low  Vegetation", "4")), "utf-8"),
        (lines(header=(*HEADER, ""), rows=[(*row, "") for row in ROWS]) + ",,,,,\n\n", "utf-8"),
        (lines(";", header=(*HEADER, '"Pixels"'), rows=[(*row, '"1,234,567"') for row in ROWS]), "utf-8"),
    ],
)
def test_all_forms_of_matrices_from_excel_give_the_same(tmp_path, chesapeake, text, encoding):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode(encoding))
    found = load_cooccurrence(path, chesapeake).probabilities
    assert sorted(found) == [11, 41, 81]
    np.testing.assert_allclose(found[11], [0.95, 0.01, 0.03, 0.01])
    np.testing.assert_allclose(found[81], [0.01, 0.09, 0.895, 0.005])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lines(rows=[*ROWS, ROWS[2]]), r"line 5: code 81 already has a row, on line 4"),
        (lines(rows=[*ROWS, ("81.0", *ROWS[0][1:])]), r"line 5: code 81 already has a row, on line 4"),
        (
            lines(header=(*HEADER, "water"), rows=[(*row, "1") for row in ROWS]),
            "line 1: two columns are named 'water'",
        ),
        (lines(header=(*HEADER, "WATER"), rows=[(*row, "1") for row in ROWS]), "two columns are named 'water'"),
        (lines(header=(*HEADER, "1"), rows=[(*row, "1") for row in ROWS]), "two columns for class 'water'"),
        (lines(rows=[("300", *ROWS[0][1:])]), "line 2: the code 300 is not within"),
        (lines(rows=[("11.5", *ROWS[0][1:])]), "line 2: nlcd is '11.5', not a whole number"),
        (lines(rows=[("11", "95%", "0", "0", "5%")]), "line 2: water is '95%', not a finite number"),
        (lines(rows=[("11", "#REF!", "0", "0", "5")]), "line 2: water is '#REF!'"),
        (lines(rows=[("11", "1", "-1", "0", "1")]), "line 2: .*not negative, not -1"),
        (lines(rows=[("11", "0,95", "0", "0", "5")]), "line 2: more values than the header has columns"),
        (lines(rows=[("11", '"1,000', "0", "0", "5")]), "is a quote not closed"),
        (
            lines(rows=[("11", '"1,000"', "0", "0", "5")]),
            "line 2: water is '1,000', .* ambiguous",
        ),
    ],
)
def test_the_error_for_an_ambiguous_matrix_names_line_and_value(tmp_path, chesapeake, text, reason):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(PriorError, match=rf"m\.csv.*{reason}") as caught:
        load_cooccurrence(path, chesapeake)
    assert "\n" not in str(caught.value)


def test_the_error_for_another_encoding_names_the_line_and_gives_advice(tmp_path, chesapeake):
    path = tmp_path / "m.csv"
    path.write_bytes(lines().replace("water", "forêt").encode("latin-1"))
    with pytest.raises(PriorError, match=r"m\.csv, line 1: the byte 0xea is not UTF-8; save the file as UTF-8"):
        load_cooccurrence(path, chesapeake)
    path.write_bytes(lines().encode("utf-16-le"))
    with pytest.raises(PriorError, match="UTF-16 without a mark"):
        load_cooccurrence(path, chesapeake)
    path.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(PriorError, match=r"line \d+: the byte"):
        load_cooccurrence(path, chesapeake)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.5", "2"], [1.5, 2]),
        (["1,5", "2"], [1.5, 2]),
        (["1,500", "0,5"], [1.5, 0.5]),
        (["1,500", "0.5"], [1500, 0.5]),
        (["1.234.567,5", "2"], [1234567.5, 2]),
        (["1,234,567.5", "570,050"], [1234567.5, 570050]),
        (["1 234,5", "2"], [1234.5, 2]),
        (["1\u202f234\u202f567", "\u22122"], [1234567, -2]),
        (["1'234.5", "1e-3"], [1234.5, 0.001]),
        (["570,050", "2"], [None, 2]),
        (["0,5", "1.500"], [0.5, None]),
        (["0,5", "0.5"], [0.5, 0.5]),
        (["nan", "inf"], [None, None]),
        (["1e999", "0x10"], [None, None]),
        (["1_000", "12:30"], [None, None]),
        (["1,50,000.5", "--1"], [None, None]),
    ],
)
def test_numbers_are_unambiguous_or_not_read(tmp_path, cells, expected):
    table = parse_table("v\tw\n" + "\n".join(f"{cell}\tx" for cell in cells), tmp_path / "a")
    assert [table.parse(cell) for cell in cells] == expected


def test_quotes_in_other_columns_do_not_hide_the_delimiter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('code;Developed, Open;"a;b"\n1;2,5;3\n')
    table = read_table(path)
    assert table.header == ("code", "Developed, Open", "a;b")
    assert [table.number(table.rows[0], i) for i in range(3)] == [1, 2.5, 3]
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)
    with pytest.raises(MissingInputError, match="no such file"):
        read_table(tmp_path / "b.csv")


def test_line_numbers_in_errors_count_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Class;Probability\n\n0;0,1\n;;\n1;x\n")
    with pytest.raises(InputError, match="line 5: probability is 'x', not a number"):
        read_priors(path, 2)
    path.write_text("Class;Probability\n\n0;0,1\n1;0,9\n")
    assert read_priors(path, 2).tolist() == [0.1, 0.9]


def test_tables_of_images_use_the_same_reader(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("First;SECOND\na  b.png;c.png\n\nd.png;e.png\n".encode("utf-16"))
    rows = read_image_table(path, ("first", "second"))
    assert rows == [{"first": "a  b.png", "second": "c.png"}, {"first": "d.png", "second": "e.png"}]
    assert [row.line for row in rows] == [2, 4]
