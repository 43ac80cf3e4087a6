"""Rows in a folder at an address, such as s3://bucket/runs, which fsspec opens.

An object store writes whole objects only. So each process has files of its own there, and writes
the newest one anew with each row. A process that is killed loses at most the run that it was at.
Other stores, such as SFTP, write a file bit by bit: a process that is killed in the middle of a
write may lose the rows of its newest file, at most `ROWS_OF_A_FILE`.
Processes never write to the same file. Two of them may do the same run; its row counts once.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kvpolicy.errors import ResultsError, shown
from kvpolicy.evaluation.runs.results import Results, as_line, parsed
from kvpolicy.evaluation.runs.row import Row

ROWS_OF_A_FILE = 200
"""A process begins another file after so many rows, so that writing one stays quick."""
# A path drops all slashes but one of an address that it is given.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]+):(/+)(.*)", re.DOTALL)
_OF_THIS_MACHINE = ("file", "local")


def results_at(place: str | os.PathLike[str] | None) -> Results | StoredResults:
    """Return the rows of a file, of a folder at an address, or none yet if `place` is None.

    Raises ResultsError as `Results` and `StoredResults` do.
    """
    address = None if place is None else address_of(place)
    return Results(place) if address is None else StoredResults(address)


def address_of(place: str | os.PathLike[str]) -> str | None:
    """Return an address as fsspec reads it; None for a path of this machine.

    >>> from pathlib import Path
    >>> address_of(Path("s3://bucket/runs")), address_of(Path("file:///tmp/runs"))
    ('s3://bucket/runs', 'file:///tmp/runs')
    >>> address_of("runs.jsonl")
    """
    found = _ADDRESS.fullmatch(str(place))
    if found is None:
        return None
    protocol, slashes, rest = found.groups()
    # An address of a file here has no host: file:/tmp is what a path leaves of file:///tmp.
    whole = "///" if protocol.lower() in _OF_THIS_MACHINE else "//"
    return f"{protocol}:{slashes if len(slashes) > 1 else whole}{rest}"


class StoredResults:
    """The rows of all files in a folder at an address, by key.

    Raises ResultsError if the address cannot be read or written, or a file there holds a line that
    is no row. The last line of a file may be cut off, where a store does not write files whole: it
    is left out, and its run is run again. A last line that only lacks its end is a row.
    """

    def __init__(self, address: str) -> None:
        self.file = address
        self.rows: dict[str, Row] = {}
        self._lines: list[bytes] = []
        self._name = _new_name()
        self._known: dict[str, object] = {}
        self._system, self._folder = _opened(address)
        self.refresh()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def refresh(self) -> None:
        """Read files that other processes have written since."""
        try:
            found = self._files()
            new = [name for name in sorted(found) if self._known.get(name) != found[name]]
            texts = {name: self._system.cat_file(name) for name in new}
        except Exception as error:
            raise self._unreachable("read", error) from error
        for name, text in texts.items():
            for row in _rows_of(text, f"{self.file}: {name}"):
                self.rows[row.key] = row
        self._known = found

    def add(self, row: Row) -> Row:
        """Write a row, and return it.

        If another process has written a row of that key meanwhile, that row is returned instead.
        """
        known = self.rows.get(row.key)
        self.refresh()
        theirs = self.rows.get(row.key)
        if theirs is not None and theirs != known:
            return theirs
        # Of two rows of a run the one in the newer file counts, also where this file is the older.
        if known is not None or len(self._lines) >= ROWS_OF_A_FILE:
            self._lines, self._name = [], _new_name()
        self._lines.append(as_line(row))
        name = f"{self._folder}/{self._name}"
        try:
            self._system.makedirs(self._folder, exist_ok=True)
            self._system.pipe_file(name, b"".join(self._lines))
            self._known |= {each: size for each, size in self._files().items() if each == name}
        except Exception as error:
            self._lines.pop()
            raise self._unreachable("write to", error) from error
        self.rows[row.key] = row
        return row

    def _files(self) -> dict[str, object]:
        """Return the files of rows, and what tells their versions apart."""
        self._system.invalidate_cache()
        if not self._system.exists(self._folder):
            return {}
        return {
            each["name"]: (each.get("size"), each.get("ETag"), str(each.get("LastModified")))
            for each in self._system.ls(self._folder, detail=True)
            if each["name"].endswith(".jsonl")
        }

    def _unreachable(self, what: str, error: Exception) -> ResultsError:
        return ResultsError(
            f"cannot {what} {shown(self.file)}: {type(error).__name__}: {error}. Check the address "
            "and your access to it, or write to a file on this machine."
        )


def rows_at(address: str) -> list[Row]:
    """Return the rows at an address; raise ResultsError if they cannot be read."""
    return list(StoredResults(address))


def _opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the folder there."""
    try:
        from fsspec.core import url_to_fs

        system, folder = url_to_fs(address)
    except Exception as error:
        raise ResultsError(
            f"cannot open {shown(address)}: {type(error).__name__}: {error}. The address needs the "
            "package of fsspec for its protocol, such as s3fs for s3:// and gcsfs for gs://."
        ) from error
    return system, str(folder).rstrip("/")


def _rows_of(text: bytes, file: str) -> Iterator[Row]:
    """Yield the rows of a file; a last line that was cut off is none."""
    *lines, rest = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield parsed(line, file, number)
    if rest.strip():
        with suppress(ResultsError):
            yield parsed(rest, file, len(lines) + 1)


def _new_name() -> str:
    """Name a file so that names are in the order of time."""
    return f"rows-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
