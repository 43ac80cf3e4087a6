"""LagKV: keeps what differs most from the next partition of the text, without attention.

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
    """Offer the scorer 'lagkv', the rank in a partition by lag-relative information."""
    return {"lagkv": LagScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the sinks of the authors' code, with an eviction after each decoded partition."""
    return {"lagkv": {"scorer": "lagkv", "sinks": 16, "every": 128}}
