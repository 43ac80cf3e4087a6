"""Functions of the cache in a compiled model: they run uncompiled, between the graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def between_graphs(function: F) -> F:
    """Keep a function out of the graphs of `torch.compile`."""
    disabled: F = torch.compiler.disable(function)
    return disabled
