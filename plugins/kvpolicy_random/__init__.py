"""Random eviction: a baseline that methods should be better than."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_random.scoring import RandomScorer

__all__ = ["RandomScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'random'."""
    return {"random": RandomScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer random scores without protection: even the most recent position may be evicted."""
    return {"random": {"scorer": "random", "recent": 0}}
