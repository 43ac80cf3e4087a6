"""Tables are read with the names of their columns, and what is wrong is said with its place."""

from __future__ import annotations

import sys

import pyarrow
import pyarrow.parquet
import pytest

from kvpolicy.errors import DataError, MissingPackageError
from kvpolicy.evaluation.tasks.tables import csv_rows, parquet_rows, tsv_rows


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        file = tmp_path / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    return write


def test_a_quote_in_a_tsv_is_a_letter(write):
    file = write("a.tsv", '\ufeffone\ttwo\r\n"a\tb"\r\n\r\nc\td\r\n')
    assert list(tsv_rows(file, "")) == [
        (f"{file}, row 2", {"one": '"a', "two": 'b"'}),
        (f"{file}, row 4", {"one": "c", "two": "d"}),
    ]


def test_columns_may_be_named_where_the_file_does_not(write):
    assert list(tsv_rows(write("a.tsv", "a\tb\n"), "", ("x", "y"))) == [
        (f"{write('a.tsv', 'a')}, row 1", {"x": "a", "y": "b"})
    ]


def test_rows_that_lack_cells_may_be_passed_over(write):
    file = write("a.tsv", "a\tb\n1\n2\t3\n")
    assert [row for _, row in tsv_rows(file, "", cut=True)] == [{"a": "2", "b": "3"}]
    with pytest.raises(DataError, match="row 2 has 3 cells"):
        list(tsv_rows(write("a.tsv", "a\tb\n1\t2\t3\n"), "", cut=True))


def test_a_cell_of_a_csv_may_have_commas_quotes_and_lines(write):
    file = write("a.csv", '"one, ""two""","3\n4"\nx,y\n')
    rows = [row for _, row in csv_rows(file, "", ("a", "b"))]
    assert rows == [{"a": 'one, "two"', "b": "3\n4"}, {"a": "x", "b": "y"}]


def test_rows_of_parquet_have_the_types_of_their_columns(tmp_path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", "b"], "answer": [1, 2], "choices": [["x"], ["y", "z"]]})
    pyarrow.parquet.write_table(table, file)
    assert list(parquet_rows(file, "")) == [
        (f"{file}, row 0", {"text": "a", "answer": 1, "choices": ["x"]}),
        (f"{file}, row 1", {"text": "b", "answer": 2, "choices": ["y", "z"]}),
    ]


def test_what_is_wrong_is_said_with_its_place(write, tmp_path):
    with pytest.raises(
        DataError, match=r"a\.tsv, row 2 has 1 cells, but there are 2 columns: a, b"
    ):
        list(tsv_rows(write("a.tsv", "a\tb\nc\n"), ""))
    with pytest.raises(DataError, match=r"a\.csv, line 2: unexpected end of data"):
        list(csv_rows(write("a.csv", 'x\n"y\n'), "", ("a",)))
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as a table of Parquet"):
        list(parquet_rows(write("a.parquet", "text"), ""))
    with pytest.raises(DataError, match=r"cannot read b\.parquet in .*: No such file\. Origin\."):
        list(parquet_rows(tmp_path / "b.parquet", "Origin."))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"b\.parquet is .*Install kvpolicy\[eval\]"):
        list(parquet_rows(tmp_path / "b.parquet", ""))
