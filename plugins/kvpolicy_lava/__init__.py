"""LAVa: scores by attention and values, and budgets for layers and heads that follow from them.

Shen et al., Findings of EMNLP 2025, https://arxiv.org/abs/2509.09754
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.scoring import Scorer
from kvpolicy_lava.allocation import EntropyAllocator
from kvpolicy_lava.scoring import LargestValueScorer

__all__ = ["EntropyAllocator", "LargestValueScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'lava'."""
    return {"lava": LargestValueScorer}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'lava', with one budget for the whole model."""
    return {"lava": EntropyAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' setting: the maximum of 7 neighbours, and of a group's query heads."""
    smoother = {"name": "pooling", "pooling": "max", "width": 7}
    return {
        "lava": {"scorer": "lava", "smoother": smoother, "allocator": "lava", "group": "max"},
    }
