"""LagKV: what stands out against the partition of text that follows it, attention-free.

Liang et al., 2025, https://arxiv.org/abs/2504.04704
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_lagkv.scoring import LagScorer

__all__ = ["LagScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the rank in a partition by lag-relative information."""
    return {"lagkv": LagScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the sinks of the authors' code, and eviction whenever a partition has been decoded."""
    return {"lagkv": {"scorer": "lagkv", "sinks": 16, "every": 128}}
