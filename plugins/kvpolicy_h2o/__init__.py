"""H2O: keeps heavy hitters, the positions that all queries so far have attended to most.

Zhang et al., NeurIPS 2023, https://arxiv.org/abs/2306.14048
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_h2o.scoring import HeavyHitterScorer

__all__ = ["HeavyHitterScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'h2o', accumulated attention."""
    return {"h2o": HeavyHitterScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's setting: half the budget for recent tokens, and eviction at every token."""
    return {"h2o": {"scorer": "h2o", "recent": 0.5, "every": 1}}
