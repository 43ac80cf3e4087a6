"""DefensiveKV: the worst case over the window instead of its mean, with a floor under it.

Feng et al., ICLR 2026, https://openreview.net/forum?id=nJgS06sX3O
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.smoothing import Smoother
from kvpolicy_defensivekv.allocation import LayerDefensiveAllocator
from kvpolicy_defensivekv.scoring import DefensiveScorer
from kvpolicy_defensivekv.smoothing import DefensiveSmoother

__all__ = ["DefensiveScorer", "DefensiveSmoother", "LayerDefensiveAllocator"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the risk of losing a position."""
    return {"defensivekv": DefensiveScorer}


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer defensive aggregation, for any scorer."""
    return {"defensive": DefensiveSmoother}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer a budget that all layers and heads compete for."""
    return {"layerdefensivekv": LayerDefensiveAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published settings: heads compete in their layer, or in the whole model."""
    parts = {"scorer": "defensivekv", "smoother": {"name": "defensive", "floor": False}}
    return {
        "defensivekv": parts | {"allocator": {"name": "adakv", "floor": 0.0}},
        "layerdefensivekv": parts | {"allocator": "layerdefensivekv"},
    }
