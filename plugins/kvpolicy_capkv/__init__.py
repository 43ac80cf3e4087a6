"""CapKV: keeps the positions that add most to what the values can express for coming queries.

Yang et al., ICML 2026, https://arxiv.org/abs/2604.25975
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_capkv.scoring import CapacityScorer

__all__ = ["CapacityScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'capkv', weighted leverage of values."""
    return {"capkv": CapacityScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the setting of kvpress: protect four sinks, and no recent position."""
    return {"capkv": {"scorer": "capkv", "sinks": 4}}
