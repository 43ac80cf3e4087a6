"""LOOK-M: merges evicted keys and values into the kept position with the most similar key.

Wan et al., Findings of EMNLP 2024, https://aclanthology.org/2024.findings-emnlp.235/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_lookm.compaction import SimilarityMergingCompactor

__all__ = ["SimilarityMergingCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'lookm'."""
    return {"lookm": SimilarityMergingCompactor}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer pivotal merging with four sinks, accumulated attention, and half the budget recent."""
    return {"lookm": {"scorer": "h2o", "compactor": "lookm", "sinks": 4, "recent": 0.5, "every": 1}}
