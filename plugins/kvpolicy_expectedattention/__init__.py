"""Expected Attention: scores by the expected attention of future queries.

Devoto et al., 2025, https://arxiv.org/abs/2510.00636
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_expectedattention.scoring import ExpectedAttentionScorer

__all__ = ["ExpectedAttentionScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'expectedattention'."""
    return {"expectedattention": ExpectedAttentionScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' defaults: protect four sinks, and no recent position."""
    return {"expectedattention": {"scorer": "expectedattention", "sinks": 4}}
