"""PyramidKV: the first layers keep more positions than the last, on average the budget.

Cai et al., https://arxiv.org/abs/2406.02069
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy_pyramidkv.allocation import PyramidAllocator

__all__ = ["PyramidAllocator"]


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the pyramid over layers."""
    return {"pyramidkv": PyramidAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the pyramid with the scores that its authors use, those of SnapKV."""
    return {"pyramidkv": {"scorer": "snapkv", "smoother": "pooling", "allocator": "pyramidkv"}}
