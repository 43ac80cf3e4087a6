"""Raise an exception at the n-th line of kvpolicy that an operation runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
    """Counts the lines of kvpolicy that run, and raises at one of them.

    `place` counts from 0; None raises nowhere. Lines that were already running are not counted.
    """

    def __init__(self, place: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        """Count from here on."""
        self.lines = 0
        self.where = ""
        self._place = place
        self._error = error

    def __enter__(self) -> Injected:
        """Begin to count, in this thread."""
        self._before = sys.gettrace()
        sys.settrace(self._enters)
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop counting."""
        sys.settrace(self._before)

    def _enters(self, frame: FrameType, event: str, argument: Any) -> Trace | None:
        name = frame.f_code.co_filename
        is_ours = name.startswith(_PACKAGE) and not name.startswith(_NOT_AT_WORK)
        return self._runs if is_ours else None

    def _runs(self, frame: FrameType, event: str, argument: Any) -> Trace:
        if event == "line":
            self.lines += 1
            if self.lines - 1 == self._place:
                sys.settrace(None)
                file = Path(frame.f_code.co_filename).relative_to(_PACKAGE)
                self.where = f"{file}:{frame.f_lineno}"
                raise self._error("injected")
        return self._runs
