"""Key norms: keeps keys of small norm, which get the most attention.

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
    """Offer the scorer 'knorm', the negative norm of the key."""
    return {"knorm": KeyNormScorer}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'skiplayers', with layers that keep everything."""
    return {"skiplayers": SkippingAllocator}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the setting of the authors' function: protect no token, and skip no layer."""
    return {"knorm": {"scorer": "knorm", "recent": 0}}
