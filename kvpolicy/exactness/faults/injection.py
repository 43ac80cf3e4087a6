"""Raise an exception at the n-th line of kvpolicy that an operation runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import kvpolicy

_PACKAGE = str(Path(kvpolicy.__file__).parent)
_NOT_AT_WORK = str(Path(__file__).parents[1])
"""The folder of exactness, which watches the cache and is no part of it."""

EXCEPTIONS: tuple[type[BaseException], ...] = (
    torch.OutOfMemoryError,
    KeyboardInterrupt,
    RuntimeError,
)
"""What may happen at any line."""

Trace = Callable[[FrameType, str, Any], Any]


class Injected:
    """Notes the lines of kvpolicy that run, and raises at one of them.

    `place` counts from 0; None raises nowhere. Lines that were already running are not noted.
    `lines` are those that ran, in order, and `where` is the one that raised.
    """

    def __init__(self, place: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        """Note lines from here on."""
        self.lines = list[str]()
        self.where = ""
        self._place = place
        self._error = error

    def __enter__(self) -> Injected:
        """Begin to note, in this thread."""
        self._before = sys.gettrace()
        sys.settrace(self._enters)
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop."""
        sys.settrace(self._before)

    def _enters(self, frame: FrameType, event: str, argument: Any) -> Trace | None:
        name = frame.f_code.co_filename
        is_ours = name.startswith(_PACKAGE) and not name.startswith(_NOT_AT_WORK)
        return self._runs if is_ours else None

    def _runs(self, frame: FrameType, event: str, argument: Any) -> Trace:
        if event == "line":
            file = frame.f_code.co_filename.removeprefix(_PACKAGE).lstrip(os.sep)
            line = f"{file}:{frame.f_lineno}"
            self.lines.append(line)
            if len(self.lines) - 1 == self._place:
                sys.settrace(None)
                self.where = line
                raise self._error("injected")
        return self._runs


def first_and_last(lines: Sequence[str]) -> list[int]:
    """Return the places at which each line runs for the first and for the last time.

    >>> first_and_last(["a", "b", "b", "b", "c"])
    [0, 1, 3, 4]
    """
    last = {line: place for place, line in enumerate(lines)}
    first = {line: place for place, line in reversed(list(enumerate(lines)))}
    return sorted({*first.values(), *last.values()})
