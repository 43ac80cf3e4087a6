"""Tables that tasks read: .tsv, .csv and .parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from kvpolicy.errors import DataError, MissingPackageError
from kvpolicy.evaluation.tasks.files import missing, text_of

Rows: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
"""Rows by column, each with the words for where it stands."""


def tsv_rows(file: Path, origin: str, columns: Sequence[str] = (), *, cut: bool = False) -> Rows:
    """Yield the rows of a table whose cells are separated by tabs; a quote is a letter.

    `columns` are the names where the first row does not tell them. With `cut` rows that lack cells
    are passed over. Raises DataError.
    """
    lines = text_of(file, origin).removeprefix("\ufeff").split("\n")
    return _named(file, (each.rstrip("\r").split("\t") for each in lines), columns, cut=cut)


def csv_rows(file: Path, origin: str, columns: Sequence[str]) -> Rows:
    """Yield the rows of a table whose cells are separated by commas, and may be in quotes.

    Raises DataError.
    """
    reader = csv.reader(io.StringIO(text_of(file, origin), newline=""), strict=True)
    try:
        yield from _named(file, reader, columns)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}.") from error


def parquet_rows(file: Path, origin: str) -> Rows:
    """Yield the rows of a table of Apache Parquet, which is read bit by bit.

    Raises DataError, and MissingPackageError if the package pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise MissingPackageError(
            f"{file.name} is read with the package pyarrow, which is not installed. Install "
            "kvpolicy[eval]."
        )
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    if not file.is_file():
        raise missing(file, origin, "No such file")
    number = 0
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    yield f"{file}, row {number}", row
                    number += 1
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as a table of Parquet: {error}.") from error


def _named(
    file: Path, rows: Iterator[list[str]], columns: Sequence[str], *, cut: bool = False
) -> Rows:
    first = 1
    if not columns:
        columns, first = next(rows, []), 2
    for number, row in enumerate(rows, start=first):
        if not any(row) or (cut and len(row) < len(columns)):
            continue
        if len(row) != len(columns):
            raise DataError(
                f"{file}, row {number} has {len(row)} cells, but there are {len(columns)} columns: "
                f"{', '.join(columns)}."
            )
        yield f"{file}, row {number}", dict(zip(columns, row, strict=True))
