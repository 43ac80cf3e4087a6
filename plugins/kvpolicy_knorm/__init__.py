"""Key norms: keys that are short are attended to most.

Devoto et al., EMNLP 2024, https://arxiv.org/abs/2406.11430
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.scoring import Scorer
from kvpolicy_knorm.allocation import SkippingAllocator
from kvpolicy_knorm.scoring import KeyNormScorer

__all__ = ["KeyNormScorer", "SkippingAllocator"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the norm of the key."""
    return {"knorm": KeyNormScorer}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer layers that are left whole."""
    return {"skiplayers": SkippingAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer norms alone, as the authors' function: no token is protected, no layer skipped."""
    return {"knorm": {"scorer": "knorm", "recent": 0}}
