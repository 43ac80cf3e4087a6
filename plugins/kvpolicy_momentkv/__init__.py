"""MomentKV, order 0: one more row of each head stands for all that the head has evicted.

Li et al., 2026, https://arxiv.org/abs/2606.01563
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_momentkv.compaction import MeanKeepingCompactor

__all__ = ["MeanKeepingCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'momentkv', which works with any scorer and allocator."""
    return {"momentkv": MeanKeepingCompactor}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the scores of ReST-KV with one row of the budget for what is evicted."""
    return {
        "momentkv": {
            "scorer": "restkv",
            "smoother": "spatiotemporal",
            "compactor": "momentkv",
        }
    }
