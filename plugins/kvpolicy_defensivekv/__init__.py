"""DefensiveKV: scores by the maximum over the window, with a lower bound, instead of its mean.

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
    """Offer the scorer 'defensivekv', the risk of evicting a position."""
    return {"defensivekv": DefensiveScorer}


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer the smoother 'defensive', which works with any scorer."""
    return {"defensive": DefensiveSmoother}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'layerdefensivekv', with one budget for the whole model."""
    return {"layerdefensivekv": LayerDefensiveAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published settings, with a budget for each layer or for the whole model."""
    parts = {"scorer": "defensivekv", "smoother": {"name": "defensive", "floor": False}}
    return {
        "defensivekv": parts | {"allocator": {"name": "adakv", "floor": 0.0}},
        "layerdefensivekv": parts | {"allocator": "layerdefensivekv"},
    }
