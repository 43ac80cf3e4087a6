"""Which implementation the doors of kvpolicy_kernels choose, and which one ran."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from kvpolicy_kernels import backend


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Let the doors choose "auto" or "reference" in this block."""
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            del os.environ[backend.VARIABLE]
        else:
            os.environ[backend.VARIABLE] = before


def under(choice: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that runs with this choice."""

    def chosen() -> Any:
        with kernels(choice):
            return call()

    return chosen


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """Note for each door that is called in this block whether its kernel or its reference runs."""
    found: dict[str, str] = {}
    chosen = backend._function

    def note(module: ModuleType, door: Callable[..., Any]) -> Callable[..., Any]:
        ran = module.__name__.rpartition(".")[2]
        before = found.setdefault(door.__name__, ran)
        found[door.__name__] = ran if before == ran else "kernel and reference"
        return chosen(module, door)

    with patch.object(backend, "_function", note):
        yield found


def what_runs(room: str, call: Callable[[], Any], device: torch.device) -> str:
    """Call once with "auto"; return "kernel", or "reference: " and the reason."""
    backend._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught, kernels("auto"):
        warnings.simplefilter("always")
        call()
    fallbacks = [
        str(each.message)
        for each in caught
        if issubclass(each.category, backend.KernelFallbackWarning)
    ]
    if fallbacks:
        return f"reference: {fallbacks[0]}"
    if device.type != "cuda":
        return "reference: no GPU"
    if find_spec(f"kvpolicy_kernels.{room}.kernel") is None:
        return "reference: there is no kernel"
    return "kernel"
