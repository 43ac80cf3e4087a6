"""Kernels on pretended tensors: their launches are counted, and their references compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime.jit import KernelInterface

import kvpolicy_kernels.backend as backend
from benchmarks.waits.counts import Counts
from benchmarks.waits.pretended import numbers_of, pretended
from kvpolicy_kernels.common.triton import launch

_function = backend._function


@contextmanager
def kernels_counted(counts: Counts) -> Iterator[None]:
    """Let launchers of kernels run as on a GPU, with every launch counted and none performed."""

    def launched(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: counts.note("launches", kernel.__name__)

    with (
        patch.object(KernelInterface, "__getitem__", launched),
        # Rounding is an operation of its own only where kernels are interpreted.
        patch.object(launch, "INTERPRETED", False),
        patch.object(backend, "_function", _counted_and_computed),
    ):
        yield


def _counted_and_computed(module: ModuleType, door: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs a launcher to be counted, and the reference for its result."""
    function = _function(module, door)
    if not module.__name__.endswith(".kernel"):
        return function
    reference = _function(import_module(f"{door.__module__}.reference"), door)

    def both(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            found = reference(*numbers_of(args), **numbers_of(kwargs))
        return pretended(found)

    return both
