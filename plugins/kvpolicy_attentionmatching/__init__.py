"""Attention Matching: biases of the kept keys, and values, fitted to the last queries' attention.

Zweiger et al., 2026, https://arxiv.org/abs/2602.16284
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_attentionmatching.compaction import AttentionMatchingCompactor

__all__ = ["AttentionMatchingCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'attentionmatching', which works with any scorer and allocator."""
    return {"attentionmatching": AttentionMatchingCompactor}
