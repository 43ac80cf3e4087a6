"""TriAttention: scores keys by the centre and the spread of queries before rotary embedding.

Mao et al., 2026, https://arxiv.org/abs/2604.04921
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_triattention.scoring import TrigonometricScorer

__all__ = ["TrigonometricScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'triattention'."""
    return {"triattention": TrigonometricScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' setting: the best of a group's query heads, and every 128 tokens."""
    return {"triattention": {"scorer": "triattention", "group": "max", "every": 128}}
