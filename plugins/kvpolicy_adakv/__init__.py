"""Ada-KV: distributes a layer's budget among its heads by the best scores of the layer.

Feng et al., NeurIPS 2025, https://arxiv.org/abs/2407.11550
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy_adakv.allocation import AdaptiveAllocator

__all__ = ["AdaptiveAllocator"]


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'adakv'."""
    return {"adakv": AdaptiveAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' setting: SnapKV's scores, and the maximum of 7 neighbours."""
    smoother = {"name": "pooling", "pooling": "max", "width": 7}
    return {"adakv": {"scorer": "snapkv", "smoother": smoother, "allocator": "adakv"}}
