"""OBCache: scores by what a position's key and value add to the outputs of the last queries.

Gu et al., 2025, https://arxiv.org/abs/2510.07651
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_obcache.scoring import OutputChangeScorer

__all__ = ["OutputChangeScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'obcache': the change of outputs, joint or of key or value alone."""
    return {"obcache": OutputChangeScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the joint score with SnapKV's window, and the maximum over 7 positions."""
    smoother = {"name": "pooling", "pooling": "max", "width": 7}
    return {"obcache": {"scorer": "obcache", "smoother": smoother}}
