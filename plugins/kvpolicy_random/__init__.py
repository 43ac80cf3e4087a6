"""Random eviction: the baseline that any method must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_random.scoring import RandomScorer

__all__ = ["RandomScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer chance."""
    return {"random": RandomScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer chance alone: not even the most recent position is sure to stay."""
    return {"random": {"scorer": "random", "recent": 0}}
