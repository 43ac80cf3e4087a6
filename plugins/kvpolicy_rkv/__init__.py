"""R-KV: scores by attention minus the redundancy of keys, for long chains of thought.

Cai et al., NeurIPS 2025, https://arxiv.org/abs/2505.24133
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_rkv.scoring import RedundancyScorer

__all__ = ["RedundancyScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'rkv', importance minus redundancy."""
    return {"rkv": RedundancyScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's setting: an eviction after 128 tokens, with a window of eight."""
    return {"rkv": {"scorer": "rkv", "every": 128}}
