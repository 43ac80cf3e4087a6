"""Reads text that a user gives: a file, or standard input. It must be UTF-8."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from kvpolicy.errors import InvalidValueError, shown

STDIN = "-"
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""The byte-order mark."""
_BEGINNING = 64
"""How many bytes tell whether text without a byte-order mark is UTF-16."""


def read_text(file: str, option: str) -> str:
    """Return the text of the file that `option` names. The file '-' is standard input.

    A byte-order mark at its start is left out, and every line ends with a line feed. Raises
    InvalidValueError if the file cannot be read or is not UTF-8.
    """
    try:
        data = _standard_input() if file == STDIN else Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(
            f"cannot read {option} {shown(file)}: {reason}. Give a file with UTF-8 text, or - for "
            "standard input."
        ) from error
    return _decoded(data, f"{option} {shown(file)}")


def _standard_input() -> bytes:
    if sys.stdin is None:  # it is closed
        return b""
    buffer = getattr(sys.stdin, "buffer", None)
    data: bytes = sys.stdin.read().encode() if buffer is None else buffer.read()
    return data


def _decoded(data: bytes, title: str) -> str:
    if _is_utf16(data):
        raise InvalidValueError(f"{title} is UTF-16 text. Save it as UTF-8.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValueError(
            f"{title} is not UTF-8 text (at byte {error.start}). Give a file with UTF-8 text."
        ) from error
    return (
        text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").replace("\r\n", "\n").replace("\r", "\n")
    )


def _is_utf16(data: bytes) -> bool:
    """Say whether bytes start with UTF-16's mark, or every other one of the first bytes is 0."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    halves = data[:_BEGINNING:2], data[1:_BEGINNING:2]
    return len(data) > 1 and any(map(any, halves)) and not all(map(any, halves))
