"""Keeps what plugins print off standard output, which has the result of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

STDOUT, STDERR = 1, 2


@contextmanager
def plugins_print_to_stderr() -> Iterator[None]:
    """Send to standard error what is written to standard output meanwhile.

    This holds for `print`, for what writes to the file descriptor itself, and for processes that
    are started meanwhile. A handler of `logging` that is made meanwhile keeps standard error.
    """
    with _redirected_descriptor(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _redirected_descriptor() -> Iterator[None]:
    _flush()
    try:
        saved = os.dup(STDOUT)
    except OSError:  # there is no standard output
        yield
        return
    try:
        with suppress(OSError):  # there is no standard error
            os.dup2(STDERR, STDOUT)
        yield
    finally:
        _flush()
        os.dup2(saved, STDOUT)
        os.close(saved)


def _flush() -> None:
    """Write what Python still holds back for the descriptor."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            with suppress(OSError, ValueError):  # the stream is broken or closed
                stream.flush()
