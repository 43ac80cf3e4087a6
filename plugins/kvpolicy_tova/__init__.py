"""TOVA: token omission via attention, by the last query's attention in all heads together.

Oren et al., EMNLP 2024, https://arxiv.org/abs/2401.06104
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_tova.scoring import OmissionScorer

__all__ = ["OmissionScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'tova', the last query's attention averaged over a layer's heads."""
    return {"tova": OmissionScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's setting: protect nothing, and evict after every token."""
    return {"tova": {"scorer": "tova", "recent": 0, "every": 1}}
