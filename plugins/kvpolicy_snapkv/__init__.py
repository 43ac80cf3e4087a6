"""SnapKV: scores by the attention of the observation window, pooled over neighbours.

Li et al., NeurIPS 2024, https://arxiv.org/abs/2404.14469
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.smoothing import Smoother
from kvpolicy_snapkv.scoring import AttentionScorer
from kvpolicy_snapkv.smoothing import PoolingSmoother

__all__ = ["AttentionScorer", "PoolingSmoother"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'snapkv', the window's attention."""
    return {"snapkv": AttentionScorer}


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer the smoother 'pooling', with a fixed width."""
    return {"pooling": PoolingSmoother}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the setting of the paper's code, with a window of 32."""
    return {"snapkv": {"scorer": "snapkv", "smoother": "pooling"}}
