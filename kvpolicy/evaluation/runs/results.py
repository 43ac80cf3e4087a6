"""A file of rows, a JSON object a line, to which several processes may append.

A row is one write of one line, so that a process that is killed loses at most the run that it was
at. A last line without its end is what such a process left. A whole row stays; a part of one is cut
off, with a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from kvpolicy.errors import ResultsCutWarning, ResultsError, shown
from kvpolicy.evaluation.runs.row import Row

_FIELDS = {field.name: field for field in attrs.fields(Row)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is attrs.NOTHING]


class Results:
    """The rows of a file, by key; without a file they are kept in memory only.

    Warns with ResultsCutWarning if the file ended in the middle of a row. Raises ResultsError if
    the file cannot be read or written, or holds a line that is no row.
    """

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        self.file = None if file is None else Path(file)
        self.rows: dict[str, Row] = {}
        self._read, self._line = 0, 0
        if self.file is not None:
            self._repair(self.file)
            self.refresh()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def refresh(self) -> None:
        """Read what was appended since, by this process or another."""
        if self.file is None or not self.file.exists():
            return
        with self.file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._line += 1
                if line.strip():
                    row = parsed(line, self.file, self._line)
                    self.rows[row.key] = row

    def add(self, row: Row) -> Row:
        """Append a row, in one write, and return it.

        If another process has appended a row of that key meanwhile, that row is returned instead.
        """
        known = self.rows.get(row.key)
        if self.file is None:
            self.rows[row.key] = row
            return row
        line = as_line(row)
        try:
            with self.file.open("ab", buffering=0) as opened, _alone(opened):
                self.refresh()
                theirs = self.rows.get(row.key)
                if theirs is not None and theirs != known:
                    return theirs
                opened.write(line)
                os.fsync(opened.fileno())
        except OSError as error:
            raise ResultsError(
                f"cannot write to {shown(str(self.file))}: {error.strerror or error}. Give a file "
                "in a folder that exists and can be written to."
            ) from error
        self.rows[row.key] = row
        return row

    def _repair(self, file: Path) -> None:
        """End the last line, or cut it off; make sure that the file can be appended to."""
        try:
            with file.open("a+b") as opened, _alone(opened):
                size = opened.seek(0, os.SEEK_END)
                end = size
                while end and not _ends_line(opened, end):
                    end -= 1
                if end < size:
                    opened.seek(end)
                    self._end(opened, opened.read(), end)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ResultsError(
                f"cannot open {shown(str(file))}: {reason}. Give a file in a "
                "folder that exists and can be written to."
            ) from error

    def _end(self, opened: Any, piece: bytes, start: int) -> None:
        try:
            parsed(piece, self.file, self._line)
        except ResultsError:
            opened.truncate(start)
            warnings.warn(
                f"{shown(str(self.file))} ended in the middle of a row: a run was stopped while it "
                f"wrote. The last {len(piece):,} bytes were removed, and that row is run again. "
                "All other rows are there.",
                ResultsCutWarning,
                stacklevel=5,
            )
        else:
            opened.write(b"\n")


def as_line(row: Row) -> bytes:
    """Return the line that holds a row."""
    line = json.dumps(row.to_dict(), ensure_ascii=False, default=shown) + "\n"
    return line.encode("utf-8", "surrogatepass")


def parsed(line: bytes, file: object, number: int) -> Row:
    """Return the row that line `number` of a file holds.

    Raises ResultsError if it holds none.
    """

    def unreadable(fault: str) -> ResultsError:
        return ResultsError(
            f"line {number} of {shown(str(file))} {fault}: it is no file of results, or it was "
            "damaged. Nothing was changed. Remove that line, or use another file."
        )

    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise unreadable(f"is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise unreadable("is no JSON object")
    if missing := [name for name in _REQUIRED if name not in data]:
        raise unreadable(f"lacks {', '.join(missing)}")
    if unknown := [name for name in data if name not in _FIELDS]:
        raise unreadable(f"has {', '.join(map(shown, unknown))}, which no row has")
    return Row(**data)


@contextmanager
def _alone(opened: Any) -> Iterator[None]:
    """Have a file for this process alone, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(opened, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(opened, fcntl.LOCK_UN)


def _ends_line(opened: Any, end: int) -> bool:
    opened.seek(end - 1)
    return bool(opened.read(1) == b"\n")
