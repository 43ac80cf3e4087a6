"""LaCache: a ladder over the layers, so that most positions are kept in some of the layers.

Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.scoring import Scorer
from kvpolicy_lacache.allocation import LadderAllocator
from kvpolicy_lacache.ladder import Ladder
from kvpolicy_lacache.planning import Plan, Planner
from kvpolicy_lacache.scoring import LadderScorer

__all__ = ["Ladder", "LadderAllocator", "LadderScorer", "Plan", "Planner"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'lacache', the ladder."""
    return {"lacache": LadderScorer}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'lacache', for the scores of the ladder."""
    return {"lacache": LadderAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published setting: compaction at every token, and rotary positions by slot."""
    return {
        "lacache": {
            "scorer": "lacache",
            "allocator": "lacache",
            "every": 1,
            "slot_positions": True,
        }
    }
