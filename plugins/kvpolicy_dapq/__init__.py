"""DapQ: scores by queries that stand at the next positions, whatever their tokens are.

2026, https://arxiv.org/abs/2603.11564
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_dapq.scoring import PseudoQueryScorer

__all__ = ["PseudoQueryScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer 'dapq', which shows another scorer pseudo queries instead of the last ones."""
    return {"dapq": PseudoQueryScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the recipe 'dapq': SnapKV, asked with pseudo queries."""
    return {"dapq": {"scorer": "dapq", "smoother": "pooling", "recent": 0}}
