"""PyramidKV: gives the first layers more positions than the last; the budget is the mean.

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
    """Offer the allocator 'pyramidkv'."""
    return {"pyramidkv": PyramidAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' setting: the scores of SnapKV with the pyramid."""
    return {"pyramidkv": {"scorer": "snapkv", "smoother": "pooling", "allocator": "pyramidkv"}}
